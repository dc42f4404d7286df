"""Files and folders that appear whole or not at all, and the file system's errors in one sentence.

Invariant: whatever kills the process or fills the disk, under a final name never stands half of
anything, and what the file system refuses comes out of `with Writing(...)` as StorageError.
Left out on purpose: who may write (`saccade.run_folder` has the lock).
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from saccade.errors import StorageError

__all__ = [
    "Reading",
    "Writing",
    "discard",
    "replacing",
    "sync_folder",
    "sync_tree",
    "write_atomic",
]


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


class _Told:
    """A `with` block whose errors are told in a sentence about `what`."""

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
        if error is not None and (sentence := self._sentence(error)) is not None:
            raise StorageError(sentence) from error

    def _sentence(self, error: BaseException) -> str | None:
        raise NotImplementedError


class Writing(_Told):
    """Turns what the file system refuses inside a `with` block into a StorageError.

    Libraries that write tensors wrap a full disk in errors of their own; their text gives it away.
    """

    def _sentence(self, error: BaseException) -> str | None:
        wrapped = isinstance(error, Exception) and "No space left on device" in str(error)
        return _sentence(self.what, error) if isinstance(error, OSError) or wrapped else None


class Reading(_Told):
    """The same for reading."""

    def _sentence(self, error: BaseException) -> str | None:
        if not isinstance(error, OSError):
            return None
        reason = os.strerror(error.errno or errno.EIO)
        return f"{self.what} can't be read ({reason}): see its rights."


# --- atomic files ---------------------------------------------------------------------------------


def sync_folder(folder: Path) -> None:
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
    with Writing(path.name):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` once it is whole and on the disk.

    Whatever is raised inside leaves the old one as it was; errors of the file system come out as
    StorageError.
    """
    new = folder.parent / f".new-{folder.name}"
    with Writing(f"{folder.name} of {folder.parent.name!r}"):
        shutil.rmtree(new, ignore_errors=True)
        try:
            new.mkdir(parents=True)
            yield new
            sync_tree(new)
            if folder.exists():
                discard(folder)
            new.replace(folder)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def discard(path: Path) -> None:
    """Removes a checkpoint so that half of it is never taken for a whole one."""
    doomed = path.with_name(f".tmp-gone-{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def sync_tree(folder: Path) -> None:
    for parent, _, files in os.walk(folder):
        for name in files:
            fd = os.open(Path(parent) / name, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(Path(parent))
