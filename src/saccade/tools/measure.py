"""measure: how far two points are apart.

Invariant: lengths are in pixels of the image that is named, whatever frame the model writes in.
"""

from __future__ import annotations

import math
from typing import Annotated

from saccade.geometry import Point
from saccade.images import ImageView
from saccade.tools.spec import tool

__all__ = ["measure"]


@tool(is_view=True)
def measure(
    image: ImageView,
    start: Annotated[Point, "first point"],
    end: Annotated[Point, "second point"],
) -> str:
    """Measure the distance and angle between two points of an image.

    Tells pixels across, down and in a straight line, shares of the image's sides, and the angle of
    the line from the horizontal, counter-clockwise, from above -180 to 180 degrees.
    """
    across, down = end.x - start.x, end.y - start.y
    angle = math.degrees(math.atan2(-down, across)) if across or down else 0.0
    return (
        f"{math.hypot(across, down):.1f} pixels apart: {across:+.1f} across "
        f"({across / image.width:+.1%} of the width), {down:+.1f} down "
        f"({down / image.height:+.1%} of the height), angle {angle + 0.0:.1f} degrees."
    )
