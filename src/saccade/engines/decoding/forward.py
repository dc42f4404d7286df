"""Forward passes over the rows of a batch: new tokens in, logits out, keys and values into the
slab.

Invariant: no column is padding. Runs are fed as a staircase: the longest go ahead alone until the
next one begins, and all end at the cursor. Where rounding can be kept steady, no product has fewer
than `LEAST_ROWS` rows; what fills them up never reaches the slab.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from saccade.engines.decoding.rows import Rows
from saccade.engines.decoding.runs import Run
from saccade.engines.decoding.stats import EngineStats
from saccade.models.steady import LEAST_ROWS, filled, is_steady

__all__ = ["Forward"]

PREFILL_TOKENS = 8192
"""Rows times columns of one forward pass at most, so that masks and activations stay small."""


class FeaturesByKey(Protocol):
    def __getitem__(self, key: str) -> torch.Tensor: ...


class Forward:
    """A model that reads and writes the slab of some rows."""

    def __init__(self, model: nn.Module, rows: Rows, *, stats: EngineStats) -> None:
        self._model, self._rows, self._stats = model, rows, stats
        table = model.get_input_embeddings().weight
        self._device, self._dtype = table.device, table.dtype
        self._is_steady = is_steady(table)

    def there(self, array: np.ndarray) -> torch.Tensor:
        """The array, on the model's device."""
        return torch.from_numpy(array).to(self._device, non_blocking=True)

    def prefill(self, runs: Sequence[Run], *, begin: int, features: FeaturesByKey) -> torch.Tensor:
        """Feed runs, longest first, to the rows from `begin`. The last logits of each (rows, V)."""
        count, width = len(runs), len(runs[0].ids)
        ids = np.zeros((count, width), dtype=np.int64)
        positions = np.zeros((3, count, width), dtype=np.int64)
        offsets = [width - len(run.ids) for run in runs]
        for row, (run, offset) in enumerate(zip(runs, offsets, strict=True)):
            ids[row, offset:] = run.ids
            positions[:, row, offset:] = run.positions
        embedded = self._model.get_input_embeddings()(self.there(ids))  # (rows, width, D)
        for row, (run, offset) in enumerate(zip(runs, offsets, strict=True)):
            if run.images:
                found = torch.cat([features[i.key] for i in run.images])
                embedded[row, self.there(run.pads + offset)] = found.to(embedded.dtype)
        placed = self.there(positions)
        with self._stats.phase("prefill"):
            hidden = embedded[:, :0]
            for left, right in pairwise([*sorted(set(offsets)), width]):
                rows = sum(offset <= left for offset in offsets)
                stride = max(1, PREFILL_TOKENS // rows)
                for at in range(left, right, stride):
                    columns = slice(at, min(at + stride, right))
                    hidden = self._hidden(
                        embedded[:rows, columns],
                        placed[:, :rows, columns],
                        rows=slice(begin, begin + rows),
                        first_column=self._rows.cursor - width + at,
                    )
                    self._stats.prefill_passes += 1
                    self._stats.prefill_tokens += rows * (columns.stop - columns.start)
            return self._logits(hidden[:, -1])

    def decode(self, count: int) -> torch.Tensor:
        """Feed the latest token of each of the first `count` rows and move on: logits (rows, V)."""
        rows = self._rows
        with self._stats.phase("decode"):
            latest = self.there(rows.latest[:count].copy())[:, None]
            embedded = self._model.get_input_embeddings()(latest)  # (rows, 1, D)
            placed = self.there(rows.position[:count].copy())[None, :, None].expand(3, count, 1)
            hidden = self._hidden(embedded, placed, rows=slice(0, count), first_column=rows.cursor)
            logits = self._logits(hidden[:, 0])
        rows.cursor += 1
        rows.position[:count] += 1
        return logits

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits (rows, V) of hidden states (rows, D)."""
        rows = filled(hidden) if self._is_steady else hidden
        return self._model.lm_head(rows)[: len(hidden)]

    def _hidden(
        self, embedded: torch.Tensor, positions: torch.Tensor, *, rows: slice, first_column: int
    ) -> torch.Tensor:
        """Hidden states (rows, q, D) of new tokens (rows, q, D) that go to the columns from
        `first_column`.
        """
        count, width = embedded.shape[:2]
        starts = self._rows.start[rows]
        lowest = int(starts.min())
        column = np.arange(lowest, first_column + width)
        hidden = column < starts[:, None, None]  # (rows, 1, columns)
        if width > 1:
            hidden = hidden | (column > np.arange(first_column, first_column + width)[:, None])
        mask = np.where(hidden, np.float32(-np.inf), np.float32(0))[:, None]
        # (rows, 1, q, columns)
        if self._is_steady and (spare := -(-LEAST_ROWS // width) - count) > 0:
            embedded = F.pad(embedded, (0, 0, 0, 0, 0, spare))
            positions = F.pad(positions, (0, 0, 0, spare))
        slab = self._rows.slab
        slab.aim(rows, slice(first_column, first_column + width), read_from=lowest)
        found = self._model.model.language_model(
            inputs_embeds=embedded,
            position_ids=positions,
            attention_mask={"full_attention": self.there(mask).to(self._dtype)},
            past_key_values=slab,
            use_cache=True,
            **({"steady": True} if self._is_steady else {}),
        )
        return found.last_hidden_state[:count]
