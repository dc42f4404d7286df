"""Tools over HTTP: a real server on loopback, our own client, and what strangers send."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import uvicorn
import yaml
from PIL import Image
from typer.main import get_command

import troublesome_tools
from saccade.cli import app
from saccade.config import Recipe
from saccade.errors import RecipeError, ToolError, ToolUnavailable
from saccade.geometry import Box, Point
from saccade.images import ImageView, root_view
from saccade.tools import builtin_tools
from saccade.tools.running import InThreads, Returned
from saccade.toolserver import serving
from saccade.toolserver.controller import Controller
from saccade.toolserver.guests import GuestLimits, Guests
from saccade.toolserver.http_service import service
from saccade.toolserver.remote import Remote
from saccade.toolserver.serving import serve_tools
from saccade.types import ImageShown, Text

TOOLS = builtin_tools()
LIGHT = [t for t in TOOLS.values() if not t.needs and not t.is_answer]
TOKEN = "a secret of the tests"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
LIMITS = GuestLimits(held_bytes=2 * 2**20)


class Running(NamedTuple):
    url: str
    guests: Guests
    controller: Controller
    server: uvicorn.Server


def started(limits: GuestLimits = LIMITS) -> Running:
    controller = Controller(InThreads())
    guests = Guests(LIGHT, runner=controller, limits=limits)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    app = service(guests, controller, token=TOKEN)
    server = uvicorn.Server(
        uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", ws="none")
    )
    threading.Thread(target=server.run, daemon=True).start()
    while not server.started:
        time.sleep(0.01)
    return Running(f"http://127.0.0.1:{port}", guests, controller, server)


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = started()
    yield made
    made.server.should_exit = True


def noise(seed: int = 0, width: int = 60, height: int = 40) -> ImageView:
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return root_view(Image.fromarray(values))


def png(view: ImageView) -> bytes:
    file = io.BytesIO()
    view.pixels.save(file, "PNG")
    return file.getvalue()


def send(url: str, data: bytes) -> str:
    return httpx.post(f"{url}/pictures", content=data, headers=AUTH).json()["image"]


# --- our own client -------------------------------------------------------------------------------

CALLS: list[tuple[str, dict[str, Any]]] = [
    ("crop", {"image": noise(), "box": Box(3, 4, 30, 20)}),
    ("crop", {"image": noise().rotate(90).crop(Box(5, 5, 35, 50)), "box": Box(3, 4, 25, 20)}),
    ("rotate", {"image": noise(), "degrees": 30.0}),
    ("draw_horizontal_line", {"image": noise(), "y": 12.0}),
    ("measure", {"image": noise(), "start": Point(1, 2), "end": Point(30, 20)}),
    (
        "compare",
        {
            "image": noise(1),
            "box": Box(5, 5, 20, 30),
            "other": noise(2).crop(Box(10, 10, 40, 40)),
            "other_box": Box(0, 0, 9, 9),
        },
    ),
]


def run(way: Any, name: str, arguments: dict[str, Any]) -> list[Returned]:
    try:
        found: list[Returned] = asyncio.run(way.run(TOOLS[name], arguments, deadline_s=10))
    finally:
        way.close()
    return found


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_a_service_gives_what_a_thread_gives(
    running: Running, name: str, arguments: dict[str, Any]
) -> None:
    here = run(InThreads(), name, arguments)
    there = run(Remote([running.url], token=TOKEN), name, arguments)
    assert len(here) == len(there)
    for a, b in zip(here, there, strict=True):
        if isinstance(a, ImageView):
            assert isinstance(b, ImageView)
            assert a.ref == b.ref
            assert a.pixels.tobytes() == b.pixels.tobytes()
        else:
            assert a == b


def test_a_picture_is_sent_once_and_again_where_it_was_dropped(running: Running) -> None:
    way = Remote([running.url], token=TOKEN)
    sent: list[str] = []

    async def noted(request: httpx.Request) -> None:
        sent.append(request.url.path.split("/")[1])

    way._client.event_hooks["request"].append(noted)

    async def play() -> None:
        crop, view = TOOLS["crop"], noise(5)
        boxes = [Box(x, 0, 50, 30) for x in range(8)]
        await asyncio.gather(
            *(way.run(crop, {"image": view, "box": box}, deadline_s=10) for box in boxes)
        )
        assert sent.count("pictures") == 1
        for seed in range(8):  # of 400 x 300, and 2 MB are held
            await way.run(
                crop, {"image": noise(seed, 400, 300), "box": Box(0, 0, 9, 9)}, deadline_s=10
            )
        sent.clear()
        [part] = await way.run(crop, {"image": view, "box": boxes[0]}, deadline_s=10)
        assert sent.count("pictures") == 1
        assert isinstance(part, ImageView)
        assert part.pixels.tobytes() == view.crop(boxes[0]).pixels.tobytes()

    asyncio.run(play())
    way.close()


def test_a_mistake_is_the_same_sentence_as_here(running: Running) -> None:
    arguments = {"image": noise(), "box": Box(100, 100, 120, 120)}
    with pytest.raises(ToolError, match="must cover at least one pixel"):
        run(Remote([running.url], token=TOKEN), "crop", arguments)


def test_a_service_that_is_gone_is_left_out_and_another_one_is_asked(running: Running) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        gone = f"http://127.0.0.1:{free.getsockname()[1]}"
    way = Remote([gone, running.url], token=TOKEN)

    async def play() -> None:
        for x in range(6):
            await way.run(
                TOOLS["crop"], {"image": noise(), "box": Box(x, 0, 50, 30)}, deadline_s=10
            )

    asyncio.run(play())
    way.close()
    first, second = way.health()
    assert (first.answered, second.answered) == (0, 6)
    assert first.died == 1
    with pytest.raises(ToolUnavailable, match=rf"No service ran crop .*{gone}"):
        run(Remote([gone], token=TOKEN), "crop", {"image": noise(), "box": Box(0, 0, 9, 9)})


def test_a_tool_that_no_service_has_in_this_version_is_refused(running: Running) -> None:
    with pytest.raises(ToolUnavailable, match=r"No service ran ocr \(none has version 1 of it"):
        run(Remote([running.url], token=TOKEN), "ocr", {"image": noise()})


def test_without_the_right_token_nothing_is_done(running: Running) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
        for path in ("tools", "status", "metrics", "openapi.json", "pictures/x", "nothing"):
            assert httpx.get(f"{running.url}/{path}", headers=headers).status_code == 401
    assert httpx.get(f"{running.url}/health").json() == {"alive": True}
    with pytest.raises(ToolUnavailable, match="Present the token"):
        run(Remote([running.url], token="wrong"), "crop", dict(CALLS[0][1]))


def test_others_are_served_only_with_a_token_that_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SACCADE_TOKEN", raising=False)
    recipe = Recipe(tools=("crop",))
    with pytest.raises(RecipeError, match=r"Others reach 0\.0\.0\.0: set SACCADE_TOKEN"):
        serve_tools(recipe, host="0.0.0.0", port=1, say=lambda _: None)


# --- other programs -------------------------------------------------------------------------------


def test_a_stranger_sends_a_picture_calls_a_tool_and_fetches_what_came(running: Running) -> None:
    view = noise(3)
    name = send(running.url, png(view))
    answer = httpx.post(
        f"{running.url}/tools/crop", json={"image": name, "box": [3, 4, 30, 20]}, headers=AUTH
    ).json()
    assert not answer["failed"]
    [part] = answer["parts"]
    made = httpx.get(f"{running.url}/pictures/{part['name']}", headers=AUTH)
    with Image.open(io.BytesIO(made.content)) as picture:
        assert picture.tobytes() == view.crop(Box(3, 4, 30, 20)).pixels.tobytes()
    again = httpx.post(
        f"{running.url}/tools/zoom",
        json={"image": part["name"], "box": [0, 0, 9, 9]},
        headers=AUTH,
    ).json()
    assert not again["failed"]


def test_the_openapi_document_holds_every_tool_with_its_schema(running: Running) -> None:
    document = httpx.get(f"{running.url}/openapi.json", headers=AUTH).json()
    assert document["openapi"].startswith("3.1")
    for tool in LIGHT:
        operation = document["paths"][f"/tools/{tool.name}"]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert schema == json.loads(json.dumps(tool.spec.schema))


def test_the_health_check_waits_for_no_tool(running: Running) -> None:
    """A published service took 4.6 s to say that it lived, behind 32 calls."""
    name = send(running.url, png(noise(4, 700, 500)))
    slow: list[float] = []

    async def play() -> None:
        async with httpx.AsyncClient(headers=AUTH, timeout=60) as client:
            calls = [
                asyncio.create_task(
                    client.post(
                        f"{running.url}/tools/rotate", json={"image": name, "degrees": 10.0 + n}
                    )
                )
                for n in range(32)
            ]
            await asyncio.sleep(0.05)
            while not all(call.done() for call in calls):
                began = time.perf_counter()
                assert (await client.get(f"{running.url}/health")).status_code == 200
                slow.append(time.perf_counter() - began)
            assert all(call.result().status_code == 200 for call in calls)

    asyncio.run(play())
    assert slow
    assert np.median(slow) < 1.0


# --- hostile requests -----------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes and many pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(min(width * height * 3, 10**7)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


GOOD = png(noise(7))
PICTURES: dict[str, bytes] = {
    "empty": b"",
    "text": b"not a picture",
    "path": b"/etc/passwd",
    "url": b"http://127.0.0.1/x.png",
    "html": b"<html><img src=x></html>",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='1e9' height='1e9'/>",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "pdf": b"%PDF-1.7\n",
    "zip": b"PK\x03\x04" + bytes(100),
    "zeros": bytes(10_000),
    "signature alone": GOOD[:8],
    "bomb 100,000 x 100,000": bomb(100_000, 100_000),
    "bomb 20,000 x 20,000": bomb(20_000, 20_000),
    "bomb 9,000 x 9,000": bomb(9_000, 9_000),
    "no width": bomb(0, 100),
    "no height": bomb(100, 0),
    "line": bomb(100_000, 1),
    "column": bomb(1, 100_000),
    "too long": b"\x89PNG\r\n\x1a\n" + bytes(17 * 2**20),
    "negative": bomb(2**31 - 1, 2**31 - 1),
    **{f"cut at {share}%": GOOD[: len(GOOD) * share // 100] for share in range(5, 100, 5)},
    **{
        f"flipped {at}": GOOD[:at] + bytes([GOOD[at] ^ 0xFF]) + GOOD[at + 1 :]
        for at in range(8, 60, 2)
    },
}
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    1e308,
    2**80,
    "",
    "x" * 100_000,
    "\ud800",
    [],
    [[]],
    {},
    {"a": {"b": {}}},
    [1, 2, 3],
    [1, 2, 3, 4, 5],
    [9, 9, 3, 3],
    [0, 0, 0, 0],
    [5, 5, 5, 9],
    [-9, -9, -3, -3],
    [1e300, 1e300, 1e301, 1e301],
    [0.1, 0.1, 0.2, 0.2],
    ["0", "0", "9", "9"],
    [None] * 4,
    [True, True, False, False],
    [[0, 0, 9, 9]],
    list(range(5_000)),
]
RAW_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "half": b'{"image": ',
    "deep list": b"[" * 200_000,
    "deep object": b'{"a":' * 100_000,
    "deep argument": b'{"image": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    "list": b"[1, 2]",
    "number": b"7",
    "text": b'"x"',
    "NaN": b'{"image": "IMG", "box": [NaN, 0, 9, 9]}',
    "Infinity": b'{"image": "IMG", "box": [0, 0, Infinity, 9]}',
    "huge number": b'{"image": "IMG", "box": [' + b"9" * 5_000 + b", 0, 9, 9]}",
    "long string": b'{"image": "' + b"x" * 500_000 + b'"}',
    "10 MB string": b'{"image": "' + b"x" * 10_000_000 + b'"}',
    "no UTF-8": b'{"image": "\xff\xfe"}',
    "surrogate": b'{"image": "\\ud800"}',
    "twice": b'{"image": "IMG", "image": "IMG", "box": [0, 0, 9, 9], "box": 3}',
    "many keys": b"{" + b",".join(b'"k%d": 1' % n for n in range(50_000)) + b"}",
    "unknown key": b'{"image": "IMG", "box": [0, 0, 9, 9], "shell": "rm -rf /"}',
    "path": b'{"image": "/etc/passwd", "box": [0, 0, 9, 9]}',
    "file": b'{"image": "file:///etc/passwd", "box": [0, 0, 9, 9]}',
    "url": b'{"image": "http://169.254.169.254/", "box": [0, 0, 9, 9]}',
    "up": b'{"image": "../../../etc/passwd", "box": [0, 0, 9, 9]}',
    "code": b'{"image": "__import__(\'os\')", "box": [0, 0, 9, 9]}',
}
NAMES = ["nothing", "terminate", "__class__", "crop%00", "..%2f..%2fetc", "x" * 3000, "Crop "]
HOSTILE: list[tuple[str, str, bytes]] = [
    *((f"picture: {name}", "pictures", data) for name, data in PICTURES.items()),
    *((f"body: {name}", "tools/crop", data) for name, data in RAW_BODIES.items()),
    *((f"tool: {name[:20]!r}", f"tools/{name}", b"{}") for name in NAMES),
    *(
        (
            f"{parameter} of {tool}: {json.dumps(value)[:30]}",
            f"tools/{tool}",
            json.dumps({"image": "IMG", "box": [0, 0, 9, 9], parameter: value}).encode(),
        )
        for tool, parameter in (
            ("crop", "image"),
            ("crop", "box"),
            ("rotate", "degrees"),
            ("draw_horizontal_line", "y"),
            ("measure", "start"),
        )
        for value in ODD
    ),
]


def memory_mb() -> float:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096 / 2**20


def test_no_hostile_request_is_slow_or_large_or_ends_the_service(running: Running) -> None:
    """One sentence for each, in bounded time and memory, and a good call is served afterwards."""
    assert len(HOSTILE) >= 200
    with httpx.Client(headers=AUTH, timeout=20) as client:
        name = client.post(f"{running.url}/pictures", content=GOOD).json()["image"]
        for what, path, body in HOSTILE:
            before, began = memory_mb(), time.perf_counter()
            data = body.replace(b"IMG", name.encode()) if len(body) < 100_000 else body
            answer = client.post(f"{running.url}/{path}", content=data)
            assert time.perf_counter() - began < 1.0, what
            assert memory_mb() - before < 200, what
            assert answer.status_code in (200, 400, 404, 405, 409, 413, 422), (what, answer.text)
            if answer.status_code == 200 and path != "pictures":
                said = answer.json()
                assert not said["failed"] or len(said["parts"][0]["text"]) < 2_000, what
            elif answer.status_code not in (200, 404, 405):
                assert 10 < len(answer.json()["error"]) < 2_000, what
        name = client.post(f"{running.url}/pictures", content=GOOD).json()["image"]
        good = client.post(f"{running.url}/tools/crop", json={"image": name, "box": [0, 0, 9, 9]})
        assert not good.json()["failed"]


def test_calls_on_what_came_back_are_answered_at_once_however_deep_they_nest(
    running: Running,
) -> None:
    """Beside itself 17 times over, a picture of 8 x 4 pixels took the service 12 s, in the loop
    that answers everybody; enhanced 484 times over, it got an answer without a sentence.
    """
    picture = png(noise(8, 8, 4))
    for tool, others, times, good in (
        ("compare", {"box": [0, 0, 4, 4], "other_box": [0, 0, 4, 4]}, 30, 6),
        ("compare", {"box": [0, 0, 5, 4], "other_box": [3, 0, 8, 4]}, 30, 6),
        ("enhance", {"how": "sharpen"}, 500, 60),
    ):
        name, failed, before = send(running.url, picture), 0, memory_mb()
        with httpx.Client(headers=AUTH, timeout=20) as client:
            for _ in range(times):
                given = {"image": name, **others} | ({"other": name} if tool == "compare" else {})
                began = time.perf_counter()
                answer = client.post(f"{running.url}/tools/{tool}", json=given)
                assert time.perf_counter() - began < 1.0
                assert answer.status_code == 200, answer.text
                assert len(answer.content) < 20_000
                if answer.json()["failed"]:
                    failed += 1
                    assert answer.json()["parts"][0]["text"].endswith("earlier image.")
                else:
                    name = answer.json()["parts"][0]["name"]
            began = time.perf_counter()
            assert client.get(f"{running.url}/health").json() == {"alive": True}
            assert time.perf_counter() - began < 1.0
        assert failed == times - good, tool
        assert memory_mb() - before < 50


def test_pictures_that_make_room_are_dropped_in_no_time() -> None:
    """All that was held was searched for each of them, which took 39 s where 10,000 were held."""
    guests = Guests(LIGHT, runner=Controller(InThreads()), limits=GuestLimits(held_bytes=10**6))

    async def play() -> None:
        for n in range(3_000):
            await guests.take_raw(n.to_bytes(3, "big") * 4, width=2, height=2)
        name, _ = await guests.take_raw(bytes(12), width=2, height=2)
        part = (await guests.call("crop", {"image": name, "box": [0, 0, 1, 1]})).parts[0]
        assert isinstance(part, ImageShown)
        await guests.call("measure", {"image": name, "start": [0, 0], "end": [1, 1]})  # used last
        began = time.process_time()
        await guests.take_raw(bytes(3 * 600 * 555), width=600, height=555)
        assert time.process_time() - began < 0.5
        assert name in guests._images
        assert part.name in guests._images
        larger, _ = await guests.take_raw(bytes(3 * 600 * 600), width=600, height=600)
        assert list(guests._images) == [larger]
        assert len(guests._made_of) == 1

    asyncio.run(play())


def test_no_body_is_read_beyond_its_limit(running: Running) -> None:
    for path, size in (("pictures", LIMITS.picture_bytes), ("tools/crop", LIMITS.request_bytes)):
        answer = httpx.post(f"{running.url}/{path}", content=bytes(size + 1), headers=AUTH)
        assert answer.status_code == 413
        assert f"longer than the limit of {size} bytes" in answer.json()["error"]
        assert httpx.post(
            f"{running.url}/{path}", content=bytes(size), headers=AUTH
        ).status_code in (
            400,
            422,
        )


def test_raw_pictures_must_be_what_their_query_says(running: Running) -> None:
    headers = AUTH | {"Content-Type": "application/x-rgb"}
    for query, data in (
        ("width=2&height=2", bytes(11)),
        ("width=2&height=2", bytes(13)),
        ("width=0&height=2", b""),
        ("width=-2&height=-2", bytes(12)),
        ("width=1e3&height=2", bytes(12)),
        ("width=99999999&height=99999999", bytes(12)),
        ("height=2", bytes(12)),
        ("", bytes(12)),
    ):
        answer = httpx.post(f"{running.url}/pictures?{query}", content=data, headers=headers)
        assert answer.status_code in (400, 422), query
        assert answer.json()["error"]


def test_what_is_held_is_bounded_and_what_was_dropped_is_told(running: Running) -> None:
    first = send(running.url, png(noise(100, 300, 200)))
    for seed in range(101, 120):
        send(running.url, png(noise(seed, 300, 200)))
    held = [r for r in running.guests._images.values() if r.is_root]
    assert sum(3 * r.width * r.height for r in held) <= LIMITS.held_bytes
    answer = httpx.post(
        f"{running.url}/tools/crop", json={"image": first, "box": [0, 0, 9, 9]}, headers=AUTH
    )
    assert answer.status_code == 409
    assert "send its bytes first, or again" in answer.json()["error"]


def test_a_picture_that_a_tool_made_of_nothing_is_dropped_as_any_other() -> None:
    guests = Guests(
        [troublesome_tools.framer],
        runner=Controller(InThreads()),
        limits=GuestLimits(held_bytes=10**6),
    )

    async def play() -> None:
        assert not (await guests.call("framer", {})).failed

    asyncio.run(play())
    assert guests._store._kept
    for kept in guests._store._kept:
        assert f"img_{kept[:16]}" in guests._images


def test_pictures_of_different_callers_can_not_be_put_in_each_others_place(
    running: Running,
) -> None:
    one, other = noise(50), noise(51)
    names = {send(running.url, png(one)), send(running.url, png(other))}
    assert len(names) == 2
    data = base64.b64encode(png(one))
    assert data
    raw = httpx.post(
        f"{running.url}/pictures?width=60&height=40",
        content=one.pixels.tobytes(),
        headers=AUTH | {"Content-Type": "application/x-rgb"},
    ).json()["image"]
    assert raw == f"img_{one.ref.key[:16]}"


def test_text_parts_of_a_call_travel(running: Running) -> None:
    arguments = {"image": noise(), "start": Point(0, 0), "end": Point(3, 4)}
    [part] = run(Remote([running.url], token=TOKEN), "measure", arguments)
    assert isinstance(part, Text)
    assert part.text.startswith("5.0 pixels apart")


@pytest.mark.parametrize(("way", "module"), [("workers", "pebble"), ("remote", "httpx")])
def test_a_way_that_is_not_installed_is_told_with_how_to_get_it(
    way: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "find_spec", lambda name: None)
    recipe = Recipe.model_validate({"tools": ["crop"], "service": {"way": way}})
    with pytest.raises(RecipeError, match=rf"needs {module}: pip install 'saccade\[serve\]'"):
        serving.served(recipe)


def test_groups_and_processes_must_be_of_the_tools() -> None:
    service = {"way": "workers", "groups": {"a": ["fly"]}}
    with pytest.raises(RecipeError, match="groups names 'fly', which is none of the tools"):
        serving.served(Recipe.model_validate({"tools": ["crop"], "service": service}))
    service = {"way": "workers", "processes": {"b": 2}}
    with pytest.raises(RecipeError, match=r"the group 'b'\. There are: others"):
        serving.served(Recipe.model_validate({"tools": ["crop"], "service": service}))


def test_tools_with_back_ends_have_processes_of_their_own() -> None:
    recipe = Recipe.model_validate(
        {"tools": ["crop", "ocr", "zoom"], "service": {"groups": {"a": ["zoom"]}}}
    )
    assert serving._groups(recipe.service, recipe.tools) == {
        "a": ("zoom",),
        "ocr": ("ocr",),
        "others": ("crop",),
    }


# --- containers -----------------------------------------------------------------------------------

CONTAINERS = Path(__file__).parent.parent / "containers"


def test_every_container_serves_tools_that_there_are_by_a_command_that_there_is() -> None:
    """Nothing is built here: what is tested is that file and program agree."""
    services = yaml.safe_load((CONTAINERS / "compose.yaml").read_text())["services"]
    served = set()
    ports = [described["ports"][0] for described in services.values()]
    assert len(set(ports)) == len(ports)
    assert all(port.startswith("127.0.0.1:") for port in ports)
    for described in services.values():
        group, name, *arguments = described["command"]
        command = get_command(app).commands[group].commands[name]  # type: ignore[attr-defined]
        context = command.make_context(name, [str(a) for a in arguments])
        served |= set(context.params["tools"].split(","))
        assert context.params["host"] == "0.0.0.0"
        assert "SACCADE_TOKEN" in described["environment"]
    assert served <= set(TOOLS)
    lines = (CONTAINERS / "Containerfile").read_text().splitlines()
    [entry] = [json.loads(x.split(" ", 1)[1]) for x in lines if x.startswith("ENTRYPOINT")]
    [usual] = [json.loads(x.split(" ", 1)[1]) for x in lines if x.startswith("CMD")]
    assert entry == ["saccade"]
    assert usual[:2] == ["serve", "tools"]
    assert any(x.startswith("USER ") and x != "USER root" for x in lines)
