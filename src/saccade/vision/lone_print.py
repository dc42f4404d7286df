"""Places where ink may be a short number that stands alone.

Detectors of print were trained on words: a single digit, the zero of an axis most of all, is passed
over. What is found here is a place to read again, not yet print: ink as high as lines that were
read, as narrow as a few digits, with nothing beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saccade.geometry import Box, box_around

__all__ = ["lone_print"]

INK = 60
"""Levels of gray between ink and its ground, at least."""
GROUND_PX = 31
"""Side of the square whose median is the ground: strokes of print fill less than half of it."""
HEIGHT_PX = (7, 48)
WIDTH = (0.3, 0.85)
"""Of a digit that stands alone, over its height: strokes are narrower, rings and squares wider."""
OF_LINE = (0.5, 1.1)
"""Height of digits over that of some line that was read, whose box is higher than its ink."""
BESIDE = 0.45
"""Of the height: digits of one number are nearer to each other, and all other ink is farther."""
LEVEL = 0.2
"""Of the height: ends of the digits of one number differ by no more."""
MOST_DIGITS = 3
MOST_PLACES = 64
"""A texture has more, and none of its pieces is a number."""


def lone_print(picture: Image.Image, lines: Sequence[tuple[str, Box]]) -> list[Box]:
    """Places that touch none of the lines of print, from the left; the more is known of how high
    print is, the fewer.
    """
    pieces = _pieces(picture)
    read = [box for _, box in lines]
    digits = [
        p
        for p in pieces
        if HEIGHT_PX[0] <= p.height <= HEIGHT_PX[1]
        and p.width <= p.height
        and not any(p.intersection(box) for box in read)
    ]
    heights = [min(b.width, b.height) if len(text) > 2 else b.height for text, b in lines]
    places = [
        place
        for group in _numbers(digits)
        if _may_be_number(group, heights)
        and _stands_alone(place := box_around(group), group, pieces)
    ]
    return places if len(places) <= MOST_PLACES else []


def _pieces(picture: Image.Image) -> list[Box]:
    """Around each connected piece of ink, from the left."""
    import cv2

    gray = np.asarray(picture.convert("L"))
    ink: NDArray[Any] = cv2.absdiff(gray, cv2.medianBlur(gray, GROUND_PX)) > INK
    _, _, stats, _ = cv2.connectedComponentsWithStats(ink.astype(np.uint8), connectivity=8)
    found = (Box(*map(float, (x, y, x + w, y + h))) for x, y, w, h, _ in stats[1:])
    return sorted(found, key=lambda b: (b.x0, b.y0))


def _numbers(digits: Sequence[Box]) -> list[list[Box]]:
    """Digits that stand beside each other on one line."""
    groups: list[list[Box]] = []
    for digit in digits:
        for group in groups:
            last = group[-1]
            near = BESIDE * last.height
            level = LEVEL * last.height
            if (
                -2 < digit.x0 - last.x1 < near
                and abs(digit.y0 - last.y0) <= level
                and abs(digit.y1 - last.y1) <= level
            ):
                group.append(digit)
                break
        else:
            groups.append([digit])
    return groups


def _may_be_number(group: Sequence[Box], heights: Sequence[float]) -> bool:
    height = group[0].height
    if heights and not any(OF_LINE[0] <= height / h <= OF_LINE[1] for h in heights):
        return False
    if len(group) == 1:
        return WIDTH[0] <= group[0].width / height <= WIDTH[1]
    return len(group) <= MOST_DIGITS


def _stands_alone(place: Box, group: Sequence[Box], pieces: Sequence[Box]) -> bool:
    near = BESIDE * place.height
    around = Box(place.x0 - near, place.y0 + 1, place.x1 + near, place.y1 - 1)
    return not any(p.intersection(around) for p in pieces if p not in group)
