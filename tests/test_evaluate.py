import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from saccade import evaluate
from saccade.coverage import clip_convex, overlap, shared_areas
from saccade.errors import DataError
from saccade.evaluate import (
    Comparison,
    Interval,
    SampleRow,
    format_table,
    paired,
    results_json,
    row_of,
    summarise,
)
from saccade.geometry import Affine, Box, Point, Polygon, union_area
from saccade.images import ImageView, root_view
from saccade.rewards import Rubric, answer_published
from saccade.rewards.answers import SCORER_VERSION
from saccade.types import (
    Answer,
    BoxFound,
    BoxNamed,
    Episode,
    Evidence,
    ImageRef,
    ImageShown,
    Parsed,
    Region,
    Sample,
    Segment,
    StopReason,
    Text,
    ToolCall,
    ToolResult,
    TurnRecord,
)

RUBRIC = Rubric(((answer_published, 1.0),))
PICTURE = ImageRef("a" * 64, 100, 80)


def row(number: int, right: bool | None = True, **changes: object) -> SampleRow:
    plain = SampleRow(
        id=f"s{number:04d}",
        rollout=0,
        kind="value",
        stratum="look",
        cluster=f"s{number:04d}",
        answer="12" if right is not None else None,
        strict=right,
        lenient=right,
        reward=None if right is None else (1.0 if right else -1.0),
        stop=StopReason.ANSWERED if right is not None else StopReason.ENGINE_FAILED,
        scored=right is not None,
        calls={},
        completion_tokens=10,
        coverage=None,
        tightness=None,
        seconds=1.0,
    )
    return replace(plain, **changes)


def rows_of(verdicts: list[bool | None], **changes: object) -> list[SampleRow]:
    return [row(n, v, **changes) for n, v in enumerate(verdicts)]


def episode(
    answer: str | None = "12",
    *,
    stop: StopReason = StopReason.ANSWERED,
    evidence: tuple[Box, ...] = (),
    seen: tuple[Box, ...] = (),
    gold: str = "12",
) -> Episode:
    sample = Sample(
        "s",
        "How much?",
        (PICTURE,),
        gold,
        tuple(Evidence(PICTURE, b) for b in evidence),
        kind="value",
        stratum="look",
    )
    view = ImageView(PICTURE, _source=lambda: Image.new("RGB", (100, 80)))
    looks = tuple(
        ToolResult(
            ToolCall(f"c{n}", "crop", {}), (ImageShown(view.crop(box).ref, f"image_{n + 2}"),)
        )
        for n, box in enumerate(seen)
    )
    said = Parsed(answer=None if answer is None else Answer(answer))
    turns = (TurnRecord(Parsed(), looks), TurnRecord(said))
    segments = (Segment("prompt", (1, 2, 3)), Segment("demonstrated", (4, 5)))
    return Episode(sample, turns=turns, segments=segments, stop=stop, seconds=2.5)


# --- rows -----------------------------------------------------------------------------------------


def test_a_row_holds_verdicts_calls_tokens_and_gaze_of_its_episode():
    made = row_of(episode(evidence=(Box(10, 10, 30, 30),), seen=(Box(10, 10, 30, 20),)), RUBRIC)
    assert (made.id, made.kind, made.stratum, made.cluster) == ("s", "value", "look", "s")
    assert (made.strict, made.lenient, made.scored, made.failure) == (True, True, True, "")
    assert (made.calls, made.completion_tokens, made.seconds) == ({"crop": 1}, 2, 2.5)
    assert (made.coverage, made.tightness) == (0.5, 1.0)


def test_strict_and_lenient_verdicts_stand_side_by_side():
    made = row_of(episode("12 apples"), RUBRIC)
    assert (made.strict, made.lenient) == (False, True)


@pytest.mark.parametrize(
    ("answer", "stop", "failure", "strict"),
    [
        ("   ", StopReason.ANSWERED, "extraction_failed", False),
        (None, StopReason.MAX_TURNS, "truncated", False),
        (None, StopReason.MAX_TOKENS, "truncated", False),
        (None, StopReason.CONTEXT_FULL, "truncated", False),
        (None, StopReason.ENGINE_FAILED, "unscored", None),
        (None, StopReason.TOOL_CRASHED, "unscored", None),
        ("13", StopReason.ANSWERED, "", False),
    ],
)
def test_every_way_to_end_without_an_answer_has_one_cause(answer, stop, failure, strict):
    made = row_of(episode(answer, stop=stop), RUBRIC)
    assert (made.failure, made.strict, made.lenient) == (failure, strict, strict)


def test_an_episode_that_failed_by_our_doing_has_no_coverage_rather_than_none_of_it():
    box = Box(10, 10, 30, 30)
    ours = row_of(episode(None, stop=StopReason.TOOL_UNAVAILABLE, evidence=(box,)), RUBRIC)
    assert ours.coverage is None
    assert row_of(episode(evidence=(box,)), RUBRIC).coverage == 0.0


def test_a_long_answer_that_equals_the_gold_one_is_right():
    gold = " ".join(f"word{n}" for n in range(30))
    assert row_of(episode(gold, gold=gold), RUBRIC).strict is True


def test_an_engine_without_ids_leaves_the_length_unknown_and_not_0():
    made = row_of(replace(episode(), segments=()), RUBRIC)
    assert made.completion_tokens is None
    assert summarise([made]).completion_tokens is None


def test_the_tokens_of_pictures_are_counted_in_the_whole_sequence_or_unknown():
    shown = (
        Segment("prompt", (1,), images=(PICTURE,)),
        Segment("observation", (2,), images=(PICTURE,)),
    )
    seen = replace(episode(), segments=shown)
    made = row_of(seen, RUBRIC, tokens_of=lambda image: image.width)
    assert made.image_tokens == 2 * PICTURE.width
    assert row_of(episode(), RUBRIC, tokens_of=lambda image: 1).image_tokens == 0
    unknown = [
        row_of(replace(episode(), segments=()), RUBRIC, tokens_of=lambda image: 1),
        row_of(seen, RUBRIC),
    ]
    assert [r.image_tokens for r in unknown] == [None, None]
    assert summarise([unknown[0]]).image_tokens is None
    both = [made, replace(unknown[0], id="t"), replace(made, id="u", image_tokens=0)]
    assert summarise(both).image_tokens == PICTURE.width


def test_a_row_from_before_pictures_were_counted_is_read():
    old = row_of(episode(), RUBRIC).to_json()
    del old["image_tokens"]
    assert SampleRow.from_json(old).image_tokens is None


def test_an_episode_that_still_runs_has_no_row():
    with pytest.raises(ValueError, match="has not ended"):
        row_of(replace(episode(), stop=None), RUBRIC)


def test_the_cluster_is_the_one_that_the_task_names():
    made = episode()
    named = replace(made, sample=replace(made.sample, meta=(("cluster", "chart-7"),)))
    assert row_of(named, RUBRIC).cluster == "chart-7"


def test_a_row_survives_its_json_line():
    for made in (row(1), row(2, None), row(3, False, coverage=0.25, calls={"crop": 2})):
        assert SampleRow.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"strict": "yes"}, "strict"),
        ({"extra": 1}, "extra"),
        ({"stop": "bored"}, "stop"),
        ({"strict": None}, "verdicts"),
        ({"stratum": "all"}, "stratum"),
    ],
)
def test_a_line_that_is_no_row_is_refused_by_name(change, named):
    with pytest.raises(DataError, match=f"(?i){named}"):
        SampleRow.from_json({**row(1).to_json(), **change})


# --- summaries ------------------------------------------------------------------------------------


def test_what_failed_is_wrong_and_the_figure_without_the_unscored_stands_beside():
    rows = [
        *rows_of([True, True, False, None]),
        row(4, False, stop=StopReason.MAX_TURNS, answer=None),
        row(5, False, answer=None),
    ]
    summary = summarise(rows)
    assert summary.accuracy["all"].estimate == pytest.approx(2 / 6)
    assert summary.accuracy_scored["all"].estimate == pytest.approx(2 / 5)
    assert (summary.unscored, summary.truncated, summary.extraction_failed) == (1, 1, 1)


def test_figures_by_hand():
    rows = [
        row(0, True, stratum="easy", kind="value", calls={}, completion_tokens=20),
        row(1, True, calls={"crop": 2, "zoom": 1}, coverage=1.0, tightness=0.5, lenient=True),
        row(
            2, False, calls={"crop": 1}, coverage=0.5, tightness=0.25, lenient=True, kind="extremum"
        ),
        row(3, False, coverage=0.0, kind="extremum", completion_tokens=40, seconds=3.0),
    ]
    s = summarise(rows)
    assert s.n == 4
    assert {k: v.estimate for k, v in s.accuracy.items()} == pytest.approx(
        {"all": 0.5, "easy": 1.0, "look": 1 / 3}
    )
    assert s.lenient["look"].estimate == pytest.approx(2 / 3)
    assert {k: v.estimate for k, v in s.kinds.items()} == {"extremum": 0.0, "value": 1.0}
    assert (s.calls, s.calls_by_tool) == (1.0, {"crop": 0.75, "zoom": 0.25})
    assert (s.completion_tokens, s.seconds) == (20.0, 1.5)
    assert s.coverage["all"].estimate == pytest.approx(0.5)
    assert s.tightness["all"].estimate == pytest.approx(0.375)


def test_none_is_not_0():
    s = summarise([row(0, coverage=1.0), row(1, coverage=None), row(2, stratum="easy")])
    assert s.coverage["all"].estimate == 1.0
    assert "easy" not in s.coverage
    assert s.tightness == {}


def test_one_cluster_gives_an_estimate_without_an_interval():
    assert summarise([row(0), row(1, False, cluster="s0000")]).accuracy["all"] == (0.5, None, None)


def test_a_summary_needs_rows_and_each_episode_once():
    with pytest.raises(ValueError, match="no rows"):
        summarise([])
    with pytest.raises(ValueError, match=r"Rollout 0 of sample 's0001' stands in 2 rows"):
        summarise([row(1), row(1)])


def test_the_order_of_rows_changes_nothing():
    rng = random.Random(3)
    rows = [
        row(
            n, rng.random() < 0.6, coverage=rng.random(), cluster=f"c{n // 3}", seconds=rng.random()
        )
        for n in range(300)
    ]
    shuffled = rng.sample(rows, len(rows))
    assert summarise(rows, bootstrap=500) == summarise(shuffled, bootstrap=500)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(5)
    inside = 0
    for trial in range(300):
        drawn = summarise(
            rows_of([bool(v) for v in rng.random(40) < 0.6]), bootstrap=500, seed=trial
        )
        _, low, high = drawn.accuracy["all"]
        inside += low <= 0.6 <= high
    assert 0.90 <= inside / 300 <= 0.985


def test_rollouts_of_one_sample_are_no_independent_evidence():
    rng = np.random.default_rng(6)
    inside = narrow = 0
    for trial in range(200):
        chances = rng.beta(0.5, 0.5, size=30)  # most samples are nearly always right or wrong
        rows = [
            row(n, bool(rng.random() < chance), rollout=k)
            for n, chance in enumerate(chances)
            for k in range(8)
        ]
        apart = [replace(r, cluster=f"{r.id}-{r.rollout}") for r in rows]
        _, low, high = summarise(rows, bootstrap=400, seed=trial).accuracy["all"]
        _, low_apart, high_apart = summarise(apart, bootstrap=400, seed=trial).accuracy["all"]
        inside += low <= 0.5 <= high
        narrow += low_apart <= 0.5 <= high_apart
    assert inside / 200 >= 0.89
    assert narrow / 200 < 0.8


def test_both_ways_to_draw_give_the_same_interval(monkeypatch):
    clusters = [(float(v), 1) for v in ([1.0] * 30 + [0.5] * 15 + [0.0] * 55)]
    fast = evaluate._bootstrap(clusters, 20_000, 0)
    monkeypatch.setattr(evaluate, "_ALIKE", 0)
    slow = evaluate._bootstrap(clusters, 20_000, 0)
    assert fast.estimate == slow.estimate
    assert fast[1:] == pytest.approx(slow[1:], abs=0.011)


def test_the_interval_is_that_of_scipy():
    from scipy.stats import bootstrap

    values = np.random.default_rng(8).random(200) ** 2
    ours = evaluate._bootstrap([(float(v), 1) for v in values], 10_000, 0)
    theirs = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=1)
    assert ours[1:] == pytest.approx(tuple(theirs.confidence_interval), abs=0.003)


# --- comparisons ----------------------------------------------------------------------------------


def test_a_paired_difference_by_hand():
    a, b = rows_of([True, True, False, True]), rows_of([True, False, False, False])
    found = paired(a, b, names=("rl", "sft"))
    assert (found.a, found.b, found.reason) == ("rl", "sft", "")
    assert found.difference.estimate == pytest.approx(0.5)
    assert paired(b, a).difference.estimate == pytest.approx(-0.5)


def test_pairing_is_narrower_than_comparing_two_intervals_where_runs_agree():
    rng = np.random.default_rng(9)
    base = rng.random(400) < 0.5
    better = base | (rng.random(400) < 0.1)
    a, b = rows_of([bool(v) for v in better]), rows_of([bool(v) for v in base])
    difference = paired(a, b).difference
    widths = [h - low for _, low, h in (summarise(r).accuracy["all"] for r in (a, b))]
    assert difference.high - difference.low < 0.6 * math.hypot(*widths)
    assert difference.low > 0


def test_only_shared_samples_of_the_stratum_with_the_figure_are_compared():
    a = [row(0, coverage=1.0), row(1, coverage=0.5), row(2), row(3, stratum="easy", coverage=1.0)]
    b = [row(0, coverage=0.0), row(1, coverage=0.5), row(2, coverage=0.1), row(9, coverage=1.0)]
    found = paired(a, b, stratum="look", metric="coverage")
    assert found.difference.estimate == pytest.approx(0.5)


def test_rollouts_are_averaged_before_samples_are_paired():
    a = [row(0, True), row(0, False, rollout=1), row(1, True)]
    b = [row(0, False), row(1, True), row(1, True, rollout=1)]
    assert paired(a, b).difference.estimate == pytest.approx(0.25)


def test_above_1_percent_unscored_nothing_is_compared():
    whole = rows_of([True] * 100)
    enough = [*whole[:99], row(99, None)]
    assert paired(enough, whole).difference.estimate == pytest.approx(-0.01)
    short = [*whole[:98], row(98, None), row(99, None)]
    for found in (
        paired(short, whole, names=("rl", "sft")),
        paired(whole, short, names=("sft", "rl")),
    ):
        assert found.difference is None
        assert "2 of 100 episodes of rl are unscored" in found.reason


def test_a_stratum_of_which_too_much_is_unscored_is_not_compared_either():
    a = [*rows_of([True] * 150, stratum="easy"), *(row(n) for n in range(150, 199)), row(199, None)]
    b = [replace(r, strict=True, lenient=True, scored=True) for r in a]
    assert paired(a, b).difference is not None
    assert "1 of 50" in paired(a, b, stratum="look").reason


def test_without_shared_samples_there_is_a_reason():
    assert "0 independent samples" in paired([row(0)], [row(1)]).reason
    assert "1 independent samples" in paired([row(0)], [row(0)]).reason


def test_a_comparison_has_a_difference_or_a_reason():
    with pytest.raises(ValueError, match="or a reason"):
        Comparison("a", "b", "all", "accuracy", None)


# --- output ---------------------------------------------------------------------------------------


def results() -> dict[str, object]:
    base, rl = rows_of([True, False, False, True]), rows_of([True, True, False, True], coverage=0.5)
    arms = {"base": summarise(base), "rl": summarise(rl)}
    return results_json(arms, [paired(rl, base, names=("rl", "base"), stratum="look")])


def test_results_have_the_agreed_form_and_are_json():
    made = json.loads(json.dumps(results(), allow_nan=False))
    assert set(made) == {"scorer", "arms", "pairs"}
    assert made["scorer"] == SCORER_VERSION
    assert set(made["arms"]["rl"]) == {
        *("n", "accuracy", "accuracy_scored", "lenient", "kinds", "calls", "calls_by_tool"),
        *("completion_tokens", "image_tokens"),
        *("coverage", "tightness", "unscored", "extraction_failed", "truncated", "seconds"),
    }
    assert made["arms"]["rl"]["coverage"] == {"all": [0.5, 0.5, 0.5], "look": [0.5, 0.5, 0.5]}
    assert made["arms"]["base"]["coverage"] == {}
    (pair,) = made["pairs"]
    assert list(pair) == ["a", "b", "stratum", "metric", "difference", "reason"]
    assert len(pair["difference"]) == 3


def printed(made: dict[str, object]) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(format_table(made))
        return console.export_text()


def test_the_table_shows_arms_and_comparisons_and_a_dash_for_what_does_not_apply():
    text = printed(results())
    assert "rl - base, accuracy on look: +0.250" in text
    (line,) = (line for line in text.splitlines() if "coverage look" in line)
    assert line.split("│")[2].strip() == "-"
    assert line.split("│")[3].strip() == "0.500 [0.500, 0.500]"
    assert max(map(len, text.splitlines())) <= 80


def test_the_table_puts_the_figure_without_the_unscored_beside_the_accuracy():
    text = printed(results_json({"[red]": summarise(rows_of([True, False, None, None]))}, []))
    assert "0.250 [" in text
    (line,) = (line for line in text.splitlines() if "without unscored" in line)
    assert "0.500 [0.000, 1.000]" in line
    assert "[red]" in text


# --- areas ----------------------------------------------------------------------------------------

SIDES = st.integers(0, 40).map(float)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    x0, y0 = draw(SIDES), draw(SIDES)
    return Box(x0, y0, x0 + draw(st.integers(1, 30)), y0 + draw(st.integers(1, 30)))


def turned(box: Box, degrees: float) -> Polygon:
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return Affine(c, -s, 50, s, c, 40).polygon(box)


@settings(deadline=None)
@given(st.lists(boxes(), max_size=6), st.lists(boxes(), max_size=6))
def test_areas_of_boxes_are_those_of_their_unions(first, second):
    areas = shared_areas([b.polygon() for b in first], by=[b.polygon() for b in second])
    assert areas.evidence == pytest.approx(union_area(first))
    assert areas.gaze == pytest.approx(union_area(second))
    shared = union_area(first) + union_area(second) - union_area([*first, *second])
    assert areas.shared == pytest.approx(shared, abs=1e-6)


@settings(deadline=None)
@given(
    st.lists(boxes(), min_size=1, max_size=5),
    st.lists(boxes(), min_size=1, max_size=5),
    st.floats(0.5, 89.5),
)
def test_areas_do_not_change_when_everything_is_turned(first, second, degrees):
    plain = shared_areas([b.polygon() for b in first], by=[b.polygon() for b in second])
    moved = shared_areas(
        [turned(b, degrees) for b in first], by=[turned(b, degrees) for b in second]
    )
    assert moved == pytest.approx(plain, abs=1e-4)


@settings(deadline=None, max_examples=30)
@given(boxes(), boxes(), st.floats(1, 89))
def test_clipping_agrees_with_counting_points(plain, other, degrees):
    window = turned(other, degrees)
    grid = (np.arange(200) + 0.5) / 200
    xs, ys = plain.x0 + grid * plain.width, plain.y0 + grid * plain.height
    x, y = np.meshgrid(xs, ys)
    inside = np.ones_like(x, dtype=bool)
    corners = window.points
    for a, b in zip(corners, corners[1:] + corners[:1], strict=True):
        inside &= (b.x - a.x) * (y - a.y) - (b.y - a.y) * (x - a.x) >= 0
    clipped = clip_convex(plain.polygon(), window)
    area = clipped.area if clipped else 0.0
    assert area / plain.area == pytest.approx(inside.mean(), abs=0.01)


def test_a_diamond_by_hand():
    square = Box(0, 0, 2, 2).polygon()
    diamond = Polygon((Point(1, -1), Point(3, 1), Point(1, 3), Point(-1, 1)))
    assert clip_convex(square, diamond).area == pytest.approx(4.0)
    assert clip_convex(diamond, square).area == pytest.approx(4.0)
    small = Polygon((Point(1, 0), Point(2, 1), Point(1, 2), Point(0, 1)))
    areas = shared_areas([square], by=[small])
    assert tuple(areas) == pytest.approx((4, 2, 2))
    assert (areas.coverage, areas.tightness) == pytest.approx((0.5, 1.0))
    backwards = Polygon(small.points[::-1])
    assert tuple(shared_areas([square], by=[backwards])) == pytest.approx((4, 2, 2))
    far = Polygon((Point(11, 0), Point(12, 1), Point(11, 2), Point(10, 1)))
    assert clip_convex(square, far) is None
    assert shared_areas([square], by=[far]).coverage == 0.0


def test_a_shape_that_is_not_convex_is_refused():
    arrow = Polygon((Point(0, 0), Point(4, 0), Point(1, 1), Point(0, 4)))
    with pytest.raises(ValueError, match="convex"):
        shared_areas([arrow], by=[])


def look(box: Box, how: str = "seen", image: ImageRef = PICTURE) -> Region:
    return Region(image, box.polygon(), how, 0)


def test_looking_twice_counts_once_and_what_a_tool_found_is_no_look():
    evidence = (Evidence(PICTURE, Box(0, 0, 20, 20)),)
    gaze = [
        look(Box(0, 0, 10, 40)),
        look(Box(0, 0, 10, 40), "named"),
        look(Box(0, 0, 99, 80), "found"),
    ]
    found = overlap(evidence, gaze)
    assert (found.coverage, found.tightness) == (0.5, 0.5)


def test_gaze_at_another_image_covers_nothing_and_is_less_tight():
    other = ImageRef("b" * 64, 100, 80)
    evidence = (Evidence(PICTURE, Box(0, 0, 10, 10)),)
    found = overlap(evidence, [look(Box(0, 0, 10, 10)), look(Box(0, 0, 30, 10), image=other)])
    assert (found.coverage, found.tightness) == (1.0, 0.25)
    assert overlap(evidence, [look(Box(0, 0, 30, 10), image=other)]).coverage == 0.0


def test_without_evidence_there_is_no_figure_and_without_gaze_no_tightness():
    box = Box(0, 0, 10, 10)
    assert overlap((), [look(box)]).coverage is None
    assert overlap((), [look(box)]).tightness is None
    nothing = overlap((Evidence(PICTURE, box),), ())
    assert (nothing.coverage, nothing.tightness) == (0.0, None)


def test_the_white_corners_of_a_rotated_view_are_not_looked_at():
    view = root_view(Image.new("RGB", (100, 80))).rotate(30)
    corner = view.crop(Box(0, 0, 60, 60))
    record = TurnRecord(
        Parsed(), (ToolResult(ToolCall("c", "crop", {}), (ImageShown(corner.ref, "x"),)),)
    )
    root = view.ref.parts[0].parent
    sample = Sample("s", "?", (root,), "1", (Evidence(root, root.box),))
    made = Episode(sample, turns=(record,))
    (region,) = made.gaze
    found = overlap(sample.evidence, made.gaze)
    assert 0 < found.gaze == pytest.approx(region.polygon.area)
    assert found.gaze < 0.9 * corner.ref.box.area  # the rest is white and nothing of the picture
    assert found.tightness == pytest.approx(1.0)
    assert found.coverage == pytest.approx(found.gaze / root.box.area)


def test_named_boxes_of_thoughts_and_arguments_count_as_gaze():
    box = Box(10, 10, 30, 30)
    evidence = (Evidence(PICTURE, box),)
    sample = Sample("s", "?", (PICTURE,), "1", evidence)
    thought = Episode(sample, turns=(TurnRecord(Parsed(), named=(BoxNamed(PICTURE, box),)),))
    assert overlap(evidence, thought.gaze).coverage == 1.0
    reported = ToolResult(ToolCall("c", "ocr", {}), (Text("12"), BoxFound(PICTURE, box)))
    assert (
        overlap(evidence, Episode(sample, turns=(TurnRecord(Parsed(), (reported,)),)).gaze)[1] == 0
    )


def test_thirty_turned_looks_are_measured_at_once():
    rng = np.random.default_rng(1)
    shapes = [
        turned(Box(x, y, x + 12, y + 9), float(a)) for x, y, a in rng.random((30, 3)) * (40, 40, 90)
    ]
    areas = shared_areas(shapes[:5], by=shapes)
    assert areas.coverage == pytest.approx(1.0)
    assert areas.gaze < sum(s.area for s in shapes)


def test_an_interval_is_a_plain_tuple_for_json():
    assert json.dumps(Interval(0.5, None, None)) == "[0.5, null, null]"
