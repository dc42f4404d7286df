"""The run folder: what a run leaves behind, whole at every moment, and episodes as JSON.

Invariant: a process killed at any point, or a disk that fills up, loses at most the row or the
checkpoint that was being written; everything that was reported as stored is read again unchanged.
One process writes a run at a time; any number may read it meanwhile.
Left out on purpose: pictures (`saccade.images.ImageStore` keeps them under `images/`, by content),
network file systems without locks (the run then goes unguarded), and systems without `flock`.

A run folder holds `recipe.yaml`, `env.json`, `episodes.jsonl`, `metrics.jsonl`, `results.json`,
`images/` and `checkpoints/step-000123/`, each where the run had something to put there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import platform
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from saccade.errors import DataError, StorageError
from saccade.geometry import Affine, Box, Mask
from saccade.types import (
    Answer,
    BadCall,
    BoxFound,
    BoxNamed,
    Derivation,
    Episode,
    Evidence,
    ImagePart,
    ImageRef,
    ImageShown,
    MaskFound,
    Message,
    Parsed,
    Part,
    Sample,
    Score,
    Segment,
    StopReason,
    Text,
    ToolCall,
    ToolResult,
    TurnRecord,
)

__all__ = [
    "SCHEMA",
    "RunFolder",
    "environment",
    "episode_from_json",
    "episode_to_json",
    "replacing",
    "write_atomic",
]

SCHEMA = 1
"""Version of the JSON form of an episode; a reader refuses any other."""

_PACKAGES = (
    "saccade",
    "numpy",
    "pillow",
    "pydantic",
    "scipy",
    "matplotlib",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "peft",
)
_STEP = re.compile(r"(?:\.old-)?step-(\d{6,})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_BLOCK = 1 << 16
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


# --- errors of the file system --------------------------------------------------------------------


def _sentence(what: str, error: BaseException) -> str:
    """What was not written, why, and what to do. Names the file, never the path of the user."""
    code = error.errno if isinstance(error, OSError) else errno.ENOSPC
    if code in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk is full, {what} was not written: "
            "free some space and run the same command again."
        )
    if code in (errno.EACCES, errno.EPERM):
        return (
            f"No permission to write {what}: make its folder writable or choose another run folder."
        )
    if code == errno.EROFS:
        return f"The file system is read-only, {what} was not written: choose another run folder."
    if code in (errno.EEXIST, errno.ENOTDIR):
        return f"A file stands where the folder of {what} should be: choose another run folder."
    reason = os.strerror(code or errno.EIO)
    return f"The disk refused {what} ({reason}): check it and run the same command again."


class _Writing:
    """Turns what the file system refuses inside a `with` block into a StorageError.

    Libraries that write tensors wrap a full disk in errors of their own; their text gives it away.
    """

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        wrapped = error is not None and "No space left on device" in str(error)
        if isinstance(error, OSError) or (isinstance(error, Exception) and wrapped):
            raise StorageError(_sentence(self.what, error)) from error


class _Reading:
    """The same for reading."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, OSError):
            reason = os.strerror(error.errno or errno.EIO)
            raise StorageError(f"{self.what} can't be read ({reason}): see its rights.") from error


# --- atomic files ---------------------------------------------------------------------------------


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes) -> None:
    """Puts the file there whole or not at all, and returns when it is on the disk.

    Raises StorageError; what stood there before then stands unchanged.
    """
    temporary = path.with_name(f".tmp-{path.name}-{os.getpid()}-{threading.get_ident()}")
    with _Writing(path.name):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` once it is whole and on the disk.

    Whatever is raised inside leaves the old one as it was; errors of the file system come out as
    StorageError.
    """
    new = folder.parent / f".new-{folder.name}"
    with _Writing(f"{folder.name} of {folder.parent.name!r}"):
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir(parents=True)
            yield new
            _sync_tree(new)
            if folder.exists():
                _discard(folder)
            new.replace(folder)
            _sync_folder(folder.parent)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _without_infinities(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _without_infinities(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without_infinities(v) for v in value]
    return value


def _dumps(value: Any, *, indent: int | None = None) -> bytes:
    separators = (",", ":") if indent is None else (",", ": ")
    text = json.dumps(
        _without_infinities(value), allow_nan=False, separators=separators, indent=indent
    )
    return text.encode("ascii")


# --- the run folder -------------------------------------------------------------------------------

_lock_fds: set[int] = set()


def _drop_locks() -> None:
    while _lock_fds:
        os.close(_lock_fds.pop())


# A forked worker must not keep the run locked after its parent was killed.
os.register_at_fork(after_in_child=_drop_locks)


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each row of a JSONL file with its bytes; what a kill left of a last one is passed over.

    Raises DataError that names the line where an earlier one is no JSON object.
    """
    if not path.exists():
        return
    with _Reading(path.name), open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            row = _row(line)
            if row is not None:
                yield line.rstrip(b"\n"), row
            elif line.strip() and line.endswith(b"\n"):
                start = line[:60].decode("utf-8", "replace")
                raise DataError(
                    f"{path.name} line {number} is no JSON object, correct or delete it: {start!r}."
                )


def _mend(path: Path) -> None:
    """Ends the file with a whole row: a torn last line is cut off, a missing newline is added."""
    if not path.exists():
        return
    with _Writing(path.name), open(path, "r+b") as file:
        tail, start = b"", file.seek(0, os.SEEK_END)
        while start and b"\n" not in tail:
            size = min(_BLOCK, start)
            start = file.seek(start - size)
            tail = file.read(size) + tail
        cut = tail.rfind(b"\n") + 1
        start, tail = start + cut, tail[cut:]
        if not tail:
            return
        # A row is an object, so once it parses it is complete, with its newline or without.
        if _row(tail) is None:
            file.truncate(start)
        else:
            file.seek(0, os.SEEK_END)
            file.write(b"\n")


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line.decode("utf-8"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class RunFolder:
    """One run on disk; as a context manager it takes the run's lock at once.

    Whatever writes takes the lock first; reading never does. `close` gives it back, and so does the
    end of the process, however it ends.
    """

    def __init__(self, path: Path) -> None:
        """Creates the folder. Raises StorageError where that is impossible."""
        self.path = Path(path)
        self._lock_fd: int | None = None
        self._files: dict[str, int] = {}
        self._mutex = threading.RLock()
        with _Writing(f"run {self.path.name!r}"):
            self.path.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> RunFolder:
        self.lock()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- one writer ---

    def lock(self) -> None:
        """Makes this the only writer of the run. Raises StorageError where another is at work."""
        with self._mutex:
            if self._lock_fd is not None:
                return
            with _Writing(f"the lock of run {self.path.name!r}"):
                fd = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
                    os.close(fd)
                    raise StorageError(
                        f"Process {owner or 'unknown'} is writing run {self.path.name!r}: "
                        "wait until it ends, or choose another run folder."
                    ) from None
                except OSError as error:
                    if error.errno not in _NO_LOCKS:
                        os.close(fd)
                        raise
            self._lock_fd = fd
            _lock_fds.add(fd)
            with _Writing(f"the lock of run {self.path.name!r}"):
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()}\n".encode("ascii"), 0)

    def close(self) -> None:
        """Closes the files and gives the lock back; using the folder again takes it again."""
        with self._mutex:
            while self._files:
                os.close(self._files.popitem()[1])
            if self._lock_fd is not None:
                _lock_fds.discard(self._lock_fd)
                os.close(self._lock_fd)
                self._lock_fd = None

    # --- recipe and environment ---

    def write_recipe(self, text: str) -> None:
        """Stores the resolved recipe as `recipe.yaml`."""
        self.lock()
        write_atomic(self.path / "recipe.yaml", text.encode("utf-8"))

    def recipe(self) -> str | None:
        """The stored recipe's text, None where the run has none."""
        return self._text("recipe.yaml")

    def write_env(self, *, threads: int | None = None, device: str = "cpu") -> None:
        """Stores `env.json`: see `environment`."""
        self.write_json("env", environment(threads=threads, device=device))

    # --- JSON ---

    def write_json(self, name: str, value: Any) -> None:
        """Stores `<name>.json` whole or not at all; numbers that JSON lacks become null."""
        self.lock()
        write_atomic(self._file(name, ".json"), _dumps(value, indent=1) + b"\n")

    def read_json(self, name: str) -> Any:
        """What `<name>.json` holds, None where there is no file. DataError where it is no JSON."""
        path = self._file(name, ".json")
        text = self._text(path.name)
        if text is None:
            return None
        try:
            return json.loads(text)
        except ValueError as error:
            raise DataError(f"{path.name} is no JSON: {error}.") from error

    # --- rows ---

    def append(self, name: str, row: Mapping[str, Any], *, durable: bool = False) -> None:
        """Adds one row to `<name>.jsonl`; a kill right after loses nothing.

        `durable` also waits until the disk has it, for what must survive a power cut. Numbers that
        JSON lacks (nan, inf) become null. Raises StorageError; the file then ends with its last
        whole row.
        """
        self.lock()
        path = self._file(name, ".jsonl")
        line = memoryview(_dumps(row) + b"\n")
        with self._mutex, _Writing(path.name):
            fd = self._files.get(path.name)
            if fd is None:
                _mend(path)
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
                self._files[path.name] = fd
            size = os.fstat(fd).st_size
            try:
                while line:
                    line = line[os.write(fd, line) :]
                if durable:
                    os.fsync(fd)
            except OSError:
                os.ftruncate(fd, size)
                raise

    def rows(self, name: str) -> Iterator[dict[str, Any]]:
        """The rows of `<name>.jsonl` one by one, none where there is no such file.

        What a kill left of a last line is passed over. Raises DataError with the line's number
        where an earlier line is no JSON object.
        """
        for _, row in _lines(self._file(name, ".jsonl")):
            yield row

    def read(self, name: str) -> list[dict[str, Any]]:
        """All `rows`; a torn last line is cut off the file where this process holds the lock."""
        with self._mutex:
            if self._lock_fd is not None:
                _mend(self._file(name, ".jsonl"))
            return list(self.rows(name))

    def truncate(self, name: str, *, key: str, after: int) -> int:
        """Drops rows whose `key` is a number above `after`: the interrupted step is redone.

        Rows without the key stay. Returns how many rows went. The file changes as a whole or not at
        all.
        """
        self.lock()
        path = self._file(name, ".jsonl")
        dropped, kept = 0, []
        with self._mutex:
            _mend(path)
            for line, row in _lines(path):
                if isinstance(row.get(key), int | float) and row[key] > after:
                    dropped += 1
                else:
                    kept.append(line + b"\n")
            if dropped:
                if path.name in self._files:
                    os.close(self._files.pop(path.name))
                write_atomic(path, b"".join(kept))
        return dropped

    # --- checkpoints ---

    def save_checkpoint(self, step: int, write: Callable[[Path], None], *, keep: int = 2) -> Path:
        """Stores `checkpoints/step-<step>` whole or not at all; removes older ones beyond `keep`.

        `write` fills the folder it is given. Whatever it raises leaves every earlier checkpoint as
        it was; errors of the file system come out as StorageError.
        """
        if step < 0 or keep < 1:
            raise ValueError(f"A checkpoint needs step >= 0 and keep >= 1, got {step} and {keep}.")
        self.lock()
        folder = self.path / "checkpoints"
        target = folder / f"step-{step:06d}"
        temporary = folder / f".tmp-{target.name}"
        with self._mutex, _Writing(f"checkpoint {target.name} of run {self.path.name!r}"):
            folder.mkdir(exist_ok=True)
            for stale in folder.glob(".tmp-*"):
                shutil.rmtree(stale)
            try:
                temporary.mkdir()
                write(temporary)
                _sync_tree(temporary)
                self._place(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            older = sorted((s for s in self._checkpoints() if s < step), reverse=True)
            for old in older[keep - 1 :]:
                _discard(self._checkpoints()[old])
            _sync_folder(folder)
        return target

    def latest_checkpoint(self) -> tuple[int, Path] | None:
        """(step, folder) of the newest whole checkpoint, None where there is none."""
        found = self._checkpoints()
        return max(found.items()) if found else None

    def _place(self, temporary: Path, target: Path) -> None:
        # A folder can't be replaced in one move: between the two the old one counts as `.old-`.
        old = target.with_name(f".old-{target.name}")
        if target.exists():
            if old.exists():
                _discard(old)
            target.rename(old)
        temporary.rename(target)
        _sync_folder(target.parent)
        if old.exists():
            _discard(old)

    def _checkpoints(self) -> dict[int, Path]:
        folder = self.path / "checkpoints"
        found: dict[int, Path] = {}
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            match = _STEP.fullmatch(path.name)
            if match and path.is_dir():
                found[int(match[1])] = path  # ".old-" sorts first and gives way
        return found

    # --- names ---

    def _file(self, name: str, suffix: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ValueError(f"A file of a run needs a plain name such as 'metrics', got {name!r}.")
        return self.path / (name.removesuffix(suffix) + suffix)

    def _text(self, name: str) -> str | None:
        try:
            return (self.path / name).read_text("utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise DataError(f"{name} is no UTF-8 text: {error.reason}.") from error
        except OSError as error:
            raise StorageError(
                f"{name} can't be read ({os.strerror(error.errno or 0)})."
            ) from error


def _discard(path: Path) -> None:
    """Removes a checkpoint so that half of it is never taken for a whole one."""
    doomed = path.with_name(f".tmp-gone-{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _sync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            fd = os.open(Path(parent) / name, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        _sync_folder(Path(parent))


def environment(*, threads: int | None = None, device: str = "cpu") -> dict[str, Any]:
    """What a run's numbers may depend on: versions, processor, threads. No hosts, users, paths."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": _cores(),
        "threads": threads,
        "device": device,
        "packages": versions,
    }


def _cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    try:
        found = re.search(
            r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        )
    except OSError:
        found = None
    return found[1] if found else platform.processor() or "unknown"


# --- values that JSON lacks -----------------------------------------------------------------------

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def _pack(value: Any) -> Any:
    """JSON with marks, `{"$...": ...}`, for what it lacks: nan, tuples, two surrogates in a row."""
    if isinstance(value, str):
        return {"$text": [ord(c) for c in value]} if _PAIR.search(value) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, dict):
        if all(isinstance(k, str) and not k.startswith("$") and not _PAIR.search(k) for k in value):
            return {k: _pack(v) for k, v in value.items()}
        return {"$dict": [[_pack(k), _pack(v)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"$tuple": [_pack(v) for v in value]}
    if isinstance(value, list):
        return [_pack(v) for v in value]
    return value


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(v) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((mark, inner),) = value.items()
        if mark == "$text":
            return "".join(chr(c) for c in inner)
        if mark == "$float":
            return float(inner)
        if mark == "$tuple":
            return tuple(_unpack(v) for v in inner)
        if mark == "$dict":
            return {_unpack(k): _unpack(v) for k, v in inner}
    return {k: _unpack(v) for k, v in value.items()}


# --- episodes as JSON -----------------------------------------------------------------------------


class _Images:
    """The table of an episode's images, each once, parents before children."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._by_object: dict[int, int] = {}
        self._by_content: dict[str, int] = {}

    def index(self, image: ImageRef) -> int:
        known = self._by_object.get(id(image))
        if known is not None:
            return known
        row: dict[str, Any] = {"key": image.key, "width": image.width, "height": image.height}
        if image.derivation is not None:
            row["parts"] = [
                {
                    "parent": self.index(part.parent),
                    "area": list(part.area.as_tuple()),
                    "to_parent": _affine_numbers(part.to_parent),
                }
                for part in image.parts
            ]
            row["derivation"] = {
                "operation": image.derivation.operation,
                "arguments": [[name, value] for name, value in image.derivation.arguments],
                "version": image.derivation.version,
            }
        content = json.dumps(_pack(row))
        number = self._by_content.setdefault(content, len(self.rows))
        if number == len(self.rows):
            self.rows.append(row)
        self._by_object[id(image)] = number
        return number


def _affine_numbers(affine: Affine) -> list[float]:
    return [affine.a, affine.b, affine.c, affine.d, affine.e, affine.f]


def episode_to_json(episode: Episode, *, segments: bool = True) -> dict[str, Any]:
    """The episode as plain JSON values, from which `episode_from_json` makes an equal episode.

    Images stand as numbers of rows in the table `images`. `segments=False` leaves the tokens out.
    """
    images = _Images()
    value = {
        "sample": _sample_out(episode.sample, images),
        "rollout_index": episode.rollout_index,
        "messages": [
            {"role": m.role, "parts": [_part_out(p, images) for p in m.parts]}
            for m in episode.messages
        ],
        "turns": [_turn_out(t, images) for t in episode.turns],
        "stop": episode.stop.value if episode.stop else None,
        "error": episode.error,
        "score": _score_out(episode.score),
        "seconds": episode.seconds,
    }
    if segments:
        value["segments"] = [
            {
                "origin": s.origin,
                "ids": list(s.ids),
                "logprobs": list(s.logprobs),
                "images": [images.index(i) for i in s.images],
                "policy_version": s.policy_version,
            }
            for s in episode.segments
        ]
    packed: dict[str, Any] = _pack({"schema": SCHEMA, "images": images.rows, **value})
    return packed


def episode_from_json(value: Mapping[str, Any]) -> Episode:
    """The episode that `episode_to_json` wrote. Raises DataError where the value is none."""
    schema = value.get("schema")
    if schema != SCHEMA:
        raise DataError(
            f"Episode has schema {schema!r}, this version of saccade reads {SCHEMA}: "
            "read it with the version that wrote it."
        )
    try:
        return _episode_in(_unpack(dict(value)))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"Episode can't be read: {type(error).__name__}: {error}.") from error


def _episode_in(value: dict[str, Any]) -> Episode:
    images: list[ImageRef] = []
    for row in value["images"]:
        images.append(_image_in(row, images))
    score, stop = value["score"], value["stop"]
    return Episode(
        sample=_sample_in(value["sample"], images),
        rollout_index=value["rollout_index"],
        messages=tuple(
            Message(m["role"], tuple(_part_in(p, images) for p in m["parts"]))
            for m in value["messages"]
        ),
        turns=tuple(_turn_in(t, images) for t in value["turns"]),
        segments=tuple(
            Segment(
                s["origin"],
                tuple(s["ids"]),
                tuple(s["logprobs"]),
                tuple(_at(images, i) for i in s["images"]),
                s["policy_version"],
            )
            for s in value.get("segments", ())
        ),
        stop=None if stop is None else StopReason(stop),
        error=value["error"],
        score=None if score is None else _score_in(score),
        seconds=value["seconds"],
    )


def _at(images: Sequence[ImageRef], number: int) -> ImageRef:
    if not 0 <= number < len(images):
        raise IndexError(f"image {number} of {len(images)}")
    return images[number]


def _image_in(row: dict[str, Any], images: Sequence[ImageRef]) -> ImageRef:
    made = row.get("derivation")
    if made is None:
        return ImageRef(row["key"], row["width"], row["height"])
    parts = tuple(
        ImagePart(_at(images, p["parent"]), Box(*p["area"]), Affine(*p["to_parent"]))
        for p in row["parts"]
    )
    arguments = tuple((name, argument) for name, argument in made["arguments"])
    derivation = Derivation(made["operation"], arguments, made["version"])
    return ImageRef(row["key"], row["width"], row["height"], parts, derivation)


def _sample_out(sample: Sample, images: _Images) -> dict[str, Any]:
    return {
        "id": sample.id,
        "question": sample.question,
        "images": [images.index(i) for i in sample.images],
        "answer": sample.answer,
        "evidence": [
            {"image": images.index(e.image), "box": list(e.box.as_tuple()), "phrase": e.phrase}
            for e in sample.evidence
        ],
        "kind": sample.kind,
        "stratum": sample.stratum,
        "meta": [[name, text] for name, text in sample.meta],
    }


def _sample_in(value: dict[str, Any], images: Sequence[ImageRef]) -> Sample:
    return Sample(
        id=value["id"],
        question=value["question"],
        images=tuple(_at(images, i) for i in value["images"]),
        answer=value["answer"],
        evidence=tuple(
            Evidence(_at(images, e["image"]), Box(*e["box"]), e["phrase"])
            for e in value["evidence"]
        ),
        kind=value["kind"],
        stratum=value["stratum"],
        meta=tuple((name, text) for name, text in value["meta"]),
    )


def _part_out(part: Part, images: _Images) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    image = images.index(part.image)
    if isinstance(part, ImageShown):
        return {"type": "image", "image": image, "name": part.name}
    shared = {"image": image, "label": part.label, "score": part.score}
    if isinstance(part, BoxFound):
        return {"type": "box", "box": list(part.box.as_tuple()), **shared}
    mask = part.mask
    return {
        "type": "mask",
        "mask": {"width": mask.width, "height": mask.height, "runs": list(mask.runs)},
        **shared,
    }


def _part_in(value: dict[str, Any], images: Sequence[ImageRef]) -> Part:
    kind = value["type"]
    if kind == "text":
        return Text(value["text"])
    image = _at(images, value["image"])
    if kind == "image":
        return ImageShown(image, value["name"])
    if kind == "box":
        return BoxFound(image, Box(*value["box"]), value["label"], value["score"])
    if kind == "mask":
        mask = value["mask"]
        found = Mask(mask["width"], mask["height"], tuple(mask["runs"]))
        return MaskFound(image, found, value["label"], value["score"])
    raise ValueError(f"unknown part {kind!r}")


def _call_out(call: ToolCall | BadCall) -> dict[str, Any]:
    if isinstance(call, BadCall):
        return {"raw": call.raw, "reason": call.reason}
    return {"id": call.id, "name": call.name, "arguments": call.arguments}


def _call_in(value: dict[str, Any]) -> ToolCall | BadCall:
    if "raw" in value:
        return BadCall(value["raw"], value["reason"])
    return ToolCall(value["id"], value["name"], value["arguments"])


def _named_out(named: Sequence[BoxNamed], images: _Images) -> list[dict[str, Any]]:
    return [
        {"image": images.index(n.image), "box": list(n.box.as_tuple()), "phrase": n.phrase}
        for n in named
    ]


def _named_in(values: Sequence[dict[str, Any]], images: Sequence[ImageRef]) -> Iterator[BoxNamed]:
    for value in values:
        yield BoxNamed(_at(images, value["image"]), Box(*value["box"]), value["phrase"])


def _turn_out(turn: TurnRecord, images: _Images) -> dict[str, Any]:
    answer = turn.parsed.answer
    return {
        "thought": turn.parsed.thought,
        "calls": [_call_out(c) for c in turn.parsed.calls],
        "answer": None if answer is None else answer.text,
        "named": _named_out(turn.named, images),
        "results": [
            {
                "call": _call_out(r.call),
                "parts": [_part_out(p, images) for p in r.parts],
                "failed": r.failed,
                "seconds": r.seconds,
                "named": _named_out(r.named, images),
            }
            for r in turn.results
        ],
    }


def _turn_in(value: dict[str, Any], images: Sequence[ImageRef]) -> TurnRecord:
    answer = value["answer"]
    return TurnRecord(
        Parsed(
            thought=value["thought"],
            calls=tuple(_call_in(c) for c in value["calls"]),
            answer=None if answer is None else Answer(answer),
        ),
        tuple(
            ToolResult(
                call=_call_in(r["call"]),
                parts=tuple(_part_in(p, images) for p in r["parts"]),
                failed=r["failed"],
                seconds=r["seconds"],
                named=tuple(_named_in(r["named"], images)),
            )
            for r in value["results"]
        ),
        tuple(_named_in(value["named"], images)),
    )


def _score_out(score: Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    turns = None if score.turns is None else list(score.turns)
    return {"value": score.value, "name": score.name, "detail": score.detail, "turns": turns}


def _score_in(value: dict[str, Any]) -> Score:
    turns = value["turns"]
    return Score(
        value["value"],
        value["name"],
        value["detail"],
        None if turns is None else tuple(turns),
    )
