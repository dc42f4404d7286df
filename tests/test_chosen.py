"""Logprobs straight from hidden states against the whole log-softmax."""

import pytest
import torch

from saccade.models import chosen
from saccade.models.chosen import chosen_logprobs
from saccade.models.forward import sampling_logprobs

N, D, V = 70, 24, 331


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(N, D, requires_grad=True)
    weight = torch.randn(V, D, requires_grad=True)
    target = torch.randint(5, V, (N,))
    return hidden, weight, target


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
@pytest.mark.parametrize(
    "suppressed", [None, torch.tensor([0, 4]), torch.tensor([], dtype=torch.long)]
)
@pytest.mark.parametrize("held", [2**19, 1])
def test_numbers_and_gradients_are_those_of_the_whole_distribution(
    temperature: float, suppressed: torch.Tensor | None, held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen, "LOGITS", held)
    hidden, weight, target = inputs()
    table = sampling_logprobs(hidden @ weight.t(), temperature=temperature, suppressed=suppressed)
    logprobs = table.gather(-1, target[:, None])[:, 0]
    finite = table.detach().clamp(min=-1000)
    pull = torch.randn(N)
    expected = torch.autograd.grad((logprobs * pull).sum(), (hidden, weight))
    found = chosen_logprobs(hidden, weight, target, temperature=temperature, suppressed=suppressed)
    torch.testing.assert_close(found.logprobs, logprobs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        found.entropy, -(finite.exp() * finite).sum(-1), atol=2e-6, rtol=1e-5
    )
    assert not found.entropy.requires_grad
    gradients = torch.autograd.grad((found.logprobs * pull).sum(), (hidden, weight))
    for one, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-5)


def test_ids_that_are_never_drawn_get_no_gradient() -> None:
    hidden, weight, target = inputs()
    never = torch.tensor([1, 3])
    found = chosen_logprobs(hidden, weight, target, temperature=1.0, suppressed=never)
    found.logprobs.sum().backward()
    assert not weight.grad[never].any()
    assert weight.grad[2].any()


def test_no_logits_of_the_whole_vocabulary_are_kept() -> None:
    hidden, weight, target = inputs()
    kept: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        chosen_logprobs(hidden, weight, target, temperature=1.0, suppressed=None)
    assert kept
    assert torch.Size((N, V)) not in kept
