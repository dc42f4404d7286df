"""How well what tools see agrees with what is there, on figures whose contents are known.

Invariant: a thing that is there and was not found counts as 0, and a thing that was found and is
not there is counted; time is of the processor, for one picture.

Left out on purpose: pictures whose contents nobody knows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from saccade.backends import Printed, Reader, made
from saccade.config import BackendChoice
from saccade.errors import RecipeError
from saccade.geometry import Box, iou
from saccade.progress import progress
from saccade.rewards.published_rules import edit_distance
from saccade.vision.frames import find_frames
from saccade.worlds.figures import VARIETIES, FigureItem, PrintedText, Variety, figure

__all__ = ["LOOKED_FOR", "Found", "bench_found"]

GOOD = 0.95
"""IoU from which a frame counts as found."""
LEAST_PX = 10.0
"""Size of print that must be read."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found of one sort of thing in the figures of one variety."""

    what: str
    variety: str
    figures: int
    there: int
    """Things that are there."""
    found: float | None
    """Share of them that was found: frames with an IoU of GOOD or more, words read as they are
    printed. None where none is there."""
    quality: float | None
    """Mean over them: of frames their IoU, of print one less the share of wrong characters."""
    wrong: int
    """Found where none is: frames with an IoU below one half with all that are there, lines that
    touch no print."""
    ms: float
    """Mean of a picture."""


class _Seen(NamedTuple):
    """What was seen in one figure: for each thing that is there, whether and how well."""

    found: list[bool]
    quality: list[float]
    wrong: int


def bench_found(
    *,
    count: int,
    varieties: Sequence[Variety] = VARIETIES,
    what: Sequence[str] = ("frames",),
    show: bool = True,
) -> list[Found]:
    """A row for each sort of thing and each variety, on `count` figures of it.

    Raises RecipeError for a sort that is none of LOOKED_FOR.
    """
    if unknown := [w for w in what if w not in LOOKED_FOR]:
        raise RecipeError(f"Nobody looks for {unknown[0]!r}, only for {', '.join(LOOKED_FOR)}.")
    rows = []
    with progress("figures", total=count * len(varieties) * len(what)) as bar:
        for name in what:
            look = LOOKED_FOR[name]()
            for variety in varieties:
                seen, seconds = [], 0.0
                for index in range(count):
                    item = figure(index, variety=variety)
                    began = time.process_time()
                    judge = look(item)
                    seconds += time.process_time() - began
                    seen.append(judge(item))
                    bar.advance()
                rows.append(_row(name, variety, seen, 1000 * seconds / count))
    if show:
        Console().print(_table(rows))
    return rows


Judge = Callable[[FigureItem], _Seen]
"""Compares what was found, which it holds, with what is there."""


def _frames() -> Callable[[FigureItem], Judge]:
    def look(item: FigureItem) -> Judge:
        frames = find_frames(item.image)
        return lambda item: _judged_frames(frames, item)

    return look


def _judged_frames(frames: Sequence[Box], item: FigureItem) -> _Seen:
    there = [p.frame for p in item.plots if p.kind != "pie"]  # pies have none
    best = [max((iou(t, f) for f in frames), default=0.0) for t in there]
    wrong = sum(max((iou(t, f) for t in there), default=0.0) < 0.5 for f in frames)
    return _Seen([b >= GOOD for b in best], best, wrong)


def _print() -> Callable[[FigureItem], Judge]:
    reader = made("reader", BackendChoice())
    assert isinstance(reader, Reader)

    def look(item: FigureItem) -> Judge:
        lines = reader.read(item.image)
        return lambda item: _judged_print(lines, item)

    return look


def _judged_print(lines: Sequence[Printed], item: FigureItem) -> _Seen:
    found: list[bool] = []
    quality: list[float] = []
    for text in item.texts:
        if text.size_px < LEAST_PX:
            continue
        here = [_plain(line.text) for line in lines if line.box.intersection(text.box)]
        for word, share in _words(text, here):
            found.append(word)
            quality.append(share)
    wrong = sum(not any(line.box.intersection(t.box) for t in item.texts) for line in lines)
    return _Seen(found, quality, wrong)


def _words(text: PrintedText, lines: Sequence[str]) -> Iterator[tuple[bool, float]]:
    """For each word of the print, whether it is read and the share of its characters that are."""
    read = [word for line in lines for word in line.split()]
    for word in _plain(text.text).split():
        nearest = min((edit_distance(word, r) for r in read), default=len(word))
        yield nearest == 0, max(0.0, 1 - nearest / len(word))


def _plain(text: str) -> str:
    return text.replace("−", "-")  # matplotlib prints another minus than people type


LOOKED_FOR: Mapping[str, Callable[[], Callable[[FigureItem], Judge]]] = {
    "frames": _frames,
    "print": _print,
}


def _row(what: str, variety: str, seen: Sequence[_Seen], ms: float) -> Found:
    found = [f for s in seen for f in s.found]
    quality = [q for s in seen for q in s.quality]
    return Found(
        what=what,
        variety=variety,
        figures=len(seen),
        there=len(found),
        found=float(np.mean(found)) if found else None,
        quality=float(np.mean(quality)) if quality else None,
        wrong=sum(s.wrong for s in seen),
        ms=ms,
    )


def _table(rows: Sequence[Found]) -> Table:
    table = Table(*(name for name in asdict(rows[0])))
    for row in rows:
        cells = asdict(row)
        for name in ("found", "quality"):
            cells[name] = "–" if cells[name] is None else f"{cells[name]:.3f}"
        cells["ms"] = f"{row.ms:.0f}"
        table.add_row(*(str(c) for c in cells.values()))
    return table
