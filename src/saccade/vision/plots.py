"""The plots of a figure: where each lies, what belongs to it, and what it is titled.

How: a plot has a core: the frame of its axes, the disc of a pie, or, where there is neither, what
its ticks span or what stands under its title. What is printed around a core belongs to it up to the
emptiest strip between it and the next.

Invariant: a core was seen; figures in which nothing tells plots apart have none.

Left out on purpose: collages of photographs, which a box reaches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saccade.geometry import Box, Point, box_around, rows_of
from saccade.vision.axes import Scale, Side, find_scales
from saccade.vision.frames import find_frames
from saccade.vision.part import holds
from saccade.vision.print_roles import is_number
from saccade.vision.scene import seen
from saccade.vision.wedges import find_wedges

__all__ = ["Line", "Plot", "find_plots", "scales_at"]

Line = tuple[str, Box]
"""Print and where it stands."""

AROUND_PX = 1
"""Left around what belongs to a plot."""
NEXT_LINE = 0.5
"""Of their height: lines of one title are nearer to each other, headings of figures are not."""
NARROW = 0.6
"""Of the widest strip between two plots: strips as wide as that are as good, the first is taken."""
BESIDE_DISC = 0.25
"""Radii that the names of wedges stand away from a disc, at most."""
CENTRED = 0.15
"""Of its width: titles stand that near to the middle of their plot."""
SAME_HEIGHT = 0.35
"""Titles of one figure differ by less in height."""
IN_COLUMN = 0.2
"""Of the way between columns: titles stand that near to the middle of theirs."""
SMALLEST = 0.12
"""Of a figure's height: plots under titles are higher."""


SIDES: tuple[Side, ...] = ("x", "y")


class Plot(NamedTuple):
    """One plot."""

    core: Box
    """Its frame, or what stands for it."""
    region: Box
    """With all that is printed around it."""
    title: str | None
    is_inset: bool
    """Whether it lies inside another."""


def find_plots(picture: Image.Image, lines: Sequence[Line]) -> list[Plot]:
    """By rows from the top, then from the left; insets behind all others. `lines` is the print in
    the picture.
    """
    drawn, discs = _drawn(picture)
    frames = find_frames(picture)
    pies = [d for d in discs if not any(holds(f, d) for f in frames)]
    cores = [*frames, *pies]
    bodies = [
        b for b in _beside_scales(picture, lines) if not any(b.intersection(c) for c in cores)
    ]
    cores += bodies
    titled = _under_titles(lines, drawn) if not cores else {}
    cores += titled
    insets = [c for c in cores if any(c is not o and holds(o, c) for o in cores)]
    outer = [c for row in rows_of([c for c in cores if c not in insets]) for c in row]
    spans = {
        c: _with_names(c, lines) if c in pies else box_around([c, titled.get(c, c)]) for c in outer
    }
    found = []
    for core in outer:
        others = [s for o, s in spans.items() if o is not core]
        region = _region(spans[core], others, drawn)
        # ticks end before the plot does
        body = box_around([core, *_rest(core, region)]) if core in bodies else core
        title = _title(body, region, lines, is_pie=core in pies)
        if title is not None and others and core not in pies:
            region = _region(spans[core], others, drawn, ceiling=_top(title, lines) - AROUND_PX)
        found.append(Plot(body, region, None if title is None else title[0], is_inset=False))
    for core in insets:
        region = _inset_region(core, drawn)
        title = _title(core, region, lines, is_pie=core in pies)
        found.append(Plot(core, region, None if title is None else title[0], is_inset=True))
    return found


def scales_at(scales: Sequence[Scale], plots: Sequence[Plot], point: Point) -> list[Scale]:
    """Of the axes in a picture those on which a place is read: one from side to side, and of those
    from top to bottom the nearest on its left and the nearest on its right.

    They are those of the plot that the place lies in, as far as plots are told apart.
    """
    regions = [p.region for p in plots if _is_in(p.region, point)]
    if regions:
        region = min(regions, key=lambda r: r.area)
        core = min((p for p in plots if p.region == region), key=lambda p: p.core.area).core
        scales = [s for s in scales if _lies_in(region, s) and not _is_content(s, core)]
    found: list[Scale] = []
    for side in SIDES:
        for is_behind in (True, False):  # below and left of it, or above and right
            fitting = [
                (abs(_beside(s, point)), n)
                for n, s in enumerate(scales)
                if s.side == side and _reaches(s, point) and (_beside(s, point) >= 0) == is_behind
            ]
            if fitting and (side == "y" or not any(s.side == "x" for s in found)):
                found.append(scales[min(fitting)[1]])
    return found


def _drawn(picture: Image.Image) -> tuple[NDArray[np.bool_], list[Box]]:
    """Where something is drawn, and the discs of pies."""
    scene = seen(np.asarray(picture.convert("RGB")))
    if scene is None:
        return np.ones((picture.height, picture.width), dtype=bool), []
    return scene.drawn, find_wedges(scene, scene.areas)[1]


# --- cores ----------------------------------------------------------------------------------------


def _beside_scales(picture: Image.Image, lines: Sequence[Line]) -> Iterator[Box]:
    """Plots without frames: from a column of ticks to the end of the row at its foot."""
    columns = [s for s in find_scales(picture, lines) if s.side == "y"]
    for scale in columns:
        box = scale.box
        low, high = scale.span
        pitch = (high - low) / (len(scale.ticks) - 1)
        size = box.height / len(scale.ticks) if pitch < 1 else box.height - (high - low)
        ends = [
            s.box.x0
            for s in columns
            if s.box.x0 > box.x1 and min(s.box.y1, box.y1) > max(s.box.y0, box.y0)
        ]
        row = [
            b
            for _, b in lines
            if box.x1 < b.x1 and box.x1 - size < b.center.x < min(ends, default=math.inf)
            if -0.7 * size < b.center.y - high < pitch + 1.5 * size
        ]
        levels = [[b for b in row if abs(b.center.y - a.center.y) < 0.5 * size] for a in row]
        level = max(levels, key=len, default=[])  # what else stands there is print of others
        if len(level) >= 2:
            right, foot = max(b.x1 for b in level), max(high, min(b.y0 for b in level))
            yield Box(box.x1, low, right, foot)


def _rest(core: Box, region: Box) -> list[Box]:
    """From a core to the right end of what is drawn beside it."""
    end = region.x1 - AROUND_PX
    return [Box(core.x1, core.y0, end, core.y1)] if end > core.x1 else []


def _with_names(disc: Box, lines: Sequence[Line]) -> Box:
    """A disc with the names of its wedges."""
    radius, middle = disc.width / 2, disc.center
    spans = [disc]
    for _, box in lines:
        x = min(max(middle.x, box.x0), box.x1)
        y = min(max(middle.y, box.y0), box.y1)
        # titles stand as near as names do, but right above
        is_title = box.y1 < disc.y0 and abs(box.center.x - middle.x) < CENTRED * disc.width
        if not is_title and math.hypot(x - middle.x, y - middle.y) < (1 + BESIDE_DISC) * radius:
            spans.append(box)
    return box_around(spans)


def _under_titles(lines: Sequence[Line], drawn: NDArray[np.bool_]) -> dict[Box, Box]:
    """What stands under words of one size that form rows and columns, with those words."""
    words = [box for text, box in lines if not is_number(text) and box.width > box.height]
    best: list[Box] = []
    for first in words:
        like = [b for b in words if _is_as_high(b, first)]
        if len(like) > len(best):
            best = like
    rows = rows_of(best)
    middles = [b.center.x for b in max(rows, key=len, default=[])]
    # headings stand alone, between the columns; of a row of titles some may not have been read
    rows = [row for row in rows if all(_column_of(b, middles) is not None for b in row)]
    found: dict[Box, Box] = {}
    for number, row in enumerate(rows):
        below = rows[number + 1] if number + 1 < len(rows) else None
        bottom = drawn.shape[0] if below is None else min(b.y0 for b in below)
        top = max(b.y1 for b in row)
        cores = list(_columns_between(middles, top, bottom, drawn))
        if min(c.height for c in cores) >= SMALLEST * drawn.shape[0]:  # else a heading
            titles = {_column_of(b, middles): b for b in row}
            found |= {core: titles.get(n, core) for n, core in enumerate(cores)}
    return found if len(found) > 1 else {}


def _column_of(title: Box, middles: Sequence[float]) -> int | None:
    """Over which column it stands; with one column, over that."""
    apart = min((b - a for a, b in pairwise(middles)), default=math.inf)
    near = [n for n, x in enumerate(middles) if abs(title.center.x - x) < IN_COLUMN * apart]
    return near[0] if near else None


def _is_as_high(a: Box, b: Box) -> bool:
    return abs(a.height - b.height) < SAME_HEIGHT * max(a.height, b.height)


def _columns_between(
    middles: Sequence[float], top: float, bottom: float, drawn: NDArray[np.bool_]
) -> Iterator[Box]:
    """What is drawn in each column of a row, up to halfway to those beside it."""
    between = [(a + b) / 2 for a, b in pairwise(middles)]
    for left, right in pairwise([0.0, *between, float(drawn.shape[1])]):
        ink = _ink(drawn[round(top) : round(bottom), round(left) : round(right)])
        yield (ink or Box(0, 0, 1, 1)).moved(round(left), round(top))


def _ink(drawn: NDArray[np.bool_]) -> Box | None:
    """The smallest box around all that is drawn."""
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    if not len(rows):
        return None
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


# --- what belongs to a plot -----------------------------------------------------------------------


def _region(
    core: Box, others: Sequence[Box], drawn: NDArray[np.bool_], *, ceiling: float = 0.0
) -> Box:
    """Up to the strips that part a plot from the others, or the border, or the ceiling; trimmed to
    its ink.
    """
    height, width = drawn.shape
    left, up, right, down = 0.0, ceiling, float(width), float(height)
    for other in others:
        beside = min(other.y1, core.y1) > max(other.y0, core.y0)
        level = min(other.x1, core.x1) > max(other.x0, core.x0)
        if beside and other.x1 <= core.x0:
            left = max(left, _cut(other, core, drawn, across=True))
        elif beside and other.x0 >= core.x1:
            right = min(right, _cut(core, other, drawn, across=True))
        elif level and other.y1 <= core.y0:
            up = max(up, _cut(other, core, drawn, across=False))
        elif level and other.y0 >= core.y1:
            down = min(down, _cut(core, other, drawn, across=False))
    whole = Box(min(left, core.x0), min(up, core.y0), max(right, core.x1), max(down, core.y1))
    x0, y0, x1, y1 = (round(v) for v in whole.as_tuple())
    ink = _ink(drawn[y0:y1, x0:x1])
    if ink is None:
        return whole
    return box_around([ink.moved(x0, y0).expand(AROUND_PX).intersection(whole) or whole, core])


def _cut(first: Box, second: Box, drawn: NDArray[np.bool_], *, across: bool) -> float:
    """Where to part two plots: across, the one on the left from the one on its right."""
    if across:
        low, high = first.x1, second.x0
        rows = slice(round(min(first.y0, second.y0)), round(max(first.y1, second.y1)))
        inked = np.any(drawn[rows, round(low) : round(high)], axis=0)
    else:
        low, high = first.y1, second.y0
        columns = slice(round(min(first.x0, second.x0)), round(max(first.x1, second.x1)))
        inked = np.any(drawn[round(low) : round(high), columns], axis=1)
    gaps = _gaps(inked)
    if not gaps:
        return (low + high) / 2
    if not across and len(gaps) > 2:
        gaps = gaps[1:-1]  # what stands right under one plot, or right above the other, is its own
    widest = max(stop - start for start, stop in gaps)
    start, stop = next(g for g in gaps if g[1] - g[0] >= NARROW * widest)
    return round(low) + (start + stop) / 2


def _gaps(inked: Any) -> list[tuple[int, int]]:
    """Runs of empty strips, but those of a pixel or two between letters."""
    edges = np.flatnonzero(np.diff(np.concatenate([[True], inked, [True]]).astype(np.int8)))
    gaps = list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    return [g for g in gaps if g[1] - g[0] > 2] or gaps


def _inset_region(core: Box, drawn: NDArray[np.bool_]) -> Box:
    """An inset with room for its ticks."""
    room = core.expand(0.2 * min(core.width, core.height))
    return room.clip(drawn.shape[1], drawn.shape[0]) or core


def _title(core: Box, region: Box, lines: Sequence[Line], *, is_pie: bool) -> Line | None:
    """The print in the middle above a core; of a pie the highest, names may stand there too."""
    above = [
        (text, box)
        for text, box in lines
        if box.center.y < core.y0 + (0.05 * core.height if is_pie else 0)
        and box.center.y > region.y0 - 1
        and abs(box.center.x - core.center.x) < max(CENTRED * core.width, 1.5 * box.height)
        and (box.width > box.height or len(text.strip()) < 3)  # else it is turned
    ]
    if not above:
        return None
    if is_pie:
        return min(above, key=lambda line: line[1].y0)
    return max(above, key=lambda line: line[1].y1)


def _top(title: Line, lines: Sequence[Line]) -> float:
    """Where the lines of a title begin; what stands above it at a distance is a heading of all."""
    first = title[1]
    for _, box in sorted(lines, key=lambda line: -line[1].y1):
        near = -NEXT_LINE < (first.y0 - box.y1) / first.height < NEXT_LINE
        if box.center.y < first.y0 and near and box.x0 < first.center.x < box.x1:
            first = box
    return max(0.0, first.y0)


# --- axes -----------------------------------------------------------------------------------------


def _is_in(box: Box, point: Point) -> bool:
    return box.x0 <= point.x <= box.x1 and box.y0 <= point.y <= box.y1


def _lies_in(region: Box, scale: Scale) -> bool:
    """From its first tick to its last: what spans several plots is the axis of none."""
    box = scale.box
    common = region.intersection(box)
    if common is None or not _is_in(region, box.center):
        return False
    along = (common.width, box.width) if scale.side == "x" else (common.height, box.height)
    return along[0] >= 0.9 * along[1]


def _is_content(scale: Scale, core: Box) -> bool:
    """Whether its print stands well inside a plot, as the numbers in the cells of a table do."""
    box = scale.box
    size = 1.5 * (box.height if scale.side == "x" else box.height - scale.span[1] + scale.span[0])
    return (
        core.x0 + size < box.x0
        and box.x1 < core.x1 - size
        and (core.y0 + size < box.y0 and box.y1 < core.y1 - size)
    )


def _reaches(scale: Scale, point: Point) -> bool:
    """Whether a place lies between its ends, a tick's step more on each side."""
    low, high = scale.span
    more = (high - low) / (len(scale.ticks) - 1)
    return low - more <= (point.x if scale.side == "x" else point.y) <= high + more


def _beside(scale: Scale, point: Point) -> float:
    """How far a place lies above an axis from side to side, or on the right of another one."""
    middle = scale.box.center
    return middle.y - point.y if scale.side == "x" else point.x - middle.x
