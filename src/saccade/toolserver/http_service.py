"""The tools over HTTP: for our own runs on other machines, and for other programs.

Invariant: nothing is done for a caller without the token but saying whether the service and its
workers live; what requests bring is bounded (`bodies`), and so is what they fetch; whatever is
wrong with a request is told in one sentence, as JSON. Asking how the service is waits for no tool.

Left out on purpose: encryption, which a proxy in front adds, and users: there is one token.
"""

from __future__ import annotations

import asyncio
import hmac
import io
import json
import math
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from saccade.episode_json import ImageTable, part_to_json
from saccade.errors import ImageError, ToolCrashed, ToolError, ToolUnavailable
from saccade.tools.running import MissedDeadline
from saccade.toolserver import metrics
from saccade.toolserver.bodies import (
    BODY_S,
    BYTES_PER_S,
    Bodies,
    Expected,
    Refusal,
    Room,
    refuse,
    sentence,
)
from saccade.toolserver.controller import Busy, Controller
from saccade.toolserver.guests import Guests, NotHeld, TooMany
from saccade.toolserver.remote import RAW
from saccade.types import ImageShown, ToolResult

__all__ = ["TokenRequired", "as_json", "service"]

PIECE = 2**18
"""Bytes of a picture that a server is given at a time."""


def service(guests: Guests, controller: Controller, *, token: str) -> Starlette:
    """The application: a server runs it. `token` is what callers must present as bearer."""
    room = Room(guests.limits.in_flight_bytes)
    made = _Service(guests, controller, room)
    routes = [
        Route("/health", made.health),
        Route("/openapi.json", made.openapi),
        Route("/tools", made.tools),
        Route("/tools/{name}", made.call, methods=["POST"]),
        Route("/pictures", made.take, methods=["POST"]),
        Route("/pictures/{name}", made.picture),
        Route("/status", made.status),
        Route("/metrics", made.metrics),
    ]
    middleware = [
        Middleware(TokenRequired, token=token),
        Middleware(Bodies, expected=partial(_expected, guests), room=room),
    ]
    return Starlette(routes=routes, middleware=middleware)


def _expected(guests: Guests, scope: Scope) -> Expected:
    """What a request may bring. Raises Refusal for a picture that says that it is too large."""
    limits, request = guests.limits, Request(scope)
    if request.url.path != "/pictures":
        most = limits.request_bytes
        return Expected(most, f"The body is longer than the limit of {most} bytes.", is_json=True)
    if request.headers.get("content-type") == RAW:
        width, height = (_whole(request, side) for side in ("width", "height"))
        if width * height > limits.picture_pixels:
            raise Refusal(422, guests.too_large(width, height), "ImageError")
        most = 3 * width * height
        return Expected(most, f"{width} x {height} pixels are {most} bytes: the body has more.")
    most = limits.picture_bytes
    return Expected(
        most,
        f"The body is longer than the limit of {most} bytes: send a smaller file, or raise "
        "service.picture_bytes where the service is started.",
    )


def _answers(handler: Callable[[Any, Request], Awaitable[Response]]) -> Any:
    """The handler, its typed errors told as JSON."""

    async def answered(self: _Service, request: Request) -> Response:
        try:
            return await handler(self, request)
        except Refusal as error:
            return sentence(error)
        except NotHeld as error:
            return sentence(Refusal(409, str(error), "NotHeld"))
        except (ToolError, ImageError) as error:
            return sentence(Refusal(422, str(error), type(error).__name__))
        except TooMany as error:
            return sentence(Refusal(429, str(error), "TooMany", retry_s=1))
        except Busy as error:
            return sentence(Refusal(503, str(error), "Busy", retry_s=1))
        except MissedDeadline as error:
            return sentence(Refusal(504, str(error), "MissedDeadline"))
        except ToolUnavailable as error:
            return sentence(Refusal(503, str(error), "ToolUnavailable"))
        except ToolCrashed as error:
            return sentence(Refusal(500, str(error), "ToolCrashed"))

    return answered


class _Service:
    """Handlers of one service."""

    def __init__(self, guests: Guests, controller: Controller, room: Room) -> None:
        self._guests = guests
        self._controller = controller
        self._room = room

    async def health(self, _: Request) -> Response:
        groups = {group.group: group.answers for group in self._controller.health()}
        return JSONResponse({"alive": True, "groups": groups})

    async def openapi(self, _: Request) -> Response:
        return JSONResponse(_document(self._guests))

    async def tools(self, _: Request) -> Response:
        return JSONResponse(
            [
                {
                    "name": spec.name,
                    "description": spec.description,
                    "version": spec.version,
                    "schema": spec.schema,
                }
                for spec in self._guests.specs
            ]
        )

    @_answers
    async def call(self, request: Request) -> Response:
        deadline_s = _deadline_s(request)
        try:
            arguments = json.loads(await _body(request))
        except (ValueError, RecursionError):
            raise Refusal(400, "The body is no JSON: send the arguments as an object.") from None
        if not isinstance(arguments, dict):
            raise Refusal(400, "The arguments must be a JSON object.")
        name, caller = request.path_params["name"], request.client
        if not self._guests.has(name):
            known = ", ".join(spec.name for spec in self._guests.specs)
            raise Refusal(404, f"No tool named {name[:40]!r}. Available: {known}.", "NoTool")
        result = await self._guests.call(
            name, arguments, caller=caller.host if caller else "", deadline_s=deadline_s
        )
        return JSONResponse(as_json(result))

    @_answers
    async def take(self, request: Request) -> Response:
        data = await _body(request)
        if request.headers.get("content-type") != RAW:
            name, ref = await self._guests.take(data)
        else:
            width, height = (_whole(request, side) for side in ("width", "height"))
            name, ref = await self._guests.take_raw(data, width=width, height=height)
        return JSONResponse({"image": name, "width": ref.width, "height": ref.height})

    @_answers
    async def picture(self, request: Request) -> Response:
        kind = RAW if request.headers.get("accept") == RAW else "image/png"
        name = request.path_params["name"]
        image = self._guests.image(name)
        async with AsyncExitStack() as stack:
            # the pixels where they must be made, and what they are packed into
            await stack.enter_async_context(self._room.taken(7 * image.width * image.height))
            data = await asyncio.to_thread(lambda: _packed(self._guests.picture(name), kind))
            return _Fetched(data, kind, after=stack.pop_all())

    async def status(self, _: Request) -> Response:
        return JSONResponse(
            {
                "tools": metrics.as_rows(self._controller),
                "workers": [metrics.as_row(group) for group in self._controller.health()],
            }
        )

    async def metrics(self, _: Request) -> Response:
        return Response(
            metrics.as_prometheus(self._controller), media_type="text/plain; version=0.0.4"
        )


class _Fetched(Response):
    """Bytes for whom the room is kept until they are on their way."""

    def __init__(self, data: bytes, kind: str, *, after: AsyncExitStack) -> None:
        super().__init__(headers={"content-length": str(len(data))}, media_type=kind)
        self._data, self._after = memoryview(data), after

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        async with self._after, asyncio.timeout(BODY_S + len(self._data) / BYTES_PER_S):
            await send(start)
            # in pieces: a server takes in whatever it is given, and waits before the next one
            for at in range(0, len(self._data), PIECE):
                piece = bytes(self._data[at : at + PIECE])
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _packed(picture: Image.Image, kind: str) -> bytes:
    if kind == RAW:
        return picture.tobytes()
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return file.getvalue()


def as_json(result: ToolResult) -> dict[str, Any]:
    """What a call gave: `parts` in order, places on `images` by their number, each with the name
    under which it is held and with how it was made of others.
    """
    table = ImageTable()
    names = {p.image.key: p.name for p in result.parts if isinstance(p, ImageShown)}
    parts = [
        {"type": "view", "image": table.index(part.image), "name": part.name}
        if isinstance(part, ImageShown)
        else part_to_json(part, table)
        for part in result.parts
    ]
    images = [row | {"name": names.get(row["key"])} for row in table.rows]
    return {"failed": result.failed, "images": images, "parts": parts}


class TokenRequired:
    """Lets through who presents the token; says to anyone that the service lives."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # nothing here speaks that
            return
        if scope["type"] == "http" and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, b"Bearer " + self._token):
                said = "Present the token of this service: Authorization: Bearer ..."
                await refuse(Refusal(401, said), scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _body(request: Request) -> bytes | bytearray:
    """The body, which comes in one piece and is not copied."""
    async for piece in request.stream():
        return piece
    return b""


def _deadline_s(request: Request) -> float | None:
    """Of a call, where its caller gives it one."""
    text = request.query_params.get("deadline_s")
    try:
        seconds = None if text is None else float(text)
    except ValueError:
        seconds = 0.0
    if seconds is not None and not 0 < seconds < math.inf:
        raise Refusal(400, f"deadline_s must be seconds above 0, got {str(text)[:40]!r}.")
    return seconds


def _whole(request: Request, name: str) -> int:
    text = request.query_params.get(name, "")
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise Refusal(400, f"The query needs {name}, a whole number of pixels.")
    return int(text)


_HELD = {
    "type": "object",
    "properties": {
        "image": {"type": "string", "description": "The name by which it is held."},
        "width": {"type": "integer"},
        "height": {"type": "integer"},
    },
    "required": ["image", "width", "height"],
}
_REFUSAL = {
    "type": "object",
    "properties": {"kind": {"type": "string"}, "error": {"type": "string"}},
    "required": ["kind", "error"],
}
_GIVEN = {
    "type": "object",
    "properties": {
        "failed": {"type": "boolean", "description": "Whether the call was a mistake."},
        "images": {
            "type": "array",
            "items": {"type": "object"},
            "description": "New images, the name of each that is held, and how it was made.",
        },
        "parts": {
            "type": "array",
            "items": {"type": "object", "properties": {"type": {"type": "string"}}},
            "description": "In order: texts, views, boxes, points and masks, whose `image` is a "
            "number in `images`.",
        },
    },
    "required": ["failed", "images", "parts"],
}
_ROWS = {"type": "array", "items": {"type": "object"}}
_STATUS = {"type": "object", "properties": {"tools": _ROWS, "workers": _ROWS}}
_HEALTH = {
    "type": "object",
    "properties": {"alive": {"type": "boolean"}, "groups": {"type": "object"}},
}


def _as_json(schema: dict[str, Any], told: str) -> dict[str, Any]:
    return {"description": told, "content": {"application/json": {"schema": schema}}}


def _parameter(name: str, told: str, schema: dict[str, Any], *, place: str) -> dict[str, Any]:
    """One in the path, without which there is none, or one that may be in the query."""
    is_needed = place == "path"
    return {"name": name, "in": place, "required": is_needed, "description": told, "schema": schema}


def _document(guests: Guests) -> dict[str, Any]:
    """OpenAPI, with the schema of each tool as the model's user sees it."""
    refusal = _as_json(_REFUSAL, "One sentence: what was wrong, and the remedy.")
    refusals = {"4XX": refusal, "5XX": refusal}
    pixels = {"type": "integer", "minimum": 1}
    binary = {"schema": {"type": "string", "format": "binary"}}
    metrics_text = {"description": "Prometheus text.", "content": {"text/plain": {}}}

    def told(summary: str, answer: dict[str, Any]) -> dict[str, Any]:
        return {"get": {"summary": summary, "responses": {"200": answer} | refusals}}

    paths: dict[str, Any] = {
        "/health": told("That it lives; needs no token.", _as_json(_HEALTH, "It does.")),
        "/tools": told("The tools with their schemas.", _as_json(_ROWS, "One row for each.")),
        "/status": told("What became of calls.", _as_json(_STATUS, "By tool and by workers.")),
        "/metrics": told("The same for Prometheus.", metrics_text),
        "/pictures": {
            "post": {
                "summary": "Hold a picture (PNG, JPEG, WEBP, GIF, BMP or TIFF, or RGB bytes); "
                "gives its name.",
                "parameters": [
                    _parameter(side, f"Pixels; needed with {RAW}.", pixels, place="query")
                    for side in ("width", "height")
                ],
                "requestBody": {"required": True, "content": {"image/*": binary, RAW: binary}},
                "responses": {"200": _as_json(_HELD, "It is held.")} | refusals,
            }
        },
        "/pictures/{name}": {
            "get": {
                "summary": f"An image that is held, as PNG, or as RGB bytes (Accept: {RAW}).",
                "parameters": [
                    _parameter("name", "Told by an answer.", {"type": "string"}, place="path")
                ],
                "responses": {
                    "200": {
                        "description": "The picture.",
                        "content": {"image/png": binary, RAW: binary},
                    }
                }
                | refusals,
            }
        },
    }
    paths["/health"]["get"]["security"] = []
    for spec in guests.specs:
        paths[f"/tools/{spec.name}"] = {
            "post": {
                "operationId": spec.name,
                "summary": spec.description,
                "parameters": [
                    _parameter(
                        "deadline_s",
                        "Seconds for the call and its waiting, "
                        f"{guests.limits.deadline_s:g} at most.",
                        {"type": "number", "exclusiveMinimum": 0},
                        place="query",
                    )
                ],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": spec.schema}},
                },
                "responses": {"200": _as_json(_GIVEN, "What the call gave.")} | refusals,
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "saccade tools",
            "version": "1",
            "description": "Coordinates are pixels of the image that is named.",
        },
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
        "paths": paths,
    }
