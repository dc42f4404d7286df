"""Questions of several callers in one pass of a model.

Invariant: each caller gets the answer to its own question, or the error of the batch that it was
in; nobody waits for ever, whatever a batch raises. One batch runs at a time, and what comes
meanwhile is the next: the oldest question and those like it. There is no timer, so whoever comes
alone is answered at once.

Left out on purpose: asking again what failed. What is one caller's mistake is told before it asks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from saccade.daemon_threads import abandonment

__all__ = ["Batched"]

Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(eq=False, slots=True)
class _Asked(Generic[Q, A]):
    question: Q
    kind: Hashable
    is_abandoned: Callable[[], bool]
    answer: Future[A] = field(default_factory=Future)


class Batched(Generic[Q, A]):
    """What answers several questions at once, for callers from several threads with one each."""

    def __init__(
        self,
        answer: Callable[[list[Q]], Sequence[A]],
        *,
        most: int,
        alike: Callable[[Q], Hashable] = lambda question: None,
    ) -> None:
        """`answer` gives one answer for each question, and is asked at most `most` of which `alike`
        is the same.
        """
        self._answer = answer
        self._most = most
        self._alike = alike
        self._changed = threading.Condition()
        self._waiting: list[_Asked[Q, A]] = []
        self._running: list[_Asked[Q, A]] = []
        """The batch of now; its first caller is the one that runs it."""

    def ask(self, question: Q) -> A:
        """The answer to a question. Raises what its batch raised; a call that was abandoned while
        it waited is not begun.
        """
        mine = _Asked[Q, A](question, self._alike(question), abandonment())
        try:
            with self._changed:
                self._waiting.append(mine)
                self._changed.wait_for(lambda: mine.answer.done() or self._is_next(mine))
                if not mine.answer.done():
                    if mine.is_abandoned():
                        raise CancelledError
                    self._running = self._taken()
            if not mine.answer.done():
                self._run(self._running)
        finally:  # also where this caller is interrupted: the others must not wait for it
            with self._changed:
                if mine in self._waiting:
                    self._waiting.remove(mine)
                if mine in self._running[:1]:
                    self._running = []
                self._changed.notify_all()
        return mine.answer.result()

    def _is_next(self, mine: _Asked[Q, A]) -> bool:
        return not self._running and self._waiting[0] is mine

    def _taken(self) -> list[_Asked[Q, A]]:
        first, *others = self._waiting
        like = [o for o in others if o.kind == first.kind and not o.is_abandoned()]
        batch = [first, *like[: self._most - 1]]
        self._waiting = [w for w in self._waiting if w not in batch]
        return batch

    def _run(self, batch: list[_Asked[Q, A]]) -> None:
        try:
            answers = self._answer([asked.question for asked in batch])
            for asked, answer in list(zip(batch, answers, strict=True)):
                asked.answer.set_result(answer)
        except BaseException as error:
            for asked in batch:
                if not asked.answer.done():
                    asked.answer.set_exception(error)
