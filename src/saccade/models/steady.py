"""Forward passes whose rounding does not depend on who else is in the batch.

Invariant: on a CPU in float32, what is computed for a row is the same whatever the number of other
rows, the columns that its mask hides, and the tokens fed beside it. Two things are in the way:

- Libraries multiply few rows by other kernels than many, and these add in another order. From
  `LEAST_ROWS` on the order is one and the same (measured with MKL for every number of rows to 69
  and a dozen up to 2,000, one and two threads), so fewer rows are filled up with zeros. The batched
  products of attention need less of it: two queries and a few columns.
- The fused attention adds up exponentials in lanes that a hidden column shifts. Here scores and
  values are plain matrix products, in which a hidden column adds an exact zero, and the softmax is
  the stock one, which gave the same bits for 1 to 69 hidden columns before 16 to 700 others.

Left out on purpose: other devices and types, whose rounding is coarser than what this removes, and
contexts beyond what one block of a matrix product adds up (384 columns), where a last bit may
differ again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

__all__ = ["LEAST_ROWS", "attend", "filled", "is_steady", "with_steady_attention"]

LEAST_ROWS = 16
"""Rows of a matrix product from which on their number does not matter."""
LEAST_QUERIES = 2
LEAST_COLUMNS = 64
SCORES = 2**24
"""Scores held at a time: 64 MiB, and as much for their softmax."""
NAME = "saccade_steady"


def is_steady(weight: torch.Tensor) -> bool:
    """Whether products with this weight can be kept steady."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def filled(rows: torch.Tensor, least: int = LEAST_ROWS) -> torch.Tensor:
    """Rows (..., N, D), followed by zeros up to the least number."""
    spare = least - rows.shape[-2]
    return F.pad(rows, (0, 0, 0, spare)) if spare > 0 else rows  # a pad of nothing would copy


def with_steady_attention(model: nn.Module) -> nn.Module:
    """Let the language model take `steady=True` in a call; every other call stays as it was."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)  # without it stock calls get no mask
    model.model.language_model.set_attn_implementation(NAME)
    return model


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    steady: bool = False,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of queries (rows, heads, q, size): (rows, q, heads, size). The stock one, unless
    `steady`.

    Steady queries may have more rows than the keys: these fill up the products around, and get
    zeros.
    """
    if not steady:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
    if (spare := LEAST_COLUMNS - key.shape[2]) > 0:
        key, value = F.pad(key, (0, 0, spare, 0)), F.pad(value, (0, 0, spare, 0))
        attention_mask = F.pad(attention_mask, (spare, 0), value=float("-inf"))
    rows, shared, columns = key.shape[:3]
    width = query.shape[2]
    grouped = query[:rows].unflatten(1, (shared, -1)) * scaling  # (rows, shared, group, q, size)
    stride = max(1, SCORES // (rows * query.shape[1] * columns))
    found = []
    for at in range(0, width, stride):
        part = grouped[:, :, :, at : at + stride]
        shape, queries = part.shape[2:4], part.shape[2] * part.shape[3]
        hidden = attention_mask[:, :, None, at : at + stride]  # (rows, 1, 1, q, columns)
        flat = filled(part.flatten(2, 3), LEAST_QUERIES)
        scores = torch.matmul(flat, key.transpose(-1, -2))[:, :, :queries]
        scores = scores.unflatten(2, shape).add_(hidden)  # (rows, shared, group, q, columns)
        weights = scores.softmax(-1)
        seen = torch.matmul(filled(weights.flatten(2, 3), LEAST_QUERIES), value)[:, :, :queries]
        found.append(seen.unflatten(2, shape))  # (rows, shared, group, q, size)
    heads = torch.cat(found, dim=3).flatten(1, 2).transpose(1, 2)  # (rows, q, heads, size)
    if len(query) > rows:
        heads = F.pad(heads, (0, 0, 0, 0, 0, 0, 0, len(query) - rows))
    return heads.contiguous(), None
