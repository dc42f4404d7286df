"""What the tasks on published data sets share: rows from files, pictures from a folder, a hub id.

The rows lie in `path` (the folder of the data set, or one of its files), or in a data set of the
hub's, named by `repo` and pinned by `revision`, a whole commit. Pictures are looked for in the
folder `images`, else beside the rows. A split is one of the usual names, or the name of a file in
the folder without its ending.

Invariant: a split is used whole, or without rows that are named. All of its rows and pictures are
checked before the first sample is given out, and everything that is wrong is reported together. A
picture that is missing is never replaced: its rows are left out only where `skip_missing` says so,
rows that can't be used only where `skip_bad` does, and either are listed. Under `check: read`
pictures are opened as their rows are read; before that they are only looked for. Nothing outside
the two folders is read, and no code of a data set is fetched, let alone run.

Left out on purpose: pictures inside parquet files and archives (unpack them and name the folder),
downloads of pictures by their links, and splits drawn at random.
"""

from __future__ import annotations

import codecs
import json
import math
import os
import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, ClassVar, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from saccade.errors import DataError, ImageError, RecipeError
from saccade.geometry import Box
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.picture_files import load_image
from saccade.progress import progress
from saccade.rewards import Rubric, answer
from saccade.rewards.answers import lenient, strict
from saccade.tasks import CLUSTER
from saccade.types import Evidence, ImageRef, Sample

__all__ = [
    "BadRow",
    "Filled",
    "Published",
    "PublishedRow",
    "Question",
    "asked",
    "fetched",
    "json_lines",
    "json_list",
    "json_members",
    "json_object",
    "validated",
]

LISTED = 20
"""Bad rows that a report spells out, and pictures that one of what was left out does; an error
spells out all pictures."""
CHECKS = ("all", "read")
"""When pictures are opened: all before the first sample, or each as its rows are read."""
WHOLE = 0.999
"""A box with this share of its picture is the whole picture, which no gaze covers."""
UNREAD = ("*.py", "*.parquet", "*.arrow", "*.zip", "*.tar", "*.gz", "*.tgz")
"""Files of the hub that are not fetched: code, and what is not read here."""
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_SPLIT = re.compile(r"\w[\w.-]*")


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


Filled = Annotated[str, AfterValidator(_not_blank)]


class PublishedRow(BaseModel):
    """Base of the rows of a data set: the columns that are read; others may stand beside them."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


@dataclass(frozen=True, slots=True)
class Question:
    """What a row asks, before its picture was opened."""

    where: str
    """The place of the row, for reports."""
    text: str
    answer: str
    places: tuple[str, ...]
    """Where in the folder of pictures its own may lie; the first that is there is taken."""
    kind: str = ""
    stratum: str = ""
    boxes: tuple[tuple[Box, str], ...] = ()
    """What the answer rests on, in pixels of the picture, each with its phrase."""
    size: tuple[int, int] | None = None
    """Width and height that the data set states; the picture must have them."""
    choices: int | None = None
    """How many answers there are to choose from, where that is known."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that can't be used, and why."""

    where: str
    reasons: tuple[str, ...]


class _Lost(str):
    """One sentence about a picture that is missing or broken."""


class _Used(NamedTuple):
    """A question whose picture is there."""

    number: int
    """Of the row in its split, counted from 0 before any is left out."""
    question: Question
    path: Path


class Published(ABC):
    """Base of the tasks on published data sets; right or wrong by the strict rule."""

    name: ClassVar[str]
    usual: ClassVar[Mapping[str, tuple[str, ...]]]
    """The files of each split, as the data set names them."""
    ending: ClassVar[str] = ".json"
    """Of the files that hold rows."""

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
    ) -> None:
        """Nothing is read or fetched before the first `load`. `skip_missing` leaves out rows whose
        pictures are missing or broken, `skip_bad` rows that can't be used, and both list them.
        `check` is `all`, or `read`: pictures are opened as their rows are read, so that a large
        split begins at once, and one that is broken is an error then. Raises RecipeError for
        options that don't fit each other.
        """
        _check_options(self.name, path, images, repo, revision)
        for option, value in (("skip_missing", skip_missing), ("skip_bad", skip_bad)):
            if not isinstance(value, bool):
                raise RecipeError(
                    f"Option {option!r} of task {self.name} must be true or false, got {value!r}."
                )
        if check not in CHECKS:
            raise RecipeError(
                f"Option 'check' of task {self.name} must be {' or '.join(CHECKS)}, got {check!r}."
            )
        self.rubric = Rubric(((answer, 1.0),))
        self.skip_missing, self.skip_bad, self.check = skip_missing, skip_bad, check
        self._path = None if path is None else Path(path)
        self._images = None if images is None else Path(images)
        self._repo, self._revision = repo, revision
        self._splits: dict[str, tuple[_Used, ...]] = {}
        self._opened: dict[Path, ImageRef] = {}

    @abstractmethod
    def read(self, path: Path) -> Iterator[Question | BadRow]:
        """The rows of one file in its order. Raises DataError where the file can't be read."""

    def usual_files(self, folder: Path) -> Mapping[str, tuple[str, ...]]:
        """The files of each split in that folder."""
        return self.usual

    def load(
        self, split: str, *, store: ImageStore, start: int = 0, count: int | None = None
    ) -> Sequence[Sample]:
        """Rows of the split in the order of its files. The first call checks all of them, their
        pictures as `check` says.

        Raises DataError: for bad rows and lost pictures, listed, and for a split that is not there.
        """
        if start < 0 or (count is not None and count < 0):
            raise ValueError(f"start and count must be 0 or more, got {start} and {count}.")
        end = None if count is None else start + count
        return [self._sample(split, row, store) for row in self._rows(split)[start:end]]

    def size(self, split: str) -> int:
        """Rows of the split that are used. Raises DataError as `load` does."""
        return len(self._rows(split))

    def gold(self, sample: Sample) -> str:
        return sample.answer

    def wrong(self, sample: Sample) -> str:
        """An answer of the same sort that neither rule accepts."""
        gold = sample.answer.casefold()
        opposites = {"true": "false", "false": "true", "yes": "no", "no": "yes"}
        number = _number(gold)
        others = [f"{2 * number + 7:g}", "none"] if number is not None else ["no", "something else"]
        if gold in opposites:
            others.insert(0, opposites[gold])
        return next(o for o in others if not lenient(gold, o) and not strict(gold, o))

    @property
    def folder(self) -> Path:
        """Where the rows lie; fetched from the hub where that was not done before."""
        if self._path is None:
            self._path = fetched(self._repo or "", self._revision or "")
        return self._path.parent if self._path.is_file() else self._path

    def _rows(self, split: str) -> tuple[_Used, ...]:
        if split not in self._splits:
            self._splits[split] = self._check(split)
        return self._splits[split]

    def _files(self, split: str) -> list[Path]:
        folder = self.folder
        if not folder.is_dir():
            raise DataError(f"There is no file or folder {folder}; check the option path.")
        usual = self.usual_files(folder)
        if self._path is not None and self._path.is_file():
            only = next((s for s, names in usual.items() if self._path.name in names), "test")
            if split != only:
                raise DataError(
                    f"{self._path} is split {only!r} of task {self.name}, and there is no "
                    f"{split!r}; give the folder as path to have all its splits."
                )
            return [self._path]
        alone = folder / f"{split}{self.ending}"
        if split not in usual and _SPLIT.fullmatch(split) and alone.is_file():
            return [alone]
        names = usual.get(split, ())
        absent = [n for n in names if not (folder / n).is_file()]
        if absent or not names:
            there = sorted(p.name for p in folder.glob(f"*{self.ending}"))
            raise DataError(
                f"Task {self.name} has no split {split!r} in {folder}: it needs "
                f"{', '.join(absent or [alone.name])}, and there are: "
                f"{', '.join(there) or f'no files that end in {self.ending}'}."
            )
        return [folder / n for n in names]

    def _check(self, split: str) -> tuple[_Used, ...]:
        """The rows that are used; DataError where any can't be and nothing says to leave it out."""
        files = self._files(split)
        read = [row for path in files for row in self.read(path)]
        if not read:
            raise DataError(f"{files[0]} holds no rows; download it again.")
        problems = {row.where: list(row.reasons) for row in read if isinstance(row, BadRow)}
        pictures = self._pictures({row.places for row in read if isinstance(row, Question)})
        used, lost, cut = [], [], 0
        for number, row in enumerate(read):
            if isinstance(row, BadRow):
                continue
            picture = pictures[row.places]
            if isinstance(picture, _Lost):
                lost.append(picture)
                continue
            if isinstance(picture, str):
                problems[row.where] = [picture]
                continue
            if picture.image is not None:
                self._opened[picture.path] = picture.image
                evidence, reasons = _evidence(row, picture.image)
                if reasons:
                    problems[row.where] = reasons
                    continue
                cut += sum(e.box not in {box for box, _ in row.boxes} for e in evidence)
            used.append(_Used(number, row, picture.path))
        listed = sorted(set(lost))
        folder, total = self._picture_folder(), len(read)
        if (problems and not self.skip_bad) or (lost and not self.skip_missing) or not used:
            rows = _report_rows(files, problems, total=total, skips=self.skip_bad)
            seen = _report_pictures(folder, listed, len(pictures), skips=self.skip_missing)
            raise DataError("\n".join([*rows, *seen]))
        where = f"{self.name}/{split}"
        if lost:
            _say_left_out(
                f"{where}: left out {len(lost)} of {total} rows, for pictures that are missing or "
                f"broken: {len(listed)}.",
                listed,
                all_by="skip_missing: false",
            )
        if problems:
            _say_left_out(
                f"{where}: left out {len(problems)} of {total} rows, which can't be used.",
                [f"{place}: {'; '.join(reasons)}" for place, reasons in problems.items()],
                all_by="",
            )
        if cut:
            _say(f"{where}: boxes cut at the border of their picture: {cut}.")
        return tuple(used)

    def _picture_folder(self) -> Path:
        return self.folder if self._images is None else self._images

    def _pictures(
        self, wanted: set[tuple[str, ...]]
    ) -> dict[tuple[str, ...], _Picture | _Lost | str]:
        """Where each picture lies and, where all are opened, what it is; or the reason why it can't
        be used. Pixels are not kept.
        """
        opens = self.check == "all"
        root = self._picture_folder()
        if not root.is_dir():
            raise DataError(f"There is no folder of pictures {root}; name it with option images.")
        bound = root.resolve()
        if self._images is None and self._repo is not None and bound.parent.name == "snapshots":
            bound = bound.parent.parent  # the hub's cache keeps the bytes beside its snapshots
        names = sorted(wanted)
        with (
            ThreadPoolExecutor(max_workers=4) as pool,
            progress(f"check pictures of {self.name}", total=len(names)) as bar,
        ):
            found: dict[tuple[str, ...], _Picture | _Lost | str] = {}
            for name, picture in zip(
                names, pool.map(lambda p: _picture(root, bound, p, opens), names), strict=True
            ):
                found[name] = picture
                bar.advance()
        return found

    def _sample(self, split: str, row: _Used, store: ImageStore) -> Sample:
        known = self._opened.get(row.path)
        try:
            view = root_view(load_image(row.path))
        except ImageError as error:
            if known is None:
                raise DataError(str(error)) from error
            view = None
        if view is None or view.ref != self._opened.setdefault(row.path, view.ref):
            raise DataError(f"Picture {row.path} changed while in use; start again.")
        question = row.question
        evidence, reasons = _evidence(question, view.ref)
        if reasons:
            raise DataError(
                f"Row {question.where} can't be used ({'; '.join(reasons)}): mend or remove it, or "
                "set check: all with skip_bad: true."
            )
        store.add(view)
        # Questions about one picture are not independent of each other.
        meta = [(CLUSTER, view.ref.key)]
        if question.choices is not None:
            meta.insert(0, ("choices", str(question.choices)))
        return Sample(
            id=f"{self.name}/{split}/{row.number}",
            question=question.text,
            images=(view.ref,),
            answer=question.answer,
            evidence=evidence,
            kind=question.kind,
            stratum=question.stratum,
            meta=tuple(meta),
        )


def _check_options(name: str, path: object, images: object, repo: object, revision: object) -> None:
    if (path is None) == (repo is None):
        raise RecipeError(
            f"Task {name} needs either the option 'path', a folder or file, or 'repo', an id of "
            "the hub's."
        )
    for option, value in (("path", path), ("images", images)):
        if value is not None and not isinstance(value, str | os.PathLike):
            raise RecipeError(f"Option {option!r} of task {name} must be a path, got {value!r}.")
    if repo is not None and not (isinstance(repo, str) and _HUB_ID.fullmatch(repo)):
        raise RecipeError(f"Option 'repo' of task {name} must be OWNER/NAME, got {repo!r}.")
    if repo is None and revision is not None:
        raise RecipeError(f"Option 'revision' of task {name} belongs to 'repo', which is not set.")
    if repo is not None and not (isinstance(revision, str) and _COMMIT.fullmatch(revision)):
        raise RecipeError(
            f"Option 'revision' of task {name} must be a whole commit, 40 of 0-9 and a-f, so that "
            f"the data can't change under a run, got {revision!r}."
        )


# --- the hub --------------------------------------------------------------------------------------


def fetched(repo: str, revision: str) -> Path:
    """The folder of a data set of the hub's at that commit; one that is there needs no network.

    Raises RecipeError without the package of the hub, DataError where the data can't be fetched.
    """
    try:
        import huggingface_hub
        from huggingface_hub.errors import (
            HfHubHTTPError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise RecipeError(
            f"Fetching {repo!r} needs an extra package: pip install huggingface_hub, or download "
            "it yourself and give its folder as path."
        ) from None
    # which library its requests go through depends on the version of the hub's package
    network: type[Exception] = next(
        c for c in HfHubHTTPError.__mro__ if issubclass(c, Exception) and c.__name__ == "HTTPError"
    )
    try:
        found = huggingface_hub.snapshot_download(
            repo, repo_type="dataset", revision=revision, ignore_patterns=list(UNREAD)
        )
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise DataError(
            f"The hub has no data set {repo!r} at commit {revision}, or shows it to nobody without "
            "an account: check both, or download it yourself and give its folder as path."
        ) from None
    except (OSError, ValueError, network) as error:
        first = str(error).strip().partition("\n")[0].rstrip(".")
        raise DataError(
            f"Data set {repo!r} can't be fetched ({first}): download it on another machine, copy "
            "it over and give its folder as path."
        ) from error
    return Path(found)


# --- rows -----------------------------------------------------------------------------------------

RowT = TypeVar("RowT", bound=PublishedRow)


def asked(
    rows: Iterable[tuple[str, object]],
    model: type[RowT],
    question: Callable[[str, RowT], Question],
) -> Iterator[Question | BadRow]:
    """What each row asks: checked by `model`, put into words by `question`.

    `question` raises ValueError, a part of a sentence, for a row that contradicts itself.
    """
    for where, told in rows:
        row = validated(model, where, told)
        if isinstance(row, BadRow):
            yield row
            continue
        try:
            yield question(where, row)
        except ValueError as error:
            yield BadRow(where, (str(error),))


def validated(model: type[RowT], where: str, told: object) -> RowT | BadRow:
    """A row from JSON text (bytes) or from a value that was read from JSON."""
    try:
        if isinstance(told, bytes):
            return model.model_validate_json(told)
        return model.model_validate(told)
    except ValidationError as error:
        return BadRow(where, tuple(dict.fromkeys(_reason(detail) for detail in error.errors())))


def json_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Place and content of each line that is not blank."""
    for number, line in enumerate(_bytes(path).split(b"\n"), 1):
        if line.strip():
            yield f"{path.name} line {number}", line.strip()


def json_list(path: Path) -> Iterator[tuple[str, object]]:
    """Place and value of each row of a file that is one JSON list."""
    for number, row in enumerate(_json(path, list), 1):
        yield f"{path.name} row {number}", row


def json_object(path: Path) -> Iterator[tuple[str, object]]:
    """Place and value of each row of a file that is a JSON object of rows by their id."""
    for key, row in json_members(path).items():
        yield f"{path.name} row {key}", row


def json_members(path: Path) -> dict[str, object]:
    """The members of a file that is one JSON object."""
    return _json(path, dict)


JsonT = TypeVar("JsonT", dict[str, object], list[object])


def _json(path: Path, kind: type[JsonT]) -> JsonT:
    try:
        told = json.loads(_bytes(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}); download it again.") from None
    if not isinstance(told, kind):
        want = "list" if kind is list else "object"
        raise DataError(
            f"{path} must hold a JSON {want}, it holds a {type(told).__name__}; check that it is "
            "the file of this data set."
        )
    return told


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes().removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror}.") from None


def _reason(detail: ErrorDetails) -> str:
    """What is wrong with a column, as part of a sentence."""
    where = " ".join(str(part) for part in detail["loc"]) or "the row"
    kind, message = detail["type"], detail["msg"]
    if kind == "json_invalid":
        return f"is not JSON ({message.removeprefix('Invalid JSON: ')})"
    if kind == "missing":
        return f"{where} is missing"
    if kind == "value_error":
        return f"{where} {detail['ctx']['error']}"
    got = repr(detail["input"])
    got = got if len(got) <= 60 else f"{got[:57]}..."
    return f"{where} {message.removeprefix('Input ')}, got {got}"


def _number(text: str) -> float | None:
    try:
        value = float(text.strip().rstrip("%").replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


# --- pictures -------------------------------------------------------------------------------------


class _Picture(NamedTuple):
    """Where a picture lies, and what it is, if it was opened."""

    path: Path
    image: ImageRef | None


def _picture(root: Path, bound: Path, places: Sequence[str], opens: bool) -> _Picture | _Lost | str:
    """The picture, or one sentence where it is lost, or the reason why its rows can't be used."""
    for place in places:
        path = root / place
        try:
            if PurePath(place).is_absolute() or ".." in PurePath(place).parts:
                return f"picture {place!r} lies outside the folder of pictures; copy it there"
            if not path.is_file():
                continue
            if not path.resolve().is_relative_to(bound):
                return f"picture {place!r} lies outside the folder of pictures; copy it there"
            return _Picture(path, root_view(load_image(path)).ref if opens else None)
        except ImageError as error:
            return _Lost(error)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            return f"picture {place!r} can't be opened ({error})"
    others = ", ".join(repr(place) for place in places[1:])
    return _Lost(f"There is no picture {places[0]!r}{f' (nor {others})' if others else ''}.")


def _evidence(row: Question, image: ImageRef) -> tuple[tuple[Evidence, ...], list[str]]:
    """The boxes of a row on its picture, and what is wrong with them.

    Boxes are cut at the border only where the data set states the size of the picture and is right
    about it; otherwise they may be in another frame. Boxes of the whole picture are left out.
    """
    if row.size is not None and row.size != (image.width, image.height):
        return (), [
            f"states {row.size[0]} x {row.size[1]} pixels, but its picture has {image.width} x "
            f"{image.height}; find the original picture, since boxes would lie elsewhere"
        ]
    evidence, reasons = [], []
    for number, (box, phrase) in enumerate(row.boxes):
        inside = box.clip(image.width, image.height)
        if inside is None or (inside != box and row.size is None):
            reasons.append(
                f"box {number}, {box.as_tuple()} as corners, lies outside its picture of "
                f"{image.width} x {image.height} pixels"
            )
        elif inside.area < WHOLE * image.box.area:
            evidence.append(Evidence(image, inside, phrase))
    return tuple(evidence), reasons


# --- reports --------------------------------------------------------------------------------------


def _report_rows(
    files: Sequence[Path], problems: Mapping[str, Sequence[str]], *, total: int, skips: bool
) -> Iterator[str]:
    if not problems:
        return
    told = ", ".join(str(path) for path in files)
    advice = "mend or remove them" + ("" if skips else ", or set skip_bad to leave them out")
    yield f"{len(problems)} of {total} rows of {told} can't be used; {advice}:"
    yield from _first(f"{where}: {'; '.join(reasons)}" for where, reasons in problems.items())


def _report_pictures(
    folder: Path, lost: Sequence[str], total: int, *, skips: bool
) -> Iterator[str]:
    if not lost:
        return
    advice = "download them" if skips else "download them, or set skip_missing to do without"
    yield (
        f"{len(lost)} of {total} pictures in {folder} are missing or broken; name another folder "
        f"with option images, {advice}:"
    )
    yield from (f"  {sentence}" for sentence in lost)


def _first(told: Iterable[str], *, all_by: str = "") -> Iterator[str]:
    """The first of them, each in a line, and how many more there are."""
    lines = list(told)
    yield from (f"  {line}" for line in lines[:LISTED])
    if len(lines) > LISTED:
        yield f"  and {len(lines) - LISTED} more" + (f" ({all_by} lists all)" if all_by else "")


def _say_left_out(head: str, told: Sequence[str], *, all_by: str) -> None:
    _say("\n".join([head, *_first(told, all_by=all_by)]))


def _say(text: str) -> None:
    print(text, file=sys.stderr)
