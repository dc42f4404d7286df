"""Work in daemon threads that are used again.

Invariant: work that hangs keeps its thread to itself, and nobody waits for it but the end of the
process, for ten seconds; whoever comes next gets another one.

Starting a thread makes the starter wait until the new one had its turn: beside a thread that
decodes, 5 ms for each call, and the event loop stands still meanwhile.
Left out on purpose: a limit, which is its callers'.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

__all__ = ["OneThread", "abandonment", "in_thread"]

T = TypeVar("T")
Inbox = SimpleQueue[Callable[[], None]]

_idle: list[Inbox] = []
_busy: set[int] = set()
"""Threads with work in hand."""
_of_call = threading.local()
"""`is_abandoned` of the call that a thread works at."""
LAST_WORDS_S = 10.0
"""What abandoned work is given where the process ends: a library that computes in a thread that is
taken from it aborts the process.
"""


def _begin_anew() -> None:
    _idle.clear()  # threads do not live on in a child
    _busy.clear()


os.register_at_fork(after_in_child=_begin_anew)


@atexit.register
def _wait_for_abandoned() -> None:
    deadline = time.monotonic() + LAST_WORDS_S
    while _busy and time.monotonic() < deadline:
        time.sleep(0.01)


def in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    """What `work` returns or raises; cancelling the future abandons it."""
    future: Future[T] = Future()
    # a running future can't be cancelled, so an abandoned thread may still set its result in peace
    future.set_running_or_notify_cancel()

    def run() -> None:
        _of_call.is_abandoned = waiting.cancelled
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


def abandonment() -> Callable[[], bool]:
    """Of the call that this thread works at: whether nobody waits for it any more."""
    found: Callable[[], bool] = getattr(_of_call, "is_abandoned", lambda: False)
    return found


def _serve(inbox: Inbox) -> None:
    while True:
        _work(inbox)
        _idle.append(inbox)


def _work(inbox: Inbox) -> None:
    piece = inbox.get()
    _busy.add(threading.get_ident())
    try:
        piece()
    finally:
        _busy.discard(threading.get_ident())


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
        """What `work` returns or raises, once it had its turn. A call that was abandoned before is
        not begun: what nobody waits for must not hold up those who wait.
        """
        future: Future[T] = Future()
        is_abandoned = abandonment()

        def run() -> None:
            if is_abandoned():
                future.cancel()
                return
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
        _work(inbox)
