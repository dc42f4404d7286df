"""look: a region, trimmed to the print in it.

Invariant: nothing is enlarged and nothing is drawn; the result is a rectangle of the parent's own
pixels. What the model sees of it is under the renderer's budget, like every picture.
"""

from __future__ import annotations

from typing import Annotated

from saccade.errors import ToolError
from saccade.geometry import Box
from saccade.images import ImageView
from saccade.ink import print_box
from saccade.tools.spec import tool

__all__ = ["look"]


@tool(is_view=True, reads_pixels=True)
def look(image: ImageView, box: Annotated[Box, "region to look at"]) -> ImageView:
    """Cut a region out of an image and trim it to the print in it.

    Rows and columns at the border without any dark, colourless pixel are cut off; a region without
    print, or whose print is a line too thin to be shown alone, is returned whole. Raises ToolError
    where the region is impossible.
    """
    region = image.crop(box)
    inside = print_box(region.pixels)
    if inside is None:
        return region
    try:
        return region.crop(inside)
    except ToolError:  # the model chose the region, not the trim: it could not choose better
        return region
