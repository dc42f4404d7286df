"""The task `mathvista`: MathVista (Lu et al., 2024), mathematics about pictures.

A JSON object of problems by id: `question`, `image`, `choices`, `answer`, `question_type`,
`answer_type`, `precision`, `unit`, `metadata`. Choices stand in the question as (A), (B) and so on,
and the letter is the answer; otherwise the question says what form the answer has. Split `test` is
the file with public answers, `testmini`.

Left out on purpose: the queries, hints and extraction by a closed model of the published script,
and the other test file, which has no answers.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from saccade.tasks.published import (
    BadRow,
    Filled,
    Published,
    PublishedRow,
    Question,
    asked,
    json_object,
)
from saccade.types import Sample

__all__ = ["MathVista"]


class _Metadata(PublishedRow):
    task: str = ""


class _Row(PublishedRow):
    question: Filled
    image: Filled
    answer: Filled
    question_type: Literal["multi_choice", "free_form"]
    answer_type: Literal["text", "integer", "float", "list"]
    choices: list[str] | None = None
    precision: Annotated[float, Field(ge=0)] | None = None
    unit: str | None = None
    metadata: _Metadata = _Metadata()


class MathVista(Published):
    """Problems with choices, with numbers and with lists of numbers for an answer."""

    name = "mathvista"
    usual: ClassVar[Mapping[str, tuple[str, ...]]] = {"test": ("annot_testmini.json",)}

    def read(self, path: Path) -> Iterator[Question | BadRow]:
        return asked(json_object(path), _Row, _question)

    def wrong(self, sample: Sample) -> str:
        """Another letter where there are choices."""
        if "choices" in dict(sample.meta):
            return "A" if sample.answer != "A" else "B"
        return super().wrong(sample)


def _question(where: str, row: _Row) -> Question:
    text = row.question if not row.unit else f"{row.question} (Unit: {row.unit})"
    gold, choices = row.answer, None
    if row.question_type == "multi_choice":
        choices = row.choices or []
        gold = _letter(choices, row.answer)
        told = [f"({a}) {b}" for a, b in zip(string.ascii_uppercase, choices, strict=False)]
        text = "\n".join([text, *told, "Answer with the letter of the right choice."])
    else:
        text = f"{text}{_form(row)}"
    return Question(
        where=where,
        text=text,
        answer=gold,
        places=(row.image, f"images/{row.image}"),
        kind=row.metadata.task or row.question_type,
        choices=None if choices is None else len(choices),
    )


def _letter(choices: list[str], gold: str) -> str:
    if not 2 <= len(choices) <= len(string.ascii_uppercase):
        raise ValueError(f"choices must be 2 to 26, got {len(choices)}")
    if choices.count(gold) != 1:
        raise ValueError(
            f"answer {gold!r} must stand among the choices once, it stands there "
            f"{choices.count(gold)} times"
        )
    return string.ascii_uppercase[choices.index(gold)]


def _form(row: _Row) -> str:
    """What form a free answer has, in a line of its own."""
    if row.answer_type == "integer":
        return "\nAnswer with a whole number."
    if row.answer_type == "list":
        return "\nAnswer with a list in brackets, such as [1, 2, 3]."
    if row.answer_type == "float" and row.precision is not None:
        return f"\nAnswer with a number, rounded to {row.precision:g} decimal places."
    return ""
