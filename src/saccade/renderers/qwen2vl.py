"""The renderer of Qwen2-VL and Qwen2.5-VL: image tokens, positions and coordinate frame.

Invariant: the number of image pads in a segment equals the number of features that its images cost.

Left out on purpose: videos.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from saccade.dialects.notations import NOTATIONS
from saccade.geometry import Frame
from saccade.renderers.api import NotationName, Positions, TowerKind
from saccade.renderers.chatml import IM_END, IM_START, ChatMl
from saccade.renderers.folders import stored
from saccade.renderers.pixels import PatchesKept, levels
from saccade.renderers.resize import smart_resize
from saccade.types import ImageRef, Segment

__all__ = ["Qwen2VLRenderer", "Qwen2VLSettings"]

VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"


@dataclass(frozen=True, slots=True)
class Qwen2VLSettings:
    """What distinguishes members of the family, as stored beside their weights."""

    patch: int = 14
    merge: int = 2
    temporal_patch: int = 2
    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 16384 * 28 * 28
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    coordinates: Literal["thousand", "resized"] = "thousand"
    """Qwen2-VL writes 0..1000, Qwen2.5-VL pixels of the resized picture."""
    notation: NotationName = "qwen2"
    """How boxes stand in prose: Qwen2-VL between special tokens, Qwen2.5-VL as JSON."""

    @property
    def factor(self) -> int:
        """Side of the square of pixels behind one image token."""
        return self.patch * self.merge


class Qwen2VLRenderer(ChatMl):
    """Turns messages and pictures into what a Qwen2-VL model reads, and ids back into text."""

    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl", "qwen2_5_vl")
    tower: ClassVar[TowerKind] = "grids"
    family: ClassVar[str] = "Qwen2-VL"
    specials: ClassVar[tuple[str, ...]] = (
        *(IM_START, IM_END, VISION_START, VISION_END, IMAGE_PAD, VIDEO_PAD, "<|endoftext|>"),
        *("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>"),
        *("<|quad_start|>", "<|quad_end|>", "<|vision_pad|>"),
    )
    deviations: ClassVar[tuple[str, ...]] = (
        *ChatMl.deviations,
        "No system message is made up; the shipped template writes one where none is given.",
    )

    def __init__(self, tokenizer: Tokenizer, settings: Qwen2VLSettings = Qwen2VLSettings()) -> None:
        super().__init__(tokenizer, notation=NOTATIONS[settings.notation], pad=IMAGE_PAD)
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

        The image budget, in tokens for one picture, is what was stored unless given; the notation
        of boxes is what the family was taught unless given.
        """
        found = stored(folder, model_types=cls.model_types)
        usual = cls.usual(found.config["model_type"])
        images = found.images
        patch = int(images.get("patch_size", usual.patch))
        merge = int(images.get("merge_size", usual.merge))
        square = (patch * merge) ** 2
        size = images.get("size") or {}
        least = images.get("min_pixels") or size.get("shortest_edge") or 4 * square
        most = images.get("max_pixels") or size.get("longest_edge") or 16384 * square
        settings = Qwen2VLSettings(
            patch=patch,
            merge=merge,
            temporal_patch=int(images.get("temporal_patch_size", usual.temporal_patch)),
            min_pixels=min_image_tokens * square if min_image_tokens else int(least),
            max_pixels=max_image_tokens * square if max_image_tokens else int(most),
            mean=tuple(images.get("image_mean", usual.mean)),
            std=tuple(images.get("image_std", usual.std)),
            coordinates=usual.coordinates,
            notation=notation or usual.notation,
        )
        return cls(found.tokenizer, settings)

    @classmethod
    def usual(cls, model_type: str) -> Qwen2VLSettings:
        """What members of that type were taught, and what holds where nothing is stored."""
        if model_type == "qwen2_5_vl":
            return Qwen2VLSettings(coordinates="resized", notation="json")
        return Qwen2VLSettings()

    # --- pictures -------------------------------------------------------------------------------

    def image_text(self, image: ImageRef) -> str:
        """As many pads as the image costs features, between marks."""
        return VISION_START + IMAGE_PAD * self.image_tokens(image) + VISION_END

    def resized(self, image: ImageRef) -> tuple[int, int]:
        """(height, width) in pixels at which the model sees the image, under the budget."""
        s = self.settings
        return smart_resize(
            image.height,
            image.width,
            factor=s.factor,
            min_pixels=s.min_pixels,
            max_pixels=s.max_pixels,
        )

    def grid(self, image: ImageRef) -> tuple[int, int, int]:
        """(time, rows, columns) of patches."""
        height, width = self.resized(image)
        return (1, height // self.settings.patch, width // self.settings.patch)

    def image_tokens(self, image: ImageRef) -> int:
        """Features, and pads, that the image costs."""
        time, rows, columns = self.grid(image)
        return time * rows * columns // self.settings.merge**2

    def frame(self, image: ImageRef) -> Frame:
        """The coordinate frame in which the model writes about the image."""
        if self.settings.coordinates == "thousand":
            return Frame.thousand(image.width, image.height)
        height, width = self.resized(image)
        return Frame.resized(image.width, image.height, resized_width=width, resized_height=height)

    def patches(self, image: ImageRef, pixels: Image.Image) -> np.ndarray:
        """Pixels as the vision tower takes them: (patches, 3 * time * patch * patch) float32.

        Equal to transformers' Pillow image processor for Qwen2-VL (bicubic, then patches in the
        order in which they are merged). Those asked for last are kept, since a rollout and its
        update ask for the same: don't write into them.
        """
        return self._kept.of(image, pixels, lambda p: self._cut(p, *self.resized(image)))

    def _cut(self, pixels: Image.Image, height: int, width: int) -> np.ndarray:
        s = self.settings
        if pixels.size != (width, height):
            pixels = pixels.resize((width, height), Image.Resampling.BICUBIC)
        rows, columns = height // s.patch, width // s.patch
        # (row block, row in block, y, column block, column in block, x, colour)
        split = np.asarray(pixels).reshape(
            rows // s.merge, s.merge, s.patch, columns // s.merge, s.merge, s.patch, 3
        )
        ordered = split.transpose(0, 3, 1, 4, 6, 2, 5)  # blocks, inside blocks, colour, y, x
        values = np.empty((rows * columns, 3, s.temporal_patch, s.patch**2), dtype=np.float32)
        level = ordered.reshape(rows * columns, 3, s.patch**2)
        for colour, table in enumerate(levels(s.mean, s.std)):
            values[:, colour] = table[level[:, colour, None]]  # a picture is shown in every frame
        return values.reshape(rows * columns, -1)

    # --- positions ------------------------------------------------------------------------------

    def positions(self, segment: Segment, start: int) -> Positions:
        """M-RoPE positions of a segment whose first token stands at `start`.

        Incremental: positions of a whole episode are those of its segments, each started where the
        last one ended. Text advances all three axes by one; an image holds one time step, counts
        rows and columns from its start, and advances by the longer of them (Qwen2-VL, section 2.1).
        """
        ids = np.asarray(segment.ids, dtype=np.int64)
        out = np.empty((3, len(ids)), dtype=np.int64)
        at, position = 0, start
        for image in segment.images:
            pad = at + int(np.argmax(ids[at:] == self.pad_id))
            _, rows, columns = self.grid(image)
            rows, columns = rows // self.settings.merge, columns // self.settings.merge
            length = rows * columns
            if not (ids[pad : pad + length] == self.pad_id).all():
                raise ValueError(
                    f"Image {image.key[:8]} costs {length} features, its pads are fewer."
                )
            out[:, at:pad] = position + np.arange(pad - at)
            position += pad - at
            row, column = np.divmod(np.arange(length), columns)
            out[0, pad : pad + length] = position
            out[1, pad : pad + length] = position + row
            out[2, pad : pad + length] = position + column
            position += max(rows, columns)
            at = pad + length
        if (ids[at:] == self.pad_id).any():
            raise ValueError("The segment has more image pads than its images cost features.")
        out[:, at:] = position + np.arange(len(ids) - at)
        return Positions(out, position + len(ids) - at)
