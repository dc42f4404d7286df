"""Work in daemon threads that are used again.

Invariant: work that hangs keeps its thread to itself, and nobody waits for it, not even the end of
the process; whoever comes next gets another one.

Starting a thread makes the starter wait until the new one had its turn: beside a thread that
decodes, 5 ms for each call, and the event loop stands still meanwhile.
Left out on purpose: a limit, which is `ToolBox.workers`.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

__all__ = ["OneThread", "in_thread"]

T = TypeVar("T")
Inbox = SimpleQueue[Callable[[], None]]

_idle: list[Inbox] = []
os.register_at_fork(after_in_child=_idle.clear)  # threads do not live on there


def in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """What `work` returns or raises; cancelling the future abandons it."""
    future: Future[T] = Future()
    # a running future can't be cancelled, so an abandoned thread may still set its result in peace
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    waiting = asyncio.wrap_future(future)
    try:
        inbox = _idle.pop()
    except IndexError:
        inbox = SimpleQueue()
        threading.Thread(target=_serve, args=(inbox,), daemon=True, name="saccade-tool").start()
    inbox.put(run)
    return waiting


def _serve(inbox: Inbox) -> None:
    while True:
        inbox.get()()
        _idle.append(inbox)


class OneThread:
    """Work that always the same thread does, one piece after the other, whoever asks.

    What is allocated in many threads stays with each of them: a reader of print that ran in sixteen
    in turn held 1.7 GB, in one 0.5 GB.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inbox: Inbox | None = None
        os.register_at_fork(after_in_child=self._begin_anew)

    def _begin_anew(self) -> None:
        self._lock = threading.Lock()
        self._inbox = None  # its thread does not live on there

    def do(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, once it had its turn."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                result = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._lock:
            if self._inbox is None:
                self._inbox = SimpleQueue()
                threading.Thread(
                    target=_serve_on, args=(self._inbox,), daemon=True, name="saccade-one"
                ).start()
            self._inbox.put(run)
        return future.result()


def _serve_on(inbox: Inbox) -> None:
    while True:
        inbox.get()()
