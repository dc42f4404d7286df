"""An event loop in a thread of its own, for connections that outlive the loops of their users.

Invariant: what is given to it runs there and is awaited elsewhere; who stops waiting ends the work.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["OwnLoop"]

T = TypeVar("T")


class OwnLoop:
    """Starts with the first use; `close` ends it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the work gives or raises."""
        future = asyncio.run_coroutine_threadsafe(work, self._started())
        return await asyncio.wrap_future(future)

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """What the work gives or raises, for who has no event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._started()).result()

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Let it run; nobody waits for it. It must not raise."""
        asyncio.run_coroutine_threadsafe(work, self._started())

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                loop = self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=loop.run_forever, name=self._name, daemon=True
                )
                self._thread.start()
            return self._loop

    def close(self, last: Coroutine[Any, Any, None] | None = None) -> None:
        """End all that runs there, then do `last` there, and stop. Nothing where it never ran."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            if last is not None:
                last.close()
            return
        asyncio.run_coroutine_threadsafe(_ended(last), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()


async def _ended(last: Coroutine[Any, Any, None] | None) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    if last is not None:
        await last
    for _ in range(3):  # transports that were closed end in the turns after
        await asyncio.sleep(0)
