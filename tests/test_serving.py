"""Services as they are started: processes that are flooded, and told to end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from hostile_requests import AUTH, GOOD, TOKEN, Peak, answer_all, free_port, noise, png
from saccade.benches.processes import children, command, descendants
from saccade.config import Recipe
from saccade.errors import RecipeError
from saccade.toolserver import serving
from saccade.toolserver.shared_pictures import PREFIX

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
TOOLS = "crop,rotate,measure,draw_horizontal_line"


class Process(NamedTuple):
    url: str
    server: subprocess.Popen[str]


@contextmanager
def served(*arguments: str, kind: str = "tools") -> Iterator[Process]:
    """A service in a process of its own."""
    port = free_port()
    program = "from saccade.cli import main; main()"
    words = ["serve", kind, *arguments, "--port", str(port), "--tools", TOOLS]
    server = subprocess.Popen(
        [sys.executable, "-c", program, *words],
        env=os.environ | {"SACCADE_TOKEN": TOKEN},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                httpx.get(f"{url}/health")
            except httpx.TransportError:
                time.sleep(0.1)
            else:
                break
        yield Process(url, server)
    finally:
        server.kill()
        server.communicate()


@pytest.fixture(scope="module")
def running() -> Iterator[Process]:
    with served() as made:
        yield made


def test_no_hostile_request_ends_a_worker_for_good(running: Process) -> None:
    answer_all(running.url, running.server.pid)
    assert httpx.get(f"{running.url}/health").json() == {"alive": True, "groups": {"others": True}}
    found = httpx.get(f"{running.url}/status", headers=AUTH).json()
    [group] = found["workers"]
    assert (group["died"], group["killed"]) == (0, 0)
    assert group["answered"] > 0


def test_many_large_pictures_at_the_same_time_take_bounded_memory(running: Process) -> None:
    """40 of them took a server from 108 to 1,308 MB."""
    grain = noise(0, 3000, 2000).pixels.tobytes()
    peak = Peak(running.server.pid)
    before = peak.mb

    async def sent(client: httpx.AsyncClient, number: int) -> int:
        answer = await client.post(
            f"{running.url}/pictures?width=3000&height=2000",
            content=bytes([number]) + grain[1:],
            headers=AUTH | {"Content-Type": "application/x-rgb"},
        )
        if answer.status_code == 503:
            assert answer.headers["retry-after"] == "1"
            assert "No room for 18000000 bytes" in answer.json()["error"]
        return answer.status_code

    async def flood() -> list[int]:
        async with httpx.AsyncClient(timeout=120) as client:
            return [*await asyncio.gather(*(sent(client, n) for n in range(20)))]

    with peak.watched():
        codes = asyncio.run(flood())
    assert {*codes} <= {200, 503}
    assert 200 in codes
    assert peak.mb - before < 200
    assert httpx.post(f"{running.url}/pictures", content=GOOD, headers=AUTH).status_code == 200


def test_many_large_pictures_are_fetched_in_bounded_memory(running: Process) -> None:
    def sent() -> str:
        url = f"{running.url}/pictures?width=3000&height=2000"
        headers = AUTH | {"Content-Type": "application/x-rgb"}
        answer = httpx.post(url, content=bytes(18_000_000), headers=headers, timeout=60)
        name: str = answer.json()["image"]
        return name

    peak, headers = Peak(running.server.pid), AUTH | {"Accept": "application/x-rgb"}
    url, before = f"{running.url}/pictures/{sent()}", peak.mb

    async def fetched(client: httpx.AsyncClient) -> int:
        async with client.stream("GET", url, headers=headers) as answer:
            await asyncio.sleep(0.5)  # who takes nothing makes the server hold everything
            size = 0
            async for piece in answer.aiter_bytes():
                size += len(piece)
        assert size == (18_000_000 if answer.status_code == 200 else size)
        return answer.status_code

    async def flood() -> list[int]:
        async with httpx.AsyncClient(timeout=120) as client:
            return [*await asyncio.gather(*(fetched(client) for _ in range(20)))]

    with peak.watched():
        codes = asyncio.run(flood())
    assert {*codes} <= {200, 503}
    assert 200 in codes
    assert peak.mb - before < 200


def are_gone(pids: list[int]) -> bool:
    """Whether they end within a few seconds: two of them are helpers that see that we are gone."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if not any(command(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


# --- ends -----------------------------------------------------------------------------------------


def shared_by(pid: int) -> list[Path]:
    return [*Path("/dev/shm").glob(f"{PREFIX}{pid}-*")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", ["tools", "mcp"])
def test_a_service_that_is_told_to_end_takes_everything_with_it(
    kind: str, number: signal.Signals
) -> None:
    """Pictures stayed in shared memory, and semaphores with them: uvicorn ended the process before
    anybody else could end anything.
    """
    with served(*(["service.way=workers"] if kind == "mcp" else []), kind=kind) as (url, server):
        if kind == "tools":
            with httpx.Client(headers=AUTH) as client:
                name = client.post(f"{url}/pictures", content=png(noise())).json()["image"]
                body = {"image": name, "y": 3}
                answer = client.post(f"{url}/tools/draw_horizontal_line", json=body)
                assert answer.status_code == 200
            assert shared_by(server.pid)
        workers = descendants(server.pid)
        assert len(workers) >= 2
        server.send_signal(number)
        _, said = server.communicate(timeout=30)
        assert server.returncode == 0
        assert "leaked" not in said
        assert "Traceback" not in said
        assert not shared_by(server.pid)
        assert are_gone(workers)


HELLO = json.dumps(
    {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "tests", "version": "1"},
        },
    }
)


def test_a_service_of_standard_streams_ends_by_a_signal_too() -> None:
    program = "from saccade.cli import main; main()"
    words = ["serve", "mcp", "--stdio", "--tools", TOOLS]
    server = subprocess.Popen(
        [sys.executable, "-c", program, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(HELLO.encode() + b"\n")
        server.stdin.flush()
        assert b'"serverInfo"' in server.stdout.readline()  # it waits for the next line now
        workers = descendants(server.pid)
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=30) == 0
        assert are_gone(workers)
    finally:
        server.kill()
        server.communicate()


# --- starts ---------------------------------------------------------------------------------------


def test_a_back_end_that_can_not_be_made_is_told_at_the_start_whoever_runs_the_tools() -> None:
    """Workers started without a word, said that they lived, and failed every call."""
    before = descendants(os.getpid())
    wrong: dict[str, Any] = {"tools": ["crop", "ocr"], "backends": {"reader": "no-such-reader"}}
    said = []
    for way in ("inprocess", "workers"):
        recipe = Recipe.model_validate(wrong | {"service": {"way": way}})
        with pytest.raises(RecipeError) as told:
            serving.served(recipe)
        said.append(str(told.value))
    assert "no-such-reader" in said[0]
    assert said[0] == said[1]
    servers = [pid for pid in descendants(os.getpid()) if pid not in before]
    assert not [worker for pid in servers for worker in children(pid) if command(worker)]
