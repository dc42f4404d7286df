"""detect: the things in an image that words name, with their boxes.

Invariant: every box comes with its label and how sure it is; what is left out for length is
counted, and where nothing is found that is said and no box is made up.
"""

from __future__ import annotations

from typing import Annotated

from saccade.backends.kinds import Detector
from saccade.images import ImageView
from saccade.tools.spec import tool
from saccade.types import BoxFound

__all__ = ["detect"]

MOST_BOXES = 30
"""In one answer."""


@tool(aliases=("GroundingDINO",))
def detect(
    image: ImageView,
    query: Annotated[str, "what to find, such as 'red bar' or 'legend'"],
    *,
    detector: Detector,
) -> list[ImageView | BoxFound | str]:
    """Find things by name, with a box, a label and a score for each.

    The surest first. The picture has the boxes drawn in. Raises ToolError for words that the
    detector has no idea of.
    """
    found = detector.detect(image.pixels, query)
    if not found:
        return [f"Nothing was found for {query[:60]!r}."]
    told = [BoxFound(image.ref, d.box, d.label, d.score) for d in found[:MOST_BOXES]]
    more = len(found) - len(told)
    rest = [f"{more} more were left out: ask for fewer, or crop a region."] if more else []
    return [*told, *rest, image.mark([t.box for t in told])]
