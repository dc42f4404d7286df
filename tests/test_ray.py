"""Tools on Ray Serve: what threads give, whatever happens to replicas and nodes."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from saccade.benches.chaos import _replicas
from saccade.config import Recipe, ServiceConfig
from saccade.errors import RecipeError, ToolError, ToolUnavailable
from saccade.geometry import Box, Point
from saccade.images import ImageView, root_view
from saccade.tools import builtin_tools
from saccade.tools.running import InThreads, Returned
from saccade.toolserver import serving
from saccade.toolserver.in_child import Ready
from saccade.toolserver.ray_tools import RayTools

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
        asked = SimpleNamespace(result=lambda timeout_s: Ready(1))
        ready = SimpleNamespace(remote=lambda: asked)
        patch.setattr(ray, "is_initialized", lambda: True)
        patch.setattr(serve, "deployment", self._deployment)
        patch.setattr(serve, "run", lambda *_, **__: SimpleNamespace(ready=ready))

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
    assert views["autoscaling_config"] == {
        "min_replicas": 2,
        "max_replicas": 5,
        "target_ongoing_requests": 1,
    }
    assert views["ray_actor_options"] == {"num_cpus": 1.5, "num_gpus": 0}
    assert segment["num_replicas"] == 1
    assert segment["ray_actor_options"] == {"num_cpus": 0.1, "num_gpus": 0.25}
    assert given.bound["views"][::2] == (("crop", "rotate"), 1234)
    assert given.bound["segment"][::2] == (("segment",), 1234)
    assert [way.capacity(name) for name in ("crop", "segment")] == [4, 2]
    for key in ("autoscale_to", "gpus", "cpus"):
        wrong = recipe.model_copy(update={"service": ServiceConfig(way="ray", **{key: {"x": 1}})})
        with pytest.raises(RecipeError, match="the group 'x'"):
            serving.served(wrong)


def test_replicas_that_can_not_make_their_tools_say_why_and_are_ended(nodes: Cluster) -> None:
    from ray import serve

    with pytest.raises(RecipeError, match="No tool named 'no_such_tool'"):
        RayTools({"none": ("no_such_tool",)})
    assert "saccade-none" not in serve.status().applications


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
