"""enhance: the image with faint things made plain.

Invariant: size and coordinates stay; every result is a function of the image's pixels alone.
"""

from __future__ import annotations

from typing import Annotated, Literal

from saccade.images import ImageView
from saccade.tools.spec import tool

__all__ = ["enhance"]


@tool(is_view=True)
def enhance(
    image: ImageView,
    how: Annotated[
        Literal["contrast", "sharpen", "invert"],
        "contrast spreads the brightness, sharpen makes edges plain, invert swaps dark and light",
    ],
) -> ImageView:
    """Make faint or dark parts of an image easier to see.

    `contrast` spreads brightness over the whole range, leaving out 1% at each end, and keeps
    colours; `sharpen` is an unsharp mask that grows with the image; `invert` is the negative.
    """
    return image.enhance(how)
