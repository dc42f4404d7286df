"""rotate: the image turned, so that tilted or upright print can be read.

Invariant: nothing is cut off; what was not in the image is white. A box in the result maps back to
a quadrilateral in the original.
"""

from __future__ import annotations

from typing import Annotated

from saccade.images import ImageView
from saccade.tools.spec import Between, tool

__all__ = ["rotate"]


@tool(is_view=True)
def rotate(
    image: ImageView,
    degrees: Annotated[float, "angle, counter-clockwise", Between(-360, 360)],
) -> ImageView:
    """Turn an image counter-clockwise to read tilted text.

    Quarter turns keep every pixel; other angles are resampled (bicubic). Raises ToolError where the
    result would be too large.
    """
    return image.rotate(degrees)
