"""The running turns: what the host knows of each, and their keys and values in one slab.

Invariant: rows 0 to n are in use, without holes; all of them end at the cursor, so that every row
writes its next token into the same column and attention reads a plain view; whoever leaves is
copied out, and the last row fills the hole.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from saccade.engines.decoding.draws import seed_keys
from saccade.engines.decoding.jobs import Job

__all__ = ["Rows", "Slab"]

SLACK = 256
"""Columns that a new slab leaves on either side of its cursor."""
ARRAYS = (
    "start", "position", "count", "limit", "keys", "temperature", "latest", "drawn_ids",
    "drawn_logprobs",
)  # fmt: skip


class Rows:
    """The rows of a batch. What the host knows of them are arrays: a decode step has no loop over
    rows.
    """

    def __init__(self, slab: Slab, *, most: int) -> None:
        self.slab, self._most = slab, most
        self.jobs: list[Job] = []
        """By row."""
        self.cursor = 0
        """The column that the next token of every row goes to."""
        self.start = np.zeros(8, dtype=np.int64)
        """First column that is its own."""
        self.position = np.zeros(8, dtype=np.int64)
        """M-RoPE position of its next token."""
        self.count = np.zeros(8, dtype=np.int64)
        """Tokens drawn in this turn."""
        self.limit = np.zeros(8, dtype=np.int64)
        self.keys = np.zeros((8, 2), dtype=np.uint64)
        self.temperature = np.zeros(8, dtype=np.float64)
        self.latest = np.zeros(8, dtype=np.int64)
        """Drawn and not yet fed."""
        self.drawn_ids = np.zeros((8, 64), dtype=np.int64)
        self.drawn_logprobs = np.zeros((8, 64), dtype=np.float32)

    def grow(self, rows: int, *, drawn: int) -> None:
        """Arrays for that many rows, and that many tokens in each."""
        for name in ARRAYS:
            old = getattr(self, name)
            wide = max(drawn, old.shape[1]) if name.startswith("drawn") else None
            shape = (max(rows, old.shape[0]), *((wide,) if wide else old.shape[1:]))
            if shape != old.shape:
                new = np.zeros(shape, dtype=old.dtype)
                new[tuple(slice(0, s) for s in old.shape)] = old
                setattr(self, name, new)

    def make_room(self, rows: int, *, before: int) -> None:
        """Room for that many rows, `before` columns before the cursor and one after it."""
        used = len(self.jobs)
        lowest = int(self.start[:used].min()) if used else self.cursor
        before = max(before, self.cursor - lowest)
        fits = self.cursor >= before and self.cursor < self.slab.columns
        if rows <= self.slab.rows and fits:
            return
        cursor = self.cursor if fits else before + SLACK
        height = self.slab.rows
        while height < rows:
            height = min(max(8, 2 * height), self._most) if height < self._most else rows
        source, target = slice(lowest, self.cursor), cursor - (self.cursor - lowest)
        self.slab.fit(height, cursor + SLACK, used_rows=used, source=source, target=target)
        self.start[:used] += cursor - self.cursor
        self.cursor = cursor
        self.grow(height, drawn=0)

    def enter(self, row: int, job: Job, base: torch.Tensor, length: int) -> None:
        """Give a row to a job of that length, which continues keys and values `base`."""
        start = self.cursor - length
        self.slab.data[:, :, row, :, start : start + base.shape[3]] = base
        self.start[row] = start
        self.position[row] = job.next_start
        self.count[row] = 0
        self.limit[row] = job.request.sampling.max_tokens
        self.keys[row] = seed_keys(job.request.seed)
        self.temperature[row] = job.request.sampling.temperature

    def leave(self, row: int) -> torch.Tensor:
        """Take a row out of the batch: its keys and values; the last row fills the hole."""
        cursor, data = self.cursor, self.slab.data
        kv = data[:, :, row, :, int(self.start[row]) : cursor].clone()
        last = len(self.jobs) - 1
        if row != last:
            begin = int(self.start[last])
            data[:, :, row, :, begin:cursor] = data[:, :, last, :, begin:cursor]
            for name in ARRAYS:
                array = getattr(self, name)
                array[row] = array[last]
            self.jobs[row] = self.jobs[last]
        self.jobs.pop()
        return kv


class Slab:
    """Keys and values of the running rows: (layers, 2, rows, heads, columns, head size)."""

    def __init__(self, config: Any, *, dtype: torch.dtype, device: torch.device) -> None:
        self._layers = int(config.num_hidden_layers)
        self._heads = int(config.num_key_value_heads)
        told = getattr(config, "head_dim", None)
        self._size = int(told or config.hidden_size // config.num_attention_heads)
        self._options = {"dtype": dtype, "device": device}
        self.data = self._blank(0, 0)

    def _blank(self, rows: int, columns: int) -> torch.Tensor:
        # Zeros, not empty: what is masked still gets multiplied by 0, and 0 * nan is nan.
        shape = (self._layers, 2, rows, self._heads, columns, self._size)
        return torch.zeros(shape, **self._options)  # type: ignore[arg-type]

    @property
    def rows(self) -> int:
        return self.data.shape[2]

    @property
    def columns(self) -> int:
        return self.data.shape[4]

    def fit(self, rows: int, columns: int, *, used_rows: int, source: slice, target: int) -> None:
        """Room for so many rows and columns, the used rows' columns `source` moved to begin at
        `target`. Nothing is given back: new memory costs more than what it holds.
        """
        old = self.data[:, :, :used_rows, :, source]
        if rows > self.rows or columns > self.columns:
            self.data = self._blank(max(rows, self.rows), max(columns, self.columns))
        elif used_rows and target != source.start:
            old = old.clone()  # both may overlap
        if used_rows:
            self.data[:, :, :used_rows, :, target : target + old.shape[4]] = old
