"""crop: a region at its original resolution, nothing lost and nothing enlarged."""

from __future__ import annotations

from typing import Annotated

from saccade.geometry import Box
from saccade.images import ImageView
from saccade.tools.spec import tool

__all__ = ["crop"]


@tool(aliases=("Crop",), is_view=True)
def crop(image: ImageView, box: Annotated[Box, "region to cut out"]) -> ImageView:
    """Cut a region out of an image and look at it on its own.

    The result has the region's size in pixels of `image`. Raises ToolError for an impossible
    region.
    """
    return image.crop(box)
