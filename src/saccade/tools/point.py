"""point: a place on each thing in an image that a description means.

Invariant: a point lies on its thing, not at the centre of its box where that is beside it; where
nothing is found that is said and no point is made up.
"""

from __future__ import annotations

from typing import Annotated

from saccade.backends.kinds import Pointer
from saccade.images import ImageView
from saccade.tools.spec import tool
from saccade.types import PointFound

__all__ = ["point"]

MOST_POINTS = 10
"""In one answer."""


@tool(aliases=("Point",))
def point(
    image: ImageView,
    description: Annotated[str, "what to point at, such as 'tallest bar' or 'title'"],
    *,
    pointer: Pointer,
) -> list[ImageView | PointFound | str]:
    """Point at things by description, with a label and a score for each.

    The surest first. The picture has the points marked. Raises ToolError for words that the pointer
    has no idea of.
    """
    found = pointer.point(image.pixels, description)
    if not found:
        return [f"Nothing was found for {description[:60]!r}."]
    told = [PointFound(image.ref, p.point, p.label, p.score) for p in found[:MOST_POINTS]]
    more = len(found) - len(told)
    rest = [f"{more} more were left out: describe it closer, or crop a region."] if more else []
    return [*told, *rest, image.mark(points=[t.point for t in told])]
