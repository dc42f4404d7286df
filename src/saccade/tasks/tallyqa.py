"""The task `tallyqa`: TallyQA (Acharya et al., 2019), how many of something are in a picture?

A JSON list of objects: `image` (such as `VG_100K_2/2410408.jpg`), `question`, `answer` (a whole
number), and in the test file `issimple`, which becomes the stratum.

Left out on purpose: the source of a question and its numbers, and boxes, which TallyQA has not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from saccade.tasks.published import (
    BadRow,
    Filled,
    Published,
    PublishedRow,
    Question,
    asked,
    json_list,
)

__all__ = ["TallyQa"]


class _Row(PublishedRow):
    image: Filled
    question: Filled
    answer: Annotated[int, Field(ge=0)]
    issimple: bool | None = None


class TallyQa(Published):
    """How many, by simple questions and by complex ones."""

    name = "tallyqa"
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "train": ("train.json",),
        "test": ("test.json",),
    }

    def read(self, path: Path) -> Iterator[Question | BadRow]:
        return asked(json_list(path), _Row, _question)


def _question(where: str, row: _Row) -> Question:
    strata = {True: "simple", False: "complex", None: ""}
    return Question(
        where=where,
        text=row.question,
        answer=str(row.answer),
        places=(row.image, f"images/{row.image}"),
        kind="count",
        stratum=strata[row.issimple],
    )
