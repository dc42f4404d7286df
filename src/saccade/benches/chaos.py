"""Episodes whose tool workers are killed, stopped, slowed and starved at random.

Invariant: an episode is compared with itself in a run without trouble: it must have the same
messages, pictures and answer, unless a call of it was cut by its deadline or given up, which is
told and is counted as our failure.

Left out on purpose: other systems than Linux, whose /proc says which process is a worker.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from saccade.benches.processes import children, command
from saccade.dialects import dialect
from saccade.engines import Sampling
from saccade.engines.scripted import ScriptedEngine
from saccade.errors import SaccadeError
from saccade.geometry import Box, Frame
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.progress import progress
from saccade.rewards import Rubric
from saccade.rewards.builtin import answer
from saccade.rollout import Limits, Setup, run_episode
from saccade.tools import ToolBox, builtin_tools, tools_named
from saccade.tools.running import InThreads
from saccade.toolserver.controller import Controller, Way
from saccade.toolserver.workers import Workers
from saccade.types import Episode, Outcome, Sample, StopReason

__all__ = ["Chaos", "bench_chaos"]

GROUPS = {
    "cut": ("crop", "zoom"),
    "turn": ("rotate", "compare", "measure"),
    "eye": ("detect", "segment"),
}
EVERY_S = {"workers": 0.15, "ray": 1.0}
"""Between two pieces of trouble: six workers, of which those that look take about a second to
start.
"""
SLOWED_S = 0.3
STARVED_BYTES = 64 * 2**20
DEADLINE_S = {"workers": 8.0, "ray": 20.0}
"""Of a call: some times what it takes to replace a worker."""
UNTROUBLED_S = 600.0


@dataclass(frozen=True, slots=True)
class Chaos:
    """What came of the episodes."""

    episodes: int
    calls: int
    killed: int
    """Workers, with -9."""
    stopped: int
    """Workers, for ever: only their deadline ends the call."""
    slowed: int
    starved: int
    ended: int
    same: int
    """Episodes that are what they are without trouble."""
    cut: int
    """Episodes that ended at the deadline of a call, unscored."""
    given_up: int
    """Episodes that ended since every worker that tried a call of theirs died, unscored."""
    lost: int
    twice: int
    scored_0: int
    """Episodes of ours that were scored as if the model had failed."""
    died_under_a_call: int
    killed_at_a_deadline: int
    seconds: float
    recovery_p50_s: float
    """From the death of the only worker of a group to the next answer of that group."""
    recovery_worst_s: float


def bench_chaos(
    *,
    episodes: int = 1000,
    seed: int = 0,
    way: Literal["workers", "ray"] = "workers",
    show: bool = True,
) -> Chaos:
    """Raises SaccadeError where there is no /proc to find workers in."""
    if not Path("/proc/self/task").exists():
        raise SaccadeError("Chaos finds its victims in /proc, which this system has not.")
    deadline_s = DEADLINE_S[way]
    want = asyncio.run(_played(InThreads(), episodes, deadline_s=UNTROUBLED_S))
    runs, victims = _WAYS[way](GROUPS, 2), _VICTIMS[way]
    trouble = _Trouble(seed, victims, every_s=EVERY_S[way])
    trouble.start()
    began = time.perf_counter()
    try:
        got = asyncio.run(_played(runs, episodes, deadline_s=deadline_s))
    finally:
        trouble.stop()
        seconds = time.perf_counter() - began
        runs.close()
    recovery = _recovery(_WAYS[way]({"cut": ("crop",)}, 1), victims)
    health = runs.health()
    by_id: dict[str, list[Episode]] = {}
    for episode in got:
        by_id.setdefault(episode.sample.id, []).append(episode)
    ours = [e for e in got if e.stop is not None and e.stop.outcome is Outcome.OURS]
    found = Chaos(
        episodes=episodes,
        calls=sum(len(e.calls) for e in got),
        **trouble.done,
        ended=sum(e.stop is not None for e in got),
        same=sum(_essence(by_id[w.sample.id][0]) == _essence(w) for w in want),
        cut=sum("missed its deadline" in e.error for e in ours),
        given_up=sum(e.stop is StopReason.TOOL_CRASHED for e in ours),
        lost=sum(w.sample.id not in by_id for w in want),
        twice=sum(len(found) > 1 for found in by_id.values()),
        scored_0=sum(e.score is not None and e.score.value is not None for e in ours),
        died_under_a_call=sum(h.died for h in health),
        killed_at_a_deadline=sum(h.killed for h in health),
        seconds=round(seconds, 2),
        recovery_p50_s=round(float(np.median(recovery)), 3),
        recovery_worst_s=round(max(recovery), 3),
    )
    if show:
        Console().print(_table(found))
    return found


def _essence(episode: Episode) -> object:
    """What must not depend on who ran the tools."""
    results = [(r.parts, r.failed, r.named) for r in episode.results]
    return episode.messages, results, episode.stop, episode.answer, episode.score


# --- episodes -------------------------------------------------------------------------------------


async def _played(way: Way, episodes: int, *, deadline_s: float) -> list[Episode]:
    store = ImageStore()
    images = [store.add(root_view(_bars(seed))) for seed in range(20)]
    scripts = {f"e{n}": list(_script(n)) for n in range(episodes)}
    tools = tools_named([name for group in GROUPS.values() for name in group])
    setup = Setup(
        engine=ScriptedEngine(scripts, ids=False),
        dialect=dialect("hermes", style="signature"),
        store=store,
        toolbox=ToolBox(tools, store=store, deadline_s=deadline_s, runner=Controller(way)),
        frame=lambda ref: Frame.pixels(ref.width, ref.height),
        limits=Limits(max_turns=6, max_tokens_per_turn=400, max_context_tokens=100_000),
        rubric=Rubric(((answer, 1.0),)),
    )
    slots = asyncio.Semaphore(16)
    with progress("episodes", total=episodes) as bar:

        async def one(number: int) -> Episode:
            sample = Sample(f"e{number}", "What?", (images[number % len(images)],), "42")
            async with slots:
                episode = await run_episode(sample, setup, sampling=Sampling(max_tokens=400))
            bar.advance()
            return episode

        return await asyncio.gather(*(one(n) for n in range(episodes)))


def _bars(seed: int) -> Image.Image:
    """Coloured bars on grain, so that tools that look have something to see."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(235, 255, (450, 600, 3), dtype=np.uint8)
    for n, color in enumerate(((200, 30, 30), (30, 60, 200), (30, 150, 60), (230, 150, 20))):
        top = int(rng.integers(60, 380))
        pixels[top:420, 60 + 130 * n : 140 + 130 * n] = color
    return Image.fromarray(pixels)


def _script(number: int) -> Iterator[str]:
    """What the model says in episode `number`: three turns with calls, then the answer."""
    rng = random.Random(number)
    x, y = rng.randint(0, 300), rng.randint(0, 200)
    box = [x, y, x + rng.randint(60, 250), y + rng.randint(60, 200)]
    yield _call("crop", image="img_0", box=box) + _call(
        "rotate", image="img_0", degrees=rng.randint(1, 359)
    )
    yield _call("zoom", image="img_1", box=[5, 5, 50, 50]) + _call(
        "measure", image="img_2", start=[1, 1], end=[40, rng.randint(2, 50)]
    )
    yield _call("detect", image="img_0", query=rng.choice(("red bar", "blue bar", "bar"))) + _call(
        "segment", image="img_0", points=[[100 + 130 * rng.randint(0, 3), 410]]
    )
    yield _call("terminate", ans="42")


def _call(name: str, **arguments: object) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


# --- trouble --------------------------------------------------------------------------------------


class _Trouble(threading.Thread):
    """Does something to a worker again and again, until it is told to stop."""

    def __init__(self, seed: int, victims: Callable[[], list[int]], *, every_s: float) -> None:
        super().__init__(daemon=True)
        self._victims = victims
        self._every_s = every_s
        self._rng = random.Random(seed)
        self._ended = threading.Event()
        self.done = dict.fromkeys(("killed", "stopped", "slowed", "starved"), 0)

    def run(self) -> None:
        while not self._ended.wait(self._every_s):
            workers = self._victims()
            if workers:
                kind = self._rng.choices([*self.done], weights=[6, 1, 3, 3])[0]
                if _do(kind, self._rng.choice(workers)):
                    self.done[kind] += 1

    def stop(self) -> None:
        self._ended.set()
        self.join()


def _do(kind: str, pid: int) -> bool:
    """Whether the worker was still there for it."""
    try:
        if kind == "killed":
            os.kill(pid, signal.SIGKILL)
        elif kind == "stopped":
            os.kill(pid, signal.SIGSTOP)
        elif kind == "slowed":
            os.kill(pid, signal.SIGSTOP)
            time.sleep(SLOWED_S)
            os.kill(pid, signal.SIGCONT)
        else:
            resource.prlimit(pid, resource.RLIMIT_AS, (STARVED_BYTES, STARVED_BYTES))
    except ProcessLookupError:
        return False
    return True


def _forked() -> list[int]:
    """Children of the server that forks the workers of this process."""
    servers = [pid for pid in children(os.getpid()) if b"forkserver" in command(pid)]
    return [pid for server in servers for pid in children(server) if command(pid)]


def _replicas() -> list[int]:
    """Processes that Ray names after our deployments."""
    pids = (int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit())
    return [pid for pid in pids if command(pid).startswith(b"ray::ServeReplica:saccade-")]


def _of_workers(groups: Mapping[str, Sequence[str]], processes: int) -> Way:
    way = Workers(groups, processes=dict.fromkeys(groups, processes))
    way.start()
    return way


def _of_ray(groups: Mapping[str, Sequence[str]], processes: int) -> Way:
    from saccade.toolserver.ray_tools import RayTools

    return RayTools(groups, replicas=dict.fromkeys(groups, processes))


_WAYS = {"workers": _of_workers, "ray": _of_ray}
_VICTIMS = {"workers": _forked, "ray": _replicas}


def _recovery(way: Way, victims: Callable[[], list[int]], *, rounds: int = 20) -> list[float]:
    """Seconds from the death of a group's only worker to its next answer."""
    crop = builtin_tools()["crop"]
    view = root_view(Image.new("RGB", (800, 600), "white"))
    arguments = {"image": view, "box": Box(0, 0, 200, 100)}

    async def measured() -> list[float]:
        found = []
        for _ in range(rounds):
            await way.run(crop, arguments, deadline_s=30)
            [worker] = victims()
            os.kill(worker, signal.SIGKILL)
            began = time.perf_counter()
            await way.run(crop, arguments, deadline_s=30)
            found.append(time.perf_counter() - began)
        return found

    try:
        return asyncio.run(measured())
    finally:
        way.close()


def _table(found: Chaos) -> Table:
    table = Table("episodes under trouble", "")
    for name, value in asdict(found).items():
        table.add_row(name.replace("_", " "), str(value))
    return table
