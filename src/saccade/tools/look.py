"""look: a region without its empty margins.

Invariant: nothing is enlarged and nothing is drawn; the result is a rectangle of the parent's own
pixels. What the model sees of it is under the renderer's budget, like every picture.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np

from saccade.geometry import Box
from saccade.images import ImageView
from saccade.tools.spec import tool

__all__ = ["look"]

CONTRAST = 64
"""Levels (of 255) that a pixel must differ from the region's median colour to count as ink."""


@tool
def look(image: ImageView, box: Annotated[Box, "region to look at"]) -> ImageView:
    """Cut a region out of an image and trim its empty margins.

    Rows and columns at the border in which no pixel stands out from the region's median colour are
    cut off; a region without any ink is returned whole. Raises ToolError where the region is
    impossible.
    """
    region = image.crop(box)
    pixels = np.asarray(region.pixels, dtype=np.int16)  # (height, width, 3)
    middle = np.median(pixels.reshape(-1, 3), axis=0)
    ink = np.abs(pixels - middle).max(axis=-1) >= CONTRAST
    if not ink.any():
        return region
    rows, columns = np.flatnonzero(ink.any(1)), np.flatnonzero(ink.any(0))
    y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return region.crop(Box(float(x0), float(y0), float(x1), float(y1)))
