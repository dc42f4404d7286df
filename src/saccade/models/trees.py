"""Attention over trees that are laid end to end: a trunk once, and branches that see it.

Invariant: a query attends to its trunk, to its own branch up to itself and to nothing else; scores
are computed for the columns of a branch, never for the square of a tree.

Rows of similar length are padded to one block, in which everything is a plain matrix product. The
gradient is written out: autograd would keep every intermediate, and gather keys by slower ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from saccade.tokens import Span

__all__ = ["TreeAttention"]

LEAST_FILLED = 0.8
"""Share of a block's longest row that its shortest one has."""
BLOCK_ROWS = 8
"""Rows that a block has in any case, since many small products cost more than some padding."""
SCORES = 2**24
"""Scores of a block at most: 64 MiB."""
KEPT_SCORES = 2**21
"""Weights of a block of at most that many are kept for its gradient; more are made again."""


class _Block(NamedTuple):
    """Spans padded to one size: R rows with q queries and C columns, each for every head.

    Indices are of (token, head) pairs; heads of queries are ordered by the shared head that they
    read.
    """

    query: torch.Tensor
    """(shared * R * group * q,) one after the last where there is none"""
    key: torch.Tensor
    """(shared * R * C,) 0 where there is none"""
    hidden: torch.Tensor
    """(R, 1, q, C) float32: 0 where the query sees the column, -inf elsewhere"""


class _Form(NamedTuple):
    """What all blocks have in common."""

    heads: int
    shared: int
    device: torch.device | str


class _Layout(NamedTuple):
    """The blocks of all queries."""

    blocks: tuple[_Block, ...]
    back: torch.Tensor
    """(Q * heads,) where each query stands in the blocks, laid end to end"""


class TreeAttention:
    """The `Attention` of spans that cover T tokens. `read` (Q,), ascending, are the tokens that
    query in the last layer; None: all.
    """

    def __init__(
        self,
        spans: Sequence[Span],
        *,
        layers: int,
        heads: int,
        shared: int,
        read: np.ndarray | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """`heads` ask, `shared` heads hold keys and values."""
        self._last = layers - 1
        form = _Form(heads, shared, device)
        self._inner = _layout(spans, np.arange(max(s.stop for s in spans)), form)
        self._outer = self._inner if read is None else _layout(spans, read, form)

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
    ) -> torch.Tensor:
        layout = self._outer if layer == self._last else self._inner
        found: torch.Tensor = _Attended.apply(query, key, value, layout, scaling)
        return found


class _Attended(torch.autograd.Function):
    """Softmax attention in the blocks of a layout."""

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        layout: _Layout,
        scaling: float,
    ) -> torch.Tensor:
        kept: list[torch.Tensor | None] = []
        parts = []
        asked = F.pad(query.flatten(0, 1), (0, 0, 0, 1))
        for block in layout.blocks:
            weights = _weights(block, asked, key, scaling)
            parts.append(weights @ _gathered(block.key, value.flatten(0, 1), weights.shape[0]))
            kept.append(weights if weights.numel() <= KEPT_SCORES else None)
        found = _joined(parts).index_select(0, layout.back)  # (Q * heads, size)
        ctx.layout, ctx.scaling = layout, scaling
        ctx.is_kept = [w is not None for w in kept]
        ctx.save_for_backward(query, key, value, found, *(w for w in kept if w is not None))
        return found.view(len(query), -1)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, found, *kept = ctx.saved_tensors
        held, told = iter(kept), gradients[0].reshape(found.shape)
        asked, told_of = (F.pad(rows, (0, 0, 0, 1)) for rows in (query.flatten(0, 1), told))
        along = F.pad(torch.linalg.vecdot(told, found), (0, 1))  # (Q * heads + 1,)
        keys, values = key.flatten(0, 1), value.flatten(0, 1)
        of_key, of_value = torch.zeros_like(keys), torch.zeros_like(values)
        parts = []
        for block, is_kept in zip(ctx.layout.blocks, ctx.is_kept, strict=True):
            weights = next(held) if is_kept else _weights(block, asked, key, ctx.scaling)
            products = weights.shape[0]
            told_here = _gathered(block.query, told_of, products)
            of_value.index_add_(0, block.key, (weights.transpose(1, 2) @ told_here).flatten(0, 1))
            of_scores = told_here @ _gathered(block.key, values, products).transpose(1, 2)
            of_scores.sub_(along.index_select(0, block.query).view(products, -1, 1))
            of_scores.mul_(weights).mul_(ctx.scaling)
            parts.append(of_scores @ _gathered(block.key, keys, products))
            of_key.index_add_(
                0,
                block.key,
                (of_scores.transpose(1, 2) @ _gathered(block.query, asked, products)).flatten(0, 1),
            )
        of_query = _joined(parts).index_select(0, ctx.layout.back)
        return (
            of_query.view(query.shape),
            of_key.view(key.shape),
            of_value.view(value.shape),
            None,
            None,
        )


def _weights(block: _Block, asked: torch.Tensor, key: torch.Tensor, scaling: float) -> torch.Tensor:
    """Attention weights (shared * R, group * q, C)."""
    rows, _, queries, columns = block.hidden.shape
    products = key.shape[1] * rows
    keys = _gathered(block.key, key.flatten(0, 1), products)
    scores = (_gathered(block.query, asked, products) * scaling) @ keys.transpose(1, 2)
    spread = scores.view(key.shape[1], rows, -1, queries, columns)
    return spread.add_(block.hidden).view_as(scores).softmax(-1, dtype=torch.float32).to(key.dtype)


def _gathered(index: torch.Tensor, rows: torch.Tensor, products: int) -> torch.Tensor:
    """Rows (N, size) by index, as many for each product: (products, -1, size)."""
    return rows.index_select(0, index).view(products, -1, rows.shape[-1])


def _joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Blocks (products, rows, size) end to end: (N, size)."""
    flat = [p.flatten(0, 1) for p in parts]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def _layout(spans: Sequence[Span], queries: np.ndarray, form: _Form) -> _Layout:
    """Spans that have queries, longest first, cut into blocks where they become much shorter."""
    ends = np.searchsorted(queries, [(s.start, s.stop) for s in spans])
    used = [(s, a, b) for s, (a, b) in zip(spans, ends.tolist(), strict=True) if b > a]
    if sum(b - a for _, a, b in used) != len(queries):
        raise ValueError(
            f"The spans hold {sum(b - a for _, a, b in used)} of {len(queries)} queries."
        )
    used.sort(key=lambda item: item[0].columns, reverse=True)
    cuts, widest = [0], 0
    for at, (span, a, b) in enumerate(used):
        rows, longest = at - cuts[-1], used[cuts[-1]][0].columns
        widest = max(widest, b - a)
        is_short = rows >= BLOCK_ROWS and span.columns < LEAST_FILLED * longest
        if rows and (is_short or (rows + 1) * form.heads * longest * widest > SCORES):
            cuts.append(at)
            widest = b - a
    heads, shared, device = form.heads, form.shared, form.device
    group = heads // shared
    head = np.arange(heads).reshape(shared, 1, group, 1)  # (shared, R, group, q)
    back = np.empty((len(queries), heads), dtype=np.int64)
    blocks, offset = [], 0
    for left, right in pairwise([*cuts, len(used)]):
        part = used[left:right]
        rows, most = len(part), max(b - a for _, a, b in part)
        before = max(s.trunk_stop - s.trunk_start for s, _, _ in part)
        after = max(s.stop - s.start for s, _, _ in part)
        query = np.full((rows, most), -1)
        key = np.zeros((rows, before + after), dtype=np.int64)
        hidden = np.full((rows, most, before + after), -np.inf, dtype=np.float32)
        for row, (span, a, b) in enumerate(part):
            query[row, : b - a] = np.arange(a, b)
            trunk, own = span.trunk_stop - span.trunk_start, span.stop - span.start
            key[row, :trunk] = np.arange(span.trunk_start, span.trunk_stop)
            key[row, before : before + own] = np.arange(span.start, span.stop)
            later = np.arange(span.start, span.stop) > queries[a:b, None]
            hidden[row, : b - a, :trunk] = 0
            hidden[row, : b - a, before : before + own] = np.where(later, -np.inf, 0)
            hidden[row, b - a :] = 0  # who asks nothing may see anything
        is_query = query >= 0
        spread = np.where(is_query[:, None], query[:, None] * heads + head, len(queries) * heads)
        place = offset + np.arange(spread.size).reshape(spread.shape)
        back[query[is_query]] = place.transpose(1, 3, 0, 2).reshape(rows, most, heads)[is_query]
        offset += spread.size
        keys = key * shared + np.arange(shared)[:, None, None]  # (shared, R, C)
        blocks.append(
            _Block(
                torch.from_numpy(spread.ravel()).to(device),
                torch.from_numpy(keys.ravel()).to(device),
                torch.from_numpy(hidden[:, None]).to(device),
            )
        )
    return _Layout(tuple(blocks), torch.from_numpy(back.ravel()).to(device))
