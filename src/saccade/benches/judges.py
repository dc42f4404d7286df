"""What tools look for in a figure, and how what they found is judged by what is there.

Invariant: a thing that is there and was not found counts, and so does one that was found where none
is. Every request is one that a model might make, with the words that it would use.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from saccade.backends import Detected, Detector, Pointer, Printed, Reader, Segmenter, all_made
from saccade.config import BackendChoice, BackendKind
from saccade.distances import edit_distance
from saccade.errors import ToolError
from saccade.geometry import Box, Mask, Point, box_around, iou
from saccade.images import root_view
from saccade.tools import Tool, tools_described
from saccade.vision.axes import find_scales
from saccade.vision.frames import find_frames
from saccade.vision.plots import find_plots, scales_at
from saccade.worlds.figures import (
    COLORS,
    AxisScale,
    FigureItem,
    PlotPart,
    PrintedText,
    Shape,
    ShapeKind,
)

__all__ = ["JUDGES", "Eyes", "Judge", "Seen"]

GOOD = 0.95
"""IoU from which a frame counts as found."""
HIT = 0.5
"""IoU from which a thing counts as detected."""
SEGMENTED = 0.9
AXIS_OFF, AXIS_WRONG = 0.01, 0.05
"""Of the range of an axis."""
HELD = 0.95
"""Of a plot, what a region must hold of it, and leave out of others."""
NEAR = 0.02
"""Of the diagonal: a point that is nearer to the middle of a thing points at it."""
LEAST_PX = 10.0
"""Size of print that must be read."""
MOST_SEGMENTED = 2
"""Of a kind, in one figure."""
LEAST_PIXELS = 60
"""Of a thing that must be segmented."""
NAMES: Mapping[ShapeKind, str] = {"bar": "bar", "wedge": "slice", "line": "line", "dot": "dot"}


class Seen(NamedTuple):
    """What was seen in one figure."""

    found: list[bool]
    """For each thing that is there."""
    quality: list[float]
    """For each, how well; for some judges only of those that were found."""
    wrong: int
    """Found where none is."""
    seconds: float | None
    """Of the processor, for a call; None where nothing was asked."""


Judge = Callable[[FigureItem], Seen]
NewJudge = Callable[["Eyes"], Judge]


class Eyes:
    """The back ends that judges ask, each made once."""

    def __init__(self, chosen: Mapping[BackendKind, BackendChoice] | None = None) -> None:
        self._chosen = chosen or {}

    def _made(self, kind: BackendKind) -> Any:
        return all_made([kind], self._chosen)[kind]  # with a reader of its own: its cost is too

    @cached_property
    def reader(self) -> Reader:
        return cast(Reader, self._made("reader"))

    @cached_property
    def detector(self) -> Detector:
        return cast(Detector, self._made("detector"))

    @cached_property
    def pointer(self) -> Pointer:
        return cast(Pointer, self._made("pointer"))

    @cached_property
    def segmenter(self) -> Segmenter:
        return cast(Segmenter, self._made("segmenter"))


class _Clock:
    """Processor seconds of the first call: what was seen in a picture is remembered for others."""

    def __init__(self) -> None:
        self.seconds: float | None = None
        self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.process_time()

    def __exit__(self, *_: object) -> None:
        if self.seconds is None:
            self.seconds = time.process_time() - self._began


def _seen(clock: _Clock, found: list[bool], quality: list[float], wrong: int) -> Seen:
    return Seen(found, quality, wrong, clock.seconds)


# --- frames and print -----------------------------------------------------------------------------


def _frames(_: Eyes) -> Judge:
    """Wrong: an IoU below one half with all that are there."""

    def judge(item: FigureItem) -> Seen:
        clock = _Clock()
        if not item.is_told:
            return _seen(clock, [], [], 0)
        with clock:
            frames = find_frames(item.image)
        there = [p.frame for p in item.plots if p.kind != "pie" and p.is_framed]
        best = [max((iou(t, f) for f in frames), default=0.0) for t in there]
        wrong = sum(max((iou(t, f) for t in there), default=0.0) < HIT for f in frames)
        return _seen(clock, [b >= GOOD for b in best], best, wrong)

    return judge


def _print(eyes: Eyes) -> Judge:
    """Found: each word of the print, where some line that touches the print has that word left: a
    word that was read serves one that is printed. Quality: one less the character error rate,
    which is the edit distance of what is read of each print to it, over their length; a line that
    is read is of the print that it covers most of. Wrong: lines that touch no print.
    """
    reader = eyes.reader

    def judge(item: FigureItem) -> Seen:
        clock = _Clock()
        if not item.is_told:
            return _seen(clock, [], [], 0)
        with clock:
            lines = reader.read(item.image)
        of_text = _lines_of(item.texts, lines)
        left = {id(line): Counter(_plain(line.text).split()) for line in lines}
        found: list[bool] = []
        quality: list[float] = []
        for text, own in zip(item.texts, of_text, strict=True):
            if text.size_px < LEAST_PX:
                continue
            near = [*own, *(o for o in lines if o.box.intersection(text.box) and o not in own)]
            found += [
                _taken(word, [left[id(line)] for line in near])
                for word in _plain(text.text).split()
            ]
            there = _plain(text.text)
            read = " ".join(_plain(line.text) for line in own)
            # for each character the same: their mean is over characters
            quality += [1 - edit_distance(there, read) / len(there)] * len(there)
        wrong = sum(not any(line.box.intersection(t.box) for t in item.texts) for line in lines)
        return _seen(clock, found, quality, wrong)

    return judge


def _lines_of(texts: Sequence[PrintedText], lines: Sequence[Printed]) -> list[list[Printed]]:
    """For each print the lines that were read of it, in reading order."""
    found: list[list[Printed]] = [[] for _ in texts]
    for line in lines:
        shares = [_common(line.box, t.box) / t.box.area for t in texts]
        if shares and max(shares) > 0:
            found[shares.index(max(shares))].append(line)
    return [sorted(own, key=lambda line: (line.box.x0, line.box.y0)) for own in found]


def _common(a: Box, b: Box) -> float:
    inside = a.intersection(b)
    return 0.0 if inside is None else inside.area


def _taken(word: str, of_lines: Sequence[Counter[str]]) -> bool:
    """Whether a line has the word left, which it then has once less."""
    for words in of_lines:
        if words[word]:
            words[word] -= 1
            return True
    return False


def _plain(text: str) -> str:
    return text.replace("−", "-")  # matplotlib prints another minus than people type


# --- plots ----------------------------------------------------------------------------------------


def _plots(way: str) -> NewJudge:
    """Asks `zoom_subplot` for each plot of a figure of several, by its title or its place. Found:
    the region holds all that the plot shows and nothing of others; quality: its IoU, 0 where
    nothing was cut, with the smallest box around all ink of the plot: its frame or marks, the
    numbers and names of its axes, its title, its legend; a heading of the whole figure is of none.
    """

    def ready(eyes: Eyes) -> Judge:
        [zoom] = tools_described(["zoom_subplot"])
        zoom = zoom.with_backends({"reader": eyes.reader})

        def judge(item: FigureItem) -> Seen:
            clock, found, quality, wrong = _Clock(), list[bool](), list[float](), 0
            plots = [p for p in item.plots if not p.is_inset]
            for plot in plots if len(plots) > 1 else []:
                place = f"row {plot.row + 1} column {plot.column + 1}"
                with clock:
                    region = _region(zoom, item.image, plot.title if way == "title" else place)
                is_right = region is not None and all(
                    _share(_marks(p), region) > HELD
                    if p is plot
                    else _share(_marks(p), region) < 1 - HELD
                    for p in plots
                )
                found.append(is_right)
                quality.append(0.0 if region is None else iou(region, plot.whole))
                wrong += region is not None and not is_right
            return _seen(clock, found, quality, wrong)

        return judge

    return ready


def _region(zoom: Tool, picture: Image.Image, where: str) -> Box | None:
    try:
        *_, view = zoom(root_view(picture), where=where)
    except ToolError:
        return None
    ((_, polygon),) = view.ref.to_roots()
    bounds: Box = polygon.bounds
    return bounds


def _marks(plot: PlotPart) -> Box:
    """What it shows, without the margins inside its frame."""
    return box_around([s.box for s in plot.shapes])


def _share(part: Box, whole: Box) -> float:
    return _common(part, whole) / part.area


# --- axes -----------------------------------------------------------------------------------------


def _axes(eyes: Eyes) -> Judge:
    """Reads five places of each axis with numbers. Found: off by less than 1% of the axis; quality:
    one less the error; wrong: off by more than 5%.
    """
    reader = eyes.reader

    def judge(item: FigureItem) -> Seen:
        clock, found, quality, wrong = _Clock(), list[bool](), list[float](), 0
        lines = [(line.text, line.box) for line in reader.read(item.image)]
        with clock:
            scales, plots = find_scales(item.image, lines), find_plots(item.image, lines)
        for plot in item.plots:
            for side, truth in (("x", plot.x_axis), ("y", plot.y_axis)):
                if truth is None:
                    continue
                for share in (0.1, 0.3, 0.5, 0.7, 0.9):
                    place = _between(plot.frame, truth, side, share)
                    at = place.x if side == "x" else place.y
                    read = [s for s in scales_at(scales, plots, place) if s.side == side]
                    value = read[0].value_at(at) if read else math.inf
                    off = abs(value - truth.value_at(at)) / truth.range
                    found.append(off <= AXIS_OFF)
                    quality.append(max(0.0, 1 - off))
                    wrong += bool(read) and off > AXIS_WRONG
        return _seen(clock, found, quality, wrong)

    return judge


def _between(frame: Box, axis: AxisScale, side: str, share: float) -> Point:
    """A place in a plot, at that share of an axis."""
    a, b = axis.pixels
    at = a + share * (b - a)
    return Point(at, frame.center.y) if side == "x" else Point(frame.center.x, at)


# --- detection ------------------------------------------------------------------------------------


def _detected(kind: ShapeKind) -> NewJudge:
    """Asks for each colour that things of the kind have, and for one that none has."""

    def ready(eyes: Eyes) -> Judge:
        detector = eyes.detector

        def judge(item: FigureItem) -> Seen:
            clock, found, quality, wrong = _Clock(), list[bool](), list[float](), 0
            shapes = _shapes(item, kind)
            colors = sorted({s.color for s in shapes})
            drawn = {s.color for p in item.plots for s in p.shapes}
            absent = [c for c in COLORS if c not in drawn]
            for color in [*colors, *absent[:1]]:
                there = [s.box for s in shapes if s.color == color]
                with clock:
                    seen = _asked(detector, item.image, f"{color} {NAMES[kind]}")
                best, more = _matched(there, [d.box for d in seen])
                found += [b >= HIT for b in best]
                quality += best
                wrong += more
            return _seen(clock, found, quality, wrong)

        return judge

    return ready


KINDS: Mapping[str, str] = {
    "bar": "bar", "wedge": "slice", "line": "line", "dot": "dot", "legend": "legend",
    "circle": "circle", "triangle": "triangle", "plot": "plot",
}  # fmt: skip
"""What may be claimed where nothing of it is, and the word that asks for it. Squares and rectangles
are left out: bars, cells and frames are some.
"""
_CALLED = {"dot": "circle", "wedge": "circle"}
"""What may be called so as well."""


def _absent(kind: str) -> NewJudge:
    """Asks each picture in which nothing of the kind is for it. Found: it is not claimed; wrong: it
    is, by whatever number of boxes. So precision is the share of pictures that are rightly told to
    hold nothing of it.
    """

    def ready(eyes: Eyes) -> Judge:
        detector = eyes.detector

        def judge(item: FigureItem) -> Seen:
            clock = _Clock()
            if kind in _kinds_in(item):
                return _seen(clock, [], [], 0)
            with clock:
                seen = _asked(detector, item.image, KINDS[kind])
            return _seen(clock, [not seen], [], int(bool(seen)))

        return judge

    return ready


def _kinds_in(item: FigureItem) -> set[str]:
    shapes = {s.kind for p in item.plots for s in p.shapes}
    called = {_CALLED[kind] for kind in shapes if kind in _CALLED}
    legends = {"legend" for p in item.plots if p.legend is not None}
    return {*shapes, *called, *legends, *item.also, *(["plot"] if item.plots else [])}


def _legends(eyes: Eyes) -> Judge:
    detector = eyes.detector

    def judge(item: FigureItem) -> Seen:
        clock = _Clock()
        with clock:
            seen = detector.detect(item.image, "legend")
        there = [p.legend for p in item.plots if p.legend is not None]
        best, wrong = _matched(there, [d.box for d in seen])
        return _seen(clock, [b >= HIT for b in best], best, wrong)

    return judge


def _asked(detector: Detector, picture: Image.Image, query: str) -> list[Detected]:
    try:
        return detector.detect(picture, query)
    except ToolError:  # refused is not found
        return []


def _matched(there: Sequence[Box], found: Sequence[Box]) -> tuple[list[float], int]:
    """For each thing its IoU with the box that is matched to it, and how many boxes hit nothing.

    The pairs of the best sum are matched (Kuhn 1955).
    """
    from scipy.optimize import linear_sum_assignment

    best = [0.0] * len(there)
    if not there or not found:
        return best, len(found)
    overlaps = np.array([[iou(t, f) for f in found] for t in there])
    for t, f in zip(*linear_sum_assignment(-overlaps), strict=True):
        best[t] = float(overlaps[t, f])
    return best, len(found) - sum(b >= HIT for b in best)


def _shapes(item: FigureItem, kind: ShapeKind) -> list[Shape]:
    return [s for p in item.plots for s in p.shapes if s.kind == kind]


# --- points ---------------------------------------------------------------------------------------


def _points(eyes: Eyes) -> Judge:
    """Asks for each bar, slice and dot that is the only one of its colour; found: within NEAR of
    its middle; quality: whether the point lies on it.
    """
    pointer = eyes.pointer

    def judge(item: FigureItem) -> Seen:
        clock, found, quality, wrong = _Clock(), list[bool](), list[float](), 0
        near = NEAR * float(np.hypot(*item.image.size))
        for kind in ("bar", "wedge", "dot"):
            shapes = _shapes(item, kind)
            colors = [s.color for s in shapes]
            for shape in shapes:
                if colors.count(shape.color) > 1:
                    continue
                with clock:
                    seen = pointer.point(item.image, f"{shape.color} {NAMES[kind]}")
                mask, middle = _mask(shape, item.image.size), _middle(shape)
                away = [np.hypot(p.point.x - middle.x, p.point.y - middle.y) for p in seen]
                found.append(bool(away) and min(away) <= near)
                quality.append(float(any(_is_on(mask, p.point) for p in seen)))
                wrong += len(seen) - any(_is_on(mask, p.point) for p in seen)
        return _seen(clock, found, quality, wrong)

    return judge


def _is_on(mask: NDArray[np.bool_], point: Point) -> bool:
    height, width = mask.shape
    x, y = int(point.x), int(point.y)
    return 0 <= x < width and 0 <= y < height and bool(mask[y, x])


def _middle(shape: Shape) -> Point:
    """Centre of its area (by its outline)."""
    x = np.array([p.x for p in shape.outline])
    y = np.array([p.y for p in shape.outline])
    cross = x * np.roll(y, -1) - np.roll(x, -1) * y
    area = cross.sum() / 2
    cx = ((x + np.roll(x, -1)) * cross).sum() / (6 * area)
    cy = ((y + np.roll(y, -1)) * cross).sum() / (6 * area)
    return Point(float(cx), float(cy))


# --- segmentation ---------------------------------------------------------------------------------


def _segmented(way: str) -> NewJudge:
    """Asks for each bar, slice and dot by its box, or by the point furthest from its edges."""

    def ready(eyes: Eyes) -> Judge:
        segmenter = eyes.segmenter

        def judge(item: FigureItem) -> Seen:
            clock, quality = _Clock(), list[float]()
            for kind in ("bar", "wedge", "dot"):
                for shape in _shapes(item, kind)[:MOST_SEGMENTED]:
                    mask = _mask(shape, item.image.size)
                    box = shape.box.clip(*item.image.size)
                    if mask.sum() < LEAST_PIXELS or box is None:
                        continue
                    with clock:
                        if way == "box":
                            seen = segmenter.segment(item.image, box=box)
                        else:
                            seen = segmenter.segment(item.image, points=[_innermost(mask)])
                    quality.append(0.0 if seen is None else _mask_iou(mask, seen.mask))
            return _seen(clock, [q >= SEGMENTED for q in quality], quality, 0)

        return judge

    return ready


def _mask(shape: Shape, size: tuple[int, int]) -> NDArray[np.bool_]:
    drawn = Image.new("1", size)
    # ImageDraw counts from the middles of pixels
    ImageDraw.Draw(drawn).polygon([(p.x - 0.5, p.y - 0.5) for p in shape.outline], fill=1)
    return np.asarray(drawn)


def _innermost(mask: NDArray[np.bool_]) -> Point:
    depth = ndimage.distance_transform_edt(mask)
    y, x = np.unravel_index(int(np.argmax(depth)), depth.shape)
    return Point(float(x) + 0.5, float(y) + 0.5)


def _mask_iou(there: NDArray[np.bool_], found: Mask) -> float:
    seen = found.array()
    return float((there & seen).sum() / (there | seen).sum())


JUDGES: Mapping[str, NewJudge] = {
    "frames": _frames,
    "print": _print,
    "axes": _axes,
    "plots-title": _plots("title"),
    "plots-place": _plots("place"),
    "bars": _detected("bar"),
    "slices": _detected("wedge"),
    "lines": _detected("line"),
    "dots": _detected("dot"),
    "legends": _legends,
    "points": _points,
    "segment-box": _segmented("box"),
    "segment-point": _segmented("point"),
    **{f"no-{word}": _absent(kind) for kind, word in KINDS.items()},
}
"""By what is looked for."""
