"""Tools of a foreign MCP server: discovered, called, and used in an episode as our own are."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mcp_types as types
import numpy as np
import pytest
from mcp.server.lowlevel.server import Server
from PIL import Image, ImageOps

from saccade.config import McpConfig, Recipe
from saccade.dialects import dialect
from saccade.engines import Sampling
from saccade.engines.scripted import ScriptedEngine
from saccade.errors import RecipeError, ToolCrashed, ToolError, ToolUnavailable
from saccade.geometry import Frame
from saccade.image_store import ImageStore
from saccade.images import ImageView, root_view
from saccade.rollout import Limits, Setup, run_episode
from saccade.tools import ToolBox
from saccade.tools.running import Returned
from saccade.toolserver import mcp_tools, serving
from saccade.toolserver.mcp_tools import MOST_CHARACTERS, MOST_SAID, McpTools
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


def run(foreign: McpTools, name: str, deadline_s: float = 90, **arguments: Any) -> list[Returned]:
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


def test_a_long_error_is_cut_with_a_note(foreign: McpTools) -> None:
    """One of 200,000 characters became an observation as long."""
    with pytest.raises(ToolError) as error:
        run(foreign, "shout", count=200_000)
    said = str(error.value)
    assert len(said) < MOST_SAID + 50
    assert "zzz ... (cut: " in said
    cut = int(said.partition("(cut: ")[2].partition(" ")[0])
    assert said.index(" ... (cut") + cut > 200_000
    with pytest.raises(ToolError, match=r"zzz$"):
        run(foreign, "shout", count=500)


@pytest.mark.parametrize(
    ("asked", "texts", "pictures", "note"),
    [
        ((8, 2, 9), 2, 8, None),
        ((300, 1, 9), 1, 8, "292 more pictures were left out: ask for less."),
        ((0, 2_000, 9), 60, 0, "1940 more texts were left out: ask for less."),
        ((9, 61, 9), 60, 8, "1 more texts and 1 more pictures were left out: ask for less."),
        ((1, 3, 15_000), 2, 1, "1 more texts were left out: ask for less."),
    ],
)
def test_of_a_long_answer_the_first_is_taken_and_the_rest_is_counted(
    foreign: McpTools,
    asked: tuple[int, int, int],
    texts: int,
    pictures: int,
    note: str | None,
) -> None:
    """One of 300 pictures put 300 images into an episode in one turn."""
    parts = run(foreign, "album", pictures=asked[0], texts=asked[1], letters=asked[2])
    if note is not None:
        assert parts.pop() == Text(note)
    assert [isinstance(p, Text) for p in parts] == [True] * texts + [False] * pictures
    written = [p.text for p in parts if isinstance(p, Text)]
    assert sum(len(text.partition(" ... (cut")[0]) for text in written) <= MOST_CHARACTERS


def test_a_text_that_is_too_long_ends_with_how_much_was_cut(foreign: McpTools) -> None:
    [text] = run(foreign, "album", pictures=0, texts=1, letters=200_000)
    assert isinstance(text, Text)
    assert text.text == "w" * MOST_CHARACTERS + " ... (cut: 180000 more characters)"


def test_of_large_pictures_no_more_are_taken_than_one_image_may_be_large(
    foreign: McpTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_tools, "MOST_PIXELS", 70)  # two of 6 x 5, and half a third
    *pictures, note = run(foreign, "album", pictures=4, texts=0, letters=0)
    assert [p.ref.width for p in pictures if isinstance(p, ImageView)] == [6, 6]
    assert note == Text("2 more pictures were left out: ask for less.")


def test_long_descriptions_are_cut_before_a_model_is_told(foreign: McpTools) -> None:
    [tool] = foreign.tools(["wordy"])
    assert len(tool.spec.description) < MOST_SAID + 50
    assert tool.spec.description.endswith("more characters)")
    assert len(tool.parameters[0].description) < MOST_SAID + 50


def test_a_list_of_tools_that_never_ends_is_read_no_further_than_its_first_pages() -> None:
    made = McpTools({"endless": DARKROOM})
    pages = 0

    class Page(NamedTuple):
        tools: list[Any]
        next_cursor: str

    async def page(what: str, ask: Any) -> Page:
        nonlocal pages
        pages += 1
        return Page([], "more")

    made._servers["endless"]._asked = page  # type: ignore[method-assign]
    with pytest.raises(RecipeError, match="No MCP server offers 'fly'"):
        made.tools(["fly"])
    assert pages == 100
    made.close()


def test_a_late_answer_is_not_waited_for_and_the_next_call_is_served(foreign: McpTools) -> None:
    [sleepy] = foreign.tools(["sleepy"])  # its server is there from now on
    began = time.monotonic()
    with pytest.raises(ToolUnavailable, match=r"sleepy missed its deadline of 0\.3 s"):
        asyncio.run(foreign.run(sleepy, {"seconds": 20.0}, deadline_s=0.3))
    assert time.monotonic() - began < 15
    assert run(foreign, "sleepy", seconds=0.0) == [Text("awake")]


def test_a_server_that_dies_is_our_failure_and_is_started_again(foreign: McpTools) -> None:
    with pytest.raises(ToolUnavailable, match="MCP server darkroom is gone"):
        run(foreign, "die")
    assert run(foreign, "sleepy", seconds=0.0) == [Text("awake")]


def test_calls_under_way_at_a_server_that_dies_are_done_by_the_next_one(
    foreign: McpTools, tmp_path: Path
) -> None:
    slow, mortal = foreign.tools(["sleepy", "die_once"])

    async def all_of_them() -> list[list[Returned]]:
        sleeping = [
            asyncio.create_task(foreign.run(slow, {"seconds": 1.0 + n / 10}, deadline_s=90))
            for n in range(4)
        ]
        await asyncio.sleep(0.4)
        died = await foreign.run(mortal, {"trace": str(tmp_path / "trace")}, deadline_s=90)
        return [died, *await asyncio.gather(*sleeping)]

    assert asyncio.run(all_of_them()) == [[Text("alive")], *[[Text("awake")]] * 4]


def test_a_server_that_hangs_is_started_again(
    foreign: McpTools, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mcp_tools, "PING_S", 0.2)
    assert run(foreign, "sleepy", seconds=0.0) == [Text("awake")]
    with pytest.raises(ToolUnavailable, match=r"hang missed its deadline of 0\.3 s"):
        run(foreign, "hang", deadline_s=0.3, seconds=60.0)
    time.sleep(0.5)
    assert run(foreign, "sleepy", seconds=0.0) == [Text("awake")]


MUTE = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    answer = {"jsonrpc": "2.0", "id": asked.get("id")}
    if asked.get("method") == "initialize":
        version = asked["params"]["protocolVersion"]
        me = {"name": "mute", "version": "1"}
        told = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": me}
        print(json.dumps(answer | {"result": told}), flush=True)
    elif asked.get("method") == "server/discover":
        error = {"code": -32601, "message": "unknown"}
        print(json.dumps(answer | {"error": error}), flush=True)
"""


def test_a_server_that_never_tells_its_tools_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = McpTools({"mute": McpConfig(command=(sys.executable, "-c", MUTE))})
    server = made._servers["mute"]

    async def connect() -> None:
        await server._client(server._linked())

    made._loop.wait(connect())
    monkeypatch.setattr(mcp_tools, "CONNECT_S", 0.5)
    with pytest.raises(ToolUnavailable, match=r"mute did not tell its tools in 0\.5 s"):
        made.tools(["x"])
    made.close()


TEXT = {"type": "string"}
NULL = {"type": "null"}


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[McpTools]:
    """A server whose answers are none, and whose schemas allow null."""
    schema = {
        "type": "object",
        "properties": {
            "q": TEXT,
            "any": {"anyOf": [TEXT, NULL], "default": None, "title": "Any"},
            "one": {"type": ["integer", "null"]},
            "pick": {"oneOf": [{"type": "string", "enum": ["a", "b"]}, NULL]},
            "either": {"anyOf": [TEXT, {"type": "integer"}, NULL]},
        },
        "required": ["q"],
    }
    number = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}

    async def listed(_: Any, __: Any) -> types.ListToolsResult:
        tool = partial(types.Tool, description="d", input_schema=schema)
        made = [tool(name=n) for n in ("letters", "nonsense")]
        return types.ListToolsResult(tools=[*made, tool(name="unlike", output_schema=number)])

    async def called(_: Any, asked: types.CallToolRequestParams) -> types.CallToolResult:
        if asked.name == "unlike":
            return types.CallToolResult(
                content=[types.TextContent(type="text", text="x")], structured_content={"n": "no"}
            )
        if asked.name == "letters":
            picture = types.ImageContent(type="image", data="\xe9", mime_type="image/png")
            return types.CallToolResult(content=[picture])
        return types.CallToolResult.model_construct(content=[{"type": "nonsense"}])

    server = Server("odd", on_list_tools=listed, on_call_tool=called)
    monkeypatch.setattr(mcp_tools._Server, "_place", lambda self: server)
    made = McpTools({"odd": McpConfig(command=("unused",))})
    yield made
    made.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("letters", "MCP tool letters gave a picture that is none"),
        ("unlike", "MCP server odd on unlike gave what it may not give: RuntimeError"),
        ("nonsense", "MCP server odd on nonsense gave what it may not give: ValidationError"),
    ],
)
@pytest.mark.filterwarnings("ignore:Pydantic serializer")
def test_an_answer_that_is_none_is_a_crash_of_the_tool(
    odd: McpTools, name: str, words: str
) -> None:
    with pytest.raises(ToolCrashed, match=words):
        run(odd, name, q="a")


def test_arguments_that_may_be_null_are_told_to_the_model(odd: McpTools) -> None:
    [tool] = odd.tools(["letters"])
    told = {p.name: (p.kind, p.nullable, p.choices) for p in tool.parameters}
    assert told == {
        "q": ("text", False, ()),
        "any": ("text", True, ()),
        "one": ("integer", True, ()),
        "pick": ("choice", True, ("a", "b")),
    }


def test_what_runs_beside_a_server_that_is_not_there_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed = []
    monkeypatch.setattr(serving.InThreads, "close", lambda self: closed.append("threads"))
    monkeypatch.setattr(McpTools, "close", lambda self: closed.append("mcp"))
    recipe = Recipe.model_validate(
        {"tools": ["crop", "negative"], "mcp": {"gone": {"command": ["no-such-program-here"]}}}
    )
    with pytest.raises(ToolUnavailable, match="MCP server gone can't be reached"):
        served(recipe)
    assert closed == ["threads", "mcp"]


def test_a_tool_that_is_offered_by_none_or_can_not_be_written_is_refused(
    foreign: McpTools,
) -> None:
    with pytest.raises(
        RecipeError, match=r"No MCP server offers 'fly'\. They offer: album, broken, die"
    ):
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
