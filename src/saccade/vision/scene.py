"""What a picture falls into: areas of even colour on a ground.

How: neighbours that are nearly equal belong to one area, once in the picture as it is and once with
thin strokes taken out by a median, so that hatches and grids divide nothing. The area that reaches
furthest is the ground.

Left out on purpose: marks of the ground's own colour.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade.geometry import Box, Point
from saccade.vision.colors import RGB

__all__ = [
    "MOST_AREAS",
    "PIXELS",
    "SMALL_PX",
    "Area",
    "Bits",
    "Pixels",
    "Scene",
    "away",
    "frequent",
    "seen",
    "share_of",
    "window",
]

Pixels = NDArray[np.uint8]
Bits = NDArray[np.bool_]

EVEN = 28
"""Levels: neighbours that differ by less in every channel belong to one area."""
HATCH_PX = 9
"""Strokes under half of this are taken out to see what is hatched."""
SOFT_PX = 5
"""A median that takes out what JPEG adds."""
LIKE_GROUND = 16
"""Levels: enclosed areas as near as that to the ground are ground."""
MOST_AREAS = 600
SMALL_PX = 14
"""Marks under this side have little inside their edges: they are found by their colour."""
FAINT_AWAY = 16
GROUND_AWAY = 26
"""Levels from the ground where something is drawn."""
MOST_COLORS = 12
"""Of strokes."""


class Area(NamedTuple):
    """Connected pixels that change no more than by little from one to the next."""

    x0: int
    y0: int
    mask: Bits
    """Over its box, grown to its edges."""
    color: RGB
    is_hatched: bool

    @property
    def box(self) -> Box:
        height, width = self.mask.shape
        return Box(self.x0, self.y0, self.x0 + width, self.y0 + height)

    @property
    def fill(self) -> float:
        return float(self.mask.mean())

    @property
    def point(self) -> Point:
        """The pixel furthest from its edges."""
        y, x = _innermost(self.mask)
        return Point(self.x0 + x + 0.5, self.y0 + y + 0.5)


@dataclass(frozen=True, slots=True)
class Scene:
    pixels: Pixels
    areas: tuple[Area, ...]
    """All but the ground."""
    ground: Pixels
    """What the picture would show everywhere if nothing were drawn."""
    drawn: Bits
    """Where it differs from that; nowhere in a photograph."""
    faint: Bits
    """Where it may: the frames of legends are as light as what JPEG adds."""


class _Near:
    """Areas by where they lie."""

    def __init__(self, areas: Sequence[Area]) -> None:
        self.areas = tuple(areas)
        self._boxes = np.array([a.box.as_tuple() for a in areas]).reshape(-1, 4).T

    def __call__(self, area: Area) -> list[Area]:
        """Those whose boxes share a pixel with the area's."""
        left, top, right, bottom = self._boxes
        x0, y0, x1, y1 = area.box.as_tuple()
        is_near = (left < x1) & (right > x0) & (top < y1) & (bottom > y0)
        return [self.areas[n] for n in np.flatnonzero(is_near)]


class _Even(NamedTuple):
    """Areas by label: 0 is what belongs to none."""

    labels: NDArray[np.int32]
    stats: NDArray[np.int32]
    """Left, top, width, height, pixels of each."""

    def window(self, number: int) -> tuple[slice, slice]:
        x, y, width, height = (int(v) for v in self.stats[number, :4])
        return slice(y, y + height), slice(x, x + width)


def seen(pixels: Pixels) -> Scene | None:
    """None where nothing in it is even."""
    import cv2

    clean, sharp = pixels, pixels
    if _is_noisy(pixels):
        # lines would not survive what makes areas even
        clean, sharp = cv2.medianBlur(pixels, SOFT_PX), cv2.medianBlur(pixels, 3)
    bare = cv2.medianBlur(pixels, HATCH_PX)
    fine, coarse = _even(clean), _even(bare)
    if len(coarse.stats) < 2 or len(fine.stats) < 2:
        return None
    coarse_ground = _ground(coarse, bare)
    fine_ground = _ground_pieces(fine, clean, coarse, coarse_ground, bare)
    on_ground = np.isin(fine.labels, list(fine_ground))
    if not on_ground.any():
        return None
    if not _is_paper(clean[on_ground], len(clean) * len(clean[0])):
        areas = _areas(fine, clean, fine_ground, clean)
        nothing = np.zeros(on_ground.shape, bool)
        return Scene(sharp, tuple(areas), clean, nothing, nothing)
    ground = _spread(clean, on_ground)
    drawn = away(sharp, ground) > GROUND_AWAY
    areas = [a for a in _areas(fine, clean, fine_ground, ground) if not _is_ground(a, ground)]
    near = _Near(areas)
    hatched = [
        a for a in _areas(coarse, bare, coarse_ground, ground) if _is_broken(a, near(a), drawn)
    ]
    hatched = _largest([*hatched, *_hatched(clean, drawn, ground, near)])
    hatches = _Near(hatched)
    whole = [a for a in areas if not any(covers(h, a) for h in hatches(a))]
    faint = drawn if sharp is pixels else away(pixels, ground) > FAINT_AWAY
    return Scene(sharp, (*whole, *hatched), ground, drawn, faint)


def _is_ground(area: Area, ground: Pixels) -> bool:
    """Whether it shows what is around it: the inside of a letter on a ground that is shaded."""
    height, width = area.mask.shape
    here = ground[area.y0 : area.y0 + height, area.x0 : area.x0 + width][area.mask]
    off = np.abs(np.median(here, axis=0) - np.array(area.color)).max()
    return bool(off <= LIKE_GROUND)


LEAST_PAPER = 0.3
"""Of a picture, what is ground where something was drawn on it."""
PAPER_SPAN = 80
"""Levels: from its darkest to its brightest twentieth."""


def _is_paper(ground: Pixels, whole: int) -> bool:
    """Whether a picture is drawn on one even ground: photographs and mosaics have none."""
    some = ground[:: max(1, len(ground) // 20_000)]
    low, high = np.quantile(some, (0.05, 0.95), axis=0)
    return len(ground) >= LEAST_PAPER * whole and float((high - low).max()) <= PAPER_SPAN


def away(a: Pixels, b: Pixels | NDArray[np.float64]) -> Pixels:
    """The largest difference of two pictures, or of a picture and a colour, in any channel."""
    import cv2

    red, green, blue = cv2.split(cv2.absdiff(a, b if b.ndim == 3 else (*b.tolist(), 0.0)))
    most: Pixels = cv2.max(cv2.max(red, green), blue)
    return most


def _is_noisy(pixels: Pixels) -> bool:
    """Small steps nearly everywhere: JPEG, or a photograph."""
    if pixels.shape[1] < 2:
        return False
    step = away(np.ascontiguousarray(pixels[:, 1:]), np.ascontiguousarray(pixels[:, :-1]))
    return bool(((step > 1) & (step <= 10)).mean() > 0.03)


def _even(pixels: Pixels) -> _Even:
    import cv2

    square = np.ones((3, 3), np.uint8)
    span = away(cv2.dilate(pixels, square), cv2.erode(pixels, square))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        (span <= EVEN).astype(np.uint8), connectivity=4
    )
    return _Even(labels, stats)


def _ground(coarse: _Even, bare: Pixels) -> set[int]:
    """The area whose box is largest; areas of its colour; and coloured panels that hold others."""
    spans = coarse.stats[1:, 2].astype(np.int64) * coarse.stats[1:, 3]
    main = 1 + int(np.argmax(spans))
    typical = np.median(bare[coarse.labels == main], axis=0)
    found = {main}
    height, width = coarse.labels.shape
    for n in range(1, len(coarse.stats)):
        _, _, w, h, count = coarse.stats[n]
        if n == main or count < 25:
            continue
        window = coarse.window(n)
        own = coarse.labels[window] == n
        color = np.median(bare[window][own], axis=0)
        is_panel = (
            w > 0.12 * width
            and h > 0.12 * height
            and _edge_share(own) > 0.6
            and _holds_others(coarse, window, n, color, bare)
        )
        if is_panel or np.abs(color - typical).max() <= LIKE_GROUND:
            found.add(n)
    return found


def _edge_share(own: Bits) -> float:
    """Of the rim of a window, what belongs to the area."""
    rim = np.concatenate(
        [own[:3].ravel(), own[-3:].ravel(), own[:, :3].ravel(), own[:, -3:].ravel()]
    )
    return float(rim.mean())


def _holds_others(
    coarse: _Even, window: tuple[slice, slice], number: int, color: NDArray[Any], bare: Pixels
) -> bool:
    """Whether a vivid or large area of another colour lies inside."""
    rows, columns = window
    least = 0.01 * (rows.stop - rows.start) * (columns.stop - columns.start)
    for other in np.unique(coarse.labels[window]):
        if other in (0, number):
            continue
        x, y, w, h, count = (int(v) for v in coarse.stats[other])
        is_inside = (
            x >= columns.start and y >= rows.start and x + w <= columns.stop and y + h <= rows.stop
        )
        if not is_inside or count < 20:
            continue
        where = coarse.window(int(other))
        of_other = np.median(bare[where][coarse.labels[where] == other], axis=0)
        is_vivid = np.ptp(of_other) > 40 or count > least
        if is_vivid and np.abs(of_other - color).max() > 40:
            return True
    return False


def _ground_pieces(
    fine: _Even, clean: Pixels, coarse: _Even, coarse_ground: set[int], bare: Pixels
) -> set[int]:
    """Areas of the untouched picture that lie on the ground, or enclose a piece of it."""
    on = np.isin(coarse.labels, list(coarse_ground))
    count = np.bincount(fine.labels.ravel(), minlength=len(fine.stats))
    # the middle of a thick line is even and lies where the median saw ground: the colour tells
    same = on & (away(clean, bare) <= LIKE_GROUND)
    shared = np.bincount(fine.labels.ravel(), weights=same.ravel(), minlength=len(fine.stats))
    typical = np.median(bare[on], axis=0)
    off = np.abs(_mean_colors(fine, clean, count) - typical).max(axis=1)
    return {int(n) for n in np.flatnonzero((shared > 0.5 * count) | (off <= LIKE_GROUND)) if n}


def _mean_colors(even: _Even, pixels: Pixels, count: NDArray[np.intp]) -> NDArray[np.float64]:
    """(areas, 3)"""
    labels = even.labels.ravel()
    sums = [
        np.bincount(labels, weights=pixels[..., channel].ravel(), minlength=len(count))
        for channel in range(3)
    ]
    return np.stack(sums, axis=1) / np.maximum(count, 1)[:, None]


def _spread(pixels: Pixels, on_ground: Bits) -> Pixels:
    """Each pixel's nearest ground."""
    import cv2

    _, nearest = cv2.distanceTransformWithLabels(
        (~on_ground).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colors = np.zeros((int(nearest.max()) + 1, 3), np.uint8)
    colors[nearest[on_ground]] = pixels[on_ground]
    spread: Pixels = colors[nearest]
    return spread


def _areas(even: _Even, pixels: Pixels, ground: set[int], shown: Pixels) -> list[Area]:
    counts = even.stats[:, PIXELS]
    numbers = [
        n
        for n in np.argsort(-counts)
        if n and n not in ground and counts[n] >= 6 and even.stats[n, 2:4].min() >= 2
    ]
    return [_area(even, pixels, int(n), shown) for n in numbers[:MOST_AREAS]]


PIXELS = 4
"""Column of the stats of connected components that counts pixels."""


def _area(even: _Even, pixels: Pixels, number: int, shown: Pixels) -> Area:
    """The area grown by the pixel at its edge that it lost, with its own colour."""
    import cv2

    height, width = even.labels.shape
    rows, columns = even.window(number)
    y0, y1 = max(0, rows.start - 1), min(height, rows.stop + 1)
    x0, x1 = max(0, columns.start - 1), min(width, columns.stop + 1)
    own = (even.labels[y0:y1, x0:x1] == number).astype(np.uint8)
    grown = cv2.dilate(own, np.ones((3, 3), np.uint8)).astype(bool)
    values = pixels[y0:y1, x0:x1][own.astype(bool)].astype(np.int16)
    if np.ptp(values, axis=0).max() > 2 * EVEN:  # a fade: its colour is where it is fullest
        away = np.abs(values - shown[y0:y1, x0:x1][own.astype(bool)]).max(axis=1)
        values = values[away >= np.quantile(away, 0.75)]
    r, g, b = (int(v) for v in np.median(values, axis=0))
    return Area(x0, y0, grown, (r, g, b), is_hatched=False)


def _is_broken(area: Area, fine: Sequence[Area], drawn: Bits) -> bool:
    """Whether strokes divide an area: no one area of the untouched picture fills half of it."""
    here = window(drawn, area)
    if area.mask.sum() < 80 or (here & area.mask).sum() < 0.55 * area.mask.sum():
        return False
    return not any(share_of(other, area) > 0.5 for other in fine)


def _largest(areas: Sequence[Area]) -> list[Area]:
    """Of areas that cover each other, as two ways see them, the largest."""
    kept: dict[int, Area] = {}
    near = _Near(areas)
    for area in sorted(areas, key=lambda a: -int(a.mask.sum())):
        if not any(id(other) in kept and covers(other, area, least=0.5) for other in near(area)):
            kept[id(area)] = area._replace(is_hatched=True)
    return list(kept.values())


def _hatched(pixels: Pixels, drawn: Bits, ground: Pixels, near: _Near) -> list[Area]:
    """Areas of one colour that thin strokes of another divide: what is left of it, closed up."""
    import cv2

    open_ = drawn.copy()
    solid = [a for a in near.areas if _is_solid(a)]
    for area in solid:
        window(open_, area)[area.mask] = False
    gap = np.ones((HATCH_PX - 2, HATCH_PX - 2), np.uint8)
    dense = cv2.morphologyEx(open_.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    dense = cv2.morphologyEx(dense, cv2.MORPH_OPEN, gap)
    open_ &= cv2.dilate(dense, gap).astype(bool)  # print and lines are not that dense
    if open_.sum() < 60:
        return []
    paper = np.median(ground[:: max(1, len(ground) // 50)].reshape(-1, 3), axis=0)
    found = []
    for color in frequent(pixels[open_].astype(np.int16), least=60):
        if np.ptp(color) < 24 and np.abs(color - paper).max() > 150:
            continue  # ink: print closed up looks hatched
        own = open_ & (away(pixels, color) <= 32)
        closed = cv2.morphologyEx(own.astype(np.uint8), cv2.MORPH_CLOSE, gap)
        closed = cv2.morphologyEx(closed, cv2.MORPH_OPEN, gap)
        _, labels, stats, _ = cv2.connectedComponentsWithStats(closed, connectivity=4)
        for n in np.argsort(-stats[1:, PIXELS])[:MOST_AREAS] + 1:
            x, y, width, height, count = (int(v) for v in stats[n])
            mask = labels[y : y + height, x : x + width] == n
            r, g, b = (int(v) for v in color)
            area = Area(x, y, mask, (r, g, b), is_hatched=True)
            colored = (window(own, area) & mask).sum()
            strokes = mask & ~window(own, area)
            on_strokes = (strokes & window(drawn, area)).sum() > 0.6 * strokes.sum()
            is_one = any(share_of(other, area) > 0.85 for other in near(area))
            if count >= 60 and colored >= 0.4 * count and on_strokes and not is_one:
                found.append(area)
    return found


def _is_solid(area: Area) -> bool:
    """Whether it is a whole bar or cell: no hatch leaves such pieces."""
    return min(area.mask.shape) >= SMALL_PX and area.fill > 0.95


def window(bits: Bits, area: Area) -> Bits:
    """Where an area lies."""
    height, width = area.mask.shape
    return bits[area.y0 : area.y0 + height, area.x0 : area.x0 + width]


def frequent(colors: NDArray[np.int16], *, least: float) -> Iterator[NDArray[np.float64]]:
    """The most frequent colours, each without those near it."""
    for _ in range(MOST_COLORS):
        if len(colors) < least:
            return
        bins = (colors // 32) @ np.array([64, 8, 1])
        top = int(np.bincount(bins, minlength=512).argmax())
        center = np.median(colors[bins == top], axis=0)
        near = np.abs(colors - center).max(axis=1) <= 40
        if near.sum() < least:
            return
        yield center
        colors = colors[~near]


def share_of(a: Area, b: Area) -> float:
    """Of b, what a covers."""
    (ah, aw), (bh, bw) = a.mask.shape, b.mask.shape
    x0, x1 = max(a.x0, b.x0), min(a.x0 + aw, b.x0 + bw)
    y0, y1 = max(a.y0, b.y0), min(a.y0 + ah, b.y0 + bh)
    if x0 >= x1 or y0 >= y1:
        return 0.0
    of_a = a.mask[y0 - a.y0 : y1 - a.y0, x0 - a.x0 : x1 - a.x0]
    of_b = b.mask[y0 - b.y0 : y1 - b.y0, x0 - b.x0 : x1 - b.x0]
    return float((of_a & of_b).sum() / b.mask.sum())


def covers(a: Area, b: Area, *, least: float = 0.6) -> bool:
    return share_of(a, b) >= least


def _innermost(mask: Bits) -> tuple[int, int]:
    import cv2

    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    deepest = np.argwhere(depth >= depth.max() - 0.5)
    # of all that are as deep, the one in the middle: a bar's ridge runs along it
    y, x = deepest[np.argmin(((deepest - deepest.mean(axis=0)) ** 2).sum(axis=1))]
    return int(y), int(x)
