"""compare: two regions next to each other.

Invariant: each region keeps its own scale and its own way back to its original; nothing is drawn on
either.
"""

from __future__ import annotations

from typing import Annotated

from saccade.geometry import Box
from saccade.images import ImageView, beside
from saccade.tools.spec import On, tool

__all__ = ["compare"]


@tool(is_view=True)
def compare(
    image: ImageView,
    box: Annotated[Box, "region of `image`, shown on the left", On("image")],
    other: ImageView,
    other_box: Annotated[Box, "region of `other`, shown on the right", On("other")],
) -> ImageView:
    """Show two regions side by side, of one image or of two.

    Top edges are level and the space under the shorter one is white. Raises ToolError where a
    region is impossible.
    """
    return beside(image.crop(box), other.crop(other_box))
