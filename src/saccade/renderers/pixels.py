"""Pictures on their way to a vision tower: levels of colours as numbers, and what is kept of them.

Left out on purpose: how a family cuts a picture up.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from PIL import Image

from saccade.types import ImageRef

__all__ = ["PatchesKept", "levels"]

KEPT_BYTES = 128 * 2**20
"""Patches of pictures that a renderer keeps."""


class PatchesKept:
    """The patches that were asked for last, since a rollout and its update ask for the same: don't
    write into them.
    """

    def __init__(self) -> None:
        self._held: OrderedDict[tuple[str, int, int], np.ndarray] = OrderedDict()
        # what was asked for least recently comes first
        self._lock = threading.Lock()

    def of(
        self, image: ImageRef, pixels: Image.Image, make: Callable[[Image.Image], np.ndarray]
    ) -> np.ndarray:
        """Those of an image, made of its pixels where they are not kept. Raises ValueError for
        pixels of another size.
        """
        if pixels.size != (image.width, image.height):
            raise ValueError(
                f"Image {image.key[:8]} is {image.width} x {image.height}, "
                f"its pixels are {pixels.size}."
            )
        key = (image.key, image.width, image.height)
        with self._lock:
            if (known := self._held.get(key)) is not None:
                self._held.move_to_end(key)
                return known
        found = make(pixels)
        with self._lock:
            self._held[key] = found
            while sum(p.nbytes for p in self._held.values()) > KEPT_BYTES:
                self._held.popitem(last=False)
        return found


@lru_cache(maxsize=8)
def levels(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """(3, 256) float32: what each level of each colour becomes."""
    level = np.arange(256, dtype=np.float32)[None] / np.float32(255)
    centre, spread = (np.asarray(v, np.float32)[:, None] for v in (mean, std))
    return np.asarray((level - centre) / spread)
