"""What a worker process does: makes its tools once, then one call after the other, or, in a
replica whose model answers several at once, some of them in threads.

Invariant: back ends are made before the first call is taken; where they can't be made, every call
is told why. A call that runs out of memory ends the process: what is left of it can't be trusted.

Left out on purpose: choosing calls and counting them, which is `workers`'.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from saccade.config import BackendChoice, BackendKind
from saccade.errors import RecipeError, SaccadeError, ToolCrashed, ToolError, ToolUnavailable
from saccade.images import ImageView
from saccade.tools import tools_named
from saccade.tools.running import call_tool
from saccade.tools.spec import Tool
from saccade.toolserver.shared_pictures import Block, picture_in
from saccade.toolserver.wire import arguments_from_json, given_view, parts_to_json

__all__ = [
    "OUT_OF_MEMORY",
    "Answer",
    "Ready",
    "answered",
    "call",
    "end_if_starved",
    "kept",
    "ready",
    "start",
]

OUT_OF_MEMORY = 77
"""Exit status of a worker that ran out of its memory."""
KEPT_BYTES = 128 * 2**20
"""Of unpacked pictures in a worker; the one used last is kept even if it is larger."""

_tools: dict[str, Tool] = {}
_no_start: list[SaccadeError] = []
"""Why there are none."""
_pictures: OrderedDict[str, ImageView] = OrderedDict()
_pictures_lock = threading.Lock()


class Answer(NamedTuple):
    """What came of a call."""

    pid: int
    parts: dict[str, Any] | None
    """As `wire.parts_to_json` writes them; None where it failed."""
    pictures: dict[str, tuple[bytes, int, int]]
    """New ones: RGB bytes, width, height."""
    error: str = ""
    kind: str = ""
    """Which of the three errors of a call it is, where it failed."""


class Ready(NamedTuple):
    """What a worker says once it has started."""

    pid: int
    error: str = ""
    """Why it has no tools, where it has none."""
    kind: str = ""
    """Of the error, among ours."""


def start(
    names: Sequence[str],
    choices: Mapping[BackendKind, dict[str, Any]],
    memory_mb: int | None,
    niceness: int,
    cpus: Sequence[int] = (),
) -> None:
    """Run once in every new worker; of `cpus` it uses no others, where there are any."""
    if cpus and sys.platform == "linux":
        os.sched_setaffinity(0, cpus)
    if memory_mb is not None:
        _limit_memory(memory_mb)
    if niceness:
        os.nice(niceness)
    backends = {kind: BackendChoice.model_validate(choice) for kind, choice in choices.items()}
    try:
        _tools.update({tool.name: tool for tool in tools_named(names, backends)})
    except SaccadeError as error:
        _no_start.append(error)


def _limit_memory(memory_mb: int) -> None:
    if sys.platform != "linux":  # others do not keep this limit
        return
    import resource

    # beyond what is mapped already: some that start us map far more than they use
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = mapped + memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def ready(seconds: float = 0.0) -> Ready:
    """How a worker has started, after so many seconds."""
    time.sleep(seconds)
    if not _no_start:
        return Ready(os.getpid())
    error = _no_start[0]
    kind = RecipeError if isinstance(error, RecipeError) else ToolUnavailable
    return Ready(os.getpid(), str(error), kind.__name__)


def call(name: str, arguments: dict[str, Any], blocks: Mapping[str, Block], ends: float) -> Answer:
    """One call; images among the arguments are named by their keys in `blocks`. Nothing is done
    where the clock of `time.monotonic`, which is one for all processes, is past `ends`: then nobody
    waits for it any more.
    """
    if time.monotonic() > ends:
        return Answer(os.getpid(), None, {}, "too late to begin", ToolUnavailable.__name__)
    return answered(name, arguments, {k: partial(picture_in, b) for k, b in blocks.items()})


def answered(
    name: str, arguments: dict[str, Any], pictures: Mapping[str, Callable[[], Image.Image]]
) -> Answer:
    """One call; `pictures` gives those among the arguments that are not here yet, by their keys."""
    pid = os.getpid()
    if _no_start:
        return Answer(pid, None, {}, str(_no_start[0]), ToolUnavailable.__name__)
    try:
        given = {key: _kept(key, get) for key, get in pictures.items()}
        returned = call_tool(_tools[name], arguments_from_json(arguments, given))
        parts, new = parts_to_json(returned, given)
    except (ToolError, ToolUnavailable, ToolCrashed) as error:
        end_if_starved(error.__cause__)
        kind = next(k for k in (ToolError, ToolUnavailable, ToolCrashed) if isinstance(error, k))
        return Answer(pid, None, {}, str(error), kind.__name__)
    except (MemoryError, OSError) as error:
        end_if_starved(error)
        raise
    return Answer(pid, parts, {key: _packed(picture) for key, picture in new.items()})


_STARVED = (
    "cannot allocate memory",
    "can't allocate memory",
    "insufficient memory",
    "out of memory",
    "failed to map segment",
    "bad_alloc",
)
"""What the loader and native libraries say for want of memory, each by an error of its own."""


def end_if_starved(error: BaseException | None) -> None:
    """Ends the process where the error says that it has no memory left."""
    if error is not None and _is_starved(error):
        sys.stderr.flush()
        os._exit(OUT_OF_MEMORY)


def _is_starved(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    is_native = isinstance(error, ImportError | RuntimeError) or type(error).__module__ == "cv2"
    said = str(error).casefold()
    return is_native and any(words in said for words in _STARVED)


def _packed(picture: Image.Image) -> tuple[bytes, int, int]:
    return picture.tobytes(), picture.width, picture.height


def kept(key: str) -> Image.Image | None:
    """A picture that is here. Whoever is given it has it, even if it is not kept any longer."""
    view = _pictures.get(key)
    return None if view is None else view.pixels


def _kept(key: str, get: Callable[[], Image.Image]) -> ImageView:
    with _pictures_lock:
        if key not in _pictures:
            _pictures[key] = given_view(key, get())
            while len(_pictures) > 1 and sum(3 * v.width * v.height for v in _pictures.values()) > (
                KEPT_BYTES
            ):
                _pictures.popitem(last=False)
        _pictures.move_to_end(key)
        return _pictures[key]
