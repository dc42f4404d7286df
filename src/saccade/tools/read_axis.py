"""read_axis: from a place in a chart to its values, and from values to their place.

Invariant: a value is told only where three ticks or more agree on the scale, with how much one
pixel is; no value is made up for an axis without numbers, and one that was not read is named.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

from saccade.backends.kinds import Reader
from saccade.errors import ToolError
from saccade.geometry import Point
from saccade.images import ImageView
from saccade.tools.spec import tool
from saccade.types import PointFound
from saccade.vision.axes import Scale, find_scales
from saccade.vision.plots import find_plots, scales_at

__all__ = ["read_axis"]


@tool
def read_axis(
    image: ImageView,
    point: Annotated[Point, "a place in the plot, such as the tip of a bar"],
    x: Annotated[float | None, "a value on the horizontal axis, to find its place"] = None,
    y: Annotated[float | None, "a value on the vertical axis, to find its place"] = None,
    *,
    reader: Reader,
) -> list[ImageView | PointFound | str]:
    """Read the values of a place in a chart from its axes, or find the place of values.

    The ticks' numbers give the scale. With x or y, the place of that value in the plot at the
    point, as far along the other axis as the point is. The picture has the place's lines drawn in.
    """
    lines = [(line.text, line.box) for line in reader.read(image.pixels)]
    picture = image.pixels
    scales = scales_at(find_scales(picture, lines), find_plots(picture, lines), point)
    if not scales:
        raise ToolError(
            f"No axis with three numbers or more was found beside ({point.x:g}, {point.y:g}); "
            "choose a place inside a plot, or zoom in so that its numbers can be read."
        )
    by_side: dict[str, Scale] = {}
    for scale in scales:
        by_side.setdefault(scale.side, scale)  # of two the left one
    if x is None and y is None:
        return [_values(scales, point) + _unread(by_side), _ruled(image, scales, point)]
    place = point
    for side, value in (("x", x), ("y", y)):
        if value is None:
            continue
        if side not in by_side:
            raise ToolError(f"{side} = {value:.12g} has no place here.{_unread(by_side)}")
        place = _moved(place, by_side[side], value, image)
    asked = ", ".join(f"{s} = {v:.12g}" for s, v in (("x", x), ("y", y)) if v is not None)
    return [PointFound(image.ref, place, asked), _ruled(image, scales, place)]


def _values(scales: Sequence[Scale], point: Point) -> str:
    told = []
    several = sum(s.side == "y" for s in scales) > 1
    for scale in scales:
        name: str = scale.side
        if several and name == "y":
            name = "y of the left axis" if scale.box.center.x < point.x else "y of the right axis"
        at = point.x if scale.side == "x" else point.y
        step = scale.step_at(at)
        low, high = _apart(*sorted((scale.ticks[0][1], scale.ticks[-1][1])))
        kind = "logarithmic ticks" if scale.is_log else "ticks"
        told.append(
            f"{name} = {_rounded(scale.value_at(at), step)} (one pixel is {step:.2g}; "
            f"{len(scale.ticks)} {kind} from {low} to {high})"
        )
    return "; ".join(told) + "."


def _unread(by_side: Mapping[str, Scale]) -> str:
    """Of the axes that were not read, a sentence that says so: they may be there all the same."""
    unread = [side for side in ("x", "y") if side not in by_side]
    if not unread:
        return ""
    return (
        f" The {unread[0]} axis was not read: it has fewer than three numbers that agree, or "
        "names, dates or powers such as 10^3."
    )


def _apart(low: float, high: float) -> tuple[str, str]:
    """Both with as many digits as tell a hundredth of their distance."""
    digits = 6
    if low != high and max(abs(low), abs(high)) > 0:
        digits = max(6, math.ceil(math.log10(max(abs(low), abs(high)) / (high - low))) + 2)
    return f"{low:.{digits}g}", f"{high:.{digits}g}"


def _rounded(value: float, step: float) -> str:
    """To the digit in which a pixel shows."""
    digits = max(0, min(12, math.ceil(-math.log10(step)))) if step > 0 else 6
    return f"{value:.{digits}f}"


def _moved(point: Point, scale: Scale, value: float, image: ImageView) -> Point:
    try:
        at = scale.pixel_at(value)
    except ValueError as e:
        raise ToolError(f"{e} Give a value above zero.") from None
    size = image.width if scale.side == "x" else image.height
    if not 0 <= at <= size:
        low, high = _apart(*sorted((scale.value_at(0), scale.value_at(size))))
        raise ToolError(
            f"{scale.side} = {value:.12g} lies outside the image, whose {scale.side} axis goes "
            f"from {low} to {high}."
        )
    return Point(at, point.y) if scale.side == "x" else Point(point.x, at)


def _ruled(image: ImageView, scales: Sequence[Scale], point: Point) -> ImageView:
    """Lines from the place to the axes it is read on."""
    for scale in scales:
        middle = scale.box.center
        end = Point(middle.x, point.y) if scale.side == "y" else Point(point.x, middle.y)
        image = image.draw_line(point, end, width=1 + max(image.width, image.height) // 600)
    return image
