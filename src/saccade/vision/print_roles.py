"""What print in charts is for: ticks, titles, names of axes and in legends.

Invariant: a role follows from where print stands beside plots that were seen, or, where there is no
frame, from a column of numbers and the row that begins at its foot.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from saccade.geometry import Box, box_around
from saccade.vision.part import Part, holds

__all__ = ["TextRole", "is_number", "text_roles"]

TextRole = Literal["title", "axis", "tick", "legend", "text"]


class _Row(NamedTuple):
    """Ticks along one side of a plot."""

    members: list[int]
    box: Box


def text_roles(lines: Sequence[tuple[str, Box]], parts: Sequence[Part]) -> list[TextRole]:
    """What each line of print is for, by where it stands: ticks beside a plot, its title above it,
    names in a legend. `text` where that is not plain.
    """
    roles: list[TextRole] = ["text"] * len(lines)
    boxes = [box for _, box in lines]
    legends = [p.box.expand(2) for p in parts if p.kind == "legend"]
    for n, box in enumerate(boxes):
        if any(holds(legend, box) for legend in legends):
            roles[n] = "legend"
    free = [n for n in range(len(lines)) if roles[n] == "text"]
    pies = _pie_boxes(parts)
    frames = [p.box for p in parts if p.kind == "plot" and p.box not in pies]
    bodies = list(frames)
    for frame in frames:
        for n in _ticks_of_frame(frame, boxes, free):
            roles[n] = "tick"
    free = [n for n in free if roles[n] == "text"]
    for body, members in _bodies_by_ticks(lines, free):
        if not any(body.intersection(frame) for frame in [*frames, *pies]):
            bodies.append(body)
            for n in members:
                roles[n] = "tick"
    for body in bodies:
        _take_title(body, boxes, roles, above=body.y0)
    for pie in pies:
        # names of wedges stand at a tenth of the radius outside of it
        _take_title(pie, boxes, roles, above=pie.y0 - 0.09 * pie.height)
    _name_axes(lines, bodies, roles)
    return roles


def _pie_boxes(parts: Sequence[Part]) -> list[Box]:
    wedges = [p for p in parts if p.kind == "wedge"]
    plots = [p.box for p in parts if p.kind == "plot"]
    return [
        plot
        for plot in plots
        if any(holds(plot.expand(3), w.box) for w in wedges)
        and 0.97 < plot.width / plot.height < 1.03
        and not any(holds(plot, p.box) for p in parts if p.kind in ("bar", "line"))
    ]


TICK_GAP = 1.7
"""Heights of print: the most that lies between a plot and the print at its ticks."""


def _ticks_of_frame(frame: Box, boxes: Sequence[Box], free: Sequence[int]) -> list[int]:
    """Print on the first level under a frame, and right beside it."""
    under, beside = [], []
    for n in free:
        box = boxes[n]
        x, y = box.center.x, box.center.y
        is_upright = box.height <= 1.6 * box.width
        size = box.height if is_upright else box.width
        if (
            frame.x0 - 0.4 * size <= x <= frame.x1 + 0.4 * size
            and y > frame.y1
            and box.y0 - frame.y1 <= TICK_GAP * size
        ):
            under.append(n)
        gaps = (frame.x0 - box.x1, box.x0 - frame.x1)
        if (
            is_upright
            and frame.y0 - 0.6 * size <= y <= frame.y1 + 0.6 * size
            and any(-0.6 * size <= gap <= TICK_GAP * size for gap in gaps)
        ):
            beside.append(n)
    top = min((boxes[n].y0 for n in under), default=0.0)
    first = [n for n in under if boxes[n].y0 - top <= 0.5 * min(boxes[n].height, boxes[n].width)]
    return [*first, *beside]


def _bodies_by_ticks(
    lines: Sequence[tuple[str, Box]], free: Sequence[int]
) -> Iterator[tuple[Box, list[int]]]:
    """Plots without frames: a column of numbers, and a row of ticks that begins at its foot."""
    columns = _columns_of_numbers(lines, free)
    for column in columns:
        height = float(np.median([lines[n][1].height for n in column.members]))
        pitch = (column.box.height - height) / max(1, len(column.members) - 1)
        rivals = [
            c.box.x0
            for c in columns
            if c.box.x0 > column.box.x1
            and min(c.box.y1, column.box.y1) > max(c.box.y0, column.box.y0)
        ]
        row = [
            n
            for n in free
            if n not in column.members
            and column.box.x1 - height < lines[n][1].center.x < min(rivals, default=math.inf)
            and lines[n][1].x1 > column.box.x1  # else a number of the column that is read otherwise
            and -0.7 * height < lines[n][1].y0 - column.box.y1 + 0.5 * height < pitch + height
        ]
        level = _level(lines, row)
        if len(level) >= 2:
            right = max(lines[n][1].x1 for n in level)
            foot = min(lines[n][1].y0 for n in level)
            top = column.box.y0 - 0.5 * pitch
            if right > column.box.x1 + 10 and foot > top:
                body = Box(column.box.x1, max(0.0, column.box.y0), right, foot)
                yield body, [*column.members, *level]


def _columns_of_numbers(lines: Sequence[tuple[str, Box]], free: Sequence[int]) -> list[_Row]:
    found: list[list[int]] = []
    for n in sorted(free, key=lambda n: lines[n][1].y0):
        text, box = lines[n]
        if not is_number(text):
            continue
        for column in found:
            last = lines[column[-1]][1]
            if abs(last.x1 - box.x1) <= 0.5 * box.height and box.y0 > last.center.y:
                if len(column) > 1:
                    pitch = last.center.y - lines[column[-2]][1].center.y
                    if abs(box.center.y - last.center.y - pitch) > 0.3 * pitch:
                        continue
                column.append(n)
                break
        else:
            found.append([n])
    return [_Row(c, box_around([lines[n][1] for n in c])) for c in found if len(c) >= 3]


def _level(lines: Sequence[tuple[str, Box]], row: Sequence[int]) -> list[int]:
    """Of print under a plot, what stands highest, and level with that."""
    if not row:
        return []
    first = min(row, key=lambda n: lines[n][1].center.y)
    at = lines[first][1]
    return [n for n in row if abs(lines[n][1].center.y - at.center.y) <= 0.45 * at.height]


def is_number(text: str) -> bool:
    """Whether it is digits, for the most part."""
    bare = text.strip(" -–—−_.,%$€")
    return bool(bare) and sum(c.isdigit() for c in bare) >= 0.6 * len(bare)


def _name_axes(
    lines: Sequence[tuple[str, Box]], bodies: Sequence[Box], roles: list[TextRole]
) -> None:
    """Turned print left of a plot, and print in the middle under its ticks."""
    for n, (_, box) in enumerate(lines):
        if roles[n] != "text":
            continue
        for body in bodies:
            middle = abs(box.center.y - body.center.y) < 0.3 * body.height
            turned = box.height > 1.3 * box.width and box.x1 < body.x0 and middle
            left = turned and body.x0 - box.x1 < 8 * box.width
            ticks = [
                lines[m][1]
                for m in range(len(lines))
                if roles[m] == "tick"
                and lines[m][1].y0 > body.y1 - 0.6 * lines[m][1].height
                and body.x0 - 20 < lines[m][1].center.x < body.x1 + 20
            ]
            foot = min((t.y1 for t in ticks), default=body.y1)
            centred = abs(box.center.x - body.center.x) < max(0.08 * body.width, 1.5 * box.height)
            under = centred and -0.6 * box.height < box.y0 - foot < 1.2 * box.height
            if left or under:
                roles[n] = "axis"


def _take_title(body: Box, boxes: Sequence[Box], roles: list[TextRole], *, above: float) -> None:
    """The print in the middle right above a plot."""
    fitting = [
        n
        for n, box in enumerate(boxes)
        if roles[n] in ("text", "title")
        and abs(box.center.x - body.center.x) < max(0.12 * body.width, 1.5 * box.height)
        and box.width > box.height
        and box.center.y < above
        and above - box.y1 < max(3.0 * box.height, 0.25 * body.height)
    ]
    if fitting:
        roles[max(fitting, key=lambda n: boxes[n].y1)] = "title"
