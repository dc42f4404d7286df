"""SAM: the pixels of one thing by a box or points on it, by a model of transformers.

Invariant: a mask has the picture's size, holds every point that must be inside and none that must
not, and lies inside the box; of those that do, it is the one that the model trusts most. Its score
is the overlap with the truth that the model predicts.
Left out on purpose: video, words, and keeping what the model saw of a picture for the next call;
half precision, in which edges move.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saccade.backends.batched import Batched
from saccade.backends.kinds import Segmented, Segmenter
from saccade.backends.models_known import (
    device_of,
    explained,
    folder_of,
    kind_of,
    read_processor,
    read_weights,
)
from saccade.config import BackendChoice
from saccade.errors import RecipeError
from saccade.geometry import Box, Mask, Point

__all__ = ["SamSegmenter"]

MODEL = "facebook/sam-vit-base"
FIRST = ("sam", "sam_hq")
"""Types of models whose pictures Pillow prepares."""
LATER = ("sam2", "sam2_video", "sam3_tracker", "sam3_video", "edgetam", "edgetam_video")
"""Types of models whose pictures transformers prepares with torchvision alone."""


class SamSegmenter(Segmenter):
    """Any SAM that takes boxes and points. With a SAM 1, calls that give as many points, and a box
    or none, share a pass: padding would be looked at. Later ones answer one at a time, since their
    processor can't be tested here.
    """

    name = "sam"
    packages = ("torch", "transformers")
    extra = "train"
    batches = True
    needs = f"{MODEL} (375 MB, Apache-2.0) or another SAM; on a CPU seconds for a picture"

    def __init__(self, choice: BackendChoice) -> None:
        super().__init__(choice)
        from transformers import AutoModelForMaskGeneration

        model = choice.model or MODEL
        folder = folder_of(model)
        kind = kind_of(folder)
        if kind not in (*FIRST, *LATER):
            raise RecipeError(
                f"Model {model!r} is of type {kind}, which is no SAM that takes boxes and points: "
                f"choose a SAM 1 model such as {MODEL}, or the segmenter 'fills'."
            )
        if kind in LATER and find_spec("torchvision") is None:
            raise RecipeError(
                f"Model {model!r} is of type {kind}, whose pictures transformers prepares with "
                "torchvision, which is not installed: pip install torchvision, or choose a SAM 1 "
                f"model such as {MODEL}, or the segmenter 'fills'."
            )
        self._device = device_of(choice.device)
        self._preparing = threading.Lock()
        self._batched = Batched[dict[str, Any], tuple[Any, Any]](
            self._found,
            most=self.most_at_once(choice) if kind in FIRST else 1,
            alike=lambda q: tuple((key, value.shape) for key, value in sorted(q.items())),
        )
        with explained(model):
            self._processor = read_processor(folder)
            self._model = read_weights(AutoModelForMaskGeneration, folder, device=self._device)

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
        asked: dict[str, Any] = {}
        if box is not None:
            asked["input_boxes"] = [[list(box.as_tuple())]]
        if points or outside:
            asked["input_points"] = [[[[p.x, p.y] for p in (*points, *outside)]]]
            asked["input_labels"] = [[[1] * len(points) + [0] * len(outside)]]
        with self._preparing:
            given = self._processor(images=picture.convert("RGB"), **asked, return_tensors="pt")
        sizes = [given.pop(k) for k in ("original_sizes", "reshaped_input_sizes") if k in given]
        scores, masks = self._batched.ask(dict(given))
        for n in scores.argsort(descending=True, stable=True).tolist():
            low = masks[None, None, n : n + 1]  # (1, 1, 1, rows, columns)
            bits = self._processor.post_process_masks(low, *sizes)[0][0, 0].numpy()
            bits = _bounded(bits, box)
            if bits.any() and _holds(bits, points, outside):
                score = min(1.0, max(0.0, float(scores[n])))
                return Segmented(Mask.from_array(bits), score)
        return None

    def _found(self, questions: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
        """Of each question the scores, (masks,), and the masks, (masks, rows, columns)."""
        import torch

        given = {
            key: torch.cat([q[key] for q in questions]).to(
                self._device, torch.float32 if key != "input_labels" else None
            )
            for key in questions[0]
        }
        with torch.inference_mode():
            found = self._model(**given, multimask_output=True)
            return list(
                zip(found.iou_scores[:, 0].cpu(), found.pred_masks[:, 0].cpu(), strict=True)
            )


def _bounded(bits: NDArray[np.bool_], box: Box | None) -> NDArray[np.bool_]:
    """What lies inside the box, and in the pixels that its sides cut."""
    if box is None:
        return bits
    inside = np.zeros_like(bits)
    rows = slice(max(0, math.floor(box.y0)), max(0, math.ceil(box.y1)))
    columns = slice(max(0, math.floor(box.x0)), max(0, math.ceil(box.x1)))
    inside[rows, columns] = bits[rows, columns]
    return inside


def _holds(bits: NDArray[np.bool_], points: Sequence[Point], outside: Sequence[Point]) -> bool:
    """Whether all `points` lie on it and none of `outside` does."""
    height, width = bits.shape

    def at(p: Point) -> bool:
        if not (0 <= p.x <= width and 0 <= p.y <= height):
            return False
        return bool(bits[min(int(p.y), height - 1), min(int(p.x), width - 1)])

    return all(at(p) for p in points) and not any(at(p) for p in outside)
