"""How well what tools see agrees with what is there, on figures whose contents are known.

Invariant: every sort of thing is judged on the same figures; time is of the processor, for a call.

Left out on purpose: pictures whose contents nobody knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from saccade.benches.judges import JUDGES, Eyes, Seen
from saccade.config import BackendChoice, BackendKind
from saccade.errors import RecipeError
from saccade.progress import progress
from saccade.run_folder import RunFolder
from saccade.worlds.chart_figures import chart_figure
from saccade.worlds.figures import VARIETIES, FigureItem, Variety, figure
from saccade.worlds.lookalikes import lookalike
from saccade.worlds.photographs import COUNT, photograph

__all__ = ["SOURCES", "Found", "bench_found"]


def _drawn(variety: Variety) -> Callable[[int], FigureItem]:
    return lambda index: figure(index, variety=variety)


SOURCES: Mapping[str, Callable[[int], FigureItem]] = {
    **{variety: _drawn(variety) for variety in VARIETIES},
    "charts": chart_figure,
    "photographs": photograph,
    "lookalikes": lookalike,
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
    """Mean over them: IoU, one less the character error rate; see the judge."""
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
    run: Path | None = None,
    show: bool = True,
) -> list[Found]:
    """A row for each sort of thing and each variety, on `count` figures of it,
    as the chosen back ends see them. With a run folder what was judged is kept in its
    `figures.jsonl`, and a bench that was killed goes on there.

    Raises RecipeError for a sort that is none of JUDGES, a variety that is none of SOURCES, a
    folder that was begun with other sorts or back ends.
    """
    if unknown := [w for w in what if w not in JUDGES]:
        raise RecipeError(f"Nobody looks for {unknown[0]!r}, only for {', '.join(JUDGES)}.")
    if unknown := [v for v in varieties if v not in SOURCES]:
        raise RecipeError(f"No figures are {unknown[0]!r}, only {', '.join(SOURCES)}.")
    eyes = Eyes(backends)
    judges = {name: JUDGES[name](eyes) for name in what}
    asked = [(v, n) for v in varieties for n in range(min(count, LIMITS.get(v, count)))]
    with ExitStack() as stack:
        folder = None if run is None else stack.enter_context(RunFolder(run))
        known = {} if folder is None else _begun(folder, what, backends or {})
        done = sum(one in known for one in asked)
        with progress("figures", total=len(asked), done=done) as bar:
            for variety, index in asked:
                if (variety, index) in known:
                    continue
                item = SOURCES[variety](index)
                known[variety, index] = {name: judge(item) for name, judge in judges.items()}
                if folder is not None:
                    seen = {name: _plain(one) for name, one in known[variety, index].items()}
                    folder.append("figures", {"variety": variety, "index": index, "seen": seen})
                bar.advance()
    rows = [
        _row(name, variety, [known[v, n][name] for v, n in asked if v == variety])
        for name in what
        for variety in varieties
    ]
    if show:
        Console(width=120).print(_table(rows))
    return rows


def _begun(
    folder: RunFolder, what: Sequence[str], backends: Mapping[BackendKind, BackendChoice]
) -> dict[tuple[str, int], dict[str, Seen]]:
    """What was judged before in a folder, which from now on is for these sorts and back ends."""
    chosen = {kind: choice.model_dump(mode="json") for kind, choice in backends.items()}
    asked = {"what": sorted(what), "backends": chosen}
    before = folder.read_json("bench")
    if before is not None and before != asked:
        raise RecipeError(
            f"Folder {str(folder.path)!r} was begun with {before}, not with {asked}: choose "
            "another one with --run."
        )
    folder.write_json("bench", asked)
    return {
        (row["variety"], row["index"]): {name: Seen(**one) for name, one in row["seen"].items()}
        for row in folder.read("figures")
    }


def _plain(seen: Seen) -> dict[str, Any]:
    """Without types of numpy."""
    return {
        "found": [bool(f) for f in seen.found],
        "quality": [float(q) for q in seen.quality],
        "wrong": int(seen.wrong),
        "seconds": None if seen.seconds is None else float(seen.seconds),
    }


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
    note = (
        "–: nothing of it is there, or nothing was asked. Charts have no legends, and the lines of "
        "their plots are gray, with no place told. no-...: pictures in which nothing of it is, and "
        "the share in which none is claimed."
    )
    table = Table(*(name for name in asdict(rows[0])), caption=note)
    for row in rows:
        cells = asdict(row)
        for name in ("found", "quality", "precision", "f1"):
            cells[name] = "–" if cells[name] is None else f"{cells[name]:.3f}"
        cells["ms"] = "–" if row.ms is None else f"{row.ms:.0f}"
        table.add_row(*(str(c) for c in cells.values()))
    return table
