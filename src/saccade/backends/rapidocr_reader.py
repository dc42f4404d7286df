"""RapidOCR: PaddleOCR's models on onnxruntime, which come in its wheel.

Invariant: small print is enlarged before it is looked for, print that stands upright is turned
before it is read, and where a number may stand alone is read once more; nothing is fetched.
Left out on purpose: other scripts than the bundled models read, and print at other angles.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from PIL import Image

from saccade.backends.kinds import Printed, Reader
from saccade.daemon_threads import OneThread
from saccade.geometry import Box
from saccade.vision.axes import number_of
from saccade.vision.lone_print import lone_print

__all__ = ["RapidReader"]

LONGEST_PX = 2000
"""Of the picture that the models see."""
ENLARGED = 2.0
"""At most; digits at ticks are missed at their own size."""
LEAST_SCORE = 0.6
"""Hatches and marks are read as letters with less."""
LEAST_ALONE = 0.75
"""Score of a number where the detector saw no print."""
UPRIGHT = 1.5
"""Print is turned that is so many times as high as wide; a digit is not."""
AROUND_PX = 4
"""Of upright print, which its box may cut."""
AROUND_ALONE = 0.35
"""Of its height, around a number that stands alone: other ink is farther."""


class _Engine:
    """The models, made by the first who asks. They keep in themselves what they are asked, for the
    next call too, so all calls are made by one thread, in turn.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._thread = OneThread()
        self._models: Any = None

    def __call__(self, picture: Image.Image, *, find: bool) -> Any:
        """Finds and reads lines, or reads the picture as one line."""
        return self._thread.do(lambda: self._read(picture, find))

    def _read(self, picture: Image.Image, find: bool) -> Any:
        if self._models is None:
            self._models = _models(self._threads)
        pixels = np.asarray(picture)[:, :, ::-1]
        return self._models(pixels, use_det=find, use_cls=False, use_rec=True)


_engines: dict[int, _Engine] = {}
_engines_lock = threading.Lock()


def _engine(threads: int) -> _Engine:
    """One in a process, whoever asks and however many at once: each holds hundreds of megabytes."""
    with _engines_lock:
        if threads not in _engines:
            _engines[threads] = _Engine(threads)
        return _engines[threads]


def _models(threads: int) -> Any:
    from rapidocr import RapidOCR

    return RapidOCR(
        params={
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
            "Global.log_level": "critical",
            "Global.max_side_len": LONGEST_PX,
            "Global.text_score": LEAST_SCORE,
            "Global.use_cls": False,
            # its own default enlarges small pictures to 736 pixels: ten times the work on a label
            "Det.limit_type": "max",
            "Det.limit_side_len": LONGEST_PX,
        }
    )


class RapidReader(Reader):
    """Detector and recogniser of PP-OCR, small, on the CPU."""

    name = "rapidocr"
    packages = ("rapidocr", "onnxruntime")
    needs = "rapidocr with its bundled models (32 MB), on the CPU"

    def read_anew(self, picture: Image.Image) -> list[Printed]:
        original = picture
        scale = min(ENLARGED, LONGEST_PX / max(picture.size))
        if scale != 1:
            size = (math.ceil(picture.width * scale), math.ceil(picture.height * scale))
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        found = _engine(self.choice.threads)(picture, find=True)
        seen = (
            [] if found.boxes is None else zip(found.boxes, found.txts, found.scores, strict=True)
        )
        whole = Box(0, 0, picture.width, picture.height)
        lines = []
        for quad, text, score in seen:
            (x0, y0), (x1, y1) = quad.min(axis=0), quad.max(axis=0)
            box = Box(float(x0), float(y0), float(x1) + 1, float(y1) + 1).intersection(whole)
            if box is None or not text.strip():
                continue
            place = Box(*(v / scale for v in box.as_tuple()))
            line = Printed(text.strip(), place, float(score))
            is_upright = place.height > UPRIGHT * place.width and len(line.text) > 1
            lines.append(self._turned(line, original) if is_upright else line)
        lines += self._alone(lines, original)
        return sorted(lines, key=lambda line: (line.box.y0, line.box.x0))

    def _turned(self, line: Printed, picture: Image.Image) -> Printed:
        """The line read again from both sides, as it is surest of it."""
        cut = _cut(picture, line.box, AROUND_PX)
        best = line
        for turn in (Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_90):
            text, score = self._word(cut.transpose(turn))
            if text and score > (best.score or 0):
                best = Printed(text, line.box, score)
        return best

    def _alone(self, lines: list[Printed], picture: Image.Image) -> list[Printed]:
        """Short numbers that the detector passed over."""
        found = []
        for box in lone_print(picture, [(line.text, line.box) for line in lines]):
            text, score = self._word(_cut(picture, box, AROUND_ALONE * box.height))
            if score >= LEAST_ALONE and number_of(text) is not None:
                found.append(Printed(text, box, score))
        return found

    def _word(self, cut: Image.Image) -> tuple[str, float]:
        """What one line of print says, empty where it says nothing, and how sure that is."""
        found = _engine(self.choice.threads)(cut, find=False)
        return (found.txts[0].strip(), float(found.scores[0])) if found.txts else ("", 0.0)


def _cut(picture: Image.Image, box: Box, around: float) -> Image.Image:
    wide = box.expand(around).clip(*picture.size)
    assert wide is not None
    return picture.crop(tuple(round(v) for v in wide.as_tuple()))  # type: ignore[arg-type]
