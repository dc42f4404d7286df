"""Boxes, points, masks, affine maps and the coordinate frames of model families.

Invariant: inside saccade every coordinate is a float pixel of a named image, half-open, origin at
the top left corner. A `Frame` is the only way in from, or out to, the numbers that a model writes;
a frame is declared, never guessed from the magnitude of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

__all__ = [
    "Affine",
    "Box",
    "Frame",
    "FrameKind",
    "Mask",
    "Point",
    "Polygon",
    "box_around",
    "iou",
    "rows_of",
    "union_area",
]

FrameKind = Literal["pixels", "thousand", "resized", "unit", "percent"]


def _check_finite(name: str, values: Iterable[float]) -> None:
    values = tuple(values)
    if not all(math.isfinite(v) for v in values):
        raise ValueError(f"{name} needs finite numbers, got {values}.")


@dataclass(frozen=True, slots=True)
class Point:
    """A place in an image, in its pixels."""

    x: float
    y: float

    def __post_init__(self) -> None:
        _check_finite("Point", (self.x, self.y))


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-parallel rectangle in pixels of one image: x0 <= x < x1, y0 <= y < y1, of positive
    area.
    """

    x0: float
    y0: float
    x1: float
    y1: float

    def __post_init__(self) -> None:
        _check_finite("Box", (self.x0, self.y0, self.x1, self.y1))
        if self.x1 <= self.x0 or self.y1 <= self.y0:
            raise ValueError(
                "Box needs x0 < x1 and y0 < y1, "
                f"got ({self.x0:g}, {self.y0:g}, {self.x1:g}, {self.y1:g})."
            )

    @property
    def width(self) -> float:
        return self.x1 - self.x0

    @property
    def height(self) -> float:
        return self.y1 - self.y0

    @property
    def area(self) -> float:
        return self.width * self.height

    @property
    def center(self) -> Point:
        return Point((self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2)

    def intersection(self, other: Box) -> Box | None:
        """The common rectangle, or None where the two share no area."""
        x0, y0 = max(self.x0, other.x0), max(self.y0, other.y0)
        x1, y1 = min(self.x1, other.x1), min(self.y1, other.y1)
        return Box(x0, y0, x1, y1) if x1 > x0 and y1 > y0 else None

    def clip(self, width: float, height: float) -> Box | None:
        """The part inside an image of that size, or None where nothing is inside."""
        return self.intersection(Box(0, 0, width, height))

    def expand(self, by_x: float, by_y: float | None = None) -> Box:
        """Grown by that many pixels on every side."""
        by_y = by_x if by_y is None else by_y
        return Box(self.x0 - by_x, self.y0 - by_y, self.x1 + by_x, self.y1 + by_y)

    def moved(self, dx: float, dy: float) -> Box:
        return Box(self.x0 + dx, self.y0 + dy, self.x1 + dx, self.y1 + dy)

    def polygon(self) -> Polygon:
        """The four corners, clockwise from the top left."""
        return Polygon(
            (
                Point(self.x0, self.y0),
                Point(self.x1, self.y0),
                Point(self.x1, self.y1),
                Point(self.x0, self.y1),
            )
        )

    def as_tuple(self) -> tuple[float, float, float, float]:
        return (self.x0, self.y0, self.x1, self.y1)


SLIVER = 1e-9
"""Square pixels below which a clipped piece is rounding and not area."""


def _half_plane(
    points: list[tuple[float, float]], axis: int, limit: float, sign: int
) -> list[tuple[float, float]]:
    """The part of a polygon where sign * (coordinate - limit) is not negative."""
    kept: list[tuple[float, float]] = []
    for a, b in zip(points, points[1:] + points[:1], strict=True):
        from_a, from_b = sign * (a[axis] - limit), sign * (b[axis] - limit)
        if from_a >= 0:
            kept.append(a)
        if from_a * from_b < 0:
            t = from_a / (from_a - from_b)
            kept.append((a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])))
    return kept


def _area(points: list[tuple[float, float]]) -> float:
    """Of a polygon; from its first corner, since far from the origin the formula loses digits."""
    x, y = points[0]
    moved = [(p[0] - x, p[1] - y) for p in points]
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(moved))) / 2


@dataclass(frozen=True, slots=True)
class Polygon:
    """A simple polygon in pixels of one image: what a box becomes under a rotation."""

    points: tuple[Point, ...]

    def __post_init__(self) -> None:
        if len(self.points) < 3:
            raise ValueError(f"Polygon needs at least 3 points, got {len(self.points)}.")
        if self.area <= 0:
            raise ValueError("Polygon needs a positive area.")

    @property
    def area(self) -> float:
        """Shoelace formula, without sign."""
        return _area([(p.x, p.y) for p in self.points])

    @property
    def bounds(self) -> Box:
        """The smallest box around it."""
        xs, ys = [p.x for p in self.points], [p.y for p in self.points]
        return Box(min(xs), min(ys), max(xs), max(ys))

    def clip(self, window: Box) -> Polygon | None:
        """The part inside a box (Sutherland and Hodgman, 1974), or None where no area is left."""
        if self.is_box:
            inside = self.bounds.intersection(window)
            return inside.polygon() if inside else None
        points = [(p.x, p.y) for p in self.points]
        for axis, limit, sign in (
            (0, window.x0, 1),
            (0, window.x1, -1),
            (1, window.y0, 1),
            (1, window.y1, -1),
        ):
            points = _half_plane(points, axis, limit, sign)
        is_left = bool(points) and _area(points) > SLIVER
        return Polygon(tuple(Point(x, y) for x, y in points)) if is_left else None

    @property
    def is_box(self) -> bool:
        """Whether it is an axis-parallel rectangle (to a millionth of a pixel)."""
        return len(self.points) == 4 and math.isclose(
            self.area, self.bounds.area, rel_tol=1e-9, abs_tol=1e-6
        )


@dataclass(frozen=True, slots=True)
class Mask:
    """A binary mask as run lengths over rows, starting with a (possibly empty) run of zeros."""

    width: int
    height: int
    runs: tuple[int, ...]

    def __post_init__(self) -> None:
        if any(r < 0 for r in self.runs) or sum(self.runs) != self.width * self.height:
            raise ValueError(
                f"Mask runs must be non-negative and sum to {self.width * self.height}, "
                f"got a sum of {sum(self.runs)}."
            )
        if self.area == 0:
            raise ValueError("Mask needs a positive area.")

    @property
    def area(self) -> int:
        return sum(self.runs[1::2])

    @classmethod
    def from_array(cls, array: np.ndarray) -> Mask:
        """From a boolean array (height, width)."""
        import numpy as np

        height, width = array.shape
        bits = np.concatenate([[False], array.astype(bool).ravel(), [False]])
        turns = np.flatnonzero(bits[1:] != bits[:-1])
        ends = np.concatenate([[0], turns, [height * width]])
        runs = [int(run) for run in np.diff(ends)]
        return cls(width, height, tuple(runs if runs[-1] else runs[:-1]))

    @property
    def bounds(self) -> Box:
        """The smallest box around it."""
        columns: list[int] = []
        rows: list[int] = []
        at = 0
        for number, run in enumerate(self.runs):
            if number % 2 and run:
                (top, left), (bottom, right) = (
                    divmod(at, self.width),
                    divmod(at + run - 1, self.width),
                )
                rows += (top, bottom)
                # a run over a line's end touches both sides of the image
                columns += (left, right) if top == bottom else (0, self.width - 1)
            at += run
        return Box(min(columns), min(rows), max(columns) + 1, max(rows) + 1)

    def array(self) -> np.ndarray:
        """The boolean array (height, width)."""
        import numpy as np

        values = np.zeros(len(self.runs), dtype=bool)
        values[1::2] = True
        return np.repeat(values, self.runs).reshape(self.height, self.width)


@dataclass(frozen=True, slots=True)
class Affine:
    """The map (x, y) -> (a x + b y + c, d x + e y + f), invertible."""

    a: float = 1.0
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    e: float = 1.0
    f: float = 0.0

    def __post_init__(self) -> None:
        _check_finite("Affine", (self.a, self.b, self.c, self.d, self.e, self.f))
        if abs(self.determinant) < 1e-12:
            raise ValueError(f"Affine map can't be inverted: determinant {self.determinant:g}.")

    @property
    def determinant(self) -> float:
        return self.a * self.e - self.b * self.d

    @classmethod
    def translate_scale(cls, dx: float, dy: float, sx: float = 1.0, sy: float = 1.0) -> Affine:
        """First scaled by (sx, sy), then moved by (dx, dy)."""
        return cls(sx, 0.0, dx, 0.0, sy, dy)

    def point(self, p: Point) -> Point:
        return Point(self.a * p.x + self.b * p.y + self.c, self.d * p.x + self.e * p.y + self.f)

    def polygon(self, shape: Box | Polygon) -> Polygon:
        corners = shape.polygon().points if isinstance(shape, Box) else shape.points
        return Polygon(tuple(self.point(p) for p in corners))

    def then(self, outer: Affine) -> Affine:
        """The map that applies this one first and `outer` to its result."""
        o = outer
        return Affine(
            o.a * self.a + o.b * self.d,
            o.a * self.b + o.b * self.e,
            o.a * self.c + o.b * self.f + o.c,
            o.d * self.a + o.e * self.d,
            o.d * self.b + o.e * self.e,
            o.d * self.c + o.e * self.f + o.f,
        )

    def inverse(self) -> Affine:
        k = 1.0 / self.determinant
        a, b, d, e = self.e * k, -self.b * k, -self.d * k, self.a * k
        return Affine(a, b, -(a * self.c + b * self.f), d, e, -(d * self.c + e * self.f))


@dataclass(frozen=True, slots=True)
class Frame:
    """The coordinate frame in which a model writes about an image of `width` x `height` pixels.

    `extent` is the number that stands for the full width and height; `limit` the largest number
    that may be written. Formulas: coordinates reference, "Conversions": clamp(round(x * extent /
    width), 0, limit).
    """

    kind: FrameKind
    width: int
    height: int
    extent: tuple[float, float]
    limit: tuple[float, float]

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(
                f"Frame needs a positive image size, got {self.width} x {self.height}."
            )

    @classmethod
    def pixels(cls, width: int, height: int) -> Frame:
        """Pixels of the image itself."""
        return cls("pixels", width, height, (width, height), (width, height))

    @classmethod
    def thousand(cls, width: int, height: int) -> Frame:
        """0 to 1000 along each side (Qwen2-VL, Qwen3-VL, InternVL)."""
        return cls("thousand", width, height, (1000, 1000), (1000, 1000))

    @classmethod
    def resized(cls, width: int, height: int, *, resized_width: int, resized_height: int) -> Frame:
        """Pixels of the picture as the model's processor resized it (Qwen2.5-VL)."""
        limit = (resized_width - 1, resized_height - 1)
        return cls("resized", width, height, (resized_width, resized_height), limit)

    @classmethod
    def unit(cls, width: int, height: int) -> Frame:
        """Fractions of each side."""
        return cls("unit", width, height, (1.0, 1.0), (1.0, 1.0))

    @classmethod
    def percent(cls, width: int, height: int) -> Frame:
        """Hundredths of each side, with fractions."""
        return cls("percent", width, height, (100.0, 100.0), (100.0, 100.0))

    @property
    def is_integral(self) -> bool:
        """Whether the model writes whole numbers in this frame."""
        return self.kind in ("pixels", "thousand", "resized")

    def encode(self, values: Sequence[float]) -> tuple[float, ...]:
        """Pixels (x, y, x, y, ...) to the frame's numbers, rounded half to even where it is
        integral.
        """
        sides = (self.width, self.height)
        out = []
        for i, v in enumerate(values):
            axis = i % 2
            scaled = v * self.extent[axis] / sides[axis]
            if self.is_integral:
                scaled = round(scaled)
            out.append(min(max(scaled, 0), self.limit[axis]))
        return tuple(out)

    def decode(self, values: Sequence[float]) -> tuple[float, ...]:
        """The frame's numbers (x, y, x, y, ...) to pixels; values beyond the frame are not
        clamped.
        """
        sides = (self.width, self.height)
        return tuple(v * sides[i % 2] / self.extent[i % 2] for i, v in enumerate(values))

    def encode_box(self, box: Box) -> tuple[float, float, float, float]:
        x0, y0, x1, y1 = self.encode(box.as_tuple())
        return (x0, y0, x1, y1)

    def decode_box(self, values: Sequence[float]) -> Box:
        """Raises ValueError where the numbers are no box (wrong order, zero area, not finite)."""
        if len(values) != 4:
            raise ValueError(f"A box needs 4 numbers, got {len(values)}.")
        return Box(*self.decode(values))


def iou(a: Box, b: Box) -> float:
    """Area of the intersection over area of the union, in 0..1."""
    common = a.intersection(b)
    shared = common.area if common else 0.0
    return shared / (a.area + b.area - shared)


def box_around(boxes: Sequence[Box]) -> Box:
    """The smallest box that holds all; ValueError where there is none."""
    return Box(
        min(b.x0 for b in boxes),
        min(b.y0 for b in boxes),
        max(b.x1 for b in boxes),
        max(b.y1 for b in boxes),
    )


def union_area(boxes: Sequence[Box]) -> float:
    """Exact area covered by at least one box, by coordinate compression: O(n^3), meant for tens of
    boxes.
    """
    xs = sorted({x for b in boxes for x in (b.x0, b.x1)})
    ys = sorted({y for b in boxes for y in (b.y0, b.y1)})
    total = 0.0
    for x0, x1 in pairwise(xs):
        for y0, y1 in pairwise(ys):
            if any(b.x0 <= x0 and b.x1 >= x1 and b.y0 <= y0 and b.y1 >= y1 for b in boxes):
                total += (x1 - x0) * (y1 - y0)
    return total


def rows_of(boxes: Sequence[Box]) -> list[list[Box]]:
    """Rows from the top, each from the left; boxes of one row overlap in height by half."""
    rows: list[list[Box]] = []
    for box in sorted(boxes, key=lambda b: b.y0):
        for row in rows:
            common = min(row[0].y1, box.y1) - max(row[0].y0, box.y0)
            if common > 0.5 * min(row[0].height, box.height):
                row.append(box)
                break
        else:
            rows.append([box])
    return [sorted(row, key=lambda b: b.x0) for row in rows]
