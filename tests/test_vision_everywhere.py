"""Tools that look, run in other processes and behind services: the same results as here, and a
sentence for whatever they are sent.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from mcp import Client
from PIL import Image, ImageDraw, ImageFont

from saccade.errors import ToolError
from saccade.geometry import Box, Point
from saccade.images import ImageView, root_view
from saccade.tools import tools_described, tools_named
from saccade.tools.running import InThreads, Returned
from saccade.toolserver.controller import Controller
from saccade.toolserver.guests import Guests
from saccade.toolserver.http_service import service
from saccade.toolserver.mcp_service import mcp_server
from saccade.toolserver.remote import Remote
from saccade.toolserver.workers import Workers

LOOKING = ("detect", "point", "segment", "segment_around_point", "ocr", "zoom_subplot", "read_axis")
TOKEN = "a secret of the tests"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


def chart() -> ImageView:
    """Three bars on an axis with numbers."""
    picture = Image.new("RGB", (480, 360), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(16)
    draw.line((70, 30, 70, 310), fill="black", width=2)
    draw.line((70, 310, 450, 310), fill="black", width=2)
    for value in range(0, 101, 20):
        y = 310 - 2.6 * value
        draw.line((64, y, 70, y), fill="black", width=2)
        draw.text((58, y), str(value), fill="black", font=font, anchor="rm")
    for n, (color, value) in enumerate((("red", 40), ("blue", 90), ("green", 65))):
        draw.rectangle((110 + 110 * n, 310 - 2.6 * value, 170 + 110 * n, 310), fill=color)
    draw.text((260, 12), "Harvest", fill="black", font=font, anchor="mt")
    return root_view(picture)


CHART = chart()
CALLS: list[tuple[str, dict[str, Any]]] = [
    ("detect", {"query": "blue bar"}),
    ("detect", {"query": "a giraffe"}),
    ("point", {"description": "tallest bar"}),
    ("segment", {"box": Box(105, 195, 175, 315)}),
    ("segment", {"points": [Point(250, 200)]}),
    ("segment_around_point", {"point": Point(360, 250), "exclude": [Point(20, 20)]}),
    ("ocr", {}),
    ("ocr", {"box": Box(20, 30, 70, 330)}),
    ("zoom_subplot", {"where": "top left"}),
    ("read_axis", {"point": Point(250, 76)}),
    ("crop", {"box": Box(60, 20, 300, 200)}),
]
FOUND_SOMETHING = {"detect-0", "point-2", "segment-3", "segment-4", "ocr-6", "ocr-7", "read_axis-9"}


@pytest.fixture(scope="module")
def ready() -> dict[str, Any]:
    return {t.name: t for t in tools_named([*LOOKING, "crop"])}


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers({"eye": [*LOOKING, "crop"]})
    yield made
    made.close()


@pytest.fixture(scope="module")
def url(ready: dict[str, Any]) -> Iterator[str]:
    controller = Controller(InThreads(LOOKING))
    app = service(Guests(list(ready.values()), runner=controller), controller, token=TOKEN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", ws="none")
    )
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True


def outcome(way: Any, tool: Any, arguments: dict[str, Any]) -> list[Returned] | str:
    """What came of a call, or why nothing did."""
    try:
        given = {"image": CHART, **arguments}
        found: list[Returned] = asyncio.run(way.run(tool, given, deadline_s=60))
    except ToolError as error:
        return str(error)
    return found


def told(found: list[Returned] | str) -> Any:
    """The same as plain data, pictures by their pixels and where they come from."""
    if isinstance(found, str):
        return found
    return [
        (part.ref, part.pixels.tobytes()) if isinstance(part, ImageView) else part for part in found
    ]


@pytest.mark.parametrize(
    ("name", "arguments"), CALLS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CALLS)]
)
def test_tools_that_look_see_the_same_in_a_thread_in_a_worker_and_behind_a_service(
    name: str,
    arguments: dict[str, Any],
    ready: dict[str, Any],
    workers: Workers,
    url: str,
    request: pytest.FixtureRequest,
) -> None:
    here = outcome(InThreads(LOOKING), ready[name], arguments)
    [described] = tools_described([name])
    assert told(outcome(workers, described, arguments)) == told(here)
    remote = Remote([url], token=TOKEN)
    try:
        assert told(outcome(remote, described, arguments)) == told(here)
    finally:
        remote.close()
    if request.node.callspec.id in FOUND_SOMETHING:  # not the same nothing
        assert isinstance(here, list)
        assert len(here) >= 2


def test_the_official_mcp_client_lists_and_calls_every_tool_that_looks(
    ready: dict[str, Any],
) -> None:
    """Each with what it finds in the chart, as words and as a picture."""
    words = {
        "detect": "blue bar [",
        "point": "bar [",
        "segment": "% of the image",
        "segment_around_point": "% of the image",
        "ocr": "Harvest [",
        "zoom_subplot": "img_",
        "read_axis": "y =",
    }
    file = BytesIO()
    CHART.pixels.save(file, "PNG")
    shown = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

    async def ask() -> tuple[set[str], dict[str, Any]]:
        guests = Guests(list(ready.values()), runner=Controller(InThreads(LOOKING)))
        async with Client(mcp_server(guests)) as client:
            listed = {t.name for t in (await client.list_tools()).tools}
            asked = {
                **NEEDED,
                "detect": {"query": "blue bar"},
                "ocr": {},
                "zoom_subplot": {"box": [100, 100, 400, 300]},
            }
            return listed, {
                name: await client.call_tool(name, {"image": shown, **arguments})
                for name, arguments in asked.items()
            }

    listed, found = asyncio.run(ask())
    assert listed == {*LOOKING, "crop"}
    assert set(found) == set(words) == set(LOOKING)
    for name, result in found.items():
        said = " ".join(c.text for c in result.content if c.type == "text")
        assert not result.is_error, (name, said)
        assert words[name] in said, (name, said)
        [picture] = [c for c in result.content if c.type == "image"]
        assert Image.open(BytesIO(base64.b64decode(picture.data))).width > 100


# --- what strangers may send ----------------------------------------------------------------------

ODD: list[Any] = [
    *(None, True, -1, 1e308, "", "x" * 100_000, "\ud800", "red bar" * 2000, "\x00", "[0,0,1,1]"),
    *([], [[]], {}, {"a": {"b": {}}}, [1, 2, 3], [9, 9, 3, 3], [0, 0, 0, 0], [5, 5, 5, 9]),
    *([-9, -9, -3, -3], [1e300] * 4, ["0", "0", "9", "9"], [None] * 4, [[1, 2], [3]]),
    *([[1e300, 1e300]], [[-5, -5]], [[10, 10]] * 3_000, [5, 5], [0.1, 0.1, 0.2, 0.2]),
]
PARAMETERS = [
    *(("detect", "query"), ("point", "description"), ("segment", "box"), ("segment", "points")),
    *(("segment_around_point", "point"), ("segment_around_point", "include"), ("ocr", "box")),
    *(("zoom_subplot", "where"), ("zoom_subplot", "box"), ("read_axis", "point")),
    *(("read_axis", "x"), ("read_axis", "y")),
]
NEEDED: dict[str, dict[str, Any]] = {
    "detect": {"query": "bar"},
    "point": {"description": "bar"},
    "segment": {"box": [105, 195, 175, 310]},
    "segment_around_point": {"point": [250, 200]},
    "ocr": {"box": [20, 30, 70, 120]},
    "zoom_subplot": {"where": "1"},
    "read_axis": {"point": [250, 76]},
}
HURRIED = 60 * 40
"""Pixels of the picture that odd arguments are sent with: looking at it takes next to nothing, so
that what is measured is what the argument costs.
"""


def test_no_odd_argument_of_a_tool_that_looks_is_slow_or_ends_the_service(url: str) -> None:
    file = BytesIO()
    small = CHART.pixels.resize((60, 40))
    assert small.width * small.height == HURRIED
    small.save(file, "PNG")
    asked = 0
    with httpx.Client(headers=AUTH, timeout=60) as client:
        image = client.post(f"{url}/pictures", content=file.getvalue()).json()["image"]
        for tool in NEEDED:  # models are loaded before anything is timed
            client.post(f"{url}/tools/{tool}", json={"image": image, **NEEDED[tool]})
        for tool, parameter in PARAMETERS:
            for value in ODD:
                given = {"image": image, **NEEDED[tool], parameter: value}
                began = time.perf_counter()
                answer = client.post(f"{url}/tools/{tool}", content=json.dumps(given).encode())
                what = (tool, parameter, json.dumps(value)[:40])
                assert time.perf_counter() - began < 1.0, what
                assert answer.status_code in (200, 400, 413, 422), (what, answer.text[:300])
                if answer.status_code == 200:
                    said = answer.json()
                    assert not said["failed"] or 10 < len(said["parts"][0]["text"]) < 2_000, what
                else:
                    assert 10 < len(answer.json()["error"]) < 2_000, what
                asked += 1
        good = client.post(f"{url}/tools/detect", json={"image": image, "query": "bar"})
        assert not good.json()["failed"]
    assert asked >= 300


@pytest.mark.parametrize("name", ["checks", "mosaic", "noise", "stripes", "dots"])
def test_patterns_as_large_as_pictures_may_be_are_looked_at_in_bounded_time(
    ready: dict[str, Any], name: str
) -> None:
    """Six million pixels that fall into thousands of pieces. A second is aimed at; here ten times
    that would be no accident of a busy machine, and were seen.
    """
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:2000, 0:3000]
    pixels = np.full((2000, 3000, 3), 255, np.uint8)
    if name == "checks":
        pixels[(x // 30 + y // 30) % 2 == 1] = (200, 30, 30)
    elif name == "stripes":
        pixels[x // 8 % 2 == 1] = (30, 60, 200)
    elif name == "dots":
        pixels[(x % 16 - 8) ** 2 + (y % 16 - 8) ** 2 < 20] = (30, 160, 60)
    elif name == "mosaic":
        tiles = rng.integers(0, 255, (50, 75, 3), np.uint8)
        pixels = np.kron(tiles, np.ones((40, 40, 1), np.uint8))
    else:
        pixels = rng.integers(0, 255, (2000, 3000, 3), np.uint8)
    view = root_view(Image.fromarray(pixels))
    for tool, arguments in (
        ("detect", {"query": "red bar"}),
        ("segment", {"box": Box(300, 300, 2000, 1500)}),
        ("segment_around_point", {"point": Point(1000, 1000)}),
    ):
        began = time.perf_counter()
        outcome(InThreads(LOOKING), ready[tool], {"image": view, **arguments})
        assert time.perf_counter() - began < 8, tool
