"""Pictures that several processes of one machine see without copies through a pipe.

Invariant: a block holds the RGB bytes of one picture and is never written again; whoever made it
takes it away, and an image that is asked for again after that gets a new block. What a process that
was killed has left is taken away by the next one.

Files in memory (`/dev/shm`) and not `multiprocessing.shared_memory`: before Python 3.13 that counts
readers as owners, and takes a block away when a reader is killed.
The lock is held for moments alone, so that an event loop may ask for what is there.
Left out on purpose: other machines.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from saccade.errors import ToolUnavailable
from saccade.images import ImageView

__all__ = ["Block", "SharedPictures", "picture_in"]

PREFIX = "saccade-pictures-"
"""Of folders of blocks; the process that made one stands behind it."""


class Block(NamedTuple):
    """Where the bytes of a picture are."""

    path: str
    width: int
    height: int

    @property
    def size(self) -> int:
        """In bytes."""
        return 3 * self.width * self.height


class SharedPictures:
    """The side that writes: the pictures used last, up to `most_bytes`. Safe from threads."""

    def __init__(self, most_bytes: int = 512 * 2**20) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._blocks: OrderedDict[str, Block] = OrderedDict()
        self._folder: Path | None = None
        self._in_use: dict[str, int] = {}
        self._writing: dict[str, threading.Event] = {}
        """Pictures that somebody is writing, by key; set when that has ended."""
        self._bytes = 0

    def held(self, view: ImageView) -> Block | None:
        """As `hold`, at once; None where there is no block of it now."""
        key = view.ref.key
        with self._lock:
            return self._used(key) if key in self._blocks else None

    def hold(self, view: ImageView) -> Block:
        """The block of an image, made where there is none; kept at least until `let_go`. What
        several threads want is written by one of them.

        Raises ToolUnavailable where there is no room for it.
        """
        key = view.ref.key
        while True:
            ended = threading.Event()
            with self._lock:
                if key in self._blocks:
                    return self._used(key)
                writing = self._writing.setdefault(key, ended)
            if writing is ended:
                break
            writing.wait()
        try:
            block = self._written(view)
            with self._lock:
                self._blocks[key] = block
                self._bytes += block.size
                self._used(key)
                self._make_room(self._most_bytes)
            return block
        finally:
            with self._lock:
                del self._writing[key]
            ended.set()

    def let_go(self, view: ImageView) -> None:
        """The end of a use that `hold` began."""
        with self._lock:
            left = self._in_use[view.ref.key] - 1
            if left:
                self._in_use[view.ref.key] = left
            else:
                del self._in_use[view.ref.key]

    def close(self) -> None:
        """Take all blocks away."""
        with self._lock:
            self._blocks.clear()
            self._bytes = 0
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def _used(self, key: str) -> Block:
        self._blocks.move_to_end(key)
        self._in_use[key] = self._in_use.get(key, 0) + 1
        return self._blocks[key]

    def _written(self, view: ImageView) -> Block:
        data = view.pixels.tobytes()
        try:
            with self._lock:
                if self._folder is None:
                    self._folder = _new_folder()
                path = self._folder / view.ref.key
            try:
                _write(path, data)
            except OSError:  # perhaps what nobody uses now takes the room
                with self._lock:
                    self._make_room(0)
                _write(path, data)
        except OSError as error:
            raise ToolUnavailable(
                f"No shared memory for a picture of {view.width} x {view.height} pixels "
                f"({error.strerror}): free some, or run the tools in process."
            ) from error
        return Block(str(path), view.width, view.height)

    def _make_room(self, most_bytes: int) -> None:
        """Take away what nobody uses, those used longest ago first, until no more is left."""
        for key in [k for k in self._blocks if k not in self._in_use]:
            if self._bytes <= most_bytes:
                return
            block = self._blocks.pop(key)
            self._bytes -= block.size
            Path(block.path).unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    """All of it or nothing."""
    try:
        path.write_bytes(data)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def picture_in(block: Block) -> Image.Image:
    """The picture in a block. Raises FileNotFoundError where it was taken away."""
    data = Path(block.path).read_bytes()
    return Image.frombytes("RGB", (block.width, block.height), data)


def _new_folder() -> Path:
    """In memory where there is such a place; those of processes that are gone are taken away."""
    place = Path("/dev/shm")
    if not os.access(place, os.W_OK):
        place = Path(tempfile.gettempdir())
    for left in place.glob(f"{PREFIX}*"):
        if not _is_alive(left.name.removeprefix(PREFIX).partition("-")[0]):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=place))


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True
