import json
from pathlib import Path

import pytest

from saccade.agreement import score_file
from saccade.errors import DataError
from saccade.renderers.resize import smart_resize

DATA = Path(__file__).parent / "data"


def by_rule(path):
    return {entry.rule: entry for entry in score_file(path)}


def write(folder, content):
    path = folder / "vectors.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def answer_row(**changes):
    row = {"id": "a-1", "rule": "chartqa_relaxed", "gold": "100", "prediction": "95", "params": {}}
    return {**row, "expected": True, "human_correct": True, **changes}


def test_every_published_rule_agrees_with_every_answer_vector():
    agreement = by_rule(DATA / "answer_vectors.json")
    published = [e for e in agreement.values() if "human_correct" not in e.rule]
    assert [e for e in published if e.disagreements] == []
    assert sum(e.n for e in published) == 86
    assert len(published) == 10


def test_our_own_rules_stand_last_and_lenient_is_nearer_to_people_than_strict():
    entries = score_file(DATA / "answer_vectors.json")
    assert [e.rule for e in entries[-2:]] == [
        "strict, against human_correct",
        "lenient, against human_correct",
    ]
    strict, lenient = entries[-2:]
    assert strict.n == lenient.n == 85
    # what is left: years without a flag, 5% where the label has none, letter case, "It is not"
    assert {d.id for d in lenient.disagreements} == {
        "chartqa_relaxed-008",
        "chartqa_relaxed-009",
        "openthinkimg_manual-002",
        "openthinkimg_manual-004",
        "math_verify-003",
        "math_verify-006",
        "yesno-003",
    }
    assert strict.agree < lenient.agree


def test_every_box_and_coordinate_vector_agrees():
    agreement = by_rule(DATA / "box_coord_vectors.json")
    assert {rule: (e.agree, e.n) for rule, e in agreement.items()} == {
        "iou: iou": (7, 7),
        "iou: acc_at_0_5": (6, 6),
        "iou: center_acc": (7, 7),
        "box_sets: treebench_miou": (4, 4),
        "box_sets: union_mask_iou": (4, 4),
        "smart_resize": (13, 13),
        "smart_resize_edges": (1, 1),
        "coordinate_conversions: qwen2vl_qwen3vl_0_1000": (3, 3),
        "coordinate_conversions: qwen25vl_resized_abs": (3, 3),
        "coordinate_conversions: qwen25vl_resized_hw": (3, 3),
    }


def test_a_row_that_differs_is_listed_with_both_values(tmp_path):
    path = write(tmp_path, {"vectors": [answer_row(expected=False, note="turned round")]})
    entry = by_rule(path)["chartqa_relaxed"]
    assert (entry.agree, entry.n) == (0, 1)
    only = entry.disagreements[0]
    assert (only.id, only.expected, only.got, only.note) == ("a-1", False, True, "turned round")


def test_a_missing_human_label_is_no_row_of_our_own_rules(tmp_path):
    path = write(tmp_path, {"vectors": [answer_row(human_correct=None)]})
    assert list(by_rule(path)) == ["chartqa_relaxed"]


def test_wrong_box_labels_are_noticed(tmp_path):
    rows = [{"gt": [0, 0, 2, 2], "pred": [0, 0, 2, 1], "iou": 0.51}]
    rows[0] |= {"acc_at_0_5": False, "center_acc": True}
    agreement = by_rule(write(tmp_path, {"iou": rows}))
    assert [(r, e.agree) for r, e in agreement.items()] == [
        ("iou: iou", 0),
        ("iou: acc_at_0_5", 0),
        ("iou: center_acc", 1),
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ([], "JSON object at the top, got list"),
        ({"rows": []}, "neither answer vectors"),
        ({"vectors": {}}, "needs a list under 'vectors'"),
        ({"vectors": [3]}, r"vectors\[1\] is no object"),
        ({"vectors": [answer_row(rule="guess")]}, "there is no rule 'guess'"),
        ({"vectors": [answer_row(gold=5)]}, "'gold' must be text, got int"),
        ({"vectors": [{"rule": "yesno", "gold": "a"}]}, "lacks 'prediction'"),
        ({"vectors": [answer_row(params=[1])]}, "'params' must be an object"),
        ({"vectors": [answer_row(params={"year": 2010})]}, "'year' must be text or a list of text"),
        ({"iou": [{"gt": [0, 0, 1], "pred": [0, 0, 1, 1]}]}, "boxes of four numbers"),
        ({"smart_resize": [{"height": "8", "width": 9, "factor": 28}]}, "'height' must be a whole"),
        ({"coordinate_conversions": [{"box_xyxy_px": [0, 0, 1, 1], "orig_hw": 5}]}, "'orig_hw'"),
    ],
)
def test_a_bad_file_is_one_sentence_that_names_the_row(tmp_path, content, complaint):
    with pytest.raises(DataError, match=complaint):
        score_file(write(tmp_path, content))


def test_a_file_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="can't be read"):
        score_file(tmp_path / "nothing.json")


def test_all_bad_rows_are_counted(tmp_path):
    with pytest.raises(DataError, match=r"7 bad rows: .*; and 2 more"):
        score_file(write(tmp_path, {"vectors": [0] * 7}))


# --- smart_resize ---------------------------------------------------------------------------------


def test_the_aspect_limit_is_inclusive():
    assert smart_resize(10, 2000, factor=28).height == 28
    with pytest.raises(ValueError, match="200 times"):
        smart_resize(10, 2001, factor=28)


def test_limits_decide_the_size_of_a_large_picture():
    assert smart_resize(4320, 7680, factor=28) == (2688, 4760)
    assert smart_resize(4320, 7680, factor=28, max_pixels=1_003_520) == (728, 1316)


def test_a_thin_strip_keeps_a_positive_side_under_a_small_limit():
    assert smart_resize(100, 20_000, factor=28, max_pixels=50_176).height == 28


def test_halves_round_to_even():
    assert smart_resize(42, 280, factor=28, min_pixels=1) == (56, 280)
    assert smart_resize(70, 280, factor=28, min_pixels=1) == (56, 280)


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="positive"):
        smart_resize(0, 10, factor=28)
