"""Tools in worker processes: the same results as in this process, whatever happens to them."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import troublesome_tools
from saccade.errors import RecipeError, ToolCrashed, ToolError, ToolUnavailable
from saccade.geometry import Box, Point
from saccade.image_store import ImageStore
from saccade.images import ImageView, root_view
from saccade.tools import builtin_tools
from saccade.tools.running import InThreads, MissedDeadline, Returned
from saccade.toolserver import in_child
from saccade.toolserver.shared_pictures import SharedPictures, picture_in
from saccade.toolserver.wire import parts_from_json, parts_to_json
from saccade.toolserver.workers import TRIES, Workers
from saccade.types import Text

TOOLS = builtin_tools() | {t.name: t for t in troublesome_tools.ALL}
GROUPS = {"views": ["crop", "zoom", "rotate", "compare", "measure", "draw_horizontal_line"]}
TROUBLE = {"trouble": [t.name for t in troublesome_tools.ALL]}


def noise(seed: int = 0, width: int = 60, height: int = 40) -> ImageView:
    values = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return root_view(Image.fromarray(values))


@pytest.fixture(scope="module")
def views() -> Iterator[Workers]:
    workers = Workers(GROUPS, processes={"views": 2})
    yield workers
    workers.close()


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> Iterator[Workers]:
    monkeypatch.setattr("saccade.toolserver.in_child.start", troublesome_tools.start)
    workers = Workers(TROUBLE, memory_mb=1500)
    yield workers
    workers.close()


def run(way: Any, name: str, deadline_s: float = 20, **arguments: Any) -> list[Returned]:
    found: list[Returned] = asyncio.run(way.run(TOOLS[name], arguments, deadline_s=deadline_s))
    return found


CALLS = [
    ("crop", {"image": noise(), "box": Box(3, 4, 30, 20)}),
    ("crop", {"image": noise().crop(Box(5, 5, 50, 35)), "box": Box(3, 4, 30, 20)}),
    ("rotate", {"image": noise(), "degrees": 30.0}),
    ("draw_horizontal_line", {"image": noise(), "y": 12.0}),
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


@pytest.mark.parametrize(
    ("name", "arguments"), CALLS, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CALLS)]
)
def test_a_worker_gives_what_a_thread_gives(
    views: Workers, name: str, arguments: dict[str, Any]
) -> None:
    here, there = run(InThreads(), name, **arguments), run(views, name, **arguments)
    assert len(here) == len(there)
    for a, b in zip(here, there, strict=True):
        if isinstance(a, ImageView):
            assert isinstance(b, ImageView)
            assert a.ref == b.ref
            assert a.pixels.tobytes() == b.pixels.tobytes()
        else:
            assert a == b


def test_a_picture_that_a_tool_made_itself_travels_and_what_derives_from_it_keeps_its_lineage(
    trouble: Workers,
) -> None:
    here, there = run(InThreads(), "painter", image=noise()), run(trouble, "painter", image=noise())
    for a, b in zip(here[:3], there[:3], strict=True):
        assert isinstance(a, ImageView)
        assert isinstance(b, ImageView)
        assert a.ref == b.ref
        assert a.pixels.tobytes() == b.pixels.tobytes()
    store = ImageStore()
    assert isinstance(there[1], ImageView)
    assert store.view(store.add(there[1])).pixels.size == (30, 50)


def test_of_the_answer_only_pictures_travel_that_the_caller_does_not_have() -> None:
    view = noise()
    parts = [view.crop(Box(0, 0, 9, 9)), view, *TOOLS["painter"](view)[:1]]
    value, new = parts_to_json(parts, {view.ref.key: view})
    assert list(new) == [parts[2].ref.key]
    again = parts_from_json(value, {view.ref.key: view}, new)
    assert [p.ref for p in again if isinstance(p, ImageView)] == [p.ref for p in parts]


def test_mistakes_and_crashes_come_back_as_what_they_are(trouble: Workers) -> None:
    with pytest.raises(ToolError, match=r"^Not like that; like this\.$"):
        run(trouble, "refuser")
    with pytest.raises(ToolCrashed, match="Tool crasher crashed: ZeroDivisionError: a bug"):
        run(trouble, "crasher")


def test_errors_of_a_kind_of_their_own_are_told_as_what_they_are_to_us(trouble: Workers) -> None:
    with pytest.raises(ToolError, match="particular about this"):
        run(trouble, "particular")


def test_a_call_whose_worker_is_killed_is_done_again(trouble: Workers) -> None:
    pid = int(run(trouble, "who")[0].text)  # type: ignore[union-attr]

    async def killed() -> list[Returned]:
        calling = asyncio.create_task(
            trouble.run(TOOLS["sleeper"], {"seconds": 0.5}, deadline_s=10)
        )
        await asyncio.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        return await calling

    started = time.monotonic()
    [said] = asyncio.run(killed())
    assert isinstance(said, Text)
    assert said.text.startswith("slept 0.5 s in ")
    assert str(pid) not in said.text
    assert time.monotonic() - started < 3
    assert trouble.health()[0].died == 1


def test_a_call_that_kills_every_worker_is_our_failure_and_the_next_call_is_served(
    trouble: Workers,
) -> None:
    with pytest.raises(ToolCrashed, match=f"suicide was tried {TRIES} times and its worker died"):
        run(trouble, "suicide", image=noise())
    assert run(trouble, "who")


@pytest.mark.parametrize(("name", "arguments"), [("sleeper", {"seconds": 60.0}), ("frozen", {})])
def test_a_hung_call_is_killed_at_its_deadline_and_the_next_one_is_served(
    trouble: Workers, name: str, arguments: dict[str, Any]
) -> None:
    before = run(trouble, "who")
    started = time.monotonic()
    with pytest.raises(ToolUnavailable, match=f"Tool {name} missed its deadline of 0.5 s"):
        run(trouble, name, deadline_s=0.5, **arguments)
    assert run(trouble, "who") != before
    assert time.monotonic() - started < 5
    assert trouble.health()[0].killed == 1


def test_a_call_that_waited_too_long_leaves_the_workers_alone(trouble: Workers) -> None:
    """All workers of the group were killed, whatever they were doing."""
    [before] = run(trouble, "who")

    async def two() -> tuple[list[Returned], float]:
        calling = asyncio.create_task(
            trouble.run(TOOLS["sleeper"], {"seconds": 1.5}, deadline_s=20)
        )
        await asyncio.sleep(0.1)
        began = time.monotonic()
        with pytest.raises(MissedDeadline, match=r"deadline of 0\.3 s"):
            await trouble.run(TOOLS["sleeper"], {"seconds": 30.0}, deadline_s=0.3)
        waited = time.monotonic() - began
        return await calling, waited

    [said], waited = asyncio.run(two())
    assert isinstance(said, Text)
    assert said.text.startswith("slept 1.5 s")
    assert waited < 1.0
    assert run(trouble, "who") == [before]
    [health] = trouble.health()
    assert (health.died, health.killed) == (0, 0)


def test_a_call_that_began_late_ends_at_its_deadline_all_the_same(trouble: Workers) -> None:
    [before] = run(trouble, "who")

    async def two() -> float:
        first = asyncio.create_task(trouble.run(TOOLS["sleeper"], {"seconds": 1.0}, deadline_s=20))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        with pytest.raises(MissedDeadline):
            # it would end half a second after its deadline, and had 3 s from when it began
            await trouble.run(TOOLS["sleeper"], {"seconds": 2.5}, deadline_s=3.0)
        waited = time.monotonic() - began
        assert await first
        return waited

    assert asyncio.run(two()) < 3.9
    assert run(trouble, "who") != [before]
    assert trouble.health()[0].killed == 1


def test_a_pool_that_takes_up_nothing_is_made_anew(
    trouble: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    [before] = run(trouble, "who")
    [group] = set(trouble._groups.values())
    monkeypatch.setattr(group.pool, "schedule", lambda *_, **__: Future())
    with pytest.raises(MissedDeadline):
        run(trouble, "who", deadline_s=0.2)
    assert group.pool is not None  # its workers may only be starting
    assert group.health.killed == 0
    group.starts_s = 0.0
    with pytest.raises(MissedDeadline):
        run(trouble, "who", deadline_s=0.2)
    assert group.health.killed == 1
    assert run(trouble, "who") != [before]


def test_a_tool_that_eats_all_memory_is_named_with_its_limit(trouble: Workers) -> None:
    assert run(trouble, "glutton", megabytes=10)
    with pytest.raises(ToolCrashed, match="died of 1500 MB of memory, which is its limit"):
        run(trouble, "glutton", megabytes=4000)
    assert run(trouble, "glutton", megabytes=10)


@pytest.mark.parametrize("library", ["cv2", "torch", "loader"])
def test_libraries_that_tell_of_it_in_their_own_way_are_understood(
    trouble: Workers, library: str
) -> None:
    with pytest.raises(ToolCrashed, match="died of 1500 MB of memory, which is its limit"):
        run(trouble, "native_glutton", deadline_s=60, library=library)
    with pytest.raises(ToolCrashed, match="memory was fine"):
        run(trouble, "native_glutton", library="none")


def test_a_worker_that_can_not_make_its_tools_says_why() -> None:
    workers = Workers({"none": ["no_such_tool"]})
    crop = TOOLS["crop"]
    workers._groups["crop"] = workers._groups["no_such_tool"]
    with pytest.raises(ToolUnavailable, match="No tool named 'no_such_tool'"):
        asyncio.run(workers.run(crop, {"image": noise(), "box": Box(0, 0, 9, 9)}, deadline_s=20))
    workers.close()


def test_a_start_that_fails_says_why_and_leaves_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Workers(GROUPS | {"none": ["no_such_tool"]})
    with pytest.raises(RecipeError, match="No tool named 'no_such_tool'"):
        workers.start()
    assert all(group.pool is None for group in workers._groups.values())
    monkeypatch.setattr("saccade.toolserver.in_child.start", troublesome_tools.stillborn)
    workers = Workers(GROUPS, memory_mb=77)
    began = time.monotonic()
    with pytest.raises(ToolUnavailable, match=r"views do not start: .* gives each 77 MB"):
        workers.start()
    assert time.monotonic() - began < 30


# --- health ---------------------------------------------------------------------------------------


def answers_in(workers: Workers, seconds: float, what: bool) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if workers.health()[0].answers is what:
            return True
        time.sleep(0.02)
    return False


def test_the_health_of_a_group_is_whether_its_workers_answer(
    trouble: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade.toolserver.workers.LOOK_S", 0.2)
    monkeypatch.setattr("saccade.toolserver.workers.ANSWER_S", 0.5)
    assert trouble.health()[0].answers is None
    trouble.start()
    [health] = trouble.health()
    assert health.answers is True
    [pid] = trouble.pids()
    os.kill(pid, signal.SIGSTOP)  # with nothing to do: no call meets it
    began = time.monotonic()
    trouble.health()
    assert time.monotonic() - began < 0.1
    assert answers_in(trouble, 10, False)
    os.kill(pid, signal.SIGCONT)
    assert answers_in(trouble, 10, True)
    with pytest.raises(ToolUnavailable):
        run(trouble, "sleeper", deadline_s=0.3, seconds=60.0)
    assert not health.answers


@pytest.mark.skipif(sys.platform != "linux", reason="others do not keep this limit")
def test_the_processes_of_a_group_share_the_processors_that_it_is_given() -> None:
    groups = {"one": ["crop"], "two": ["zoom"], "all": ["measure"]}
    workers = Workers(groups, processes={"one": 2}, cpus={"one": 1, "two": 1})
    try:
        mine = os.sched_getaffinity(0)
        may: dict[str, set[frozenset[int]]] = {}
        for name, group in workers._groups.items():
            asked = [group.ready_pool().schedule(in_child.ready, args=(0.05,)) for _ in range(4)]
            pids = {future.result(timeout=60).pid for future in asked}
            may[name] = {frozenset(os.sched_getaffinity(pid)) for pid in pids}
        [one], [two] = may["crop"], may["zoom"]  # both processes of a group have the same ones
        assert (len(one), len(two)) == (1, 1)
        assert len(mine) == 1 or one != two
        assert may["measure"] == {frozenset(mine)}
    finally:
        workers.close()


def test_a_tool_in_two_groups_is_refused() -> None:
    with pytest.raises(RecipeError, match="Tool crop is in two groups"):
        Workers({"a": ["crop"], "b": ["zoom", "crop"]})


def test_pictures_are_taken_away_and_brought_again_as_room_is_needed() -> None:
    workers = Workers(GROUPS)
    workers._pictures._most_bytes = 3 * 60 * 40 * 2
    crop = TOOLS["crop"]

    async def many() -> None:
        for number in [*range(6), *range(6)]:
            view = noise(number)
            [part] = await workers.run(crop, {"image": view, "box": Box(0, 0, 9, 9)}, deadline_s=20)
            assert isinstance(part, ImageView)
            assert part.pixels.tobytes() == view.crop(Box(0, 0, 9, 9)).pixels.tobytes()
            assert len(workers._pictures._blocks) <= 2

    asyncio.run(many())
    workers.close()


def slow_view(go: threading.Event, made: list[int]) -> ImageView:
    """One whose pixels are made when `go` is set."""
    view = noise(5)

    def pixels() -> Image.Image:
        go.wait(10)
        made.append(1)
        return view.pixels

    return ImageView(view.ref, _source=pixels)


def test_while_a_picture_is_made_others_are_held_at_once_and_it_is_made_once() -> None:
    """An event loop stood still for as long as pixels were made."""
    go = threading.Event()
    made: list[int] = []
    pictures, other, slow = SharedPictures(), noise(6), slow_view(go, made)
    pictures.hold(other)
    with ThreadPoolExecutor(3) as threads:
        holding = [threads.submit(pictures.hold, slow) for _ in range(3)]
        time.sleep(0.05)
        assert pictures.held(slow) is None
        assert pictures.held(other) is not None
        pictures.let_go(other)
        assert not any(h.done() for h in holding)
        go.set()
        [block] = {h.result(timeout=10) for h in holding}
    assert made == [1]
    assert pictures._in_use[slow.ref.key] == 3
    assert picture_in(block).tobytes() == noise(5).pixels.tobytes()
    pictures.close()


def test_a_picture_that_can_not_be_made_is_no_trap_for_the_next() -> None:
    view = noise(5)

    def fail() -> Image.Image:
        raise ValueError("no pixels")

    pictures = SharedPictures()
    with pytest.raises(ValueError, match="no pixels"):
        pictures.hold(ImageView(view.ref, _source=fail))
    assert pictures.hold(view)
    pictures.close()


def test_the_deadline_holds_while_pixels_are_made_and_they_are_let_go_later() -> None:
    workers, go = Workers(GROUPS), threading.Event()
    slow = slow_view(go, [])

    async def late() -> None:
        with pytest.raises(MissedDeadline, match=r"Tool crop missed its deadline of 0\.2 s"):
            await workers.run(
                TOOLS["crop"], {"image": slow, "box": Box(0, 0, 9, 9)}, deadline_s=0.2
            )
        go.set()
        ends = time.monotonic() + 10
        while slow.ref.key not in workers._pictures._blocks or workers._pictures._in_use:
            assert time.monotonic() < ends
            await asyncio.sleep(0.01)

    asyncio.run(late())
    workers.close()


def test_nothing_is_left_in_shared_memory_and_no_process_after_the_end() -> None:
    before = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").exists() else set()
    workers = Workers(TROUBLE | GROUPS)
    view = noise(9)
    asyncio.run(workers.run(TOOLS["crop"], {"image": view, "box": Box(0, 0, 9, 9)}, deadline_s=20))
    workers.close()
    after = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").exists() else set()
    assert not {p for p in after - before if p.name.startswith("saccade-pictures-")}
    names = [t.name for t in threading.enumerate()]
    assert not [n for n in names if "pebble" in n.lower()], names


def test_pictures_that_nobody_uses_make_room_where_shared_memory_is_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, room = Path.write_bytes, 40_000  # of /dev/shm

    def write(path: Path, data: bytes) -> int:
        left = room - sum(file.stat().st_size for file in path.parent.iterdir())
        if len(data) > left:
            real(path, data[: max(0, left)])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    pictures = SharedPictures()
    views = [root_view(Image.new("RGB", (100, 50), (n, 0, 0))) for n in range(4)]  # of 15,000
    for view in views:
        block = pictures.hold(view)
        assert picture_in(block).tobytes() == view.pixels.tobytes()
        pictures.let_go(view)
    pictures.hold(views[0])
    pictures.hold(views[1])
    with pytest.raises(ToolUnavailable, match="No shared memory for a picture of 100 x 50"):
        pictures.hold(views[2])
    pictures.let_go(views[0])
    assert picture_in(pictures.hold(views[2])).tobytes() == views[2].pixels.tobytes()
    pictures.close()
