"""Dots and plain shapes: discs, rectangles, squares, triangles, whatever they stand for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from saccade.geometry import Box, Point
from saccade.vision.colors import RGB
from saccade.vision.part import Part, holds, is_gray, once, same_color
from saccade.vision.scene import SMALL_PX, Area
from saccade.vision.strokes import Stroke, pieces_of

__all__ = ["LEAST_FILL", "find_dots", "find_shapes", "is_disc", "specks"]

LEAST_FILL = 0.92
"""Of a rectangle, in its box."""


def is_disc(area: Area) -> bool:
    height, width = area.mask.shape
    if min(height, width) < 4 or not 0.75 <= width / height <= 1.34:
        return False
    if not 0.58 <= area.fill <= 0.92:
        return False
    # a box is up to a pixel wider than the disc, which weighs on small ones
    part = min(1.0, area.fill / (math.pi / 4))
    y, x = np.ogrid[:height, :width]
    inside = ((x + 0.5) / width * 2 - 1) ** 2 + ((y + 0.5) / height * 2 - 1) ** 2 <= part
    common = (inside & area.mask).sum() / (inside | area.mask).sum()
    corner = max(1, round(0.1 * min(height, width)))
    cut = [
        area.mask[s, t].mean()
        for s in (slice(0, corner), slice(-corner, None))
        for t in (slice(0, corner), slice(-corner, None))
    ]
    return bool(common >= 0.88 and max(cut) < 0.5)


def find_dots(areas: Sequence[Area]) -> list[Part]:
    """Discs; those of one colour and size are surer, and tell how large one is where two meet."""
    discs = [a for a in areas if not a.is_hatched and is_disc(a)]
    found = []
    for disc in discs:
        like = sum(_is_like(disc, other) for other in discs)  # itself included
        may_be_print = is_gray(disc.color) and min(disc.mask.shape) < SMALL_PX
        score = 0.93 if like >= 3 else 0.8
        if _is_of_letter(disc, areas, may_be_print=may_be_print):
            continue
        if not may_be_print or like >= 5:
            found.append(_dot(disc.box, disc.point, disc.color, score))
    for area in areas:
        one = next((d for d in discs if _may_hold(area, d, discs)), None)
        if one is not None:
            found += _apart_dots(area, one)
    return once(found, least=0.4)


def _is_of_letter(disc: Area, areas: Sequence[Area], *, may_be_print: bool) -> bool:
    """Whether it lies in a much larger area that has its colour, as the inside of an o does, or on
    which gray specks are print.
    """
    return any(
        holds(area.box, disc.box)
        and area.mask.sum() > 10 * disc.mask.sum()
        and area.fill > 0.6
        and (may_be_print or same_color(area.color, disc.color))
        for area in areas
    )


def specks(strokes: Sequence[Stroke]) -> Iterator[Area]:
    """Pieces of one colour that may be small dots, or several that run into each other."""
    for stroke in strokes:
        for piece in pieces_of(stroke):
            height, width = piece.mask.shape
            if min(height, width) >= 5 and max(height, width) <= 3 * SMALL_PX:
                yield Area(
                    round(piece.box.x0), round(piece.box.y0), piece.mask, stroke.color, False
                )


def _dot(box: Box, point: Point, color: RGB, score: float) -> Part:
    return Part("dot", box, point, color, score, box.area, place=box.x0)


def _is_like(a: Area, b: Area) -> bool:
    sizes = sorted((min(a.mask.shape), min(b.mask.shape)))
    return same_color(a.color, b.color) and sizes[1] <= 1.25 * sizes[0] + 1


def _may_hold(area: Area, disc: Area, discs: Sequence[Area]) -> bool:
    """Whether an area is two to four such discs that run into each other."""
    times = area.mask.sum() / disc.mask.sum()
    return (
        not any(area is d for d in discs)
        and 1.2 < times < 4.5
        and same_color(area.color, disc.color)
        and sum(_is_like(disc, d) for d in discs) >= 3
    )


def _apart_dots(area: Area, one: Area) -> list[Part]:
    import cv2

    side = (one.mask.shape[0] + one.mask.shape[1]) / 2
    depth = cv2.distanceTransform(np.pad(area.mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    found: list[Part] = []
    while len(found) < 4 and depth.max() >= 0.36 * side:
        y, x = np.unravel_index(int(np.argmax(depth)), depth.shape)
        px, py = area.x0 + float(x) + 0.5, area.y0 + float(y) + 0.5
        box = Box(px - side / 2, py - side / 2, px + side / 2, py + side / 2)
        found.append(_dot(box, Point(px, py), area.color, 0.7))
        rows, columns = np.ogrid[: depth.shape[0], : depth.shape[1]]
        depth = np.where(np.hypot(columns - x, rows - y) < 0.6 * side, 0.0, depth)
    return found if len(found) >= 2 else []


def find_shapes(areas: Sequence[Area]) -> Iterator[Part]:
    """Plain shapes, whatever they stand for."""
    for area in areas:
        if area.mask.sum() < 60:
            continue
        height, width = area.mask.shape
        doubt = 0.85 if area.is_hatched else 1.0
        at = (area.box, area.point, area.color)
        if is_disc(area):
            yield Part("circle", *at, 0.9 * doubt, area.box.area, place=area.box.x0)
        elif area.fill >= LEAST_FILL and min(height, width) >= 6:
            score = doubt * min(0.95, area.fill)
            yield Part("rectangle", *at, score, area.box.area, place=area.box.x0)
            if 0.9 <= width / height <= 1.1:
                yield Part("square", *at, score, area.box.area, place=area.box.x0)
        elif 0.4 <= area.fill <= 0.62 and _is_triangle(area):
            yield Part("triangle", *at, 0.85 * doubt, area.box.area, place=area.box.x0)


def _is_triangle(area: Area) -> bool:
    import cv2

    outlines, _ = cv2.findContours(
        area.mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )
    outline = max(outlines, key=len)
    around, _ = cv2.minEnclosingTriangle(outline)
    return bool(around > 0 and area.mask.sum() / around > 0.85)
