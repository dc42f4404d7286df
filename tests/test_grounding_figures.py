"""The figures of boxes in thoughts: in the right frame, one to one, None where they don't apply."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from PIL import Image

from saccade.dialects import NOTATIONS
from saccade.dialects.grounded import Grounded
from saccade.evaluate import (
    VALUES,
    SampleRow,
    format_table,
    paired,
    results_json,
    row_of,
    summarise,
)
from saccade.geometry import Box, Frame
from saccade.grounding import boxes_named
from saccade.grounding_figures import Grounding, grounding_of, mean_matched_iou
from saccade.images import root_view
from saccade.ladder.figures.draws import Resampling
from saccade.ladder.figures.statistics import arm_figures, differences
from saccade.rewards import Rubric, answer
from saccade.types import (
    BoxNamed,
    Episode,
    Evidence,
    ImageRef,
    Message,
    Sample,
    StopReason,
    Text,
    TurnRecord,
)
from saccade.validation import shares_of_boxes

IMAGE = ImageRef("a" * 64, 640, 480)
RUBRIC = Rubric(((answer, 1.0),))
TWO = (Box(0, 0, 100, 100), Box(200, 200, 300, 300))


def resized(image: ImageRef) -> Frame:
    """640 x 480 under the published budget."""
    return Frame.resized(image.width, image.height, resized_width=504, resized_height=364)


def episode(
    boxes: Sequence[str], golds: Sequence[Box] = TWO, *, said: str = "2", name: str = "s"
) -> Episode:
    sample = Sample(
        name, "How many?", (IMAGE,), "2", tuple(Evidence(IMAGE, b) for b in golds), kind="count"
    )
    text = (
        f"<think> it {' '.join(boxes)} </think> <rethink> so </rethink> <answer> {said} </answer>"
    )
    parsed = Grounded().parse(text)
    named, refused = boxes_named(
        parsed, NOTATIONS["inline"], images={"img_0": IMAGE}, frame=resized
    )
    return Episode(
        sample,
        messages=(Message("assistant", (Text(text),)),),
        turns=(TurnRecord(parsed, named=named, refused=refused),),
        stop=StopReason.ANSWERED,
    )


def written(*boxes: Box) -> list[str]:
    return [f"[{', '.join(str(v) for v in resized(IMAGE).encode_box(b))}]" for b in boxes]


def figures(boxes: Sequence[str], golds: Sequence[Box] = TWO) -> Grounding:
    return grounding_of(episode(boxes, golds), frame=resized)


def test_perfect_boxes_are_perfect_in_every_figure_but_the_published_one() -> None:
    found = figures(written(*TWO))
    assert (found.boxes, found.invalid, found.redundant, found.f1) == (2, 0, 0, 1.0)
    for value in (found.mean_iou, found.recall_iou, found.union_iou):
        assert value == pytest.approx(1.0, abs=0.03)
    assert found.union_iou_unscaled is not None
    assert found.union_iou_unscaled < 0.5


def test_extra_boxes_cost_f1_and_union_and_not_recall() -> None:
    found = figures(written(*TWO, Box(400, 0, 600, 200)))
    assert found.f1 == pytest.approx(0.8)
    assert found.recall_iou == pytest.approx(1.0, abs=0.03)
    assert found.union_iou == pytest.approx(1 / 3, abs=0.02)


def test_one_box_serves_one_thing_where_matches_are_one_to_one() -> None:
    near = (Box(0, 0, 100, 100), Box(10, 0, 110, 100))
    found = figures(written(near[0]), near)
    assert found.f1 == pytest.approx(2 / 3)
    assert found.mean_iou == pytest.approx(0.5, abs=0.03)
    assert found.recall_iou is not None
    assert found.recall_iou > 0.85


def test_boxes_on_a_masked_picture_are_told_as_on_its_original() -> None:
    """Their agreement with what they name was 0, and so was the published frame error's IoU."""
    shown = root_view(Image.new("RGB", (640, 480)))
    hidden = shown.masked([Box(500, 400, 600, 470)])
    golds = tuple(Evidence(shown.ref, box, "cup") for box in TWO)
    sample = Sample("s", "How many?", (shown.ref,), "2", golds, kind="count")
    found = []
    for view in (shown, hidden):
        named = tuple(BoxNamed(view.ref, box, "cup") for box in TWO)
        told = replace(episode([]), sample=sample)
        told = replace(told, turns=(told.turns[0]._replace(named=named),))
        found.append(grounding_of(told, frame=resized))
    assert found[0] == found[1]
    assert (found[0].f1, found[0].agreement) == (1.0, 1.0)
    assert found[0].union_iou_unscaled


def test_boxes_where_nothing_is_to_be_counted_are_told() -> None:
    """They stand in no other figure, for want of evidence."""
    none = replace(
        episode(written(*TWO), (), said="0"), sample=Sample("s", "?", (IMAGE,), "0", kind="count")
    )
    assert grounding_of(none, frame=resized).on_nothing == 1.0
    without = replace(none, turns=(none.turns[0]._replace(named=()),))
    assert grounding_of(without, frame=resized).on_nothing == 0.0
    for other in (
        episode(written(*TWO)),
        replace(none, sample=replace(none.sample, kind="relation")),
    ):
        assert grounding_of(other, frame=resized).on_nothing is None


def test_no_box_is_nothing_found_and_no_evidence_is_nothing_to_find() -> None:
    none = figures([])
    assert (none.boxes, none.f1, none.mean_iou, none.recall_iou, none.union_iou) == (0, 0, 0, 0, 0)
    free = figures(written(*TWO), ())
    assert (free.boxes, free.f1, free.mean_iou, free.union_iou) == (2, None, None, None)


def test_what_is_no_box_repeats_one_or_shows_all_costs_precision() -> None:
    found = figures([*written(*TWO), "[0, 0, 0, 0]", *written(TWO[0]), "[0, 0, 504, 364]"])
    assert (found.boxes, found.invalid, found.wholes, found.redundant) == (5, 1, 1, 1)
    assert found.f1 == pytest.approx(4 / 7)
    assert found.recall_iou == pytest.approx(1.0, abs=0.03)
    whole = sum(b.area for b in TWO) / (IMAGE.width * IMAGE.height)
    assert found.union_iou == pytest.approx(whole, abs=0.02)


@pytest.mark.parametrize("box", [Box(100, 100, 104, 104), Box(3, 3, 637, 477)])
def test_boxes_of_any_size_are_compared(box: Box) -> None:
    """Form rewards take specks and wholes for no look; things may be as small and as large."""
    found = figures(written(box), (box,))
    assert (found.invalid, found.specks + found.wholes) == (0, 1)
    assert found.f1 == 1.0
    assert found.mean_iou is not None
    assert found.mean_iou > 0.5


def test_boxes_on_another_picture_cost_precision() -> None:
    made = episode(written(*TWO))
    other = ImageRef("b" * 64, 640, 480)
    [turn] = made.turns
    elsewhere = turn.named[1].__class__(other, TWO[1])
    moved = Episode(
        made.sample, made.rollout_index, made.messages,
        (turn._replace(named=(turn.named[0], elsewhere)),), stop=made.stop,
    )  # fmt: skip
    assert grounding_of(moved, frame=resized).f1 == pytest.approx(0.5)


def test_the_mean_of_matches() -> None:
    assert mean_matched_iou([], [Box(0, 0, 1, 1)]) is None
    assert mean_matched_iou([Box(0, 0, 1, 1)], []) == 0.0
    assert mean_matched_iou(TWO, [TWO[1], TWO[0]]) == 1.0


# --- rows and summaries ---------------------------------------------------------------------------


def row(boxes: Sequence[str], *, said: str = "2", name: str = "s") -> SampleRow:
    return row_of(episode(boxes, said=said, name=name), RUBRIC, grounded_in=resized)


def test_a_row_comes_back_with_its_boxes_and_without_where_none_were_asked_for() -> None:
    whole = row(written(*TWO))
    assert SampleRow.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    bare = row_of(episode(written(*TWO)), RUBRIC)
    assert bare.grounding is None
    assert "grounding" not in bare.to_json()
    assert VALUES["f1"](bare) is None
    assert VALUES["acc_at_0_5"](bare) is None


def test_right_and_found_needs_both() -> None:
    value = VALUES["acc_at_0_5"]
    assert value(row(written(*TWO))) == 1.0
    assert value(row(written(*TWO), said="3")) == 0.0
    assert value(row(written(Box(400, 400, 500, 470)))) == 0.0


def test_every_figure_has_its_interval() -> None:
    rows = [
        row(written(*TWO), name="a"),
        row(written(TWO[0]), name="b", said="1"),
        row([], name="c"),
    ]
    summary = summarise(rows, bootstrap=200)
    f1 = summary.grounding["f1"]["all"]
    assert f1.estimate == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert f1.low is not None
    assert f1.low <= f1.estimate
    assert summary.grounding["boxes"]["all"].estimate == 1.0
    for kind in ("invalid", "specks", "wholes"):
        assert summary.grounding[kind]["all"].estimate == 0.0  # of those that wrote any
    mixed = row([*written(TWO[0]), "[9, 9, 10, 10]", "[0, 0, 503, 363]", "[9, 9, 1, 1]"])
    for kind in ("invalid", "specks", "wholes"):
        assert VALUES[kind](mixed) == 0.25
    bare = summarise([row_of(episode([]), RUBRIC)], bootstrap=10)
    assert bare.grounding == {}
    assert "grounding" not in bare.to_json()
    results = results_json({"ours": summary, "bare": bare}, ())
    heads = [str(c) for c in format_table(results).columns[0].cells]
    assert "f1 all" in heads
    assert "union_iou_unscaled all" in heads
    pair = paired(rows, rows, metric="mean_iou", bootstrap=50)
    assert pair.difference is not None
    assert pair.difference.estimate == 0.0


def test_shares_of_boxes_are_over_all_boxes_here_as_while_a_model_is_trained() -> None:
    """The mean of the shares of answers would let an answer of one box weigh as much as of nine."""
    reversed_box = "[50, 50, 10, 10]"
    many = [f"[{x}, 10, {x + 40}, 60]" for x in range(0, 400, 50)]
    one, nine = episode([reversed_box], name="a"), episode([*many, reversed_box], name="b")
    told = [row_of(e, RUBRIC, grounded_in=resized) for e in (one, nine)]
    pooled = shares_of_boxes([one, nine])["invalid"]
    assert pooled == pytest.approx(2 / 10)
    assert summarise(told, bootstrap=50).grounding["invalid"]["all"].estimate == pooled
    arm = {0: told, 1: told}
    found = arm_figures(arm, resampling=Resampling(100)).by_stratum["invalid"]["all"]
    assert found.estimate == pytest.approx(pooled)
    speck, whole = "[50, 50, 51, 51]", "[0, 0, 999, 999]"
    several = [
        row_of(e, RUBRIC, grounded_in=resized)
        for e in (episode([speck, whole], name="a"), episode([*many, speck], name="b"))
    ]
    shares = summarise(several, bootstrap=50).grounding
    assert shares["specks"]["all"].estimate == pytest.approx(2 / 11)
    assert shares["wholes"]["all"].estimate == pytest.approx(1 / 11)
    good = [row(many[:1], name="a"), row(many[:3], name="b")]
    for difference in (
        paired(told, good, metric="invalid", bootstrap=50).difference,
        differences(arm, {0: good}, metric="invalid", resampling=Resampling(100))
        .by_stratum["all"]
        .interval,
    ):
        assert difference is not None
        assert difference.estimate == pytest.approx(pooled)


def test_what_a_control_changed_is_told_by_kind() -> None:
    whole = row(written(*TWO))
    rows = [
        replace(whole, id="a", kind="left of", before="2", answer="3"),
        replace(whole, id="b", kind="left of", before="2", answer="2"),
        replace(whole, id="c", kind="inside", before="2", answer="2"),
        replace(whole, id="d", kind="behind"),
        replace(whole, id="e", kind="inside", before="2", answer=None),  # lost, and none other
    ]
    summary = summarise(rows, bootstrap=100)
    assert summary.grounding["lost"]["all"].estimate == 0.25
    changed = {kind: interval.estimate for kind, interval in summary.changed_kinds.items()}
    assert changed == {"left of": 0.5, "inside": 0.0}  # of d nothing was changed
    heads = [str(c) for c in format_table(results_json({"a": summary}, ())).columns[0].cells]
    assert "changed, left of" in heads
    assert "changed_kinds" not in summarise([whole], bootstrap=100).to_json()


def named_episode(*told: tuple[str, Box]) -> Episode:
    """Evidence is a red star and two blue squares."""
    names = ("red star", "blue square", "blue square")
    places = (*TWO, Box(400, 300, 500, 400))
    golds = tuple(Evidence(IMAGE, b, n) for b, n in zip(places, names, strict=True))
    boxes = ", ".join(f"{phrase} {written(box)[0]}" for phrase, box in told)
    made = episode([boxes])
    return replace(made, sample=replace(made.sample, evidence=golds))


def agreement(*told: tuple[str, Box]) -> tuple[float | None, float | None]:
    found = grounding_of(named_episode(*told), frame=resized)
    return found.agreement, found.agreement_random


def test_boxes_agree_where_they_lie_on_what_their_phrase_names() -> None:
    star, square = TWO
    assert agreement(("the red star", star), ("blue square", square))[0] == 1.0
    assert agreement(("red star", square), ("blue square", star))[0] == 0.0
    assert agreement(("red star", star), ("blue square", star.moved(150, 0)))[0] == 0.5


def test_a_place_that_is_called_by_two_names_agrees_with_one_of_them() -> None:
    star = TWO[0]
    twice = (("red star", star), ("blue square", star))
    assert agreement(*twice)[0] == 0.5
    assert agreement(*reversed(twice))[0] == 0.5  # whichever stands first


def test_what_is_said_again_costs_no_figure() -> None:
    made = episode([f"it {written(TWO[0])[0]}", f"that {written(TWO[1])[0]}"])
    [turn] = made.turns
    again = [replace(box, is_rethought=True) for box in turn.named]
    doubled = replace(made, turns=(turn._replace(named=(*turn.named, *again)),))
    assert grounding_of(doubled, frame=resized) == grounding_of(made, frame=resized)


def test_what_is_only_numbered_has_the_last_name() -> None:
    told = (("blue square 1", TWO[1]), ("2", Box(400, 300, 500, 400)))
    assert agreement(*told)[0] == 1.0
    beside = (("blue square 1", TWO[1]), ("2", TWO[1]), ("3", TWO[0]), ("red star 1", TWO[0]))
    assert agreement(*beside)[0] == 0.75  # a place told twice counts twice, and its name goes on


def test_boxes_of_other_things_neither_agree_nor_disagree() -> None:
    assert agreement(("green heart", TWO[0])) == (None, None)
    assert agreement(("green heart", TWO[1]), ("red star", TWO[0]))[0] == 1.0


def test_random_boxes_of_the_same_sizes_agree_by_chance_alone() -> None:
    small = agreement(("red star", TWO[0]), ("blue square", TWO[1]))[1]
    whole = agreement(("red star", Box(0, 0, 560, 440)))[1]
    assert small is not None
    assert small < 0.2
    assert whole == 0.0  # IoU with so large a box is never half
    assert agreement(("red star", TWO[0])) == agreement(("red star", TWO[0]))
