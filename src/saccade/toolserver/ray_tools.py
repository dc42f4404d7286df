"""Tools on Ray Serve: replicas on all nodes of a cluster, with GPU fractions and autoscaling.

Invariant: as in `workers`, a call ends with what the tool gave or with an error of ours, once; it
is asked again where its replica died under it, until its deadline. A picture is put into Ray's
object store once and is fetched by a replica once. A replica in which a call hangs past its
deadline says so when it is asked for its health, and is replaced.

A replica runs one call at a time, and calls of a tool whose model answers several in one pass at
the same time: as many as share a pass, and as many again that are the next batch.

A cluster belongs to others too: of what runs there only our own deployments are ended, each of
which has a name of its own; a cluster that was started here is ended as a whole.

Left out on purpose: starting a cluster; without an address one is started on this machine alone.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from typing import Any

from PIL import Image

from saccade import errors
from saccade.config import BackendChoice, BackendKind
from saccade.errors import SaccadeError, ToolUnavailable
from saccade.images import ImageView
from saccade.tools import batch_of, tools_described
from saccade.tools.running import Elsewhere, Returned, missed_deadline
from saccade.tools.spec import Tool
from saccade.toolserver import in_child
from saccade.toolserver.in_child import Answer, Ready
from saccade.toolserver.wire import parts_from_json, sent
from saccade.toolserver.workers import WorkersHealth

__all__ = ["RayTools"]

START_S = 120.0
"""For a cluster and its replicas."""
UPSCALE_S = 2.0
"""Of more calls than its replicas take, before a group gets more of them."""
HEALTH_S = 1.0
"""Between two questions for the health of a replica, and twice that to answer one."""
KEPT_BYTES = 512 * 2**20
"""Of pictures in the object store, those used last; the one that is used now is kept even if it is
larger.
"""


class RayTools(Elsewhere):
    """Groups of tools, each a deployment of Ray Serve. `close` ends them."""

    def __init__(
        self,
        groups: Mapping[str, Sequence[str]],
        *,
        backends: Mapping[BackendKind, BackendChoice] | None = None,
        replicas: Mapping[str, int] | None = None,
        autoscale_to: Mapping[str, int] | None = None,
        gpus: Mapping[str, float] | None = None,
        cpus: Mapping[str, int] | None = None,
        memory_mb: int | None = 4096,
        address: str | None = None,
    ) -> None:
        """`replicas` of each group, the least of them where it is in `autoscale_to`; `gpus`: the
        share of one that a replica takes; `cpus`: processors that those of a group reserve
        together. Raises ToolUnavailable where Ray does not start, and what replicas say that can't
        make their tools.
        """
        import ray
        from ray import serve

        self._batches = _batches(groups, backends)
        self._connects = not ray.is_initialized()
        self._owns_cluster = self._connects and address is None
        self._handles: dict[str, Any] = {}
        self._health: dict[str, WorkersHealth] = {}
        self._most: dict[str, int] = {}
        """Replicas that there may be."""
        self._apps: list[str] = []
        self._pictures: OrderedDict[str, tuple[list[Any], int, int]] = OrderedDict()
        self._putting: dict[str, asyncio.Future[tuple[list[Any], int, int]]] = {}
        run = uuid.uuid4().hex[:8]
        try:
            if self._connects:
                ray.init(
                    # "local" is a new one, whatever RAY_ADDRESS says and whatever runs here
                    address=address or "local",
                    include_dashboard=False if address is None else None,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                )
            logging.getLogger("ray.serve").setLevel(logging.ERROR)
            choices = {kind: choice.model_dump() for kind, choice in (backends or {}).items()}
            for group, names in groups.items():
                count = (replicas or {}).get(group, 1)
                batches = {n: self._batches[n] for n in names}
                together = max(batches.values(), default=1)
                deployed = serve.deployment(
                    name=group,
                    **_scale(count, (autoscale_to or {}).get(group), ongoing=together),
                    ray_actor_options={
                        "num_cpus": (cpus or {}).get(group, 0.1 * count) / count,
                        "num_gpus": (gpus or {}).get(group, 0),
                    },
                    max_ongoing_requests=2 * together,
                    health_check_period_s=HEALTH_S,
                    health_check_timeout_s=2 * HEALTH_S,
                    graceful_shutdown_timeout_s=1,
                    logging_config={"log_level": "ERROR"},
                )(_Replica)
                app = f"saccade-{group}-{run}"
                self._apps.append(app)
                bound = deployed.bind(tuple(names), choices, memory_mb, batches)
                handle = serve.run(bound, name=app, route_prefix=None)
                # a late call may only have waited: which replicas were replaced Ray knows
                health = WorkersHealth(group, count, replaces=False)
                for name in names:
                    self._handles[name], self._health[name] = handle, health
                    self._most[name] = max(count, (autoscale_to or {}).get(group, 0))
                _check_ready(handle)
        except SaccadeError:
            self.close()
            raise
        except (RuntimeError, ConnectionError, OSError) as error:
            self.close()
            raise ToolUnavailable(f"Ray does not start the tools: {error}") from error

    def capacity(self, name: str) -> int:
        """Calls of a tool that it takes at the same time; where replicas come with calls, as many
        as all of them would take, or Ray would never see what more of them are wanted for.
        """
        return 2 * self._batches[name] * self._most[name]

    def health(self) -> list[WorkersHealth]:
        """Of each group, at once."""
        return [*{h.group: h for h in self._health.values()}.values()]

    def close(self) -> None:
        """End the deployments, and Ray where it was started for them."""
        import ray
        from ray import serve

        if not ray.is_initialized():  # it was never reached
            return
        # what Ray says as it ends would stand among what a program reads
        with redirect_stdout(sys.stderr):
            # before Ray goes: what counts calls for autoscaling would start it anew, and a process
            # whose Ray is gone ends without a word
            for handle in {id(h): h for h in self._handles.values()}.values():
                handle.shutdown()
            for app in self._apps:
                serve.delete(app)
            if self._owns_cluster:
                serve.shutdown()
            if self._connects:
                ray.shutdown()

    async def run(
        self, tool: Tool, arguments: Mapping[str, Any], *, deadline_s: float
    ) -> list[Returned]:
        """See `tools.running.Runner`."""
        if tool.name not in self._handles:
            raise ToolUnavailable(f"No replicas run {tool.name}: add it to a group of tools.")
        call = sent(arguments)
        health = self._health[tool.name]
        health.running += 1
        try:
            async with asyncio.timeout(deadline_s):
                held = {k: await self._held(view) for k, view in call.images.items()}
                answer = await self._answer(tool.name, call.arguments, held, deadline_s)
        except TimeoutError:
            health.killed += 1
            health.last_failure = time.time()
            raise missed_deadline(tool.name, deadline_s) from None
        finally:
            health.running -= 1
        health.answered += 1
        health.last_answer = time.time()
        if answer.parts is None:
            raise getattr(errors, answer.kind)(answer.error)
        new = {
            key: Image.frombytes("RGB", (width, height), data)
            for key, (data, width, height) in answer.pictures.items()
        }
        return parts_from_json(answer.parts, call.images, new)

    async def _answer(
        self, name: str, arguments: dict[str, Any], held: dict[str, Any], deadline_s: float
    ) -> Answer:
        """What came of a call, asked again as long as its replica dies under it."""
        from ray.exceptions import RayError, RayTaskError
        from ray.serve.exceptions import RayServeException

        while True:
            try:
                answer: Answer = await self._handles[name].call.remote(
                    name, arguments, held, deadline_s
                )
                return answer
            except RayError as error:
                # what is raised there is a bug, unless there was no memory to raise anything better
                if isinstance(error, RayTaskError) and not isinstance(error.cause, MemoryError):
                    raise
                self._health[name].died += 1
                self._health[name].last_failure = time.time()
                await asyncio.sleep(0.05)
            except RayServeException as error:
                self._health[name].last_failure = time.time()
                raise ToolUnavailable(f"Ray Serve has no replicas of {name}: {error}") from error

    async def _held(self, view: ImageView) -> tuple[list[Any], int, int]:
        """Where a picture is in the object store; in a list, or Ray would fetch it for the call."""
        key = view.ref.key
        if key not in self._pictures:
            putting = self._putting.get(key)
            if putting is None:
                # pixels may have to be made, and are copied
                putting = asyncio.ensure_future(asyncio.to_thread(_put, view))
                self._putting[key] = putting
                putting.add_done_callback(lambda _: self._putting.pop(key, None))
            # shielded: a caller that leaves must not take it from those who wait for it too
            self._pictures[key] = await asyncio.shield(putting)
        held = self._pictures[key]
        self._pictures.move_to_end(key)
        while len(self._pictures) > 1 and (
            sum(3 * width * height for _, width, height in self._pictures.values()) > KEPT_BYTES
        ):
            self._pictures.popitem(last=False)
        return held


def _put(view: ImageView) -> tuple[list[Any], int, int]:
    import ray

    return [ray.put(view.pixels.tobytes())], view.width, view.height


def _batches(
    groups: Mapping[str, Sequence[str]], backends: Mapping[BackendKind, BackendChoice] | None
) -> dict[str, int]:
    """Of each tool, how many of its calls share a pass."""
    names = [name for group in groups.values() for name in group]
    return {tool.name: batch_of(tool, backends) for tool in tools_described(names)}


def _check_ready(handle: Any) -> None:
    """Raises what a replica says that can't make its tools."""
    told: Ready = handle.ready.remote().result(timeout_s=START_S)
    if told.error:
        raise getattr(errors, told.kind)(told.error)


def _scale(count: int, most: int | None, *, ongoing: int) -> dict[str, Any]:
    if most is None:
        return {"num_replicas": count}
    return {
        "autoscaling_config": {
            "min_replicas": count,
            "max_replicas": most,
            "target_ongoing_requests": ongoing,
            "upscale_delay_s": UPSCALE_S,
            "metrics_interval_s": UPSCALE_S / 2,
            "look_back_period_s": UPSCALE_S,
        }
    }


class _Replica:
    """One process of a group, somewhere in the cluster."""

    def __init__(
        self,
        names: tuple[str, ...],
        choices: dict[BackendKind, dict[str, Any]],
        memory_mb: int | None,
        batches: dict[str, int],
    ) -> None:
        """`batches`: of each tool, how many of its calls share a pass."""
        most = max(batches.values(), default=1)
        self._threads = ThreadPoolExecutor(1 if most == 1 else 2 * most)
        self._threads.submit(in_child.start, names, choices, memory_mb, 0).result()
        one = asyncio.Semaphore(1)
        self._turns = {n: one if b == 1 else asyncio.Semaphore(2 * b) for n, b in batches.items()}
        self._hangs = _Hangs()

    async def ready(self) -> Ready:
        """As `in_child.ready`."""
        return in_child.ready()

    async def call(
        self,
        name: str,
        arguments: dict[str, Any],
        held: dict[str, tuple[list[Any], int, int]],
        deadline_s: float,
    ) -> Answer:
        """As `in_child.answered`."""
        try:
            return await self._answered(name, arguments, held, deadline_s)
        except (MemoryError, OSError) as error:
            in_child.end_if_starved(error)
            raise

    async def _answered(
        self,
        name: str,
        arguments: dict[str, Any],
        held: dict[str, tuple[list[Any], int, int]],
        deadline_s: float,
    ) -> Answer:
        pictures = {}
        for key, ([ref], width, height) in held.items():
            here = in_child.kept(key)
            pictures[key] = _Picture(await ref, width, height) if here is None else here.copy
        async with self._turns[name]:
            work = partial(in_child.answered, name, arguments, pictures)
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, self._hangs.watched, work, deadline_s
            )

    def check_health(self) -> None:
        """Raises RuntimeError where a call hangs: then Ray Serve replaces it."""
        if self._hangs.any():
            raise RuntimeError("A call is past its deadline.")


class _Hangs:
    """Tells calls that hang from those that only wait for others."""

    def __init__(self) -> None:
        self._begun: dict[object, tuple[float, float]] = {}
        """Of the calls that run, when they began and how long they may take."""
        self._ended = 0.0
        """When a call did, last."""

    def watched(self, work: Callable[[], Answer], deadline_s: float) -> Answer:
        """What `work` gives."""
        call = object()
        self._begun[call] = time.monotonic(), deadline_s
        try:
            return work()
        finally:
            self._ended = time.monotonic()
            del self._begun[call]

    def any(self) -> bool:
        """Whether a call runs for longer than it may, and none ended meanwhile for which it could
        have waited.
        """
        now = time.monotonic()
        running = list(self._begun.values())
        return any(now > max(began, self._ended) + may_s for began, may_s in running)


class _Picture:
    """The bytes of a picture, unpacked when asked."""

    def __init__(self, data: bytes, width: int, height: int) -> None:
        self._data, self._size = data, (width, height)

    def __call__(self) -> Image.Image:
        return Image.frombytes("RGB", self._size, self._data)
