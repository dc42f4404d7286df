"""segment: which pixels belong to the thing in a box, or on points.

Invariant: the mask lies on the image that was named and covers no pixel that was not found to
belong to the thing; where nothing is plain there is no mask, and that is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from saccade.backends.kinds import Segmented, Segmenter
from saccade.errors import ToolError
from saccade.geometry import Box, Point
from saccade.images import ImageView
from saccade.tools.spec import tool
from saccade.types import MaskFound

__all__ = ["check_on", "segment", "shown"]


@tool(aliases=("SAM",))
def segment(
    image: ImageView,
    box: Annotated[Box | None, "box around the thing, as close as you can tell"] = None,
    points: Annotated[list[Point] | None, "or points that all lie on the thing"] = None,
    *,
    segmenter: Segmenter,
) -> list[ImageView | MaskFound | str]:
    """Mark exactly the pixels of one thing, in a box or on points, and tell its area.

    With both, the thing on the points as far as it lies inside the box. The picture has it laid
    over in colour. Raises ToolError with neither, or for places outside the image.
    """
    if box is None and not points:
        raise ToolError("segment needs a box around the thing or points on it; give one of them.")
    check_on(image, points or ())
    if box is not None:
        box = _inside(image, box, points or ())
    found = segmenter.segment(image.pixels, box=box, points=points or ())
    where = "fills the box" if not points else "lies on all of the points"
    return shown(image, found, f"No one thing that plainly {where} was found.")


def _inside(image: ImageView, box: Box, points: Sequence[Point]) -> Box:
    """The part of the box that is on the image, and holds the points."""
    inside = box.clip(image.width, image.height)
    numbers = ", ".join(f"{v:g}" for v in box.as_tuple())
    if inside is None:
        raise ToolError(
            f"The box ({numbers}) lies outside the image of {image.width} x {image.height} "
            "pixels; choose one inside it."
        )
    for p in points:
        if not (inside.x0 <= p.x <= inside.x1 and inside.y0 <= p.y <= inside.y1):
            raise ToolError(
                f"The point ({p.x:g}, {p.y:g}) lies outside the box ({numbers}): "
                "give points inside it, or leave the box out."
            )
    return inside


def check_on(image: ImageView, points: Sequence[Point]) -> None:
    """Raises ToolError, naming it, for a point outside the image."""
    for p in points:
        if not (0 <= p.x <= image.width and 0 <= p.y <= image.height):
            raise ToolError(
                f"The point ({p.x:g}, {p.y:g}) lies outside the image of "
                f"{image.width} x {image.height} pixels; choose one inside it."
            )


def shown(
    image: ImageView, found: Segmented | None, otherwise: str
) -> list[ImageView | MaskFound | str]:
    """A mask with its area and its picture, or the sentence for where there is none."""
    if found is None:
        return [f"{otherwise} Try another box or point, or look closer first."]
    area = found.mask.area
    share = area / (image.width * image.height)
    told = f"{area} pixels, {share:.2%} of the image."
    return [MaskFound(image.ref, found.mask, score=found.score), told, image.overlay(found.mask)]
