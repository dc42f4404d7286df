"""Charts of the chart world as figures, with the place of everything in them: for whoever measures
what tools see.

Invariant: what is told is what was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from saccade.geometry import Box, Point, box_around, rows_of
from saccade.worlds.chart_data import ChartSpec, Mark
from saccade.worlds.charts import item
from saccade.worlds.drawing import ChartDrawing, DrawnAxis
from saccade.worlds.figures import (
    AxisScale,
    FigureItem,
    PlotKind,
    PlotPart,
    PrintedText,
    Role,
    Shape,
    ShapeKind,
)

__all__ = ["chart_figure"]

_KINDS: dict[str, PlotKind] = {
    "bar": "bars",
    "grouped": "bars",
    "stacked": "bars",
    "line": "lines",
    "scatter": "scatter",
    "pie": "pie",
}
_SHAPES: dict[PlotKind, ShapeKind] = {
    "bars": "bar",
    "lines": "dot",  # the path between them is gray
    "scatter": "dot",
    "pie": "wedge",
}
BESIDE_PX = 8
"""From an axis to its numbers."""


def chart_figure(index: int) -> FigureItem:
    """Chart `index` of the validation split."""
    chart = item("validation", index)
    spec, drawing = chart.spec, chart.drawing
    plots = list(_plots(spec, drawing))
    rows = rows_of([p.whole for p in plots])
    texts = [
        *(
            _text(spec.printed(m), box, "title" if m.place is None else "label")
            for m, box in drawing.labels.items()
        ),
        *(_text(text, box, "axis") for text, box in drawing.beside),
    ]
    # the path between the dots of a line is gray, and its place is not told
    also = frozenset({"line"} if any(p.kind == "lines" for p in plots) else ())
    shape = (len(rows), max(map(len, rows)))
    return FigureItem(drawing.image, *shape, tuple(plots), tuple(texts), also)


def _text(text: str, box: Box, role: Role) -> PrintedText:
    # capitals and digits are some seven tenths of a font's size
    return PrintedText(text, box, role, box.height / 0.72)


def _plots(spec: ChartSpec, drawing: ChartDrawing) -> Iterator[PlotPart]:
    is_panels = spec.chart == "panels"
    kind = _KINDS[spec.panel if is_panels else spec.chart]
    groups = [[p] for p in range(len(spec.values))] if is_panels else [range(len(spec.values))]
    axes = [next((a for a in drawing.axes if a.parts[0] == g[0]), None) for g in groups]
    wholes = [_whole(g, axis, drawing) for g, axis in zip(groups, axes, strict=True)]
    places = {id(box): (r, c) for r, row in enumerate(rows_of(wholes)) for c, box in enumerate(row)}
    for parts, axis, whole in zip(groups, axes, wholes, strict=True):
        row, column = places[id(whole)]
        marks = [m for m in drawing.marks if m.part in parts]
        yield PlotPart(
            kind=kind,
            frame=box_around([drawing.marks[m] for m in marks]),
            whole=whole,
            title=spec.titles[parts[0]] if is_panels else "",
            row=row,
            column=column,
            shapes=tuple(_shape(spec, drawing, m, _SHAPES[kind]) for m in marks),
            x_axis=None,
            y_axis=None if axis is None or not axis.has_numbers else _scale(axis),
            legend=None,
            is_framed=False,
        )


def _whole(parts: Sequence[int], axis: DrawnAxis | None, drawing: ChartDrawing) -> Box:
    """Marks, what is printed at them, and their axis with its numbers."""
    drawn = [*drawing.marks.items(), *drawing.labels.items()]
    return box_around([*(box for m, box in drawn if m.part in parts), *_axis(axis, drawing)])


def _axis(axis: DrawnAxis | None, drawing: ChartDrawing) -> list[Box]:
    """What an axis spans, and the numbers on its left."""
    if axis is None:
        return []
    area = axis.area.expand(BESIDE_PX)
    return [
        axis.area,
        *(
            box
            for _, box in drawing.beside
            if area.x0 <= box.x1 <= axis.area.x0 and area.y0 <= box.center.y <= area.y1
        ),
    ]


def _shape(spec: ChartSpec, drawing: ChartDrawing, mark: Mark, kind: ShapeKind) -> Shape:
    box = drawing.marks[mark]
    if kind == "dot":
        places = _arc(box.center, box.width / 2, 0, 360)
    elif kind == "wedge":
        disc = box_around(list(drawing.marks.values()))
        [values] = spec.values
        start, stop = (360 * sum(values[:n]) / sum(values) - 90 for n in _ends(mark))
        places = [disc.center, *_arc(disc.center, disc.width / 2, start, stop)]
    else:
        places = [Point(x, y) for x, y in _corners(box)]
    return Shape(kind, spec.color(mark), tuple(places))


def _ends(mark: Mark) -> tuple[int, int]:
    assert mark.place is not None
    return mark.place, mark.place + 1


def _arc(center: Point, radius: float, start: float, stop: float) -> list[Point]:
    """In degrees clockwise from the right, as pictures have it."""
    turns = np.radians(np.linspace(start, stop, 48))
    return [Point(center.x + radius * math.cos(t), center.y + radius * math.sin(t)) for t in turns]


def _corners(box: Box) -> list[tuple[float, float]]:
    return [(box.x0, box.y0), (box.x1, box.y0), (box.x1, box.y1), (box.x0, box.y1)]


def _scale(axis: DrawnAxis) -> AxisScale:
    top = (axis.base - axis.area.y0) / axis.unit
    return AxisScale((axis.base, axis.area.y0), (0.0, top))
