"""Bars: rectangles that stand on one line, or on a drawn one, and what is stacked on them.

Invariant: a rectangle alone, which stands on nothing, is no bar.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from saccade.geometry import Box
from saccade.vision.part import Part, is_gray
from saccade.vision.scene import SMALL_PX, Area, Scene
from saccade.vision.shapes import LEAST_FILL, is_disc

__all__ = ["find_bars"]

MOST_BARS = 150
"""The largest; every one is compared with every other."""
HATCHED_FILL = 0.84
SAME_BASE_PX = 2.5


class _Member(NamedTuple):
    area: Area
    along: tuple[float, float]
    """Where it begins and ends, in the direction in which bars grow; the base comes first."""
    across: tuple[float, float]

    @property
    def thickness(self) -> float:
        return self.across[1] - self.across[0]


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


def find_bars(scene: Scene, areas: Sequence[Area]) -> list[Part]:
    """Rectangles that stand on one line with others as thick as they, or on a drawn line, and those
    stacked on them.
    """
    left = [a for a in _rectangles(areas) if not _is_backdrop(a, scene.drawn.shape)][:MOST_BARS]
    found: list[Part] = []
    group = 0
    while (rank := _best_rank(left)) is not None:
        stacked = _stacked_on(rank, left)
        found += [_bar(m, group, among=len(rank)) for m in (*rank, *stacked)]
        used = {id(m.area) for m in (*rank, *stacked)}
        left = [a for a in left if id(a) not in used]
        group += 1
    for area in left:
        if _stands_on_line(scene, area):
            box = area.box
            found.append(_bar(_Member(area, (box.y1, box.y0), (box.x0, box.x1)), group, among=1))
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
    is_upright = rank[0].across == (rank[0].area.box.x0, rank[0].area.box.x1)
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
    length = abs(member.along[1] - member.along[0])
    place = member.across[0]
    return Part("bar", area.box, area.point, area.color, score, length, group, place)
