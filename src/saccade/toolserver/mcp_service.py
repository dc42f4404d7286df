"""The tools for clients of the Model Context Protocol.

Invariant: an image goes in as a data URI or by the name of one that is held, and comes out as PNG
beside its name and size; what clients could not take in one piece is sent smaller, which is said.

Left out on purpose: resources and prompts.
"""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import mcp_types as types
from mcp.server.lowlevel.server import Server
from PIL import Image

from saccade.dialects.scan import part_lines
from saccade.errors import ImageError, ToolCrashed, ToolError, ToolUnavailable
from saccade.geometry import Frame
from saccade.toolserver.guests import Guests
from saccade.types import ImageShown, Text, ToolResult

__all__ = ["mcp_server"]

MOST_BYTES = 700_000
"""Of a picture as it is sent; some clients take no answer of more than a megabyte."""
MOST_LISTED = 16
"""Images in one argument of a call, each of which may be a picture to be read."""
IMAGE_HELP = (
    ". Give a data URI (data:image/png;base64,...), or the name of an image that an earlier answer "
    "told; coordinates are pixels of it"
)


def mcp_server(guests: Guests) -> Server[Any]:
    """A server with every tool of `guests`."""

    async def list_tools(_: Any, __: Any) -> types.ListToolsResult:
        return types.ListToolsResult(
            tools=[
                types.Tool(
                    name=spec.name,
                    description=spec.description,
                    input_schema=_schema(spec.schema, guests.image_arguments(spec.name)),
                )
                for spec in guests.specs
            ]
        )

    async def call_tool(_: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        try:
            arguments = dict(params.arguments or {})
            for name in guests.image_arguments(params.name):
                if name in arguments:
                    arguments[name] = await _held(guests, arguments[name])
            result = await guests.call(params.name, arguments)
        except (ToolError, ImageError, ToolUnavailable, ToolCrashed) as error:
            return types.CallToolResult(content=[_text(str(error))], is_error=True)
        content = await guests.aside(lambda: _content(guests, result))  # pictures take their time
        return types.CallToolResult(content=content, is_error=result.failed)

    return Server("saccade", on_list_tools=list_tools, on_call_tool=call_tool)


def _schema(schema: dict[str, Any], images: list[str]) -> dict[str, Any]:
    """The schema, which says how images are given."""
    properties = {
        name: value | {"description": value["description"] + IMAGE_HELP}
        if name in images
        else value
        for name, value in schema["properties"].items()
    }
    return schema | {"properties": properties}


async def _held(guests: Guests, value: Any) -> Any:
    """The name of an image, or of each in a list; those that come as data URIs are held from now
    on.
    """
    if not isinstance(value, list):
        return await _held_one(guests, value)
    if len(value) > MOST_LISTED:
        raise ToolError(
            f"{len(value)} images in one argument are above the limit of {MOST_LISTED}: give fewer."
        )
    return [await _held_one(guests, one) for one in value]


async def _held_one(guests: Guests, value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith("data:"):
        return value
    head, comma, data = value.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ToolError(f"An image must be a base64 data URI, this one begins {value[:30]!r}.")
    try:
        name, _ = await guests.take(base64.b64decode(data, validate=True))
    except ValueError as error:  # also of text that is not even ASCII
        raise ToolError(f"The data URI of an image is no base64: {error}.") from None
    return name


def _content(guests: Guests, result: ToolResult) -> list[types.ContentBlock]:
    content: list[types.ContentBlock] = []
    for line in part_lines(result, lambda ref: Frame.pixels(ref.width, ref.height)):
        for part in line:
            if isinstance(part, Text):
                content.append(_text(part.text))
            elif isinstance(part, ImageShown):
                content += _picture(guests.picture(part.name))
    return content


def _text(text: str) -> types.TextContent:
    return types.TextContent(type="text", text=text)


def _picture(picture: Image.Image) -> list[types.ContentBlock]:
    """As PNG; where that is too long, smaller, with a word on it."""
    whole = picture.size
    data, most = _png(picture), MOST_BYTES * 3 // 4  # base64 makes four bytes of three
    while len(data) > most:
        share = min(0.75, 0.95 * math.sqrt(most / len(data)))  # bytes go with pixels, about
        sides = [max(1, round(share * side)) for side in picture.size]
        picture = picture.resize(sides, Image.Resampling.LANCZOS)
        data = _png(picture)
    said = f"{whole[0]} x {whole[1]} pixels"
    if picture.size != whole:
        said += f", shown as {picture.width} x {picture.height}: crop it to see more"
    shown = types.ImageContent(
        type="image", data=base64.b64encode(data).decode("ascii"), mime_type="image/png"
    )
    return [_text(said), shown]


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
