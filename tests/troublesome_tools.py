"""Tools that do what tools in the field do to those who run them."""

from __future__ import annotations

import os
import signal
import time
from typing import Annotated, Any

import numpy as np
from PIL import Image

from saccade.errors import ToolError
from saccade.images import ImageView, root_view
from saccade.tools import Tool, tool
from saccade.toolserver import in_child


@tool
def sleeper(seconds: Annotated[float, "how long"]) -> str:
    """Sleep."""
    time.sleep(seconds)
    return f"slept {seconds:g} s in {os.getpid()}"


@tool
def suicide(image: ImageView) -> str:
    """Die by a signal."""
    os.kill(os.getpid(), signal.SIGKILL)
    return "still here"


@tool
def frozen() -> str:
    """Stop, as a process that hangs in a driver does: it takes no signal but the last one."""
    os.kill(os.getpid(), signal.SIGSTOP)
    return "still here"


@tool
def glutton(megabytes: Annotated[int, "how much"]) -> str:
    """Eat memory."""
    return f"{len(bytearray(megabytes * 2**20)) / 2**20:g} MB"


@tool
def native_glutton(library: Annotated[str, "whose code asks for it"]) -> str:
    """Eat memory in a library that tells of it in its own way."""
    if library == "cv2":
        import cv2

        cv2.resize(np.zeros((1, 1), np.uint8), (60_000, 60_000))
    elif library == "torch":
        import torch

        torch.empty(4 * 10**9, dtype=torch.uint8)
    elif library == "loader":
        raise ImportError("libx.so: failed to map segment from shared object")
    raise RuntimeError("what is no want of memory: memory was fine")


@tool
def refuser() -> str:
    """Refuse, as for a mistake of the model."""
    raise ToolError("Not like that; like this.")


class Particular(ToolError):
    """An error of a tool's own."""


@tool
def particular() -> str:
    """Refuse in its own way."""
    raise Particular("I am particular about this.")


@tool
def crasher() -> str:
    """Raise what no tool should."""
    raise ZeroDivisionError("a bug")


@tool
def painter(image: ImageView) -> list[ImageView | str]:
    """Give a picture that is no function of the given one alone, and a part of it."""
    painted = root_view(Image.fromarray(np.full((30, 50, 3), 77, dtype=np.uint8)))
    return [painted, painted.rotate(90), image.rotate(90), "painted"]


@tool
def framer() -> ImageView:
    """Give a part of a picture that it made itself and does not give."""
    return root_view(Image.fromarray(np.full((20, 20, 3), 99, dtype=np.uint8))).rotate(90)


@tool
def who() -> str:
    """Tell the process."""
    return str(os.getpid())


ALL: list[Tool] = [
    sleeper,
    suicide,
    frozen,
    glutton,
    native_glutton,
    refuser,
    particular,
    crasher,
    painter,
    framer,
    who,
]


def start(names: Any, choices: Any, memory_mb: int | None, niceness: int, cpus: Any = ()) -> None:
    """In place of `in_child.start`, which finds tools by name."""
    if memory_mb is not None:
        in_child._limit_memory(memory_mb)
    in_child._tools.update({t.name: t for t in ALL if t.name in names})


def stillborn(*_: Any) -> None:
    """In place of `in_child.start`: there is no memory even for that."""
    raise MemoryError
