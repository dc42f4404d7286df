"""Boxes that a model wrote into its thoughts, brought to pixels of the pictures that they are on.

Invariant: a box counts where it is four finite numbers in the order x0 < x1, y0 < y1 and lies at
least in part on its picture, read in the frame that the model's family declares. What lies beyond
the border is cut off, and that is told. What fails is kept with its reason: nothing is swapped,
guessed or dropped in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from saccade.dialects.notations import BoxWritten, Notation
from saccade.geometry import Frame
from saccade.types import BadBox, BoxNamed, ImageRef, Parsed

__all__ = ["boxes_named"]

MOST = 200
"""Boxes of one turn that are read; more are no reasoning."""
_SLACK = 1e-9


def boxes_named(
    parsed: Parsed,
    notation: Notation,
    *,
    images: Mapping[str, ImageRef],
    frame: Callable[[ImageRef], Frame],
) -> tuple[tuple[BoxNamed, ...], tuple[BadBox, ...]]:
    """The boxes in the thoughts of one turn, and those that are none.

    A box is on the picture that it names, else on the first of `images`.
    """
    good: list[BoxNamed] = []
    bad: list[BadBox] = []
    for text, is_second in ((parsed.thought, False), (parsed.rethought, True)):
        for written in notation.find(text)[:MOST]:
            read = _read(written, images, frame)
            if isinstance(read, str):
                bad.append(BadBox(text[written.start : written.stop][:MOST], read))
            else:
                good.append(replace(read, is_rethought=is_second))
    return tuple(good[:MOST]), tuple(bad[:MOST])


def _read(
    written: BoxWritten, images: Mapping[str, ImageRef], frame: Callable[[ImageRef], Frame]
) -> BoxNamed | str:
    """The box, or why it is none."""
    if written.values is None:
        return "not four numbers"
    if not images:
        return "no picture to lie on"
    if written.image and written.image not in images:
        return f"no picture named {written.image!r}"
    if not all(map(math.isfinite, written.values)):
        return "not finite"
    x0, y0, x1, y1 = written.values
    if x0 > x1 or y0 > y1:
        return "corners reversed"
    if x0 == x1 or y0 == y1:
        return "no area"
    image = images[written.image] if written.image else next(iter(images.values()))
    box = frame(image).decode_box(written.values)
    inside = box.clip(image.width, image.height)
    if inside is None:
        return "outside the picture"
    is_cut = any(
        abs(a - b) > _SLACK for a, b in zip(box.as_tuple(), inside.as_tuple(), strict=True)
    )
    return BoxNamed(image, inside, written.phrase, is_cut=is_cut)
