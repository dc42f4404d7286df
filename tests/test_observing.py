"""What a model is shown of its calls, by mode; what is remembered of them is the true call."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
from PIL import Image

from saccade.dialects import dialect
from saccade.engines import Sampling
from saccade.engines.scripted import ScriptedEngine
from saccade.episode_json import episode_from_json, episode_to_json
from saccade.errors import DataError, ToolError
from saccade.geometry import Box, Frame
from saccade.image_store import ImageStore
from saccade.images import ImageView, beside, root_view
from saccade.models.tiny import SETTINGS, build_tokenizer
from saccade.observing import ACKNOWLEDGED, Observation, partner_of, partners_among
from saccade.renderers.qwen2vl import Qwen2VLRenderer, Qwen2VLSettings
from saccade.rewards import Rubric, answer
from saccade.rollout import LEAST_REPLY_TOKENS, Limits, Setup, rollout, run_episode
from saccade.tasks import CLUSTER
from saccade.tokens import Tree, flatten, tokenize
from saccade.tools import ToolBox, crop, draw_horizontal_line, look, tool
from saccade.types import BoxFound, Episode, ImageRef, ImageShown, Sample, StopReason
from saccade.view import gaze_picture

RENDERER = Qwen2VLRenderer(build_tokenizer(), SETTINGS)
ROOMY = Qwen2VLRenderer(
    RENDERER.tokenizer, Qwen2VLSettings(min_pixels=64 * 784, max_pixels=400 * 784)
)
"""Pictures that cost more than the sentence in their place."""
LOOK = [100, 200, 700, 600]
GRAY = Image.new("RGB", (90, 60), "gray")
MODES: tuple[Observation, ...] = ("image", "text", "none", "swapped", "black")


@tool
def read(image: ImageView, box: Annotated[Box, "where"]) -> tuple[str, Box, ImageView]:
    """Say how bright it is there, where, and show it."""
    inside = image.crop(box)
    return str(int(np.asarray(inside.pixels).mean())), box, inside


@tool
def dim_only(image: ImageView) -> ImageView:
    """Show the left half of a dark picture."""
    if np.asarray(image.pixels).mean() > 60:
        raise ToolError("It is too bright.")
    return image.crop(Box(0, 0, image.width // 2, image.height))


@tool
def pair(image: ImageView, other: ImageView) -> ImageView:
    """Show two pictures side by side."""
    return beside(image, other)


TOOLS = (crop, draw_horizontal_line, read, dim_only, pair)


def act(name: str, **arguments: object) -> str:
    body = {"name": name, "arguments": {"image": "img_0", **arguments}}
    return f"<tool_call>\n{json.dumps(body)}\n</tool_call>"


def say(text: str) -> str:
    return f'<tool_call>\n{{"name": "terminate", "arguments": {{"ans": "{text}"}}}}\n</tool_call>'


class World:
    """Two samples, one with a dark and one with a bright picture of another shape."""

    def __init__(self) -> None:
        self.store = ImageStore()
        self.dark = self._sample("dark", 0, 50, (600, 450))
        self.bright = self._sample("bright", 200, 255, (800, 500))

    def _sample(self, name: str, low: int, high: int, size: tuple[int, int]) -> Sample:
        noise = np.random.default_rng(1).integers(low, high, (size[1], size[0], 3), np.uint8)
        image = self.store.add(root_view(Image.fromarray(noise)))
        return Sample(name, "What is the value of red?", (image,), "42")

    def setup(self, *lines: str, mode: Observation, ids: bool = True, **options: object) -> Setup:
        given: dict[str, object] = {
            "dialect": dialect("hermes", style="signature"),
            "store": self.store,
            "toolbox": ToolBox(TOOLS, store=self.store),
            "renderer": RENDERER,
            "limits": Limits(max_turns=6, max_tokens_per_turn=400, max_context_tokens=8000),
            "rubric": Rubric(((answer, 1.0),)),
            "observation": mode,
        }
        engine = ScriptedEngine({"dark": lines, "bright": lines}, ids=ids)
        return Setup(engine=engine, **{**given, **options})

    def play(self, *lines: str, mode: Observation, **options: object) -> Episode:
        setup = self.setup(*lines, mode=mode, **options)
        partner = self.bright if mode == "swapped" else None
        return asyncio.run(
            run_episode(self.dark, setup, sampling=Sampling(max_tokens=400), partner=partner)
        )

    def mean(self, image: ImageRef) -> float:
        return float(np.asarray(self.store.view(image).pixels).mean())


@pytest.fixture
def world() -> World:
    return World()


def places(episode: Episode) -> list[tuple[str, str, tuple[float, ...]]]:
    """Where the gaze lay: how, on which original, and the bounds."""
    return [(r.how, r.image.key, r.polygon.bounds.as_tuple()) for r in episode.gaze]


def pads(ids: Sequence[int]) -> int:
    return sum(int(i) == RENDERER.pad_id for i in ids)


# --- every mode -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ids", [True, False])
def test_errors_of_the_model_are_told_in_full_in_every_mode(
    world: World, mode: Observation, ids: bool
) -> None:
    lines = (act("fly"), act("crop", box=[9, 9, 1, 1]), say("42"))
    episode = world.play(*lines, mode=mode, ids=ids)
    assert [r.failed for r in episode.results] == [True, True]
    told = [m.text for m in episode.messages if m.role == "tool"]
    assert "Error: No tool named 'fly'. Available:" in told[0]
    assert "top left corner first" in told[1]
    assert episode.gaze == ()
    assert episode.score is not None
    assert episode.score.value == 1.0


@pytest.mark.parametrize("mode", MODES)
def test_engines_with_and_without_ids_are_shown_the_same(world: World, mode: Observation) -> None:
    lines = (act("crop", box=LOOK), act("read", box=LOOK), say("42"))
    with_ids, without = (world.play(*lines, mode=mode, ids=ids) for ids in (True, False))
    assert without.messages == with_ids.messages
    assert [t.results[:1] for t in without.turns][-1] == ()
    assert places(without) == places(with_ids)


@pytest.mark.parametrize("mode", MODES)
def test_pads_are_the_features_of_what_was_shown_in_every_mode(
    world: World, mode: Observation
) -> None:
    episode = world.play(act("crop", box=LOOK), act("read", box=LOOK), say("42"), mode=mode)
    shown = [i for s in episode.segments for i in s.images]
    assert {i.key for i in episode.images.values()} == {i.key for i in shown}
    again = tokenize(episode, RENDERER)  # the message says what the sequence says
    for made, told in zip(episode.segments, again.segments, strict=True):
        assert made.images == told.images
        if not made.is_trained:
            assert made.ids == told.ids
    flat = flatten(Tree(episode.segments[:1], (episode.segments[1:],)), RENDERER)
    assert flat.images == tuple(shown)
    assert pads(flat.ids) == sum(RENDERER.image_tokens(i) for i in shown)
    assert int(flat.trained.sum()) == episode.completion_tokens
    for segment in episode.segments:
        assert pads(segment.ids) == sum(RENDERER.image_tokens(i) for i in segment.images)


def test_the_gaze_of_pictures_that_were_shown_in_any_form_is_that_of_the_true_call(
    world: World,
) -> None:
    lines = (act("crop", box=LOOK), act("read", box=[0, 0, 300, 300]), say("42"))
    true = places(world.play(*lines, mode="image"))
    assert [how for how, _, _ in true] == ["named", "seen", "named", "found", "seen"]
    assert {key for _, key, _ in true} == {world.dark.images[0].key}
    for mode in ("swapped", "black"):
        assert places(world.play(*lines, mode=mode)) == true
    for mode in ("text", "none"):
        seen = places(world.play(*lines, mode=mode))
        assert seen == [p for p in true if p[0] == "named" or (p[0] == "found" and mode == "text")]


@pytest.mark.parametrize("mode", ["swapped", "black"])
def test_a_picture_that_did_not_fit_was_not_seen_whatever_it_would_have_shown(
    world: World, mode: Observation
) -> None:
    lines = (act("crop", box=[0, 0, 900, 900]), say("42"))
    free = world.play(*lines, mode=mode, renderer=ROOMY)
    used = sum(len(s.ids) for s in free.segments[:2])
    limits = Limits(4, 400, used + len(free.segments[2].ids) - 1 + LEAST_REPLY_TOKENS)
    smaller = world.play(*lines, mode=mode, renderer=ROOMY, limits=limits)
    assert smaller.images["img_1"].width * 2 == free.images["img_1"].width
    assert places(smaller) == places(free)  # shown smaller, it still was shown

    told = [e for e in _tighter(world, lines, mode, used) if len(e.messages) > 3]
    assert any("does not fit" in e.messages[3].text for e in told)
    for episode in told:
        is_shown = "img_1" in episode.images
        assert [r.how for r in episode.gaze] == (["named", "seen"] if is_shown else ["named"])


def _tighter(world: World, lines: tuple[str, ...], mode: Observation, used: int) -> list[Episode]:
    rooms = range(40, 100, 8)
    limits = [Limits(4, 400, used + room + LEAST_REPLY_TOKENS) for room in rooms]
    return [world.play(*lines, mode=mode, renderer=ROOMY, limits=limit) for limit in limits]


def test_a_picture_for_which_the_context_had_no_room_at_all_was_not_seen(world: World) -> None:
    """The episode that ended there once counted it as seen."""
    free = world.play(act("crop", box=LOOK), say("42"), mode="image")
    used = sum(len(s.ids) for s in free.segments[:2])
    episode = world.play(
        act("crop", box=LOOK),
        say("42"),
        mode="image",
        limits=Limits(4, 400, used + LEAST_REPLY_TOKENS + 3),
    )
    assert episode.stop is StopReason.CONTEXT_FULL
    assert [r.how for r in episode.gaze] == ["named"]


# --- text and none --------------------------------------------------------------------------------


def test_in_text_mode_the_model_is_told_name_size_and_region_and_shown_nothing(
    world: World,
) -> None:
    for ids in (True, False):
        episode = world.play(act("crop", box=LOOK), say("42"), mode="text", ids=ids)
        sentence = "img_1: a picture of 360 x 180 pixels at [100, 200, 700, 600] of img_0."
        assert sentence in episode.messages[3].text
        assert episode.messages[3].images == ()
        assert list(episode.images) == ["img_0"]
        assert len(episode.messages[1].images) == 1  # the question keeps its picture


def test_a_picture_that_was_told_can_be_named_and_its_region_is_told_on_the_original(
    world: World,
) -> None:
    lines = (
        act("crop", box=LOOK),
        act("crop", image="img_1", box=[500, 500, 1000, 1000]),
        act("pair", image="img_1", other="img_2"),
        say("42"),
    )
    episode = world.play(*lines, mode="text")
    assert not any(r.failed for r in episode.results)
    told = [m.text for m in episode.messages if m.role == "tool"]
    assert "img_2: a picture of 180 x 90 pixels at [400, 400, 700, 600] of img_0." in told[1]
    assert (
        "img_3: a picture of 540 x 180 pixels at [100, 200, 700, 600] of img_0 and "
        "[400, 400, 700, 600] of img_0." in told[2]
    )


def test_coordinates_in_words_are_in_the_frame_of_the_model(world: World) -> None:
    def unit(image: ImageRef) -> Frame:
        return Frame.unit(image.width, image.height)

    episode = world.play(act("crop", box=[0.25, 0.2, 0.5, 0.4]), say("42"), mode="text", frame=unit)
    assert "150 x 90 pixels at [0.25, 0.2, 0.5, 0.4] of img_0." in episode.messages[3].text


def test_how_much_a_tool_cut_off_is_not_told_in_words(world: World) -> None:
    def sample(print_at: Sequence[int] | None) -> Sample:
        picture = Image.new("RGB", (600, 450), "white")
        if print_at is not None:
            picture.paste("black", tuple(print_at))
        return Sample("dark", "What?", (world.store.add(root_view(picture)),), "42")

    told = []
    box = [101, 201, 703, 603]  # 60.6 to 421.8 across and 90.45 to 271.35 down: no whole pixels
    spots = ([200, 150, 280, 200], [300, 200, 310, 240], [55, 150, 63, 200], [300, 268, 340, 280])
    for print_at in (*spots, [100, 100, 102, 160], None):
        world.dark = sample(print_at)
        toolbox = ToolBox((look,), store=world.store)
        episode = world.play(act("look", box=box), say("42"), mode="text", toolbox=toolbox)
        assert [r.how for r in episode.gaze] == ["named"]
        told.append(episode.messages[3].text)
    assert "img_1: a picture of 361 x 181 pixels at [101, 201, 703, 603] of img_0." in told[0]
    assert set(told) == {told[0]}


def test_none_acknowledges_and_tells_nothing_of_what_came_back(world: World) -> None:
    both = act("read", box=LOOK) + "\n" + act("fly")
    episode = world.play(both, act("crop", image="img_1", box=LOOK), say("42"), mode="none")
    assert episode.messages[3].text.count(ACKNOWLEDGED) == 1
    assert "img_1" not in episode.messages[3].text
    assert "No tool named 'fly'" in episode.messages[3].text
    assert list(episode.images) == ["img_0"]
    assert "No image named 'img_1'" in episode.messages[5].text  # it was never told that name


# --- black ----------------------------------------------------------------------------------------


def test_black_pictures_keep_size_and_name_and_have_a_key_of_their_own(world: World) -> None:
    lines = (act("crop", box=LOOK), act("crop", image="img_1", box=LOOK), say("42"))
    true, dark = world.play(*lines, mode="image"), world.play(*lines, mode="black")
    for name in ("img_1", "img_2"):
        shown, hidden = true.images[name], dark.images[name]
        assert (hidden.width, hidden.height) == (shown.width, shown.height)
        assert world.mean(shown) > 10
        assert world.mean(hidden) == 0
        assert hidden.key != shown.key
        assert hidden.derivation is not None
        assert hidden.derivation.operation == "black"
    assert [len(s.ids) for s in dark.segments] == [len(s.ids) for s in true.segments]
    assert dark.images["img_0"] == true.images["img_0"]
    assert places(dark) == places(true)


# --- swapped --------------------------------------------------------------------------------------


def test_swapped_shows_the_same_relative_place_of_the_partner_and_remembers_the_true_call(
    world: World,
) -> None:
    episode = world.play(act("crop", box=LOOK), say("42"), mode="swapped")
    shown = episode.images["img_1"]
    bright = world.bright.images[0]
    assert shown.roots() == (bright,)
    assert (shown.width, shown.height) == (480, 200)  # 60% x 40% of 800 x 500
    assert world.mean(shown) > 190
    [(_, place)] = shown.to_roots()
    assert place.bounds.as_tuple() == (80, 100, 560, 300)
    assert episode.segments[2].images == (shown,)
    [result] = episode.results
    assert [p.image.roots() for p in result.parts] == [world.dark.images]
    assert [p for _, _, p in places(episode)] == [(60, 90, 420, 270)] * 2
    assert episode.images["img_0"] == world.dark.images[0]  # the question keeps its picture


def test_text_and_boxes_are_the_partners_too(world: World) -> None:
    """What a tool read off the true picture would give it away."""
    episode = world.play(act("read", box=LOOK), say("42"), mode="swapped")
    text = episode.messages[3].text
    assert int(text.split("<tool_response>\n")[1].split("\n")[1]) > 190
    found = [p for p in episode.results[0].parts if isinstance(p, BoxFound)]
    assert [f.image for f in found] == [world.dark.images[0]]


def test_a_view_that_was_swapped_is_the_partners_in_later_calls_and_so_is_their_gaze(
    world: World,
) -> None:
    lines = (act("crop", box=LOOK), act("crop", image="img_1", box=[0, 0, 500, 500]), say("42"))
    episode = world.play(*lines, mode="swapped")
    later = episode.images["img_2"]
    assert later.roots() == world.bright.images
    assert (later.width, later.height) == (240, 100)
    own = world.dark.images[0].key
    assert [(r.how, r.turn) for r in episode.gaze if r.image.key == own] == [
        ("named", 0),
        ("seen", 0),
    ]
    assert {r.image.key for r in episode.gaze if r.turn == 1} == {world.bright.images[0].key}


def test_where_the_partners_call_fails_a_black_picture_of_the_true_size_is_shown(
    world: World,
) -> None:
    episode = world.play(act("dim_only"), say("42"), mode="swapped")
    assert not episode.results[0].failed
    assert "bright" not in episode.messages[3].text
    shown = episode.images["img_1"]
    assert (shown.width, shown.height, world.mean(shown)) == (300, 450, 0)
    assert places(episode)[0][1:] == (world.dark.images[0].key, (0, 0, 300, 450))


def test_pictures_of_several_calls_are_swapped_under_the_names_of_the_true_ones(
    world: World,
) -> None:
    """The partner's first call fails, so its own names would be one short."""
    lines = act("dim_only") + "\n" + act("crop", box=LOOK)
    episode = world.play(lines, say("42"), mode="swapped")
    assert list(episode.images) == ["img_0", "img_1", "img_2"]
    assert world.mean(episode.images["img_1"]) == 0
    assert episode.images["img_2"].roots() == world.bright.images
    assert [p.name for r in episode.results for p in r.parts] == ["img_1", "img_2"]


def test_swapping_without_partners_is_refused(world: World) -> None:
    setup = world.setup(say("42"), mode="swapped")
    with pytest.raises(ValueError, match="needs partners"):
        asyncio.run(rollout([world.dark], setup, sampling=Sampling()))
    with pytest.raises(ValueError, match="'dark'"):
        asyncio.run(run_episode(world.dark, setup, sampling=Sampling()))
    with pytest.raises(ValueError, match=r"shorter|longer"):
        asyncio.run(rollout([world.dark], setup, sampling=Sampling(), partners=[world.bright] * 2))


def test_each_rollout_of_a_sample_is_shown_its_own_partner(world: World) -> None:
    setup = world.setup(act("crop", box=LOOK), say("42"), mode="swapped")
    episodes = asyncio.run(
        rollout(
            [world.dark, world.bright],
            setup,
            sampling=Sampling(max_tokens=400),
            group_size=2,
            partners=[world.bright, world.dark],
        )
    )
    roots = [e.images["img_1"].roots()[0] for e in episodes]
    bright, dark = world.bright.images[0], world.dark.images[0]
    assert roots == [bright, bright, dark, dark]


# --- partners -------------------------------------------------------------------------------------


def test_a_partner_is_the_next_sample_with_other_pictures(world: World) -> None:
    again = replace(world.dark, id="again")  # another question about the same chart
    samples = [world.dark, again, world.bright]
    found = partners_among(samples, mode="swapped")
    assert [p.id for p in found] == ["bright", "bright", "dark"]
    third = replace(world.bright, id="third", images=(world.store.add(root_view(GRAY)),))
    ring = partners_among([world.dark, world.bright, third], mode="swapped")
    assert [p.id for p in ring] == ["bright", "third", "dark"]
    assert partners_among(samples, mode="black") == []


def test_samples_of_one_cluster_are_no_partners(world: World) -> None:
    """One chart drawn twice has two pictures and the same numbers."""
    meta = ((CLUSTER, "c1"),)
    dark, bright = replace(world.dark, meta=meta), replace(world.bright, meta=meta)
    with pytest.raises(DataError, match="'dark'"):
        partner_of(dark, [bright, replace(world.bright, images=())])
    other = replace(bright, meta=((CLUSTER, "c2"),))
    assert partner_of(dark, [bright, other]) == other


# --- what is kept ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["swapped", "black"])
def test_what_was_shown_and_what_was_called_is_read_again_from_the_run_folder(
    world: World, mode: Observation, tmp_path: Path
) -> None:
    lines = (act("crop", box=LOOK), act("crop", image="img_1", box=LOOK), say("42"))
    episode = world.play(*lines, mode=mode)
    world.store.save(episode.images.values(), tmp_path)
    back = episode_from_json(json.loads(json.dumps(episode_to_json(episode))))
    assert back == episode
    store = ImageStore(tmp_path)
    recorded = [p.image for r in back.results for p in r.parts if isinstance(p, ImageShown)]
    for image in (*back.images.values(), *recorded):
        pixels = np.asarray(store.view(image).pixels)
        assert (pixels == np.asarray(world.store.view(image).pixels)).all()
    assert gaze_picture(back, store).width > 100
