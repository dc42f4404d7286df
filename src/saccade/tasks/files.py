"""Questions about your own pictures, from a JSONL file.

One row a line: `image` or `images` (paths relative to the file), `question`, `answer`; optionally
`evidence` (a list of {`box`: [x0, y0, x1, y1] in pixels of the upright picture, `image`: index in
the row's images, default 0, `phrase`}), `id`, `kind`, `split` (default `test`) and `stratum`.

Invariant: the file is used whole or not at all. Every row and every picture is checked before the
first sample is given out, and all bad rows are reported together. Nothing outside the folder of the
file is read.
Left out on purpose: pictures by URL or inside the JSON, and splits drawn at random, which would let
a row change sides when the file grows.
"""

from __future__ import annotations

import codecs
import difflib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from saccade.errors import DataError, ImageError, RecipeError
from saccade.geometry import Box
from saccade.image_store import ImageStore
from saccade.images import ImageView, root_view
from saccade.picture_files import load_image
from saccade.rewards import Rubric, answer
from saccade.rewards.answers import lenient, strict
from saccade.tasks import CLUSTER
from saccade.types import Evidence, ImageRef, Sample

__all__ = ["Files"]

DEFAULT_SPLIT = "test"
LISTED = 20
"""Bad rows that a report spells out."""


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


def _reads_forward(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"needs x0 < x1 and y0 < y1, got {list(box)}")
    return box


Filled = Annotated[str, AfterValidator(_not_blank)]
Corners = Annotated[
    tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat], AfterValidator(_reads_forward)
]


class _EvidenceRow(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    box: Corners
    image: Annotated[int, Field(ge=0)] = 0
    phrase: str = ""


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    question: Filled
    answer: Filled
    image: Filled | None = None
    images: Annotated[tuple[Filled, ...], Field(min_length=1)] | None = None
    evidence: tuple[_EvidenceRow, ...] = ()
    id: Filled | None = None
    kind: str = ""
    split: Filled = DEFAULT_SPLIT
    stratum: str = ""

    @model_validator(mode="after")
    def _one_way_to_name_images(self) -> _Row:
        if (self.image is None) == (self.images is None):
            raise ValueError("needs either image or images")
        if self.stratum == "all":
            raise ValueError("stratum 'all' stands for all samples: name it otherwise")
        for number, item in enumerate(self.evidence):
            if item.image >= len(self.names):
                raise ValueError(
                    f"evidence {number} is on image {item.image}, "
                    f"but the row has {len(self.names)} (the first is 0)"
                )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return self.images if self.images is not None else (self.image or "",)


class _Checked(NamedTuple):
    """A row whose pictures were opened."""

    id: str
    row: _Row
    images: tuple[ImageRef, ...]


class Files:
    """The task `files`: samples from a JSONL file, right or wrong by the strict rule."""

    name = "files"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Nothing is read before the first `load`. Raises RecipeError where `path` is no path."""
        if not isinstance(path, str | os.PathLike):
            raise RecipeError(f"Option 'path' of task files must be a path, got {path!r}.")
        self.path = Path(path)
        self.rubric = Rubric(((answer, 1.0),))
        self._rows: tuple[_Checked, ...] | None = None

    def load(
        self, split: str, *, store: ImageStore, start: int = 0, count: int | None = None
    ) -> Sequence[Sample]:
        """Rows of the split in the order of the file. The first call checks the whole file.

        Raises DataError: for bad rows, listed with line numbers, and for a split without rows.
        """
        if start < 0 or (count is not None and count < 0):
            raise ValueError(f"start and count must be 0 or more, got {start} and {count}.")
        end = None if count is None else start + count
        return [self._sample(row, store) for row in self._split(split)[start:end]]

    def size(self, split: str) -> int:
        """Rows of the split. Raises DataError as `load` does."""
        return len(self._split(split))

    def gold(self, sample: Sample) -> str:
        return sample.answer

    def wrong(self, sample: Sample) -> str:
        """An answer of the same sort that neither rule accepts."""
        number = _number(sample.answer)
        others = (
            ["no", "yes", "something else"] if number is None else [f"{2 * number + 7:g}", "none"]
        )
        return next(
            o for o in others if not lenient(sample.answer, o) and not strict(sample.answer, o)
        )

    def _split(self, split: str) -> list[_Checked]:
        if self._rows is None:
            self._rows = _check_file(self.path)
        rows = [r for r in self._rows if r.row.split == split]
        if not rows:
            splits = ", ".join(sorted({r.row.split for r in self._rows}))
            raise DataError(
                f"{self.path} has no rows of split {split!r}; there are: {splits} "
                f"(rows that name no split are {DEFAULT_SPLIT})."
            )
        return rows

    def _sample(self, checked: _Checked, store: ImageStore) -> Sample:
        row = checked.row
        for name, ref in zip(row.names, checked.images, strict=True):
            view = _open(self.path.parent, name)
            if isinstance(view, str) or view.ref != ref:
                raise DataError(
                    f"Picture {name!r} of {self.path} changed while in use; start again."
                )
            store.add(view)
        evidence = tuple(
            Evidence(checked.images[e.image], Box(*e.box), e.phrase) for e in row.evidence
        )
        return Sample(
            id=checked.id,
            question=row.question,
            images=checked.images,
            answer=row.answer,
            evidence=evidence,
            kind=row.kind,
            stratum=row.stratum,
            # Questions about one picture are not independent of each other.
            meta=((CLUSTER, checked.images[0].key),),
        )


def _number(text: str) -> float | None:
    try:
        value = float(text.strip().rstrip("%").replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


# --- checking -------------------------------------------------------------------------------------


def _check_file(path: Path) -> tuple[_Checked, ...]:
    """All rows with the references of their pictures; DataError where any of them is bad."""
    rows: dict[int, _Row] = {}
    problems: dict[int, list[str]] = {}
    for line, text in _lines(path):
        try:
            rows[line] = _Row.model_validate_json(text)
        except ValidationError as error:
            problems[line] = list(dict.fromkeys(_reason(detail) for detail in error.errors()))
    if not rows and not problems:
        raise DataError(f"{path} holds no rows; write one JSON object a line.")
    pictures = _pictures(path.parent, sorted({n for row in rows.values() for n in row.names}))
    checked = []
    first_lines: dict[str, int] = {}
    for line, row in rows.items():
        row_id = row.id if row.id is not None else f"line-{line}"
        first = first_lines.setdefault(row_id, line)
        reasons = [f"id {row_id!r} stands in line {first} already"] if first != line else []
        found = [pictures[name] for name in row.names]
        refs = tuple(f for f in found if isinstance(f, ImageRef))
        reasons += dict.fromkeys(f for f in found if isinstance(f, str))
        if len(refs) == len(found):
            reasons += _outside(row, refs)
            checked.append(_Checked(row_id, row, refs))
        if reasons:
            problems[line] = reasons
    if problems:
        raise DataError(_report(path, problems, total=len(rows.keys() | problems.keys())))
    return tuple(checked)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbers and contents of the lines that are not blank."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if text.strip():
                    yield number, text
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}.") from None


def _pictures(folder: Path, names: Sequence[str]) -> dict[str, ImageRef | str]:
    """What each picture is, or the reason why it can't be used. Pixels are not kept."""

    def ref_of(name: str) -> ImageRef | str:
        view = _open(folder, name)
        return view if isinstance(view, str) else view.ref

    with ThreadPoolExecutor(max_workers=4) as pool:
        return dict(zip(names, pool.map(ref_of, names), strict=True))


def _open(folder: Path, name: str) -> ImageView | str:
    """The picture, or the reason why it can't be used."""
    try:
        root = folder.resolve()
        path = (root / name).resolve()
        if not path.is_relative_to(root):
            return f"picture {name!r} lies outside the folder of the file; move or copy it there"
        if not path.is_file():
            return f"there is no picture {name!r}"
        return root_view(load_image(path))
    except ImageError as error:
        return f"picture {name!r}: {str(error).rstrip('.')}"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return f"picture {name!r} can't be opened ({error})"


def _outside(row: _Row, images: Sequence[ImageRef]) -> Iterator[str]:
    for number, item in enumerate(row.evidence):
        ref = images[item.image]
        x0, y0, x1, y1 = item.box
        if x0 < 0 or y0 < 0 or x1 > ref.width or y1 > ref.height:
            yield (
                f"evidence {number}: box {list(item.box)} reaches outside the upright picture of "
                f"{ref.width} x {ref.height} pixels"
            )


def _report(path: Path, problems: Mapping[int, Sequence[str]], *, total: int) -> str:
    lines = [f"{len(problems)} of {total} rows of {path} can't be used; mend or remove them:"]
    for line in sorted(problems)[:LISTED]:
        lines.append(f"  line {line}: {'; '.join(problems[line])}")
    if len(problems) > LISTED:
        lines.append(f"  and {len(problems) - LISTED} more")
    return "\n".join(lines)


def _reason(detail: ErrorDetails) -> str:
    """What is wrong with a field, as part of a sentence."""
    where = " ".join(str(part) for part in detail["loc"])
    kind, message = detail["type"], detail["msg"]
    if kind == "json_invalid":
        return f"is not JSON ({message.removeprefix('Invalid JSON: ')})"
    if kind == "missing":
        return f"{where} is missing"
    if kind == "extra_forbidden":
        known = _EvidenceRow.model_fields if len(detail["loc"]) > 1 else _Row.model_fields
        near = difflib.get_close_matches(str(detail["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        return f"{where} is an unknown field, {hint}"
    if kind == "value_error":
        return f"{where} {detail['ctx']['error']}".strip()
    got = repr(detail["input"])
    got = got if len(got) <= 60 else f"{got[:57]}..."
    return f"{where or 'the row'} {message.removeprefix('Input ')}, got {got}"
