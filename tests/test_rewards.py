import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.errors import RecipeError
from saccade.geometry import Affine, Box
from saccade.rewards import (
    Reward,
    Rubric,
    answer,
    answer_lenient,
    answer_published,
    looked_at_evidence,
    per_turn,
    reward,
    reward_named,
    valid_calls,
)
from saccade.rewards.boxes import (
    acc_at_0_5,
    center_acc,
    iou_xyxy,
    matched_f1,
    treebench_miou,
    union_mask_iou,
)
from saccade.types import (
    Answer,
    BadCall,
    BoxNamed,
    Derivation,
    Episode,
    Evidence,
    ImagePart,
    ImageRef,
    ImageShown,
    Parsed,
    Sample,
    Score,
    StopReason,
    Text,
    ToolCall,
    ToolResult,
    TurnRecord,
)

ROOT = ImageRef("root", 100, 100)
EVIDENCE = (Evidence(ROOT, Box(0, 0, 10, 10)),)
SAMPLE = Sample("s", "how many?", (ROOT,), "12", EVIDENCE)
PLAIN = Sample("p", "how many?", (ROOT,), "12")


def crop(box: Box) -> ImageRef:
    part = ImagePart(ROOT, Box(0, 0, box.width, box.height), Affine.translate_scale(box.x0, box.y0))
    return ImageRef(
        f"crop {box}", int(box.width), int(box.height), (part,), Derivation("crop", (("box", 0),))
    )


def saw(box: Box) -> ToolResult:
    return ToolResult(ToolCall("c", "crop", {}), (ImageShown(crop(box), "img_1"),))


FAILED = ToolResult(BadCall("{", "no call"), (Text("That is no call."),), failed=True)


def episode(
    *results: tuple[ToolResult, ...],
    said: str | None = "12",
    sample: Sample = SAMPLE,
    stop: StopReason | None = StopReason.ANSWERED,
) -> Episode:
    """An episode with one turn for each group of results and one more for the answer."""
    turns = tuple(TurnRecord(Parsed(), group) for group in results)
    last = TurnRecord(Parsed(answer=None if said is None else Answer(said)))
    return Episode(sample, turns=(*turns, last), stop=stop)


def constant(name: str, value: float | Score | None, *, required: bool = True) -> Reward:
    return Reward(name, "constant", lambda episode, sample: value, required)


# --- built-in rewards -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "stop", "value"),
    [
        ("12.0", StopReason.ANSWERED, 1.0),
        ("13", StopReason.ANSWERED, 0.0),
        (None, StopReason.ANSWERED, 0.0),
        ("12", StopReason.MAX_TURNS, 0.0),
    ],
)
def test_an_answer_is_right_or_wrong_and_a_missing_one_is_wrong(said, stop, value):
    e = episode(said=said, stop=stop)
    assert answer(e, SAMPLE) == value
    assert answer_published(e, SAMPLE) == 2 * value - 1


@pytest.mark.parametrize(
    ("looks", "value"),
    [
        ([Box(0, 0, 10, 10)], 1.0),
        ([Box(0, 0, 20, 10)], 0.5),
        ([Box(0, 0, 5, 10)], 0.5),
        ([Box(0, 0, 5, 10), Box(5, 0, 10, 10)], 1.0),
        ([Box(0, 0, 10, 10), Box(0, 0, 10, 10)], 1.0),
        ([Box(50, 50, 60, 60)], 0.0),
        ([Box(0, 0, 100, 100)], 0.0),
        ([], 0.0),
    ],
)
def test_looking_is_worth_coverage_times_tightness_in_exact_areas(looks, value):
    e = episode(tuple(saw(box) for box in looks))
    assert looked_at_evidence(e, SAMPLE) == pytest.approx(value, abs=1e-12)


def test_a_box_named_in_a_thought_is_a_look_and_one_cheap_box_is_not():
    named = TurnRecord(Parsed(), named=(BoxNamed(ROOT, Box(0, 0, 10, 10)),))
    assert looked_at_evidence(Episode(SAMPLE, turns=(named,)), SAMPLE) == 1.0
    tiny = TurnRecord(Parsed(), named=(BoxNamed(ROOT, Box(0, 0, 0.01, 0.01)),))
    assert looked_at_evidence(Episode(SAMPLE, turns=(tiny,)), SAMPLE) < 1e-4


def test_without_evidence_looking_does_not_apply():
    assert looked_at_evidence(episode((saw(Box(0, 0, 10, 10)),)), PLAIN) is None


def test_valid_calls_counts_unreadable_calls_and_is_none_without_calls():
    assert valid_calls(episode((saw(Box(0, 0, 9, 9)), FAILED), (FAILED, FAILED)), SAMPLE) == 0.25
    assert valid_calls(episode(), SAMPLE) is None


def test_a_turn_is_credited_with_what_its_own_calls_showed():
    e = episode((saw(Box(0, 0, 10, 10)),), (saw(Box(50, 50, 60, 60)),), (FAILED,))
    said = per_turn.score(e, SAMPLE)
    assert said.turns == (pytest.approx(1 / 3), 0.0, 0.0, None)
    assert said.value == pytest.approx(1 / 3)


def test_more_calls_never_pay_more_than_one_good_call():
    once = episode((saw(Box(0, 0, 10, 10)),))
    often = episode(*[(saw(Box(0, 0, 10, 10)),)] * 5)
    assert per_turn(once, SAMPLE) == per_turn(often, SAMPLE) == pytest.approx(1.0)


def test_a_box_in_a_thought_is_no_outcome_of_a_tool():
    named = (BoxNamed(ROOT, Box(0, 0, 10, 10)),)
    turn = TurnRecord(Parsed(), (saw(Box(50, 50, 60, 60)),), named)
    assert per_turn.score(Episode(SAMPLE, turns=(turn,)), SAMPLE).turns == (0.0,)


def test_without_evidence_a_turn_is_worth_its_valid_calls():
    e = episode((saw(Box(0, 0, 9, 9)), FAILED), sample=PLAIN)
    assert per_turn.score(e, PLAIN).turns == (0.5, None)
    assert per_turn(episode(sample=PLAIN), PLAIN) is None


# --- rubric ---------------------------------------------------------------------------------------


def test_a_rubric_is_the_weighted_sum_of_its_terms_and_lists_them():
    score = Rubric(((answer, 1.0), (valid_calls, 0.5))).score(episode((FAILED,)))
    assert score.value == 1.0
    assert score.detail == "answer +1 x 1; valid_calls +0 x 0.5"


@pytest.mark.parametrize(
    "stop", [StopReason.TOOL_UNAVAILABLE, StopReason.TOOL_CRASHED, StopReason.ENGINE_FAILED]
)
def test_an_end_of_our_own_doing_is_never_scored(stop):
    score = Rubric(((answer_published, 1.0),)).score(episode(stop=stop))
    assert score.value is None
    assert stop.value in score.detail


def test_an_episode_that_still_runs_has_no_score():
    assert Rubric(((answer, 1.0),)).score(episode(stop=None)).value is None


def test_none_of_a_required_term_or_of_the_gate_leaves_the_episode_unscored():
    unknown = constant("unknown", None)
    assert Rubric(((answer, 1.0), (unknown, 0.1))).score(episode()).value is None
    assert Rubric(((answer, 1.0),), gate=unknown).score(episode()).value is None


def test_a_term_that_does_not_apply_is_left_out_and_not_zero_for_all():
    absent = constant("absent", None, required=False)
    score = Rubric(((answer, 1.0), (absent, 0.1))).score(episode())
    assert score.value == 1.0
    assert "absent none" in score.detail
    assert Rubric(((absent, 1.0),)).score(episode()).value is None


def test_behind_a_closed_gate_nothing_is_paid_and_penalties_stay():
    bonus, malus = constant("bonus", 1.0), constant("malus", -1.0)
    rubric = Rubric(((bonus, 0.5), (malus, 0.25)), gate=answer)
    assert rubric.score(episode()).value == 0.25
    assert rubric.score(episode(said="13")).value == -0.25


def test_values_of_turns_are_weighted_and_gated_like_the_term_they_come_from():
    e = episode((saw(Box(0, 0, 10, 10)),))
    rubric = Rubric(((answer, 1.0), (per_turn, 0.5)))
    assert rubric.score(e).turns == (0.5, None)
    assert rubric.score(e).value == 1.5
    gated = Rubric(((answer, 1.0), (per_turn, 0.5)), gate=answer)
    wrong = episode((saw(Box(0, 0, 10, 10)),), said="13")
    assert gated.score(wrong).turns == (0.0, None)
    assert gated.score(wrong).value == 0.0
    assert Rubric(((answer, 1.0),)).score(e).turns is None


def test_a_reward_with_the_wrong_number_of_turns_is_refused():
    bad = constant("bad", Score(1.0, turns=(1.0,)))
    with pytest.raises(ValueError, match="each of 2 turns, got 1"):
        Rubric(((bad, 1.0),)).score(episode(()))


def test_terms_of_a_rubric_have_different_names_and_there_is_one():
    with pytest.raises(ValueError, match="different names"):
        Rubric(((answer, 1.0), (answer, 2.0)))
    with pytest.raises(ValueError, match="at least one"):
        Rubric(())


# --- registration ---------------------------------------------------------------------------------


def test_a_decorated_function_is_a_reward_that_recipes_find_by_name():
    @reward
    def half_a_point(episode: Episode, sample: Sample) -> float | None:
        """Half a point, always."""
        return 0.5

    assert reward_named("half_a_point") is half_a_point
    assert half_a_point(episode(), SAMPLE) == 0.5
    assert half_a_point.description == "Half a point, always."
    with pytest.raises(ValueError, match="half_a_point"):
        reward(half_a_point.judge)


def test_the_lenient_reward_pays_what_a_patient_reader_accepts() -> None:
    for gold, said, value in (("true", "yes", 1.0), ("true", "no", 0.0), ("4", "four", 1.0)):
        sample = Sample("s", "?", (), gold)
        played = Episode(
            sample, turns=(TurnRecord(Parsed("", answer=Answer(said))),), stop=StopReason.ANSWERED
        )
        assert answer_lenient(played, sample) == value
        assert answer(played, sample) == 0.0


def test_an_unknown_name_is_answered_with_the_nearest_one():
    assert reward_named("answer_published") is answer_published
    with pytest.raises(RecipeError, match="Did you mean 'looked_at_evidence'"):
        reward_named("look_at_evidence")
    with pytest.raises(RecipeError, match="Available: answer, answer_lenient, answer_published"):
        reward_named("xyz")


def test_a_reward_of_another_form_is_refused_where_it_is_defined():
    def swapped(sample: Sample, episode: Episode) -> float:
        """Wrong order."""
        return 0.0

    def loose(episode: Episode, sample) -> float:
        """No annotation."""
        return 0.0

    def open_ended(episode: Episode, sample: Sample, **rest: object) -> float:
        """Takes anything."""
        return 0.0

    def silent(episode: Episode, sample: Sample) -> float:
        return 0.0

    for judge, complaint in [
        (swapped, "parameters"),
        (loose, "'sample'"),
        (open_ended, "rest"),
        (silent, "docstring"),
    ]:
        with pytest.raises(TypeError, match=complaint):
            reward(judge)


# --- boxes ----------------------------------------------------------------------------------------

numbers = st.integers(-20, 20)
loose_boxes = st.tuples(numbers, numbers, numbers, numbers)
box_lists = st.lists(loose_boxes, max_size=5)


@settings(deadline=None)
@given(box_lists, box_lists)
def test_every_measure_is_defined_and_within_0_and_1_for_any_boxes(targets, predictions):
    for t in targets:
        for p in predictions:
            assert 0 <= iou_xyxy(t, p) <= 1
            assert acc_at_0_5(t, p) == (iou_xyxy(t, p) >= 0.5)
            assert center_acc(t, p) in (True, False)
    for measure in (treebench_miou, union_mask_iou, matched_f1):
        value = measure(targets, predictions)
        assert (value is None) == (not targets)
        assert value is None or 0 <= value <= 1


@settings(deadline=None)
@given(st.lists(loose_boxes, min_size=1, max_size=4), box_lists)
def test_union_iou_equals_counting_unit_squares(targets, predictions):
    def cells(boxes):
        return {(x, y) for a, b, c, d in boxes for x in range(a, c) for y in range(b, d)}

    first, second = cells(targets), cells(predictions)
    expected = len(first & second) / len(first | second) if first | second else 0.0
    assert union_mask_iou(targets, predictions) == pytest.approx(expected, abs=1e-12)


def test_boxes_without_area_have_a_value():
    assert iou_xyxy((0, 0, 0, 0), (0, 0, 0, 0)) == 0.0
    assert center_acc((0, 0, 0, 0), (0, 0, 0, 0))
    assert iou_xyxy(Box(0, 0, 10, 10), (5, 5, 5, 5)) == 0.0
    assert union_mask_iou([(3, 3, 3, 9)], [(0, 0, 1, 1)]) == 0.0


def test_extra_and_duplicate_boxes_cost_in_matched_f1_and_are_free_in_recall():
    target, other = (0, 0, 10, 10), (50, 50, 60, 60)
    assert treebench_miou([target], [target, target, other]) == 1.0
    assert matched_f1([target], [target, target]) == pytest.approx(2 / 3)
    assert union_mask_iou([target], [target, target]) == 1.0


def test_matching_finds_the_most_pairs_where_greedy_finds_fewer():
    targets = [(0, 0, 10, 10), (0, 0, 10, 16)]
    predictions = [(0, 0, 10, 9), (0, 0, 10, 5)]
    # the best pair, first to first, would leave 5/16 for the rest
    assert matched_f1(targets, predictions) == 1.0


def test_a_thousand_boxes_are_measured_in_a_moment():
    many = [(i, i % 97, i + 5, i % 97 + 5) for i in range(1000)]
    assert union_mask_iou([(0, 0, 10, 10)], many) < 0.1
