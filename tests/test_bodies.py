"""What requests bring: read in time, for as many bytes as there is room for, or refused."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from saccade.toolserver import bodies
from saccade.toolserver.bodies import MOST_MARKS, Bodies, Expected, Refusal, Room

EXPECTED = Expected(100, "Longer than 100 bytes.")


class Echo:
    """An application that notes what it is given, and answers when it is let."""

    def __init__(self) -> None:
        self.given: list[bytes] = []
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()
        assert not message.get("more_body", False)
        self.given.append(bytes(message.get("body", b"")))
        await self.go_on.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def asked(
    app: Any, *pieces: bytes, every_s: float = 0.0, length: int | None = None, ends: bool = True
) -> tuple[int, dict[bytes, bytes], dict[str, str]]:
    """Status, headers and JSON of what comes of a body in pieces; without `ends` no end comes."""
    size = sum(map(len, pieces)) if length is None else length
    headers = [(b"content-length", str(size).encode())]
    if length == -1:
        headers = [(b"transfer-encoding", b"chunked")]
    left: Iterator[bytes] = iter(pieces)
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(every_s)
        piece = next(left, None)
        if piece is None:
            if not ends:
                await asyncio.Event().wait()
            return {"type": "http.request", "body": b"", "more_body": False}
        return {"type": "http.request", "body": piece, "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    await app({"type": "http", "path": "/", "headers": headers}, receive, send)
    body = sent[1]["body"]
    return sent[0]["status"], dict(sent[0]["headers"]), json.loads(body) if body else {}


def test_the_application_sees_whole_bodies_only() -> None:
    async def play() -> None:
        echo = Echo()
        app = Bodies(echo, expected=lambda _: EXPECTED, room=Room(1000))
        for length in (None, -1):
            assert (await asked(app, b"ab", b"", b"cd", length=length))[0] == 200
        assert echo.given == [b"abcd", b"abcd"]

    asyncio.run(play())


@pytest.mark.parametrize("length", [101, -1])
def test_a_body_that_is_too_long_is_refused_before_or_while_it_is_read(length: int) -> None:
    async def play() -> None:
        echo = Echo()
        app = Bodies(echo, expected=lambda _: EXPECTED, room=Room(1000))
        status, headers, said = await asked(app, b"x" * 60, b"x" * 41, b"x", length=length)
        assert (status, said["error"]) == (413, "Longer than 100 bytes.")
        assert headers[b"connection"] == b"close"
        assert not echo.given

    asyncio.run(play())


def test_a_body_has_time_for_its_length_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_S", 0.3)
    monkeypatch.setattr(bodies, "BYTES_PER_S", 100)

    async def play() -> None:
        async with asyncio.timeout(10):
            await timed()

    async def timed() -> None:
        app = Bodies(Echo(), expected=lambda _: EXPECTED, room=Room(1000))
        assert (await asked(app, b"x" * 50, b"x" * 50, every_s=0.3))[0] == 200  # of 1.3 s
        began = time.monotonic()
        status, headers, said = await asked(app, b"xyz", length=10, ends=False)
        assert 0.4 <= time.monotonic() - began < 1.2
        assert status == 408
        assert headers[b"connection"] == b"close"
        assert said["error"] == "Of the body 3 bytes came in 0.4 s: send it faster."

    asyncio.run(play())


def test_no_more_is_read_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "ROOM_S", 0.3)

    async def play() -> None:
        echo = Echo()
        app = Bodies(echo, expected=lambda _: Expected(100, "no", times=2), room=Room(100))
        echo.go_on.clear()
        first = asyncio.create_task(asked(app, b"a" * 40))  # takes 80
        await asyncio.sleep(0.05)
        small = asyncio.create_task(asked(app, b"b" * 10))  # takes the rest
        await asyncio.sleep(0.05)
        status, headers, said = await asked(app, b"c")
        assert (status, headers[b"retry-after"]) == (503, b"1")
        assert "No room for 2 bytes" in said["error"]
        assert "service.in_flight_mb" in said["error"]
        waits = asyncio.create_task(asked(app, b"d"))
        await asyncio.sleep(0.05)
        assert not waits.done()
        echo.go_on.set()
        assert [(await one)[0] for one in (first, small, waits)] == [200, 200, 200]
        assert [given[:1] for given in echo.given] == [b"a", b"b", b"d"]

    asyncio.run(play())


def test_one_that_is_larger_than_all_the_room_has_it_alone() -> None:
    async def play() -> None:
        room = Room(10)
        async with room.taken(30):
            waits = asyncio.ensure_future(anext(_entered(room, 1)))
            await asyncio.sleep(0.05)
            assert not waits.done()
        assert await waits

    async def _entered(room: Room, size: int) -> Any:
        async with room.taken(size):
            yield True

    asyncio.run(play())


def test_who_leaves_while_it_waits_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        room = Room(10)

        async def take() -> None:
            async with room.taken(10):
                await asyncio.sleep(0)

        async with room.taken(10):
            waits = asyncio.create_task(take())
            await asyncio.sleep(0.01)
            waits.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waits
        await asyncio.wait_for(take(), 1)

    asyncio.run(play())


def test_json_of_more_values_than_a_call_can_have_is_never_parsed() -> None:
    async def play() -> None:
        echo = Echo()
        expected = Expected(10**6, "no", is_json=True)
        app = Bodies(echo, expected=lambda _: expected, room=Room(10**7))
        assert (await asked(app, b"[" * MOST_MARKS))[0] == 200
        for mark in (b"[", b"{", b":", b","):
            status, _, said = await asked(app, mark * (MOST_MARKS + 1))
            assert (status, "brackets, colons and commas" in said["error"]) == (413, True)
        assert len(echo.given) == 1

    asyncio.run(play())


def test_who_expects_nothing_refuses_without_reading() -> None:
    def refused(_: Scope) -> Expected:
        raise Refusal(422, "Not like that.", "ImageError")

    async def play() -> None:
        app = Bodies(Echo(), expected=refused, room=Room(10))
        status, _, said = await asked(app, b"x")
        assert (status, said) == (422, {"kind": "ImageError", "error": "Not like that."})

    asyncio.run(play())
