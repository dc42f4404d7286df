"""The Tool Controller: what it shares, what it refuses and what it counts."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, NoReturn

import numpy as np
import pytest
from PIL import Image

from saccade.backends import Printed, Reader
from saccade.config import BackendChoice
from saccade.daemon_threads import OneThread
from saccade.errors import ToolCrashed, ToolError, ToolUnavailable
from saccade.geometry import Box, Frame
from saccade.image_store import ImageStore
from saccade.images import OPERATIONS, ImageView, root_view
from saccade.recipe_files import load_recipe
from saccade.tools import ToolBox, builtin_tools
from saccade.tools.running import (
    AT_ONCE_PX,
    Elsewhere,
    InThreads,
    MissedDeadline,
    Returned,
    missed_deadline,
)
from saccade.tools.spec import Tool, tool
from saccade.toolserver.controller import Controller
from saccade.toolserver.metrics import as_prometheus, as_rows
from saccade.toolserver.serving import _in_process, served
from saccade.types import Text, ToolCall

CROP, ZOOM = builtin_tools()["crop"], builtin_tools()["zoom"]
VIEW = root_view(Image.fromarray(np.arange(60 * 40 * 3, dtype=np.uint8).reshape(40, 60, 3)))


class Gate(Elsewhere):
    """A way that answers when it is let, and knows how many calls it holds."""

    def __init__(self, takes: int = 100) -> None:
        self.takes = takes
        self.open = asyncio.Event()
        self.now = self.most = self.asked = 0
        self.fails: Exception | None = None

    def capacity(self, name: str) -> int:
        return self.takes

    def health(self) -> Sequence[NoReturn]:
        return ()

    def close(self) -> None: ...

    async def run(
        self, tool: Tool, arguments: Mapping[str, Any], *, deadline_s: float
    ) -> list[Returned]:
        self.asked += 1
        self.now += 1
        self.most = max(self.most, self.now)
        await self.open.wait()
        self.now -= 1
        if self.fails is not None:
            raise self.fails
        return [Text(f"{tool.name} {arguments['box'].x0:g}")]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_equal_calls_under_way_share_one_answer_and_others_do_not() -> None:
    async def play() -> None:
        gate = Gate()
        controller = Controller(gate)

        def ask(tool: Tool, x: float) -> asyncio.Task[list[Returned]]:
            arguments = {"image": VIEW, "box": Box(x, 0, 50, 30)}
            return asyncio.create_task(controller.run(tool, arguments, deadline_s=5))

        tasks = [ask(CROP, 1), ask(CROP, 1), ask(CROP, 2), ask(ZOOM, 1), ask(CROP, 1)]
        await settle()
        assert gate.asked == 3
        gate.open.set()
        texts = [part.text for task in tasks for part in await task if isinstance(part, Text)]
        assert texts == ["crop 1", "crop 1", "crop 2", "zoom 1", "crop 1"]
        await ask(CROP, 1)
        assert gate.asked == 4  # what has ended is shared with nobody
        counts = controller.counts["crop"]
        assert (counts.calls, counts.shared, counts.ended) == (5, 2, 3)

    asyncio.run(play())


def test_a_caller_that_leaves_does_not_take_the_answer_from_those_that_share_it() -> None:
    async def play() -> None:
        gate = Gate()
        controller = Controller(gate)
        arguments = {"image": VIEW, "box": Box(1, 0, 50, 30)}
        first, second = (
            asyncio.create_task(controller.run(CROP, arguments, deadline_s=5)) for _ in range(2)
        )
        await settle()
        first.cancel()
        await settle()
        gate.open.set()
        assert await second == [Text("crop 1")]

    asyncio.run(play())


def test_what_nobody_waits_for_any_more_before_its_turn_is_not_run() -> None:
    async def play() -> None:
        gate = Gate(takes=1)
        controller = Controller(gate)

        def ask(x: float) -> asyncio.Task[list[Returned]]:
            arguments = {"image": VIEW, "box": Box(x, 0, 50, 30)}
            return asyncio.create_task(controller.run(CROP, arguments, deadline_s=5))

        running, left, shared, waiting = ask(1), ask(2), ask(3), ask(3)
        await settle()
        running.cancel()  # it has begun: it is held until it ends
        left.cancel()
        shared.cancel()
        await settle()
        again = ask(2)  # and not what was given up
        await settle()
        assert controller.counts["crop"].held == 3
        gate.open.set()
        assert await waiting == [Text("crop 3")]
        assert await again == [Text("crop 2")]
        assert gate.asked == 3
        assert controller.counts["crop"].held == 0

    asyncio.run(play())


def test_who_comes_late_to_a_call_that_misses_its_deadline_is_given_its_own_time() -> None:
    async def play() -> None:
        gate = Gate(takes=1)
        controller = Controller(gate)

        def ask() -> asyncio.Task[list[Returned]]:
            arguments = {"image": VIEW, "box": Box(1, 0, 50, 30)}
            return asyncio.create_task(controller.run(CROP, arguments, deadline_s=5))

        first, with_it = ask(), ask()
        await settle()
        late = ask()
        await settle()
        gate.fails = missed_deadline("crop", 5)
        gate.open.set()
        for task in (first, with_it):
            with pytest.raises(MissedDeadline):
                await task
        gate.fails = None
        assert await late == [Text("crop 1")]
        assert (gate.asked, controller.counts["crop"].calls) == (2, 3)

    asyncio.run(play())


def test_no_more_calls_run_than_the_way_takes_and_no_more_wait_than_is_allowed() -> None:
    async def play() -> None:
        gate = Gate(takes=2)
        controller = Controller(gate, waiting=3)
        tasks = [
            asyncio.create_task(
                controller.run(CROP, {"image": VIEW, "box": Box(x, 0, 50, 30)}, deadline_s=5)
            )
            for x in range(6)
        ]
        await settle()
        with pytest.raises(ToolUnavailable, match="5 calls of crop wait or run already"):
            await tasks[5]
        assert (controller.counts["crop"].running, controller.counts["crop"].waiting) == (2, 3)
        gate.open.set()
        assert len(await asyncio.gather(*tasks[:5])) == 5
        assert gate.most == 2
        counts = controller.counts["crop"]
        assert (counts.refused, counts.running, counts.waiting, counts.ended) == (1, 0, 0, 5)

    asyncio.run(play())


@pytest.mark.parametrize(
    ("error", "count"),
    [
        (ToolError("no"), "mistakes"),
        (ToolUnavailable("no"), "unavailable"),
        (ToolCrashed("no"), "crashed"),
    ],
)
def test_failures_are_told_and_counted_by_their_kind(error: Exception, count: str) -> None:
    async def play() -> None:
        gate = Gate()
        gate.open.set()
        gate.fails = error
        controller = Controller(gate)
        with pytest.raises(type(error)):
            await controller.run(CROP, {"image": VIEW, "box": Box(1, 0, 9, 9)}, deadline_s=5)
        [row] = as_rows(controller)
        assert {k: row[k] for k in ("mistakes", "unavailable", "crashed", "refused")} == {
            k: int(k == count) for k in ("mistakes", "unavailable", "crashed", "refused")
        }
        line = f'saccade_tool_failures_total{{kind="{count}",tool="crop"}} 1.0'
        assert line in as_prometheus(controller).decode()

    asyncio.run(play())


def test_results_stand_in_the_order_of_calls_and_independent_ones_run_side_by_side() -> None:
    async def play() -> None:
        gate = Gate()
        store = ImageStore()
        images = {"img_0": store.add(VIEW)}
        box = ToolBox([CROP], store=store, runner=Controller(gate))
        calls = [
            ToolCall(str(n), "crop", {"image": "img_0", "box": [10 - n, 0, 50, 30]})
            for n in range(5)
        ]
        running = asyncio.create_task(
            box.call_all(calls, images=images, frame=lambda r: Frame.pixels(r.width, r.height))
        )
        await settle()
        assert gate.now == 5
        gate.open.set()
        results = await running
        assert [r.call for r in results] == calls
        assert [r.parts for r in results] == [(Text(f"crop {10 - n}"),) for n in range(5)]

    asyncio.run(play())


def test_calls_of_a_run_that_was_broken_off_do_not_count_as_waiting_for_ever() -> None:
    controller = Controller(Gate(takes=1), waiting=2)

    async def broken_off() -> None:
        tasks = [
            asyncio.ensure_future(
                controller.run(CROP, {"image": VIEW, "box": Box(x, 0, 50, 30)}, deadline_s=5)
            )
            for x in range(3)
        ]
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)

    asyncio.run(broken_off())
    counts = controller.counts["crop"]
    assert (counts.held, counts.waiting, counts.running) == (0, 0, 0)


def test_in_process_it_gives_what_the_tool_gives() -> None:
    controller = Controller(InThreads())
    box = Box(3, 4, 20, 30)
    [part] = asyncio.run(controller.run(CROP, {"image": VIEW, "box": box}, deadline_s=5))
    assert isinstance(part, ImageView)
    assert part.ref == VIEW.crop(box).ref


# --- at once --------------------------------------------------------------------------------------


@tool(is_view=True)
def whose_thread(image: ImageView) -> str:
    """Tell in which thread it runs."""
    return threading.current_thread().name


@tool(is_view=True)
def enlarged(image: ImageView, side: Annotated[int, "of the square"]) -> ImageView:
    """Enlarge an image."""
    return image.resize(side, side)


def test_small_views_are_made_here_and_counted() -> None:
    controller = Controller(InThreads())
    here = threading.current_thread().name
    assert asyncio.run(controller.run(whose_thread, {"image": VIEW}, deadline_s=5)) == [Text(here)]
    other = replace(whose_thread, is_view=False)
    [elsewhere] = asyncio.run(controller.run(other, {"image": VIEW}, deadline_s=5))
    assert isinstance(elsewhere, Text)
    assert elsewhere.text != here
    counts = controller.counts["whose_thread"]
    assert (counts.calls, counts.ended, counts.held, counts.running) == (2, 2, 0, 0)
    far = {"image": VIEW, "box": Box(500, 0, 600, 9)}
    with pytest.raises(ToolError):
        asyncio.run(controller.run(CROP, far, deadline_s=5))
    counts = controller.counts["crop"]
    assert (counts.calls, counts.ended, counts.mistakes) == (1, 1, 1)


@pytest.mark.parametrize(("side", "is_here"), [(900, True), (1100, False)])
def test_pixels_of_large_views_are_made_in_a_thread(side: int, is_here: bool) -> None:
    made_in: list[str] = []
    resize = OPERATIONS["resize"]

    def spied(parents: Any, arguments: Any) -> Image.Image:
        made_in.append(threading.current_thread().name)
        return resize.make(parents, arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(OPERATIONS, "resize", resize._replace(make=spied))
        run = Controller(InThreads()).run(enlarged, {"image": VIEW, "side": side}, deadline_s=5)
        [view] = asyncio.run(run)
        assert isinstance(view, ImageView)
        _ = view.pixels
    assert (side * side <= AT_ONCE_PX) == is_here
    assert (made_in == [threading.current_thread().name]) == is_here


def test_what_a_view_derives_from_counts_with_it() -> None:
    large = VIEW.resize(1100, 1100)
    assert InThreads().at_once(CROP, {"image": large, "box": Box(0, 0, 9, 9)}) is None
    assert InThreads().at_once(CROP, {"image": VIEW, "box": Box(0, 0, 9, 9)}) is not None


def test_a_tool_that_reads_pixels_reads_few_of_them_here() -> None:
    look, box = builtin_tools()["look"], Box(0, 0, 9, 9)
    for side, is_here in ((900, True), (1100, False)):
        view = root_view(Image.new("RGB", (side, side)))
        assert (InThreads().at_once(look, {"image": view, "box": box}) is not None) == is_here
        assert InThreads().at_once(CROP, {"image": view, "box": box}) is not None


# --- calls that wait for each other ---------------------------------------------------------------


class OneByOne(Reader):
    """A tenth of a second for each picture, one after the other, as a model takes them."""

    name = "one-by-one"

    def __init__(self) -> None:
        super().__init__(BackendChoice())
        self.one = OneThread()
        self.worked = 0

    def read_anew(self, picture: Image.Image) -> list[Printed]:
        def work() -> list[Printed]:
            time.sleep(0.1)
            self.worked += 1
            return []

        return self.one.do(work)


def asked_at_once(reader: OneByOne, way: InThreads, count: int) -> list[str]:
    store = ImageStore()
    ocr = builtin_tools()["ocr"].with_backends({"reader": reader})
    box = ToolBox([ocr], store=store, deadline_s=0.5, runner=Controller(way))

    async def one(n: int) -> str:
        image = store.add(root_view(Image.new("RGB", (20 + n, 20))))
        call = ToolCall("c", "ocr", {"image": "img_0"})
        try:
            await box.call_all(
                [call], images={"img_0": image}, frame=lambda i: Frame.pixels(i.width, i.height)
            )
        except ToolUnavailable:
            return "unavailable"
        return "ok"

    async def all_of_them() -> list[str]:
        return list(await asyncio.gather(*(one(n) for n in range(count))))

    return asyncio.run(all_of_them())


def test_calls_that_wait_for_each_other_wait_before_their_deadlines_begin() -> None:
    reader = OneByOne()
    assert asked_at_once(reader, InThreads(["ocr"]), 12) == ["ok"] * 12
    assert reader.worked == 12


def test_what_was_abandoned_while_it_waited_is_never_begun() -> None:
    reader = OneByOne()
    said = asked_at_once(reader, InThreads(), 24)
    assert 3 <= said.count("ok") <= 6
    time.sleep(0.5)  # nothing is worked off behind the back of those who come next
    assert reader.worked <= said.count("ok") + 2


def test_a_recipe_lets_tools_that_read_wait_and_others_not() -> None:
    way = served(load_recipe(None, ["tools=[ocr, detect, crop, segment]"])).controller.way
    assert [way.capacity(n) for n in ("ocr", "detect", "crop", "segment")] == [2, 2, 64, 64]


def test_where_calls_share_a_pass_a_batch_runs_and_another_waits() -> None:
    backends = (
        *("detector.name=grounding-dino", "detector.batch=4"),
        *("pointer.name=vlm-points", "pointer.device=cuda"),
        *("segmenter.name=sam", "segmenter.device=cuda:1", "segmenter.batch=1"),
    )
    tools = ("ocr", "detect", "point", "segment", "crop")
    recipe = load_recipe(None, [f"tools=[{','.join(tools)}]", *(f"backends.{b}" for b in backends)])
    assert [_in_process(recipe).capacity(n) for n in tools] == [2, 8, 16, 64, 64]
