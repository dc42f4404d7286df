"""Pictures that several processes of one machine see without copies through a pipe.

Invariant: a block holds the RGB bytes of one picture and is never written again; whoever made it
takes it away, and an image that is asked for again after that gets a new block.

Left out on purpose: other machines.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from multiprocessing.shared_memory import SharedMemory
from typing import NamedTuple

from PIL import Image

from saccade.errors import ToolUnavailable
from saccade.images import ImageView

__all__ = ["Block", "SharedPictures", "picture_in"]


class Block(NamedTuple):
    """Where the bytes of a picture are."""

    name: str
    width: int
    height: int


class SharedPictures:
    """The side that writes: the pictures used last, up to `most_bytes`. Safe from threads."""

    def __init__(self, most_bytes: int = 512 * 2**20) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._blocks: OrderedDict[str, tuple[SharedMemory, Block]] = OrderedDict()
        self._in_use: dict[str, int] = {}
        self._bytes = 0

    def hold(self, view: ImageView) -> Block:
        """The block of an image, made where there is none; kept at least until `let_go`.

        Raises ToolUnavailable where there is no room for it.
        """
        key = view.ref.key
        with self._lock:
            if key not in self._blocks:
                self._blocks[key] = self._written(view)
                self._bytes += self._blocks[key][0].size
            self._blocks.move_to_end(key)
            self._in_use[key] = self._in_use.get(key, 0) + 1
            self._make_room()
            return self._blocks[key][1]

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
            while self._blocks:
                self._drop(next(iter(self._blocks)))

    def _written(self, view: ImageView) -> tuple[SharedMemory, Block]:
        data = view.pixels.tobytes()
        try:
            memory = SharedMemory(create=True, size=len(data))
        except OSError as error:
            raise ToolUnavailable(
                f"No shared memory for a picture of {view.width} x {view.height} pixels "
                f"({error.strerror}): free some, or run the tools in process."
            ) from error
        _bytes_of(memory)[: len(data)] = data
        return memory, Block(memory.name, view.width, view.height)

    def _make_room(self) -> None:
        for key in [k for k in self._blocks if k not in self._in_use]:
            if self._bytes <= self._most_bytes:
                return
            self._drop(key)

    def _drop(self, key: str) -> None:
        memory, _ = self._blocks.pop(key)
        self._bytes -= memory.size
        memory.close()
        memory.unlink()


def picture_in(block: Block) -> Image.Image:
    """The picture in a block, copied out. Raises FileNotFoundError where it was taken away."""
    memory = SharedMemory(name=block.name)
    try:
        size = 3 * block.width * block.height
        data = bytes(_bytes_of(memory)[:size])
        return Image.frombytes("RGB", (block.width, block.height), data)
    finally:
        memory.close()


def _bytes_of(memory: SharedMemory) -> memoryview:
    assert memory.buf is not None  # it is None once closed
    return memory.buf
