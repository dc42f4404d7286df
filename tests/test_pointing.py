"""The pointing dialect and the tool that it calls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from saccade.dialects import dialect
from saccade.dialects.pointing import REQUEST
from saccade.errors import ToolError
from saccade.geometry import Box, Frame
from saccade.images import root_view
from saccade.tools import crop, look
from saccade.types import Answer, BoxFound, ImageShown, Parsed, Text, ToolCall, ToolResult
from saccade.worlds.lessons import READ

POINTING = dialect("pointing", style="silent")
WORDS = st.text(st.characters(blacklist_characters="[]\n\r", blacklist_categories=("Cs", "Cc")))
LINES = WORDS.map(str.strip).filter(lambda s: bool(s) and len(s.splitlines()) == 1)
BOXES = st.lists(st.integers(0, 1000), min_size=4, max_size=4)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(LINES, BOXES), min_size=1, max_size=4))
def test_looks_survive_writing_and_reading(looks: list[tuple[str, list[int]]]) -> None:
    calls = tuple(
        ToolCall(f"call_{k}", "look", {"image": "img_0", "box": box})
        for k, (_, box) in enumerate(looks)
    )
    parsed = Parsed("\n".join(said for said, _ in looks), calls)
    assert POINTING.parse(POINTING.render(parsed)) == parsed


def test_another_tool_stands_behind_the_same_words() -> None:
    other = dialect("pointing", style="silent", tools=["crop", "zoom"])
    parsed = other.parse("bar 4 [810, 200, 870, 260]")
    assert [c.name for c in parsed.calls] == ["crop"]
    assert other.render(parsed) == "bar 4 [810, 200, 870, 260]"


def test_further_tools_are_called_by_their_names_and_other_words_with_colons_are_words() -> None:
    several = dialect("pointing", style="silent", tools=["look", "ocr", "crop"])
    text = "ocr: bar 4 [810, 200, 870, 260]\nbar 3 [0, 0, 9, 9]\nnote: bar 2 [1, 1, 8, 8]"
    parsed = several.parse(text)
    assert [c.name for c in parsed.calls] == ["ocr", "look", "look"]
    assert parsed.thought == "bar 4\nbar 3\nnote: bar 2"
    assert several.render(parsed) == text
    assert [c.name for c in POINTING.parse(text).calls] == ["look"] * 3  # it knows one tool
    with pytest.raises(ValueError, match="no words for this turn"):
        POINTING.render(parsed)
    told = dialect("pointing", tools=["look", "ocr"]).instructions([crop.spec])
    assert "ocr:" in told
    assert "look:" not in told


def test_of_what_was_found_the_words_stand_in_the_observation() -> None:
    view = root_view(Image.new("RGB", (40, 30)))
    call = ToolCall("call_0", "ocr", {"image": "img_0", "box": [0, 0, 9, 9]})
    parts = (
        BoxFound(view.ref, Box(1, 1, 9, 9), "42", 0.9),
        BoxFound(view.ref, Box(1, 11, 9, 19), "17", 0.9),
        ImageShown(view.ref, "img_1"),
    )
    shown = POINTING.observation(
        [ToolResult(call, parts)], frame=lambda ref: Frame.thousand(ref.width, ref.height)
    )
    assert shown.parts == (Text("42 17\n"),)


@settings(deadline=None, max_examples=150)
@given(LINES, st.one_of(st.just(""), LINES))
def test_answers_survive_writing_and_reading(answer: str, thought: str) -> None:
    parsed = Parsed(thought, answer=Answer(answer))
    assert POINTING.parse(POINTING.render(parsed)) == parsed


@settings(deadline=None, max_examples=300)
@given(st.text())
def test_no_text_makes_it_raise(text: str) -> None:
    found = POINTING.parse(text)
    assert not (found.calls and found.answer)


def test_a_turn_with_a_box_looks_and_does_not_answer() -> None:
    found = POINTING.parse("bar 4 [810, 200, 870, 260]\n83")
    assert [c.arguments["box"] for c in found.calls] == [[810, 200, 870, 260]]
    assert found.answer is None


def test_what_has_no_words_in_it_is_refused() -> None:
    crop = ToolCall("call_0", "crop", {"image": "img_0", "box": [1, 2, 3, 4]})
    with pytest.raises(ValueError, match="no words"):
        POINTING.render(Parsed("a", (crop,)))
    with pytest.raises(ValueError, match="need as many lines"):
        POINTING.render(Parsed("", (ToolCall("call_0", "look", crop.arguments),)))


def test_a_megabyte_of_brackets_is_read_at_once() -> None:
    assert POINTING.parse("[1, 2, 3, " * 100_000).calls == ()


def test_an_observation_shows_pictures_and_sentences_in_order() -> None:
    view = root_view(Image.new("RGB", (40, 30))).ref
    call = ToolCall("call_0", "look", {})
    shown = ToolResult(call, (ImageShown(view, "img_1"),))
    failed = ToolResult(call, (Text("No such place."),), failed=True)
    message = POINTING.observation(
        (shown, failed), frame=lambda i: Frame.thousand(i.width, i.height), note="Go on."
    )
    assert [i.name for i in message.images] == ["img_1"]
    assert message.text.startswith("Read.")
    assert "No such place." in message.text
    assert message.text.endswith("Go on.")


def picture() -> Image.Image:
    """A white page with a red bar and a black word above it."""
    page = Image.new("RGB", (200, 100), "white")
    pen = ImageDraw.Draw(page)
    pen.rectangle((60, 60, 120, 99), fill=(214, 39, 40))
    pen.rectangle((80, 40, 99, 49), fill=(20, 20, 20))
    return page


def test_look_trims_to_the_print_and_leaves_marks_out() -> None:
    view = look(root_view(picture()), Box(50, 20, 150, 90))
    assert (view.ref.width, view.ref.height) == (20, 10)
    [(_, polygon)] = view.ref.to_roots()
    assert polygon.bounds == Box(80, 40, 100, 50)
    assert (np.asarray(view.pixels) == 20).all()


def test_look_returns_a_region_without_print_whole() -> None:
    view = look(root_view(picture()), Box(0, 0, 50, 30))
    assert (view.ref.width, view.ref.height) == (50, 30)


def test_look_outside_the_picture_is_the_mistake_of_the_model() -> None:
    with pytest.raises(ToolError, match="outside"):
        look(root_view(picture()), Box(300, 300, 400, 400))


def test_a_view_is_asked_about_as_it_was_in_the_lessons() -> None:
    """The base learned to read behind these words; others would have to be learned again."""
    assert READ == REQUEST
