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
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

from PIL import Image

from saccade.config import ServiceConfig
from saccade.errors import ImageError, ToolCrashed, ToolError, ToolUnavailable
from saccade.geometry import Frame
from saccade.image_store import ImageStore
from saccade.images import ImageView, root_view
from saccade.picture_files import Limits, load_image
from saccade.tools.running import MissedDeadline, Runner
from saccade.tools.spec import Tool
from saccade.tools.toolbox import ToolBox
from saccade.types import ImageRef, ImageShown, Text, ToolCall, ToolResult, ToolSpec

__all__ = ["GuestLimits", "Guests", "NotHeld", "TooMany"]

T = TypeVar("T")


class TooMany(ToolUnavailable):
    """A caller has its share of calls under way."""


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
    """Of a picture that is sent, or that a tool makes; reading one takes up to 25 bytes of memory
    for each."""
    request_bytes: int = 2**20
    """Of a call."""
    in_flight_bytes: int = 32 * 2**20
    """Of all requests that are read, and of pictures that are fetched, at the same time."""
    held_bytes: int = 48 * 2**20
    """Of pictures as they are kept, three for each pixel; the one sent last is kept in any case."""
    held_images: int = 10_000
    """Those that tools made too, which are kept as recipes."""
    calls: int = 256
    """Of one tool, for one caller at the same time."""
    deadline_s: float = 60.0
    """Of a call; its caller may give it less."""

    @classmethod
    def of(cls, service: ServiceConfig) -> GuestLimits:
        """What a recipe says of them."""
        return cls(
            picture_bytes=service.picture_bytes,
            picture_pixels=service.picture_pixels,
            in_flight_bytes=service.in_flight_mb * 2**20,
            held_bytes=service.held_mb * 2**20,
            calls=service.calls_per_caller,
            deadline_s=service.deadline_s,
        )


class Guests:
    """Pictures that callers sent, and calls on them."""

    def __init__(
        self, tools: Sequence[Tool], *, runner: Runner, limits: GuestLimits = GuestLimits()
    ) -> None:
        self.limits = limits
        self._store = ImageStore(cache_bytes=limits.held_bytes)
        self._box = ToolBox(
            [self._bounded(tool) for tool in tools],
            store=self._store,
            deadline_s=limits.deadline_s,
            runner=runner,
            max_calls=1,
        )
        self._lock = threading.Lock()
        self._images: OrderedDict[str, ImageRef] = OrderedDict()
        self._made_of: dict[str, set[str]] = {}  # key of a root: names of it, and of what is held
        # one thread: what reading costs is bounded for all, and stays with no other thread
        self._reading = ThreadPoolExecutor(1, "saccade-reading")
        self._names = {n: t.name for t in self._box.tools for n in (t.name, *t.aliases)}
        self._calls: Counter[tuple[str, str]] = Counter()
        self._in_use: Counter[str] = Counter()  # keys of roots, by calls under way

    @property
    def specs(self) -> list[ToolSpec]:
        """Of the tools that can be called."""
        return [tool.spec for tool in self._box.tools if not tool.is_answer]

    def has(self, name: str) -> bool:
        """Whether a tool is called that, here or in the published table."""
        return name in self._names

    def image_arguments(self, name: str) -> list[str]:
        """Of a tool, the parameters that take an image, or a list of them."""
        tools = (t for t in self._box.tools if t.name == name)
        return [p.name for t in tools for p in t.parameters if p.kind == "image"]

    async def take_raw(
        self, data: bytes | bytearray, *, width: int, height: int
    ) -> tuple[str, ImageRef]:
        """Hold a picture given as RGB bytes. Raises ImageError where they are no such picture."""
        if width * height == 0 or len(data) != 3 * width * height:
            raise ImageError(
                f"{len(data)} bytes are no RGB picture of {width} x {height} pixels: send three "
                "bytes for each pixel."
            )
        if width * height > self.limits.picture_pixels:
            raise ImageError(self.too_large(width, height))
        return await self._read(lambda: root_view(Image.frombytes("RGB", (width, height), data)))

    async def take(self, data: bytes | bytearray) -> tuple[str, ImageRef]:
        """Hold a picture file; its name from now on. Raises ImageError for what is none."""
        limits = Limits(max_bytes=self.limits.picture_bytes, max_pixels=self.limits.picture_pixels)
        return await self._read(lambda: root_view(load_image(bytes(data), limits=limits)))

    async def _read(self, read: Callable[[], ImageView]) -> tuple[str, ImageRef]:
        return await self.aside(lambda: self._added(read()))

    async def aside(self, work: Callable[[], T]) -> T:
        """What work on pixels gives, which is done in a thread, one piece after the other."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, work)

    def _added(self, view: ImageView) -> tuple[str, ImageRef]:
        # those that go must be gone before: the store would pack them to keep them, for nothing
        with self._lock:
            self._make_room(3 * view.width * view.height)
        return self._hold(self._store.add(view)), view.ref

    def too_large(self, width: int, height: int) -> str:
        """What is said of a picture with more pixels than are taken."""
        return (
            f"A picture of {width} x {height} pixels is more than this service takes, which is "
            f"{self.limits.picture_pixels} pixels: send it smaller, or raise "
            "service.picture_pixels where the service is started."
        )

    def _bounded(self, tool: Tool) -> Tool:
        """The tool, which makes no larger pictures than may be sent: they are refused before their
        pixels are made.
        """

        def call(*args: Any, **kwargs: Any) -> Any:
            returned = tool(*args, **kwargs)
            for one in returned if isinstance(returned, list | tuple) else (returned,):
                if isinstance(one, ImageView):
                    self._check_size(one.ref)
            return returned

        return replace(tool, function=call)

    def _check_size(self, made: ImageRef) -> None:
        if made.width * made.height > self.limits.picture_pixels:
            raise ToolError(
                f"The result would have {made.width} x {made.height} pixels, more than the "
                f"{self.limits.picture_pixels} that this service takes: ask for less of the image, "
                "or raise service.picture_pixels where the service is started."
            )

    def image(self, name: str) -> ImageRef:
        """An image that is held. Raises NotHeld where none of that name is."""
        return self._held(name)

    def picture(self, name: str) -> Image.Image:
        """Its pixels. Raises NotHeld as `image` does."""
        return self._store.view(self._held(name)).pixels

    def close(self) -> None:
        """End the thread that works on pixels."""
        self._reading.shutdown(cancel_futures=True)

    async def call(
        self,
        name: str,
        arguments: dict[str, Any],
        *,
        caller: str = "",
        deadline_s: float | None = None,
    ) -> ToolResult:
        """What one call gave, new images under the names by which they are held from now on.

        It may take `deadline_s`, but no longer than the limits say. Raises NotHeld, ToolError for
        lists of too many images, TooMany where the caller has its share of calls under way, and
        MissedDeadline, ToolUnavailable or ToolCrashed as a tool box does.
        """
        call = ToolCall("call", name, arguments)
        images = {n: self._held(n) for n in self._named(name, arguments)}
        most_s = self.limits.deadline_s
        given_s = most_s if deadline_s is None else min(deadline_s, most_s)
        with self._share(caller, name), self._using(images.values()):
            try:
                async with asyncio.timeout(given_s):  # what waits for its turn counts too
                    [result] = await self._box.call_all(
                        [call], images=images, frame=_pixels, deadline_s=given_s
                    )
            except (MissedDeadline, TimeoutError):
                raise MissedDeadline(
                    f"Tool {name} missed its deadline of {given_s:g} s; this service gives "
                    f"{most_s:g} s at most: raise service.deadline_s where it is started."
                ) from None
            except (ToolCrashed, ImageError):
                for held in images:  # it may have waited until one was dropped
                    self._held(held)
                raise
        try:
            for part in result.parts:
                if isinstance(part, ImageShown):  # made elsewhere, and without pixels here as yet
                    self._check_size(part.image)
        except ToolError as mistake:
            return replace(result, parts=(Text(str(mistake)),), failed=True)
        parts = tuple(
            ImageShown(p.image, self._hold(p.image)) if isinstance(p, ImageShown) else p
            for p in result.parts
        )
        return ToolResult(call, parts, result.failed, result.seconds, result.named)

    @contextmanager
    def _share(self, caller: str, name: str) -> Iterator[None]:
        """One of the calls that a caller may have under way."""
        # what is no tool is refused by the box, and must not be remembered here
        share = (caller, self._names.get(name, ""))
        if self._calls[share] >= self.limits.calls:
            raise TooMany(
                f"{self._calls[share]} calls of {name} wait or run for this caller, which is its "
                "share (service.calls_per_caller): wait for some of them, then ask again."
            )
        self._calls[share] += 1
        try:
            yield
        finally:
            self._calls[share] -= 1
            if not self._calls[share]:
                del self._calls[share]

    @contextmanager
    def _using(self, images: Iterable[ImageRef]) -> Iterator[None]:
        """Of what these are made of, as little as can be is dropped in the meantime."""
        roots = Counter({root.key for image in images for root in image.roots()})
        with self._lock:
            self._in_use += roots
        try:
            yield
        finally:
            with self._lock:
                self._in_use -= roots

    def _named(self, name: str, arguments: Mapping[str, Any]) -> Iterator[str]:
        """Names of images among the arguments, as far as they are names."""
        for parameter in self.image_arguments(self._names.get(name, name)):
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
        names = []
        with self._lock:
            for one in dict.fromkeys((*ref.roots(), ref)):
                name = f"img_{one.key[:16]}"
                names.append(name)
                self._images[name] = one
                self._images.move_to_end(name)
                for root in one.roots():
                    self._made_of.setdefault(root.key, set()).add(name)
            self._make_room(kept=names)
        return name

    def _make_room(self, more: int = 0, *, kept: Sequence[str] = ()) -> None:
        """Drop those used longest ago until so many bytes more have room, or one is left, or only
        what is `kept`; originals that calls use go last.
        """
        held = more + sum(3 * r.width * r.height for r in self._images.values() if r.is_root)
        while len(self._images) > 1 and (
            held > self.limits.held_bytes or len(self._images) > self.limits.held_images
        ):
            droppable = (name for name in self._images if name not in kept)
            oldest = next(droppable, None)
            if oldest is None:
                return
            images = ((name, self._images[name]) for name in chain([oldest], droppable))
            unused = (name for name, ref in images if ref.key not in self._in_use)
            held -= self._drop(next(unused, oldest))

    def _drop(self, name: str) -> int:
        """Bytes that are free after it; with a root go the images that were made from it."""
        oldest = self._images[name]
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
