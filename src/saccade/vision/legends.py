"""Legends: equal swatches above or beside each other with print on their right.

Invariant: one swatch alone needs a frame around it and its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade.geometry import Box, iou
from saccade.vision.part import Part
from saccade.vision.scene import MOST_AREAS, Scene

__all__ = ["find_legends"]


class _Swatch(NamedTuple):
    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def middle(self) -> float:
        return (self.y0 + self.y1) / 2


LONGEST_NAME = 14
"""Widths of a swatch that a name beside it may be long."""


def find_legends(scene: Scene) -> list[Part]:
    """Columns of equal swatches with print on their right, and the frame around them if any."""
    found: list[Part] = []
    swatches = _swatches(scene)
    groups = [*_swatch_columns(swatches), *_swatch_rows(swatches)]
    for column in sorted(groups, key=lambda c: -len(c)):
        part = _framed(scene, column) or (_unframed(scene, column) if len(column) > 1 else None)
        if part is not None and not any(iou(part.box, other.box) > 0.1 for other in found):
            found.append(part)
    return found


def _swatches(scene: Scene) -> list[_Swatch]:
    import cv2

    _, _, stats, _ = cv2.connectedComponentsWithStats(scene.drawn.astype(np.uint8), connectivity=8)
    found = [
        _Swatch(int(x), int(y), int(x + w), int(y + h))
        for x, y, w, h, count in stats[1:]
        if 9 <= w <= 90 and 2 <= h <= 40 and 1.5 <= w / h <= 25 and count >= 0.85 * w * h
    ]
    return sorted(found, key=lambda s: s.y0)[:MOST_AREAS]


def _swatch_rows(swatches: Sequence[_Swatch]) -> list[list[_Swatch]]:
    """Equal swatches side by side, with room for names between them."""
    rows: list[list[_Swatch]] = []
    for swatch in sorted(swatches, key=lambda s: s.x0):
        for row in rows:
            last = row[-1]
            gap = swatch.x0 - last.x1
            is_next = (
                abs(swatch.y0 - last.y0) <= 2
                and abs(swatch.y1 - last.y1) <= 2
                and abs(swatch.width - last.width) <= 2
                and 0.8 * last.width <= gap <= LONGEST_NAME * last.width
            )
            if is_next:
                row.append(swatch)
                break
        else:
            rows.append([swatch])
    return [row for row in rows if len(row) > 1]


def _swatch_columns(swatches: Sequence[_Swatch]) -> list[list[_Swatch]]:
    """Equal swatches above each other, one alone included."""
    columns: list[list[_Swatch]] = []
    for swatch in swatches:
        for column in columns:
            last = column[-1]
            pitch = swatch.middle - last.middle
            is_next = (
                abs(swatch.x0 - last.x0) <= 2
                and abs(swatch.width - last.width) <= max(2, 0.1 * last.width)
                and 0.3 * last.width <= pitch <= 1.6 * last.width
            )
            if is_next:
                column.append(swatch)
                break
        else:
            columns.append([swatch])
    return columns


def _framed(scene: Scene, column: Sequence[_Swatch]) -> Part | None:
    """A legend whose frame was seen on all four sides, close around swatches and names."""
    width = column[0].width
    drawn = scene.faint
    # taller than a letter: in the height of a swatch alone, an l is a line
    half = round(0.33 * width)
    top, bottom = round(column[0].middle) - half, round(column[-1].middle) + half
    if top < 0 or bottom > len(drawn):
        return None
    x0, x1 = column[0].x0, column[-1].x1
    left = _first_line(drawn[top:bottom, max(0, x0 - width) : x0][:, ::-1].mean(axis=0))
    room = drawn[top:bottom, x1 : x1 + LONGEST_NAME * width].mean(axis=0)
    right = _first_line(room, least=max(3, width // 2))
    if left is None or right is None:
        return None
    columns = slice(x0 - left, x1 + right)
    reach = 2 * width
    up = _first_line(drawn[max(0, top - reach) : top, columns][::-1].mean(axis=1), least=0)
    down = _first_line(drawn[bottom : bottom + reach, columns].mean(axis=1), least=0)
    if up is None or down is None or not _is_named(scene, column, x1 + right - 2):
        return None
    box = Box(x0 - left - 1, top - up - 1, x1 + right + 1, bottom + down + 1)
    sides = (drawn[top - up : bottom + down, x] for x in (x0 - left - 1, x1 + right))
    if min(side.mean() for side in sides) < 0.75:  # corners are round
        return None
    return _legend(box, 0.95 if len(column) > 1 else 0.8)


def _first_line(shares: NDArray[np.float64], *, least: int = 1) -> int | None:
    """Steps to the first strip that is nearly all drawn."""
    full = np.flatnonzero(shares[least:] > 0.88)
    return int(full[0]) + least if len(full) else None


def _is_named(scene: Scene, column: Sequence[_Swatch], limit: int) -> bool:
    """Whether print stands on the right of each swatch."""
    for swatch in column:
        rows, columns = _beside(swatch, limit)
        if not 0.04 < scene.drawn[rows, columns].mean() < 0.75:
            return False
    return True


def _beside(swatch: _Swatch, limit: int) -> tuple[slice, slice]:
    half = 0.3 * swatch.width
    rows = slice(max(0, round(swatch.middle - half)), round(swatch.middle + half) + 1)
    return rows, slice(swatch.x1 + 2, max(swatch.x1 + 3, min(limit, swatch.x1 + 2 * swatch.width)))


def _unframed(scene: Scene, column: Sequence[_Swatch]) -> Part | None:
    """The swatches with their names, which end where a wide gap follows."""
    width = column[0].width
    if not _is_named(scene, column, scene.drawn.shape[1]):
        return None
    ends = [_end_of_name(scene, swatch) for swatch in column]
    known = [end for end in ends if end is not None]
    if len(known) < len(ends):
        return None
    half = 0.3 * width
    box = Box(column[0].x0, column[0].middle - half, max(known), column[-1].middle + half)
    inside = box.clip(scene.drawn.shape[1], scene.drawn.shape[0])
    return None if inside is None else _legend(inside, 0.6)


def _end_of_name(scene: Scene, swatch: _Swatch) -> int | None:
    """Where the print on the right of a swatch ends, before a wide gap."""
    rows, _ = _beside(swatch, scene.drawn.shape[1])
    start, width = swatch.x1 + 2, swatch.width
    strip = scene.drawn[rows, start : swatch.x1 + LONGEST_NAME * width].any(axis=0)
    inked = np.flatnonzero(strip)
    gaps = np.flatnonzero(np.diff(inked, prepend=0) > 0.7 * width)
    if len(gaps) and gaps[0] == 0:
        return None  # nothing close by
    last = int(inked[gaps[0] - 1] if len(gaps) else inked[-1])
    return None if last >= LONGEST_NAME * width - 5 else start + last + 1


def _legend(box: Box, score: float) -> Part:
    return Part("legend", box, box.center, None, score, box.area, place=box.x0)
