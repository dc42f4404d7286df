"""The run folder: what a run leaves behind, whole at every moment.

Invariant: a process killed at any point, or a disk that fills up, loses at most the row or the
checkpoint that was being written; everything that was reported as stored is read again unchanged.
One process writes a run at a time; any number may read it meanwhile.
Left out on purpose: pictures (`saccade.image_store` keeps them under `images/`, by content),
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
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from saccade.atomic_files import Reading, Writing, discard, sync_folder, sync_tree, write_atomic
from saccade.environment import environment
from saccade.errors import DataError, StorageError

__all__ = ["RunFolder", "stage_of_tool"]

_STEP = re.compile(r"(?:\.old-)?step-(\d{6,})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_BLOCK = 1 << 16
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_lock_fds: set[int] = set()


def _drop_locks() -> None:
    while _lock_fds:
        os.close(_lock_fds.pop())


# A forked worker must not keep the run locked after its parent was killed.
os.register_at_fork(after_in_child=_drop_locks)


# --- JSON and its rows ----------------------------------------------------------------------------


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


def _lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Each row of a JSONL file with its bytes; what a kill left of a last one is passed over.

    Raises DataError that names the line where an earlier one is no JSON object.
    """
    if not path.exists():
        return
    with Reading(path.name), open(path, "rb") as file:
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
    with Writing(path.name), open(path, "r+b") as file:
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
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# --- the run folder -------------------------------------------------------------------------------


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
        with Writing(f"run {self.path.name!r}"):
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
            with Writing(f"the lock of run {self.path.name!r}"):
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
            with Writing(f"the lock of run {self.path.name!r}"):
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
        except RecursionError:
            raise DataError(f"{path.name} is no JSON: it is nested too deeply.") from None

    # --- rows ---

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """Adds one row to `<name>.jsonl`; a kill right after loses nothing.

        Numbers that JSON lacks (nan, inf) become null. Raises StorageError; the file then ends with
        its last whole row.
        """
        self.lock()
        path = self._file(name, ".jsonl")
        line = memoryview(_dumps(row) + b"\n")
        with self._mutex, Writing(path.name):
            fd = self._files.get(path.name)
            if fd is None:
                _mend(path)
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
                self._files[path.name] = fd
            size = os.fstat(fd).st_size
            try:
                while line:
                    line = line[os.write(fd, line) :]
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

        Rows without the key stay. Returns how many rows went.
        """
        return self.drop(
            name, lambda row: isinstance(row.get(key), int | float) and row[key] > after
        )

    def drop(self, name: str, where: Callable[[Mapping[str, Any]], bool]) -> int:
        """Drops the rows for which `where` holds and returns how many went.

        The file changes as a whole or not at all.
        """
        self.lock()
        path = self._file(name, ".jsonl")
        dropped, kept = 0, []
        with self._mutex:
            _mend(path)
            for line, row in _lines(path):
                if where(row):
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
        with self._mutex, Writing(f"checkpoint {target.name} of run {self.path.name!r}"):
            folder.mkdir(exist_ok=True)
            for stale in folder.glob(".tmp-*"):
                shutil.rmtree(stale)
            try:
                temporary.mkdir()
                write(temporary)
                sync_tree(temporary)
                self._place(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            older = sorted((s for s in self._checkpoints() if s < step), reverse=True)
            for old in older[keep - 1 :]:
                discard(self._checkpoints()[old])
            sync_folder(folder)
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
                discard(old)
            target.rename(old)
        temporary.rename(target)
        sync_folder(target.parent)
        if old.exists():
            discard(old)

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


def stage_of_tool(name: str) -> str:
    """Under which stage the metrics tell of a tool."""
    return f"tool: {name}"
