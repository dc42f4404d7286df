"""The parts of charts: bars, wedges, lines, dots, legends, plots, and plain shapes.

Invariant: a part was seen as a shape and in company that makes it one (a common base, a whole disc,
print beside it); a shape without that company is told as the shape that it is, or not at all.
Points lie on their part, not at the centre of its box. Scores fall with every doubt.

Left out on purpose: three dimensions, photographs of charts at an angle, and reading print.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from saccade.geometry import Box, Point, iou, rows_of
from saccade.vision.bars import find_bars
from saccade.vision.frames import find_frames
from saccade.vision.legends import find_legends
from saccade.vision.part import Part, holds
from saccade.vision.scene import SMALL_PX, Scene, seen
from saccade.vision.shapes import find_dots, find_shapes, specks
from saccade.vision.strokes import find_lines, find_strokes, thin_parts
from saccade.vision.wedges import find_wedges

__all__ = ["chart_parts"]

MOST_PIXELS = 1_300_000
"""Larger pictures are looked at smaller."""


def chart_parts(picture: Image.Image) -> list[Part]:
    """Everything that was found in an RGB picture, kind by kind."""
    factor = max(1, math.ceil(math.sqrt(picture.width * picture.height / MOST_PIXELS)))
    small = picture.reduce(factor) if factor > 1 else picture
    scene = seen(np.asarray(small.convert("RGB")))
    frames = find_frames(small)
    found = [_plot(f) for f in frames] if scene is None else list(_parts(scene, frames))
    whole = Box(0, 0, picture.width, picture.height)
    return [p for p in (_scaled(part, factor, whole) for part in found) if p is not None]


def _parts(scene: Scene, frames: list[Box]) -> Iterator[Part]:
    if not scene.drawn.any():  # plain shapes are all that is told of photographs
        yield from find_shapes(scene.areas)
        yield from (_plot(f) for f in frames)
        return
    legends = find_legends(scene)
    inside = [part.box.expand(1) for part in legends]
    frames = [f for f in frames if not any(iou(f, part.box) > 0.5 for part in legends)]
    areas = [a for a in scene.areas if not any(holds(box, a.box) for box in inside)]
    wedges, pies = find_wedges(scene, areas)
    rest = [
        a
        for a in areas
        if not any(holds(p.expand(2), a.box) for p in pies)
        and not any(iou(w.box, a.box) > 0.9 for w in wedges)
    ]
    strokes = list(find_strokes(scene, thin_parts(scene, [*inside, *pies])))
    dots = find_dots([*(a for a in rest if min(a.mask.shape) >= SMALL_PX), *specks(strokes)])
    rest = [a for a in rest if not any(iou(d.box, a.box) > 0.3 for d in dots)]
    bars = find_bars(scene, rest, frames)
    lines = find_lines(scene, strokes, frames)
    plots = [*(_plot(f) for f in frames), *(_plot(p) for p in pies)]
    order = [box for row in rows_of([p.box for p in plots]) for box in row]
    circles: list[Part] = [d._replace(kind="circle") for d in dots]
    others = [*find_shapes(rest), *circles, *legends, *plots]
    for part in (*wedges, *bars, *dots, *lines, *others):
        yield part._replace(group=_group(part, order))


def _group(part: Part, plots: Sequence[Box]) -> int:
    """The smallest plot around a part; parts outside of all keep the groups that they came with."""
    around = [n for n, plot in enumerate(plots) if holds(plot.expand(3), part.box)]
    if around:
        return min(around, key=lambda n: plots[n].area)
    return len(plots) + part.group


def _plot(frame: Box) -> Part:
    return Part("plot", frame, frame.center, None, 0.95, frame.area, place=frame.x0)


def _scaled(part: Part, factor: int, whole: Box) -> Part | None:
    box = Box(*(v * factor for v in part.box.as_tuple())).intersection(whole)
    if box is None:
        return None
    x = min(part.point.x * factor, whole.x1 - 0.5)
    y = min(part.point.y * factor, whole.y1 - 0.5)
    size = part.size if part.kind == "wedge" else part.size * factor
    rise = part.rise * factor
    return part._replace(box=box, point=Point(max(x, 0.0), max(y, 0.0)), size=size, rise=rise)
