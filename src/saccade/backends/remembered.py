"""What was seen in the last pictures: questions about one picture follow each other.

Invariant: a picture is known by its pixels, so what is remembered is what would be seen anew.
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
MOST = 2
"""Pictures: of a hundred megapixels each, they weigh."""


class Remembered(Generic[T]):
    """The last answers of a costly look at whole pictures. May be asked from several threads."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, T] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, picture: Image.Image, look: Callable[[Image.Image], T]) -> T:
        """What `look` sees in the picture, now or when it was asked before."""
        key = hashlib.blake2b(picture.tobytes(), person=b"%dx%d" % picture.size).digest()
        with self._lock:
            if key in self._seen:
                self._seen.move_to_end(key)
                return self._seen[key]
        seen = look(picture)
        with self._lock:
            self._seen[key] = seen
            while len(self._seen) > MOST:
                self._seen.popitem(last=False)
        return seen
