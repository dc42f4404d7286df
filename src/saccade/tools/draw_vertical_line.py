"""draw_vertical_line: a ruler over the full height, to compare positions in a chart."""

from __future__ import annotations

from typing import Annotated

from saccade.geometry import Point
from saccade.images import ImageView
from saccade.tools.spec import XCoordinate, tool

__all__ = ["draw_vertical_line"]


@tool(aliases=("DrawVerticalLineByX",), is_view=True)
def draw_vertical_line(
    image: ImageView, x: Annotated[XCoordinate, "position of the line from the left"]
) -> ImageView:
    """Draw a red line over the full height of an image to compare positions.

    The result has the size of `image` and every pixel beside the line is unchanged. The line gets
    wider with the image, so that it is still seen when the renderer shrinks the picture.
    """
    return image.draw_line(Point(x, 0), Point(x, image.height), width=1 + image.width // 200)
