"""Tools in worker processes of this machine: a hung call is killed at its deadline, a dead worker
is replaced, and what it was doing is done again.

Invariant: a call ends with what the tool gave or with an error of ours, once, whatever happens to
processes; a call is tried again only where its worker died under it (tools are functions of what
they are given), and no longer than its deadline lasts.

Left out on purpose: the processes themselves. Pebble keeps a pool of them: it replaces the dead and
kills the late. And several calls at once in a process, which must die for one call alone: models
that answer calls in batches do so in threads and in replicas of Ray.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from saccade import errors
from saccade.config import BackendChoice, BackendKind
from saccade.errors import RecipeError, SaccadeError, ToolCrashed, ToolUnavailable
from saccade.images import ImageView
from saccade.tools.running import Elsewhere, Returned, missed_deadline
from saccade.tools.spec import Tool
from saccade.toolserver import in_child
from saccade.toolserver.in_child import OUT_OF_MEMORY, Answer, Ready
from saccade.toolserver.shared_pictures import Block, SharedPictures
from saccade.toolserver.wire import parts_from_json, sent

__all__ = ["Workers", "WorkersHealth"]

TRIES = 8
"""Of a call whose workers die under it."""
START_S = 120.0
"""For workers with their back ends."""
LOCKED_S = 5.0
"""For which a pool may wait for a worker that died with its lock."""
STARTS_S = 5.0
"""For a worker that replaces another, if not three times what the first ones took."""
LOOK_S = 5.0
"""Between two questions to workers that have nothing to do."""
ANSWER_S = 5.0
"""For an answer to one."""


@dataclass(slots=True)
class WorkersHealth:
    """What is known of a group's workers without asking them."""

    group: str
    processes: int
    running: int = 0
    """Calls that were handed to it."""
    answered: int = 0
    died: int = 0
    """Workers that ended under a call."""
    killed: int = 0
    """Workers that were killed at a deadline."""
    last_answer: float | None = None
    """Seconds since the epoch."""
    last_failure: float | None = None
    """When a call or a question ended without an answer, in seconds since the epoch."""
    replaces: bool = True
    """Whether all that died or was killed was replaced by another process."""

    @property
    def answers(self) -> bool | None:
        """Whether they did the last time; None where they were asked nothing yet."""
        if self.last_answer is None and self.last_failure is None:
            return None
        return (self.last_answer or 0.0) >= (self.last_failure or 0.0)


class Workers(Elsewhere):
    """Groups of tools, each in `processes` processes of its own. Use as an async context manager,
    or `close` it.
    """

    def __init__(
        self,
        groups: Mapping[str, Sequence[str]],
        *,
        backends: Mapping[BackendKind, BackendChoice] | None = None,
        processes: Mapping[str, int] | None = None,
        memory_mb: int | None = 4096,
        niceness: int = 0,
        cpus: Mapping[str, int] | None = None,
    ) -> None:
        """`groups`: names of tools by the group whose processes they share; `memory_mb`: address
        space of a process, None without a limit; `cpus`: processors that those of a group share.
        Raises RecipeError where a tool is in two groups.
        """
        processors = _Processors()
        self._pictures = SharedPictures()
        self._groups: dict[str, _Group] = {}
        choices = {kind: choice.model_dump() for kind, choice in (backends or {}).items()}
        for group, names in groups.items():
            own = processors.next((cpus or {}).get(group))
            start = (tuple(names), choices, memory_mb, niceness, own)
            made = _Group(WorkersHealth(group, (processes or {}).get(group, 1)), start, memory_mb)
            for name in names:
                if name in self._groups:
                    raise RecipeError(f"Tool {name} is in two groups of workers: leave it in one.")
                self._groups[name] = made

    def start(self) -> None:
        """Start all processes and wait until each group has one that is ready: the first calls of a
        run, or of a service's callers, need not wait for back ends. Raises ToolUnavailable where
        none is after START_S, and what its workers say where they can't make their tools; then all
        are ended.
        """
        try:
            self._start()
        except SaccadeError:
            self.close()
            raise

    def _start(self) -> None:
        from pebble import ProcessExpired

        began = time.monotonic()
        waiting = [
            (group, group.ready_pool().schedule(in_child.ready))
            for group in dict.fromkeys(self._groups.values())
        ]
        for group, future in waiting:
            try:
                told: Ready = future.result(timeout=START_S)
            except (FutureTimeout, ProcessExpired, BrokenProcessPool):
                raise ToolUnavailable(
                    f"The workers of {group.health.group} do not start: they ended, or said "
                    f"nothing for {START_S:g} s. Is it the memory, of which service.memory_mb "
                    f"gives each {group.memory_mb} MB?"
                ) from None
            if told.error:
                raise getattr(errors, told.kind)(told.error)
            group.health.last_answer = time.time()
            group.starts_s = max(STARTS_S, 3 * (time.monotonic() - began))

    def pids(self) -> list[int]:
        """Of workers, as they are told by calls that are as many as there are processes."""
        asked = [
            group.ready_pool().schedule(in_child.ready, args=(0.05,))
            for group in dict.fromkeys(self._groups.values())
            for _ in range(4 * group.health.processes)
        ]
        return sorted({future.result(timeout=START_S).pid for future in asked})

    def capacity(self, name: str) -> int:
        """Calls of a tool that it takes at the same time: one in each process, and one that waits
        there, so that no process does.
        """
        return 2 * self._groups[name].health.processes

    def health(self) -> list[WorkersHealth]:
        """Of each group, at once. Those that have nothing to do are asked whether they are there,
        and nobody waits for what they say: the next one who asks is told.
        """
        groups = [*dict.fromkeys(self._groups.values())]
        for group in groups:
            group.look()
        return [group.health for group in groups]

    async def run(
        self, tool: Tool, arguments: Mapping[str, Any], *, deadline_s: float
    ) -> list[Returned]:
        """See `tools.running.Runner`."""
        group = self._groups.get(tool.name)
        if group is None:
            raise ToolUnavailable(f"No workers run {tool.name}: add it to a group of tools.")
        call = sent(arguments)
        ends = time.monotonic() + deadline_s
        held: list[ImageView] = []
        try:
            blocks = {}
            try:
                async with asyncio.timeout(deadline_s):
                    for key, view in call.images.items():
                        blocks[key] = self._pictures.held(view) or await self._written(view)
                        held.append(view)
            except TimeoutError:
                raise missed_deadline(tool.name, deadline_s) from None
            answer = await group.answer(
                tool.name, call.arguments, blocks, ends=ends, deadline_s=deadline_s
            )
        finally:
            for view in held:
                self._pictures.let_go(view)
        if answer.parts is None:
            raise getattr(errors, answer.kind)(answer.error)
        new = {
            key: Image.frombytes("RGB", (width, height), data)
            for key, (data, width, height) in answer.pictures.items()
        }
        return parts_from_json(answer.parts, call.images, new)

    async def _written(self, view: ImageView) -> Block:
        """As `SharedPictures.hold`, in a thread: its pixels may have to be made, and are copied."""
        writing = asyncio.ensure_future(asyncio.to_thread(self._pictures.hold, view))
        try:
            return await asyncio.shield(writing)
        except asyncio.CancelledError:  # the thread goes on, and what it holds nobody lets go

            def let_go(ended: asyncio.Future[Block]) -> None:
                if not ended.cancelled() and ended.exception() is None:
                    self._pictures.let_go(view)

            writing.add_done_callback(let_go)
            raise

    def close(self) -> None:
        """Stop all processes and take the shared pictures away."""
        for group in dict.fromkeys(self._groups.values()):
            group.close()
        self._pictures.close()

    async def __aenter__(self) -> Workers:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)


@dataclass(eq=False, slots=True)
class _Group:
    """Processes that share their tools."""

    health: WorkersHealth
    start: tuple[
        tuple[str, ...], dict[BackendKind, dict[str, Any]], int | None, int, tuple[int, ...]
    ]
    """What a new worker is told."""
    memory_mb: int | None
    pool: Any = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    ending: list[threading.Thread] = field(default_factory=list)
    """Of pools that were given up."""
    looked: Any = None
    """The last question to idle workers, and when it was asked."""
    looked_at: float = 0.0
    under_way: set[Any] = field(default_factory=set)
    """What pools were asked and have not answered."""
    starts_s: float = START_S
    """For a worker that replaces another: as long its pool may not take up a call."""
    replaced_at: float = 0.0
    """When one last had to start, by `time.monotonic`."""

    def look(self) -> None:
        """Ask an idle worker whether it is there, once in LOOK_S; one that says nothing for
        ANSWER_S does not answer. Replacing it is left to the next call: it may only be starting.
        """
        now = time.monotonic()
        with self.lock:
            if self.pool is None or self.health.running:
                return
            if self.looked is not None and not self.looked.done():
                if now - self.looked_at > ANSWER_S:
                    self.health.last_failure = time.time()
                return
            if now - self.looked_at < LOOK_S:
                return
            self.looked_at = now
            try:
                self.looked = self.pool.schedule(in_child.ready)
            except RuntimeError:  # it is stopped; the next call makes a new one
                self.health.last_failure = time.time()
                return
        self.looked.add_done_callback(self._seen)

    def _seen(self, future: Any) -> None:
        if future.cancelled():
            return
        if future.exception() is None and not future.result().error:
            self.health.last_answer = time.time()
        else:
            self.health.last_failure = time.time()

    async def answer(
        self,
        name: str,
        arguments: dict[str, Any],
        blocks: Mapping[str, Block],
        *,
        ends: float,
        deadline_s: float,
    ) -> Answer:
        """What came of a call, tried again where its worker died, until the clock of
        `time.monotonic` says `ends`. Raises MissedDeadline then, ToolCrashed where every worker
        dies of it.
        """
        from pebble import ProcessExpired

        died = starved = 0
        self.health.running += 1
        try:
            while died < TRIES:
                left = ends - time.monotonic()
                if left <= 0:
                    raise missed_deadline(name, deadline_s)
                pool = self.ready_pool()
                try:
                    answer = await self._asked(pool, (name, arguments, blocks, ends), left)
                except ProcessExpired as expired:
                    self.health.died += 1
                    self._note_failure()
                    died += 1
                    starved += expired.exitcode == OUT_OF_MEMORY
                except TimeoutError:
                    self.health.killed += 1
                    self._note_failure()
                    raise missed_deadline(name, deadline_s) from None
                except _NotBegun:
                    raise missed_deadline(name, deadline_s) from None
                except (BrokenProcessPool, _Stalled):  # no fault of this call
                    self._note_failure()
                    self._discard(pool)
                else:
                    self.health.answered += 1
                    self.health.last_answer = time.time()
                    return answer
        finally:
            self.health.running -= 1
        why = f"of {self.memory_mb} MB of memory, which is its limit" if starved else "under it"
        raise ToolCrashed(
            f"Tool {name} was tried {TRIES} times and its worker died {why} each time."
        )

    def _note_failure(self) -> None:
        self.health.last_failure = time.time()
        self.replaced_at = time.monotonic()

    async def _asked(self, pool: Any, call: tuple[Any, ...], left_s: float) -> Answer:
        try:
            future = pool.schedule(in_child.call, args=call, timeout=left_s)
        except RuntimeError as stopped:
            raise _Stalled from stopped
        self.under_way.add(future)
        waiting = asyncio.wrap_future(future)
        try:
            # the pool counts from when a worker takes it up, and this from now
            done, _ = await asyncio.wait({waiting}, timeout=left_s)
            if waiting.cancelled():  # with its pool, which somebody else gave up
                raise _Stalled
            if done:
                answer: Answer = waiting.result()
                return answer
            if future.running():
                waiting.cancel()  # its worker is killed
                raise TimeoutError
            # not cancelled: a worker that takes up what was would be killed for it
            waiting.add_done_callback(lambda late: late.cancelled() or late.exception())
            busy = sum(other.running() for other in self.under_way)
            may_start = time.monotonic() - self.replaced_at < self.starts_s
            raise _NotBegun if may_start or busy >= self.health.processes else _Stalled
        finally:
            self.under_way.discard(future)

    def ready_pool(self) -> Any:
        """The pool, started where there is none."""
        with self.lock:
            if self.pool is None:
                self.pool = _new_pool(self.health.processes, self.start)
                self.replaced_at = time.monotonic()
            return self.pool

    def _discard(self, pool: Any) -> None:
        """Stop a pool that does not answer any more, unless somebody did already."""
        with self.lock:
            if self.pool is not pool:
                return
            self.pool = None
            self.health.killed += self.health.processes
            ending = threading.Thread(target=_end, args=(pool,), daemon=True)
            self.ending.append(ending)
            ending.start()

    def close(self) -> None:
        with self.lock:
            pool, self.pool = self.pool, None
        if pool is not None:
            _end(pool)
        for ending in self.ending:
            ending.join(timeout=10)


def _end(pool: Any) -> None:
    pool.stop()
    pool.join()


class _Processors:
    """Hands out the processors that this process may use, in turn."""

    def __init__(self) -> None:
        is_linux = sys.platform == "linux"  # others do not keep this limit
        self._all = sorted(os.sched_getaffinity(0)) if is_linux else []
        self._at = 0

    def next(self, count: int | None) -> tuple[int, ...]:
        """So many of them; none where all may be used."""
        if count is None or count >= len(self._all):
            return ()
        own = [self._all[(self._at + n) % len(self._all)] for n in range(count)]
        self._at += count
        return tuple(own)


class _NotBegun(Exception):
    """The time of a call went by while its pool was busy with others, or its workers started."""


class _Stalled(Exception):
    """A pool with workers to spare did not take up a call in time, or was given up."""


def _new_pool(processes: int, start: tuple[Any, ...]) -> Any:
    from pebble import ProcessPool
    from pebble.common.types import CONSTS

    # Pebble looks at its workers this often, and gives the late ones this long to end by themselves
    CONSTS.sleep_unit = 0.02
    CONSTS.term_timeout = 0.2
    CONSTS.channel_lock_timeout = LOCKED_S
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["saccade.toolserver.in_child"])
    return ProcessPool(
        max_workers=processes, initializer=in_child.start, initargs=start, context=context
    )
