"""From log-distributions to ids, by draws that depend on a seed and an index alone.

Invariant: neither the order of rows nor their company changes a draw; an id of probability zero is
never chosen.

Left out on purpose: top-p and top-k, whose logprobs are not those of a training forward.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["choose", "seed_keys", "uniforms"]

BLOCK = 16
"""Ids that are drawn from as one, at first."""


def seed_keys(seed: tuple[int, str, int]) -> tuple[int, int]:
    """Two 64-bit keys of a seed: the beginning of its sha256."""
    digest = hashlib.sha256(json.dumps(seed).encode()).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")


def _mixed(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniforms(first: np.ndarray, second: np.ndarray, index: np.ndarray) -> np.ndarray:
    """One number in [0, 1) for each (keys, index): a counter-based generator, so order and company
    do not matter.

    SplitMix64 (Steele, Lea, Flood 2014) from the first key, mixed once more with the second. All
    (N,); keys uint64.
    """
    z = _mixed(first + (index.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return (_mixed(z ^ second) >> np.uint64(11)) * 2.0**-53


def choose(logprobs: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """The ids (N,) that draws (N,) in [0, 1) pick from log-distributions (N, V), by inverse CDF in
    float64.

    First among blocks of ids, then inside the block: a CDF over all of a vocabulary costs more than
    the layers of a small model. Never an id of probability zero.
    """
    probabilities = logprobs.exp()  # (N, V)
    if spare := -probabilities.shape[1] % BLOCK:
        probabilities = F.pad(probabilities, (0, spare))
    blocks = probabilities.unflatten(1, (-1, BLOCK))  # (N, blocks, BLOCK)
    weights = blocks.sum(-1, dtype=torch.float64)
    block, rest = _pick(weights, draws * weights.sum(-1))
    inside, _ = _pick(blocks[torch.arange(len(blocks), device=blocks.device), block].double(), rest)
    return block * BLOCK + inside


def _pick(weights: torch.Tensor, sought: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where `sought` (N,) falls in the running sum of weights (N, K) float64, and how far into that
    weight.

    The step of a weight 0 is empty, and what rounding put at the total or above is kept below it.
    """
    cdf = weights.cumsum(-1)
    below = torch.nextafter(cdf[:, -1], torch.zeros_like(sought))
    sought = torch.minimum(sought, below)[:, None]
    index = torch.searchsorted(cdf, sought, right=True).clamp_(max=cdf.shape[1] - 1)
    rest = sought - (cdf.gather(1, index) - weights.gather(1, index))
    return index[:, 0], rest[:, 0].clamp_min(0)
