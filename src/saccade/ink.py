"""Where the print of a picture stands: dark, colourless pixels.

Invariant: a function of the pixels alone; nothing is drawn or enlarged.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from saccade.geometry import Box

__all__ = ["print_box"]

DARK = 110
"""Print is at most this bright, in levels of 255, in its brightest channel ..."""
NEUTRAL = 48
"""... and its channels differ by at most this much: colours are marks and not print."""


def print_box(image: Image.Image) -> Box | None:
    """The smallest box of whole pixels around all print of an RGB picture; None without print."""
    red, green, blue = np.moveaxis(np.asarray(image), -1, 0)  # (height, width) uint8 each
    # channel by channel: a reduction over an axis of three is twenty times slower
    brightest = np.maximum(np.maximum(red, green), blue)
    darkest = np.minimum(np.minimum(red, green), blue)
    is_print = (brightest <= DARK) & (brightest - darkest <= NEUTRAL)
    rows = np.flatnonzero(is_print.any(1))
    if not len(rows):
        return None
    columns = np.flatnonzero(is_print.any(0))
    return Box(float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))
