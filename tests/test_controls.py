"""Counterfactuals: each changes one thing, and the model goes on from there or is asked anew."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade import measure
from saccade.config import Recipe
from saccade.controls import CONTROLS, Counterfactual, _four, _jittered, counterfactual, masked
from saccade.dialects import NOTATIONS, dialect
from saccade.engines import Sampling, TurnRequest
from saccade.engines.scripted import ScriptedEngine
from saccade.errors import DataError, RecipeError
from saccade.geometry import Box, Frame, iou
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.models.tiny import SETTINGS, build_tokenizer
from saccade.recipe_files import load_recipe
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.rollout import Limits, Setup, run_episode
from saccade.run_folder import RunFolder
from saccade.tasks.files import Files
from saccade.types import BoxNamed, Episode, ImageRef, Parsed, Sample, TurnRecord

RENDERER = Qwen2VLRenderer(build_tokenizer(), SETTINGS)
INLINE = NOTATIONS["inline"]
A, B = "[100, 100, 200, 300]", "[600, 500, 900, 700]"
CHAIN = f"<think> a cup {A}, a can {B} </think>"
REST = " <rethink> left </rethink> <answer> true </answer>"


def frame(image: ImageRef) -> Frame:
    return Frame.thousand(image.width, image.height)


class World:
    """A store with one picture, and an engine that says what it is told."""

    def __init__(self) -> None:
        self.store = ImageStore()
        noise = np.random.default_rng(0).integers(0, 255, (200, 400, 3), np.uint8)
        self.image = self.store.add(root_view(Image.fromarray(noise)))

    def play(self, text: str, *, name: str = "s", begun: str = "") -> Episode:
        self.engine = ScriptedEngine({name: [text]}, ids=True)
        setup = Setup(
            engine=self.engine,
            dialect=dialect("grounded", style="silent"),
            store=self.store,
            renderer=RENDERER,
            notation=INLINE,
            limits=Limits(1, 400, 2000),
        )
        sample = Sample(name, "Is the cup left of the can?", (self.image,), "true")
        return asyncio.run(run_episode(sample, setup, sampling=Sampling(), begun=begun))

    def change(
        self, control: Any, text: str = CHAIN + REST, **options: Any
    ) -> Counterfactual | None:
        return counterfactual(
            control, self.play(text), notation=INLINE, frame=frame, store=self.store, **options
        )


@pytest.fixture
def world() -> World:
    return World()


def values(found: Counterfactual | None) -> list[tuple[float, ...]]:
    assert found is not None
    return [b.values for b in INLINE.find(found.begun) if b.values is not None]


# --- chains ---------------------------------------------------------------------------------------


def test_stripped_chains_keep_their_phrases(world: World) -> None:
    found = world.change("stripped")
    assert found is not None
    assert found.begun == "<think> a cup , a can  </think>"
    assert found.sample.images == (world.image,)


def test_exchanged_boxes_change_places(world: World) -> None:
    found = world.change("exchanged")
    assert values(found) == [(600, 500, 900, 700), (100, 100, 200, 300)]
    assert found is not None
    assert [b.phrase for b in INLINE.find(found.begun)] == ["a cup", "a can"]
    assert world.change("exchanged", f"<think> a cup {A} </think>{REST}") is None
    assert world.change("exchanged", f"<think> a {A} b {A} </think>{REST}") is None


def test_jittered_boxes_move_by_a_twentieth_and_random_ones_keep_their_size(world: World) -> None:
    fine = [(101, 100, 203, 300), (600, 500, 900, 700)]
    listed = f"<think> a {[*fine[0]]}, b {[*fine[1]]} </think>{REST}"
    jittered = values(world.change("jittered", listed))
    for old, new in zip(fine, jittered, strict=True):
        reach = (0.05 * (old[2] - old[0]), 0.05 * (old[3] - old[1])) * 2
        assert all(abs(a - b) <= r + 0.5 for a, b, r in zip(old, new, reach, strict=True))
        assert old != new
    before = [(100, 100, 200, 300), (600, 500, 900, 700)]
    placed = values(world.change("random"))
    for old, new in zip(before, placed, strict=True):
        assert abs((new[2] - new[0]) - (old[2] - old[0])) <= 10
        assert 0 <= new[0] < new[2] <= 1000
    assert placed == values(world.change("random"))
    assert placed != values(world.change("random", seed=1))


def test_numbers_that_a_control_puts_in_are_as_coarse_as_the_model_s_own(world: World) -> None:
    """A model that only writes tens would be off its habits behind any other number."""
    for control in ("jittered", "random"):
        found = values(world.change(control))
        assert all(n % 10 == 0 for box in found for n in box), control
    fives = f"<think> a [105, 100, 300, 400] </think>{REST}"
    assert all(n % 5 == 0 for box in values(world.change("random", fives)) for n in box)
    small = f"<think> a [100, 100, 120, 120] </think>{REST}"
    assert world.change("jittered", small) is None  # a step of ten would make another box of it


tens = st.integers(0, 100).map(lambda n: 10 * n)
boxes_in_tens = st.tuples(tens, tens, tens, tens).filter(
    lambda b: b[0] + 40 <= b[2] and b[1] + 40 <= b[3]
)


@given(st.lists(boxes_in_tens, min_size=1, max_size=4), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_every_jittered_box_is_another_one_of_the_same_thing(
    old: list[tuple[int, ...]], seed: int
) -> None:
    """A twentieth of a side is less than a step of ten for most things: half of the edges stood."""
    rng = np.random.default_rng(seed)
    for grain in (10, 5, 1):
        for before in old:
            values = _four(before)
            after = _jittered(values, Frame.thousand(400, 200), grain, rng)
            moved = [abs(a - b) for a, b in zip(after, values, strict=True)]
            assert any(moved)
            assert iou(Box(*values), Box(*after)) > 0.7
            assert all(m % grain == 0 for m in moved)
            wide, high = values[2] - values[0], values[3] - values[1]
            for by, side in zip(moved, (wide, high) * 2, strict=True):
                assert by <= max(grain, 0.05 * side)
            if min(wide, high) >= 16 * grain and min(values) > 0 and max(values) < 1000:
                assert all(moved)


def test_where_numbers_are_fractions_every_edge_is_jittered() -> None:
    old = (0.1, 0.1, 0.4, 0.3)
    new = _jittered(old, Frame.unit(400, 200), 1, np.random.default_rng(0))
    assert all(0 < abs(a - b) <= 0.015 for a, b in zip(old, new, strict=True))


def test_shuffled_boxes_are_those_of_another_episode(world: World) -> None:
    other = world.play(f"<think> x [1, 2, 30, 40] </think>{REST}", name="other")
    assert values(world.change("shuffled", partner=other)) == [(0, 0, 30, 40), (0, 0, 30, 40)]
    narrow = world.play(f"<think> x [1, 999, 4, 1000] </think>{REST}", name="other")
    assert values(world.change("shuffled", partner=narrow))[0] == (0, 990, 10, 1000)  # with an area
    fine = f"<think> a cup [101, 100, 200, 300] </think>{REST}"
    assert values(world.change("shuffled", fine, partner=other)) == [(1, 2, 30, 40)]
    listed = " ".join(f"[{n}, 2, {n + 9}, 40]" for n in range(10, 60, 10))
    several = world.play(f"<think> {listed} </think>{REST}", name="other")
    first = {
        values(world.change("shuffled", partner=several, seed=seed))[0][0] for seed in range(12)
    }
    assert len(first) > 2  # in any order: what is listed from the left would lie left each time
    bare = world.play(f"<think> x </think>{REST}", name="other")
    assert world.change("shuffled", partner=bare) is None
    assert world.change("shuffled") is None


def test_shuffled_boxes_lie_where_they_lay_on_a_picture_of_another_size(world: World) -> None:
    """In pixels of resized pictures the same numbers are another place."""
    other = world.play(f"<think> x [252, 91, 378, 182], y [0, 0, 504, 9] </think>{REST}", name="o")
    tall = world.store.add(root_view(Image.new("RGB", (480, 640))))
    other = replace(other, sample=replace(other.sample, images=(tall,)))
    sizes = {tall: (504, 364), world.image: (1008, 728)}

    def resized(image: ImageRef) -> Frame:
        wide, high = sizes[image]
        return Frame.resized(image.width, image.height, resized_width=wide, resized_height=high)

    def placed(text: str) -> set[tuple[float, ...]]:
        found = counterfactual(
            "shuffled", world.play(text), notation=INLINE, frame=resized, store=world.store,
            partner=other,
        )  # fmt: skip
        return set(values(found))

    fine = f"<think> a [1, 2, 30, 40], b [5, 6, 70, 80] </think>{REST}"
    assert placed(fine) == {(504, 182, 756, 364), (0, 0, 1007, 18)}
    assert placed(CHAIN + REST) == {(500, 180, 760, 360), (0, 0, 1000, 20)}


@pytest.mark.parametrize("control", [c for c in CONTROLS if "masked" not in c])
def test_numbers_that_are_not_finite_are_no_box_to_change(world: World, control: str) -> None:
    text = f"<think> a {A}, b [1, nan, inf, 3], c {B} </think>{REST}"
    found = world.change(control, text, partner=world.play(CHAIN + REST, name="other"))
    assert found is not None
    assert ("[1, nan, inf, 3]" in found.begun) == (control != "stripped")
    assert len(values(found)) == (0 if control == "stripped" else 3)


def test_a_box_that_cannot_be_read_stays_as_it_stands_and_the_others_keep_their_order(
    world: World,
) -> None:
    text = f"<think> a {A}, b [1, 2, 3], c {B} </think>{REST}"
    found = world.change("exchanged", text)
    assert values(found) == [(600, 500, 900, 700), (100, 100, 200, 300)]
    assert found is not None
    assert found.begun.index("600") < found.begun.index("100")
    assert "b [1, 2, 3], c" in found.begun
    bare = world.change("stripped", text)
    assert bare is not None
    assert "[" not in bare.begun


@pytest.mark.parametrize("control", [c for c in CONTROLS if c != "shuffled"])
def test_where_there_is_nothing_to_change_there_is_no_counterfactual(
    world: World, control: str
) -> None:
    assert world.change(control, f"<think> no box </think>{REST}") is None
    if "masked" not in control:
        assert world.change(control, f"<think> never closed {A}") is None


# --- pixels ---------------------------------------------------------------------------------------


def pixels(world: World, found: Counterfactual | None) -> np.ndarray:
    assert found is not None
    assert found.begun == ""
    [image] = found.sample.images
    return np.asarray(world.store.view(image).pixels)


def test_what_is_gazed_at_is_gray_or_all_but_it(world: World) -> None:
    original = np.asarray(world.store.view(world.image).pixels)
    inside = np.zeros(original.shape[:2], dtype=bool)
    for b in (Box(40, 20, 80, 60), Box(240, 100, 360, 140)):
        inside[int(b.y0) : int(b.y1), int(b.x0) : int(b.x1)] = True
    gaze = pixels(world, world.change("gaze-masked"))
    assert (gaze[inside] == 128).all()
    assert (gaze[~inside] == original[~inside]).all()
    rest = pixels(world, world.change("rest-masked"))
    assert (rest[~inside] == 128).all()
    assert (rest[inside] == original[inside]).all()


def test_random_masks_are_as_large_and_elsewhere(world: World) -> None:
    for seed in range(5):
        gray = (pixels(world, world.change("random-masked", seed=seed)) == 128).all(axis=2)
        assert gray.sum() == pytest.approx(40 * 40 + 120 * 40, rel=0.08)  # edges fall into pixels
        assert not gray[20:60, 40:80].all()
    nested = f"<think> a [100, 100, 700, 700], b [200, 200, 400, 400] </think>{REST}"
    gray = (pixels(world, world.change("random-masked", nested)) == 128).all(axis=2)
    assert gray.sum() == pytest.approx(240 * 120, rel=0.08)  # not what both would hide apart


def test_a_box_on_a_part_of_a_picture_hides_that_place_of_the_whole(world: World) -> None:
    part = world.store.add(world.store.view(world.image).crop(Box(100, 50, 300, 150)))
    sample = Sample("s", "?", (world.image,), "true")
    [(root, placed)] = part.to_roots(Box(0, 0, 20, 20))
    found = masked("gaze-masked", sample, [(root, placed.bounds)], world.store)
    assert (pixels(world, found)[50:70, 100:120] == 128).all()
    named = BoxNamed(part, Box(0, 0, 20, 20), "a")
    episode = replace(world.play(CHAIN + REST), turns=(TurnRecord(Parsed(""), named=(named,)),))
    changed = counterfactual(
        "gaze-masked", episode, notation=INLINE, frame=frame, store=world.store
    )
    assert (pixels(world, changed)[50:70, 100:120] == 128).all()


def test_gaze_on_a_masked_picture_lies_on_its_original(world: World) -> None:
    found = world.change("rest-masked")
    assert found is not None
    [image] = found.sample.images
    assert image.to_roots(Box(1, 2, 3, 4)) == world.image.to_roots(Box(1, 2, 3, 4))
    assert image.key != world.image.key


# --- going on -------------------------------------------------------------------------------------


def test_a_model_goes_on_from_what_was_begun_and_that_is_not_trained(world: World) -> None:
    episode = world.play(REST, begun=CHAIN)
    [request] = world.engine.requests
    assert [s.origin for s in request.segments] == ["prompt", "prompt"]
    assert RENDERER.decode(request.segments[1].ids) == CHAIN
    assert episode.messages[-1].text == CHAIN + REST
    assert episode.answer == "true"
    assert [b.phrase for b in episode.turns[0].named] == ["a cup", "a can"]
    assert [s.origin for s in episode.segments if s.is_trained] == ["sampled"]


# --- evaluations ----------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    lines = []
    for number in range(4):
        Image.new("RGB", (400, 200), (50 * number, 0, 0)).save(tmp_path / f"{number}.png")
        row = {"image": f"{number}.png", "question": "Is the cup left?", "answer": "true"}
        lines.append(json.dumps({**row, "id": f"q{number}"}))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


def recipe(rows: Path, run: Path, *overrides: str) -> Recipe:
    given = ["task.name=files", f"task.path={rows}", "eval.items=4", "eval.bootstrap=20"]
    grounded = ["dialect=grounded", "notation=inline", "tools=[]"]
    return load_recipe(None, [*given, *grounded, *overrides]).model_copy(update={"run": run})


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How turns began, in order. The model says that the cup is left where its box is; about q3 it
    writes no box.
    """
    found: list[str] = []

    def script(request: TurnRequest) -> str:
        last = request.segments[-1]
        begun = RENDERER.decode(last.ids) if len(request.segments) > 1 else ""
        found.append(begun)
        if request.seed[1] == "q3":
            return f"<think> no box </think>{REST}"
        if not begun:
            return CHAIN + REST
        boxes = [b.values for b in INLINE.find(begun) if b.values is not None]
        is_left = not boxes or boxes[0][0] < boxes[-1][0]
        return REST if is_left else REST.replace("true", "false")

    def answering(recipe: Recipe, **options: Any) -> Setup:
        return Setup(
            engine=ScriptedEngine(script, ids=True),
            dialect=dialect("grounded", style="silent"),
            renderer=RENDERER,
            notation=INLINE,
            limits=Limits(1, 400, 2000),
            **options,
        )

    monkeypatch.setattr(measure, "answering", answering)
    return found


@pytest.mark.parametrize(
    ("control", "changed", "accuracy"),
    [("exchanged", 1.0, 0.25), ("jittered", 0.0, 1.0), ("stripped", 0.0, 1.0),
     ("gaze-masked", 0.0, 1.0)],
)  # fmt: skip
def test_an_evaluation_asks_twice_and_measures_the_second_answer(
    rows: Path, tmp_path: Path, asked: list[str], control: str, changed: float, accuracy: float
) -> None:
    summary = measure.run(recipe(rows, tmp_path / "r", f"eval.control={control}"), arm="a")
    assert summary.n == 4
    assert summary.accuracy["all"].estimate == accuracy
    assert summary.grounding["changed"]["all"].estimate == changed
    assert len(asked) == 4 + 3  # q3 has nothing to change
    for when, right in (("right_before", 1.0), ("right_after", 1.0 - changed)):
        assert summary.grounding[when]["all"].estimate == right  # of those with boxes alone
    told = {r["id"]: r.get("before") for r in RunFolder(tmp_path / "r").rows("rows")}
    assert told == {"q0": "true", "q1": "true", "q2": "true", "q3": None}
    again = measure.run(recipe(rows, tmp_path / "r", f"eval.control={control}"), arm="a")
    assert again == summary
    assert len(asked) == 7


def test_boxes_are_shuffled_among_samples_of_one_stratum(
    rows: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a mix, the next sample is of another world, whose boxes are listed in another way."""
    told: dict[str, str | None] = {}

    def noted(control: Any, episode: Episode, **options: Any) -> Counterfactual | None:
        partner = options["partner"]
        told[episode.sample.id] = partner and partner.sample.id
        return counterfactual(control, episode, **options)

    load = Files.load

    def parted(self: Files, split: str, **options: Any) -> list[Sample]:
        found = load(self, split, **options)
        strata = {"q0": "a", "q1": "b", "q2": "a", "q3": "c"}
        return [replace(s, stratum=strata[s.id]) for s in found]

    monkeypatch.setattr(Files, "load", parted)
    monkeypatch.setattr(measure, "counterfactual", noted)
    measure.run(recipe(rows, tmp_path / "r", "eval.control=shuffled"), arm="a")
    assert told == {"q0": "q2", "q1": None, "q2": "q0", "q3": None}
    before = {r["id"]: r.get("before") for r in RunFolder(tmp_path / "r").rows("rows")}
    assert [i for i, b in before.items() if b is not None] == ["q0", "q2"]


def test_whose_boxes_are_shuffled_does_not_depend_on_where_a_run_was_broken_off(
    rows: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, str] = {}

    def noted(control: Any, episode: Episode, **options: Any) -> Counterfactual | None:
        told[episode.sample.id] = options["partner"].sample.id
        return counterfactual(control, episode, **options)

    monkeypatch.setattr(measure, "counterfactual", noted)
    made = recipe(rows, tmp_path / "r", "eval.control=shuffled")
    whole = measure.run(made, arm="a")
    partners = dict(told)
    assert partners["q0"] == "q1"
    file = tmp_path / "r" / "rows.jsonl"
    kept = [line for line in file.read_text().splitlines(True) if '"q1"' not in line]
    file.write_text("".join(kept))  # as where one of several calls failed
    told.clear()
    assert measure.run(made, arm="a").accuracy == whole.accuracy
    assert told["q1"] == partners["q1"]
    lines = file.read_text().splitlines(True)
    assert lines[:3] == kept  # the others were asked for their boxes alone
    assert len(lines) == 4


def test_a_model_is_asked_behind_the_masks_of_another_s_gaze(
    rows: Path, tmp_path: Path, asked: list[str]
) -> None:
    measure.run(recipe(rows, tmp_path / "theirs"), arm="a")
    stored = {r["id"]: r["named"] for r in RunFolder(tmp_path / "theirs").rows("rows")}
    assert stored["q3"] == []
    assert len(stored["q0"]) == 2
    assert stored["q0"][0][0] == 0
    asked.clear()
    of = f"eval.gaze_of={tmp_path / 'theirs'}"
    summary = measure.run(recipe(rows, tmp_path / "ours", "eval.control=gaze-masked", of), arm="b")
    assert summary.n == 4
    assert len(asked) == 4 + 3  # q3 has no boxes there
    assert all(not begun for begun in asked)  # pictures are changed, no chain is gone on with
    told = {r["id"]: r.get("before") for r in RunFolder(tmp_path / "ours").rows("rows")}
    assert told == {"q0": "true", "q1": "true", "q2": "true", "q3": None}


def test_masks_need_a_control_that_masks_and_boxes_of_the_same_items(
    rows: Path, tmp_path: Path, asked: list[str]
) -> None:
    with pytest.raises(RecipeError, match=r"needs an eval\.control that masks"):
        recipe(rows, tmp_path / "r", "eval.control=stripped", f"eval.gaze_of={tmp_path}")
    mask = "eval.control=gaze-masked"
    nowhere = recipe(rows, tmp_path / "r", mask, f"eval.gaze_of={tmp_path / 'nowhere'}")
    with pytest.raises(RecipeError, match="is no folder of an evaluation"):
        measure.run(nowhere, arm="a")
    (tmp_path / "empty").mkdir()
    empty = recipe(rows, tmp_path / "s", mask, f"eval.gaze_of={tmp_path / 'empty'}")
    with pytest.raises(DataError, match="has no boxes for sample 'q0'"):
        measure.run(empty, arm="a")


def test_boxes_are_measured_in_the_family_s_notation_where_the_recipe_names_none(
    rows: Path, tmp_path: Path, asked: list[str]
) -> None:
    named = measure.run(recipe(rows, tmp_path / "named"), arm="a")
    unnamed = measure.run(recipe(rows, tmp_path / "unnamed", "notation=null"), arm="a")
    assert unnamed.grounding == named.grounding
    assert named.grounding["boxes"]["all"].estimate == 1.5  # q3 has none


def test_without_a_control_each_sample_is_asked_once(
    rows: Path, tmp_path: Path, asked: list[str]
) -> None:
    summary = measure.run(recipe(rows, tmp_path / "r"), arm="a")
    assert len(asked) == 4
    assert "changed" not in summary.grounding
    with pytest.raises(RecipeError, match=r"holds a run with eval\.control"):
        measure.run(recipe(rows, tmp_path / "r", "eval.control=stripped"), arm="a")


def test_controls_of_recipes_are_those_that_there_are() -> None:
    for control in CONTROLS:
        assert load_recipe(None, [f"eval.control={control}"]).eval.control == control
    with pytest.raises(RecipeError):
        load_recipe(None, ["eval.control=blurred"])


def test_an_evaluation_deletes_nothing_of_the_folder_that_it_is_pointed_at(
    rows: Path, tmp_path: Path, asked: list[str]
) -> None:
    """GRIT's start-up deletes its output folder, and a checkpoint that lies inside with it."""
    run = tmp_path / "r"
    measure.run(recipe(rows, run, "eval.control=stripped"), arm="a")
    weights = run / "checkpoints" / "step-000150" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    before = {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
    measure.run(recipe(rows, run, "eval.control=stripped"), arm="a")
    assert weights.read_bytes() == b"weights"
    with pytest.raises(RecipeError, match=r"holds a run with eval\.control"):
        measure.run(recipe(rows, run, "eval.control=random"), arm="a")
    after = {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
    assert after == before
