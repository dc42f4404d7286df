"""How well what tools see agrees with what is there, on figures whose contents are known.

Invariant: every sort of thing is judged on the same figures; time is of the processor, for a call.

Left out on purpose: pictures whose contents nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from saccade.benches.judges import JUDGES, Eyes, Seen
from saccade.config import BackendChoice, BackendKind
from saccade.errors import RecipeError
from saccade.progress import progress
from saccade.worlds.chart_figures import chart_figure
from saccade.worlds.figures import VARIETIES, FigureItem, Variety, figure
from saccade.worlds.photographs import COUNT, photograph

__all__ = ["SOURCES", "Found", "bench_found"]


def _drawn(variety: Variety) -> Callable[[int], FigureItem]:
    return lambda index: figure(index, variety=variety)


SOURCES: Mapping[str, Callable[[int], FigureItem]] = {
    **{variety: _drawn(variety) for variety in VARIETIES},
    "charts": chart_figure,
    "photographs": photograph,
}
"""Figures by variety, those of matplotlib first."""
LIMITS = {"photographs": COUNT}
"""There are no more of them."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found of one sort of thing in the figures of one variety."""

    what: str
    variety: str
    figures: int
    there: int
    """Things that are there."""
    found: float | None
    """Share of them that was found (recall), as its judge says. None where none is there."""
    quality: float | None
    """Mean over them: IoU, share of right characters; see the judge."""
    wrong: int
    """Found where none is."""
    precision: float | None
    """None where nothing was found."""
    f1: float | None
    ms: float | None
    """Mean of the processor for the first call on a picture. What an earlier sort of thing made a
    back end see is remembered: `print` and `bars` bear the cost for those after them."""


def bench_found(
    *,
    count: int,
    varieties: Sequence[str] = tuple(SOURCES),
    what: Sequence[str] = ("frames",),
    backends: Mapping[BackendKind, BackendChoice] | None = None,
    show: bool = True,
) -> list[Found]:
    """A row for each sort of thing and each variety, on `count` figures of it,
    as the chosen back ends see them.

    Raises RecipeError for a sort that is none of JUDGES, a variety that is none of SOURCES.
    """
    if unknown := [w for w in what if w not in JUDGES]:
        raise RecipeError(f"Nobody looks for {unknown[0]!r}, only for {', '.join(JUDGES)}.")
    if unknown := [v for v in varieties if v not in SOURCES]:
        raise RecipeError(f"No figures are {unknown[0]!r}, only {', '.join(SOURCES)}.")
    eyes = Eyes(backends)
    judges = {name: JUDGES[name](eyes) for name in what}
    seen: dict[tuple[str, str], list[Seen]] = {(n, v): [] for n in what for v in varieties}
    total = sum(min(count, LIMITS.get(v, count)) for v in varieties)
    with progress("figures", total=total) as bar:
        for variety in varieties:
            for index in range(min(count, LIMITS.get(variety, count))):
                item = SOURCES[variety](index)
                for name, judge in judges.items():
                    seen[name, variety].append(judge(item))
                bar.advance()
    rows = [_row(name, variety, found) for (name, variety), found in seen.items()]
    if show:
        Console(width=120).print(_table(rows))
    return rows


def _row(what: str, variety: str, seen: Sequence[Seen]) -> Found:
    found = [f for s in seen for f in s.found]
    quality = [q for s in seen for q in s.quality]
    hits, wrong = sum(map(bool, found)), int(sum(s.wrong for s in seen))
    seconds = [s.seconds for s in seen if s.seconds is not None]
    return Found(
        what=what,
        variety=variety,
        figures=len(seen),
        there=len(found),
        found=float(np.mean(found)) if found else None,
        quality=float(np.mean(quality)) if quality else None,
        wrong=wrong,
        precision=hits / (hits + wrong) if hits + wrong else None,
        f1=2 * hits / (hits + wrong + len(found)) if found else None,
        ms=1000 * float(np.mean(seconds)) if seconds else None,
    )


def _table(rows: Sequence[Found]) -> Table:
    table = Table(*(name for name in asdict(rows[0])))
    for row in rows:
        cells = asdict(row)
        for name in ("found", "quality", "precision", "f1"):
            cells[name] = "–" if cells[name] is None else f"{cells[name]:.3f}"
        cells["ms"] = "–" if row.ms is None else f"{row.ms:.0f}"
        table.add_row(*(str(c) for c in cells.values()))
    return table
