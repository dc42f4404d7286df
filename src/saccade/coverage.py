"""How much of the evidence the gaze covers, and how much of the gaze is evidence: exact areas.

Invariant: areas are those of unions, so looking twice at one place counts once, and only what lies
on the original image counts. Axis-parallel shapes are compared on the grid of their own edges (full
cover is exactly 1, none exactly 0); as soon as one shape is turned, by clipping convex polygons
(Sutherland and Hodgman, 1974).
Left out on purpose: polygons that are not convex, which no chain of affine maps makes from a box.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from saccade.geometry import Box, Point, Polygon
from saccade.types import Evidence, ImageRef, Region

__all__ = ["Overlap", "clip_convex", "overlap", "shared_areas"]

LOOKED = frozenset({"seen", "named"})
"""What counts as a look; what a tool merely reported does not."""

_SLIVER = 1e-9
"""Square pixels below which a clipped piece is rounding and not area."""


class Overlap(NamedTuple):
    """Areas in square pixels of the original images."""

    evidence: float
    """Of the union of the evidence."""
    gaze: float
    """Of the union of the gaze, evidence or not."""
    shared: float
    """Of what both cover."""

    @property
    def coverage(self) -> float | None:
        """Share of the evidence that the gaze covers, in 0..1; None without evidence."""
        return min(1.0, self.shared / self.evidence) if self.evidence > 0 else None

    @property
    def tightness(self) -> float | None:
        """Share of the gaze that is evidence, in 0..1; None without evidence or without gaze."""
        if self.evidence <= 0 or self.gaze <= 0:
            return None
        return min(1.0, self.shared / self.gaze)


def overlap(evidence: Iterable[Evidence], gaze: Iterable[Region]) -> Overlap:
    """Areas summed over the original images; regions that a tool only found are left out."""
    wanted: dict[ImageRef, list[Polygon]] = {}
    looked: dict[ImageRef, list[Polygon]] = {}
    for item in evidence:
        for root, polygon in item.image.to_roots(item.box):
            wanted.setdefault(root, []).append(polygon)
    for region in gaze:
        if region.how in LOOKED:
            looked.setdefault(region.image, []).append(region.polygon)
    total = Overlap(0.0, 0.0, 0.0)
    for root in {**wanted, **looked}:
        areas = shared_areas(
            _inside(wanted.get(root, ()), root.box), by=_inside(looked.get(root, ()), root.box)
        )
        total = Overlap(*(a + b for a, b in zip(total, areas, strict=True)))
    return total


def shared_areas(shapes: Sequence[Polygon], *, by: Sequence[Polygon]) -> Overlap:
    """Areas on one image: of the union of the shapes, of that of `by`, and of what both cover.

    Raises ValueError for a polygon that is not convex.
    """
    if all(p.is_box for p in (*shapes, *by)):
        return _grid_areas([p.bounds for p in shapes], [p.bounds for p in by])
    left, right = _disjoint(shapes), _disjoint(by)
    rest = left
    for piece in right:
        rest = [part for whole in rest for part in _subtract(whole, piece)]
    area = _total(left)
    return Overlap(area, _total(right), area - _total(rest))


def clip_convex(subject: Polygon, window: Polygon) -> Polygon | None:
    """The part of one convex polygon inside another, or None where they share no area."""
    points = _counted(subject)
    for start, end in _edges(_counted(window)):
        points = _half(points, start, end)
    return _polygon(points)


def _inside(polygons: Iterable[Polygon], image: Box) -> list[Polygon]:
    window = image.polygon()
    kept = []
    for polygon in polygons:
        if polygon.is_box:
            box = polygon.bounds.intersection(image)
            clipped = box.polygon() if box else None
        else:
            clipped = clip_convex(polygon, window)
        if clipped is not None:
            kept.append(clipped)
    return kept


def _grid_areas(shapes: Sequence[Box], by: Sequence[Box]) -> Overlap:
    boxes = (*shapes, *by)
    if not boxes:
        return Overlap(0.0, 0.0, 0.0)
    xs = np.unique([x for b in boxes for x in (b.x0, b.x1)])
    ys = np.unique([y for b in boxes for y in (b.y0, b.y1)])
    cells = np.outer(np.diff(ys), np.diff(xs))  # square pixels of each cell of the grid

    def covered(group: Sequence[Box]) -> np.ndarray:
        grid = np.zeros(cells.shape, dtype=bool)
        for b in group:
            left, right = np.searchsorted(xs, (b.x0, b.x1))
            top, bottom = np.searchsorted(ys, (b.y0, b.y1))
            grid[top:bottom, left:right] = True
        return grid

    first, second = covered(shapes), covered(by)
    return Overlap(*(float(cells[m].sum()) for m in (first, second, first & second)))


Points = list[tuple[float, float]]


def _counted(polygon: Polygon) -> Points:
    """The corners so ordered that the inside lies at the left of every edge.

    Raises ValueError where the polygon is not convex.
    """
    points = [(p.x, p.y) for p in polygon.points]
    if _signed_area(points) < 0:
        points.reverse()
    bounds = polygon.bounds
    slack = 1e-9 * (bounds.width + bounds.height) ** 2
    for start, end in _edges(points):
        if any(_side(p, start, end) < -slack for p in points):
            raise ValueError(f"Areas need convex polygons, got one that is not: {points}.")
    return points


def _edges(points: Points) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    return list(zip(points, points[1:] + points[:1], strict=True))


def _side(p: tuple[float, float], start: tuple[float, float], end: tuple[float, float]) -> float:
    """Positive at the left of the line from start to end, negative at its right."""
    return (end[0] - start[0]) * (p[1] - start[1]) - (end[1] - start[1]) * (p[0] - start[0])


def _half(points: Points, start: tuple[float, float], end: tuple[float, float]) -> Points:
    """What lies at the left of the line from start to end."""
    kept: Points = []
    for a, b in _edges(points) if points else []:
        side_a, side_b = _side(a, start, end), _side(b, start, end)
        if side_a >= 0:
            kept.append(a)
        if (side_a > 0 > side_b) or (side_a < 0 < side_b):
            t = side_a / (side_a - side_b)
            kept.append((a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])))
    return kept


def _signed_area(points: Points) -> float:
    if len(points) < 3:
        return 0.0
    # From the first corner: far from the origin the plain formula loses digits.
    x, y = points[0]
    return sum((a[0] - x) * (b[1] - y) - (b[0] - x) * (a[1] - y) for a, b in _edges(points)) / 2


def _polygon(points: Points) -> Polygon | None:
    if abs(_signed_area(points)) <= _SLIVER:
        return None
    return Polygon(tuple(Point(x, y) for x, y in points))


def _subtract(whole: Points, hole: Points) -> list[Points]:
    """Convex pieces, disjoint, that together are `whole` without `hole`."""
    common = whole
    for start, end in _edges(hole):
        common = _half(common, start, end)
    if abs(_signed_area(common)) <= _SLIVER:
        return [whole]
    pieces = []
    rest = whole
    for start, end in _edges(hole):
        outside = _half(rest, end, start)
        if abs(_signed_area(outside)) > _SLIVER:
            pieces.append(outside)
        rest = _half(rest, start, end)
    return pieces


def _disjoint(polygons: Sequence[Polygon]) -> list[Points]:
    """Convex pieces, disjoint, that cover what the polygons cover."""
    pieces: list[Points] = []
    for polygon in polygons:
        fresh = [_counted(polygon)]
        for piece in pieces:
            fresh = [part for whole in fresh for part in _subtract(whole, piece)]
        pieces += fresh
    return pieces


def _total(pieces: Iterable[Points]) -> float:
    return sum(abs(_signed_area(p)) for p in pieces)
