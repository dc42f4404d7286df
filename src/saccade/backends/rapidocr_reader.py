"""RapidOCR: PaddleOCR's models on onnxruntime, which come in its wheel.

Invariant: small print is enlarged before it is looked for; nothing is fetched.
Left out on purpose: other scripts than the bundled models read, and the direction of print.
"""

from __future__ import annotations

import math
import threading

import numpy as np
from PIL import Image

from saccade.backends.kinds import Printed, Reader
from saccade.config import BackendChoice
from saccade.geometry import Box

__all__ = ["RapidReader"]

LONGEST_PX = 2000
"""Of the picture that the models see."""
ENLARGED = 2.0
"""At most; digits at ticks are missed at their own size."""
LEAST_SCORE = 0.6
"""Hatches and marks are read as letters with less."""


class RapidReader(Reader):
    """Detector and recogniser of PP-OCR, small, on the CPU."""

    name = "rapidocr"
    packages = ("rapidocr", "onnxruntime")
    needs = "rapidocr with its bundled models (32 MB), on the CPU"

    def __init__(self, choice: BackendChoice) -> None:
        super().__init__(choice)
        from rapidocr import RapidOCR

        self._lock = threading.Lock()
        self._engine = RapidOCR(
            params={
                "EngineConfig.onnxruntime.intra_op_num_threads": choice.threads,
                "EngineConfig.onnxruntime.inter_op_num_threads": 1,
                "Global.log_level": "critical",
                "Global.max_side_len": LONGEST_PX,
                "Global.text_score": LEAST_SCORE,
                "Global.use_cls": False,
            }
        )

    def read(self, picture: Image.Image) -> list[Printed]:
        scale = min(ENLARGED, LONGEST_PX / max(picture.size))
        if scale != 1:
            size = (math.ceil(picture.width * scale), math.ceil(picture.height * scale))
            picture = picture.resize(size, Image.Resampling.BICUBIC)
        with self._lock:  # it keeps what it is asked in itself
            found = self._engine(np.asarray(picture)[:, :, ::-1])
        if found.boxes is None:
            return []
        whole = Box(0, 0, picture.width, picture.height)
        lines = []
        for quad, text, score in zip(found.boxes, found.txts, found.scores, strict=True):
            (x0, y0), (x1, y1) = quad.min(axis=0), quad.max(axis=0)
            box = Box(float(x0), float(y0), float(x1) + 1, float(y1) + 1).intersection(whole)
            if box is not None and text.strip():
                place = Box(*(v / scale for v in box.as_tuple()))
                lines.append(Printed(text.strip(), place, float(score)))
        return sorted(lines, key=lambda line: (line.box.y0, line.box.x0))
