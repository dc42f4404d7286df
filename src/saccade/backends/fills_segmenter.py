"""Fills: one thing told from what is around it by its colour, with no model.

Invariant: what is told was scored by what can be seen; where nothing is plain there is no mask.
Left out on purpose: what things are called. A photograph has many things of several colours: a
model does better there.
"""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from saccade.backends.kinds import Segmented, Segmenter
from saccade.geometry import Box, Mask, Point
from saccade.vision.filled import filled

__all__ = ["FillSegmenter"]


class FillSegmenter(Segmenter):
    """The plainest of many fills; GrabCut in a box where none is plain."""

    name = "fills"
    packages = ("cv2", "skimage")
    needs = "opencv and scikit-image, on the CPU; for drawn figures, less for photographs"

    def segment(
        self,
        picture: Image.Image,
        *,
        box: Box | None = None,
        points: Sequence[Point] = (),
        outside: Sequence[Point] = (),
    ) -> Segmented | None:
        if box is None and not points:
            raise ValueError("segment needs a box or a point.")
        found = filled(picture, box=box, points=points, outside=outside)
        return None if found is None else Segmented(Mask.from_array(found.mask), found.score)
