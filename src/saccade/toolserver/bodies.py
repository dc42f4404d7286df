"""What requests bring with them, in bounded memory and time.

Invariant: the application behind sees whole bodies only, no longer than it expects; no byte is read
for which there is no room among those of all requests; a body that is slower than it may be, and
one that finds no room, end with one sentence, and so does their connection.

Left out on purpose: what bodies mean, and connections that never get as far as a request.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["BODY_S", "BYTES_PER_S", "Bodies", "Expected", "Refusal", "Room", "refuse", "sentence"]

BODY_S = 5.0
"""For a body without a byte; longer ones have more time, at BYTES_PER_S."""
BYTES_PER_S = 2**20
ROOM_S = 10.0
"""For which a body waits for room."""
MOST_MARKS = 50_000
"""Brackets, braces, colons and commas of JSON: each may cost a hundred bytes of memory, and no call
has so many.
"""


class Refusal(Exception):
    """Ends a request with a status and a sentence."""

    def __init__(
        self, status: int, sentence: str, kind: str = "Refused", *, retry_s: int | None = None
    ) -> None:
        super().__init__(sentence)
        self.status, self.kind, self.retry_s = status, kind, retry_s


def sentence(refusal: Refusal) -> Response:
    """A refusal as JSON."""
    text = str(refusal).encode("utf-8", "replace").decode()  # lone surrogates are no JSON
    headers = {} if refusal.retry_s is None else {"Retry-After": str(refusal.retry_s)}
    return JSONResponse({"kind": refusal.kind, "error": text}, refusal.status, headers)


class Expected(NamedTuple):
    """What a request may bring."""

    most: int
    """Bytes of its body."""
    too_long: str
    """What is said of a longer one."""
    is_json: bool = False
    times: int = 1
    """Bytes of memory that each of them costs."""


class Room:
    """Bytes that may be in use at the same time, in one event loop."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._used = 0
        self._waiting: list[asyncio.Future[None]] = []

    @asynccontextmanager
    async def taken(self, size: int) -> AsyncIterator[None]:
        """With so many of them, which may be more than there are for one who has them all. Raises
        Refusal where there are none after ROOM_S.
        """
        try:
            async with asyncio.timeout(ROOM_S):
                while self._used and self._used + size > self._size:
                    waiting = asyncio.get_running_loop().create_future()
                    self._waiting.append(waiting)
                    await waiting
        except TimeoutError:
            raise Refusal(
                503,
                f"No room for {size} bytes beside those of other requests after {ROOM_S:g} s "
                "(service.in_flight_mb): send fewer pictures at a time.",
                "Busy",
                retry_s=1,
            ) from None
        self._used += size
        try:
            yield
        finally:
            self._used -= size
            waiting_now, self._waiting = self._waiting, []
            for one in waiting_now:
                if not one.done():
                    one.set_result(None)


class Bodies:
    """Hands requests on with their whole body in one piece."""

    def __init__(self, app: ASGIApp, *, expected: Callable[[Scope], Expected], room: Room) -> None:
        self._app, self._expected, self._room = app, expected, room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope.get("headers", ()))
        if scope["type"] != "http" or not {b"content-length", b"transfer-encoding"} & {*headers}:
            await self._app(scope, receive, send)
            return
        async with AsyncExitStack() as stack:
            try:
                expected = self._expected(scope)
                length = int(headers.get(b"content-length", expected.most))
                if length > expected.most:
                    raise Refusal(413, expected.too_long)
                await stack.enter_async_context(self._room.taken(expected.times * length))
                body = await _read(receive, expected, length)
            except Refusal as refusal:
                await refuse(refusal, scope, receive, send)
                return
            if expected.is_json and sum(map(body.count, b"[{:,")) > MOST_MARKS:
                said = f"The body has more than {MOST_MARKS} brackets, colons and commas."
                await sentence(Refusal(413, said))(scope, receive, send)
                return
            await self._app(scope, _again(body, receive), send)


async def _read(receive: Receive, expected: Expected, length: int) -> bytearray:
    """The whole body. Raises Refusal."""
    body, at = bytearray(length), 0  # once and for all: what grows is there twice meanwhile
    seconds = BODY_S + length / BYTES_PER_S
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Refusal(400, "The caller left before its request had ended.")
                piece = message.get("body", b"")
                if at + len(piece) > length:
                    raise Refusal(413, expected.too_long)
                body[at : at + len(piece)] = piece
                at += len(piece)
                if not message.get("more_body", False):
                    del body[at:]
                    return body
    except TimeoutError:
        said = f"Of the body {at} bytes came in {seconds:g} s: send it faster."
        raise Refusal(408, said) from None


def _again(body: bytearray, receive: Receive) -> Receive:
    """What receives the body in one piece, and then what comes after it."""
    left = [body]

    async def received() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return received


async def refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Say why, and end the connection, on which the rest of a body may come for ever. For a while
    it is read past: who is still sending would not hear the sentence.
    """
    try:
        async with asyncio.timeout(BODY_S):
            is_more = refusal.status != 408
            while is_more:
                is_more = (await receive()).get("more_body", False)
    except TimeoutError:
        pass
    response = sentence(refusal)
    response.headers["Connection"] = "close"
    await response(scope, receive, send)
