"""Tesseract: the other reader, for machines that have it, and for its many languages.

Invariant: words are asked for wherever they stand, since charts have no paragraphs; nothing is
fetched. Left out on purpose: print that stands upright.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping

from PIL import Image

from saccade.backends.kinds import Printed, Reader
from saccade.config import BackendChoice
from saccade.errors import RecipeError, ToolError
from saccade.geometry import Box, box_around

__all__ = ["TesseractReader"]

SPARSE = "--psm 11"
"""Page segmentation: find as much text as possible in no particular order."""
ENLARGED = 2.0
"""It is made for scans of 300 dots an inch."""
LONGEST_PX = 4000
LEAST_SCORE = 0.4
TIMEOUT_S = 60


class TesseractReader(Reader):
    """The program `tesseract`, called anew for each picture; `model` names its languages."""

    name = "tesseract"
    packages = ("pytesseract",)
    extra = "tesseract"
    needs = "the program tesseract with its languages; model: such as eng or eng+deu"

    def __init__(self, choice: BackendChoice) -> None:
        super().__init__(choice)
        if shutil.which("tesseract") is None:
            raise RecipeError(
                "The reader 'tesseract' needs the program tesseract, which is not on the path: "
                "install it (apt install tesseract-ocr), or choose another reader."
            )
        import pytesseract

        self._language = choice.model or "eng"
        known = pytesseract.get_languages()
        if missing := [part for part in self._language.split("+") if part not in known]:
            raise RecipeError(
                f"Tesseract has no language {missing[0]!r} here, only {', '.join(known)}: install "
                "it, or name another as the reader's model."
            )

    def read_anew(self, picture: Image.Image) -> list[Printed]:
        import pytesseract

        scale = min(ENLARGED, LONGEST_PX / max(picture.size))
        size = (math.ceil(picture.width * scale), math.ceil(picture.height * scale))
        try:
            found = pytesseract.image_to_data(
                picture.resize(size, Image.Resampling.BICUBIC),
                lang=self._language,
                config=SPARSE,
                timeout=TIMEOUT_S,
                output_type=pytesseract.Output.DICT,
            )
        except (pytesseract.TesseractError, RuntimeError) as e:  # RuntimeError: out of time
            raise ToolError(
                f"The print in this picture of {picture.width} x {picture.height} pixels could not "
                f"be read ({str(e)[:80]}): ask for a smaller region."
            ) from None
        return sorted(_lines(found, scale), key=lambda line: (line.box.y0, line.box.x0))


def _lines(found: Mapping[str, list[str]], scale: float) -> list[Printed]:
    """Words of one line joined; a line is as sure as its words are on the mean."""
    lines: dict[tuple[str, ...], list[Printed]] = {}
    for n, text in enumerate(found["text"]):
        score = float(found["conf"][n]) / 100
        if not text.strip() or score < LEAST_SCORE:
            continue
        x, y, width, height = (float(found[k][n]) for k in ("left", "top", "width", "height"))
        if not (width and height):
            continue
        box = Box(x / scale, y / scale, (x + width) / scale, (y + height) / scale)
        key = tuple(found[k][n] for k in ("block_num", "par_num", "line_num"))
        lines.setdefault(key, []).append(Printed(text.strip(), box, score))
    return [_joined(words) for words in lines.values()]


def _joined(words: list[Printed]) -> Printed:
    around = box_around([w.box for w in words])
    score = sum(w.score or 0.0 for w in words) / len(words)
    return Printed(" ".join(w.text for w in words), around, score)
