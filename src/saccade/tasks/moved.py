"""Samples for training whose pictures are also shown smaller and elsewhere: what is learned from a
few questions then rests less on where in the picture things were.

Invariant: question and answer still hold, and evidence lies on the same things. Pictures are not
mirrored or turned, since questions name sides.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from saccade.geometry import Box
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.types import Sample

__all__ = ["LEAST", "moved", "unmoved"]

LEAST = 0.75
"""The smallest that a picture becomes, as a share of its sides."""
MARK = "~"


def moved(sample: Sample, way: int, *, store: ImageStore, seed: int) -> Sample:
    """The sample in one of its ways: as it is in way 0, else with each picture at `LEAST` to 1 of
    its size, anywhere on a canvas of its own size and of the colour at its border. Its id says the
    way, `.../12~3`. The same seed and way give the same pixels.
    """
    if way == 0:
        return sample
    images, evidence = [], list(sample.evidence)
    for number, ref in enumerate(sample.images):
        rng = np.random.default_rng([seed, way, number, int(ref.key[:8], 16)])
        picture = store.view(ref).pixels
        width, height = picture.size
        scale = rng.uniform(LEAST, 1.0)
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        left = int(rng.integers(0, width - small[0] + 1))
        top = int(rng.integers(0, height - small[1] + 1))
        canvas = Image.new("RGB", picture.size, _at_border(picture))
        canvas.paste(picture.resize(small, Image.Resampling.LANCZOS), (left, top))
        image = store.add(root_view(canvas))
        images.append(image)
        x, y = small[0] / width, small[1] / height
        for k, one in enumerate(sample.evidence):
            if one.image == ref:
                b = one.box
                box = Box(left + b.x0 * x, top + b.y0 * y, left + b.x1 * x, top + b.y1 * y)
                evidence[k] = replace(one, image=image, box=box)
    name = f"{sample.id}{MARK}{way}"
    return replace(sample, id=name, images=tuple(images), evidence=tuple(evidence))


def unmoved(sample: str) -> tuple[str, int]:
    """The id of the sample as it is, and the way in which this one shows it."""
    name, mark, way = sample.rpartition(MARK)
    return (name, int(way)) if mark and way.isdecimal() else (sample, 0)


def _at_border(picture: Image.Image) -> tuple[int, int, int]:
    """The median colour of the outermost pixels."""
    pixels = np.asarray(picture)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    red, green, blue = np.median(edge, axis=0)
    return int(red), int(green), int(blue)
