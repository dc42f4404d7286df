"""What passes between the event loop, where turns are awaited, and the thread that decodes them.

Invariant: a job is answered in the loop that asked; who gave up waiting, or closed the loop, is
not.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from saccade.engines import TurnRequest
from saccade.errors import EngineError

__all__ = ["Drawn", "Episode", "Job", "Posted"]


class Drawn(NamedTuple):
    """What the worker hands to the event loop."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool
    version: int


@dataclass(slots=True, eq=False)
class Job:
    """One request that waits or runs."""

    request: TurnRequest
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Drawn]
    ids: np.ndarray
    """(T,) the whole episode so far."""
    image_keys: tuple[str, ...]
    next_start: int = 0

    @classmethod
    def of(cls, request: TurnRequest) -> Job:
        """A job of the running event loop."""
        loop = asyncio.get_running_loop()
        return cls(
            request,
            loop,
            loop.create_future(),
            ids=np.concatenate([np.asarray(s.ids, dtype=np.int64) for s in request.segments]),
            image_keys=tuple(i.key for s in request.segments for i in s.images),
        )

    def answer(self, result: Drawn | EngineError) -> None:
        """Settle the future, from any thread."""

        def settle() -> None:
            if self.future.done():
                return
            if isinstance(result, EngineError):
                self.future.set_exception(result)
            else:
                self.future.set_result(result)

        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(settle)


@dataclass(slots=True, eq=False)
class Episode:
    """A live episode. Between turns its keys and values are parked here."""

    job: Job | None = None
    kv: torch.Tensor | None = None
    """(layers, 2, heads, tokens, size)"""
    ids: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """What `kv` was computed from."""
    image_keys: tuple[str, ...] = ()
    next_start: int = 0


class Posted(NamedTuple):
    """A message to the worker."""

    kind: str
    episode: str
    job: Job | None = None
