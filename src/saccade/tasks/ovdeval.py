"""The task `ovdeval`: OVDEval (Yao et al., 2024), where is the thing that a phrase describes?

A JSON object for each subset, in the manner of COCO: `images` (id, file_name, width, height, `text`
with the phrases that are true of it), `categories` (id, name: a phrase), `annotations` (image_id,
category_id, `bbox` as corner and size). A sample is one phrase on one picture.

The answer is scored by boxes: nine tenths of the reward are `grounded_iou`, paid only with the
right number of things, which earns the last tenth. Gold is the boxes and their number.

Left out on purpose: `neg_text`, the phrases that are false of a picture, and the data set's own
measure (average precision after suppression), which needs scores of confidence.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import Field, FiniteFloat

from saccade.errors import DataError, RecipeError
from saccade.geometry import Box
from saccade.rewards import Rubric, answer, grounded_iou
from saccade.tasks.published import (
    BadRow,
    Filled,
    Published,
    PublishedRow,
    Question,
    json_members,
    validated,
)

__all__ = ["OvdEval"]

SUBSETS = (
    "celebrity",
    "color",
    "landmark",
    "logo",
    "material",
    "negation",
    "position",
    "relationship",
)


class _Image(PublishedRow):
    id: int
    file_name: Filled
    width: Annotated[int, Field(ge=1)]
    height: Annotated[int, Field(ge=1)]
    text: list[str] = Field(default_factory=list)


class _Category(PublishedRow):
    id: int
    name: Filled


class _Annotation(PublishedRow):
    image_id: int
    category_id: int
    bbox: Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]


class OvdEval(Published):
    """Where things are that are told apart by their place, or by what another subset asks for."""

    name = "ovdeval"

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        images: str | os.PathLike[str] | None = None,
        skip_missing: bool = False,
        skip_bad: bool = False,
        check: str = "all",
        repo: str | None = None,
        revision: str | None = None,
        subset: str = "position",
    ) -> None:
        super().__init__(
            path,
            images=images,
            skip_missing=skip_missing,
            skip_bad=skip_bad,
            check=check,
            repo=repo,
            revision=revision,
        )
        if subset not in SUBSETS:
            raise RecipeError(
                f"Task ovdeval has no subset {subset!r}. Available: {', '.join(SUBSETS)}."
            )
        self.subset = subset
        self.rubric = Rubric(((answer, 0.1), (grounded_iou, 0.9)), gate=answer)

    def usual_files(self, folder: Path) -> Mapping[str, tuple[str, ...]]:
        file = f"{self.subset}.json"
        inner = f"annotations/{file}"
        return {"test": (inner if (folder / inner).is_file() else file,)}

    def read(self, path: Path) -> Iterator[Question | BadRow]:
        parts = json_members(path)
        problems: list[BadRow] = []
        images = [row for *_, row in _rows(_Image, path, parts, "images", problems) if row]
        categories = _rows(_Category, path, parts, "categories", problems)
        phrases = {row.id: row.name for *_, row in categories if row}
        known = {image.id for image in images}
        boxes: dict[tuple[int, str], list[Box]] = {}
        spoilt: set[int | None] = set()
        for where, told, one in _rows(_Annotation, path, parts, "annotations", problems):
            reason = "" if one is None else _wrong_with(one, known, phrases)
            if one is None or reason:
                # without it, what is counted on its picture may be one too few
                number = told.get("image_id") if isinstance(told, Mapping) else None
                spoilt.add(number if isinstance(number, int) else None)
            if reason:
                problems.append(BadRow(where, (reason,)))
            elif one is not None:
                x, y, width, height = one.bbox
                box = Box(x, y, x + width, y + height)
                boxes.setdefault((one.image_id, phrases[one.category_id]), []).append(box)
        yield from problems
        for image in images:
            if image.id in spoilt or None in spoilt:
                where = f"{path.name} image {image.id}"
                yield BadRow(where, ("an annotation that may be its own can't be used",))
            else:
                yield from _questions(path, image, boxes)


def _wrong_with(one: _Annotation, known: set[int], phrases: Mapping[int, str]) -> str:
    if one.image_id not in known:
        return f"image {one.image_id} is not in the file"
    if one.category_id not in phrases:
        return f"category {one.category_id} is not in the file"
    return f"bbox {one.bbox} has no area" if min(one.bbox[2:]) <= 0 else ""


def _questions(
    path: Path, image: _Image, boxes: Mapping[tuple[int, str], list[Box]]
) -> Iterator[Question | BadRow]:
    of_image = [phrase for number, phrase in boxes if number == image.id]
    for phrase in dict.fromkeys([*image.text, *of_image]):
        where = f"{path.name} image {image.id}, {phrase!r}"
        found = boxes.get((image.id, phrase), [])
        if not found:
            yield BadRow(where, ("text names it, but no annotation has a box of it",))
            continue
        name = image.file_name
        yield Question(
            where=where,
            text=(
                f"Where is this: {phrase}? Name a box of each such thing in your reasoning, "
                "then answer with how many there are."
            ),
            answer=str(len(found)),
            places=(name, *(f"{f}{path.stem}/{name}" for f in ("", "images/"))),
            kind=path.stem,
            boxes=tuple((box, phrase) for box in found),
            size=(image.width, image.height),
        )


RowT = TypeVar("RowT", bound=PublishedRow)


def _rows(
    model: type[RowT],
    path: Path,
    parts: Mapping[str, object],
    part: str,
    problems: list[BadRow],
) -> list[tuple[str, object, RowT | None]]:
    """Place, value and row of each in one part of the file, no row for bad ones, which join the
    problems.
    """
    told = parts.get(part)
    if not isinstance(told, list):
        raise DataError(f"{path} has no list {part!r}; check that it is a file of OVDEval.")
    found: list[tuple[str, object, RowT | None]] = []
    for number, value in enumerate(told, 1):
        where = f"{path.name} {part} {number}"
        row = validated(model, where, value)
        if isinstance(row, BadRow):
            problems.append(row)
        found.append((where, value, None if isinstance(row, BadRow) else row))
    return found
