"""The renderer of InternVL 2.5 and 3 as transformers has them: tiles, image tokens, positions and
coordinate frame.

    a picture of 1333 x 750 -> 4 x 2 tiles of 448 px and the whole picture in one more: 9 * 256
    tokens

Invariant: the number of image pads in a segment equals the number of features that its images cost.
The grid of tiles is the one of at most so many whose shape is nearest to the picture's; positions
count tokens, whether of text or of pictures.

Left out on purpose: videos.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from saccade.dialects.notations import NOTATIONS
from saccade.errors import RecipeError
from saccade.geometry import Frame
from saccade.renderers.api import NotationName, Positions, TowerKind
from saccade.renderers.chatml import IM_END, IM_START, ChatMl
from saccade.renderers.folders import Stored, stored
from saccade.renderers.pixels import PatchesKept, levels
from saccade.types import ImageRef, Segment

__all__ = ["InternVLRenderer", "InternVLSettings", "tile_grid"]

IMG_START, IMG_END, IMG_PAD = "<img>", "</img>", "<IMG_CONTEXT>"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class InternVLSettings:
    """What distinguishes members of the family, as stored beside their weights."""

    tile: int = 448
    """Side of a tile, in pixels."""
    patch: int = 14
    merge: int = 2
    """Patches along each side of the square that becomes one feature."""
    least_tiles: int = 1
    most_tiles: int = 12
    """Of the grid; the whole picture is one more where the grid has several."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    notation: NotationName = "internvl"
    """How boxes stand in prose."""

    def __post_init__(self) -> None:
        if self.tile % (self.patch * self.merge):
            raise ValueError(
                f"A tile of {self.tile} px can't be cut into features of "
                f"{self.patch * self.merge} px."
            )
        if not 1 <= self.least_tiles <= self.most_tiles:
            raise ValueError(
                f"Tiles must be between 1 and most_tiles, got {self.least_tiles} to "
                f"{self.most_tiles}."
            )

    @property
    def tokens(self) -> int:
        """Of one tile."""
        return int((self.tile // (self.patch * self.merge)) ** 2)


class InternVLRenderer(ChatMl):
    """Turns messages and pictures into what an InternVL model reads, and ids back into text."""

    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    tower: ClassVar[TowerKind] = "tiles"
    family: ClassVar[str] = "InternVL"
    specials: ClassVar[tuple[str, ...]] = (
        *(IM_START, IM_END, "<|endoftext|>", IMG_START, IMG_END, IMG_PAD, "<video>"),
        *("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>"),
        *("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
        *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
        *("<|quad_start|>", "<|quad_end|>", "<|vision_pad|>"),
    )
    deviations: ClassVar[tuple[str, ...]] = (
        *ChatMl.deviations,
        "Every picture is cut into tiles, as transformers' processor does unless told otherwise, "
        "whatever `crop_to_patches` of the image processor says.",
    )

    def __init__(
        self, tokenizer: Tokenizer, settings: InternVLSettings = InternVLSettings()
    ) -> None:
        super().__init__(tokenizer, notation=NOTATIONS[settings.notation], pad=IMG_PAD)
        self.settings = settings
        self._kept = PatchesKept()

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        *,
        min_image_tokens: int | None = None,
        max_image_tokens: int | None = None,
        notation: NotationName | None = None,
    ) -> Self:
        """From a model folder (`tokenizer.json`, `preprocessor_config.json`, `config.json`).

        The image budget, in tokens for one picture, becomes a number of tiles; what was stored
        unless given. The notation of boxes is what the family was taught unless given.
        """
        found = stored(folder, model_types=cls.model_types)
        images, usual = found.images, InternVLSettings()
        patch, tile, merge = _sizes(found, usual)
        tokens = (tile // (patch * merge)) ** 2
        least, most = int(images.get("min_patches", 1)), int(images.get("max_patches", 12))
        if max_image_tokens is not None:
            most = _most_tiles(max_image_tokens, tokens)
            least = min(least, most)
        if min_image_tokens is not None:
            least = _least_tiles(min_image_tokens, tokens)
        if least > most:
            raise RecipeError(
                f"No tiles of {tokens} tokens cost {min_image_tokens} to {max_image_tokens} "
                "tokens; lower min_image_tokens."
            )
        settings = InternVLSettings(
            tile=tile,
            patch=patch,
            merge=merge,
            least_tiles=least,
            most_tiles=most,
            mean=tuple(images.get("image_mean", usual.mean)),
            std=tuple(images.get("image_std", usual.std)),
            notation=notation or usual.notation,
        )
        return cls(found.tokenizer, settings)

    # --- pictures -------------------------------------------------------------------------------

    def image_text(self, image: ImageRef) -> str:
        """As many pads as the image costs features, between marks, and a new line."""
        return f"{IMG_START}{IMG_PAD * self.image_tokens(image)}{IMG_END}\n"

    def tiles(self, image: ImageRef) -> tuple[int, int]:
        """(columns, rows) of tiles that the image is cut into, without the whole picture."""
        s = self.settings
        return tile_grid(
            image.width, image.height, tile=s.tile, least=s.least_tiles, most=s.most_tiles
        )

    def grid(self, image: ImageRef) -> tuple[int, int, int]:
        """(tiles with the whole picture, rows, columns of patches in each)."""
        columns, rows = self.tiles(image)
        side = self.settings.tile // self.settings.patch
        return (columns * rows + (columns * rows > 1), side, side)

    def image_tokens(self, image: ImageRef) -> int:
        """Features, and pads, that the image costs."""
        return self.grid(image)[0] * self.settings.tokens

    def frame(self, image: ImageRef) -> Frame:
        """The coordinate frame in which the model writes about the image: 0..1000 of the whole."""
        return Frame.thousand(image.width, image.height)

    def patches(self, image: ImageRef, pixels: Image.Image) -> np.ndarray:
        """Pixels as the vision tower takes them: (tiles, 3, side, side) float32, row after row, the
        whole picture last.

        Equal to transformers' Pillow image processor for InternVL (bicubic). Those asked for last
        are kept: don't write into them.
        """
        return self._kept.of(image, pixels, lambda p: self._cut(p, *self.tiles(image)))

    def _cut(self, pixels: Image.Image, columns: int, rows: int) -> np.ndarray:
        side = self.settings.tile

        def resized(width: int, height: int) -> np.ndarray:
            return np.asarray(pixels.resize((width, height), Image.Resampling.BICUBIC))

        large = resized(columns * side, rows * side).reshape(rows, side, columns, side, 3)
        cut = large.transpose(0, 2, 4, 1, 3).reshape(-1, 3, side, side)
        if len(cut) > 1:
            cut = np.concatenate([cut, resized(side, side).transpose(2, 0, 1)[None]])
        values = np.empty(cut.shape, dtype=np.float32)
        for colour, table in enumerate(levels(self.settings.mean, self.settings.std)):
            values[:, colour] = table[cut[:, colour]]
        return values

    # --- positions ------------------------------------------------------------------------------

    def positions(self, segment: Segment, start: int) -> Positions:
        """Positions of a segment whose first token stands at `start`: tokens are counted."""
        pads = segment.ids.count(self.pad_id)
        costs = sum(self.image_tokens(i) for i in segment.images)
        if pads != costs:
            raise ValueError(
                f"The segment has {pads} image pads, its images cost {costs} features."
            )
        stop = start + len(segment.ids)
        return Positions(np.tile(np.arange(start, stop, dtype=np.int64), (3, 1)), stop)


@lru_cache(maxsize=4096)
def tile_grid(width: int, height: int, *, tile: int, least: int, most: int) -> tuple[int, int]:
    """(columns, rows) of `least` to `most` tiles whose shape is nearest to that of a picture.

    Of equally near ones it is the largest of which no more than half would be enlarged, as in
    transformers' image processor.
    """
    grids = [
        (columns, rows)
        for columns in range(1, most + 1)
        for rows in range(1, most + 1)
        if least <= columns * rows <= most
    ]
    best, nearest = (1, 1), math.inf
    for columns, rows in sorted(grids, key=lambda g: g[0] * g[1]):
        distance = abs(width / height - columns / rows)
        enough = width * height > 0.5 * tile * tile * columns * rows
        if distance < nearest or (distance == nearest and enough):
            best, nearest = (columns, rows), distance
    return best


def _sizes(found: Stored, usual: InternVLSettings) -> tuple[int, int, int]:
    """(patch, tile, merge). Raises RecipeError for tiles that are no squares, or that cost other
    than what is stored.
    """
    vision = found.config.get("vision_config") or {}
    patch, side = (
        {int(n) for n in (v if isinstance(v, list) else [v])}
        for v in (vision.get("patch_size", usual.patch), vision.get("image_size", usual.tile))
    )
    size = found.images.get("size") or {}
    side |= {int(size[n]) for n in ("height", "width") if n in size}
    if len(patch) > 1 or len(side) > 1:
        raise RecipeError(
            f"Tiles must be squares of one size, got patches of {sorted(patch)} and tiles of "
            f"{sorted(side)} px."
        )
    [one], [tile] = patch, side
    merge = round(1 / float(found.config.get("downsample_ratio", 0.5)))
    told = found.config.get("image_seq_length")
    if told is not None and int(told) != (tile // (one * merge)) ** 2:
        raise RecipeError(
            f"A tile of {tile} px makes {(tile // (one * merge)) ** 2} features, but config.json "
            f"says {told}."
        )
    return one, tile, merge


def _most_tiles(tokens: int, of_tile: int) -> int:
    """Of a grid whose cost, with the whole picture, stays within a budget."""
    if tokens < of_tile:
        raise RecipeError(
            f"A picture costs an InternVL at least {of_tile} tokens, got max_image_tokens "
            f"{tokens}: raise it."
        )
    return max(1, tokens // of_tile - 1)


def _least_tiles(tokens: int, of_tile: int) -> int:
    """Of a grid that costs, with the whole picture, at least so much."""
    return 1 if tokens <= of_tile else max(2, math.ceil(tokens / of_tile) - 1)
