"""Ways to run tools, side by side: what a call costs beyond the operation that it asks for.

Invariant: every way makes the same pixels of the same calls, no two of which are equal, in one run
on one machine; processor time is counted on both sides. What is called `bare` is the operation
alone, and is what no way can do without.

Left out on purpose: back ends, whose own work is hundreds of times that of any way.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import httpx
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from saccade.benches.processes import cpu_s, descendants
from saccade.geometry import Box
from saccade.images import ImageView, root_view
from saccade.progress import progress
from saccade.tools import Tool, builtin_tools
from saccade.tools.running import InThreads, Returned
from saccade.toolserver.controller import Controller, Way
from saccade.toolserver.serving import TOKEN

__all__ = ["ToolCost", "bench_tools"]

SIZES = ((800, 600), (2400, 1800))
CALLERS = (1, 8, 32)
CALLS = 1_000
"""Of each row."""
ASK = """
import sys, time, urllib.request
while True:
    began = time.perf_counter()
    urllib.request.urlopen(sys.argv[1]).read()
    print(time.perf_counter() - began, flush=True)
    time.sleep(0.02)
"""
"""Asks a service how it is: a process of its own, which the callers' work does not hold up."""


@dataclass(frozen=True, slots=True)
class ToolCost:
    """One way, one tool, one size, so many callers."""

    way: str
    tool: str
    size: str
    callers: int
    calls_per_s: float
    p50_ms: float
    p95_ms: float
    client_cpu_ms: float
    """Of a call."""
    server_cpu_ms: float
    health_p95_ms: float | None
    """Of asking how the way is, while it works."""


def bench_tools(*, calls: int = CALLS, show: bool = True) -> list[ToolCost]:
    """A row for each way, tool, size and number of callers; Ray among them where it is installed.

    Of Ray the processor time of all its processes on this machine counts as the server's.
    """
    rows: list[ToolCost] = []
    ways = {"bare": _bare, "inprocess": _threads, "workers": _workers}
    if find_spec("ray") is not None:
        ways["ray"] = _ray
    with progress("rows", total=(1 + len(ways)) * 2 * len(SIZES) * len(CALLERS)) as bar:
        for name, opened in ways.items():
            with opened() as (way, pids):
                for row in _rows(name, way, pids, calls, None):
                    rows.append(row)
                    bar.advance()
        with _remote() as (way, pids, url):
            for row in _rows("remote", way, pids, calls, url):
                rows.append(row)
                bar.advance()
    if show:
        Console(width=120).print(_table(rows))
    return rows


def _rows(
    name: str, way: Way, pids: Sequence[int], calls: int, url: str | None
) -> Iterator[ToolCost]:
    for width, height in SIZES:
        values = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
        view = root_view(Image.fromarray(values))
        for tool in ("crop", "draw_horizontal_line"):
            for callers in CALLERS:
                yield _row(name, way, pids, view, tool, callers, calls=calls, url=url)


def _row(
    name: str,
    way: Way,
    pids: Sequence[int],
    view: ImageView,
    tool: str,
    callers: int,
    *,
    calls: int,
    url: str | None,
) -> ToolCost:
    arguments = [_arguments(tool, view, number) for number in range(calls)]
    function = builtin_tools()[tool]
    asyncio.run(way.run(function, _arguments(tool, view, calls), deadline_s=60))
    before, client = cpu_s(pids), time.process_time()
    with _asking(url) as health:
        began = time.perf_counter()
        latencies = asyncio.run(_load(way, function, arguments, callers))
        seconds = time.perf_counter() - began
    client, server = time.process_time() - client, cpu_s(pids) - before
    return ToolCost(
        way=name,
        tool=tool,
        size=f"{view.width} x {view.height}",
        callers=callers,
        calls_per_s=round(calls / seconds, 1),
        p50_ms=round(1000 * float(np.percentile(latencies, 50)), 3),
        p95_ms=round(1000 * float(np.percentile(latencies, 95)), 3),
        client_cpu_ms=round(1000 * client / calls, 3),
        server_cpu_ms=round(1000 * server / calls, 3),
        health_p95_ms=round(1000 * float(np.percentile(health, 95)), 3) if health else None,
    )


def _arguments(tool: str, view: ImageView, number: int) -> dict[str, Any]:
    """No two alike: equal calls share one answer."""
    if tool == "crop":
        x, y = number % 100, number // 100
        return {"image": view, "box": Box(x, y, x + 400, y + 300)}
    return {"image": view, "y": 0.5 + 0.5 * number}


async def _load(
    way: Way, tool: Tool, arguments: Sequence[dict[str, Any]], callers: int
) -> list[float]:
    """Seconds of each call, the pixels of its pictures made."""
    waiting = iter(arguments)
    latencies: list[float] = []

    async def caller() -> None:
        for given in waiting:
            began = time.perf_counter()
            for part in await way.run(tool, given, deadline_s=60):
                if isinstance(part, ImageView):
                    _ = part.pixels
            latencies.append(time.perf_counter() - began)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return latencies


@contextmanager
def _asking(url: str | None) -> Iterator[list[float]]:
    """Seconds of each question for health, filled in at the end; none without an address."""
    health: list[float] = []
    if url is None:
        yield health
        return
    asker = subprocess.Popen(
        [sys.executable, "-c", ASK, f"{url}/health"], stdout=subprocess.PIPE, text=True
    )
    try:
        yield health
    finally:
        asker.terminate()
        said, _ = asker.communicate()
        health += [float(line) for line in said.split()]


# --- ways -----------------------------------------------------------------------------------------


class _Bare(InThreads):
    """The operation alone: no thread, no deadline."""

    async def run(self, tool: Tool, arguments: Any, *, deadline_s: float) -> list[Returned]:
        return [tool(**arguments)]


@contextmanager
def _bare() -> Iterator[tuple[Way, list[int]]]:
    yield _Bare(), []


@contextmanager
def _threads() -> Iterator[tuple[Way, list[int]]]:
    yield _as_way(InThreads()), []


@contextmanager
def _workers() -> Iterator[tuple[Way, list[int]]]:
    from saccade.toolserver.workers import Workers

    way = Workers({"views": ("crop", "draw_horizontal_line")}, processes={"views": 2})
    way.start()
    try:
        yield _as_way(way), way.pids()
    finally:
        way.close()


@contextmanager
def _ray() -> Iterator[tuple[Way, list[int]]]:
    from saccade.toolserver.ray_tools import RayTools

    way = RayTools({"views": ("crop", "draw_horizontal_line")}, replicas={"views": 2})
    try:
        yield _as_way(way), descendants(os.getpid())
    finally:
        way.close()


@contextmanager
def _remote() -> Iterator[tuple[Way, list[int], str]]:
    from saccade.toolserver.remote import Remote

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url, token = f"http://127.0.0.1:{port}", "bench"
    program = "from saccade.cli import main; main()"
    with ExitStack() as stack:
        server = subprocess.Popen(
            [
                *(sys.executable, "-c", program, "serve", "tools", "--port", str(port)),
                *("--tools", "crop,draw_horizontal_line"),
            ],
            env=os.environ | {TOKEN: token},
            stderr=subprocess.DEVNULL,
        )
        stack.callback(server.wait)
        stack.callback(server.terminate)
        _wait_for(url)
        way = Remote([url], token=token)
        stack.callback(way.close)
        yield _as_way(way), [server.pid, *descendants(server.pid)], url


def _as_way(way: Way) -> Way:
    """With the controller before it, as in a run."""
    controller = Controller(way)

    class Controlled(InThreads):
        async def run(self, tool: Tool, arguments: Any, *, deadline_s: float) -> list[Returned]:
            return await controller.run(tool, arguments, deadline_s=deadline_s)

    return Controlled()


def _wait_for(url: str) -> None:
    for _ in range(300):
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.1)


def _table(rows: Sequence[ToolCost]) -> Table:
    table = Table(*(name.replace("_", " ") for name in asdict(rows[0])))
    for row in rows:
        table.add_row(*("–" if v is None else str(v) for v in asdict(row).values()))
    return table
