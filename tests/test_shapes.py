"""The shapes worlds: boxes are those of the pixels that can be seen, answers follow from them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from saccade.errors import RecipeError
from saccade.geometry import Box, iou
from saccade.image_store import ImageStore
from saccade.rewards import Rubric, answer, valid_calls
from saccade.rewards.grounded import asks_for_boxes
from saccade.tasks import Task, task_named
from saccade.tasks.check import check
from saccade.tasks.hacks import HACKS, PRICED_WHERE_COUNTED, UNPRICED, hacked
from saccade.tasks.mix import Mix
from saccade.worlds.drawing import COLORS
from saccade.worlds.shapes import (
    CLEAR,
    COUNTS,
    RELATIONS,
    SPLITS,
    TRAINED_SHAPES,
    UNSEEN_SHAPES,
    SceneItem,
    Thing,
    World,
    directions,
    item,
    tally_question,
)

COUNT = 120
VSR = [item("vsr", "test", i) for i in range(COUNT)]
TALLY = [item("tally", "test", i) for i in range(COUNT)]


def side(scene: SceneItem) -> int:
    return min(scene.scene.image.size)


def middle_is_saturated(picture: Image.Image, thing: Thing) -> bool:
    """Things have a hue, and backgrounds have none: some pixel of the box must be coloured."""
    cut = picture.crop(tuple(round(v) for v in thing.box.as_tuple()))  # type: ignore[arg-type]
    pixels = np.asarray(cut, dtype=int)
    return bool((pixels.max(axis=2) - pixels.min(axis=2) > 60).mean() > 0.1)


@pytest.mark.parametrize("world", ["vsr", "tally"])
def test_an_item_is_a_function_of_its_place(world: World) -> None:
    for split in SPLITS:
        one, again, other = (item(world, split, i) for i in (3, 3, 4))
        assert one.id == again.id == f"shapes_{world}/{split}/3"
        assert one.scene.image.tobytes() == again.scene.image.tobytes()
        assert one.evidence == again.evidence
        assert one.scene.image.tobytes() != other.scene.image.tobytes()
    with pytest.raises(ValueError, match="Unknown split 'dev'"):
        item(world, "dev", 0)


def test_splits_share_no_picture() -> None:
    seen = Counter(
        item(world, split, i).scene.image.tobytes()
        for world in ("vsr", "tally")
        for split in SPLITS
        for i in range(8)
    )
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("items", [VSR, TALLY])
def test_boxes_hold_what_was_drawn_and_stay_on_the_picture(items: list[SceneItem]) -> None:
    for scene in items:
        width, height = scene.scene.image.size
        for thing in scene.scene.things:
            assert thing.box == thing.box.clip(width, height)
            assert middle_is_saturated(scene.scene.image, thing)
            assert min(thing.box.width, thing.box.height) > 0.04 * side(scene)


def test_a_box_is_tight_around_the_pixels_that_can_be_seen() -> None:
    """Of a thing alone on a plain ground every edge of its box meets its colour."""
    checked = 0
    for scene in VSR:
        pixels = np.asarray(scene.scene.image, dtype=int)
        hue = pixels.max(axis=2) - pixels.min(axis=2) > 60
        for thing in scene.scene.things:
            others = [t for t in scene.scene.things if t is not thing]
            around = thing.box.expand(4)
            if any(around.intersection(t.box) for t in others):
                continue
            x0, y0, x1, y1 = (int(v) for v in around.clip(*scene.scene.image.size).as_tuple())  # type: ignore[union-attr]
            rows = np.flatnonzero(hue[y0:y1, x0:x1].any(axis=1)) + y0
            columns = np.flatnonzero(hue[y0:y1, x0:x1].any(axis=0)) + x0
            seen = Box(columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert iou(seen, thing.box) > 0.85
            assert np.abs(np.subtract(seen.as_tuple(), thing.box.as_tuple())).max() <= 2
            checked += 1
    assert checked > 100


def test_every_relation_is_asked_and_is_true_as_often_as_false() -> None:
    asked = Counter((s.kind, s.answer) for s in (item("vsr", "train", i) for i in range(700)))
    assert {kind for kind, _ in asked} == set(RELATIONS)
    for relation in RELATIONS:
        assert asked[relation, "true"] + asked[relation, "false"] > 60
        share = asked[relation, "true"] / (asked[relation, "true"] + asked[relation, "false"])
        assert 0.3 < share < 0.7


def test_relations_follow_from_the_boxes() -> None:
    for scene in VSR:
        a, b = scene.evidence
        holds = scene.answer == "true"
        assert scene.question == f"Is the {a.name} {scene.kind} the {b.name}?"
        if scene.kind in ("left of", "right of", "above", "below"):
            assert (scene.kind in directions(a.box, b.box, clear=CLEAR * side(scene))) == holds
        elif scene.kind == "inside":
            common = a.box.intersection(b.box)
            assert ((common is not None) and common.area == a.box.area) == holds
        elif scene.kind == "touching":
            near = a.box.expand(1.5).intersection(b.box)
            assert (near is not None) or not holds


def test_touching_things_have_no_gap_and_others_a_clear_one() -> None:
    """By the pixels: the shortest way between the two colours."""
    told = Counter[str]()
    for scene in (s for s in VSR if s.kind == "touching"):
        first, second = scene.evidence
        if first.color == second.color:
            continue
        gap = _gap(scene)
        told[scene.answer] += 1
        if scene.answer == "true":
            assert gap <= 3.0
        else:
            assert gap > 0.7 * CLEAR * side(scene)
    assert min(told["true"], told["false"]) >= 4


def _gap(scene: SceneItem) -> float:
    from scipy import ndimage

    pixels = np.asarray(scene.scene.image, dtype=float)
    hue = pixels.max(axis=2) - pixels.min(axis=2) > 50
    shares = pixels / pixels.sum(axis=2, keepdims=True).clip(1)  # shades of a colour are one
    masks, off = [], []
    for thing in scene.evidence:
        tones = np.array(COLORS[thing.color], dtype=float)
        away = shares[:, :, None] - tones / tones.sum(axis=1, keepdims=True)
        off.append(np.abs(away).sum(axis=3).min(axis=2))
        mask = np.zeros_like(hue)
        x0, y0, x1, y1 = (int(v) for v in thing.box.as_tuple())
        mask[y0:y1, x0:x1] = hue[y0:y1, x0:x1]
        masks.append(mask)
    masks[0] &= off[0] < off[1]  # where boxes meet, the colour tells whose a pixel is
    masks[1] &= off[1] < off[0]
    return float(ndimage.distance_transform_edt(~masks[0])[masks[1]].min())


def test_what_lies_behind_is_covered_in_part_and_seen_for_the_most() -> None:
    for scene in (s for s in VSR if s.kind == "behind"):
        a, b = scene.evidence
        order = [t.name for t in scene.scene.things]
        assert (order.index(a.name) < order.index(b.name)) == (scene.answer == "true")
        assert a.box.intersection(b.box) is not None


def test_what_is_named_is_the_only_one_of_its_name() -> None:
    for scene in VSR:
        names = [t.name for t in scene.scene.things]
        assert all(names.count(t.name) == 1 for t in scene.evidence)


def test_counts_are_those_of_the_picture_with_a_box_for_each() -> None:
    for scene in TALLY:
        same = [t for t in scene.scene.things if tally_question(t.name) == scene.question]
        assert len(same) == int(scene.answer) == len(scene.evidence)
        assert set(scene.evidence) == set(same)
    counts = Counter(int(s.answer) for s in (item("tally", "train", i) for i in range(500)))
    assert set(counts) == set(COUNTS)


def test_distractors_share_a_colour_or_a_form() -> None:
    near = 0
    for scene in TALLY:
        words = scene.question.split()
        color = words[2]
        others = [t for t in scene.scene.things if t not in scene.evidence]
        near += any(t.color == color or t.shape in words[3] for t in others)
    assert near > 0.6 * COUNT


def test_unseen_shapes_and_sizes_are_in_their_split_alone() -> None:
    for world in ("vsr", "tally"):
        known = {t.shape for i in range(60) for t in item(world, "train", i).scene.things}
        assert known <= set(TRAINED_SHAPES)
        unseen = [t for i in range(60) for t in item(world, "test_unseen", i).scene.things]
        assert set(UNSEEN_SHAPES) <= {t.shape for t in unseen}
        assert len([t for t in unseen if t.shape in UNSEEN_SHAPES]) > 0.25 * len(unseen)

    def sizes(split: str) -> list[float]:
        """Of things beside which none must be laid out in a way of its own."""
        scenes = (item("vsr", split, i) for i in range(200))
        beside = [s for s in scenes if s.kind in ("left of", "right of", "above", "below")]
        found = [(t, s.scene.image.width) for s in beside for t in s.evidence]
        return [max(t.box.width, t.box.height) / wide for t, wide in found]

    known_sizes, unseen_sizes = sizes("train"), sizes("test_unseen")
    assert min(unseen_sizes) < 0.9 * min(known_sizes)
    assert max(unseen_sizes) > 1.1 * max(known_sizes)


# --- tasks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shapes_vsr", "shapes_tally"])
@pytest.mark.parametrize("split", ["test", "test_unseen"])
def test_the_tasks_keep_their_promises(name: str, split: str) -> None:
    report = check(task_named(name, {}), split, count=40)
    assert report.problems == ()
    assert (report.gold_accuracy, report.wrong_accuracy) == (1.0, 0.0)
    assert [h.name for h in report.hacks] == list(HACKS)


def test_a_sample_has_its_boxes_and_its_stratum() -> None:
    for name, stratum in (("shapes_vsr", "relations"), ("shapes_tally", "counts")):
        task = task_named(name, {})
        samples = task.load("train", store=ImageStore(), start=2, count=3)
        assert [s.id for s in samples] == [f"{name}/train/{i}" for i in (2, 3, 4)]
        assert {s.stratum for s in samples} == {stratum}
        assert all(e.phrase for s in samples for e in s.evidence)
        with pytest.raises(RecipeError, match="has no split 'dev'"):
            task.size("dev")
        with pytest.raises(RecipeError, match="has no end"):
            task.load("train", store=ImageStore())


def test_each_hack_earns_less_than_honesty_in_our_mode_alone() -> None:
    samples = []
    for name in ("shapes_vsr", "shapes_tally"):
        task = task_named(name, {})
        loaded = task.load("test", store=ImageStore(), count=40)
        samples += [(s, task.gold(s), task.wrong(s)) for s in loaded if s.answer != "0"]
    rows = {row.name: row for row in hacked(samples)}
    honest = rows["honest, right"].earned
    for name, row in rows.items():
        if name in ("honest, right", *UNPRICED, *PRICED_WHERE_COUNTED):
            continue
        assert row.earned["ours"] < honest["ours"] - 0.15
        if not row.is_right:
            assert row.most["ours"] == 0.0
            assert row.earned["released"] > 1.9
    assert rows["specks"].earned["released"] > honest["released"] - 0.05
    assert rows["never closed"].earned["paper"] > honest["paper"]
    for name in UNPRICED:  # told in the docs; the moment it is priced, this should say so
        assert rows[name].earned["ours"] == pytest.approx(honest["ours"], abs=0.01)
    counts = [(s, g, w) for s, g, w in samples if s.kind == "count" and int(s.answer) > 2]
    told = {row.name: row for row in hacked(counts)}
    for name in PRICED_WHERE_COUNTED:
        assert told[name].earned["ours"] < told["honest, right"].earned["ours"] - 0.15
        assert rows[name].earned["ours"] > told[name].earned["ours"]
    with pytest.raises(ValueError, match="got none"):
        hacked([])


def test_a_mix_takes_turns_and_every_piece_is_the_same_stream() -> None:
    store = ImageStore()
    mix = task_named("mix", {"parts": ["shapes_vsr", {"name": "shapes_tally"}, "charts"]})
    ids = [s.id for s in mix.load("train", store=store, start=0, count=8)]
    assert ids[:4] == [
        "shapes_vsr/train/0", "shapes_tally/train/0", "charts/train/0", "shapes_vsr/train/1",
    ]  # fmt: skip
    for start in range(5):
        piece = mix.load("train", store=store, start=start, count=3)
        assert [s.id for s in piece] == ids[start : start + 3]
        assert all(mix.gold(s) == s.answer != mix.wrong(s) for s in piece)
    assert mix.size("train") is None
    assert check(mix, "test", count=12).problems == ()


def test_parts_of_a_mix_may_be_answered_in_any_form() -> None:
    parts = [{"name": "shapes_vsr"}, {"name": "charts", "form": "free"}]
    mix = task_named("mix", {"parts": parts})
    store = ImageStore()
    scene, chart = mix.load("train", store=store, start=0, count=2)
    assert (asks_for_boxes(scene), asks_for_boxes(chart)) == (True, False)
    found = mix.find(chart.id, store=store)
    assert found is not None
    assert not asks_for_boxes(found)
    with pytest.raises(RecipeError, match=r"Part 'charts' of task mix: form can be free, got 'f'"):
        task_named("mix", {"parts": [{"name": "charts", "form": "f"}]})


def test_a_mix_of_other_tasks_than_there_are_is_refused() -> None:
    for parts, said in (
        ([], "needs parts"),
        (["charts", "charts"], "part 'charts' twice"),
        (["charts", "shapes"], "Unknown task 'shapes'"),
        ([{"path": "x"}], "needs parts with names"),
    ):
        with pytest.raises(RecipeError, match=said):
            task_named("mix", {"parts": parts})


def test_a_mix_ends_with_its_first_part_and_scores_by_one_rule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Short:
        name = "short"
        rubric = Rubric(((answer, 1.0),))

        def size(self, split: str) -> int | None:
            return 2

    made: dict[str, object] = {"short": Short(), "shapes_vsr": task_named("shapes_vsr", {})}

    def named(name: str, options: object) -> Task:
        return made[name]  # type: ignore[return-value]

    monkeypatch.setattr("saccade.tasks.mix.task_named", named)
    assert Mix(parts=["shapes_vsr", "short"]).size("test") == 4
    made["short"] = other = Short()
    other.rubric = Rubric(((valid_calls, 1.0),))
    with pytest.raises(RecipeError, match="can't score 'short'"):
        Mix(parts=["shapes_vsr", "short"])
