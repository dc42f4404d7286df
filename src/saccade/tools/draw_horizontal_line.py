"""draw_horizontal_line: a ruler across the full width, to compare heights in a chart."""

from __future__ import annotations

from typing import Annotated

from saccade.geometry import Point
from saccade.images import ImageView
from saccade.tools.spec import YCoordinate, tool

__all__ = ["draw_horizontal_line"]


@tool(aliases=("DrawHorizontalLineByY",), is_view=True)
def draw_horizontal_line(
    image: ImageView, y: Annotated[YCoordinate, "height of the line"]
) -> ImageView:
    """Draw a red line across the full width of an image to compare heights.

    The result has the size of `image` and every pixel beside the line is unchanged. The line gets
    wider with the image, so that it is still seen when the renderer shrinks the picture.
    """
    return image.draw_line(Point(0, y), Point(image.width, y), width=1 + image.height // 200)
