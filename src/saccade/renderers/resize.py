"""The picture size that Qwen's image processors choose, computed without them.

Invariant: both sides are whole multiples of `factor`, the area stays within the limits wherever the
shape allows it, and the shape is kept as closely as the multiples allow. Formulas: coordinates
reference, "smart_resize".
Left out on purpose: resampling pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["MAX_ASPECT", "Size", "smart_resize"]

MAX_ASPECT = 200
"""The longest side may be this many times the shortest, inclusive."""


class Size(NamedTuple):
    """Height and width in pixels, in the processors' order; Pillow has it the other way round."""

    height: int
    width: int


def smart_resize(
    height: int,
    width: int,
    *,
    factor: int,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Size:
    """The size (height, width) to which a picture is resized before it is cut into patches.

    `factor` is patch size times merge size (28 for Qwen2-VL and 2.5, 32 for Qwen3-VL). The limits
    are areas in pixels; None takes the defaults of qwen-vl-utils, 4 and 16,384 times factor
    squared. Raises ValueError for a picture more than 200 times as long as wide, or for a size
    below one pixel.
    """
    if height < 1 or width < 1 or factor < 1:
        raise ValueError(
            f"smart_resize needs positive numbers, got {height} x {width}, factor {factor}."
        )
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(
            f"A picture may be at most {MAX_ASPECT} times as long as wide, got {height} x {width}; "
            "crop it first."
        )
    least = 4 * factor * factor if min_pixels is None else min_pixels
    most = 16384 * factor * factor if max_pixels is None else max_pixels
    # Python's round, half to even, as in the processors
    tall = max(factor, round(height / factor) * factor)
    wide = max(factor, round(width / factor) * factor)
    if tall * wide > most:
        shrink = math.sqrt(height * width / most)
        # the reference formula reaches 0 for a thin strip under a small limit; no picture has a
        # side of 0
        tall = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif tall * wide < least:
        grow = math.sqrt(least / (height * width))
        tall = math.ceil(height * grow / factor) * factor
        wide = math.ceil(width * grow / factor) * factor
    return Size(tall, wide)
