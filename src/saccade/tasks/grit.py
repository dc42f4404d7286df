"""The task `grit`: the triplets and test rows of GRIT (Fan et al., 2025), with boxes of evidence.

One JSON object a line: `question`, `answer`, `image`, `width`, `height`, `bboxs` (corners in pixels
of the original picture), `dataset`. Split `train` is the twenty triplets, `test` its rows of VSR
and TallyQA; every other file is a split by its own name, such as `gqa_val`.

Invariant: boxes are used only where the stated size is that of the picture.
Left out on purpose: the rows of OVDEval, whose answers are boxes (task `ovdeval` asks for them).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, FiniteFloat

from saccade.geometry import Box
from saccade.tasks.published import (
    BadRow,
    Filled,
    Published,
    PublishedRow,
    Question,
    asked,
    json_lines,
)

__all__ = ["Grit"]


def _reads_forward(box: list[float]) -> list[float]:
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"needs x0 < x1 and y0 < y1, got {box}")
    return box


Corners = Annotated[
    list[FiniteFloat], Field(min_length=4, max_length=4), AfterValidator(_reads_forward)
]
Side = Annotated[int, Field(ge=1)]


class _Row(PublishedRow):
    question: Filled
    answer: Any
    image: Filled
    dataset: Filled
    width: Side | None = None
    height: Side | None = None
    bboxs: list[Corners] | None = None


class Grit(Published):
    """Questions of several data sets, each with the boxes that its answer rests on."""

    name = "grit"
    ending = ".jsonl"
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("tallyqa_train_10.jsonl", "vsr_cot_train_10.jsonl"),
        "test": ("vsr_val.jsonl", "tallyqa_val.jsonl"),
    }

    def read(self, path: Path) -> Iterator[Question | BadRow]:
        return asked(json_lines(path), _Row, _question)


def _question(where: str, row: _Row) -> Question:
    if row.dataset.startswith("ovd"):
        raise ValueError("has boxes for an answer; ask for them with task ovdeval")
    if row.bboxs and (row.width is None or row.height is None):
        raise ValueError("bboxs need width and height, which say what picture they belong to")
    return Question(
        where=where,
        text=row.question,
        answer=_answer(row.answer),
        places=(f"{row.dataset}/{row.image}", row.image, f"images/{row.image}"),
        kind="count" if row.dataset == "tallyqa" else row.dataset,
        boxes=tuple((Box(*corners), "") for corners in row.bboxs or ()),
        size=(row.width, row.height) if row.width and row.height else None,
    )


def _answer(told: object) -> str:
    if isinstance(told, str) and told.strip():
        return told
    if isinstance(told, int | float) and not isinstance(told, bool):
        return f"{told:g}" if isinstance(told, float) else str(told)
    raise ValueError(f"answer must be words or a number, got {told!r}")
