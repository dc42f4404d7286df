"""Tools for callers whom nobody here knows: other programs, over HTTP or MCP.

Invariant: a picture comes in as bytes under limits and has a name of its content, so whoever sends
the same one gets the same name and nobody can put another one in its place; no path and no address
is ever followed. What is held is bounded; what was dropped is asked for again, in a sentence.
Coordinates are pixels of the image that is named.

Left out on purpose: how requests come in.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from saccade.errors import ImageError, ToolError
from saccade.geometry import Frame
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.picture_files import Limits, load_image
from saccade.tools.running import Runner
from saccade.tools.spec import Tool
from saccade.tools.toolbox import ToolBox
from saccade.types import ImageRef, ImageShown, ToolCall, ToolResult, ToolSpec

__all__ = ["GuestLimits", "Guests", "NotHeld"]


MOST_LISTED = 100
"""Images in one argument of a call."""


class NotHeld(ToolError):
    """An image that is named is not here, or not any more."""


@dataclass(frozen=True, slots=True)
class GuestLimits:
    """What callers may cost."""

    picture_bytes: int = 16 * 2**20
    """Of a file that is sent."""
    picture_pixels: int = 6_000_000
    """Reading a picture takes up to 25 bytes of memory for each."""
    request_bytes: int = 2**20
    """Of a call."""
    held_bytes: int = 128 * 2**20
    """Of pictures as they are kept, three for each pixel; the one sent last is kept in any case."""
    held_images: int = 10_000
    """Those that tools made too, which are kept as recipes."""
    deadline_s: float = 10.0
    """Of a call."""


class Guests:
    """Pictures that callers sent, and calls on them."""

    def __init__(
        self, tools: Sequence[Tool], *, runner: Runner, limits: GuestLimits = GuestLimits()
    ) -> None:
        self.limits = limits
        self._store = ImageStore(cache_bytes=limits.held_bytes // 2)
        self._box = ToolBox(
            tools, store=self._store, deadline_s=limits.deadline_s, runner=runner, max_calls=1
        )
        self._lock = threading.Lock()
        self._images: OrderedDict[str, ImageRef] = OrderedDict()
        self._made_of: dict[str, set[str]] = {}  # key of a root: names of it, and of what is held
        self._reading = asyncio.Semaphore(1)

    @property
    def specs(self) -> list[ToolSpec]:
        """Of the tools that can be called."""
        return [tool.spec for tool in self._box.tools if not tool.is_answer]

    def image_arguments(self, name: str) -> list[str]:
        """Of a tool, the parameters that take an image, or a list of them."""
        tools = (t for t in self._box.tools if t.name == name)
        return [p.name for t in tools for p in t.parameters if p.kind == "image"]

    async def take_raw(self, data: bytes, *, width: int, height: int) -> tuple[str, ImageRef]:
        """Hold a picture given as RGB bytes. Raises ImageError where they are no such picture."""
        pixels = width * height
        if not 0 < pixels <= self.limits.picture_pixels or len(data) != 3 * pixels:
            raise ImageError(
                f"{len(data)} bytes are no RGB picture of {width} x {height} pixels, at most "
                f"{self.limits.picture_pixels}: send three bytes for each pixel."
            )
        async with self._reading:
            view = await asyncio.to_thread(
                lambda: root_view(Image.frombytes("RGB", (width, height), data))
            )
        return self._hold(self._store.add(view)), view.ref

    async def take(self, data: bytes) -> tuple[str, ImageRef]:
        """Hold a picture file; its name from now on. Raises ImageError for what is none."""
        limits = Limits(max_bytes=self.limits.picture_bytes, max_pixels=self.limits.picture_pixels)
        async with self._reading:  # one at a time: what reading costs is bounded for all of them
            view = await asyncio.to_thread(lambda: root_view(load_image(data, limits=limits)))
        return self._hold(self._store.add(view)), view.ref

    def picture(self, name: str) -> Image.Image:
        """The pixels of an image that is held. Raises ToolError where none of that name is."""
        return self._store.view(self._held(name)).pixels

    async def call(self, name: str, arguments: dict[str, Any]) -> ToolResult:
        """What one call gave, new images under the names by which they are held from now on.

        Raises NotHeld, ToolError for lists of too many images, and ToolUnavailable or ToolCrashed
        as a tool box does.
        """
        call = ToolCall("call", name, arguments)
        images = {n: self._held(n) for n in self._named(name, arguments)}
        [result] = await self._box.call_all([call], images=images, frame=_pixels)
        parts = tuple(
            ImageShown(p.image, self._hold(p.image)) if isinstance(p, ImageShown) else p
            for p in result.parts
        )
        return ToolResult(call, parts, result.failed, result.seconds, result.named)

    def _named(self, name: str, arguments: Mapping[str, Any]) -> Iterator[str]:
        """Names of images among the arguments, as far as they are names."""
        aliases = {a: t.name for t in self._box.tools for a in t.aliases}
        for parameter in self.image_arguments(aliases.get(name, name)):
            value = arguments.get(parameter)
            names = value if isinstance(value, list) else [value]
            if len(names) > MOST_LISTED:
                raise ToolError(
                    f"{parameter} lists {len(names)} images, above the limit of {MOST_LISTED}: "
                    "give fewer."
                )
            yield from (n for n in names if isinstance(n, str))

    def _held(self, name: str) -> ImageRef:
        with self._lock:
            ref = self._images.get(name)
            if ref is None:
                raise NotHeld(
                    f"No image named {name[:40]!r} is held here: send its bytes first, or again if "
                    "it was dropped."
                )
            self._images.move_to_end(name)
            return ref

    def _hold(self, ref: ImageRef) -> str:
        """The name of an image from now on; what it is made from is held too, or nobody would drop
        it.
        """
        with self._lock:
            for one in dict.fromkeys((*ref.roots(), ref)):
                name = f"img_{one.key[:16]}"
                self._images[name] = one
                self._images.move_to_end(name)
                for root in one.roots():
                    self._made_of.setdefault(root.key, set()).add(name)
            held = sum(3 * r.width * r.height for r in self._images.values() if r.is_root)
            while len(self._images) > 1 and (
                held > self.limits.held_bytes or len(self._images) > self.limits.held_images
            ):
                held -= self._drop_oldest()
        return name

    def _drop_oldest(self) -> int:
        """Bytes that are free after it; with a root go the images that were made from it."""
        name, oldest = next(iter(self._images.items()))
        for gone in list(self._made_of[oldest.key]) if oldest.is_root else [name]:
            for root in self._images.pop(gone).roots():
                self._made_of[root.key].discard(gone)
        if not oldest.is_root:
            return 0
        del self._made_of[oldest.key]
        self._store.forget([oldest])
        return 3 * oldest.width * oldest.height


def _pixels(ref: ImageRef) -> Frame:
    return Frame.pixels(ref.width, ref.height)
