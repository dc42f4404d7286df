"""The renderer of the Qwen2-VL family: chat template, image tokens, positions and coordinate frame.

Invariant: append-only. A conversation is a prompt segment, then turns of the model and observation
segments in turn; rendering a later turn never changes an earlier token. The number of image pads in
a segment equals the number of features that its images cost.

Left out on purpose: videos. The shipped chat template is not used, since it drops tools and tool
calls; ours writes the same tokens for plain conversations.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from saccade.dialects.notations import NOTATIONS
from saccade.errors import RecipeError
from saccade.geometry import Frame
from saccade.renderers.resize import smart_resize
from saccade.types import ImageRef, ImageShown, Message, Part, Segment, Text

__all__ = ["Positions", "Qwen2VLRenderer", "Qwen2VLSettings"]

KEPT_PATCH_BYTES = 128 * 2**20
"""Patches of pictures that a renderer keeps."""
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"


@dataclass(frozen=True, slots=True)
class Positions:
    """M-RoPE positions of a run of tokens: `ids` is (3, tokens): time, row, column."""

    ids: np.ndarray
    next_start: int


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
    notation: Literal["inline", "json", "qwen2", "internvl"] = "qwen2"
    """How boxes stand in prose: Qwen2-VL between special tokens, Qwen2.5-VL as JSON."""

    @property
    def factor(self) -> int:
        """Side of the square of pixels behind one image token."""
        return self.patch * self.merge


class Qwen2VLRenderer:
    """Turns messages and pictures into what a Qwen2-VL model reads, and ids back into text."""

    deviations: tuple[str, ...] = (
        "Tools are described in the system message by the dialect; the shipped template ignores "
        "them.",
        "Tool results are user turns written by the dialect; the shipped template writes the role "
        "literally.",
    )

    def __init__(self, tokenizer: Tokenizer, settings: Qwen2VLSettings = Qwen2VLSettings()) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.end_id = self._special(IM_END)
        self.pad_id = self._special(IMAGE_PAD)
        self.stop_ids = frozenset({self.end_id})
        self.notation = NOTATIONS[settings.notation]
        self._patches: OrderedDict[tuple[str, int, int], np.ndarray] = OrderedDict()
        # what was asked for least recently comes first
        self._lock = threading.Lock()

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        *,
        min_image_tokens: int | None = None,
        max_image_tokens: int | None = None,
        notation: Literal["inline", "json", "qwen2", "internvl"] | None = None,
    ) -> Qwen2VLRenderer:
        """From a model folder (`tokenizer.json`, `preprocessor_config.json`, `config.json`).

        The image budget, in tokens for one picture, is what was stored unless given; the notation
        of boxes is what the family was taught unless given.
        """
        for name in ("tokenizer.json", "preprocessor_config.json", "config.json"):
            if not (folder / name).is_file():
                raise RecipeError(
                    f"Model folder {folder.name!r} has no {name}; save a processor with it."
                )
        stored = _json_object(folder / "preprocessor_config.json")
        model_type = _json_object(folder / "config.json").get("model_type")
        _json_object(folder / "tokenizer.json")
        if model_type not in ("qwen2_vl", "qwen2_5_vl"):
            raise RecipeError(
                f"Model type {model_type!r} has no renderer here; supported: qwen2_vl, qwen2_5_vl."
            )
        patch, merge = int(stored.get("patch_size", 14)), int(stored.get("merge_size", 2))
        square = (patch * merge) ** 2
        size = stored.get("size") or {}
        least = stored.get("min_pixels") or size.get("shortest_edge") or 4 * square
        most = stored.get("max_pixels") or size.get("longest_edge") or 16384 * square
        settings = Qwen2VLSettings(
            patch=patch,
            merge=merge,
            temporal_patch=int(stored.get("temporal_patch_size", 2)),
            min_pixels=min_image_tokens * square if min_image_tokens else int(least),
            max_pixels=max_image_tokens * square if max_image_tokens else int(most),
            mean=tuple(stored.get("image_mean", CLIP_MEAN)),
            std=tuple(stored.get("image_std", CLIP_STD)),
            coordinates="thousand" if model_type == "qwen2_vl" else "resized",
            notation=notation or ("qwen2" if model_type == "qwen2_vl" else "json"),
        )
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")), settings)

    # --- text -----------------------------------------------------------------------------------

    def prompt(self, messages: Sequence[Message]) -> Segment:
        """System and user messages, and the header of the model's first turn."""
        pieces: list[str] = []
        images: list[ImageRef] = []
        for message in messages:
            body, shown = self._body(message)
            pieces.append(f"{IM_START}{message.role}\n{body}{IM_END}\n")
            images += shown
        pieces.append(f"{IM_START}assistant\n")
        return Segment("prompt", self._encode("".join(pieces)), images=tuple(images))

    def observation(self, message: Message) -> Segment:
        """What stands between the end of one turn of the model and the start of the next."""
        body, shown = self._body(message)
        text = f"\n{IM_START}user\n{body}{IM_END}\n{IM_START}assistant\n"
        return Segment("observation", self._encode(text), images=tuple(shown))

    def demonstrated(self, text: str) -> Segment:
        """A turn that nobody sampled, with its end: trained by SFT, refused by RL."""
        return Segment("demonstrated", (*self._encode_plain(text), self.end_id))

    def begun(self, text: str) -> Segment:
        """The beginning of a turn of the model that somebody else wrote: not trained."""
        return Segment("prompt", self._encode_plain(text))

    def encode_user_image(self, image: ImageRef) -> Segment:
        """The start of a user turn that shows an image: what several questions about it share."""
        body, shown = self._body(Message("user", (ImageShown(image, ""),)))
        return Segment("prompt", self._encode(f"{IM_START}user\n{body}"), images=tuple(shown))

    def encode_user_rest(self, parts: Sequence[Part]) -> Segment:
        """The rest of such a turn, up to the model's header."""
        body, shown = self._body(Message("user", tuple(parts)))
        ids = self._encode(f"{body}{IM_END}\n{IM_START}assistant\n")
        return Segment("prompt", ids, images=tuple(shown))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a sampled turn, without its end. Broken UTF-8 becomes U+FFFD."""
        kept = [i for i in ids if i not in self.stop_ids]
        return self.tokenizer.decode(kept, skip_special_tokens=False)

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Special ids that the model may not emit: everything special but the end of a turn and
        what its boxes are written with.
        """
        added = self.tokenizer.get_added_tokens_decoder()
        free = {IM_END, *self.notation.specials}
        return tuple(sorted(i for i, t in added.items() if t.special and t.content not in free))

    def never_sampled(self, logits: int) -> list[int]:
        """Ids among that many logits that may not be drawn: the suppressed ones, and those that the
        tokenizer has no token for.
        """
        return sorted({*self.suppressed_ids, *range(self.vocabulary, logits)})

    @property
    def vocabulary(self) -> int:
        return int(self.tokenizer.get_vocab_size(with_added_tokens=True))

    def _special(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise RecipeError(f"The tokenizer has no {token} token; this is no Qwen2-VL tokenizer.")
        return int(found)

    def _body(self, message: Message) -> tuple[str, list[ImageRef]]:
        pieces: list[str] = []
        images: list[ImageRef] = []
        for part in message.parts:
            if isinstance(part, Text):
                pieces.append(_defused(part.text))
            elif isinstance(part, ImageShown):
                pieces.append(VISION_START + IMAGE_PAD * self.image_tokens(part.image) + VISION_END)
                images.append(part.image)
            else:
                raise TypeError(
                    f"A {type(part).__name__} has no rendering; dialects turn it into text."
                )
        return "".join(pieces), images

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(_encodable(text), add_special_tokens=False).ids)

    def _encode_plain(self, text: str) -> tuple[int, ...]:
        return self._encode(_defused(text, but=self.notation.specials))

    # --- pictures -------------------------------------------------------------------------------

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
        s = self.settings
        height, width = self.resized(image)
        if pixels.size != (image.width, image.height):
            raise ValueError(
                f"Image {image.key[:8]} is {image.width} x {image.height}, "
                f"its pixels are {pixels.size}."
            )
        key = (image.key, image.width, image.height)
        with self._lock:
            if (known := self._patches.get(key)) is not None:
                self._patches.move_to_end(key)
                return known
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
        for colour, table in enumerate(_levels(s.mean, s.std)):
            values[:, colour] = table[level[:, colour, None]]  # a picture is shown in every frame
        found = values.reshape(rows * columns, -1)
        with self._lock:
            self._patches[key] = found
            while sum(p.nbytes for p in self._patches.values()) > KEPT_PATCH_BYTES:
                self._patches.popitem(last=False)
        return found

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


@lru_cache(maxsize=8)
def _levels(mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """(3, 256) float32: what each level of each colour becomes."""
    level = np.arange(256, dtype=np.float32)[None] / np.float32(255)
    centre, spread = (np.asarray(v, np.float32)[:, None] for v in (mean, std))
    return np.asarray((level - centre) / spread)


def _json_object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{file.name} of the model can't be read: {error}.") from None
    if not isinstance(found, dict):
        raise RecipeError(f"{file.name} of the model must hold an object; save the model again.")
    return found


def _encodable(text: str) -> str:
    """Lone surrogates can't be UTF-8; they become U+FFFD."""
    return text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text


@lru_cache(maxsize=1)
def _special_texts() -> tuple[str, ...]:
    return (
        IM_START,
        IM_END,
        VISION_START,
        VISION_END,
        IMAGE_PAD,
        VIDEO_PAD,
        "<|endoftext|>",
        "<|object_ref_start|>",
        "<|object_ref_end|>",
        "<|box_start|>",
        "<|box_end|>",
        "<|quad_start|>",
        "<|quad_end|>",
        "<|vision_pad|>",
    )


def _defused(text: str, *, but: Sequence[str] = ()) -> str:
    """Text of users and tools can't speak in special tokens: a zero-width space breaks them."""
    if "<|" not in text:
        return text
    for special in _special_texts():
        if special in but:
            continue
        text = text.replace(special, special[:2] + "\u200b" + special[2:])
    return text
