"""Forward passes over the rows of a batch: new tokens in, logits out, keys and values into the
slab.

Invariant: no token is padding. Runs of all lengths are fed end to end in one pass, and all end at
the cursor; only their attention is padded, among runs of similar length. Where rounding can be kept
steady, no product has fewer than `LEAST_ROWS` rows; what fills them up never reaches the slab.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from saccade.engines.decoding.rows import Rows
from saccade.engines.decoding.runs import Run
from saccade.engines.decoding.stats import EngineStats
from saccade.models.flat import Raised, flat_states
from saccade.models.steady import LEAST_COLUMNS, LEAST_ROWS, attended, filled, is_steady

__all__ = ["Forward"]

PREFILL_TOKENS = 8192
"""Of one forward pass at most, so that masks and activations stay small."""
LEAST_FILLED = 0.7
"""Share of the longest run in a block of attention that its shortest one has."""
BLOCK_ROWS = 8
"""Rows that a block has in any case: a little padding costs less than one more product."""


class FeaturesByKey(Protocol):
    def __getitem__(self, key: str) -> torch.Tensor: ...


class _Piece(NamedTuple):
    """Tokens `start` to `stop` of a run."""

    run: int
    start: int
    stop: int


class _Block(NamedTuple):
    """Rows of the slab whose new tokens attend together."""

    rows: slice
    columns: slice
    """What is read."""
    query: torch.Tensor | None
    """(rows, q) index of each query among the new tokens; the first where there is none. None: the
    new tokens are one query a row, in their order.
    """
    hidden: torch.Tensor
    """(rows, 1, q, columns): 0 where the query sees the column, -inf elsewhere"""


class _SlabAttention:
    """The `Attention` of new tokens to what is in the slab, themselves included."""

    def __init__(
        self,
        data: torch.Tensor,
        *,
        rows: torch.Tensor | slice,
        columns: torch.Tensor | int,
        blocks: Sequence[_Block],
        back: torch.Tensor | None,
        last_blocks: Sequence[_Block],
        last_back: torch.Tensor | None,
    ) -> None:
        self._data, self._rows, self._columns = data, rows, columns
        self._blocks, self._last = (blocks, back), (last_blocks, last_back)

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float,
    ) -> torch.Tensor:
        is_last = layer == len(self._data) - 1
        blocks, back = self._last if is_last else self._blocks
        keys, values = self._data[layer]
        count = self._rows.stop if isinstance(self._rows, slice) else len(self._rows)
        keys[self._rows, :, self._columns] = key[:count]
        values[self._rows, :, self._columns] = value[:count]
        parts = []
        for rows, columns, index, hidden in blocks:
            asked = query[: len(hidden), None] if index is None else query[index]
            found = attended(
                asked,
                keys[rows, :, columns],
                values[rows, :, columns],
                hidden,
                scaling=scaling,
            )
            parts.append(found.flatten(2).flatten(0, 1))  # (rows * q, heads * size)
        seen = parts[0] if len(parts) == 1 else torch.cat(parts)
        if back is not None:
            seen = seen.index_select(0, back)
        return F.pad(seen, (0, 0, 0, len(query) - len(seen))) if len(seen) < len(query) else seen


class Forward:
    """A model that reads and writes the slab of some rows."""

    def __init__(self, model: nn.Module, rows: Rows, *, stats: EngineStats) -> None:
        self._model, self._rows, self._stats = model, rows, stats
        table = model.get_input_embeddings().weight
        self._device = table.device
        self._is_steady = is_steady(table)

    def there(self, array: np.ndarray) -> torch.Tensor:
        """The array, on the model's device."""
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def prefill(self, runs: Sequence[Run], *, begin: int, features: FeaturesByKey) -> torch.Tensor:
        """Feed runs, longest first, to the rows from `begin`. The last logits of each (rows, V)."""
        with self._stats.phase("prefill"):
            ends: dict[int, torch.Tensor] = {}
            for pieces in _pieces([len(r.ids) for r in runs]):
                found = self._feed(runs, pieces, begin=begin, features=features)
                ends |= {p.run: row for p, row in zip(pieces, found, strict=True)}
            return self._logits(torch.stack([ends[number] for number in range(len(runs))]))

    def _feed(
        self, runs: Sequence[Run], pieces: Sequence[_Piece], *, begin: int, features: FeaturesByKey
    ) -> torch.Tensor:
        """Feed pieces of runs end to end: the hidden state (D,) after each."""
        cut = [(runs[p.run], slice(p.start, p.stop)) for p in pieces]
        sizes = np.array([p.stop - p.start for p in pieces])
        first = np.cumsum([0, *sizes])
        embedded = self._model.get_input_embeddings()(
            self.there(np.concatenate([run.ids[at] for run, at in cut]))
        )  # (T, D)
        at_pads, behind = [], []
        for (run, at), offset in zip(cut, first.tolist(), strict=False):
            is_here = (run.pads >= at.start) & (run.pads < at.stop)
            if is_here.any():
                shown = torch.cat([features[i.key] for i in run.images])
                shown = shown if is_here.all() else shown[self.there(is_here)]
                place = self.there(run.pads[is_here] - at.start + offset)
                seen, *levels = shown.to(embedded.dtype).split(embedded.shape[1], dim=1)
                embedded[place] = seen
                if levels:
                    at_pads.append(place)
                    behind.append(levels)
        raised = None
        if behind:
            raised = Raised(torch.cat(at_pads), tuple(map(torch.cat, zip(*behind, strict=True))))
        positions = np.concatenate([run.positions[:, at] for run, at in cut], axis=1)  # (3, T)
        cursor, row = self._rows.cursor, np.array([begin + p.run for p in pieces])
        start = np.array([cursor - len(run.ids) for run, _ in cut]) + [p.start for p in pieces]
        inside = np.arange(first[-1]) - np.repeat(first[:-1], sizes)
        self._stats.prefill_passes += 1
        self._stats.prefill_tokens += int(first[-1])
        read = first[1:] - 1
        blocks, back = self._blocks(row, start, sizes, first[:-1])
        last_blocks, last_back = self._blocks(
            row, start + sizes - 1, np.ones_like(sizes), np.arange(len(sizes))
        )
        attention = _SlabAttention(
            self._rows.slab.data,
            rows=self.there(np.repeat(row, sizes)),
            columns=self.there(np.repeat(start, sizes) + inside),
            blocks=blocks,
            back=back,
            last_blocks=last_blocks,
            last_back=last_back,
        )
        states = self._states(embedded, positions, attention, read=read, raised=raised)
        return states[: len(pieces)]

    def _blocks(
        self, row: np.ndarray, start: np.ndarray, sizes: np.ndarray, first: np.ndarray
    ) -> tuple[list[_Block], torch.Tensor]:
        """Blocks of consecutive rows with `sizes` queries each that begin at column `start` and are
        the tokens from `first` on; and where each query stands in them, laid end to end.
        """
        cuts = [0]
        for at in range(1, len(sizes)):
            is_next = row[at] == row[at - 1] + 1
            is_short = at - cuts[-1] >= BLOCK_ROWS and sizes[at] < LEAST_FILLED * sizes[cuts[-1]]
            if is_short or not is_next:
                cuts.append(at)
        blocks, back, offset = [], [], 0
        for left, right in pairwise([*cuts, len(sizes)]):
            part = slice(left, right)
            most, stops = int(sizes[part].max()), start[part] + sizes[part]
            order = np.arange(most)
            is_query = order < sizes[part, None]  # (rows, q)
            query = np.where(is_query, first[part, None] + order, 0)
            lowest, column = self._columns(row[part], int(stops.max()))
            seen = column <= (start[part, None] + order)[:, :, None]
            seen &= column >= self._rows.start[row[part], None, None]
            blocks.append(
                _Block(
                    slice(int(row[left]), int(row[right - 1]) + 1),
                    slice(lowest, int(stops.max())),
                    self.there(query),
                    self.there(_mask(seen | ~is_query[:, :, None])),
                )
            )
            back.append(offset + np.flatnonzero(is_query))
            offset += is_query.size
        return blocks, self.there(np.concatenate(back))

    def decode(self, count: int) -> torch.Tensor:
        """Feed the latest token of each of the first `count` rows and move on: logits (rows, V)."""
        rows = self._rows
        with self._stats.phase("decode"):
            latest = self.there(rows.latest[:count].copy())
            embedded = self._model.get_input_embeddings()(latest)  # (rows, D)
            positions = np.broadcast_to(rows.position[:count], (3, count))
            lowest, column = self._columns(np.arange(count), rows.cursor + 1)
            hidden = _mask(column >= rows.start[:count, None, None])
            block = _Block(
                slice(0, count), slice(lowest, rows.cursor + 1), None, self.there(hidden)
            )
            attention = _SlabAttention(
                rows.slab.data,
                rows=slice(0, count),
                columns=rows.cursor,
                blocks=[block],
                back=None,
                last_blocks=[block],
                last_back=None,
            )
            logits = self._logits(self._states(embedded, positions, attention, read=None)[:count])
        rows.cursor += 1
        rows.position[:count] += 1
        return logits

    def _columns(self, row: np.ndarray, stop: int) -> tuple[int, np.ndarray]:
        """The first column that is read up to `stop`, and all of them. Where few would do, more are
        read, and hidden: that is cheaper than to fill them up.
        """
        lowest = int(self._rows.start[row].min())
        lowest = max(0, min(lowest, stop - LEAST_COLUMNS)) if self._is_steady else lowest
        return lowest, np.arange(lowest, stop)

    def _states(
        self,
        embedded: torch.Tensor,
        positions: np.ndarray,
        attention: _SlabAttention,
        *,
        read: np.ndarray | None,
        raised: Raised | None = None,
    ) -> torch.Tensor:
        """Last hidden states of new tokens (T, D), or of those that are read; followed by what
        fills up the products.
        """
        if self._is_steady and (spare := LEAST_ROWS - len(embedded)) > 0:
            embedded, positions = filled(embedded), np.pad(positions, ((0, 0), (0, spare)))
        if self._is_steady and read is not None and (spare := LEAST_ROWS - len(read)) > 0:
            read = np.pad(read, (0, spare))
        return flat_states(
            self._model.model.language_model,
            embedded,
            self.there(np.ascontiguousarray(positions)),
            attention,
            read=None if read is None else self.there(read),
            raised=raised,
        )

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (rows, V) of hidden states (rows, D)."""
        rows = filled(hidden) if self._is_steady else hidden
        return self._model.lm_head(rows)[: len(hidden)]


def _mask(seen: np.ndarray) -> np.ndarray:
    """(rows, 1, q, columns) float32 of (rows, q, columns) bool."""
    return np.where(seen, np.float32(0), np.float32(-np.inf))[:, None]


def _pieces(lengths: Sequence[int]) -> list[list[_Piece]]:
    """Runs cut into passes of at most `PREFILL_TOKENS`, the pieces of one run in their order."""
    passes: list[list[_Piece]] = [[]]
    room = PREFILL_TOKENS
    for run, length in enumerate(lengths):
        at = 0
        while at < length:
            if not room:
                passes.append([])
                room = PREFILL_TOKENS
            stop = min(length, at + room)
            passes[-1].append(_Piece(run, at, stop))
            room -= stop - at
            at = stop
    return passes
