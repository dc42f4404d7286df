"""How a checked call is run: the seam between a tool box and what runs tools, and its first way,
threads of this process.

Invariant: a runner gives what the tool returned, as parts, or raises: `ToolError` for the model's
mistake, `ToolUnavailable` or `ToolCrashed` for what is our fault. Ways to run a tool differ in what
they survive and in what they cost, never in what they return.

Left out on purpose: names of new images and what the model is told, which are the tool box's.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from saccade.daemon_threads import in_thread
from saccade.errors import ToolCrashed, ToolError, ToolUnavailable
from saccade.geometry import Box, Mask, Point
from saccade.images import ImageView
from saccade.tools.spec import Tool
from saccade.types import BoxFound, ImageRef, MaskFound, Part, PointFound, Text

__all__ = [
    "Elsewhere",
    "InThreads",
    "MissedDeadline",
    "Returned",
    "Runner",
    "call_tool",
    "missed_deadline",
]

AT_ONCE_PX = 1_000_000
"""Pixels to be made that keep no event loop waiting: some 10 ms at the worst."""
Returned = ImageView | Part
"""One thing that a call gave: a new image, or a part that a result holds as it is."""


class Runner(Protocol):
    """Runs one call of which the arguments were checked."""

    async def run(
        self, tool: Tool, arguments: Mapping[str, Any], *, deadline_s: float
    ) -> list[Returned]:
        """What the call gave, at least one part. Images among `arguments` are views, places are in
        their pixels.
        """
        ...


class Elsewhere:
    """What ways have in common that run every call somewhere else."""

    def at_once(self, tool: Tool, arguments: Mapping[str, Any]) -> list[Returned] | None:
        """Never: the caller's process is to be kept free."""
        return None


class InThreads:
    """Every call in a daemon thread of this process, but for small views, which cost less than the
    way to a thread and back.

    A late call is abandoned, not stopped, and a tool that holds the interpreter's lock holds up the
    others. Not a pool: an abandoned call would hold a thread of it for as long as it likes.
    """

    def __init__(
        self, in_turn: Iterable[str] = (), *, batches: Mapping[str, int] | None = None
    ) -> None:
        """`in_turn` names tools whose calls wait for each other, as those that read print do. They
        wait before their deadlines begin, all but the one that is next; where calls share a pass
        of a model, all but the next batch. `batches` says how many do.
        """
        self._at_once = dict.fromkeys(in_turn, 1) | dict(batches or {})
        # more threads than processors make no picture sooner, and each holds one
        self._making = threading.Semaphore(os.cpu_count() or 1)

    def capacity(self, name: str) -> int:
        """Calls of a tool that it takes at the same time."""
        return 2 * self._at_once[name] if name in self._at_once else 64

    def health(self) -> Sequence[NoReturn]:
        """There are no workers."""
        return ()

    def close(self) -> None:
        """There is nothing to end."""

    def at_once(self, tool: Tool, arguments: Mapping[str, Any]) -> list[Returned] | None:
        """What a call gives whose work is known to be small; None where it is not, or may not be.

        Raises as `Runner.run`.
        """
        if not tool.is_view or (tool.reads_pixels and _read(arguments) > AT_ONCE_PX):
            return None
        parts = call_tool(tool, arguments)
        if sum(_work(p.ref) for p in parts if isinstance(p, ImageView)) > AT_ONCE_PX:
            return None
        return _made(parts)

    async def run(
        self, tool: Tool, arguments: Mapping[str, Any], *, deadline_s: float
    ) -> list[Returned]:
        """See `Runner`."""
        try:
            async with asyncio.timeout(deadline_s):
                return await in_thread(lambda: self._made(call_tool(tool, arguments)))
        except TimeoutError:
            raise missed_deadline(tool.name, deadline_s) from None

    def _made(self, parts: list[Returned]) -> list[Returned]:
        with self._making:
            return _made(parts)


def _work(ref: ImageRef) -> float:
    """Pixels that may have to be made for an image: its own, and those of all it derives from; of
    originals, which are read, a tenth.
    """
    pixels = ((one.is_root, one.width * one.height) for one in ref.lineage())
    return sum(own / 10 if is_root else own for is_root, own in pixels)


def _read(arguments: Mapping[str, Any]) -> float:
    """Pixels to be read of the images among the arguments, and to be made before that."""
    given = [value for value in arguments.values() if isinstance(value, ImageView)]
    return sum(view.width * view.height + _work(view.ref) for view in given)


class MissedDeadline(ToolUnavailable):
    """A call took longer than it was given."""


def missed_deadline(name: str, deadline_s: float) -> MissedDeadline:
    return MissedDeadline(
        f"Tool {name} missed its deadline of {deadline_s:g} s; "
        "raise deadline_s or use a faster back end."
    )


def _made(parts: list[Returned]) -> list[Returned]:
    """The same, the pixels of new images made: this work belongs to the call and its deadline."""
    for part in parts:
        if isinstance(part, ImageView):
            _ = part.pixels
    return parts


def call_tool(tool: Tool, arguments: Mapping[str, Any]) -> list[Returned]:
    """One call, here and now; new images are made when somebody asks for their pixels. Raises
    ToolError, ToolUnavailable or ToolCrashed.
    """
    try:
        return _parts(tool, tool(**arguments), arguments)
    except (ToolError, ToolUnavailable, ToolCrashed):
        raise
    # the boundary of a call: what is no typed error is a crash, and none may end the run
    except (Exception, SystemExit) as error:
        raise ToolCrashed(f"Tool {tool.name} crashed: {type(error).__name__}: {error}") from error


def _parts(tool: Tool, returned: Any, arguments: Mapping[str, Any]) -> list[Returned]:
    """What a function returned, as parts; TypeError for what a tool may not return."""
    values = returned if isinstance(returned, (list, tuple)) else (returned,)
    parts = [_part(value, _placed_on(tool, arguments)) for value in values]
    return parts or [Text(f"{tool.name} found nothing.")]


def _placed_on(tool: Tool, arguments: Mapping[str, Any]) -> ImageRef | None:
    """The image on which places that the tool returns lie."""
    view = arguments.get(tool.image_parameter or "")
    return view.ref if isinstance(view, ImageView) else None


def _part(value: Any, on: ImageRef | None) -> Returned:
    if isinstance(value, (ImageView, BoxFound, MaskFound, PointFound)):
        return value
    if isinstance(value, str):
        return Text(value)
    if isinstance(value, Box) and on is not None:
        return BoxFound(on, value)
    if isinstance(value, Mask) and on is not None:
        return MaskFound(on, value)
    if isinstance(value, Point) and on is not None:
        return PointFound(on, value)
    raise TypeError(f"it returned {type(value).__name__}, which no tool may return")
