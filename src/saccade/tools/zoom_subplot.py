"""zoom_subplot: one plot of a figure, with its labels.

Invariant: the region is cut around a frame that was seen; where the words name no plot, or several,
nothing is cut and the model is told which plots there are.

Left out on purpose: plots without a frame (pies, borderless axes), which a box reaches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated

from saccade.errors import ToolError
from saccade.geometry import Box
from saccade.images import ImageView
from saccade.tools.spec import tool
from saccade.vision.frames import find_frames, rows_of

__all__ = ["zoom_subplot"]

_ROWS = {"top": 0, "upper": 0, "first row": 0, "bottom": -1, "lower": -1, "last row": -1}
_COLUMNS = {"left": 0, "right": -1}
_MIDDLE = ("middle", "center", "centre")
_GRID = re.compile(r"row\s*(\d{1,2})\D+col(?:umn)?\s*(\d{1,2})")
_NUMBER = re.compile(r"(?:plot|subplot|panel|number|#)?\s*(\d{1,2})")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
BESIDE_PX = 4
"""Left of what belongs to the plot on the right."""


@tool(aliases=("ZoomInSubplot", "ZoomInSubfigure"))
def zoom_subplot(
    image: ImageView,
    where: Annotated[
        str | None,
        "which plot: 'top left', 'row 2 column 1', or its number in reading order",
    ] = None,
    box: Annotated[Box | None, "or a region in which the plot lies"] = None,
) -> ImageView:
    """Cut one plot with its labels out of a figure that has several.

    Frames of axes are found in the pixels; the region reaches to the plots beside it. With a box,
    the frame that covers most of it is meant, or the box itself where there is none. Raises
    ToolError where neither or both are given, or no plot or several fit.
    """
    if (where is None) == (box is None):
        raise ToolError("zoom_subplot takes either where or box; give one of them.")
    frames = find_frames(image.pixels)
    if box is not None:
        near = [f for f in frames if f.intersection(box) is not None]
        if not near:
            return image.crop(box)
        chosen = max(near, key=lambda f: _common(f, box) / f.area)
    else:
        assert where is not None
        chosen = _named(where, frames)
    return image.crop(_with_labels(chosen, frames, image))


def _common(a: Box, b: Box) -> float:
    inside = a.intersection(b)
    return 0.0 if inside is None else inside.area


def _named(where: str, frames: Sequence[Box]) -> Box:
    """The frame that the words name."""
    if not frames:
        raise ToolError("No framed plots were found in this image: give a box instead.")
    words = where.lower()
    rows = rows_of(frames)
    chosen: list[Box] = []
    if grid := _GRID.search(words):
        row, column = (int(g) - 1 for g in grid.groups())
        if 0 <= row < len(rows) and 0 <= column < len(rows[row]):
            chosen = [rows[row][column]]
    elif number := _NUMBER.fullmatch(words.strip()):
        place = int(number[1]) - 1
        chosen = [frames[place]] if 0 <= place < len(frames) else []
    elif ordinals := [n for n, word in enumerate(_ORDINALS) if word in words.split()]:
        chosen = [frames[ordinals[0]]] if ordinals[0] < len(frames) else []
    else:
        chosen = _by_side(words, rows)
    if len(chosen) == 1:
        return chosen[0]
    shape = " and ".join(str(len(row)) for row in rows)
    what = "No plot is" if not chosen else f"{len(chosen)} plots are"
    raise ToolError(
        f"{what} at {where[:60]!r}: there are {len(frames)} framed plots in {len(rows)} rows of "
        f"{shape}; say its number from 1 to {len(frames)}, or row and column."
    )


def _by_side(words: str, rows: Sequence[Sequence[Box]]) -> list[Box]:
    """Plots at the sides that are named; of sides that are not, all."""
    tokens = set(re.findall(r"[a-z]+", words))
    row = next((r for name, r in _ROWS.items() if name in tokens), None)
    column = next((c for name, c in _COLUMNS.items() if name in tokens), None)
    is_middle = bool(tokens & set(_MIDDLE))
    if row is None and column is None and not is_middle:
        return []
    if row is None and is_middle and len(rows) % 2:
        row = len(rows) // 2
    chosen = list(rows) if row is None else [rows[row]]
    if column is None and is_middle and all(len(r) % 2 for r in chosen):
        return [r[len(r) // 2] for r in chosen]
    return [box for r in chosen for box in (r if column is None else [r[column]])]


def _with_labels(frame: Box, frames: Sequence[Box], image: ImageView) -> Box:
    """The frame with what is printed around it: to the plot on its left, and halfway to those above
    and below; to the border of the image where there is none.
    """
    left, up, right, down = 0.0, 0.0, float(image.width), float(image.height)
    for other in frames:
        if other is frame:
            continue
        beside = min(other.y1, frame.y1) > max(other.y0, frame.y0)
        level = min(other.x1, frame.x1) > max(other.x0, frame.x0)
        if beside and other.x1 <= frame.x0:
            left = max(left, other.x1 + BESIDE_PX)
        if beside and other.x0 >= frame.x1:
            right = min(right, frame.x1 + BESIDE_PX)
        if level and other.y1 <= frame.y0:
            up = max(up, (other.y1 + frame.y0) / 2)
        if level and other.y0 >= frame.y1:
            down = min(down, (frame.y1 + other.y0) / 2)
    return Box(left, up, right, down)
