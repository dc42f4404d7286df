"""Tools on Ray Serve: what threads give, whatever happens to replicas and nodes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from saccade import plugins
from saccade.backends import Detected, Detector
from saccade.backends.batched import Batched
from saccade.benches.chaos import _replicas
from saccade.config import BackendChoice, Recipe, ServiceConfig
from saccade.errors import RecipeError, ToolError, ToolUnavailable
from saccade.geometry import Box, Point
from saccade.images import ImageView, root_view
from saccade.tools import builtin_tools
from saccade.tools.running import InThreads, Returned
from saccade.toolserver import in_child, ray_tools, serving
from saccade.toolserver.controller import Controller
from saccade.toolserver.in_child import Answer, Ready
from saccade.toolserver.ray_tools import RayTools, _Hangs, _Replica
from saccade.toolserver.wire import sent
from saccade.types import BoxFound

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray leaves sockets and tasks behind
TOOLS = builtin_tools()
GROUPS = {"views": ("crop", "rotate", "compare", "measure")}


def noise(seed: int = 0, width: int = 60, height: int = 40) -> ImageView:
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return root_view(Image.fromarray(values))


def run(way: Any, name: str, deadline_s: float = 60, **arguments: Any) -> list[Returned]:
    found: list[Returned] = asyncio.run(way.run(TOOLS[name], arguments, deadline_s=deadline_s))
    return found


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """Two nodes on this machine, the second of which dies in the last test."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    cluster.add_node(num_cpus=2)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def way(nodes: Cluster) -> Iterator[RayTools]:
    made = RayTools(GROUPS, replicas={"views": 4})
    yield made
    made.close()


CALLS: list[tuple[str, dict[str, Any]]] = [
    ("crop", {"image": noise(), "box": Box(3, 4, 30, 20)}),
    ("rotate", {"image": noise().crop(Box(5, 5, 50, 35)), "degrees": 30.0}),
    ("measure", {"image": noise(), "start": Point(1, 2), "end": Point(30, 20)}),
    (
        "compare",
        {
            "image": noise(1),
            "box": Box(5, 5, 20, 30),
            "other": noise(2),
            "other_box": Box(0, 0, 9, 9),
        },
    ),
]


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_a_replica_gives_what_a_thread_gives(
    way: RayTools, name: str, arguments: dict[str, Any]
) -> None:
    here, there = run(InThreads(), name, **arguments), run(way, name, **arguments)
    assert len(here) == len(there)
    for a, b in zip(here, there, strict=True):
        if isinstance(a, ImageView):
            assert isinstance(b, ImageView)
            assert a.ref == b.ref
            assert a.pixels.tobytes() == b.pixels.tobytes()
        else:
            assert a == b


class Deployments:
    """In the place of Ray and Ray Serve: what they are given."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        from ray import serve

        self.options: dict[str, dict[str, Any]] = {}
        self.bound: dict[str, tuple[Any, ...]] = {}
        self.is_connected = True
        self.address: str | None = None
        self.apps: list[str] = []
        self.ended: list[str] = []
        patch.setattr(ray, "is_initialized", lambda: self.is_connected)
        patch.setattr(ray, "init", self._init)
        patch.setattr(ray, "shutdown", lambda: self.ended.append("connection"))
        patch.setattr(serve, "deployment", self._deployment)
        patch.setattr(serve, "run", self._run)
        patch.setattr(serve, "delete", self.ended.append)
        patch.setattr(serve, "shutdown", lambda: self.ended.append("cluster"))

    def _init(self, *, address: str, **_: Any) -> None:
        self.is_connected, self.address = True, address

    def _run(self, _: Any, *, name: str, **__: Any) -> Any:
        self.apps.append(name)
        asked = SimpleNamespace(result=self.result)
        return SimpleNamespace(
            ready=SimpleNamespace(remote=lambda: asked),
            shutdown=lambda: self.ended.append("handle"),
        )

    def result(self, timeout_s: float) -> Ready:
        return Ready(1)

    def _deployment(self, *, name: str, **options: Any) -> Any:
        self.options[name] = options

        def bind(*arguments: Any) -> None:
            self.bound[name] = arguments

        return lambda _: SimpleNamespace(bind=bind)


SCALED = {
    "way": "ray",
    "groups": {"views": ["crop", "rotate"]},
    "processes": {"views": 2},
    "autoscale_to": {"views": 5},
    "gpus": {"segment": 0.25},
    "cpus": {"views": 3},
    "memory_mb": 1234,
}


def test_ray_is_told_how_groups_are_scaled_and_what_they_may_use() -> None:
    recipe = Recipe.model_validate({"tools": ["crop", "rotate", "segment"], "service": SCALED})
    with pytest.MonkeyPatch.context() as patch:
        given = Deployments(patch)
        way = serving.served(recipe).controller.way
    views, segment = given.options["views"], given.options["segment"]
    scaling = views["autoscaling_config"]
    assert (scaling["min_replicas"], scaling["max_replicas"]) == (2, 5)
    assert scaling["target_ongoing_requests"] == 1
    assert views["ray_actor_options"] == {"num_cpus": 1.5, "num_gpus": 0}
    assert segment["num_replicas"] == 1
    assert segment["ray_actor_options"] == {"num_cpus": 0.1, "num_gpus": 0.25}
    assert given.bound["views"][::2] == (("crop", "rotate"), 1234)
    assert given.bound["segment"][::2] == (("segment",), 1234)
    assert [way.capacity(name) for name in ("crop", "segment")] == [10, 2]
    for key in ("autoscale_to", "gpus", "cpus"):
        wrong = recipe.model_copy(update={"service": ServiceConfig(way="ray", **{key: {"x": 1}})})
        with pytest.raises(RecipeError, match="the group 'x'"):
            serving.served(wrong)


@pytest.mark.parametrize("address", [None, "10.0.0.7:6379"])
def test_of_a_cluster_of_others_only_what_is_ours_is_ended(
    monkeypatch: pytest.MonkeyPatch, address: str | None
) -> None:
    given = Deployments(monkeypatch)
    given.is_connected = False
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")  # of others, and not asked for
    ways = [RayTools({"views": ("crop",)}, address=address)]
    assert given.address == (address or "local")
    ways.append(RayTools({"views": ("crop",)}, address=address))  # connected already
    assert len(set(given.apps)) == 2
    for way in reversed(ways):
        way.close()
    first, second = given.apps
    whole = ["cluster"] if address is None else []
    assert given.ended == ["handle", second, "handle", first, *whole, "connection"]


def test_what_was_started_before_a_failure_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Deployments(monkeypatch)
    given.is_connected = False

    def late(timeout_s: float) -> Ready:
        if len(given.apps) > 1:
            raise TimeoutError("no word")
        return Ready(1)

    given.result = late  # type: ignore[method-assign]
    with pytest.raises(ToolUnavailable, match="no word"):
        RayTools({"views": ("crop",), "others": ("rotate",)})
    assert given.ended == ["handle", "handle", *given.apps, "cluster", "connection"]


def test_a_run_on_the_same_cluster_leaves_the_replicas_of_another(
    way: RayTools, nodes: Cluster
) -> None:
    code = (
        "from saccade.toolserver.ray_tools import RayTools\n"
        f"RayTools({{'views': ('crop',)}}, address={nodes.address!r}).close()\n"
        "print('ended')\n"
    )
    before = set(_replicas())
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True
    )
    assert other.stdout.split()[-1] == "ended"
    assert run(way, "crop", image=noise(), box=Box(0, 0, 9, 9))
    assert set(_replicas()) == before


def test_callers_of_a_new_picture_put_it_once(
    way: RayTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = []
    monkeypatch.setattr(
        ray_tools, "_put", lambda view, put_=ray_tools._put: put.append(1) or put_(view)
    )
    view = noise(seed=77)

    async def many() -> None:
        boxes = [Box(n, 0, 40, 20) for n in range(4)]
        calls = (way.run(TOOLS["crop"], {"image": view, "box": b}, deadline_s=60) for b in boxes)
        await asyncio.gather(*calls)

    asyncio.run(many())
    assert put == [1]


def test_a_group_gets_more_replicas_while_calls_wait_for_it(nodes: Cluster) -> None:
    from ray import serve

    way = RayTools({"growing": ("rotate",)}, autoscale_to={"growing": 3})
    controller = Controller(way)
    picture = noise(width=900, height=900)

    def running() -> int:
        [app] = way._apps
        found = serve.status().applications[app].deployments["growing"]
        return found.replica_states.get("RUNNING", 0)

    async def until_there_are_two() -> None:
        enough = asyncio.Event()

        async def ask(number: int) -> None:
            while not enough.is_set():
                number += 10
                given = {"image": picture, "degrees": number / 10 + 1}
                await controller.run(TOOLS["rotate"], given, deadline_s=60)

        async def watch() -> None:
            # apart from the calls, that the next are not kept from waiting while Ray is asked
            ends = time.monotonic() + 180
            while await asyncio.to_thread(running) < 2 and time.monotonic() < ends:
                await asyncio.sleep(0.5)
            enough.set()

        await asyncio.gather(watch(), *(ask(number) for number in range(6)))

    try:
        assert running() == 1
        asyncio.run(until_there_are_two())
        assert running() >= 2
    finally:
        controller.close()


def test_replicas_that_can_not_make_their_tools_say_why_and_are_ended(nodes: Cluster) -> None:
    from ray import serve

    with pytest.raises(RecipeError, match="No tool named 'no_such_tool'"):
        RayTools({"none": ("no_such_tool",)})
    assert not [a for a in serve.status().applications if a.startswith("saccade-none")]


def test_a_mistake_is_the_same_sentence_as_here(way: RayTools) -> None:
    with pytest.raises(ToolError, match="lies outside the image"):
        run(way, "crop", image=noise(), box=Box(100, 100, 120, 120))


def test_killed_replicas_are_replaced_and_their_calls_done_again(way: RayTools) -> None:
    before = set(_replicas())
    assert len(before) == 4
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    began = time.monotonic()
    assert run(way, "crop", image=noise(), box=Box(0, 0, 9, 9))
    assert time.monotonic() - began < 20
    assert not before & set(_replicas())


def test_a_call_on_stopped_replicas_ends_at_its_deadline_and_they_are_replaced(
    way: RayTools,
) -> None:
    deadline = time.monotonic() + 60
    while len(_replicas()) < 4 and time.monotonic() < deadline:
        time.sleep(0.2)
    stopped = _replicas()
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises(ToolUnavailable, match="crop missed its deadline of 1 s"):
        run(way, "crop", deadline_s=1, image=noise(), box=Box(0, 0, 9, 9))
    assert time.monotonic() - began < 3
    assert run(way, "crop", image=noise(), box=Box(0, 0, 9, 9))


def test_a_replica_answers_calls_that_wait_for_its_model_in_one_pass(
    nodes: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # classes of a function travel to replicas by value, where this module is not to be found
    class Passes(Detector):
        name = "passes"
        batches = True

        def __init__(self, choice: BackendChoice) -> None:
            super().__init__(choice)
            self._batched = Batched[str, list[Detected]](
                self._found, most=self.most_at_once(choice)
            )

        def detect(self, picture: Image.Image, query: str) -> list[Detected]:
            return self._batched.ask(query)

        def _found(self, queries: list[str]) -> list[list[Detected]]:
            time.sleep(0.3)
            return [[Detected(q, Box(0, 0, 9, 9), len(queries) / 10)] for q in queries]

    class Replica(_Replica):
        def __init__(self, *given: Any) -> None:
            plugins.load = lambda group, name: Passes  # type: ignore[assignment]
            super().__init__(*given)

    monkeypatch.setattr(plugins, "load", lambda group, name: Passes)
    monkeypatch.setattr(ray_tools, "_Replica", Replica)
    way = RayTools(
        {"detecting": ("detect",)}, backends={"detector": BackendChoice(name="passes", batch=4)}
    )
    controller = Controller(way)
    queries = [f"thing {n}" for n in range(9)]

    async def all_of_them() -> list[list[Returned]]:
        asked = ({"image": noise(), "query": query} for query in queries)
        calls = (controller.run(TOOLS["detect"], a, deadline_s=60) for a in asked)
        return await asyncio.gather(*calls)

    try:
        found = asyncio.run(all_of_them())
        assert way.capacity("detect") == 8
    finally:
        way.close()
    boxes = [part for parts in found for part in parts if isinstance(part, BoxFound)]
    assert [b.label for b in boxes] == queries
    assert max(b.score or 0 for b in boxes) == 0.4


def test_when_a_node_dies_the_tools_of_the_others_go_on(nodes: Cluster, way: RayTools) -> None:
    deadline = time.monotonic() + 60
    while len(_nodes_of_replicas()) < 2 and time.monotonic() < deadline:
        time.sleep(0.5)
    assert len(_nodes_of_replicas()) == 2

    async def many() -> int:
        view = noise(3)
        done = 0
        for x in range(60):
            if x == 20:
                await asyncio.to_thread(
                    nodes.remove_node, nodes.worker_nodes.copy().pop(), allow_graceful=False
                )
            [part] = await way.run(
                TOOLS["crop"], {"image": view, "box": Box(x % 40, 0, 50, 30)}, deadline_s=60
            )
            assert isinstance(part, ImageView)
            done += part.ref == view.crop(Box(x % 40, 0, 50, 30)).ref
        return done

    assert asyncio.run(many()) == 60


def _nodes_of_replicas() -> set[str]:
    from ray.util.state import list_actors

    actors = list_actors(filters=[("state", "=", "ALIVE")], address=None)
    return {a.node_id for a in actors if a.class_name.startswith("ServeReplica:saccade-")}


# --- one replica, without Ray ---------------------------------------------------------------------


async def _nothing() -> bytes:
    raise AssertionError("the picture is here already")


def test_a_picture_that_is_not_kept_any_longer_is_still_there_for_a_call_that_waits() -> None:
    view = noise()

    async def calls() -> None:
        replica = _Replica(("crop",), {}, None, {"crop": 1})
        call = sent({"image": view, "box": Box(3, 4, 30, 20)})

        async def bytes_of() -> bytes:
            return view.pixels.tobytes()

        def asked(ref: Any) -> Any:
            return replica.call("crop", call.arguments, {view.ref.key: ([ref], 60, 40)}, 60)

        first = await asked(bytes_of())
        async with replica._turns["crop"]:
            nothing = _nothing()
            second = asyncio.ensure_future(asked(nothing))
            await asyncio.sleep(0.05)
            in_child._pictures.clear()
        assert (await second).parts == first.parts
        nothing.close()

    asyncio.run(calls())


def test_pictures_are_kept_for_calls_in_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_child, "KEPT_BYTES", 3 * 60 * 40 * 2)
    monkeypatch.setattr(in_child, "_pictures", OrderedDict())
    views = [noise(n) for n in range(8)]
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def kept(n: int) -> bool:
        view = views[n % 8]
        found = in_child._kept(view.ref.key, lambda: view.pixels)
        return found.pixels.tobytes() == view.pixels.tobytes()

    try:
        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(kept, range(2000)))
    finally:
        sys.setswitchinterval(switch_s)
    assert len(in_child._pictures) == 2


def test_a_call_that_hangs_is_told_even_if_its_caller_has_left_and_one_that_ended_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go = threading.Event()

    def answered(*_: Any) -> Answer:
        assert go.wait(10)
        return Answer(0, {}, {})

    monkeypatch.setattr(in_child, "answered", answered)

    async def calls() -> None:
        replica = _Replica(("crop",), {}, None, {"crop": 4})
        call = asyncio.ensure_future(replica.call("crop", {}, {}, 0.1))
        await asyncio.sleep(0.05)
        replica.check_health()
        call.cancel()
        await asyncio.sleep(0.1)
        with pytest.raises(RuntimeError, match="past its deadline"):
            replica.check_health()
        go.set()
        assert await replica.call("crop", {}, {}, 0.1) == Answer(0, {}, {})
        await asyncio.sleep(0.15)
        replica.check_health()

    asyncio.run(calls())


def test_a_call_that_waits_for_others_that_end_does_not_hang() -> None:
    hangs = _Hangs()
    go = threading.Event()

    def waits() -> Answer:
        assert go.wait(10)
        return Answer(0, {}, {})

    with ThreadPoolExecutor(1) as threads:
        threads.submit(hangs.watched, waits, 0.2)
        for _ in range(4):
            time.sleep(0.1)
            hangs.watched(lambda: Answer(0, {}, {}), 0.2)
            assert not hangs.any()
        time.sleep(0.25)
        assert hangs.any()
        go.set()
