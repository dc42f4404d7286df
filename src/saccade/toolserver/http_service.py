"""The tools over HTTP: for our own runs on other machines, and for other programs.

Invariant: nothing is done for a caller without the token but saying that the service lives; bodies
are read up to a limit and no further; whatever is wrong with a request is told in one sentence, as
JSON. Asking how the service is waits for no tool.

Left out on purpose: encryption, which a proxy in front adds, and users: there is one token.
"""

from __future__ import annotations

import asyncio
import hmac
import io
import json
from collections.abc import Awaitable, Callable
from typing import Any

from PIL import Image
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from saccade.episode_json import ImageTable, part_to_json
from saccade.errors import ImageError, ToolCrashed, ToolError, ToolUnavailable
from saccade.toolserver import metrics
from saccade.toolserver.controller import Controller
from saccade.toolserver.guests import Guests, NotHeld
from saccade.toolserver.remote import RAW
from saccade.types import ImageShown, ToolResult

__all__ = ["TokenRequired", "as_json", "service"]

Handler = Callable[[Request], Awaitable[Response]]


def service(guests: Guests, controller: Controller, *, token: str) -> Starlette:
    """The application: a server runs it. `token` is what callers must present as bearer."""
    made = _Service(guests, controller)
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
    return Starlette(routes=routes, middleware=[Middleware(TokenRequired, token=token)])


class _Refusal(Exception):
    """Ends a request with a status and a sentence."""

    def __init__(self, status: int, sentence: str, kind: str = "Refused") -> None:
        super().__init__(sentence)
        self.status, self.kind = status, kind


def _answers(handler: Callable[[Any, Request], Awaitable[Response]]) -> Any:
    """The handler, its typed errors told as JSON."""

    async def answered(self: _Service, request: Request) -> Response:
        try:
            return await handler(self, request)
        except _Refusal as error:
            return _sentence(error.status, error.kind, str(error))
        except NotHeld as error:
            return _sentence(409, "NotHeld", str(error))
        except (ToolError, ImageError) as error:
            return _sentence(422, type(error).__name__, str(error))
        except ToolUnavailable as error:
            return _sentence(503, "ToolUnavailable", str(error))
        except ToolCrashed as error:
            return _sentence(500, "ToolCrashed", str(error))
        except ClientDisconnect:
            return _sentence(400, "Refused", "The caller left before its request had ended.")

    return answered


class _Service:
    """Handlers of one service."""

    def __init__(self, guests: Guests, controller: Controller) -> None:
        self._guests = guests
        self._controller = controller

    async def health(self, _: Request) -> Response:
        return JSONResponse({"alive": True})

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
        body = await _body(request, self._guests.limits.request_bytes)
        try:
            arguments = json.loads(body)
        except (ValueError, RecursionError):
            raise _Refusal(400, "The body is no JSON: send the arguments as an object.") from None
        if not isinstance(arguments, dict):
            raise _Refusal(400, "The arguments must be a JSON object.")
        return JSONResponse(
            as_json(await self._guests.call(request.path_params["name"], arguments))
        )

    @_answers
    async def take(self, request: Request) -> Response:
        limits = self._guests.limits
        if request.headers.get("content-type") != RAW:
            name, ref = await self._guests.take(await _body(request, limits.picture_bytes))
        else:
            width, height = (_whole(request, side) for side in ("width", "height"))
            data = await _body(request, 3 * limits.picture_pixels)
            name, ref = await self._guests.take_raw(data, width=width, height=height)
        return JSONResponse({"image": name, "width": ref.width, "height": ref.height})

    @_answers
    async def picture(self, request: Request) -> Response:
        kind = RAW if request.headers.get("accept") == RAW else "image/png"
        name = request.path_params["name"]
        data = await asyncio.to_thread(lambda: _packed(self._guests.picture(name), kind))
        return Response(data, media_type=kind)

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
                refused = _sentence(
                    401, "Refused", "Present the token of this service: Authorization: Bearer ..."
                )
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _sentence(status: int, kind: str, sentence: str) -> Response:
    text = sentence.encode("utf-8", "replace").decode()  # lone surrogates are no JSON
    return JSONResponse({"kind": kind, "error": text}, status_code=status)


async def _body(request: Request, limit: int) -> bytes:
    """The body, read no further than the limit."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            raise _Refusal(413, f"The body is longer than the limit of {limit} bytes.")
        parts.append(part)
    return b"".join(parts)


def _whole(request: Request, name: str) -> int:
    text = request.query_params.get(name, "")
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise _Refusal(400, f"The query needs {name}, a whole number of pixels.")
    return int(text)


def _document(guests: Guests) -> dict[str, Any]:
    """OpenAPI, with the schema of each tool as the model's user sees it."""
    json_body = {"application/json": {"schema": {"type": "object"}}}
    answer = {"description": "What the call gave.", "content": json_body}
    refusal = {"description": "One sentence: what was wrong, and the remedy.", "content": json_body}
    responses = {"200": answer, "4XX": refusal, "5XX": refusal}
    paths: dict[str, Any] = {
        "/pictures": {
            "post": {
                "summary": "Hold a picture (PNG, JPEG, WEBP, GIF, BMP or TIFF); gives its name.",
                "requestBody": {"required": True, "content": {"image/*": {}, RAW: {}}},
                "responses": responses,
            }
        },
        "/pictures/{name}": {
            "get": {
                "summary": "An image that is held, as PNG.",
                "parameters": [
                    {
                        "name": "name",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string"},
                    }
                ],
                "responses": {"200": {"description": "The picture.", "content": {"image/png": {}}}},
            }
        },
    }
    for spec in guests.specs:
        paths[f"/tools/{spec.name}"] = {
            "post": {
                "operationId": spec.name,
                "summary": spec.description,
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": spec.schema}},
                },
                "responses": responses,
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
