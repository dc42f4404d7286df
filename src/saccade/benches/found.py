"""How well what tools see agrees with what is there, on figures whose contents are known.

Invariant: a thing that is there and was not found counts as 0, and a thing that was found and is
not there is counted; time is of the processor, for one call.

Left out on purpose: pictures whose contents nobody knows.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from saccade.geometry import iou
from saccade.progress import progress
from saccade.vision.frames import find_frames
from saccade.worlds.figures import VARIETIES, Variety, figure

__all__ = ["Found", "bench_found"]

GOOD = 0.95
"""IoU from which a frame counts as found."""


@dataclass(frozen=True, slots=True)
class Found:
    """Which frames were found in the figures of one variety."""

    variety: str
    figures: int
    there: int
    """Things that are there."""
    mean_iou: float | None
    """Mean over them; None where none is there."""
    share_found: float | None
    """Of them, those with an IoU of GOOD or more."""
    wrong: int
    """Found, with an IoU below one half with all that is there."""
    ms: float
    """Mean of a call."""


def bench_found(
    *, count: int, varieties: Sequence[Variety] = VARIETIES, show: bool = True
) -> list[Found]:
    """Frames of plots in `count` figures of each variety; pies have none."""
    rows = []
    with progress("figures", total=count * len(varieties)) as bar:
        for variety in varieties:
            overlaps: list[float] = []
            wrong, seconds = 0, 0.0
            for index in range(count):
                made = figure(index, variety=variety)
                began = time.process_time()
                frames = find_frames(made.image)
                seconds += time.process_time() - began
                there = [p.frame for p in made.plots if p.kind != "pie"]
                overlaps += [max((iou(t, f) for f in frames), default=0.0) for t in there]
                wrong += sum(max((iou(t, f) for t in there), default=0.0) < 0.5 for f in frames)
                bar.advance()
            rows.append(_row(variety, count, overlaps, wrong, 1000 * seconds / count))
    if show:
        Console().print(_table(rows))
    return rows


def _row(variety: str, count: int, overlaps: list[float], wrong: int, ms: float) -> Found:
    mean = float(np.mean(overlaps)) if overlaps else None
    share = float(np.mean(np.array(overlaps) >= GOOD)) if overlaps else None
    return Found(variety, count, len(overlaps), mean, share, wrong, ms)


def _table(rows: Sequence[Found]) -> Table:
    table = Table("variety", "figures", "there", "mean IoU", "found", "wrong", "ms")
    for row in rows:
        cells = asdict(row)
        for name in ("mean_iou", "share_found"):
            cells[name] = "–" if cells[name] is None else f"{cells[name]:.3f}"
        cells["ms"] = f"{row.ms:.0f}"
        table.add_row(*(str(c) for c in cells.values()))
    return table
