"""ocr: the print in an image, or in a region of it, with its places.

Invariant: every line of print comes with its box in the image that was named, whatever region was
asked for; what is left out for length is counted.
"""

from __future__ import annotations

from typing import Annotated

from saccade.backends.kinds import Reader
from saccade.geometry import Box
from saccade.images import ImageView
from saccade.tools.spec import tool
from saccade.types import BoxFound

__all__ = ["ocr"]

MOST_LINES = 60
"""In one answer."""


@tool(aliases=("OCR",))
def ocr(
    image: ImageView,
    box: Annotated[Box | None, "region to read; all of it without one"] = None,
    *,
    reader: Reader,
) -> list[ImageView | BoxFound | str]:
    """Read the text in an image or a region, with the box of each line and how sure it is.

    Lines from the top, then from the left. The picture has their boxes drawn in.
    """
    seen = image if box is None else image.crop(box)
    lines = reader.read(seen.pixels)
    if not lines:
        return ["No text was found."]
    left, up = (0.0, 0.0) if box is None else _corner(seen)
    found = [
        BoxFound(image.ref, line.box.moved(left, up), line.text, line.score)
        for line in lines[:MOST_LINES]
    ]
    more = len(lines) - len(found)
    rest = [f"{more} more lines were left out: ask for a smaller region."] if more else []
    return [*found, *rest, image.mark([f.box for f in found])]


def _corner(seen: ImageView) -> tuple[float, float]:
    """Where a crop lies in its parent."""
    to_parent = seen.ref.parts[0].to_parent
    return to_parent.c, to_parent.f
