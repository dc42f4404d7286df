"""Products whose rounding does not depend on who else is in the batch.

Invariant: on a CPU in float32, what is computed for a row is the same whatever the number of other
rows, the columns that its mask hides, and the tokens fed beside it. Two things are in the way:

- Libraries multiply few rows by other kernels than many, and these add in another order. From
  `LEAST_ROWS` on the order is one and the same (measured with MKL for every number of rows to 69
  and a dozen up to 2,000, one and two threads), so fewer rows are filled up with zeros. The batched
  products of attention need less of it: four queries and a few columns, added up in blocks that
  are shorter than the library's own (384 on an Intel processor, 192 on an AMD one).
- The fused attention adds up exponentials in lanes that a hidden column shifts. Here scores and
  values are plain matrix products, in which a hidden column adds an exact zero, and the softmax is
  the stock one, which gave the same bits for 1 to 69 hidden columns before 16 to 700 others.

Left out on purpose: other devices and types, whose rounding is coarser than what this removes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

__all__ = ["LEAST_COLUMNS", "LEAST_ROWS", "attended", "filled", "is_steady"]

LEAST_ROWS = 16
"""Rows of a matrix product from which on their number does not matter."""
LEAST_QUERIES = 4
LEAST_COLUMNS = 64
BLOCK = 192
"""Columns that are added up at a time, counted from the last one."""
SCORES = 2**24
"""Scores held at a time: 64 MiB, and as much for their softmax."""


def is_steady(weight: torch.Tensor) -> bool:
    """Whether products with this weight can be kept steady."""
    return weight.device.type == "cpu" and weight.dtype == torch.float32


def filled(rows: torch.Tensor, least: int = LEAST_ROWS) -> torch.Tensor:
    """Rows (..., N, D), followed by zeros up to the least number."""
    spare = least - rows.shape[-2]
    return F.pad(rows, (0, 0, 0, spare)) if spare > 0 else rows  # a pad of nothing would copy


def attended(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    hidden: torch.Tensor,
    *,
    scaling: float,
) -> torch.Tensor:
    """What queries (rows, q, heads, size) make of keys and values (rows, shared heads, columns,
    size): (rows, q, heads, size). `hidden` (rows, 1, q, columns) is 0 or -inf.

    Steady on a CPU in float32; elsewhere the stock kernels.
    """
    asked = query.transpose(1, 2)  # (rows, heads, q, size)
    if not is_steady(query):
        found = F.scaled_dot_product_attention(
            asked, key, value, attn_mask=hidden.to(query.dtype), scale=scaling, enable_gqa=True
        )
        return found.transpose(1, 2)
    if (spare := LEAST_COLUMNS - key.shape[2]) > 0:
        key, value = F.pad(key, (0, 0, spare, 0)), F.pad(value, (0, 0, spare, 0))
        hidden = F.pad(hidden, (spare, 0), value=float("-inf"))
    rows, shared, columns = key.shape[:3]
    width, heads = query.shape[1:3]
    grouped = asked.unflatten(1, (shared, -1)) * scaling  # (rows, shared, group, q, size)
    keys = key.transpose(-1, -2)
    stride = max(1, SCORES // (rows * heads * columns))
    parts = []
    for at in range(0, width, stride):
        part = grouped[:, :, :, at : at + stride]
        shape = part.shape[2:4]
        count = shape[0] * shape[1]
        flat = filled(part.flatten(2, 3), LEAST_QUERIES)
        scores = torch.matmul(flat, keys)  # (rows, shared, group * q, columns)
        spread = scores[:, :, :count].unflatten(2, shape)
        weights = spread.add_(hidden[:, :, None, at : at + stride]).softmax(-1).flatten(2, 3)
        seen = _weighted(filled(weights, LEAST_QUERIES), value)[:, :, :count]
        parts.append(seen.unflatten(2, shape))  # (rows, shared, group, q, size)
    found = parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)
    return found.flatten(1, 2).transpose(1, 2)


def _weighted(weights: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """(..., q, columns) @ (..., columns, size), block by block from the end, so that hidden columns
    at the start move no border between blocks.
    """
    stop = value.shape[-2]
    found = None
    while stop > 0:
        start = max(0, stop - BLOCK)
        some, of = weights[..., start:stop], value[..., start:stop, :]
        if (spare := LEAST_COLUMNS - (stop - start)) > 0:
            some, of = F.pad(some, (spare, 0)), F.pad(of, (0, 0, spare, 0))
        part = torch.matmul(some, of)
        found = part if found is None else found + part
        stop = start
    assert found is not None
    return found
