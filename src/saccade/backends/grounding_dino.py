"""Grounding DINO: things in any words, as boxes, by a model of transformers.

Invariant: a box lies inside the picture and bears one of the labels that were asked for: the one
whose own words fit it best. Scores are the model's, of that label's words.
Left out on purpose: suppression of boxes that overlap, which the model learned to do without; half
precision, in which boxes of small things move; pictures of several sizes in one pass, since the
model's windows mix what fills them up with what is at their borders.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Sequence
from typing import Any

from PIL import Image

from saccade.backends.batched import Batched
from saccade.backends.kinds import Detected, Detector
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
from saccade.geometry import Box

__all__ = ["THRESHOLD", "GroundingDinoDetector"]

MODEL = "IDEA-Research/grounding-dino-tiny"
KINDS = ("grounding-dino", "mm-grounding-dino")
"""Types of models that are asked and answer in the same way."""
THRESHOLD = 0.25
"""Scores up to it are not told: the default of transformers, for boxes and for words alike."""
LEAST_PX = 1.0
"""Sides of a box."""
_BETWEEN = re.compile(r"[;\n?]|[.,](?!\d)")


class GroundingDinoDetector(Detector):
    """Any Grounding DINO or MM Grounding DINO. Calls about pictures that the model sees in one size
    share a pass, whatever they ask for.
    """

    name = "grounding-dino"
    packages = ("torch", "transformers")
    extra = "train"
    batches = True
    needs = f"{MODEL} (689 MB, Apache-2.0) or another of its family; on a CPU seconds for a picture"

    def __init__(self, choice: BackendChoice) -> None:
        super().__init__(choice)
        from transformers import AutoModelForZeroShotObjectDetection

        model = choice.model or MODEL
        folder = folder_of(model)
        if (kind := kind_of(folder)) not in KINDS:
            raise RecipeError(
                f"Model {model!r} is of type {kind}, which is no Grounding DINO: the detector "
                f"{self.name!r} takes {' and '.join(KINDS)}."
            )
        self._device = device_of(choice.device)
        self._preparing = threading.Lock()  # tokenizers keep settings between their calls
        self._batched = Batched[dict[str, Any], tuple[Any, Any]](
            self._found, most=self.most_at_once(choice), alike=lambda q: q["pixel_values"].shape
        )
        with explained(model):
            self._processor = read_processor(folder)
            self._model = read_weights(
                AutoModelForZeroShotObjectDetection, folder, device=self._device
            )

    def detect(self, picture: Image.Image, query: str) -> list[Detected]:
        import torch

        things = _things(query)
        text = "".join(f"{thing.lower()}. " for thing in things).rstrip()
        with self._preparing:
            words = self._words(things, text)
            given = self._processor(images=picture.convert("RGB"), text=text, return_tensors="pt")
        fits, places = self._batched.ask(dict(given))
        by_thing = torch.stack([fits[:, tokens].amax(1) for tokens in words], dim=1)
        scores, which = by_thing.max(dim=1)  # (queries,)
        told = []
        for score, n, place in zip(scores.tolist(), which.tolist(), places.tolist(), strict=True):
            box = _box(place, picture.width, picture.height)
            if score > THRESHOLD and box is not None:
                told.append(Detected(things[n], box, float(score)))
        return sorted(told, key=lambda d: -(d.score or 0))

    def _found(self, questions: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
        """Of each question how well words fit, (queries, tokens), and places, (queries, 4): centre
        and size, 0 to 1.
        """
        import torch

        longest = max(q["input_ids"].shape[1] for q in questions)
        pad = self._processor.tokenizer.pad_token_id or 0
        given = {}
        for key in questions[0]:
            rows = [q[key] for q in questions]
            if not key.startswith("pixel"):  # the attention mask is 0 where words end
                rows = [_lengthened(r, longest, pad if key == "input_ids" else 0) for r in rows]
            given[key] = torch.cat(rows).to(self._device)
        with torch.inference_mode():
            found = self._model(**given)
            return list(zip(found.logits.sigmoid().cpu(), found.pred_boxes.cpu(), strict=True))

    def _words(self, things: Sequence[str], text: str) -> list[list[int]]:
        """Of each thing, which tokens of the text are its own."""
        tokenizer = self._processor.tokenizer
        split = tokenizer(text, return_offsets_mapping=True)
        most = self._model.config.max_text_len
        if len(split["input_ids"]) > most:
            raise ToolError(
                f"That is too much to look for at once, {len(split['input_ids'])} tokens where "
                f"{most} can be read: name fewer things."
            )
        words = []
        start = 0
        for thing in things:
            end = start + len(thing.lower())
            own = [n for n, (a, b) in enumerate(split["offset_mapping"]) if start <= a < b <= end]
            if all(split["input_ids"][n] == tokenizer.unk_token_id for n in own):
                raise ToolError(f"The detector can't read {thing!r}: use plain English words.")
            words.append(own)
            start = end + len(". ")
        return words


def _lengthened(row: Any, length: int, pad: int) -> Any:
    from torch.nn.functional import pad as padded

    return padded(row, (0, length - row.shape[1]), value=pad)


def _things(query: str) -> list[str]:
    """What is asked for, each once: between commas, semicolons, full stops and line ends."""
    found = {t.lower(): t for piece in _BETWEEN.split(query) if (t := " ".join(piece.split()))}
    if not found:
        raise ToolError("Say what to look for, such as 'red car' or 'cat, dog'.")
    return list(found.values())


def _box(place: Sequence[float], width: int, height: int) -> Box | None:
    """The part of it that is inside; None where less than a pixel is."""
    if not all(math.isfinite(v) for v in place):
        return None
    x, y, wide, high = place
    x0, x1 = max(0.0, (x - wide / 2) * width), min(float(width), (x + wide / 2) * width)
    y0, y1 = max(0.0, (y - high / 2) * height), min(float(height), (y + high / 2) * height)
    return Box(x0, y0, x1, y1) if x1 - x0 >= LEAST_PX and y1 - y0 >= LEAST_PX else None
