"""Questions of several callers in one pass: batches form, nobody is mixed up and nobody hangs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.backends.batched import Batched
from saccade.daemon_threads import in_thread

LONG_S = 10


class Model:
    """Doubles numbers, once it may; one that is told to raise does."""

    def __init__(self, *, is_held: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.raises: BaseException | None = None
        if not is_held:
            self.go.set()

    def __call__(self, questions: list[int]) -> list[int]:
        self.batches.append(questions)
        assert self.go.wait(LONG_S)
        if self.raises is not None and len(self.batches) == 2:
            raise self.raises
        return [2 * q for q in questions]


def until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def asked(batched: Batched[Any, Any], question: Any, *, name: str = "caller") -> Future[Any]:
    """What a caller in a thread of its own is told."""
    told: Future[Any] = Future()

    def run() -> None:
        try:
            told.set_result(batched.ask(question))
        except BaseException as error:
            told.set_exception(error)

    threading.Thread(target=run, daemon=True, name=name).start()
    return told


def in_line(batched: Batched[Any, Any], questions: Sequence[Any]) -> list[Future[Any]]:
    """Callers that wait in this order, behind the first of them, which is answered alone."""
    told = []
    for n, question in enumerate(questions):
        told.append(asked(batched, question))
        until(lambda n=n: len(batched._running) == 1 and len(batched._waiting) == n)
    return told


def answers(told: list[Future[Any]]) -> list[Any]:
    return [t.exception(LONG_S) or t.result() for t in told]


def test_whoever_comes_alone_is_answered_alone() -> None:
    model = Model()
    batched = Batched[int, int](model, most=8)
    assert [batched.ask(n) for n in range(3)] == [0, 2, 4]
    assert model.batches == [[0], [1], [2]]


def test_what_comes_while_a_batch_runs_is_the_next_one_and_the_oldest_are_first() -> None:
    model = Model(is_held=True)
    batched = Batched[int, int](model, most=4)
    told = in_line(batched, range(11))
    model.go.set()
    assert answers(told) == [2 * n for n in range(11)]
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9, 10]]


def test_only_questions_that_are_alike_share_a_batch() -> None:
    model = Model(is_held=True)
    batched = Batched[int, int](model, most=3, alike=lambda n: n % 2)
    told = in_line(batched, range(10))
    model.go.set()
    assert answers(told) == [2 * n for n in range(10)]
    assert model.batches == [[0], [1, 3, 5], [2, 4, 6], [7, 9], [8]]


def test_a_limit_of_one_turns_batches_off() -> None:
    model = Model(is_held=True)
    told = in_line(Batched[int, int](model, most=1), range(4))
    model.go.set()
    assert answers(told) == [0, 2, 4, 6]
    assert model.batches == [[0], [1], [2], [3]]


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()])
def test_what_a_batch_raises_is_told_to_each_of_its_callers_and_to_no_other(
    error: BaseException,
) -> None:
    model = Model(is_held=True)
    model.raises = error
    batched = Batched[int, int](model, most=3)
    told = in_line(batched, range(6))
    model.go.set()
    assert answers(told) == [0, error, error, error, 8, 10]
    assert model.batches == [[0], [1, 2, 3], [4, 5]]
    assert batched.ask(7) == 14


def test_answers_that_are_fewer_than_questions_are_an_error_and_no_guess() -> None:
    batched = Batched[int, int](lambda questions: [0], most=3)
    model = Model(is_held=True)
    batched._answer = lambda questions: model(questions)[:1]
    told = in_line(batched, range(3))
    model.go.set()
    first, *others = answers(told)
    assert first == 0
    assert [type(o) for o in others] == [ValueError, ValueError]


def test_what_was_abandoned_while_it_waited_is_not_begun() -> None:
    model = Model(is_held=True)
    batched = Batched[int, int](model, most=8)

    async def callers() -> list[int]:
        def begun(n: int) -> asyncio.Future[int]:
            told = in_thread(lambda: batched.ask(n))
            until(lambda: len(batched._running) + len(batched._waiting) == n + 1)
            return told

        told = [begun(n) for n in range(5)]
        told[1].cancel()
        told[3].cancel()
        model.go.set()
        return await asyncio.gather(told[0], told[2], told[4])

    assert asyncio.run(callers()) == [0, 4, 8]
    until(lambda: not batched._waiting)
    assert model.batches == [[0], [2, 4]]


def test_a_caller_that_is_interrupted_while_it_waits_holds_up_nobody() -> None:
    model = Model(is_held=True)
    batched = Batched[int, int](model, most=8)
    waits = batched._changed.wait_for

    def wait_for(claim: Callable[[], bool]) -> Any:
        if threading.current_thread().name == "interrupted":
            raise KeyboardInterrupt
        return waits(claim)

    batched._changed.wait_for = wait_for  # type: ignore[method-assign,assignment]
    first = asked(batched, 0)
    until(lambda: len(batched._running) == 1)
    gone = asked(batched, 1, name="interrupted")
    assert type(gone.exception(LONG_S)) is KeyboardInterrupt
    told = [first, asked(batched, 2)]
    until(lambda: len(batched._waiting) == 1)
    model.go.set()
    assert answers(told) == [0, 4]
    assert model.batches == [[0], [2]]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=40),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.0005]),
)
def test_many_callers_get_their_own_answers_or_the_error_of_their_own_batch(
    asks: list[tuple[int, int]], most: int, takes_s: float
) -> None:
    inside: list[int] = []
    batches: list[list[tuple[int, int, int]]] = []

    def model(questions: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        inside.append(1)
        assert len(inside) == 1
        batches.append(questions)
        time.sleep(takes_s)
        inside.pop()
        if any(number == 9 for _, _, number in questions):
            raise ValueError(questions)
        return questions

    batched = Batched[Any, Any](model, most=most, alike=lambda question: question[1])
    questions = [(n, kind, number) for n, (kind, number) in enumerate(asks)]
    told = answers([asked(batched, q) for q in questions])
    for question, answer in zip(questions, told, strict=True):
        [batch] = [b for b in batches if question in b]
        is_spoilt = any(number == 9 for _, _, number in batch)
        assert answer.args == (batch,) if is_spoilt else answer == question
    assert sum(map(len, batches)) == len(questions)
    assert all(len(b) <= most and len({kind for _, kind, _ in b}) == 1 for b in batches)
