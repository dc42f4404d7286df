"""The Tool Controller: every call of a run passes here, whatever runs the tools.

Invariant: a call is answered once, with what its own arguments give; callers that ask for the same
thing at the same time share one answer. Nobody waits in a queue without a bound: where `waiting`
calls of a tool wait already, the next one is told so at once. What nobody waits for any more before
its turn has come is not run.

Left out on purpose: running anything (a `Runner` does), and what the model is told (the tool box).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from saccade.errors import ToolCrashed, ToolError, ToolUnavailable
from saccade.images import ImageView
from saccade.tools.running import MissedDeadline, Returned, Runner
from saccade.tools.spec import Tool

__all__ = ["Busy", "Controller", "Health", "ToolCounts", "Way"]

WAITING = 1024
"""Calls of one tool that may wait for a free worker."""
KEPT_LATENCIES = 4096
"""Of each tool, the newest ones, for its table."""


class Health(Protocol):
    """What is known of those that run a group of tools, without asking them."""

    group: str
    processes: int
    running: int
    answered: int
    died: int
    killed: int
    last_answer: float | None
    replaces: bool

    @property
    def answers(self) -> bool | None:
        """Whether they did the last time they were asked; None where they were not yet."""
        ...


class Way(Runner, Protocol):
    """A runner that says how much it takes at once, and how its workers are."""

    def capacity(self, name: str) -> int:
        """Calls of a tool that it takes at the same time."""
        ...

    def health(self) -> Sequence[Health]:
        """Of each group of workers; none where tools run in this process."""
        ...

    def at_once(self, tool: Tool, arguments: Mapping[str, Any]) -> list[Returned] | None:
        """What a call gives that is so small that it is run here and now; None where it is not."""
        ...

    def close(self) -> None:
        """End what it started."""
        ...


@dataclass(slots=True)
class ToolCounts:
    """What became of the calls of one tool."""

    calls: int = 0
    """That were answered or failed; those that shared an answer too."""
    shared: int = 0
    """Answered by a call that was under way for somebody else."""
    mistakes: int = 0
    """Of the model."""
    unavailable: int = 0
    crashed: int = 0
    refused: int = 0
    """Because too many were waiting."""
    held: int = 0
    """Now, waiting or running."""
    running: int = 0
    """Now."""
    ended: int = 0
    """Of those that were run, whatever came of them."""
    queue_sum_s: float = 0.0
    run_sum_s: float = 0.0
    queue_s: list[float] = field(default_factory=list)
    run_s: list[float] = field(default_factory=list)
    """Newest KEPT_LATENCIES of each."""

    @property
    def waiting(self) -> int:
        """Now, for a free worker."""
        return self.held - self.running

    def took(self, queue_s: float, run_s: float) -> None:
        self.ended += 1
        self.queue_sum_s += queue_s
        self.run_sum_s += run_s
        for kept, seconds in ((self.queue_s, queue_s), (self.run_s, run_s)):
            kept.append(seconds)
            if len(kept) > KEPT_LATENCIES:
                del kept[: KEPT_LATENCIES // 2]


class Busy(ToolUnavailable):
    """Too many calls were waiting."""


class Controller:
    """Dispatches calls to a way of running tools, and counts what becomes of them."""

    def __init__(self, way: Way, *, waiting: int = WAITING) -> None:
        self.way = way
        self.counts: dict[str, ToolCounts] = {}
        self._waiting = waiting
        self.health = way.health
        self.close = way.close
        self._loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _UnderWay] = WeakKeyDictionary()

    def make_room(self, calls: int) -> None:
        """Let at least so many calls of a tool wait: of who bounds itself, none is refused."""
        self._waiting = max(self._waiting, calls)

    async def run(
        self, tool: Tool, arguments: Mapping[str, Any], *, deadline_s: float
    ) -> list[Returned]:
        """See `tools.running.Runner`. Raises Busy too where too many calls wait."""
        counts = self.counts.setdefault(tool.name, ToolCounts())
        try:
            return await self._answer(tool, arguments, counts, deadline_s=deadline_s)
        except ToolError:
            counts.mistakes += 1
            raise
        except Busy:
            counts.refused += 1
            raise
        except ToolUnavailable:
            counts.unavailable += 1
            raise
        except ToolCrashed:
            counts.crashed += 1
            raise

    async def _answer(
        self, tool: Tool, arguments: Mapping[str, Any], counts: ToolCounts, *, deadline_s: float
    ) -> list[Returned]:
        began = time.perf_counter()
        try:
            parts = self.way.at_once(tool, arguments)
        except (ToolError, ToolUnavailable, ToolCrashed):
            counts.calls += 1
            counts.took(0.0, time.perf_counter() - began)
            raise
        if parts is not None:
            counts.calls += 1
            counts.took(0.0, time.perf_counter() - began)
            return parts
        under_way = self._loops.setdefault(asyncio.get_running_loop(), _UnderWay())
        key = _key(tool, arguments, deadline_s)
        call = under_way.calls.get(key)
        if call is None:
            call = self._begun(key, under_way, tool, arguments, counts)
            counts.calls += 1
        else:
            counts.calls += 1
            counts.shared += 1
            began_before = call.runs
            try:
                return await under_way.answer(call)
            except MissedDeadline:
                if not began_before:
                    raise
            # less time than this caller gives has gone by: it is asked again
            call = under_way.calls.get(key) or self._begun(key, under_way, tool, arguments, counts)
        return await under_way.answer(call)

    def _begun(
        self,
        key: _Key,
        under_way: _UnderWay,
        tool: Tool,
        arguments: Mapping[str, Any],
        counts: ToolCounts,
    ) -> _Call:
        """A call that waits for its turn from now on. Raises Busy where too many do."""
        if counts.held >= self._waiting + self.way.capacity(tool.name):
            raise Busy(
                f"{counts.held} calls of {tool.name} wait or run already: give it more "
                "processes, or let fewer episodes run at a time."
            )
        counts.held += 1  # here and not when it begins: many may come at once
        call = _Call(key)
        call.work = asyncio.ensure_future(self._run(call, under_way, tool, arguments, counts))
        under_way.calls[key] = call
        call.work.add_done_callback(lambda ended: under_way.end(call, ended, counts))
        return call

    async def _run(
        self,
        call: _Call,
        under_way: _UnderWay,
        tool: Tool,
        arguments: Mapping[str, Any],
        counts: ToolCounts,
    ) -> list[Returned]:
        slots = under_way.slots.get(tool.name)
        if slots is None:
            slots = under_way.slots[tool.name] = asyncio.Semaphore(self.way.capacity(tool.name))
        came = time.perf_counter()
        await slots.acquire()
        call.runs = True
        began = time.perf_counter()
        counts.running += 1
        try:
            return await self.way.run(tool, arguments, deadline_s=call.key.deadline_s)
        finally:
            slots.release()
            counts.running -= 1
            counts.took(began - came, time.perf_counter() - began)


class _Key(NamedTuple):
    """The same for calls that give the same."""

    tool: str
    version: int
    deadline_s: float
    arguments: Hashable


@dataclass(eq=False, slots=True)
class _Call:
    """One that waits or runs."""

    key: _Key
    work: asyncio.Future[list[Returned]] = field(init=False)
    waiters: int = 0
    """Callers that still want its answer."""
    runs: bool = False


class _UnderWay:
    """What belongs to one event loop."""

    def __init__(self) -> None:
        self.calls: dict[_Key, _Call] = {}
        self.slots: dict[str, asyncio.Semaphore] = {}

    async def answer(self, call: _Call) -> list[Returned]:
        """What came of a call. Where the last caller leaves before it runs, it never does."""
        call.waiters += 1
        try:
            # shielded: a caller that leaves must not take the answer from those that share it
            return await asyncio.shield(call.work)
        finally:
            call.waiters -= 1
            if not call.waiters and not call.runs:
                self._drop(call)
                call.work.cancel()

    def end(self, call: _Call, ended: asyncio.Future[list[Returned]], counts: ToolCounts) -> None:
        self._drop(call)
        counts.held -= 1
        if not ended.cancelled():
            ended.exception()  # seen, even where every caller has left

    def _drop(self, call: _Call) -> None:
        """Nobody shares it from now on."""
        if self.calls.get(call.key) is call:
            del self.calls[call.key]


def _key(tool: Tool, arguments: Mapping[str, Any], deadline_s: float) -> _Key:
    given = tuple((name, _hashable(value)) for name, value in sorted(arguments.items()))
    return _Key(tool.name, tool.spec.version, deadline_s, given)


def _hashable(value: Any) -> Hashable:
    if isinstance(value, ImageView):
        return value.ref.key
    # 1, 1.0 and True are equal, and may mean different things to a tool
    return tuple(map(_hashable, value)) if isinstance(value, list) else (type(value), value)
