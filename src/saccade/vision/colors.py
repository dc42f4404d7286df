"""What people call a colour: the eleven basic names of English and cyan, each as sure as it is.

Invariant: a name's score is one minus its distance over the sum of its distance and that of the
nearest other name, in CIELAB: 1 on a typical shade of it, one half on the border between two names,
less beyond. So the scores of a colour say whether it has one name.

Left out on purpose: what surrounds a colour, which changes how it looks, and finer names (teal,
beige, navy) other than as light or dark shades of the twelve.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["COLOR_NAMES", "RGB", "Shade", "lab", "name_scores", "score_of"]

RGB = tuple[int, int, int]
Shade = Literal["light", "dark"]

# fmt: off
_TYPICAL: Mapping[str, tuple[str, ...]] = {
    "black": ("000000", "141414", "262626", "1c1c24"),
    "white": ("ffffff", "f6f6f6", "fdfaf4"),
    "gray": ("808080", "606060", "a0a0a0", "c0c0c0", "d6d6d6", "444444", "708090", "9a948c"),
    "red": ("ff0000", "d62728", "b01020", "8b0000", "e84040", "f06a60", "c03030", "dc143c"),
    "orange": ("ff7f0e", "ffa500", "f0862a", "d8700a", "ffb766", "fdbf6f", "ff9a50", "e67300"),
    "yellow": ("ffff00", "f0dc20", "e8d020", "ffe34d", "fff3a0", "d0bc20", "ffd700", "eeee60"),
    "green": ("00a000", "2ca02c", "006400", "66bb6a", "90d890", "00c853", "6b8e23", "1b7a3e",
              "98df8a", "b2df8a", "00ff00", "55a868", "9ab973"),
    "cyan": ("00ffff", "17becf", "20b2aa", "40d0e0", "8ee8ee", "10a0b0", "008b8b", "9edae5"),
    "blue": ("0000ff", "1f77b4", "1040c0", "00008b", "4080f0", "6fa8dc", "a6cee3", "4c72b0",
             "87ceeb", "2a52be", "0090d8", "aec7e8", "243a70",
             "0a1e6e"),
    "purple": ("800080", "9467bd", "6a3d9a", "4b0082", "a050d0", "c8a8e0", "8172b2", "7030c0",
               "b07ad0"),
    "pink": ("ffc0cb", "e377c2", "ff69b4", "f7b6d2", "ff99bb", "f06aa8", "ff80d0", "ff1493",
             "fbb4c8"),
    "brown": ("8b4513", "8c564b", "6b3e1e", "a0683c", "805030", "5a3a22", "b08060", "9c6a50"),
}
# fmt: on
COLOR_NAMES: tuple[str, ...] = tuple(_TYPICAL)
_MIDDLE_LIGHTNESS: Mapping[str, float] = {
    "black": 6, "white": 98, "gray": 56, "red": 47, "orange": 68, "yellow": 86, "green": 57,
    "cyan": 71, "blue": 47, "purple": 45, "pink": 70, "brown": 42,
}  # fmt: skip
"""CIELAB L of a shade that is called neither light nor dark."""
SHADE_STEP = 9.0
"""In L from there: where people begin to say light or dark."""
SHADE_WIDTH = 5.0
"""In L: how gradually they do."""


def lab(colors: NDArray[np.generic]) -> NDArray[np.float64]:
    """CIELAB (..., 3) under D65 of sRGB levels 0..255 (CIE 15:2004; IEC 61966-2-1)."""
    levels = np.asarray(colors, dtype=np.float64) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = linear @ to_xyz.T / np.array([0.95047, 1.0, 1.08883])
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = root[..., 0], root[..., 1], root[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def name_scores(color: RGB) -> dict[str, float]:
    """How well each of the names fits."""
    place = lab(np.array(color))
    distances = {
        name: float(np.min(np.linalg.norm(shades - place, axis=1)))
        for name, shades in _typical_places().items()
    }
    found = {}
    for name, own in distances.items():
        other = min(d for n, d in distances.items() if n != name)
        found[name] = 1.0 - own / (own + other)  # two names share no shade: never 0 / 0
    return found


def score_of(color: RGB, name: str, *, shade: Shade | None = None) -> float:
    """How well a name fits, or its light or dark shade."""
    score = name_scores(color)[name]
    if shade is None:
        return score
    over = float(lab(np.array(color))[0]) - _MIDDLE_LIGHTNESS[name]
    towards = over if shade == "light" else -over
    return score * float(1 / (1 + np.exp(-(towards - SHADE_STEP) / SHADE_WIDTH)))


@lru_cache(maxsize=1)
def _typical_places() -> dict[str, NDArray[np.float64]]:
    return {
        name: lab(np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in codes]))
        for name, codes in _TYPICAL.items()
    }
