"""A progress bar with rate and time left, on the error stream, for everything that takes over two
seconds.

Left out on purpose: nested bars. A long run shows one bar; its details are in `metrics.jsonl`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Bar", "progress"]

PLAIN_EVERY_S = 15.0
"""Without a terminal a line is printed this often."""


class Bar:
    """One task of a progress display."""

    def __init__(self, shown: Progress, name: str, total: int, done: int) -> None:
        self._shown, self._name, self._total, self._first = shown, name, total, done
        self._done = done
        self._began = self._printed = time.monotonic()
        self._task = shown.add_task(name, total=total, completed=done, note="")

    def advance(self, note: str = "", by: int = 1) -> None:
        """Count `by` more; `note` stands behind the bar."""
        self._done += by
        elapsed = time.monotonic() - self._began
        rate = (self._done - self._first) / elapsed if elapsed > 0 else 0.0
        self._shown.update(self._task, completed=self._done, note=f"{rate:.2f}/s {note}")
        if not self._shown.console.is_terminal:
            self._print(rate, note)

    def _print(self, rate: float, note: str) -> None:
        now = time.monotonic()
        if now - self._printed < PLAIN_EVERY_S and self._done < self._total:
            return
        self._printed = now
        left = (self._total - self._done) / rate if rate else 0.0
        text = (
            f"{self._name} {self._done}/{self._total} {rate:.2f}/s {left / 60:.1f} min left {note}"
        )
        self._shown.console.print(text, highlight=False)


@contextmanager
def progress(name: str, *, total: int, done: int = 0) -> Iterator[Bar]:
    """A bar for `total` units of which `done` were done before; plain lines where there is no
    terminal.
    """
    console = Console(stderr=True, soft_wrap=True)
    shown = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )
    with shown:
        yield Bar(shown, name, total, done)
