"""segment_around_point: the region around a point, refined by points that belong to it or do not.

Invariant: the region holds the point and every one of `include`, and none of `exclude`; where no
such region is plain there is no mask, and that is said.
"""

from __future__ import annotations

from typing import Annotated

from saccade.backends.kinds import Segmenter
from saccade.errors import ToolError
from saccade.geometry import Point
from saccade.images import ImageView
from saccade.tools.segment import check_on, shown
from saccade.tools.spec import tool
from saccade.types import MaskFound

__all__ = ["segment_around_point"]


@tool(aliases=("SegmentRegionAroundPoint",))
def segment_around_point(
    image: ImageView,
    point: Annotated[Point, "a point on the region"],
    include: Annotated[list[Point] | None, "more points that must belong to it"] = None,
    exclude: Annotated[list[Point] | None, "points that must not belong to it"] = None,
    *,
    segmenter: Segmenter,
) -> list[ImageView | MaskFound | str]:
    """Mark the region around a point, and tell its area; refine it by points in and out of it.

    Call it again with `include` where the region was too small, with `exclude` where it was too
    large. Raises ToolError for points outside the image, or that are to be both in and out.
    """
    inside, outside = [point, *(include or ())], exclude or []
    check_on(image, [*inside, *outside])
    for p in outside:
        if p in inside:
            raise ToolError(
                f"The point ({p.x:g}, {p.y:g}) can't be both in the region and out of it; "
                "give it once."
            )
    found = segmenter.segment(image.pixels, points=inside, outside=outside)
    return shown(image, found, "No plain region that fits these points was found.")
