"""look: a region, trimmed to the print in it.

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

DARK = 110
"""Print is at most this bright, in levels of 255, in its brightest channel ..."""
NEUTRAL = 48
"""... and its channels differ by at most this much: colours are marks and not print."""


@tool
def look(image: ImageView, box: Annotated[Box, "region to look at"]) -> ImageView:
    """Cut a region out of an image and trim it to the print in it.

    Rows and columns at the border without any dark, colourless pixel are cut off; a region without
    print is returned whole. Raises ToolError where the region is impossible.
    """
    region = image.crop(box)
    pixels = np.asarray(region.pixels, dtype=np.int16)  # (height, width, 3)
    brightest, spread = pixels.max(axis=-1), np.ptp(pixels, axis=-1)
    print_ = (brightest <= DARK) & (spread <= NEUTRAL)
    if not print_.any():
        return region
    rows, columns = np.flatnonzero(print_.any(1)), np.flatnonzero(print_.any(0))
    y0, y1, x0, x1 = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    return region.crop(Box(float(x0), float(y0), float(x1), float(y1)))
