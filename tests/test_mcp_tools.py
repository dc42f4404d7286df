"""Tools of a foreign MCP server: discovered, called, and used in an episode as our own are."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from saccade.config import McpConfig, Recipe
from saccade.dialects import dialect
from saccade.engines import Sampling
from saccade.engines.scripted import ScriptedEngine
from saccade.errors import RecipeError, ToolError, ToolUnavailable
from saccade.geometry import Frame
from saccade.image_store import ImageStore
from saccade.images import ImageView, root_view
from saccade.rollout import Limits, Setup, run_episode
from saccade.tools import ToolBox
from saccade.tools.running import Returned
from saccade.toolserver.mcp_tools import McpTools
from saccade.toolserver.serving import served
from saccade.types import Sample, StopReason, Text

SERVER = (sys.executable, str(Path(__file__).with_name("foreign_mcp_server.py")))
DARKROOM = McpConfig(command=SERVER, images={"negative": ("photo",), "broken": ("photo",)})


def noise() -> ImageView:
    values = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    return root_view(Image.fromarray(values))


@pytest.fixture(scope="module")
def foreign() -> Iterator[McpTools]:
    made = McpTools({"darkroom": DARKROOM})
    yield made
    made.close()


def run(foreign: McpTools, name: str, deadline_s: float = 20, **arguments: Any) -> list[Returned]:
    [tool] = foreign.tools([name])
    return asyncio.run(foreign.run(tool, arguments, deadline_s=deadline_s))


def test_its_schema_becomes_what_the_model_is_told(foreign: McpTools) -> None:
    [tool] = foreign.tools(["negative"])
    assert tool.spec.description == "Turn a photo into its negative."
    assert {p.name: p.kind for p in tool.parameters} == {
        "photo": "image",
        "strength": "choice",
        "note": "text",
    }
    assert tool.spec.schema["required"] == ["photo"]
    assert tool.spec.schema["properties"]["strength"]["enum"] == ["full", "half"]


def test_a_picture_goes_there_and_another_comes_back(foreign: McpTools) -> None:
    view = noise()
    text, picture = run(foreign, "negative", photo=view, strength="half")
    assert text == Text("half negative of 60 x 40")
    assert isinstance(picture, ImageView)
    assert picture.ref.is_root
    assert picture.pixels.tobytes() == ImageOps.invert(view.pixels).tobytes()


def test_what_the_server_refuses_is_shown_to_the_model(foreign: McpTools) -> None:
    with pytest.raises(ToolError, match="broken"):
        run(foreign, "broken", photo=noise())


def test_a_late_answer_is_not_waited_for_and_the_next_call_is_served(foreign: McpTools) -> None:
    began = time.monotonic()
    with pytest.raises(ToolUnavailable, match=r"sleepy missed its deadline of 0\.3 s"):
        run(foreign, "sleepy", deadline_s=0.3, seconds=1.0)
    assert time.monotonic() - began < 5
    assert run(foreign, "sleepy", seconds=0.0) == [Text("awake")]


def test_a_server_that_dies_is_our_failure_and_is_started_again(foreign: McpTools) -> None:
    with pytest.raises(ToolUnavailable, match="MCP server darkroom is gone"):
        run(foreign, "die")
    assert run(foreign, "sleepy", seconds=0.0) == [Text("awake")]


def test_a_tool_that_is_offered_by_none_or_can_not_be_written_is_refused(
    foreign: McpTools,
) -> None:
    with pytest.raises(RecipeError, match=r"No MCP server offers 'fly'\. They offer: broken, die"):
        foreign.tools(["fly"])
    with pytest.raises(RecipeError, match="'nested' needs 'settings', which is of a kind"):
        foreign.tools(["nested"])


def test_a_server_that_is_not_there_is_told() -> None:
    made = McpTools({"none": McpConfig(command=(sys.executable, "-c", "raise SystemExit(1)"))})
    with pytest.raises(ToolUnavailable, match="MCP server none can't be reached"):
        made.tools(["x"])
    made.close()


def test_a_server_needs_one_place() -> None:
    with pytest.raises(ValueError, match="needs either url or command"):
        McpConfig()


def test_an_episode_uses_it_beside_our_own_tools() -> None:
    recipe = Recipe(tools=("crop", "negative"), mcp={"darkroom": DARKROOM})
    tools, controller = served(recipe)
    store = ImageStore()
    image = store.add(noise())

    def act(name: str, **arguments: Any) -> str:
        return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"

    lines = [
        act("negative", photo="img_0") + act("crop", image="img_0", box=[0, 0, 500, 500]),
        act("crop", image="img_1", box=[0, 0, 500, 500]),
        act("terminate", ans="42"),
    ]
    setup = Setup(
        engine=ScriptedEngine({"s": lines}, ids=False),
        dialect=dialect("hermes", style="schema"),
        store=store,
        toolbox=ToolBox(tools, store=store, deadline_s=20, runner=controller),
        frame=lambda ref: Frame.thousand(ref.width, ref.height),
        limits=Limits(max_turns=4, max_tokens_per_turn=400, max_context_tokens=8000),
    )
    sample = Sample("s", "What?", (image,), "42")
    episode = asyncio.run(run_episode(sample, setup, sampling=Sampling(max_tokens=400)))
    controller.close()
    assert episode.stop is StopReason.ANSWERED, episode.error
    assert not any(r.failed for r in episode.results)
    negative, part = episode.images["img_1"], episode.images["img_3"]
    assert part.roots() == (negative,)
    pixels = ImageOps.invert(noise().pixels).crop((0, 0, 30, 20))
    assert store.view(part).pixels.tobytes() == pixels.tobytes()
    assert controller.counts["negative"].calls == 1
