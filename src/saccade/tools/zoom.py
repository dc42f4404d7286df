"""zoom: a region, enlarged.

Invariant: it adds no information that the image does not hold, and no budget: what the model sees
of the result is shown under the renderer's token budget, like the first picture, so zooming on
everything shows nothing new.
"""

from __future__ import annotations

from typing import Annotated

from saccade.geometry import Box
from saccade.images import ImageView
from saccade.tools.spec import Between, tool

__all__ = ["zoom"]


@tool(is_view=True)
def zoom(
    image: ImageView,
    box: Annotated[Box, "region to enlarge"],
    factor: Annotated[float, "how many times larger", Between(2, 8)] = 4,
) -> ImageView:
    """Cut a region out of an image and enlarge it to read small details.

    The result is the region's size in pixels of `image` times `factor`, by Lanczos resampling. What
    the model sees of it is still under the renderer's token budget: a small region gains detail,
    the whole image gains none. Raises ToolError where the region is impossible or the result would
    be too large.
    """
    region = image.crop(box)
    return region.resize(round(region.width * factor), round(region.height * factor))
