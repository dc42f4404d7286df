"""Every image of a run, kept once by its key: in memory, and in the run folder's `images/`.

Invariant: only roots are ever written, each once, whole and without loss; a derived image is made
again from its recipe, so whoever holds the roots holds every image that came from them.

Left out on purpose: pixels of derived images on disk, and dropping roots unasked.
"""

from __future__ import annotations

import math
import os
import re
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from PIL import Image

from saccade.errors import ImageError, StorageError
from saccade.images import ImageView, derived_pixels, root_key
from saccade.picture_files import Limits, load_image
from saccade.types import ImageRef

__all__ = ["ImageStore"]


class ImageStore:
    """Every image of a run, each kept once by its key. Safe to use from several threads.

    Pixels of derived images are a cache and are made again from their recipes when gone. Roots
    stay: those that `folder` holds are read when asked for; the others are kept in memory, packed
    without loss when the cache is full.
    """

    def __init__(self, folder: Path | None = None, *, cache_bytes: int = 256 * 2**20) -> None:
        self._folder = folder
        """A run folder: roots are read from its `images/`."""
        self._cache_bytes = cache_bytes
        """For unpacked pixels; the image asked for last is kept even if it is larger."""
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, Image.Image] = OrderedDict()  # least recently used first
        self._cached_bytes = 0
        self._kept: dict[str, bytes | None] = {}  # roots that are nowhere else; bytes once packed

    def add(self, view: ImageView) -> ImageRef:
        """Keep an image, and the roots that it is made from. Computes and hashes nothing."""
        for one in view.originals():
            if one.ref.is_root and not self._has_root(one.ref):
                self._remember(one.ref, one.pixels, keep=True)
        if view.made is not None:
            self._remember(view.ref, view.made)
        return view.ref

    def view(self, ref: ImageRef) -> ImageView:
        """A view that makes or reads its pixels when asked. Raises ImageError without its roots."""
        views: dict[str, ImageView] = {}
        for one in ref.lineage():
            if one.is_root and not self._has_root(one):
                where = f"nor in {self._folder / 'images'}" if self._folder else "without a folder"
                raise ImageError(
                    f"Image {one.key[:12]} is not in this store, {where}; add it, or open the "
                    "store on the run folder that holds it."
                )
            parents = tuple(views[part.parent.key] for part in one.parts)
            views[one.key] = ImageView(one, parents, _source=partial(self._pixels, one))
        return views[ref.key]

    def save(self, refs: Iterable[ImageRef], folder: Path) -> None:
        """Write the roots of these images to `folder/images/<key>.png`, lossless, each once.

        A file appears whole or not at all. Raises StorageError where it can't be written.
        """
        roots = {root.key: root for ref in refs for root in ref.roots()}
        for root in roots.values():
            path = _root_path(folder, root)
            if not path.exists():
                image = self.view(root).pixels
                try:
                    _write_png(image, path)
                except OSError as error:
                    raise StorageError(
                        f"Can't write image {path} ({error.strerror}); free some space or make the "
                        "folder writable, then run the same command again."
                    ) from error
            if folder == self._folder:
                with self._lock:
                    self._kept.pop(root.key, None)

    def forget(self, refs: Iterable[ImageRef]) -> None:
        """Drop these roots: a training run does not keep the pictures of every step it made.

        What derives from them can't be made again here; roots that a folder holds are still read.
        """
        with self._lock:
            for ref in refs:
                self._kept.pop(ref.key, None)
                dropped = self._cache.pop(ref.key, None)
                if dropped is not None:
                    self._cached_bytes -= _bytes(dropped)

    def _has_root(self, root: ImageRef) -> bool:
        with self._lock:
            if root.key in self._kept or root.key in self._cache:
                return True
        return self._folder is not None and _root_path(self._folder, root).exists()

    def _pixels(self, ref: ImageRef) -> Image.Image:
        with self._lock:
            found = self._cache.get(ref.key)
            if found is not None:
                self._cache.move_to_end(ref.key)
                return found
            packed = self._kept.get(ref.key)
        if not ref.is_root:
            image = derived_pixels(ref, tuple(self._pixels(part.parent) for part in ref.parts))
        elif packed is not None:
            image = Image.frombytes("RGB", (ref.width, ref.height), zlib.decompress(packed))
        else:
            image = self._read_root(ref)
        return self._remember(ref, image)

    def _read_root(self, root: ImageRef) -> Image.Image:
        if self._folder is None:
            raise ImageError(
                f"Image {root.key[:12]} was dropped from this store: add it again before what is "
                "made of it is looked at."
            )
        path = _root_path(self._folder, root)
        pixels = root.width * root.height
        limits = Limits(
            max_bytes=4 * pixels + 2**20,  # a lossless file of ours can't be longer
            max_pixels=pixels,
            max_aspect=math.inf,
        )
        image = load_image(path, limits=limits)
        if root_key(image) != root.key:
            raise ImageError(
                f"Image file {path} holds other pixels than its name says; restore the original."
            )
        return image

    def _remember(self, ref: ImageRef, image: Image.Image, *, keep: bool = False) -> Image.Image:
        """What the cache holds for it afterwards; the least recently used ones make room.

        With `keep`, it is a root that nobody else has.
        """
        key = ref.key
        with self._lock:
            if keep:
                self._kept.setdefault(key, None)
            kept = self._cache.get(key)
            if kept is None:
                kept = self._cache[key] = image
                self._cached_bytes += _bytes(image)
            self._cache.move_to_end(key)
            while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
                old, gone = self._cache.popitem(last=False)
                self._cached_bytes -= _bytes(gone)
                if old in self._kept and self._kept[old] is None:
                    self._kept[old] = zlib.compress(gone.tobytes(), 1)
            return kept


def _bytes(image: Image.Image) -> int:
    return 3 * image.width * image.height


def _root_path(folder: Path, root: ImageRef) -> Path:
    if not re.fullmatch(r"[0-9a-f]{64}", root.key):  # a key becomes a file name
        raise ImageError(
            f"{root.key[:80]!r} is no key of an image; it must be 64 hexadecimal digits."
        )
    return folder / "images" / f"{root.key}.png"


def _write_png(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            image.save(file, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
