"""The objectives of reinforcement learning as pure functions of tensors: no model, no files.

Axes: N trained tokens of a batch, E episodes, G rollouts of a group. `episode` (N,) says which
episode a token belongs to. Sources are given with each function.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch

from saccade.errors import SaccadeError

__all__ = [
    "LossKind",
    "PolicyLoss",
    "clip_gradients",
    "group_advantages",
    "kl_estimate",
    "policy_loss",
]

SAME_REWARD = 1e-9
"""Rewards that differ by less are equal."""
LossKind = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"]


class PolicyLoss(NamedTuple):
    """The scalar to minimise and what to watch."""

    loss: torch.Tensor
    clipped: torch.Tensor
    """Share of tokens (episodes for GSPO) whose ratio was clipped away."""
    kl: torch.Tensor
    """Mean estimated KL divergence from the reference; 0 without one."""
    ratio: torch.Tensor
    """Mean importance ratio; 1 on the first update of a batch."""


def group_advantages(
    rewards_G: torch.Tensor, *, scale: bool, epsilon: float = 1e-4
) -> torch.Tensor:
    """Rewards of one group, centred on their mean; divided by their standard deviation if `scale`.

    GRPO (Shao et al. 2024, section 4.1.2) scales, Dr. GRPO (Liu et al. 2025, section 3.2) does not.
    """
    if rewards_G.numel() < 2:
        raise ValueError(f"A group needs 2 scored rollouts to compare, got {rewards_G.numel()}.")
    if (rewards_G.max() - rewards_G.min()).item() < SAME_REWARD:
        return torch.zeros_like(rewards_G)  # else float noise would be scaled up to a signal
    centred = rewards_G - rewards_G.mean()
    return centred / (rewards_G.std() + epsilon) if scale else centred


def clip_gradients(parameters: Iterable[torch.Tensor], most: float) -> float:
    """Scale gradients down to a common norm of at most `most`; returns the norm before.

    Raises SaccadeError where it is not finite: one such step would spoil all weights.
    """
    norm = torch.nn.utils.clip_grad_norm_(parameters, most).item()
    if not math.isfinite(norm):
        raise SaccadeError(
            f"The norm of the gradients is {norm}, so this step was not taken; lower the learning "
            "rate and start again from the last checkpoint."
        )
    return norm


def kl_estimate(logprobs_N: torch.Tensor, reference_N: torch.Tensor) -> torch.Tensor:
    """exp(r - p) - (r - p) - 1 for each token: unbiased and never negative (Schulman's k3)."""
    gap = reference_N - logprobs_N
    return gap.exp() - gap - 1


def policy_loss(
    logprobs_N: torch.Tensor,
    old_logprobs_N: torch.Tensor,
    advantages_N: torch.Tensor,
    episode_N: torch.Tensor,
    *,
    episodes: int,
    kind: LossKind = "grpo",
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_beta: float = 0.0,
    reference_N: torch.Tensor | None = None,
    max_tokens: int = 1,
) -> PolicyLoss:
    """The clipped objective over the trained tokens of `episodes` episodes.

    grpo: mean over tokens in an episode, then over episodes (Shao et al. 2024, eq. 3).
    dr_grpo: sum over tokens over `episodes * max_tokens`, a constant, so that length carries no
    weight
        (Liu et al. 2025).
    dapo: mean over all tokens of the batch, the upper clip range its own (Yu et al. 2025, eq. 8).
    gspo: one ratio for an episode, the geometric mean of its tokens' (Zheng et al. 2025, eq. 5 and
    7). cispo: the clipped ratio is a constant weight on the log-likelihood, so that no token loses
    its gradient
        (MiniMax-M1 2025, eq. 4); weighted by token as dapo.
    """
    if len(logprobs_N) == 0:
        raise ValueError("policy_loss needs at least one trained token, got none.")
    if kl_beta > 0 and reference_N is None:
        raise ValueError(f"kl_beta is {kl_beta}, so policy_loss needs reference_N, got none.")
    log_ratio_N = logprobs_N - old_logprobs_N
    lengths_E = torch.zeros(episodes, dtype=logprobs_N.dtype, device=logprobs_N.device)
    lengths_E = lengths_E.index_add(0, episode_N, torch.ones_like(logprobs_N)).clamp(min=1)
    if kind == "gspo":
        mean_E = torch.zeros_like(lengths_E).index_add(0, episode_N, log_ratio_N) / lengths_E
        # the value is the episode's ratio, the gradient reaches every token (eq. 13, GSPO-token)
        log_ratio_N = mean_E.detach()[episode_N] + logprobs_N - logprobs_N.detach()
    ratio_N = log_ratio_N.exp()
    bounded_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    if kind == "cispo":
        loss_N = -bounded_N.detach() * advantages_N * logprobs_N
        is_clipped = bounded_N != ratio_N
    else:
        free, held = ratio_N * advantages_N, bounded_N * advantages_N
        loss_N = -torch.minimum(free, held)
        is_clipped = held < free
    kl_N = torch.zeros_like(loss_N) if reference_N is None else kl_estimate(logprobs_N, reference_N)
    loss_N = loss_N + kl_beta * kl_N
    if kind in ("grpo", "gspo"):
        loss = (loss_N / lengths_E[episode_N]).sum() / episodes
    elif kind == "dr_grpo":
        loss = loss_N.sum() / (episodes * max_tokens)
    else:
        loss = loss_N.sum() / len(loss_N)
    clipped = is_clipped.to(logprobs_N.dtype)
    if kind == "gspo":  # all tokens of an episode share its ratio
        clipped_E = torch.zeros_like(lengths_E).index_add(0, episode_N, clipped) / lengths_E
        clipped = clipped_E[episode_N.unique()]
    return PolicyLoss(loss, clipped.mean(), kl_N.detach().mean(), ratio_N.detach().mean())
