"""Photographs that scikit-image ships, as figures: things that nobody draws in charts, and a page.

Invariant: what is told is there, as a person sees it; no bar, slice, line, dot or legend is in any
of them, so whatever of these is found is wrong.

Left out on purpose: the outlines of what they show, which nobody has measured.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from saccade.geometry import Box
from saccade.worlds.figures import FigureItem, PrintedText

__all__ = ["COUNT", "photograph"]

_SCENES = ("astronaut", "brick", "camera", "cat", "coffee", "grass", "gravel", "moon")
_PAGE = (
    ("Region-based segmentation", (6, 12, 294, 34)),
    ("Let us first determine markers of the coins and the", (5, 49, 378, 64)),
    ("background. These markers are pixels that we can label", (5, 66, 378, 82)),
    ("unambiguously as either object or background. Here,", (5, 84, 378, 100)),
    ("the markers are found at the two extreme parts of the", (5, 101, 378, 119)),
    ("histogram of grey values:", (5, 118, 172, 136)),
    ("markers = np.zeros_like(coins)", (41, 171, 242, 189)),
)
"""What its lines say, and where."""
_PAGE_PX = 14.0
"""Size of its print."""
COUNT = len(_SCENES) + 1


def photograph(index: int) -> FigureItem:
    """Photograph `index`, the page last, from the first again after it."""
    from skimage import data

    names = (*_SCENES, "page")
    name = names[index % len(names)]
    image = Image.fromarray(np.asarray(getattr(data, name)())).convert("RGB")
    texts = tuple(
        PrintedText(text, Box(*(float(v) for v in box)), "label", _PAGE_PX)
        for text, box in (_PAGE if name == "page" else ())
    )
    return FigureItem(image, 0, 0, (), texts)
