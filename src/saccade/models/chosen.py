"""Logprobs of chosen ids straight from hidden states: the last layer and its softmax in one.

Invariant: the numbers are those of `sampling_logprobs`, but for rounding; logits of the whole
vocabulary exist for a few tokens at a time and are made again for the gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

__all__ = ["Chosen", "chosen_logprobs"]

LOGITS = 2**19
"""Logits held at a time: 2 MiB of float32, which a core's own cache holds."""
NEVER = -1e30
"""Logit of an id that may not be drawn: its probability is an exact 0, and 0 * NEVER is 0."""


class Chosen(NamedTuple):
    """What is known of N tokens."""

    logprobs: torch.Tensor
    """(N,) float32"""
    entropy: torch.Tensor
    """(N,) float32, in nats, of the distribution that the token was drawn from; no gradient."""
    likeliest: torch.Tensor
    """(N,) the id that the model would have chosen."""


def chosen_logprobs(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    *,
    temperature: float,
    suppressed: torch.Tensor | None,
) -> Chosen:
    """Logprobs of ids `target` (N,) after hidden states (N, D), under the distribution that is
    sampled: last layer `weight` (V, D), temperature (0 is scored as 1), `suppressed` ids never.
    """
    never = target[:0] if suppressed is None else suppressed
    scale = 1 / temperature if temperature > 0 else 1.0
    return Chosen(*_Chosen.apply(hidden, weight, target, never, scale))


class _Chosen(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        target: torch.Tensor,
        never: torch.Tensor,
        scale: float,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        empty = hidden.new_empty(len(hidden), dtype=torch.float32)
        logprobs, entropy, normal = empty, torch.empty_like(empty), torch.empty_like(empty)
        likeliest = torch.empty_like(target)
        for at in _pieces(len(hidden), len(weight)):
            logits = _logits(hidden[at], weight, never, scale)
            most, best = logits.max(-1, keepdim=True)
            logits.sub_(most)
            picked = logits.gather(1, target[at, None])[:, 0]
            shares = logits.exp()
            total = shares.sum(-1)
            log_total = total.log()
            logprobs[at] = picked - log_total
            entropy[at] = log_total - logits.mul_(shares).sum(-1) / total
            normal[at] = log_total + most[:, 0]
            likeliest[at] = best[:, 0]
        ctx.scale = scale
        ctx.save_for_backward(hidden, weight, target, never, normal)
        ctx.mark_non_differentiable(entropy, likeliest)
        return logprobs, entropy, likeliest

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, target, never, normal = ctx.saved_tensors
        told = gradients[0] * ctx.scale  # (N,)
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for at in _pieces(len(hidden), len(weight)):
            shares = _logits(hidden[at], weight, never, ctx.scale).sub_(normal[at, None]).exp_()
            of_logits = shares.mul_(-told[at, None])
            of_logits.scatter_add_(1, target[at, None], told[at, None])
            of_logits = of_logits.to(hidden.dtype)
            if of_hidden is not None:
                of_hidden[at] = of_logits @ weight
            if of_weight is not None:
                of_weight.addmm_(of_logits.t(), hidden[at])
        return of_hidden, of_weight, None, None, None


def _pieces(rows: int, vocabulary: int) -> list[slice]:
    size = max(16, LOGITS // vocabulary)
    return [slice(at, at + size) for at in range(0, rows, size)]


def _logits(
    hidden: torch.Tensor, weight: torch.Tensor, never: torch.Tensor, scale: float
) -> torch.Tensor:
    """Logits (n, V) float32, those of ids that are never drawn out of reach."""
    logits = (hidden @ weight.t()).float()
    if scale != 1:
        logits.mul_(scale)
    return logits.index_fill_(1, never, NEVER) if len(never) else logits
