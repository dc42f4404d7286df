"""The tools for MCP clients: the official client, in memory, over HTTP, on the standard streams."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import socket
import sys
import threading
import time
from typing import Annotated, Any

import httpx2
import mcp_types as types
import numpy as np
import pytest
import uvicorn
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from PIL import Image

from saccade.config import Recipe
from saccade.errors import ToolError
from saccade.geometry import Box
from saccade.images import ImageView, root_view
from saccade.tools import builtin_tools, tool
from saccade.tools.running import InThreads
from saccade.toolserver import serving
from saccade.toolserver.controller import Controller
from saccade.toolserver.guests import Guests
from saccade.toolserver.mcp_service import MOST_BYTES, mcp_server
from saccade.types import Text

LIGHT = [t for t in builtin_tools().values() if not t.needs and not t.is_answer]


def noise(seed: int = 0, width: int = 60, height: int = 40) -> ImageView:
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return root_view(Image.fromarray(values))


def uri(view: ImageView) -> str:
    file = io.BytesIO()
    view.pixels.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def server() -> Any:
    return mcp_server(Guests(LIGHT, runner=Controller(InThreads())))


def texts(result: types.CallToolResult) -> list[str]:
    return [c.text for c in result.content if isinstance(c, types.TextContent)]


def pictures(result: types.CallToolResult) -> list[Image.Image]:
    found = [c for c in result.content if isinstance(c, types.ImageContent)]
    return [Image.open(io.BytesIO(base64.b64decode(c.data))).convert("RGB") for c in found]


EXAMPLES: dict[str, dict[str, Any]] = {
    "crop": {"box": [3, 4, 30, 20]},
    "zoom": {"box": [3, 4, 30, 20]},
    "look": {"box": [3, 4, 30, 20]},
    "compare": {"box": [3, 4, 30, 20], "other": "IMAGE", "other_box": [0, 0, 9, 9]},
    "rotate": {"degrees": 90},
    "enhance": {"how": "invert"},
    "draw_horizontal_line": {"y": 7},
    "draw_vertical_line": {"x": 7},
    "measure": {"start": [0, 0], "end": [3, 4]},
}


def test_the_official_client_lists_and_calls_every_tool() -> None:
    async def play() -> None:
        async with Client(server()) as client:
            listed = (await client.list_tools()).tools
            assert {t.name for t in listed} == {t.name for t in LIGHT} == set(EXAMPLES)
            for found in listed:
                image = found.input_schema["properties"]["image"]
                assert "data URI" in image["description"]
                arguments = {"image": uri(noise()), **EXAMPLES[found.name]}
                if arguments.get("other") == "IMAGE":
                    arguments["other"] = uri(noise(1))
                result = await client.call_tool(found.name, arguments)
                assert not result.is_error, texts(result)
                assert bool(pictures(result)) == (found.name != "measure")

    asyncio.run(play())


def test_a_picture_that_came_back_can_be_named_in_the_next_call() -> None:
    async def play() -> None:
        async with Client(server()) as client:
            view = noise(3)
            first = await client.call_tool("crop", {"image": uri(view), "box": [3, 4, 30, 20]})
            [picture] = pictures(first)
            cut = view.crop(Box(3, 4, 30, 20))
            assert picture.tobytes() == cut.pixels.tobytes()
            name = next(t for t in texts(first) if t.startswith("img_")).partition(":")[0]
            second = await client.call_tool("crop", {"image": name, "box": [1, 1, 9, 9]})
            assert pictures(second)[0].tobytes() == cut.crop(Box(1, 1, 9, 9)).pixels.tobytes()

    asyncio.run(play())


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("crop", {"image": "img_none", "box": [0, 0, 9, 9]}, "No image named 'img_none' is held"),
        ("crop", {"image": "data:image/png;base64,@@", "box": [0, 0, 9, 9]}, "no base64"),
        ("crop", {"image": "data:image/png;base64,\xe9", "box": [0, 0, 9, 9]}, "no base64"),
        ("crop", {"image": "data:image/png,xx", "box": [0, 0, 9, 9]}, "base64 data URI"),
        ("crop", {"image": "data:image/png;base64,AAAA", "box": [0, 0, 9, 9]}, "accepted format"),
        ("crop", {"image": "/etc/passwd", "box": [0, 0, 9, 9]}, "No image named '/etc/passwd'"),
        ("crop", {"box": [0, 0, 9, 9]}, "needs the argument 'image'"),
        ("crop", {"image": uri(noise()), "box": [9, 9, 3, 3]}, "top left corner first"),
        ("fly", {}, "No tool named 'fly'"),
        ("terminate", {"ans": "1"}, "ends the episode"),
    ],
)
def test_mistakes_come_back_as_one_sentence(
    name: str, arguments: dict[str, Any], words: str
) -> None:
    async def play() -> None:
        async with Client(server()) as client:
            result = await client.call_tool(name, arguments)
            assert result.is_error
            assert words in " ".join(texts(result))

    asyncio.run(play())


@tool
def collage(
    images: Annotated[list[ImageView], "what to count"],
) -> str:
    """Count images."""
    return f"{len(images)} images"


def test_a_list_of_more_images_than_may_be_is_refused_and_not_cut() -> None:
    guests = Guests([collage], runner=Controller(InThreads()))

    async def play() -> None:
        async with Client(mcp_server(guests)) as client:
            most = await client.call_tool("collage", {"images": [uri(noise())] * 16})
            assert texts(most) == ["16 images"]
            more = await client.call_tool("collage", {"images": [uri(noise())] * 17})
            assert more.is_error
            assert texts(more) == [
                "17 images in one argument are above the limit of 16: give fewer."
            ]
            deep: Any = uri(noise())
            for _ in range(50):
                deep = [deep]
            nested = await client.call_tool("collage", {"images": deep})
            assert nested.is_error
            assert "over 8 levels deep" in " ".join(texts(nested))
        name, _ = await guests.take(base64.b64decode(uri(noise()).partition(",")[2]))
        result = await guests.call("collage", {"images": [name] * 100})
        assert result.parts == (Text("100 images"),)
        with pytest.raises(ToolError, match="images lists 101 images, above the limit of 100"):
            await guests.call("collage", {"images": [name] * 101})

    asyncio.run(play())


def test_a_large_picture_is_sent_smaller_and_that_is_said() -> None:
    async def play() -> None:
        async with Client(server()) as client:
            arguments = {"image": uri(noise(1, 900, 700)), "how": "invert"}
            result = await client.call_tool("enhance", arguments)
            [content] = [c for c in result.content if isinstance(c, types.ImageContent)]
            assert len(content.data) <= MOST_BYTES
            [picture] = pictures(result)
            assert picture.width < 900
            said = f"900 x 700 pixels, shown as {picture.width} x {picture.height}"
            assert any(said in text for text in texts(result))

    asyncio.run(play())


def test_over_http_only_those_with_the_token_are_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made: list[uvicorn.Server] = []

    def run(app: Any, *, host: str, port: int) -> None:
        config = uvicorn.Config(app, host=host, port=port, log_level="error", ws="none")
        made.append(uvicorn.Server(config))
        made[0].run()

    monkeypatch.setenv("SACCADE_TOKEN", "a secret")
    monkeypatch.setattr(serving, "_run", run)
    thread = threading.Thread(
        target=lambda: serving.serve_mcp(
            Recipe(tools=("crop",)), stdio=False, host="127.0.0.1", port=port, say=lambda _: None
        )
    )
    thread.start()
    while not made or not made[0].started:
        time.sleep(0.01)
    url = f"http://127.0.0.1:{port}/mcp"

    async def play() -> None:
        headers = {"Authorization": "Bearer a secret"}
        async with (
            httpx2.AsyncClient(headers=headers) as http,
            Client(streamable_http_client(url, http_client=http)) as client,
        ):
            arguments = {"image": uri(noise()), "box": [3, 4, 30, 20]}
            result = await client.call_tool("crop", arguments)
            assert pictures(result)[0].size == (27, 16)
        async with httpx2.AsyncClient() as http:
            assert (await http.post(url, json={})).status_code == 401
        async with httpx2.AsyncClient(headers=headers) as http:
            long = await http.post(url, content=b"x" * (24 * 2**20))
            deep = await http.post(url, content=b"[" * 10**6)
            assert (long.status_code, deep.status_code) == (413, 413)
            assert "raise service.picture_bytes where" in long.json()["error"]
            assert "brackets, colons and commas" in deep.json()["error"]

    try:
        asyncio.run(play())
    finally:
        made[0].should_exit = True
        thread.join()


def test_it_speaks_on_the_standard_streams() -> None:
    arguments = ["-c", "from saccade.cli import main; main()", "serve", "mcp", "--stdio"]
    command = StdioServerParameters(
        command=sys.executable,
        args=[*arguments, "--tools", "crop,measure"],
        env=dict(os.environ),
    )

    async def play() -> None:
        async with Client(command) as client:
            assert {t.name for t in (await client.list_tools()).tools} == {"crop", "measure"}
            result = await client.call_tool("crop", {"image": uri(noise()), "box": [3, 4, 30, 20]})
            assert pictures(result)[0].size == (27, 16)

    asyncio.run(play())
