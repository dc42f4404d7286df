"""A vision-language model that points: asked in its family's words, read in its family's frame.

Invariant: the frame in which a model's numbers are read is that of its type, never guessed from
their size; points that fall outside the picture are dropped, not moved into it. The same picture
and words give the same points, up to what rounding in half precision makes of the calls that share
a pass.
Left out on purpose: scores, which such models don't give; models that need the hub's code.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

from PIL import Image

from saccade.backends.batched import Batched
from saccade.backends.kinds import Pointed, Pointer
from saccade.backends.models_known import (
    device_of,
    explained,
    folder_of,
    kind_of,
    read_processor,
    read_weights,
)
from saccade.config import BackendChoice
from saccade.errors import RecipeError, ToolError
from saccade.geometry import Frame, Point

__all__ = ["FAMILIES", "Family", "VlmPointer"]

MODEL = "Qwen/Qwen2.5-VL-3B-Instruct"
MOST_TOKENS = 512
"""That an answer may have: some fifteen points of Qwen's."""
MOST_IMAGE_TOKENS = 1280
"""Larger pictures are reduced to it; about a million pixels."""
MAX_ASPECT = 200
"""The longest side may be this many times the shortest, for models of Qwen."""
LONGEST_DESCRIPTION = 500
"""Letters."""

OF_TOKENS = ("input_ids", "attention_mask", "mm_token_type_ids")
"""What a model reads of each token; the rest is of pictures."""

_NUMBER = r"\s*(-?\d{1,6}(?:\.\d{1,6})?)\s*"
_POINT_2D = re.compile(rf'"point_2d"\s*:\s*\[{_NUMBER},{_NUMBER}\]')
_X_AND_Y = re.compile(rf'\bx(\d{{0,4}})\s*=\s*"{_NUMBER}"\s+y\1\s*=\s*"{_NUMBER}"')
_COORDS = re.compile(r'<points?\b[^<>]{0,200}?\bcoords="([^"<>]*)"')

Numbers = tuple[float, float]


def _read_json(text: str) -> list[Numbers]:
    """`{"point_2d": [x, y], "label": ...}`, also where the list was cut off."""
    return [(float(x), float(y)) for x, y in _POINT_2D.findall(text)]


def _read_percent(text: str) -> list[Numbers]:
    """`<point x="61.5" y="40.3" alt="...">...</point>` or `<points x1=".." y1=".." x2=...>`."""
    return [
        (float(x), float(y))
        for tag in re.findall(r"<points?\b[^<>]*", text)
        for _, x, y in _X_AND_Y.findall(tag)
    ]


def _read_coords(text: str) -> list[Numbers]:
    """`<points coords="1 1 615 403 2 120 077">...</points>`: the number of the picture, then of
    each point its own number and its place.
    """
    found = []
    for listed in _COORDS.findall(text):
        for shown in re.split(r"[\t:,;]", listed):
            numbers = re.findall(r"\d{1,6}", shown)[1:]
            places = zip(numbers[1::3], numbers[2::3], strict=False)
            found += [(float(x), float(y)) for x, y in places]
    return found


class Family(NamedTuple):
    """How models of one type are asked and read."""

    frame: Literal["thousand", "resized", "percent"]
    question: str
    """With `{}` for what to point at."""
    read: Callable[[str], list[Numbers]]
    system: str = ""
    """What its own chat template says first."""
    is_qwen: bool = True


_QWEN_ASKS = (
    "Point to {} in the image. Answer in JSON, a list with one entry for each place: "
    '[{{"point_2d": [x, y], "label": "..."}}]. Answer [] where there is none.'
)
_QWEN_SYSTEM = "You are a helpful assistant."
FAMILIES = {
    "qwen2_vl": Family("thousand", _QWEN_ASKS, _read_json, _QWEN_SYSTEM),
    "qwen2_5_vl": Family("resized", _QWEN_ASKS, _read_json, _QWEN_SYSTEM),
    "qwen3_vl": Family("thousand", _QWEN_ASKS, _read_json),
    "qwen3_vl_moe": Family("thousand", _QWEN_ASKS, _read_json),
    "molmo": Family("percent", "Point to {}.", _read_percent, is_qwen=False),
    "molmo2": Family("thousand", "Point to {}.", _read_coords, is_qwen=False),
}
"""By the type that a model's config names. Frames: coordinates reference, "Conversions"."""


class _Answer(NamedTuple):
    text: str
    seen: tuple[int, int]
    """Width and height at which the model saw the picture."""


class VlmPointer(Pointer):
    """A Qwen2-VL, Qwen2.5-VL, Qwen3-VL, or Molmo. Those of Qwen write the answers to several calls
    at once; a Molmo answers one at a time, since its own processor can't be tested here.
    """

    name = "vlm-points"
    packages = ("torch", "transformers")
    extra = "train"
    batches = True
    needs = (
        f"{MODEL} (7.5 GB, for research only) or another VLM that points, such as "
        "Qwen/Qwen2-VL-2B-Instruct (4.4 GB, Apache-2.0); better on a GPU"
    )

    def __init__(self, choice: BackendChoice) -> None:
        super().__init__(choice)
        from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, GenerationConfig

        model = choice.model or MODEL
        folder = folder_of(model)
        kind = kind_of(folder)
        if kind not in FAMILIES:
            raise RecipeError(
                f"Model {model!r} is of type {kind}, whose way of pointing is not known here; "
                f"known: {', '.join(FAMILIES)}."
            )
        if kind not in CONFIG_MAPPING:
            raise RecipeError(
                f"Model {model!r} is of type {kind}, which this transformers has not and which "
                f"would need code from the hub; choose another, such as {MODEL}."
            )
        self._family = FAMILIES[kind]
        if not self._family.is_qwen and find_spec("torchvision") is None:
            raise RecipeError(
                f"Model {model!r} is of type {kind}, whose pictures transformers prepares with "
                "torchvision, which is not installed: pip install torchvision, or choose another "
                f"model, such as {MODEL}."
            )
        self._device = device_of(choice.device)
        self._preparing = threading.Lock()  # tokenizers keep settings between their calls
        self._batched = Batched[dict[str, Any], Any](
            self._written, most=self.most_at_once(choice) if self._family.is_qwen else 1
        )
        with explained(model):
            self._inputs = (
                _QwenInputs(folder, self._family)
                if self._family.is_qwen
                else (_ProcessorInputs(folder))
            )
            self._model = read_weights(
                AutoModelForImageTextToText,
                folder,
                device=self._device,
                # a CPU computes faster in full precision than in half
                dtype="float32" if self._device == "cpu" else "bfloat16",
            )
        # what is stored with a model asks for draws, and punishes numbers that repeat
        self._model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=MOST_TOKENS,
            eos_token_id=self._inputs.stops,
            pad_token_id=self._inputs.stops[0],
        )

    def point(self, picture: Image.Image, description: str) -> list[Pointed]:
        thing = " ".join(description.split())[:LONGEST_DESCRIPTION].rstrip(" .")
        if not thing:
            raise ToolError("Say what to point at, such as 'the tallest bar'.")
        wide, high = picture.size
        if max(wide, high) > MAX_ASPECT * min(wide, high):
            raise ToolError(
                f"A picture may be at most {MAX_ASPECT} times as long as wide, this is {wide} x "
                f"{high}: crop it first."
            )
        answer = self._answer(picture.convert("RGB"), self._family.question.format(thing))
        frame = _frame(self._family.frame, picture.size, seen=answer.seen)
        found = []
        for numbers in dict.fromkeys(self._family.read(answer.text)):
            x, y = frame.decode(numbers)
            if 0 <= x < wide and 0 <= y < high:
                found.append(Pointed(description, Point(x, y), None))
        return found

    def _answer(self, picture: Image.Image, question: str) -> _Answer:
        with self._preparing:
            given, seen = self._inputs.made(picture, question)
        ids = self._batched.ask(given)
        with self._preparing:
            return _Answer(self._inputs.tokenizer.decode(ids, skip_special_tokens=True), seen)

    def _written(self, questions: list[dict[str, Any]]) -> list[Any]:
        """Of each question the tokens of its answer, filled up where others are longer."""
        import torch

        longest = max(q["input_ids"].shape[1] for q in questions)
        pad = self._inputs.stops[0]
        given = {}
        for key in questions[0]:
            rows = [q[key] for q in questions]
            if key in OF_TOKENS and len(rows) > 1:
                rows = [_lengthened(r, longest, pad if key == "input_ids" else 0) for r in rows]
            given[key] = torch.cat(rows).to(self._device)
        with torch.inference_mode():
            return list(self._model.generate(**given)[:, longest:].cpu())


def _lengthened(row: Any, length: int, pad: int) -> Any:
    """With pads on the left: what is written goes on at the right."""
    from torch.nn.functional import pad as padded

    return padded(row, (length - row.shape[1], 0), value=pad)


class _QwenInputs:
    """What a model of Qwen reads, without its processor, which asks for torchvision."""

    def __init__(self, folder: Any, family: Family) -> None:
        from transformers import AutoImageProcessor, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        self._pictures = AutoImageProcessor.from_pretrained(
            folder, backend="pil", local_files_only=True, trust_remote_code=False
        )
        square = (self._pictures.patch_size * self._pictures.merge_size) ** 2
        self._size = {
            "shortest_edge": min(self._pictures.size["shortest_edge"], MOST_IMAGE_TOKENS * square),
            "longest_edge": min(self._pictures.size["longest_edge"], MOST_IMAGE_TOKENS * square),
        }  # areas, in spite of their names
        self._system = f"<|im_start|>system\n{family.system}<|im_end|>\n" if family.system else ""
        self._pad = self._id("<|image_pad|>")
        self.stops = [self._id("<|im_end|>"), self._id("<|endoftext|>")]

    def _id(self, token: str) -> int:
        found = self.tokenizer.get_vocab().get(token)
        if found is None:
            raise ValueError(f"its tokenizer has no {token}")
        return int(found)

    def made(self, picture: Image.Image, question: str) -> tuple[dict[str, Any], tuple[int, int]]:
        """What `generate` takes, and the size at which the picture is seen."""
        import torch

        shown = self._pictures(images=picture, size=self._size, return_tensors="pt")
        _, rows, columns = shown["image_grid_thw"][0].tolist()
        pads = rows * columns // self._pictures.merge_size**2
        # words of others can't speak in special tokens
        words = question.replace("<|", "<\u200b|")
        text = (
            f"{self._system}<|im_start|>user\n<|vision_start|>{'<|image_pad|>' * pads}"
            f"<|vision_end|>{words}<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        given = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self._pad).int(),
            "pixel_values": shown["pixel_values"],
            "image_grid_thw": shown["image_grid_thw"],
        }
        patch = self._pictures.patch_size
        return given, (columns * patch, rows * patch)


class _ProcessorInputs:
    """What a model reads, by its own processor and chat template."""

    def __init__(self, folder: Any) -> None:
        self._processor = read_processor(folder)
        self.tokenizer = self._processor.tokenizer
        self.stops = [int(self.tokenizer.eos_token_id)]

    def made(self, picture: Image.Image, question: str) -> tuple[dict[str, Any], tuple[int, int]]:
        """What `generate` takes, and the size of the picture, which such models don't need."""
        turn = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
        given = self._processor.apply_chat_template(
            [{"role": "user", "content": turn}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        return dict(given), picture.size


def _frame(
    kind: Literal["thousand", "resized", "percent"],
    size: tuple[int, int],
    *,
    seen: tuple[int, int],
) -> Frame:
    if kind == "resized":
        return Frame.resized(*size, resized_width=seen[0], resized_height=seen[1])
    return Frame.thousand(*size) if kind == "thousand" else Frame.percent(*size)
