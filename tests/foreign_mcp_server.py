"""An MCP server as others write them: made with the SDK's own decorators, knowing nothing of us."""

from __future__ import annotations

import base64
import io
import os
import time
from pathlib import Path
from typing import Annotated, Literal

from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from PIL import Image as Pillow
from PIL import ImageOps
from pydantic import Field

server = MCPServer("darkroom")


@server.tool()
def negative(photo: str, strength: Literal["full", "half"] = "full", note: str = "") -> list:
    """Turn a photo into its negative.

    More words that a model need not read.
    """
    data = base64.b64decode(photo.partition(",")[2])
    with Pillow.open(io.BytesIO(data)) as opened:
        made = ImageOps.invert(opened.convert("RGB"))
    file = io.BytesIO()
    made.save(file, "PNG")
    return [
        f"{strength} negative of {made.width} x {made.height}",
        Image(data=file.getvalue(), format="png"),
    ]


@server.tool()
def broken(photo: str) -> str:
    """Fail."""
    raise ValueError("the bath is empty")


@server.tool()
def shout(count: int) -> str:
    """Fail at length."""
    raise ToolError("z" * count)


@server.tool()
def album(pictures: int, texts: int, letters: int) -> list:
    """Answer at length."""
    file = io.BytesIO()
    Pillow.new("RGB", (6, 5), "red").save(file, "PNG")
    shown = [Image(data=file.getvalue(), format="png")] * pictures
    return ["w" * letters] * texts + shown


@server.tool(description="Tell. " * 500)
def wordy(note: Annotated[str, Field(description="Any. " * 500)] = "") -> str:
    return note


@server.tool()
def sleepy(seconds: float) -> str:
    """Take its time."""
    time.sleep(seconds)
    return "awake"


@server.tool()
async def hang(seconds: float) -> str:
    """Keep the whole server from answering."""
    time.sleep(seconds)
    return "done"


@server.tool()
def die_once(trace: str) -> str:
    """Take the server down where there is no file of that name yet."""
    if Path(trace).exists():
        return "alive"
    Path(trace).touch()
    os._exit(3)


@server.tool()
def die() -> str:
    """Take the server down."""
    os._exit(3)


@server.tool()
def nested(settings: dict[str, dict[str, int]]) -> str:
    """Take what no model can write here."""
    return str(settings)


if __name__ == "__main__":
    server.run()
