"""What an engine counted and how long it took.

Invariant: every count is of what was computed, never of what was asked for.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = ["DecodeStep", "EngineStats"]


@dataclass(slots=True)
class EngineStats:
    """What was computed since the last `reset`."""

    prefill_tokens: int = 0
    """Every position of every prefill pass; there is no padding to leave out."""
    prefill_passes: int = 0
    images_encoded: int = 0
    decode_steps: int = 0
    decode_rows: int = 0
    """Summed over decode steps."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By phase: patches, encode, prefill, decode, sample, move."""

    @property
    def rows_per_step(self) -> float:
        return self.decode_rows / max(1, self.decode_steps)

    def reset(self) -> None:
        self.prefill_tokens = self.prefill_passes = self.images_encoded = 0
        self.decode_steps = self.decode_rows = 0
        self.seconds = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begun


class DecodeStep(NamedTuple):
    """One token for every running row."""

    rows: int
    columns: int
    """Keys that each row attends to, those that its mask hides included."""
    seconds: float
