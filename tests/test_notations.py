"""Boxes in prose: read as they are written, never out of mere numbers, and put back in place."""

from __future__ import annotations

import math
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saccade.dialects.notations import NOTATIONS, BoxWritten, Notation, notation_named
from saccade.errors import RecipeError

INLINE, JSON = NOTATIONS["inline"], NOTATIONS["json"]
QWEN2, INTERNVL = NOTATIONS["qwen2"], NOTATIONS["internvl"]
ALL = pytest.mark.parametrize("notation", NOTATIONS.values(), ids=lambda n: n.name)

whole = st.integers(0, 10_000)
fractions = st.floats(0, 1, allow_nan=False).map(lambda v: round(v, 4))
boxes = st.tuples(*[whole | fractions] * 4)
words = st.lists(
    st.text(st.characters(categories=["Ll", "Lu", "Nd"]), min_size=1, max_size=8),
    max_size=4,
).map(" ".join)
marks = st.sampled_from(
    [
        *'[]{}"\n',
        "[[",
        '{"bbox_2d": ',
        'bbox_2d": [',
        '"label": "a", ',
        "1, 2, 3, 4], ",
        "]}",
        "<box>",
        "</box>",
        "<ref>",
        "(1,2)",
        "nan",
        *QWEN2.specials,
    ]
)


def read(notation: Notation, text: str) -> list[tuple[tuple[float, ...] | None, str]]:
    return [(b.values, b.phrase) for b in notation.find(text)]


@ALL
@given(boxes=st.lists(st.tuples(boxes, words), max_size=4), between=words)
def test_what_is_written_is_read_back(
    notation: Notation, boxes: list[tuple[tuple[float, ...], str]], between: str
) -> None:
    text = "\n".join(f"{notation.write(values, phrase)}; {between}" for values, phrase in boxes)
    assert read(notation, text) == [(tuple(map(float, v)), p) for v, p in boxes]


@ALL
@given(st.lists(marks | st.text(max_size=5), max_size=30).map("".join))
def test_reading_never_raises_and_spans_lie_in_order(notation: Notation, text: str) -> None:
    at = 0
    for found in notation.find(text):
        assert at <= found.start < found.stop <= len(text)
        assert found.values is None or len(found.values) == 4
        at = found.stop


@ALL
def test_the_example_that_models_are_shown_is_a_box(notation: Notation) -> None:
    assert read(notation, notation.example) == [((212.0, 40.0, 318.0, 166.0), "red circle")]


@ALL
def test_four_numbers_in_a_row_are_no_box(notation: Notation) -> None:
    for text in ("0, 0, 0, 0", "the years 1990, 1991, 1992, 1993", "(1, 2, 3, 4)", "1,2,3,4"):
        assert notation.find(text) == ()


@ALL
@pytest.mark.parametrize(
    "piece",
    [
        '{"bbox_2d": [', "[1, 2, ", "<box>[[1, 2", "<|box_start|>(1,", "bbox_2d: [",
        "{'bbox_2d': [1, 2", '{"bbox_2d": [1, 2], ', "<ref>a</ref> <box>",
    ],
)  # fmt: skip
def test_hostile_texts_take_linear_time(notation: Notation, piece: str) -> None:
    def seconds(count: int) -> float:
        """The least of several: others may be at work."""
        text, found = piece * count, []
        for _ in range(4):
            began = time.process_time()
            notation.find(text)
            found.append(time.process_time() - began)
        return min(found)

    assert seconds(32_000) < 40 * max(seconds(2_000), 0.002)  # quadratic would be 256 times


# --- what failed is counted -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("notation", "text"),
    [
        (INLINE, "a cat [1, 2, 3]"),
        (INLINE, "a cat [1, 2, 3, 4, 5]"),
        (INLINE, "a cat [1, 2, x, 4]"),
        (JSON, '{"bbox_2d": [1, 2, 3], "label": "a cat"}'),
        (JSON, '{"bbox_2d": [1, 2, 3, "4"]}'),
        (JSON, '{"bbox_2d": [1, 2, 3, 4], "label": }'),
        (JSON, '{"bbox_2d": [1, 2, 3'),
        (JSON, '{"bbox_2d": [true, 2, 3, 4]}'),
        (JSON, '{"bbox_2d": [[1, 2, 3, 4], [5, 6, 7, 8]], "label": "two cats"}'),
        (JSON, '"bbox_2d": [1, 2, 3, 4]'),
        (JSON, "{'bbox_2d': [1, 2, 3, 4], 'label': 'a cat'}"),
        (JSON, "bbox_2d: [1, 2, 3, 4]"),
        (JSON, '{"label": \'a cat\', "bbox_2d": [1, 2, 3, 4]}'),
        (JSON, "bbox_2d = (1, 2, 3, 4)"),
        (QWEN2, "<|box_start|>(1,2),(3)<|box_end|>"),
        (QWEN2, "<|box_start|>1,2,3,4<|box_end|>"),
        (QWEN2, "<|box_start|>(1,2),(3,4)"),
        (INTERNVL, "<box>[1, 2, 3, 4]</box>"),
        (INTERNVL, "<box>[[1, 2, 3]]</box>"),
        (INTERNVL, "<box>[[1, 2, 3, 4]]"),
        (INTERNVL, "<box>[[1, 2, 3, 4]], " + "a cat that sits, " * 100),
    ],
)
def test_what_begins_like_a_box_and_is_none_failed(notation: Notation, text: str) -> None:
    assert [b.values for b in notation.find(f"so {text} then")] == [None]


def test_a_box_without_end_takes_no_other_with_it() -> None:
    text = "<box>[[1, 2 <ref>a cat</ref><box>[[1, 2, 3, 4]]</box>"
    assert read(INTERNVL, text) == [(None, ""), ((1, 2, 3, 4), "a cat")]


def test_words_about_the_key_are_prose() -> None:
    assert JSON.find('I write "bbox_2d" for each, my_bbox_2d: [1], bbox_2d: none') == ()


def test_brackets_with_words_are_prose() -> None:
    assert INLINE.find("he said [sic] and [a, b] and [] and [7]") == ()


def test_numbers_that_are_not_finite_are_read_as_such() -> None:
    [found] = INLINE.find("a [nan, 0, inf, 5]")
    assert found.values is not None
    assert math.isnan(found.values[0])
    assert math.isinf(found.values[2])


# --- phrases --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("the red circle [1, 2, 3, 4] is left of the square [5, 6, 7, 8]",
         ["the red circle", "is left of the square"]),
        ("I see two. A dog [1, 2, 3, 4], a cat [5, 6, 7, 8]", ["A dog", "a cat"]),
        ("red circle [1, 2, 3, 4]\nblue square [5, 6, 7, 8]", ["red circle", "blue square"]),
        ("[1, 2, 3, 4]", [""]),
        ("at 2.5 m a post [1, 2, 3, 4]", ["at 2.5 m a post"]),
    ],
)  # fmt: skip
def test_a_phrase_of_prose_is_the_clause_before_its_box(text: str, phrases: list[str]) -> None:
    assert [b.phrase for b in INLINE.find(text)] == phrases


def test_boxes_inside_of_other_objects_are_found_where_they_stand() -> None:
    text = (
        '{"objects": [{"bbox_2d": [1, 2, 30, 40], "label": "a"}, {"bbox_2d": [5, 6, 7, 8]}]} done'
    )
    found = JSON.find(text)
    assert [(b.values, b.phrase) for b in found] == [((1, 2, 30, 40), "a"), ((5, 6, 7, 8), "")]
    assert JSON.rewritten(text, [None, (0, 0, 1, 1)]) == (
        '{"objects": [a, {"bbox_2d": [0, 0, 1, 1]}]} done'
    )


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ('{"bbox_2d": [1, 2, 30, 40], "label": "a", "bbox_2d": [5, 6, 70, 80], "label": "b"}',
         "ab"),
        ('{"label": "a", "bbox_2d": [1, 2, 30, 40], "label": "b", "bbox_2d": [5, 6, 70, 80]}',
         "ab"),
        ('{"bbox_2d": [1, 2, 30, 40], "bbox_2d": [5, 6, 70, 80], "label": "b"}', " b"),
        ('{"label": "x", "label": "a", "bbox_2d": [1, 2, 30, 40], "bbox_2d": [5, 6, 70, 80]}',
         "a "),
        ('{"bbox_2d": [1, 2, 30, 40], "n": {}, "label": "a", "label": "x", "label": "b",'
         ' "bbox_2d": [5, 6, 70, 80], "label": "y"}', "ab"),
    ],
)  # fmt: skip
def test_an_object_may_hold_several_boxes_as_the_example_of_grit_does(
    text: str, phrases: str
) -> None:
    """A reader of JSON sees the last of equal keys alone, and would lose a box in silence."""
    said = f"so {text} then"
    found = JSON.find(said)
    assert [b.values for b in found] == [(1, 2, 30, 40), (5, 6, 70, 80)]
    assert [b.phrase for b in found] == [p.strip() for p in phrases]
    assert (found[0].start, found[1].stop) == (3, len(said) - 5)
    assert said[found[0].stop : found[1].start] == ", "
    swapped = JSON.rewritten(said, [(5, 6, 70, 80), (1, 2, 30, 40)])
    assert [b.values for b in JSON.find(swapped)] == [(5, 6, 70, 80), (1, 2, 30, 40)]
    assert [b.phrase for b in JSON.find(swapped)] == [p.strip() for p in phrases]
    assert "bbox_2d" not in JSON.rewritten(said, [None, None])
    assert (swapped[:3], swapped[-5:]) == ("so ", " then")
    dotted = JSON.dotted(said, len)
    assert JSON.find(dotted) == ()
    assert len(said) <= len(dotted) < len(said) + 4


def test_an_object_may_name_another_picture() -> None:
    [found] = JSON.find('{"bbox_2d": [1, 2, 3, 4], "label": "tick", "image": "img_2"}')
    assert (found.phrase, found.image) == ("tick", "img_2")


@pytest.mark.parametrize("between", ["", " ", "\n  "])
def test_white_space_may_stand_between_a_phrase_and_its_box(between: str) -> None:
    [found] = INTERNVL.find(f"<ref>two dogs</ref>{between}<box>[[1, 2, 3, 4]]</box>")
    assert (found.phrase, found.start) == ("two dogs", 0)
    assert INTERNVL.find(f"<ref>two dogs</ref>: {between}<box>[[1, 2, 3, 4]]</box>")[0].phrase == ""


def test_one_phrase_may_have_any_number_of_boxes() -> None:
    many = [[n, 2, n + 30, 40] for n in range(300)]
    found = INTERNVL.find(f"<ref>geese</ref><box>{many}</box>")
    assert [(list(b.values or ()), b.phrase) for b in found] == [(b, "geese") for b in many]


def test_one_phrase_may_have_several_boxes() -> None:
    text = "<ref>two dogs</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box> run"
    found = INTERNVL.find(text)
    assert read(INTERNVL, text) == [((1, 2, 3, 4), "two dogs"), ((5, 6, 7, 8), "two dogs")]
    assert text[found[0].start : found[1].stop] == text.removesuffix(" run")


AS_WRITTEN = [
    (JSON, '{"bbox_2d": [1, 2, 30, 40], "label": "cat 7", "image": "img_1"}'),
    (JSON, '{"label": "cat", "bbox_2d": [10,20,30.0,4e1]}'),
    (JSON, '{"bbox_2d": [1, 2, 30, 40], "bbox_2d": [50, 60, 70, 80]}'),
    (JSON, '{"bbox_2d": [10, 20, 30, 40], "label": "cat", "confidence": "high"}'),
    (INTERNVL, "<ref>2 cats</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box>"),
    (INTERNVL, "<ref>cat</ref> <box>[[10,20,30,40]]</box>"),
    (QWEN2, "<|object_ref_start|>c<|object_ref_end|><|box_start|>(1, 2), (3, 4)<|box_end|>"),
    (INLINE, "cat [10,20,30.50,40]"),
]


@pytest.mark.parametrize(("notation", "said"), AS_WRITTEN)
def test_nothing_but_numbers_changes_where_boxes_are_replaced(
    notation: Notation, said: str
) -> None:
    text = f"so {said} then"
    found = notation.find(text)
    assert notation.rewritten(text, [b.values for b in found]) == text
    assert notation.rewritten(text, [()] * len(found)) == text
    others = [(n + 900, n + 901, n + 902, n + 903) for n in range(0, 8 * len(found), 8)]
    changed = notation.rewritten(text, others)
    assert [b.values for b in notation.find(changed)] == others
    numbers = r"(?<=[\[( ,])[\d.e]+(?=[\]), ])"
    assert re.sub(numbers, "#", changed) == re.sub(numbers, "#", text)
    assert notation.find(notation.rewritten(text, [None] * len(found))) == ()


def test_boxes_of_one_phrase_leave_it_once_and_go_together() -> None:
    text = "<ref>two dogs</ref><box>[[1, 2, 3, 4], [5, 6, 7, 8]]</box> run"
    assert INTERNVL.rewritten(text, [None, None]) == "two dogs run"
    with pytest.raises(ValueError, match="taken away together"):
        INTERNVL.rewritten(text, [None, (5, 6, 7, 8)])
    with pytest.raises(ValueError, match="No four numbers"):
        INLINE.rewritten("a dog [1, 2, 3]", [(1, 2, 3, 4)])


# --- other boxes in their place -------------------------------------------------------------------


@ALL
def test_boxes_are_taken_away_and_replaced_where_they_stand(notation: Notation) -> None:
    first, second = (
        notation.write(b, p) for b, p in (((1, 2, 3, 4), "a dog"), ((5, 6, 7, 8), "it"))
    )
    text = f"Here {first}; and {second}. Done"
    swapped = notation.rewritten(text, [(5, 6, 7, 8), (1, 2, 3, 4)])
    assert [b.values for b in notation.find(swapped)] == [(5, 6, 7, 8), (1, 2, 3, 4)]
    assert [b.phrase for b in notation.find(swapped)] == [b.phrase for b in notation.find(text)]
    bare = notation.rewritten(text, [None, None])
    assert notation.find(bare) == ()
    assert (
        " ".join(bare.replace(" ;", ";").replace(" .", ".").split()) == "Here a dog; and it. Done"
    )
    with pytest.raises(ValueError, match="has 2 boxes, got 1"):
        notation.rewritten(text, [None])


def test_only_phrases_that_are_read_back_are_phrases() -> None:
    assert all(n.is_phrase("red circle") for n in NOTATIONS.values())
    assert not INLINE.is_phrase("one. two")
    assert JSON.is_phrase('one. "two" {3}')
    assert not QWEN2.is_phrase("a<|object_ref_start|>b")


def test_a_notation_that_is_none_is_named_with_those_there_are() -> None:
    assert notation_named("json") is JSON
    with pytest.raises(RecipeError, match=r"No box notation named 'xml'\. Available: inline, inte"):
        notation_named("xml")


def test_what_is_written_is_what_families_write() -> None:
    box, phrase = (212, 40, 318, 166), "red circle"
    for notation in NOTATIONS.values():
        assert notation.write(box, phrase) == notation.example
    assert INLINE.find("[0.5, .25, 1, 1e0]") == (BoxWritten(None, "", 0, 18),)
