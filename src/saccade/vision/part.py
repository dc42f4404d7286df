"""One thing that was seen in a chart, and what is common to all finders of such things."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from saccade.geometry import Box, Point, iou
from saccade.vision.colors import RGB

__all__ = ["Part", "PartKind", "holds", "is_gray", "once", "same_color"]

PartKind = Literal[
    "bar", "wedge", "line", "dot", "circle", "square", "rectangle", "triangle", "legend", "plot"
]


class Part(NamedTuple):
    """One thing in a chart."""

    kind: PartKind
    box: Box
    point: Point
    """On it."""
    color: RGB | None
    score: float
    size: float = 0.0
    """Length of a bar, degrees of a wedge; otherwise pixels of its box."""
    group: int = 0
    """The plot that it stands in, by rows; parts of one group are compared and counted."""
    place: float = 0.0
    """Orders parts in a group: from the left; clockwise from the top in a pie."""
    rise: float = 0.0
    """Of a bar: how far above its base, or on its right, it ends; below zero where it hangs."""


def holds(outer: Box, inner: Box) -> bool:
    common = outer.intersection(inner)
    return common is not None and common.area > 0.8 * inner.area


def is_gray(color: RGB) -> bool:
    return max(color) - min(color) < 24


def once(parts: Sequence[Part], *, least: float) -> list[Part]:
    """Each thing once, where two colours of its edge both show it."""
    kept: list[Part] = []
    for part in parts:
        if not any(iou(part.box, other.box) > least for other in kept):
            kept.append(part)
    return kept


def same_color(a: RGB, b: RGB) -> bool:
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) <= 24
