"""Reasoning with boxes: the tags, and the way of a box from the text to pixels of its picture."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from saccade.dialects import NOTATIONS, dialect
from saccade.dialects.grounded import SECTIONS, Grounded
from saccade.geometry import Box, Frame, iou
from saccade.grounding import MOST, boxes_named
from saccade.grounding_figures import grounding_of
from saccade.renderers.resize import smart_resize
from saccade.tags import sections
from saccade.types import (
    Answer,
    BadBox,
    BoxNamed,
    Episode,
    Evidence,
    ImageRef,
    Parsed,
    Sample,
    StopReason,
    ToolCall,
    TurnRecord,
)

IMAGE = ImageRef("a" * 64, 640, 480)
GROUNDED = Grounded()
WHOLE = "<think> a b </think> <rethink> c </rethink> <answer> yes </answer>"

pieces = st.sampled_from(
    [f"<{end}{name}>" for name in SECTIONS for end in ("", "/")]
    + ["yes", "[1, 2, 3, 4]", " ", "\n"]
)
said = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).map(str.strip)


# --- tags -----------------------------------------------------------------------------------------


def test_a_whole_turn_is_read() -> None:
    assert GROUNDED.parse(WHOLE) == Parsed("a b", answer=Answer("yes"), rethought="c")
    found = sections(WHOLE, SECTIONS)
    assert (found.names, found.outside) == (SECTIONS, "")


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer>yes</answer>", "yes"),
        ("<answer>yes", None),
        ("yes</answer>", None),
        ("yes", None),
        ("<answer>yes</answer><answer>no</answer>", None),
        ("<think>I would say <answer>no</answer> but</think><answer>yes</answer>", None),
        ("<think>a<rethink>b</rethink><answer>yes</answer>", "yes"),
        ("<answer><answer>yes</answer>", "yes"),
        ("<answer></answer>", ""),
        ("<Answer>yes</Answer>", None),
    ],
)
def test_an_answer_is_what_stands_in_the_one_whole_answer(text: str, answer: str | None) -> None:
    parsed = GROUNDED.parse(text)
    assert (parsed.answer.text if parsed.answer else None) == answer


def test_what_is_not_in_tags_is_told_apart() -> None:
    found = sections(f"well {WHOLE} so <think> open", SECTIONS)
    assert found.names == SECTIONS
    assert found.outside == "well\nso\n<think> open"
    assert sections("</think> a", SECTIONS).outside == "</think> a"
    assert sections("<think>a<rethink>b</rethink>", SECTIONS).closed == (("rethink", "b"),)


@given(st.lists(pieces, max_size=30).map("".join))
def test_reading_tags_never_raises_and_loses_no_word(text: str) -> None:
    parsed = GROUNDED.parse(text)
    assert parsed.calls == ()
    found = sections(text, SECTIONS)
    kept = "".join(t for _, t in found.closed) + found.outside
    assert kept.count("yes") == text.count("yes")


@given(said, said, said)
def test_what_is_rendered_is_read_back(thought: str, rethought: str, answer: str) -> None:
    parsed = Parsed(thought, answer=Answer(answer), rethought=rethought)
    try:
        text = GROUNDED.render(parsed)
    except ValueError:
        marked = thought + rethought + answer
        assert "<" in marked or any(t != t.strip() for t in (thought, rethought, answer))
    else:
        assert GROUNDED.parse(text) == parsed


def test_calls_have_no_words_here() -> None:
    with pytest.raises(ValueError, match="no words for calls"):
        GROUNDED.render(Parsed(calls=(ToolCall("call_0", "crop", {}),)))
    with pytest.raises(ValueError, match="The thought would be read back differently"):
        GROUNDED.render(Parsed("a </think> b", answer=Answer("c")))


def test_a_model_is_told_the_notation_of_its_family() -> None:
    told = dialect("grounded", notation=NOTATIONS["qwen2"]).instructions(())
    assert NOTATIONS["qwen2"].example in told
    assert dialect("grounded", style="silent").instructions(()) == ""


def test_ten_megabytes_of_tags_take_linear_time() -> None:
    began = time.process_time()
    GROUNDED.parse("<think>" * 1_400_000)
    assert time.process_time() - began < 20


# --- from text to pixels --------------------------------------------------------------------------


def named(
    text: str, frame: Any = Frame.pixels, images: dict[str, ImageRef] | None = None
) -> tuple[tuple[BoxNamed, ...], tuple[BadBox, ...]]:
    return boxes_named(
        Parsed(text),
        NOTATIONS["inline"],
        images={"img_0": IMAGE} if images is None else images,
        frame=lambda ref: frame(ref.width, ref.height),
    )


def test_a_box_becomes_pixels_of_its_picture_with_its_phrase() -> None:
    [box], bad = named("a dog [100, 250, 500, 750]", Frame.thousand)
    assert box == BoxNamed(IMAGE, Box(64, 120, 320, 360), "a dog")
    assert bad == ()


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ("1, 2, 3", "not four numbers"),
        ("5, 5, 5, 9", "no area"),
        ("0, 0, 0, 0", "no area"),
        ("9, 2, 3, 4", "corners reversed"),
        ("1, 9, 3, 4", "corners reversed"),
        ("nan, 2, 3, 4", "not finite"),
        ("1, 2, inf, 4", "not finite"),
        ("640, 2, 700, 4", "outside the picture"),
        ("-9, -9, 0, 4", "outside the picture"),
    ],
)
def test_what_is_no_box_is_kept_with_its_reason(numbers: str, reason: str) -> None:
    assert named(f"it [{numbers}]") == ((), (BadBox(f"[{numbers}]", reason),))


def test_what_lies_beyond_the_border_is_cut_and_that_is_told() -> None:
    [box], _ = named("it [600, 400, 700, 470]")
    assert (box.box, box.is_cut) == (Box(600, 400, 640, 470), True)
    [box], _ = named("it [600, 400, 640, 480]")
    assert not box.is_cut


def test_a_box_lies_on_the_picture_that_it_names() -> None:
    small = ImageRef("b" * 64, 100, 50)
    parsed = Parsed(
        '{"bbox_2d": [0, 0, 500, 500], "image": "img_1"} {"bbox_2d": [0, 0, 9, 9], "image": "x"}'
    )
    good, bad = boxes_named(
        parsed,
        NOTATIONS["json"],
        images={"img_0": IMAGE, "img_1": small},
        frame=lambda ref: Frame.thousand(ref.width, ref.height),
    )
    assert [(b.image, b.box) for b in good] == [(small, Box(0, 0, 50, 25))]
    assert [b.reason for b in bad] == ["no picture named 'x'"]
    assert named("it [1, 2, 3, 4]", images={})[1][0].reason == "no picture to lie on"


def test_both_thoughts_count_and_a_flood_is_cut() -> None:
    parsed = Parsed("a [1, 2, 3, 4]", rethought="b [5, 6, 7, 8]")
    frame = lambda ref: Frame.pixels(ref.width, ref.height)  # noqa: E731
    good, _ = boxes_named(parsed, NOTATIONS["inline"], images={"img_0": IMAGE}, frame=frame)
    assert [b.phrase for b in good] == ["a", "b"]
    many, bad = named("[1, 2, 3, 4]" * 1000 + "[0, 0, 0, 0]" * 1000)
    assert (len(many), len(bad)) == (MOST, 0)


# --- the frames of families -----------------------------------------------------------------------

SIZES = [(640, 480), (1333, 750), (7680, 4320), (4320, 7680), (28, 28), (1, 1)]


def qwen25(width: int, height: int, most: int = 1_003_520) -> Frame:
    rows, columns = smart_resize(height, width, factor=28, min_pixels=3136, max_pixels=most)
    return Frame.resized(width, height, resized_width=columns, resized_height=rows)


FAMILIES = {
    "qwen2": (Frame.thousand, "qwen2"),
    "qwen2.5": (qwen25, "json"),
    "qwen3": (Frame.thousand, "json"),
    "internvl": (Frame.thousand, "internvl"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", SIZES)
@settings(deadline=None)  # the first one imports what matches boxes
@example(edges=(0.0, 1.0, 0.0, 1.0))
@given(edges=st.tuples(*[st.floats(0, 1)] * 4))
def test_each_edge_of_a_perfect_box_returns_within_half_a_unit(
    family: str, size: tuple[int, int], edges: tuple[float, float, float, float]
) -> None:
    width, height = size
    make, written = FAMILIES[family]
    frame, notation = make(width, height), NOTATIONS[written]
    unit = (width / frame.extent[0], height / frame.extent[1])
    # of the resized frame the last number is one short of the border, as the family writes it
    right, bottom = (
        (width, height) if family != "qwen2.5" else (width - unit[0] / 2, height - unit[1] / 2)
    )
    x = sorted(right * edge for edge in edges[:2])
    y = sorted(bottom * edge for edge in edges[2:])
    if x[1] - x[0] <= unit[0] or y[1] - y[0] <= unit[1]:
        return
    gold = Box(x[0], y[0], x[1], y[1])
    text = notation.write(frame.encode_box(gold), "thing")
    image = ImageRef("c" * 64, width, height)
    [back], bad = boxes_named(
        Parsed(text), notation, images={"img_0": image}, frame=lambda _: frame
    )
    assert bad == ()
    for i, (was, now) in enumerate(zip(gold.as_tuple(), back.box.as_tuple(), strict=True)):
        assert abs(was - now) <= unit[i % 2] / 2 * (1 + 1e-9)
    # and on to gaze and figures, however small it is
    episode = Episode(
        Sample("s", "?", (image,), "yes", (Evidence(image, gold),)),
        turns=(TurnRecord(Parsed(text), named=(back,)),),
        stop=StopReason.ANSWERED,
    )
    if back.box == Box(0, 0, width, height):  # all of the image is no place to look at
        assert episode.gaze == ()
    else:
        [gaze] = episode.gaze
        assert (gaze.image, gaze.polygon.bounds) == (image, back.box)
    least = (gold.width - unit[0]) * (gold.height - unit[1])
    least /= (gold.width + unit[0]) * (gold.height + unit[1])
    found = grounding_of(episode, frame=lambda _: frame)
    assert found.mean_iou == found.recall_iou
    assert found.mean_iou is not None
    assert found.mean_iou >= least - 1e-9
    assert found.union_iou == pytest.approx(found.mean_iou, abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_boxes_on_grid_points_return_exactly(family: str) -> None:
    make, written = FAMILIES[family]
    for width, height in ((1000, 2000), (1316 * 4, 728 * 4)):
        frame = make(width, height)
        step = (width / frame.extent[0], height / frame.extent[1])
        gold = Box(3 * step[0], 5 * step[1], 40 * step[0], 17 * step[1])
        text = NOTATIONS[written].write(frame.encode_box(gold), "thing")
        image = ImageRef("c" * 64, width, height)
        [back], _ = boxes_named(
            Parsed(text), NOTATIONS[written], images={"img_0": image}, frame=lambda _, f=frame: f
        )
        assert back.box.as_tuple() == pytest.approx(gold.as_tuple(), abs=1e-9)


def test_a_right_box_in_the_wrong_frame_is_far_off() -> None:
    """The published error: boxes in pixels of the resized picture, compared in original ones."""
    frame = qwen25(640, 480, most=200_704)  # the budget of the published runs
    gold = Box(300, 200, 400, 300)
    wrong = Box(*frame.encode_box(gold))
    assert iou(gold, wrong) < 0.3
    assert iou(gold, frame.decode_box(wrong.as_tuple())) > 0.97


def test_whole_numbers_cost_small_boxes_in_large_pictures() -> None:
    frame = Frame.thousand(7680, 4320)
    rates = []
    for i in range(200):
        x, y = math.fmod(i * 37.7, 7600), math.fmod(i * 23.3, 4200)
        gold = Box(x, y, x + 20, y + 20)
        values = frame.encode_box(gold)
        rates.append(iou(gold, frame.decode_box(values)) if values[0] < values[2] else 0.0)
    assert 0.69 < sum(rates) / len(rates) < 0.79
