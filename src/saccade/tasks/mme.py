"""The task `mme`: MME (Fu et al., 2023), yes or no, two questions about each picture.

A text file for each category, such as `existence.txt`, with tab-separated columns: name of the
picture, question, Yes or No. A fourth column, a model's reply in files of results, is not read.
Split `test` is all fourteen categories that are there, and each is a split by its own name.

Left out on purpose: the published sum of two accuracies, in which a picture counts only with both
answers right; the cluster of a sample is its picture, so that it can be had from the results.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from saccade.tasks.published import (
    BadRow,
    Filled,
    Published,
    PublishedRow,
    Question,
    asked,
    json_lines,
)

__all__ = ["Mme"]

CATEGORIES = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
    "commonsense_reasoning",
    "numerical_calculation",
    "text_translation",
    "code_reasoning",
)


def _yes_or_no(value: str) -> str:
    if value.strip().casefold() not in ("yes", "no"):
        raise ValueError(f"must be Yes or No, got {value!r}")
    return value.strip().casefold()


class _Row(PublishedRow):
    image: Filled
    question: Filled
    answer: Annotated[str, AfterValidator(_yes_or_no)]


class Mme(Published):
    """Fourteen sorts of questions, from whether a thing is there to what a program prints."""

    name = "mme"
    ending = ".txt"

    def usual_files(self, folder: Path) -> Mapping[str, tuple[str, ...]]:
        files = (f"{category}.txt" for category in CATEGORIES)
        return {"test": tuple(file for file in files if (folder / file).is_file())}

    def read(self, path: Path) -> Iterator[Question | BadRow]:
        rows = ((where, _columns(line)) for where, line in json_lines(path))
        return asked(rows, _Row, partial(_question, path.stem))


def _columns(line: bytes) -> dict[str, str]:
    """The columns by name; those that are missing stay missing."""
    told = line.decode("utf-8", errors="replace").split("\t")
    return dict(zip(("image", "question", "answer"), told, strict=False))


def _question(category: str, where: str, row: _Row) -> Question:
    image = row.image.strip()
    return Question(
        where=where,
        text=row.question.strip(),
        answer=row.answer,
        places=tuple(f"{f}{image}" for f in (f"{category}/", f"{category}/images/", "")),
        kind=category,
        choices=2,
    )
