"""Tools over HTTP: a real server on loopback, our own client, and what strangers send."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import socket
import threading
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import httpx
import numpy as np
import pytest
import uvicorn
import yaml
from PIL import Image
from typer.main import get_command

import troublesome_tools
from hostile_requests import AUTH, TOKEN, Peak, answer_all, free_port, noise, png, send
from saccade.cli import app
from saccade.config import Recipe
from saccade.errors import RecipeError, ToolCrashed, ToolError, ToolUnavailable
from saccade.geometry import Box, Point
from saccade.images import OPERATIONS, ImageView
from saccade.tools import Tool, builtin_tools, tool
from saccade.tools.running import InThreads, MissedDeadline, Returned
from saccade.toolserver import serving
from saccade.toolserver.controller import Controller, Way
from saccade.toolserver.guests import GuestLimits, Guests, NotHeld
from saccade.toolserver.http_service import service
from saccade.toolserver.remote import Remote
from saccade.toolserver.serving import serve_tools
from saccade.toolserver.workers import Workers
from saccade.types import ImageShown, Text, ToolResult

TOOLS = builtin_tools()
LIGHT = [t for t in TOOLS.values() if not t.needs and not t.is_answer]
LIMITS = GuestLimits(held_bytes=2 * 2**20)


class Running(NamedTuple):
    url: str
    guests: Guests
    controller: Controller
    server: uvicorn.Server


def started(
    limits: GuestLimits = LIMITS,
    *,
    way: Way | None = None,
    tools: Sequence[Tool] = LIGHT,
    waiting: int = 1024,
) -> Running:
    controller = Controller(InThreads() if way is None else way, waiting=waiting)
    guests = Guests(tools, runner=controller, limits=limits)
    port = free_port()
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
    gone = f"http://127.0.0.1:{free_port()}"
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


def there(**answers: Any) -> Remote:
    """A client of a service that answers so: to questions for tools, with pictures, to calls."""
    usual: dict[str, Any] = {
        "tools": [{"name": "crop", "version": 1}],
        "pictures": {"image": "img_0"},
    }

    def answer(request: httpx.Request) -> httpx.Response:
        kind = "call" if request.url.path.startswith("/tools/") else request.url.path.split("/")[1]
        if request.method == "GET" and kind == "pictures":
            kind = "picture"
        given = (usual | answers)[kind]
        if callable(given):
            given = given()
        status, value = given if isinstance(given, tuple) else (200, given)
        if isinstance(value, bytes):
            return httpx.Response(status, content=value)
        return httpx.Response(status, json=value)

    way = Remote(["http://there"], token=TOKEN)
    way._client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    return way


PICTURE = {"failed": False, "images": [{"key": "f" * 64, "width": 9, "height": 9}]}


@pytest.mark.parametrize(
    ("answers", "error", "words"),
    [
        (
            {"tools": {"hello": 1}},
            ToolUnavailable,
            "there is no service of tools, it says {'hello'",
        ),
        ({"pictures": ["hello"]}, ToolUnavailable, "took a picture and named none"),
        ({"call": ["hello"]}, ToolCrashed, "gave what no tool gives"),
        (
            {"call": PICTURE | {"parts": [{"type": "view", "image": 0}]}, "picture": b"abc"},
            ToolCrashed,
            "gave what no tool gives",
        ),
    ],
)
def test_what_is_no_answer_of_a_service_is_a_failure_and_no_bug_of_ours(
    answers: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        run(there(**answers), "crop", dict(CALLS[0][1]))


def test_a_service_that_came_back_without_the_tool_is_not_the_models_mistake() -> None:
    versions = iter([[{"name": "crop", "version": 1}], [{"name": "rotate", "version": 1}]])
    gone = (404, {"kind": "NoTool", "error": "No tool named 'crop'. Available: rotate."})
    with pytest.raises(
        ToolUnavailable, match=r"No service ran crop \(none has version 1|No tool named"
    ):
        run(there(tools=lambda: next(versions), call=gone), "crop", dict(CALLS[0][1]))
    assert next(versions, None) is None  # it was asked again


def test_a_tool_that_there_is_not_is_no_address(running: Running) -> None:
    answer = httpx.post(f"{running.url}/tools/fly", json={}, headers=AUTH)
    assert answer.status_code == 404
    assert answer.json()["error"].startswith("No tool named 'fly'. Available: crop")


def test_a_tool_that_no_service_has_in_this_version_is_refused(running: Running) -> None:
    with pytest.raises(ToolUnavailable, match=r"No service ran ocr \(none has version 1 of it"):
        run(Remote([running.url], token=TOKEN), "ocr", {"image": noise()})


def test_without_the_right_token_nothing_is_done(running: Running) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
        for path in ("tools", "status", "metrics", "openapi.json", "pictures/x", "nothing"):
            assert httpx.get(f"{running.url}/{path}", headers=headers).status_code == 401
    assert httpx.get(f"{running.url}/health").json() == {"alive": True, "groups": {}}
    with pytest.raises(ToolUnavailable, match="Present the token"):
        run(Remote([running.url], token="wrong"), "crop", dict(CALLS[0][1]))


def test_others_are_served_only_with_a_token_that_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SACCADE_TOKEN", raising=False)
    recipe = Recipe(tools=("crop",))
    for blank in (None, "", " ", "\n"):
        if blank is not None:
            monkeypatch.setenv("SACCADE_TOKEN", blank)
        with pytest.raises(RecipeError, match=r"Others reach 0\.0\.0\.0: set SACCADE_TOKEN"):
            serve_tools(recipe, host="0.0.0.0", port=1, say=lambda _: None)
        there = Recipe.model_validate({"service": {"way": "remote", "urls": ["http://x"]}})
        with pytest.raises(RecipeError, match="needs the services' token: set SACCADE_TOKEN"):
            serving.served(there)


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
    for one in LIGHT:
        operation = document["paths"][f"/tools/{one.name}"]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        assert schema == json.loads(json.dumps(one.spec.schema))


def test_what_the_openapi_document_says_of_rgb_bytes_is_enough_to_send_some(
    running: Running,
) -> None:
    paths = httpx.get(f"{running.url}/openapi.json", headers=AUTH).json()["paths"]
    assert {"/health", "/tools", "/status", "/metrics"} < paths.keys()
    view, post = noise(4), paths["/pictures"]["post"]
    [kind] = [kind for kind in post["requestBody"]["content"] if kind != "image/*"]
    sides = {p["name"]: getattr(view, p["name"]) for p in post["parameters"] if p["in"] == "query"}
    held = httpx.post(
        f"{running.url}/pictures",
        content=view.pixels.tobytes(),
        params=sides,
        headers=AUTH | {"Content-Type": kind},
    ).json()
    answer = post["responses"]["200"]["content"]["application/json"]["schema"]
    assert held.keys() == answer["properties"].keys()
    assert (held["width"], held["height"]) == (view.width, view.height)
    fetched = paths["/pictures/{name}"]["get"]["responses"]["200"]["content"]
    assert kind in fetched
    again = httpx.get(f"{running.url}/pictures/{held['image']}", headers=AUTH | {"Accept": kind})
    assert again.content == view.pixels.tobytes()


@pytest.mark.parametrize("is_here", [True, False])
def test_no_larger_pictures_are_made_than_may_be_sent(is_here: bool) -> None:
    made: list[tuple[int, int]] = []
    resize = OPERATIONS["resize"]

    def spied(parents: Any, arguments: Any) -> Image.Image:
        made.append((arguments["width"], arguments["height"]))
        return resize.make(parents, arguments)

    async def play() -> None:
        way: Any = InThreads() if is_here else Workers({"zoom": ("zoom",)})
        guests = Guests(
            [TOOLS["zoom"]], runner=Controller(way), limits=GuestLimits(picture_pixels=1_000_000)
        )
        name, _ = await guests.take(png(noise(0, 400, 300)))
        refused = await guests.call("zoom", {"image": name, "box": [0, 0, 400, 300], "factor": 4})
        [said] = refused.parts
        assert refused.failed
        assert isinstance(said, Text)
        assert "1600 x 1200 pixels, more than the 1000000 that this service" in said.text
        assert not (
            await guests.call("zoom", {"image": name, "box": [0, 0, 200, 150], "factor": 4})
        ).failed
        way.close()
        guests.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OPERATIONS, "resize", resize._replace(make=spied))
        asyncio.run(play())
    assert (1600, 1200) not in made


def test_the_deadline_of_a_call_holds_while_it_waits_for_its_turn() -> None:
    async def play() -> None:
        way = InThreads(["sleeper"])
        guests = Guests([SLEEPER], runner=Controller(way), limits=GuestLimits())
        calls = [
            guests.call("sleeper", {"seconds": 0.3 + n / 1e3}, deadline_s=0.7) for n in range(8)
        ]
        began = time.monotonic()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - began < 1.5
        assert sum(isinstance(one, MissedDeadline) for one in found) >= 4

    asyncio.run(play())


# --- many calls at the same time ------------------------------------------------------------------

SLEEPER = troublesome_tools.sleeper


@pytest.fixture(scope="module")
def slow() -> Iterator[Running]:
    """A service of a tool that takes one call after the other, and of light ones."""
    made = started(GuestLimits(), way=InThreads(["sleeper"]), tools=[*LIGHT, SLEEPER])
    yield made
    made.server.should_exit = True


async def sleeps(client: httpx.AsyncClient, url: str, n: int, s: float) -> list[httpx.Response]:
    """Answers to calls that differ in a millionth of a second."""
    calls = [client.post(f"{url}/tools/sleeper", json={"seconds": s + x * 1e-6}) for x in range(n)]
    return [*await asyncio.gather(*calls)]


def many() -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(headers=AUTH, timeout=120, limits=limits)


async def until_waiting(made: Running, calls: int) -> None:
    """Raises TimeoutError where never so many wait for the tool."""
    counts = made.controller.counts
    async with asyncio.timeout(20):
        while "sleeper" not in counts or counts["sleeper"].waiting < calls:
            await asyncio.sleep(0.01)


def test_the_health_check_waits_for_no_tool(slow: Running) -> None:
    """A published service took 4.6 s to say that it lived, behind 32 calls."""
    seconds: list[float] = []

    async def play() -> None:
        async with many() as client, httpx.AsyncClient(timeout=60) as asker:
            calls = asyncio.create_task(sleeps(client, slow.url, 8, 0.5))
            await until_waiting(slow, 6)
            while not calls.done():
                began = time.perf_counter()
                assert (await asker.get(f"{slow.url}/health")).status_code == 200
                seconds.append(time.perf_counter() - began)
                await asyncio.sleep(0.02)
            assert {answer.status_code for answer in await calls} == {200}

    asyncio.run(play())
    # one that waits for a tool waits half a second; a busy machine must not make it look so
    assert len(seconds) > 10
    assert float(np.percentile(seconds, 95)) < 0.25


def test_a_slow_tool_keeps_nobody_from_another_one(slow: Running) -> None:
    """A crop came after 8.8 s behind 200 calls that read print: all tools had 64 places, and what
    waited for them was neither counted nor refused.
    """
    name = send(slow.url, png(noise(4)))

    async def play() -> tuple[float, float]:
        async with many() as client:
            began = time.perf_counter()
            calls = asyncio.create_task(sleeps(client, slow.url, 200, 0.05))
            await until_waiting(slow, 150)
            asked = time.perf_counter()
            body = {"image": name, "box": [1, 2, 30, 20]}
            answer = await client.post(f"{slow.url}/tools/crop", json=body)
            took = time.perf_counter() - asked
            assert answer.status_code == 200
            assert {answer.status_code for answer in await calls} == {200}
            return took, time.perf_counter() - began

    took, all_of_them = asyncio.run(play())
    assert all_of_them > 4.0
    assert took < all_of_them / 4


def test_each_caller_has_its_share_and_what_is_beyond_it_is_told_to_come_again() -> None:
    gate = threading.Event()

    @tool
    def gated(number: Annotated[int, "which"]) -> str:
        """Wait to be let."""
        gate.wait(60)
        return str(number)

    way = InThreads(["gated"])
    made = started(GuestLimits(calls=20), way=way, tools=[*LIGHT, gated], waiting=30)

    def asks(client: httpx.AsyncClient, count: int, first: int) -> list[asyncio.Task[Any]]:
        numbers = range(first, first + count)
        url = f"{made.url}/tools/gated"
        return [asyncio.create_task(client.post(url, json={"number": n})) for n in numbers]

    async def refused(tasks: list[asyncio.Task[Any]], count: int) -> list[httpx.Response]:
        async with asyncio.timeout(20):
            while sum(task.done() for task in tasks) < count:
                await asyncio.sleep(0.01)
        return [task.result() for task in tasks if task.done()]

    async def play() -> None:
        elsewhere = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
        another = httpx.AsyncClient(headers=AUTH, timeout=60, transport=elsewhere)
        async with many() as client, another:
            first = asks(client, 25, 0)
            for answer in await refused(first, 5):
                assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
                assert "20 calls of gated wait or run for this caller" in answer.json()["error"]
            second = asks(another, 20, 100)  # of another address: until the tool has enough
            for answer in await refused(second, 8):
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                assert "32 calls of gated wait or run already" in answer.json()["error"]
            counts = made.controller.counts["gated"]
            assert (counts.running, counts.waiting, counts.refused) == (2, 30, 8)
            gate.set()
            answers = await asyncio.gather(*first, *second)
        assert [answer.status_code for answer in answers].count(200) == 32

    try:
        asyncio.run(play())
        assert not made.guests._calls  # nobody is remembered who has no call under way
    finally:
        gate.set()
        made.server.should_exit = True


def test_our_own_client_comes_again_when_a_service_has_time() -> None:
    made = started(GuestLimits(calls=2), way=InThreads(["sleeper"]), tools=[SLEEPER])
    way = Remote([made.url], token=TOKEN)

    async def play() -> None:
        calls = (way.run(SLEEPER, {"seconds": 0.1 + x}, deadline_s=20) for x in (0, 0.01, 0.02))
        assert len(await asyncio.gather(*calls)) == 3

    try:
        asyncio.run(play())
        [health] = way.health()
        assert (health.answered, health.died, health.answers) == (3, 0, True)
    finally:
        way.close()
        made.server.should_exit = True


def test_the_deadline_of_a_call_travels_with_it_up_to_what_the_service_gives() -> None:
    made = started(GuestLimits(deadline_s=0.5), tools=[SLEEPER])
    way = Remote([made.url], token=TOKEN)

    def asked(deadline_s: float) -> float:
        began = time.perf_counter()
        with pytest.raises(ToolUnavailable, match="Tool sleeper missed its deadline of") as told:
            asyncio.run(way.run(SLEEPER, {"seconds": 2.5}, deadline_s=deadline_s))
        assert deadline_s < 1 or "raise service.deadline_s where it is started" in str(told.value)
        return time.perf_counter() - began

    try:
        answer = httpx.post(
            f"{made.url}/tools/sleeper?deadline_s=0.1", json={"seconds": 1}, headers=AUTH
        )
        assert answer.status_code == 504
        assert "missed its deadline of 0.1 s; this service gives 0.5 s" in answer.json()["error"]
        for wrong in ("0", "-1", "nan", "inf", "soon"):
            url = f"{made.url}/tools/sleeper?deadline_s={wrong}"
            assert httpx.post(url, json={"seconds": 0}, headers=AUTH).status_code == 400
        asked(0.2)
        assert 0.5 <= asked(5.0) < 2.5
        assert asked(5.0) < 1.5  # told once and not asked again: it would be late again
    finally:
        way.close()
        made.server.should_exit = True


def test_a_picture_that_a_service_does_not_take_is_told_with_the_limit_and_its_key() -> None:
    made = started(GuestLimits(picture_pixels=1000))
    try:
        with pytest.raises(ToolUnavailable) as told:
            run(Remote([made.url], token=TOKEN), "crop", dict(CALLS[0][1]))
        assert "60 x 40 pixels is more than this service takes" in str(told.value)
        assert "1000 pixels: send it smaller, or raise service.picture_pixels" in str(told.value)
    finally:
        made.server.should_exit = True


def test_a_recipe_sets_what_callers_may_cost() -> None:
    keys = {
        "deadline_s": 5,
        "calls_per_caller": 6,
        "picture_bytes": 7,
        "picture_pixels": 8,
        "held_mb": 9,
        "in_flight_mb": 10,
    }
    found = GuestLimits.of(Recipe.model_validate({"service": keys}).service)
    assert found == GuestLimits(
        deadline_s=5,
        calls=6,
        picture_bytes=7,
        picture_pixels=8,
        held_bytes=9 * 2**20,
        in_flight_bytes=10 * 2**20,
    )
    assert GuestLimits.of(Recipe().service) == GuestLimits()


# --- hostile requests -----------------------------------------------------------------------------


def test_no_hostile_request_is_slow_or_large_or_ends_the_service(running: Running) -> None:
    """One sentence for each, in bounded time and memory, and a good call is served afterwards."""
    answer_all(running.url, os.getpid())


def test_calls_on_what_came_back_are_answered_at_once_however_deep_they_nest(
    running: Running,
) -> None:
    """Beside itself 17 times over, a picture of 8 x 4 pixels took the service 12 s, in the loop
    that answers everybody; enhanced 484 times over, it got an answer without a sentence.
    """
    picture = png(noise(8, 8, 4))
    for name_of_tool, others, times, good in (
        ("compare", {"box": [0, 0, 4, 4], "other_box": [0, 0, 4, 4]}, 30, 6),
        ("compare", {"box": [0, 0, 5, 4], "other_box": [3, 0, 8, 4]}, 30, 6),
        ("enhance", {"how": "sharpen"}, 500, 60),
    ):
        name, failed, peak = send(running.url, picture), 0, Peak(os.getpid())
        before = peak.mb
        with httpx.Client(headers=AUTH, timeout=20) as client, peak.watched():
            for _ in range(times):
                given = {"image": name, **others} | (
                    {"other": name} if name_of_tool == "compare" else {}
                )
                began = time.perf_counter()
                answer = client.post(f"{running.url}/tools/{name_of_tool}", json=given)
                assert time.perf_counter() - began < 1.0
                assert answer.status_code == 200, answer.text
                assert len(answer.content) < 20_000
                if answer.json()["failed"]:
                    failed += 1
                    assert answer.json()["parts"][0]["text"].endswith("earlier image.")
                else:
                    name = answer.json()["parts"][0]["name"]
            began = time.perf_counter()
            assert client.get(f"{running.url}/health").json()["alive"]
            assert time.perf_counter() - began < 1.0
        assert failed == times - good, name_of_tool
        assert peak.mb - before < 50


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


def test_bodies_that_never_end_are_given_up_with_their_connections(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 of them stayed open."""
    monkeypatch.setattr("saccade.toolserver.bodies.BODY_S", 0.5)
    address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
    head = (
        f"POST /tools/crop HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Length: 100\r\n\r\n{"
    )
    with contextlib.ExitStack() as stack:
        callers = [stack.enter_context(socket.create_connection(address)) for _ in range(50)]
        for caller in callers:
            caller.sendall(head.encode())
        for caller in callers:
            caller.settimeout(20)
            said = b""
            while piece := caller.recv(4096):  # until the other side ends it
                said += piece
            assert said.startswith(b"HTTP/1.1 408 ")
    deadline = time.monotonic() + 10
    while running.server.server_state.connections and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not running.server.server_state.connections


def test_a_raw_picture_that_is_too_large_is_refused_unread(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade.toolserver.bodies.BODY_S", 0.2)
    head = (
        f"POST /pictures?width=99999&height=99999 HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Type: application/x-rgb\r\n"
        f"Content-Length: {3 * 99999**2}\r\n\r\n"
    )
    address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
    with socket.create_connection(address, timeout=20) as caller:
        caller.sendall(head.encode())
        assert caller.recv(4096).startswith(b"HTTP/1.1 422 ")


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
        assert answer.status_code in (400, 413, 422), query
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


@tool
def late(image: ImageView) -> str:
    """Look at a picture when it is told to."""
    LOOK.wait(10)
    return f"{image.pixels.size}"


LOOK = threading.Event()


@pytest.mark.parametrize(("held", "is_there"), [(3, True), (1, False)])
def test_a_picture_that_a_call_waits_with_is_dropped_last_and_then_asked_for_again(
    held: int, is_there: bool
) -> None:
    """It was dropped by those that came later, and the call told of a crash."""
    LOOK.clear()
    limits = GuestLimits(held_bytes=held * 3 * 60 * 40)
    guests = Guests([late], runner=Controller(InThreads()), limits=limits)

    async def play() -> ToolResult:
        name, _ = await guests.take(png(noise(0)))
        call = asyncio.ensure_future(guests.call("late", {"image": name}))
        await asyncio.sleep(0.1)
        others = [(await guests.take(png(noise(seed))))[0] for seed in range(1, 5)]
        assert [*guests._images] == ([name] if is_there else []) + others[-2 if is_there else -1 :]
        LOOK.set()
        return await call

    if is_there:
        [said] = asyncio.run(play()).parts
        assert said == Text("(60, 40)")
    else:
        with pytest.raises(NotHeld, match="send its bytes first, or again"):
            asyncio.run(play())
    assert not guests._in_use


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
    assert served == {t.name for t in TOOLS.values() if not t.is_answer}
    lines = (CONTAINERS / "Containerfile").read_text().splitlines()
    [extras] = [x.partition("=")[2] for x in lines if x.startswith("ARG EXTRAS=")]
    assert any("'.[${EXTRAS}]'" in line.replace('"', "'") for line in lines)
    built = {described["build"]["args"]["EXTRAS"] for described in services.values()}
    assert built == {f"${{EXTRAS:-{extras}}}"}
    offered = tomllib.loads((CONTAINERS.parent / "pyproject.toml").read_text())["project"]
    assert {*extras.split(","), "train"} <= set(offered["optional-dependencies"])
    [entry] = [json.loads(x.split(" ", 1)[1]) for x in lines if x.startswith("ENTRYPOINT")]
    [usual] = [json.loads(x.split(" ", 1)[1]) for x in lines if x.startswith("CMD")]
    assert entry == ["saccade"]
    assert usual[:2] == ["serve", "tools"]
    assert any(x.startswith("USER ") and x != "USER root" for x in lines)
