"""One loop for synthesis, RL and evaluation: what comes back, what ends it, what it costs."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from PIL import Image

from saccade.dialects import NOTATIONS, dialect
from saccade.engines import Capabilities, Sampling, TurnRequest
from saccade.engines.scripted import ScriptedEngine
from saccade.errors import (
    EngineError,
    RecipeError,
    SaccadeError,
    StorageError,
    ToolError,
    ToolUnavailable,
)
from saccade.geometry import Box, Frame
from saccade.image_store import ImageStore
from saccade.images import ImageView, root_view
from saccade.models.tiny import SETTINGS, build_tokenizer
from saccade.progress import progress
from saccade.renderers.qwen2vl import Qwen2VLRenderer, Qwen2VLSettings
from saccade.rewards import Rubric, answer
from saccade.rollout import (
    IGNORED_ANSWER,
    LEAST_REPLY_TOKENS,
    NO_ACTION,
    NO_TOOLS,
    Failures,
    Limits,
    Setup,
    check_room,
    opening,
    rollout,
    run_episode,
)
from saccade.tokens import tokenize
from saccade.toolcall import call as call_tool
from saccade.tools import ToolBox, crop, tool
from saccade.types import Episode, ImageShown, Outcome, Sample, StopReason

RENDERER = Qwen2VLRenderer(build_tokenizer(), SETTINGS)
HERMES = dialect("hermes", style="signature")
ROOMY = Qwen2VLRenderer(
    RENDERER.tokenizer, Qwen2VLSettings(min_pixels=64 * 28 * 28, max_pixels=400 * 28 * 28)
)
"""Pictures that cost more than the sentence in their place."""
SAMPLING = Sampling(max_tokens=400)
LOOK = [100, 100, 700, 700]


@tool
def slow(image: ImageView) -> str:
    """Wait half a second."""
    time.sleep(0.5)
    return "waited"


@tool
def crash(image: ImageView) -> str:
    """Break."""
    raise ZeroDivisionError("a bug in the tool")


@tool
def gone(image: ImageView) -> str:
    """Be out of reach."""
    raise ToolUnavailable("The back end is down.")


@tool
def tell(image: ImageView, text: Annotated[str, "what to say"]) -> str:
    """Say it a hundred times."""
    return text * 100


@tool
def part(image: ImageView) -> ImageView:
    """Show a part of the image."""
    return image.crop(Box(0, 0, 224, 168))


@tool
def large(image: ImageView) -> ImageView:
    """Show most of the image."""
    return image.crop(Box(0, 0, 560, 448))


TOOLS = (crop, slow, crash, gone, tell, part, large)


def act(name: str, **arguments: object) -> str:
    body = {"name": name, "arguments": {"image": "img_0", **arguments}}
    return f"<tool_call>\n{json.dumps(body)}\n</tool_call>"


def say(text: str) -> str:
    return f'<tool_call>\n{{"name": "terminate", "arguments": {{"ans": "{text}"}}}}\n</tool_call>'


class World:
    """A store with one picture, and setups around scripted engines."""

    def __init__(self) -> None:
        self.store = ImageStore()
        noise = np.random.default_rng(0).integers(0, 255, (45, 60, 3), np.uint8)
        self.image = self.store.add(root_view(Image.fromarray(noise).resize((600, 450))))

    def sample(self, name: str = "s") -> Sample:
        return Sample(name, "What is the value of red?", (self.image,), "42")

    def setup(self, script: object, *, ids: bool = True, **options: object) -> Setup:
        engine = script if hasattr(script, "turn") else ScriptedEngine(script, ids=ids)
        given: dict[str, object] = {
            "dialect": HERMES,
            "store": self.store,
            "toolbox": ToolBox(TOOLS, store=self.store),
            "renderer": RENDERER,
            "limits": Limits(max_turns=4, max_tokens_per_turn=400, max_context_tokens=8000),
            "rubric": Rubric(((answer, 1.0),)),
        }
        return Setup(engine=engine, **{**given, **options})

    def play(self, *lines: object, **options: object) -> Episode:
        setup = self.setup({"s": lines}, **options)
        return asyncio.run(run_episode(self.sample(), setup, sampling=SAMPLING))


@pytest.fixture
def world() -> World:
    return World()


def requests_of(setup: Setup, key: str) -> list[TurnRequest]:
    assert isinstance(setup.engine, ScriptedEngine)
    return [r for r in setup.engine.requests if r.episode == key]


def pads(ids: Sequence[int]) -> int:
    return sum(i == RENDERER.pad_id for i in ids)


# --- turns ----------------------------------------------------------------------------------------


def test_an_episode_looks_and_answers(world: World) -> None:
    episode = world.play("Look.\n" + act("crop", box=LOOK), say("42"))
    assert episode.stop is StopReason.ANSWERED
    assert episode.answer == "42"
    assert episode.score is not None
    assert episode.score.value == 1.0
    assert [s.origin for s in episode.segments] == ["prompt", "sampled", "observation", "sampled"]
    assert [m.role for m in episode.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert list(episode.images) == ["img_0", "img_1"]
    assert episode.images["img_1"].width == pytest.approx(360, abs=1)
    assert [r.how for r in episode.gaze] == ["named", "seen"]
    assert [t.parsed.thought for t in episode.turns] == ["Look.", ""]
    assert episode.seconds > 0


def test_several_calls_in_one_turn_are_all_run_in_the_order_written(world: World) -> None:
    calls = (act("crop", box=LOOK), act("part"), act("crop", box=[0, 0, 100, 100]))
    episode = world.play("\n".join(calls), say("42"))
    results = episode.turns[0].results
    assert [r.call.name for r in results] == ["crop", "part", "crop"]
    shown = [p for r in results for p in r.parts]
    assert [p.name for p in shown] == ["img_1", "img_2", "img_3"]
    assert [p.image.width for p in shown] == [360, 224, 60]
    (observed,) = (s for s in episode.segments if s.origin == "observation")
    assert observed.images == tuple(p.image for p in shown)
    assert pads(observed.ids) == sum(RENDERER.image_tokens(i) for i in observed.images)


def test_an_image_of_an_earlier_turn_can_be_named_in_a_later_one(world: World) -> None:
    episode = world.play(act("part"), act("crop", image="img_1", box=LOOK), say("42"))
    assert episode.images["img_2"].width < episode.images["img_1"].width
    assert not any(r.failed for r in episode.results)


def test_calls_beside_an_answer_run_and_the_answer_is_ignored_and_said_so(world: World) -> None:
    episode = world.play(act("part") + "\n" + say("7"), say("42"))
    assert episode.answer == "42"
    assert len(episode.results) == 1
    assert IGNORED_ANSWER in episode.messages[3].text
    assert "img_1" in episode.images
    alone = world.play(act("part"), say("42"))
    assert IGNORED_ANSWER not in alone.messages[3].text


def test_the_mistakes_of_the_model_come_back_and_the_episode_goes_on(world: World) -> None:
    episode = world.play(
        act("crop", box=[5, 5, 1, 1]), act("fly"), "<tool_call>\n{broken\n</tool_call>", say("42")
    )
    assert episode.stop is StopReason.ANSWERED
    assert [r.failed for r in episode.results] == [True, True, True]
    told = [m.text for m in episode.messages if m.role == "tool"]
    assert all("Error: " in t for t in told)
    assert "No tool named 'fly'" in told[1]
    assert episode.score is not None
    assert episode.score.value == 1.0


def test_a_turn_without_call_or_answer_is_told_so(world: World) -> None:
    episode = world.play("I wonder.", say("42"))
    assert episode.messages[3].text == NO_ACTION
    assert episode.turns[0].results == ()
    assert episode.stop is StopReason.ANSWERED


def test_without_tools_the_model_is_told_of_none_and_can_call_none(world: World) -> None:
    episode = world.play(act("crop", box=LOOK), say("42"), toolbox=None)
    assert [m.role for m in episode.messages] == ["user", "assistant", "tool", "assistant"]
    assert episode.messages[2].text == NO_TOOLS
    assert episode.results == ()
    assert "img_0" not in episode.messages[0].text  # a lone picture without tools needs no name
    assert list(episode.images) == ["img_0"]


def test_in_the_plain_dialect_the_whole_turn_is_the_answer(world: World) -> None:
    plain = dialect("plain")
    episode = world.play(" 42 \n", dialect=plain, toolbox=None)
    assert (episode.stop, episode.answer) == (StopReason.ANSWERED, "42")
    assert len(episode.turns) == 1
    assert episode.score is not None
    assert episode.score.value == 1.0
    assert [m.role for m in episode.messages] == ["user", "assistant"]


def test_several_pictures_are_named_even_without_tools(world: World) -> None:
    other = world.store.add(root_view(Image.new("RGB", (60, 60))))
    sample = replace(world.sample(), images=(world.image, other))
    setup = world.setup({"s": [say("42")]}, toolbox=None)
    episode = asyncio.run(run_episode(sample, setup, sampling=SAMPLING))
    assert "img_0: img_1: " in episode.messages[0].text
    assert list(episode.images.values()) == [world.image, other]


# --- ends -----------------------------------------------------------------------------------------


def test_it_ends_at_the_most_turns_without_running_what_the_last_turn_asked_for(
    world: World,
) -> None:
    episode = world.play(*[act("part")] * 9, limits=Limits(3, 400, 8000))
    assert episode.stop is StopReason.MAX_TURNS
    assert len(episode.turns) == 3
    assert [len(t.results) for t in episode.turns] == [1, 1, 0]
    assert episode.segments[-1].origin == "sampled"  # nothing is appended that nobody reads
    assert episode.score is not None
    assert episode.score.value == 0.0


def test_an_answer_in_the_last_turn_counts(world: World) -> None:
    episode = world.play(act("part"), say("42"), limits=Limits(2, 400, 8000))
    assert (episode.stop, episode.answer) == (StopReason.ANSWERED, "42")


def test_a_turn_that_is_cut_short_ends_the_episode_and_is_no_answer(world: World) -> None:
    episode = world.play("long " * 50 + say("42"), limits=Limits(4, 30, 8000))
    assert episode.stop is StopReason.MAX_TOKENS
    assert episode.answer is None
    assert len(episode.segments[-1].ids) == 30
    assert episode.stop.outcome is Outcome.MODEL
    assert episode.score is not None
    assert episode.score.value == 0.0


def test_of_a_turn_that_is_cut_short_its_sampled_ids_are_trained_and_no_end_of_turn(
    world: World,
) -> None:
    """GRIT's trainer appends an end of turn that nobody sampled, and trains it."""
    from saccade.tokens import episode_tree, flatten

    episode = world.play("long " * 50, limits=Limits(4, 30, 8000))
    flat = flatten(episode_tree([episode]), RENDERER)
    trained = flat.ids[flat.trained].tolist()
    assert trained == list(episode.segments[-1].ids)
    assert len(trained) == 30
    end = RENDERER.tokenizer.token_to_id("<|im_end|>")
    assert end not in trained


def test_a_turn_gets_no_more_tokens_than_sampling_limits_and_context_allow(world: World) -> None:
    prompt = len(world.play(say("42")).segments[0].ids)
    for sampling, per_turn, context, wanted in (
        (50, 400, 8000, 50),
        (400, 60, 8000, 60),
        (400, 400, prompt + 7, 7),
    ):
        setup = world.setup({"s": [say("42")]}, limits=Limits(4, per_turn, context))
        asyncio.run(run_episode(world.sample(), setup, sampling=Sampling(max_tokens=sampling)))
        (request,) = requests_of(setup, "0/s/0")
        assert request.sampling.max_tokens == wanted


def test_a_prompt_that_fills_the_context_is_never_asked(world: World) -> None:
    prompt = len(world.play(say("42")).segments[0].ids)
    setup = world.setup({"s": [say("42")]}, limits=Limits(4, 400, prompt))
    episode = asyncio.run(run_episode(world.sample(), setup, sampling=SAMPLING))
    assert episode.stop is StopReason.CONTEXT_FULL
    assert requests_of(setup, "0/s/0") == []
    assert setup.engine.released == ["0/s/0"]


def test_a_run_whose_prompts_leave_no_room_for_a_turn_is_refused(world: World) -> None:
    setup = world.setup({})
    assert setup.renderer is not None
    taken = len(setup.renderer.prompt(opening(world.sample(), setup)).ids)
    least = taken + LEAST_REPLY_TOKENS
    check_room(world.sample(), replace(setup, limits=Limits(max_context_tokens=least)))
    tight = replace(setup, limits=Limits(max_context_tokens=least - 1))
    with pytest.raises(RecipeError, match=rf"takes {taken} of {least - 1} tokens"):
        check_room(world.sample(), tight)


def test_an_observation_that_does_not_fit_is_shrunk_then_told_and_then_ends_the_episode(
    world: World,
) -> None:
    def at(room: int) -> Episode:
        """With so many tokens left for the observation."""
        limits = Limits(4, 400, before + room + LEAST_REPLY_TOKENS)
        return world.play(act("large"), "?" * 3, say("42"), limits=limits, renderer=ROOMY)

    free = world.play(act("large"), "?" * 3, say("42"), renderer=ROOMY)
    before = sum(len(s.ids) for s in free.segments[:2])
    room = len(free.segments[2].ids)
    assert pads(free.segments[2].ids) == 20 * 16
    assert at(room).segments[2] == free.segments[2]

    for times, tokens in ((2, 10 * 8), (4, 9 * 8)):
        smaller = at(room - 1)
        assert pads(smaller.segments[2].ids) == tokens
        (image,) = smaller.segments[2].images
        assert (image.width, image.height) == (560 // times, 448 // times)
        assert smaller.images["img_1"] == image
        assert smaller.turns[0].results[0].parts == (ImageShown(image, "img_1"),)
        room = len(smaller.segments[2].ids)
        assert at(room).segments[2] == smaller.segments[2]

    told = at(room - 1)
    assert told.segments[2].images == ()
    assert pads(told.segments[2].ids) == 0
    assert "img_1 does not fit into what is left of the context." in told.messages[3].text
    assert list(told.images) == ["img_0"]
    assert [r.how for r in told.gaze] == []

    full = at(len(told.segments[2].ids) - 1)
    assert full.stop is StopReason.CONTEXT_FULL
    assert full.segments == free.segments[:2]
    assert full.messages == free.messages[:3]
    assert full.score is not None
    assert full.score.value == 0.0


def test_pads_are_never_cut_whatever_the_context(world: World) -> None:
    lines = (act("large") + act("part"), say("42"))
    free = world.play(*lines, renderer=ROOMY)
    shortest, longest = (sum(len(s.ids) for s in free.segments[:k]) for k in (1, 3))
    seen, most = set(), pads(free.segments[2].ids)
    for context in range(shortest + 1, longest + 40, 7):
        episode = world.play(*lines, renderer=ROOMY, limits=Limits(4, 400, context))
        assert sum(len(s.ids) for s in episode.segments) <= context
        for segment in episode.segments:
            assert pads(segment.ids) == sum(ROOMY.image_tokens(i) for i in segment.images)
            seen.add((segment.origin, pads(segment.ids)))
    assert {count for origin, count in seen if origin == "observation"} >= {0, most}


def test_long_text_is_cut_only_where_it_does_not_fit(world: World) -> None:
    free = world.play(act("tell", text="red "), say("42"))
    assert free.messages[3].text.count("red") == 100
    used = sum(len(s.ids) for s in free.segments[:3])
    short = world.play(
        act("tell", text="red "), say("42"), limits=Limits(4, 400, used - 1 + LEAST_REPLY_TOKENS)
    )
    assert short.messages[3].text.count("red") == 50
    assert "(cut: 200 more characters)" in short.messages[3].text


@pytest.mark.parametrize("box", [[0, 500, 1000, 503], [500, 0, 502, 1000]])
def test_a_crop_too_thin_to_be_shown_is_the_mistake_of_the_model(
    world: World, box: list[int]
) -> None:
    """A box of 2 x 1024 pixels is a valid box and no picture that the renderer takes."""
    image = world.store.add(root_view(Image.new("RGB", (1024, 1024), "white")))
    setup = world.setup({"s": [act("crop", box=box), say("42")]})
    sample = replace(world.sample(), images=(image,))
    episode = asyncio.run(run_episode(sample, setup, sampling=SAMPLING))
    assert episode.stop is StopReason.ANSWERED
    assert episode.results[0].failed


def test_shrinking_a_long_strip_never_makes_it_too_thin(world: World) -> None:
    image = world.store.add(root_view(Image.new("RGB", (599, 3), "white")))
    sample = replace(world.sample(), images=(image,))
    box = [0, 0, 1000, 1000]
    free = world.setup({"s": [act("crop", box=box), say("42")]})
    first = asyncio.run(run_episode(sample, free, sampling=SAMPLING))
    used = sum(len(s.ids) for s in first.segments[:3])
    limits = Limits(4, 400, used - 1 + LEAST_REPLY_TOKENS)
    tight = world.setup({"s": [act("crop", box=box), say("42")]}, limits=limits)
    episode = asyncio.run(run_episode(sample, tight, sampling=SAMPLING))
    assert episode.stop is not None


# --- what is our doing ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "stop", "word", "called"),
    [
        (act("crash"), StopReason.TOOL_CRASHED, "ZeroDivisionError: a bug in the tool", "crash"),
        (act("gone"), StopReason.TOOL_UNAVAILABLE, "The back end is down.", "gone"),
        (EngineError("The engine is out."), StopReason.ENGINE_FAILED, "The engine is out.", None),
    ],
)
def test_our_failures_end_the_episode_unscored_with_their_traceback(
    world: World, line: object, stop: StopReason, word: str, called: str | None
) -> None:
    setup = world.setup({"s": [act("part"), line, say("42")]})
    episode = asyncio.run(run_episode(world.sample(), setup, sampling=SAMPLING))
    assert episode.stop is stop
    assert stop.outcome is Outcome.OURS
    assert episode.answer is None
    assert episode.score is not None
    assert episode.score.value is None
    assert episode.error.startswith("Traceback (most recent call last)")
    assert word in episode.error
    first, *rest = episode.turns  # what came before is kept, and the turn that brought it about
    assert len(first.results) == 1
    assert [(t.parsed.calls[0].name, t.results) for t in rest] == ([(called, ())] if called else [])
    said = [s for s in episode.segments if s.origin == "sampled"]
    assert len(said) == len(episode.turns)
    assert [m.text for m in episode.messages if m.role == "assistant"][1:] == (
        [line] if called else []
    )
    assert setup.engine.released == ["0/s/0"]


def test_a_tool_that_misses_its_deadline_is_our_failure(world: World) -> None:
    box = ToolBox(TOOLS, store=world.store, deadline_s=0.05)
    episode = world.play(act("slow"), say("42"), toolbox=box)
    assert episode.stop is StopReason.TOOL_UNAVAILABLE
    assert "deadline of 0.05 s" in episode.error


def test_a_bug_crashes_with_its_own_type_and_still_releases_the_episode(world: World) -> None:
    setup = world.setup({"s": [act("part")]})  # the script has no second line
    with pytest.raises(LookupError, match="add a line"):
        asyncio.run(rollout([world.sample()], setup, sampling=SAMPLING))
    assert setup.engine.released == ["0/s/0"]


def many(world: World, bad: int, *, of: int) -> tuple[list[Sample], Setup]:
    samples = [world.sample(f"s{k}") for k in range(of)]
    script = {s.id: [act("crash") if k < bad else say("42")] for k, s in enumerate(samples)}
    return samples, world.setup(script)


@pytest.mark.parametrize(
    ("bad", "of", "limit", "stops"),
    [
        (2, 4, 0.01, False),  # two alone never stop a run
        (3, 4, 0.01, True),
        (3, 4, 0.8, False),
        (4, 4, 0.8, True),
        (4, 4, None, False),
    ],
)
def test_a_run_stops_above_its_failure_limit(
    world: World, bad: int, of: int, limit: float | None, stops: bool
) -> None:
    samples, setup = many(world, bad, of=of)
    failures = None if limit is None else Failures(limit)
    playing = rollout(samples, replace(setup, failures=failures), sampling=SAMPLING)
    if stops:
        with pytest.raises(SaccadeError, match=rf"{bad} of {of} episodes .* a bug in the tool"):
            asyncio.run(playing)
        assert len(setup.engine.released) == len(set(setup.engine.released)) == of
        return
    episodes = asyncio.run(playing)
    ours = [e.stop is StopReason.TOOL_CRASHED for e in episodes]
    assert ours == [True] * bad + [False] * (of - bad)


def test_failures_are_counted_over_the_whole_run(world: World) -> None:
    """Two of every hundred once passed a limit of 1%, since each call counted for itself."""
    failures = Failures(0.01)

    def part_of_run() -> list[Episode]:
        samples, setup = many(world, 2, of=100)
        setup = replace(setup, failures=failures)
        return asyncio.run(rollout(samples, setup, sampling=SAMPLING))

    assert len(part_of_run()) == 100
    with pytest.raises(SaccadeError, match=r"3 of 200 episodes .*above 1%"):
        part_of_run()


def test_the_failures_of_the_model_never_stop_a_run(world: World) -> None:
    samples = [world.sample(f"s{k}") for k in range(6)]
    setup = world.setup({s.id: ["hm"] * 4 for s in samples}, failures=Failures(0.0))
    episodes = asyncio.run(rollout(samples, setup, sampling=SAMPLING))
    assert {e.stop for e in episodes} == {StopReason.MAX_TURNS}


# --- many episodes --------------------------------------------------------------------------------


def test_results_stand_in_the_order_of_samples_and_rollouts_whoever_ends_first(
    world: World,
) -> None:
    samples = [world.sample(f"s{k}") for k in range(4)]

    class Hasty(ScriptedEngine):
        async def turn(self, request: TurnRequest):
            await asyncio.sleep(0.02 * (4 - int(request.seed[1][1:])) + 0.01 * request.seed[2])
            return await super().turn(request)

    ended: list[Episode] = []
    setup = world.setup(Hasty({s.id: [say("42")] for s in samples}, ids=True))
    episodes = asyncio.run(
        rollout(samples, setup, sampling=SAMPLING, seed=3, group_size=2, on_done=ended.append)
    )
    order = [(s.id, g) for s in samples for g in range(2)]
    assert [(e.sample.id, e.rollout_index) for e in episodes] == order
    assert ended[0].sample.id == "s3"
    assert len(ended) == 8
    assert {r.seed for r in setup.engine.requests} == {(3, *o) for o in order}


def test_every_episode_is_released_once(world: World) -> None:
    samples = [world.sample(f"s{k}") for k in range(5)]
    lines = {
        "s0": [say("42")],
        "s1": [act("crash")],
        "s2": [EngineError("out")],
        "s3": ["x" * 900],
        "s4": [act("part"), say("42")],
    }
    setup = world.setup(lines)
    asyncio.run(rollout(samples, setup, sampling=SAMPLING, seed=1, group_size=3))
    wanted = sorted(f"1/s{k}/{g}" for k in range(5) for g in range(3))
    assert sorted(setup.engine.released) == wanted


def test_no_more_episodes_run_at_once_than_asked_for(world: World) -> None:
    running = most = 0

    class Counting(ScriptedEngine):
        async def turn(self, request: TurnRequest):
            nonlocal running, most
            running += 1
            most = max(most, running)
            turn = await super().turn(request)
            running -= 1
            return turn

    samples = [world.sample(f"s{k}") for k in range(9)]
    setup = world.setup(Counting({s.id: [say("42")] for s in samples}, delay_s=0.01, ids=True))
    asyncio.run(rollout(samples, setup, sampling=SAMPLING, concurrency=4))
    assert most == 4


class Barrier(ScriptedEngine):
    """A policy engine with a barrier: admits a wave when all that it was told of are there."""

    barrier = True

    def __init__(self, script: object) -> None:
        super().__init__(script, ids=True)
        self.expected: list[list[str]] = []

    def expect(self, episodes) -> None:
        self.expected.append(list(episodes))

    def load(self, weights: object, version: int, *, same_vision: bool = False) -> None: ...


def test_behind_a_barrier_episodes_start_in_waves_that_the_engine_is_told_of(
    world: World,
) -> None:
    samples = [world.sample(f"s{k}") for k in range(5)]
    engine = Barrier({s.id: [say("42")] for s in samples})
    episodes = asyncio.run(rollout(samples, world.setup(engine), sampling=SAMPLING, concurrency=2))
    assert [e.sample.id for e in episodes] == [s.id for s in samples]
    assert engine.expected == [["0/s0/0", "0/s1/0"], ["0/s2/0", "0/s3/0"], ["0/s4/0"]]


def test_64_episodes_whose_tool_waits_half_a_second_spend_under_one_second(world: World) -> None:
    samples = [world.sample(f"s{k}") for k in range(64)]
    script = {s.id: [act("slow"), say("42")] for s in samples}

    def once() -> float:
        setup = world.setup(script, ids=False)
        began = time.perf_counter()
        episodes = asyncio.run(rollout(samples, setup, sampling=SAMPLING))
        assert all(e.stop is StopReason.ANSWERED for e in episodes)
        return time.perf_counter() - began

    assert min(once() for _ in range(3)) < 1.0


# --- what the engine is asked ---------------------------------------------------------------------


def test_each_request_extends_the_one_before_and_is_what_the_messages_say(world: World) -> None:
    lines = [act("part"), "hm", act("crop", box=LOOK) + say("1"), act("fly"), say("42")]
    setup = world.setup({"s": lines}, limits=Limits(9, 400, 8000))
    episode = asyncio.run(run_episode(world.sample(), setup, sampling=SAMPLING, seed=5))
    asked = requests_of(setup, "5/s/0")
    assert len(asked) == 5
    for before, after in pairwise(asked):
        assert after.segments[: len(before.segments)] == before.segments
        assert after.messages[: len(before.messages)] == before.messages
        assert len(after.segments) == len(before.segments) + 2
    assert episode.segments[: len(asked[-1].segments)] == asked[-1].segments
    assert all(s.policy_version == 0 for s in episode.segments if s.origin == "sampled")


def test_ids_that_are_kept_are_the_ids_that_were_sampled(world: World) -> None:
    line = "Look.\n" + act("part")
    episode = world.play(line, say("42"))
    sampled = [s for s in episode.segments if s.origin == "sampled"]
    assert [bytes(s.ids[:-1]).decode() for s in sampled] == [line, say("42")]
    assert all(len(s.logprobs) == len(s.ids) for s in sampled)


def test_engines_with_and_without_ids_see_the_same_conversation(world: World) -> None:
    lines = (act("part"), act("crop", box=LOOK), say("42"))
    with_ids, without = world.play(*lines), world.play(*lines, ids=False)
    assert without.segments == ()
    assert without.messages == with_ids.messages
    again = tokenize(without, RENDERER)
    for ours, theirs in zip(with_ids.segments, again.segments, strict=True):
        if ours.origin != "sampled":
            assert ours == theirs


def test_a_call_that_failed_is_no_look_wherever_it_failed(world: World) -> None:
    """A box that the tool itself refused, and so never showed, once covered the evidence."""
    strip = act("crop", box=[0, 500, 1000, 503])
    for ids in (True, False):
        episode = world.play(strip, act("crop", box=[9, 9, 1, 1]), say("42"), ids=ids)
        assert [r.failed for r in episode.results] == [True, True]
        assert "as wide" in episode.messages[3].text
        assert episode.gaze == ()


def test_a_setup_that_lacks_a_renderer_or_frame_is_refused(world: World) -> None:
    with pytest.raises(ValueError, match="with ids needs a renderer"):
        world.setup({}, renderer=None, frame=lambda i: Frame.thousand(i.width, i.height))
    with pytest.raises(ValueError, match="in which frame"):
        world.setup({}, ids=False, renderer=None)
    setup = world.setup({}, ids=False, frame=lambda i: Frame.pixels(i.width, i.height))
    assert setup.frame_of(world.image).kind == "pixels"
    assert setup.engine.capabilities == Capabilities(False, False, True, True)


# --- one tool by hand -----------------------------------------------------------------------------


def picture(folder: Path) -> Path:
    path = folder / "a.png"
    Image.new("RGB", (100, 80), "red").save(path)
    return path


def test_a_tool_called_by_hand_takes_pixels_and_writes_its_picture(tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    lines = call_tool("crop", '{"box": [10, 10, 60, 40]}', image=picture(tmp_path), out=out)
    assert lines == [f"img_1: 50 x 30 pixels, in {out}"]
    with Image.open(out) as written:
        assert written.size == (50, 30)


def test_what_has_no_name_is_told_without_one(tmp_path: Path) -> None:
    path = tmp_path / "b.png"
    paper = Image.new("RGB", (100, 80), "white")
    paper.paste("red", (20, 20, 60, 50))
    paper.save(path)
    out = tmp_path / "out.png"
    lines = call_tool("segment", '{"box": [19, 19, 61, 51]}', image=path, out=out)
    assert lines[0] == "mask of 1200 pixels"
    assert lines[1] == "1200 pixels, 15.00% of the image."


@pytest.mark.parametrize(
    ("name", "arguments", "word"),
    [
        ("crop", "{", "no JSON"),
        ("crop", "[" * 100_000, "no JSON"),
        ("crop", "[1]", "must be a JSON object"),
        ("crop", '{"box": [60, 10, 10, 40]}', "x0 < x1"),
    ],
)
def test_what_a_tool_called_by_hand_refuses_is_one_sentence(
    tmp_path: Path, name: str, arguments: str, word: str
) -> None:
    with pytest.raises(ToolError, match=word):
        call_tool(name, arguments, image=picture(tmp_path), out=tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_a_tool_that_is_not_there_is_told_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"No tool named 'fly'\. Available: .*crop"):
        call_tool("fly", "{}", image=picture(tmp_path), out=tmp_path / "out.png")


@pytest.mark.parametrize("out", ["no folder/out.png", "out.nothing"])
def test_a_picture_that_can_not_be_written_is_said_so(tmp_path: Path, out: str) -> None:
    with pytest.raises(StorageError, match="can't be written"):
        call_tool("crop", '{"box": [0, 0, 9, 9]}', image=picture(tmp_path), out=tmp_path / out)


def test_without_a_terminal_progress_is_plain_lines_on_the_error_stream(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("saccade.progress.time.monotonic", lambda: now)
    with progress("demo", total=5, done=1) as bar:
        for _ in range(3):
            now += 4
            bar.advance("half")
        now += 4
        bar.advance("last")
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.strip().splitlines()
    assert lines == ["demo 5/5 0.25/s 0.0 min left last"]


def test_progress_prints_a_line_every_quarter_of_a_minute(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("saccade.progress.time.monotonic", lambda: now)
    with progress("demo", total=100) as bar:
        for _ in range(60):
            now += 1
            bar.advance()
    assert [line.split()[1] for line in capsys.readouterr().err.strip().splitlines()] == [
        "15/100",
        "30/100",
        "45/100",
        "60/100",
    ]


def test_a_request_stands_behind_the_question_and_an_example_before_it(world: World) -> None:
    setup = world.setup({}, toolbox=None, request="Think first.", example="2 + 2? 4")
    [asked] = opening(world.sample(), setup)
    assert asked.text == "2 + 2? 4\nWhat is the value of red? Think first."
    [plain] = opening(world.sample(), world.setup({}, toolbox=None))
    assert plain.text == "What is the value of red?"


# --- boxes in thoughts ----------------------------------------------------------------------------

GROUNDED = dialect("grounded", style="silent")
WRITTEN = "<think> red [100, 200, 500, 600], none [0, 0, 0, 0] </think> <answer> 42 </answer>"


def test_boxes_in_a_thought_are_gaze_in_the_frame_of_the_renderer(world: World) -> None:
    roomy = Limits(max_turns=1, max_tokens_per_turn=400, max_context_tokens=8000)
    episode = world.play(
        WRITTEN, dialect=GROUNDED, toolbox=None, limits=roomy, notation=NOTATIONS["inline"]
    )
    assert (episode.stop, episode.answer) == (StopReason.ANSWERED, "42")
    [region] = episode.gaze
    assert (region.how, region.turn, region.phrase) == ("named", 0, "red")
    frame = RENDERER.frame(world.image)
    assert region.polygon == frame.decode_box((100, 200, 500, 600)).polygon()
    assert [(b.raw, b.reason) for b in episode.turns[0].refused] == [("[0, 0, 0, 0]", "no area")]


def test_without_a_notation_of_its_own_a_setup_reads_that_of_its_renderer(world: World) -> None:
    between = WRITTEN.replace("red [100, 200, 500, 600]", NOTATIONS["qwen2"].example)
    assert RENDERER.notation is NOTATIONS["qwen2"]
    [turn] = world.play(between, dialect=GROUNDED, toolbox=None).turns
    assert [b.phrase for b in turn.named] == ["red circle"]
    assert turn.refused == ()  # brackets are prose to this family


def test_boxes_in_the_thoughts_of_an_episode_with_tools_count_the_same(world: World) -> None:
    episode = world.play(
        f"red [0, 0, 500, 500]\n{act('part')}", say("42"), notation=NOTATIONS["inline"]
    )
    assert [(r.how, r.phrase, r.turn) for r in episode.gaze] == [
        ("named", "red", 0),
        ("seen", "img_1", 0),
    ]
    assert episode.turns[0].results
    assert episode.turns[0].named


def test_a_dialect_without_calls_tells_the_model_its_form_where_there_are_no_tools(
    world: World,
) -> None:
    setup = world.setup({}, toolbox=None, dialect=dialect("grounded"))
    first, *_ = opening(world.sample(), setup)
    assert first.role == "system"
    assert "<think>" in first.text
    for silent in (HERMES, dialect("openthinkimg"), dialect("pointing")):
        told = opening(world.sample(), world.setup({}, toolbox=None, dialect=silent))
        assert [m.role for m in told] == ["user"]
