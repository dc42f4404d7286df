"""Our objectives against TRL's own code, on the same fixed tensors.

TRL's `GRPOTrainer._compute_loss` runs unchanged; what it is bound to only holds settings and hands
out the given logprobs in place of a model's. Where the two define things differently, the tests
set what makes them mean the same:

- dr_grpo divides by the number of episodes times a constant. TRL's constant is
  `max_completion_length`, a budget for everything behind the prompt, what tools said included; ours
  is `max_tokens`, which RL sets to the tokens that the model may write in all turns.
- dapo divides by all trained tokens of the batch that was generated, over all processes. Ours is
  given one batch and divides by its tokens; RL weighs the parts of a batch by theirs.
- grpo is the mean of the means of the parts where TRL accumulates gradients; parts of equally many
  episodes give the mean over all.
- TRL's name dapo is this way of averaging alone; the higher clip range is a setting of its own.
- TRL takes its own logprobs for the old ones where a batch is used once, and the ratio is then 1;
  ours are those of the sampler. Here both are given the same.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from saccade.losses import LossKind, PolicyLoss, policy_loss

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install 'saccade[trl]'")

MAX_TOKENS = 40
CLIP_LOW = 0.2


class Episodes(NamedTuple):
    """B episodes of T places behind their prompts; some places are the tools'."""

    logprobs: torch.Tensor
    """(B, T)"""
    old: torch.Tensor
    reference: torch.Tensor
    advantages: torch.Tensor
    """(B,)"""
    completion: torch.Tensor
    """(B, T) 1 up to the end of each episode."""
    written: torch.Tensor
    """(B, T) 0 where a tool spoke."""

    @property
    def trained(self) -> torch.Tensor:
        return (self.completion * self.written).bool()

    def part(self, rows: slice) -> Episodes:
        return Episodes(*(t[rows] for t in self))


def episodes(seed: int, *, drift: float, count: int = 6, length: int = 13) -> Episodes:
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    old = -normal(count, length).abs() - 0.05
    ends = torch.randint(3, length + 1, (count,), generator=draw)
    ends[0] = length  # as TRL pads: to the longest
    completion = (torch.arange(length) < ends[:, None]).long()
    written = torch.ones(count, length, dtype=torch.long)
    for row, end in enumerate(ends.tolist()):
        begin = 1 + row % 2
        written[row, begin : max(begin, end - 2)] = 0
    return Episodes(
        logprobs=(old + drift * normal(count, length)).requires_grad_(),
        old=old,
        reference=old + 0.5 * normal(count, length),
        advantages=normal(count),
        completion=completion,
        written=written,
    )


class Theirs(NamedTuple):
    """What TRL computes, and what it watches."""

    loss: torch.Tensor
    metrics: dict[str, list[float]]


def theirs(
    given: Episodes,
    kind: LossKind,
    *,
    clip_high: float,
    kl_beta: float,
    parts: int = 1,
    items: int | None = None,
) -> Theirs:
    """TRL's loss of one of `parts` passes over a batch of `items` trained tokens."""
    metrics: dict[str, dict[str, list[float]]] = {"train": defaultdict(list)}
    trainer = SimpleNamespace(
        loss_type=kind,
        beta=kl_beta,
        epsilon_low=CLIP_LOW,
        epsilon_high=clip_high,
        max_completion_length=MAX_TOKENS,
        importance_sampling_level="token",
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        vllm_importance_sampling_correction=False,
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        current_gradient_accumulation_steps=parts,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=parts),
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, reduce=lambda x, reduction: x
        ),
        _metrics=metrics,
        _get_per_token_logps_and_entropies=lambda *_, **__: (
            given.logprobs,
            torch.zeros_like(given.logprobs),
            None,
        ),
    )
    count = len(given.advantages)
    inputs = {
        "prompt_ids": torch.zeros(count, 2, dtype=torch.long),
        "prompt_mask": torch.ones(count, 2, dtype=torch.long),
        "completion_ids": torch.zeros_like(given.completion),
        "completion_mask": given.completion,
        "tool_mask": given.written,
        "advantages": given.advantages,
        "old_per_token_logps": given.old,
        "ref_per_token_logps": given.reference,
        "num_items_in_batch": torch.tensor(int(given.trained.sum()) if items is None else items),
    }
    loss = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
    return Theirs(loss, metrics["train"])


def ours(given: Episodes, kind: LossKind, *, clip_high: float, kl_beta: float) -> PolicyLoss:
    trained = given.trained
    row = trained.nonzero()[:, 0]
    return policy_loss(
        given.logprobs[trained],
        given.old[trained],
        given.advantages[row],
        row,
        episodes=len(given.advantages),
        kind=kind,
        clip_low=CLIP_LOW,
        clip_high=clip_high,
        kl_beta=kl_beta,
        reference_N=given.reference[trained],
        max_tokens=MAX_TOKENS,
    )


def slope(loss: torch.Tensor, given: Episodes) -> torch.Tensor:
    return torch.autograd.grad(loss, given.logprobs)[0]


KINDS: tuple[LossKind, ...] = ("grpo", "dr_grpo", "dapo")


@pytest.mark.parametrize("kl_beta", [0.0, 0.04])
@pytest.mark.parametrize("clip_high", [0.2, 0.28])
@pytest.mark.parametrize("drift", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_trl(
    kind: LossKind, drift: float, clip_high: float, kl_beta: float
) -> None:
    for seed in range(5):
        given = episodes(seed, drift=drift)
        other = theirs(given, kind, clip_high=clip_high, kl_beta=kl_beta)
        mine = ours(given, kind, clip_high=clip_high, kl_beta=kl_beta)
        torch.testing.assert_close(mine.loss, other.loss, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            slope(mine.loss, given), slope(other.loss, given), rtol=0, atol=1e-5
        )


def test_the_tensors_are_clipped_on_both_sides_and_what_is_watched_is_that_of_trl() -> None:
    given = episodes(3, drift=1.0)
    other = theirs(given, "grpo", clip_high=0.28, kl_beta=0.04)
    mine = ours(given, "grpo", clip_high=0.28, kl_beta=0.04)
    assert other.metrics["clip_ratio/low_mean"][0] > 0
    assert other.metrics["clip_ratio/high_mean"][0] > 0
    assert mine.clipped.item() == pytest.approx(other.metrics["clip_ratio/region_mean"][0])
    assert mine.kl.item() == pytest.approx(other.metrics["kl"][0], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_passes_over_parts_of_a_batch_add_up_to_our_loss_of_the_whole(kind: LossKind) -> None:
    given = episodes(7, drift=0.5)
    items = int(given.trained.sum())
    halves = [
        theirs(given.part(rows), kind, clip_high=0.28, kl_beta=0.04, parts=2, items=items).loss
        for rows in (slice(0, 3), slice(3, 6))
    ]
    whole = ours(given, kind, clip_high=0.28, kl_beta=0.04).loss
    torch.testing.assert_close(whole, sum(halves), rtol=0, atol=1e-5)


def test_a_part_with_fewer_tokens_weighs_less_under_dapo_and_as_much_under_grpo() -> None:
    given = episodes(7, drift=0.5)
    parts = [given.part(slice(0, 3)), given.part(slice(3, 6))]
    tokens = [int(p.trained.sum()) for p in parts]
    assert tokens[0] != tokens[1]
    for kind, shares in (("dapo", [t / sum(tokens) for t in tokens]), ("grpo", [0.5, 0.5])):
        summed = sum(
            ours(p, kind, clip_high=0.2, kl_beta=0.0).loss * s
            for p, s in zip(parts, shares, strict=True)
        )
        other = theirs(given, kind, clip_high=0.2, kl_beta=0.0).loss
        torch.testing.assert_close(summed, other, rtol=0, atol=1e-5)
