"""Bars: rectangles that stand on one line, or on a drawn one, and what is stacked on them.

Invariant: a rectangle alone, which stands on nothing, is no bar; nor are rectangles that their
company tells to be something else: cells of a grid, bands through a whole plot, boxes on whiskers,
buttons and cells of a table, which are all as long as each other and stand on no axis.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from saccade.geometry import Box
from saccade.vision.part import Part, holds, is_gray
from saccade.vision.scene import SMALL_PX, Area, Bits, Scene
from saccade.vision.shapes import LEAST_FILL, is_disc

__all__ = ["find_bars"]

MOST_BARS = 150
"""The largest; every one is compared with every other."""
HATCHED_FILL = 0.84
SAME_BASE_PX = 2.5
EVEN_SHARE = 0.01
"""Of their length: rectangles that differ by less are as long as each other."""
CLOSE = 0.1
"""Of their thickness: cells are nearer to each other than bars."""
FULL = 0.97
"""Of the hull of cells that no ground parts."""
WHISKER_PX = 10
"""Marks of ticks are shorter."""
BESIDE_PX = 6
"""From a line, where it is seen to be none of an area."""
CROSSED_PX = 8
"""Lines that run across a band are thinner."""
SAME_COLOR = 30
"""Levels: one colour along a band."""


class _Member(NamedTuple):
    area: Area
    along: tuple[float, float]
    """Where it begins and ends, in the direction in which bars grow; the base comes first."""
    across: tuple[float, float]

    @property
    def thickness(self) -> float:
        return self.across[1] - self.across[0]

    @property
    def length(self) -> float:
        return abs(self.along[1] - self.along[0])

    @property
    def is_upright(self) -> bool:
        box = self.area.box
        return self.across == (box.x0, box.x1)


def _rectangles(areas: Sequence[Area]) -> list[Area]:
    return [
        a
        for a in areas
        if min(a.mask.shape) >= 4
        and a.mask.size >= 30
        # the strokes of a hatch cut notches into its edges
        and a.fill >= (HATCHED_FILL if a.is_hatched else LEAST_FILL)
        and not is_disc(a)
    ]


def find_bars(scene: Scene, areas: Sequence[Area], frames: Sequence[Box]) -> list[Part]:
    """Rectangles that stand on one line with others as thick as they, or on a drawn line, and those
    stacked on them.
    """
    left = [a for a in _rectangles(areas) if not _is_backdrop(a, scene.drawn.shape)][:MOST_BARS]
    found: list[Part] = []
    group = 0
    while (rank := _best_rank(left)) is not None:
        stacked = _stacked_on(rank, left)
        if _are_bars(scene, rank, left, frames):
            found += [_bar(m, group, among=len(rank)) for m in (*rank, *stacked)]
            group += 1
        used = {id(m.area) for m in (*rank, *stacked)}
        left = [a for a in left if id(a) not in used]
    for area in left:
        box = area.box
        alone = _Member(area, (box.y1, box.y0), (box.x0, box.x1))
        if (
            _stands_on_line(scene, area)
            and not _goes_through(scene, alone, frames)
            and not _has_whisker(scene, alone)
            and not _line_across(scene, [alone], alone.along[1])
        ):
            found.append(_bar(alone, group, among=1))
            group += 1
    found = [p for p in found if not _is_letter(p, scene)]
    # an edge or a cell of a hatched bar is no bar of its own
    return [p for p in found if not any(_is_piece_of(p.box, other.box) for other in found)]


def _is_letter(part: Part, scene: Scene) -> bool:
    """Stems of large print stand on one line too."""
    thick = min(part.box.width, part.box.height)
    if part.color is None or not is_gray(part.color) or thick >= 12:
        return False
    y, x = int(part.point.y), int(part.point.x)
    return bool(np.abs(scene.ground[y, x] - np.array(part.color)).max() > 150)


def _is_piece_of(small: Box, large: Box) -> bool:
    common = large.expand(2).intersection(small)
    return small.area < 0.5 * large.area and common is not None and common.area > 0.4 * small.area


def _is_backdrop(area: Area, shape: tuple[int, ...]) -> bool:
    """Pale and wide: a panel, a band, a box of text."""
    height, width = area.mask.shape
    return is_gray(area.color) and width > 0.3 * shape[1] and height > 0.3 * shape[0]


def _best_rank(areas: Sequence[Area]) -> list[_Member] | None:
    """Of all ranks of rectangles on one line, the one with most members; None below two."""
    best: list[_Member] | None = None
    for members in _ranks(areas):
        # two specks on a level are as likely print
        least = 2 if max(max(m.area.mask.shape) for m in members) >= SMALL_PX else 4
        if len(members) >= least and (best is None or _weight(members) > _weight(best)):
            best = members
    return best


def _weight(members: Sequence[_Member]) -> tuple[int, float]:
    """Most members; of as many, those of most different lengths: their tops form no line."""
    ends = {round(m.along[1] / SAME_BASE_PX) for m in members}
    return len(members), len(ends)


def _ranks(areas: Sequence[Area]) -> Iterator[list[_Member]]:
    boxes = [a.box for a in areas]
    upright = [_Member(a, (b.y1, b.y0), (b.x0, b.x1)) for a, b in zip(areas, boxes, strict=True)]
    hanging = [m._replace(along=(m.along[1], m.along[0])) for m in upright]
    lying = [_Member(a, (b.x0, b.x1), (b.y0, b.y1)) for a, b in zip(areas, boxes, strict=True)]
    backward = [m._replace(along=(m.along[1], m.along[0])) for m in lying]
    for forward, reverse in ((upright, hanging), (lying, backward)):
        for first in forward:
            base = first.along[0]
            yield _apart(
                [
                    m
                    for m in (*forward, *reverse)
                    if abs(m.along[0] - base) <= SAME_BASE_PX
                    and abs(m.thickness - first.thickness) <= max(3.0, 0.15 * first.thickness)
                ]
            )


def _apart(members: Sequence[_Member]) -> list[_Member]:
    """From the first, those that do not overlap: nothing stands behind another bar."""
    kept: list[_Member] = []
    for member in sorted(members, key=lambda m: m.across):
        if not kept or member.across[0] >= kept[-1].across[1] - SAME_BASE_PX:
            kept.append(member)
    return kept


def _stacked_on(rank: Sequence[_Member], areas: Sequence[Area]) -> list[_Member]:
    """Rectangles that go on where bars end, as thick as they."""
    is_upright = rank[0].is_upright
    known = list(rank)
    used = {id(m.area) for m in rank}
    for member in known:  # grows while it is walked
        for area in areas:
            box = area.box
            across = (box.x0, box.x1) if is_upright else (box.y0, box.y1)
            along = (box.y1, box.y0) if is_upright else (box.x0, box.x1)
            if (
                id(area) in used
                or max(abs(a - b) for a, b in zip(across, member.across, strict=True))
                > SAME_BASE_PX
            ):
                continue
            if abs(along[0] - member.along[1]) <= 2 * SAME_BASE_PX:
                known.append(_Member(area, along, across))
                used.add(id(area))
    return known[len(rank) :]


# --- what company makes of a rank -----------------------------------------------------------------


def _are_bars(
    scene: Scene, rank: Sequence[_Member], areas: Sequence[Area], frames: Sequence[Box]
) -> bool:
    """Whether nothing else is as likely as bars: their lengths differ, or an axis is drawn under
    them; two stand on an axis whatever their lengths are.
    """
    through = sum(_goes_through(scene, m, frames) for m in rank)
    whiskers = sum(_has_whisker(scene, m) for m in rank)
    if 2 * max(through, whiskers) >= len(rank) or _is_full(scene, rank):
        return False
    lengths = [m.length for m in rank]
    is_even = max(lengths) - min(lengths) <= max(SAME_BASE_PX, EVEN_SHARE * max(lengths))
    if _are_cells(scene, rank, areas, is_even=is_even, is_bounded=through > 0):
        return False
    if len(rank) > 2 and not is_even:
        return True
    on_axis = _line_across(scene, rank, rank[0].along[0])
    end = float(np.median([m.along[1] for m in rank]))
    return on_axis and not (is_even and _line_across(scene, rank, end))


def _turned(bits: Bits, member: _Member) -> Bits:
    """As it is where bars are upright, else with columns for rows: along comes first."""
    return bits if member.is_upright else bits.T


def _is_full(scene: Scene, rank: Sequence[_Member]) -> bool:
    """Whether no ground shows between those of a rank, or above the shorter ones."""
    along = [v for m in rank for v in m.along]
    across = [v for m in rank for v in m.across]
    hull = _turned(scene.drawn, rank[0])[
        round(min(along)) : round(max(along)), round(min(across)) : round(max(across))
    ]
    return bool(hull.size) and float(hull.mean()) >= FULL


def _are_cells(
    scene: Scene,
    rank: Sequence[_Member],
    areas: Sequence[Area],
    *,
    is_even: bool,
    is_bounded: bool,
) -> bool:
    """Whether they lie as the cells of a grid do: as close as cells or under others as large; or,
    where some cells run into each other, all at steps of one cell, with others above them or ends
    at a side or a line.
    """
    members = {id(m.area) for m in rank}
    upright = rank[0].is_upright
    thick, unit = rank[0].thickness, min(m.length for m in rank)
    others = []
    for area in areas:
        height, width = area.mask.shape
        across, along = (width, height) if upright else (height, width)
        start = area.box.x0 if upright else area.box.y0
        above = any(abs(start - m.across[0]) <= SAME_BASE_PX for m in rank)
        if id(area) not in members and above and abs(across - thick) <= max(3.0, 0.1 * thick):
            others.append(along)
    gaps = [b.across[0] - a.across[1] for a, b in pairwise(sorted(rank, key=lambda m: m.across))]
    if is_even:
        return max(gaps) < CLOSE * thick or any(
            abs(o - unit) <= max(3.0, 0.05 * unit) for o in others
        )
    in_steps = all(_is_multiple(gap, thick, slack=0.25) for gap in gaps) and all(
        _is_multiple(length, unit, slack=0.15) for length in (*others, *(m.length for m in rank))
    )
    return in_steps and (
        bool(others) or is_bounded or any(_line_across(scene, rank, m.along[1]) for m in rank)
    )


def _is_multiple(value: float, unit: float, *, slack: float) -> bool:
    steps = round(value / unit)
    return abs(value - steps * unit) <= min(SAME_BASE_PX * (steps + 1), slack * unit)


def _line_across(scene: Scene, rank: Sequence[_Member], at: float) -> bool:
    """Whether a line is drawn there between those of a rank, and stands out from what is beside."""
    drawn = _turned(scene.drawn, rank[0])
    inner = sorted(rank, key=lambda m: m.across)
    gaps = [(round(a.across[1]) + 2, round(b.across[0]) - 2) for a, b in pairwise(inner)]
    columns = [c for start, stop in gaps for c in range(start, stop)]
    if not columns:  # they touch: the line must go on at their sides
        reach = max(6, round(0.3 * inner[0].thickness))
        start, stop = round(inner[0].across[0]), round(inner[-1].across[1])
        columns = [*range(start - reach, start - 2), *range(stop + 2, stop + reach)]
    columns = [c for c in columns if 0 <= c < drawn.shape[1]]
    rows = drawn[max(0, round(at) - 3) : round(at) + 3]
    if not columns or not rows.size or rows[:, columns].mean(axis=1).max() <= 0.9:
        return False
    into = [round(at) + step for step in (-BESIDE_PX, BESIDE_PX)]
    return any(0 <= row < len(drawn) and drawn[row, columns].mean() < 0.5 for row in into)


def _goes_through(scene: Scene, member: _Member, frames: Sequence[Box]) -> bool:
    """Whether its colour goes from one side of a frame to the other, lines across it not counted:
    bands do.
    """
    for frame in frames:
        if not holds(frame.expand(4), member.area.box):
            continue
        sides = (frame.y0, frame.y1) if member.is_upright else (frame.x0, frame.x1)
        if min(abs(member.along[0] - side) for side in sides) > 4:
            continue
        if abs(_end_of_color(scene, member, sides) - member.along[0]) >= sides[1] - sides[0] - 8:
            return True
    return False


def _end_of_color(scene: Scene, member: _Member, sides: tuple[float, float]) -> float:
    """Where, along its middle, no more of its colour follows before the side of a frame."""
    middle = round(sum(member.across) / 2)
    strip = scene.pixels[:, middle] if member.is_upright else scene.pixels[middle]
    same = np.abs(strip.astype(int) - np.array(member.area.color)).max(axis=1) <= SAME_COLOR
    start, step = round(member.along[1]), 1 if member.along[1] > member.along[0] else -1
    last, at = start, start
    while sides[0] < at < sides[1] and abs(at - last) <= CROSSED_PX and 0 <= at < len(same):
        if same[at]:
            last = at
        at += step
    return float(last)


def _has_whisker(scene: Scene, member: _Member) -> bool:
    """Whether a thin line leaves the middle of its base, and nothing else does."""
    drawn = _turned(scene.drawn, member)
    base, step = round(member.along[0]), 1 if member.along[0] > member.along[1] else -1
    rows = [base + step * n for n in range(2, 2 + WHISKER_PX)]
    if min(rows) < 0 or max(rows) >= len(drawn):
        return False
    start, stop = (round(v) for v in member.across)
    strip = drawn[min(rows) : max(rows) + 1, max(0, start) : stop]
    through = np.flatnonzero(strip.all(axis=0))
    middle = (stop - start) / 2
    if not len(through) or strip.mean() > 0.2 or np.ptp(through) > 4:
        return False
    return abs(float(through.mean()) - middle) <= 0.1 * (stop - start) + 1


def _stands_on_line(scene: Scene, area: Area) -> bool:
    """Whether a drawn line runs under it and on to both sides."""
    box = area.box
    reach = max(6, int(0.5 * box.width))
    x0, x1 = int(box.x0) - reach, int(box.x1) + reach
    if x0 < 0 or x1 > scene.drawn.shape[1] or box.height < 8:
        return False
    under = scene.drawn[int(box.y1) - 1 : int(box.y1) + 3, x0:x1]
    above = scene.drawn[max(0, int(box.y1) - 6), np.r_[x0 : x0 + reach // 2, x1 - reach // 2 : x1]]
    return bool(under.size and under.mean(axis=1).max() > 0.95 and above.mean() < 0.3)


def _bar(member: _Member, group: int, *, among: int) -> Part:
    area = member.area
    score = 0.96 if among >= 3 else 0.85 if among == 2 else 0.7
    score *= min(1.0, 0.5 + 0.5 * area.fill / 0.98) * (0.88 if area.is_hatched else 1.0)
    base, end = member.along
    rise = base - end if member.is_upright else end - base
    at = (area.box, area.point, area.color)
    return Part("bar", *at, score, member.length, group, place=member.across[0], rise=rise)
