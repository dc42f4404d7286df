"""The frames of plots: rectangles of thin straight lines, as plotting libraries draw around axes.

Invariant: what is found is a rectangle whose four sides were seen; nothing is guessed from what is
inside. A frame inside another is told only where marks of ticks stand on its outside, since legends
and boxes of text have frames too; so is one that is filled with one colour, since bars are.

Left out on purpose: axes without lines around them, and tilted ones.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from saccade.geometry import Box, rows_of

__all__ = ["find_frames"]

Pixels = NDArray[np.int16]

SAME = 24
"""Channels may differ by this much along one line: what JPEG leaves of an even colour."""
APART = 36
"""A line differs from what is beside it by this much in one channel at least."""
THIN_PX = 5
"""Lines are thinner than this."""
LEAST_PX = 24
LEAST_SHARE = 0.08
"""Shortest side of a frame over the same side of the picture."""
MEET_PX = 4
"""Sides may miss each other at corners by this much."""
TICK_PX = 3
TICK_ENDS_PX = 9
"""From a frame outward: where the mark of a tick is, and where it is no more."""
SMOOTH_PX = 9
"""Along a line, in pictures that JPEG has blurred."""
AROUND_PX = 9
"""From a frame outward: where its ground is."""
FILLED = 0.92
"""Share of the inside of a bar that has its colour; a label may stand on the rest."""
NOISE = 0.04
"""Share of neighbours that differ by a little: below 0.03 in drawn pictures, above 0.05 in JPEG."""


class _Line(NamedTuple):
    at: float
    """Its middle, across."""
    start: int
    stop: int
    """Along, half open."""


def find_frames(image: Image.Image) -> list[Box]:
    """Frames by rows from the top, then from the left; their borders run along the middle of the
    lines.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.int16)
    smooth = SMOOTH_PX if _is_noisy(pixels) else 1
    found = _largest(_rectangles(*_sides(pixels, smooth=smooth)))
    kept = [
        box
        for box in found
        if _has_ticks(pixels, box)
        or not (_is_filled(pixels, box) or any(_holds(other, box) for other in found))
    ]
    return [box for row in rows_of(kept) for box in row]


# --- lines ----------------------------------------------------------------------------------------


def _is_noisy(pixels: Pixels) -> bool:
    if pixels.shape[1] < 2:
        return False
    step = _apart_by(pixels[:, 1:], pixels[:, :-1])
    return bool(((step > 0) & (step <= 8)).mean() > NOISE)


def _apart_by(a: Pixels, b: Pixels) -> Pixels:
    """The largest difference in any channel; numpy is slow along an axis of three."""
    step = np.abs(a - b)
    largest: Pixels = np.maximum(np.maximum(step[..., 0], step[..., 1]), step[..., 2])
    return largest


def _sides(pixels: Pixels, *, smooth: int = 1) -> tuple[list[_Line], list[_Line]]:
    """Lines across and down; `smooth` pixels along a line count by their median."""
    height, width = pixels.shape[:2]
    turned = pixels.transpose(1, 0, 2)
    across = ndimage.median_filter(pixels, (1, smooth, 1)) if smooth > 1 else pixels
    down = ndimage.median_filter(turned, (1, smooth, 1)) if smooth > 1 else turned
    return (
        _lines(across, least=max(LEAST_PX, int(LEAST_SHARE * width))),
        _lines(down, least=max(LEAST_PX, int(LEAST_SHARE * height))),
    )


def _lines(pixels: Pixels, *, least: int) -> list[_Line]:
    """Thin horizontal lines of one colour, at least that long."""
    beside = np.pad(pixels, ((THIN_PX, THIN_PX), (0, 0), (0, 0)), mode="edge")
    above = _apart_by(pixels, beside[: -2 * THIN_PX]) > APART
    below = _apart_by(pixels, beside[2 * THIN_PX :]) > APART
    goes_on = np.zeros(pixels.shape[:2], dtype=bool)
    goes_on[:, 1:] = _apart_by(pixels[:, 1:], pixels[:, :-1]) <= SAME
    marked = [np.cumsum(np.pad(side, ((0, 0), (1, 0))), axis=1) for side in (above, below)]
    rows: list[_Line] = []
    for y in np.flatnonzero((above | below).sum(axis=1) >= least):
        starts = np.flatnonzero(~goes_on[y])
        stops = np.append(starts[1:], pixels.shape[1])
        is_long = stops - starts >= least
        starts, stops = starts[is_long], stops[is_long]
        # marks may stand on one side of an axis, or on both in places
        share = np.minimum(*(m[y, stops] - m[y, starts] for m in marked)) / (stops - starts)
        rows += [
            _Line(float(y) + 0.5, int(a), int(b))
            for a, b in zip(starts[share > 0.3], stops[share > 0.3], strict=True)
        ]
    return _merged(rows)


def _merged(rows: list[_Line]) -> list[_Line]:
    """Rows of pixels that are one line: next to each other and about as long."""
    found: list[list[_Line]] = []
    for row in rows:
        for line in found:
            last = line[-1]
            same = abs(last.start - row.start) <= MEET_PX and abs(last.stop - row.stop) <= MEET_PX
            if row.at - last.at <= 1.0 and same:
                line.append(row)
                break
        else:
            found.append([row])
    return [
        _Line(
            (line[0].at + line[-1].at) / 2,
            min(r.start for r in line),
            max(r.stop for r in line),
        )
        for line in found
        if len(line) < THIN_PX
    ]


# --- rectangles -----------------------------------------------------------------------------------


def _rectangles(across: list[_Line], down: list[_Line]) -> list[Box]:
    found = []
    for n, left in enumerate(down):
        for right in down[n + 1 :]:
            if right.at - left.at < 2 * MEET_PX:
                continue
            sides = [
                line
                for line in across
                if line.start <= left.at + MEET_PX and line.stop >= right.at - MEET_PX
            ]
            tops = [s.at for s in sides if _meet(s, left, right, "start")]
            bottoms = [s.at for s in sides if _meet(s, left, right, "stop")]
            if tops and bottoms and max(bottoms) > min(tops):
                found.append(Box(left.at, min(tops), right.at, max(bottoms)))
    return found


def _meet(side: _Line, left: _Line, right: _Line, end: Literal["start", "stop"]) -> bool:
    """Whether two lines end at one across; where a tick is marked at a corner, they, and it, may go
    on as far as marks do.
    """
    over = [side.at - d.start if end == "start" else d.stop - side.at for d in (left, right)]
    if max(abs(o) for o in over) <= MEET_PX:
        return True
    beyond = (left.at - side.start, side.stop - right.at)
    return min(over) >= -MEET_PX and max(*over, *beyond) <= TICK_ENDS_PX


def _largest(boxes: list[Box]) -> list[Box]:
    """Of rectangles that share sides, as grid lines make them, the one around all."""
    found: list[Box] = []
    for box in sorted(boxes, key=lambda b: -b.area):
        if not any(_shares_a_side(box, other) for other in found):
            found.append(box)
    return found


def _shares_a_side(box: Box, other: Box) -> bool:
    inside = box.intersection(other)
    if inside is None or inside.area < 0.5 * box.area:
        return False
    pairs = zip(box.as_tuple(), other.as_tuple(), strict=True)
    return any(abs(a - b) <= MEET_PX for a, b in pairs)


def _holds(outer: Box, inner: Box) -> bool:
    inside = outer.intersection(inner)
    return outer is not inner and inside is not None and inside.area > 0.9 * inner.area


def _is_filled(pixels: Pixels, box: Box) -> bool:
    """Whether nearly all of its inside has one colour, and what is around it another."""
    x0, y0, x1, y1 = (round(v) for v in box.as_tuple())
    inside = pixels[y0 + THIN_PX : y1 - THIN_PX, x0 + THIN_PX : x1 - THIN_PX].reshape(-1, 3)
    beside = [
        pixels[y0:y1, max(0, x0 - AROUND_PX) : max(0, x0 - THIN_PX)],
        pixels[y0:y1, x1 + THIN_PX : x1 + AROUND_PX],
        pixels[max(0, y0 - AROUND_PX) : max(0, y0 - THIN_PX), x0:x1],
    ]
    around = np.concatenate([part.reshape(-1, 3) for part in beside])
    if not len(inside) or not len(around):
        return False
    color = np.median(inside, axis=0)
    if np.abs(np.median(around, axis=0) - color).max() <= APART:
        return False
    return float((np.abs(inside - color).max(axis=1) <= SAME).mean()) >= FILLED


def _has_ticks(pixels: Pixels, box: Box) -> bool:
    """Whether two short marks or more stand on the outside of its left or lower side."""
    x0, _, _, y1 = (round(v) for v in box.as_tuple())
    height, width = pixels.shape[:2]
    if y1 + TICK_ENDS_PX >= height or x0 - TICK_ENDS_PX < 0:
        return False
    columns = slice(max(0, x0 - 2), min(width, round(box.x1) + 2))
    rows = slice(max(0, round(box.y0) - 2), min(height, y1 + 2))
    below = (pixels[y1 + out, columns] for out in (TICK_PX, TICK_ENDS_PX))
    beside = (pixels[rows, x0 - out] for out in (TICK_PX, TICK_ENDS_PX))
    return max(_ending_marks(*below), _ending_marks(*beside)) >= 2


def _ending_marks(near: Pixels, far: Pixels) -> int:
    """Short pieces of a strip that differ from most of it, and do not go on in the strip beyond:
    grid lines do.
    """
    marks = _apart(near) & ~ndimage.binary_dilation(_apart(far), iterations=2)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], marks, [False]]).astype(np.int8)))
    return int(sum(b - a <= THIN_PX for a, b in zip(edges[::2], edges[1::2], strict=True)))


def _apart(strip: Pixels) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.abs(strip - np.median(strip, axis=0)).max(axis=1) > APART
    return found
