"""What was seen in the last pictures: questions about one picture follow each other.

Invariant: a picture is known by its pixels, so what is remembered is what would be seen anew; those
who ask about one picture at the same time wait for one look at it.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from PIL import Image

__all__ = ["Remembered"]

T = TypeVar("T")


class Remembered(Generic[T]):
    """The last answers of a costly look at whole pictures. May be asked from several threads."""

    def __init__(self, most: int) -> None:
        """`most` pictures are remembered: few, where what was seen holds their pixels."""
        self._most = most
        self._seen: OrderedDict[bytes, T] = OrderedDict()
        self._looking: dict[bytes, threading.Lock] = {}
        self._lock = threading.Lock()

    def of(self, picture: Image.Image, look: Callable[[Image.Image], T]) -> T:
        """What `look` sees in the picture, now or when it was asked before. A look that fails is
        remembered by nobody, and the next who waits for it looks again.
        """
        key = hashlib.blake2b(picture.tobytes(), person=b"%dx%d" % picture.size).digest()
        with self._lock:
            if key in self._seen:
                return self._known(key)
            turn = self._looking.setdefault(key, threading.Lock())
        with turn:
            with self._lock:
                if key in self._seen:
                    return self._known(key)
            try:
                seen = look(picture)
                with self._lock:
                    self._seen[key] = seen
                    while len(self._seen) > self._most:
                        self._seen.popitem(last=False)
            finally:
                with self._lock:
                    self._looking.pop(key, None)
        return seen

    def _known(self, key: bytes) -> T:
        self._seen.move_to_end(key)
        return self._seen[key]
