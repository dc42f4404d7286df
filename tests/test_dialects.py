"""Dialects read whatever a model writes, and read their own renderings as what was rendered."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.dialects import DIALECTS, Dialect, dialect
from saccade.dialects.scan import MAX_DEPTH, MAX_RAW, merge_texts, part_lines, read_object
from saccade.errors import RecipeError
from saccade.geometry import Box, Frame, Mask
from saccade.types import (
    Answer,
    BadCall,
    BoxFound,
    ImageRef,
    ImageShown,
    MaskFound,
    Message,
    Parsed,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
)

SCRIPT = Path(__file__).parent.parent / "scripts" / "fuzz_parsers.py"
IMAGE = ImageRef("a" * 64, 640, 480)
HERMES, OPEN = dialect("hermes"), dialect("openthinkimg")
BOTH = pytest.mark.parametrize("reader", [HERMES, OPEN], ids=lambda d: d.name)

scalars = st.characters(exclude_categories=["Cs"])
texts = st.text(scalars, max_size=30) | st.sampled_from(
    ['a } ] { [ "', "\\", "</tool_call>", "Terminate", '{"thought": "x", "actions": []}', "日本😀"]
)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts | st.just("<tool_call>"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
names = texts.filter(lambda name: name and name.lower() != "terminate")
call_lists = st.lists(st.tuples(names, st.dictionaries(texts, values, max_size=4)), max_size=4).map(
    lambda pairs: tuple(ToolCall(f"call_{i}", *pair) for i, pair in enumerate(pairs))
)
canonical = st.builds(
    Parsed, texts.map(str.strip), call_lists, st.none() | st.builds(Answer, texts)
)
marks = [
    "<tool_call>",
    "</tool_call>",
    '{"',
    '"}',
    '": "',
    "\\",
    "\\ud800",
    "\ud800",
    "{" * 99,
    "\x00",
]
forms = [
    '{"name": "zoom", "arguments": {}}',
    '{"thought": "t", "actions": [',
    "]}",
    "NaN",
    "{}",
    "\n",
]
anything = st.text() | st.sampled_from(marks + forms)


def hermes_calls(text: str) -> str:
    return f"<tool_call>\n{text}\n</tool_call>"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_parsers", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def bad_reasons(parsed: Parsed) -> list[str]:
    return [call.reason for call in parsed.calls if isinstance(call, BadCall)]


# --- both dialects --------------------------------------------------------------------------------


@BOTH
@given(parsed=canonical)
@settings(deadline=None)
def test_what_is_rendered_is_read_back_the_same(reader: Dialect, parsed: Parsed) -> None:
    assert reader.parse(reader.render(parsed)) == parsed


@BOTH
@given(
    parsed=st.builds(
        Parsed,
        st.text(),
        st.lists(
            st.builds(ToolCall, st.sampled_from(["call_0", "x"]), st.text(), st.just({"a": (1,)}))
            | st.builds(ToolCall, st.just("call_0"), texts, st.dictionaries(st.text(), values))
            | st.builds(BadCall, anything, st.text()),
            max_size=2,
        ).map(tuple),
        st.none() | st.builds(Answer, st.text()),
    )
)
@settings(deadline=None)
def test_render_refuses_what_it_could_not_read_back(reader: Dialect, parsed: Parsed) -> None:
    try:
        text = reader.render(parsed)
    except ValueError:
        return
    assert reader.parse(text) == parsed


@BOTH
@pytest.mark.parametrize(
    "parsed",
    [
        Parsed(calls=(ToolCall("call_1", "zoom", {}),)),
        Parsed(calls=(ToolCall("call_0", "Terminate", {"ans": "5"}),)),
        Parsed(calls=(ToolCall("call_0", "zoom", {"x": float("nan")}),)),
        Parsed(calls=(ToolCall("call_0", "zoom", {"x": {1: 2}}),)),
        Parsed(calls=(ToolCall("call_0", "zoom", {"x": {1, 2}}),)),
        Parsed(calls=(ToolCall("call_0", "zoom", {"x": 10**400}),)),
        Parsed(calls=(ToolCall("call_0", "zoom", json.loads('{"a":' * 900 + "1" + "}" * 900)),)),
        Parsed(calls=(BadCall("x" * MAX_RAW, "so it was"),)),
        Parsed(answer=Answer("\ud800")),
    ],
    ids=lambda parsed: str(parsed)[:60].encode("ascii", "replace").decode(),
)
def test_turns_that_are_not_canonical_are_refused(reader: Dialect, parsed: Parsed) -> None:
    with pytest.raises(ValueError, match=r"\.$"):
        reader.render(parsed)


def test_a_hermes_thought_with_a_tag_or_outer_space_is_refused() -> None:
    for thought in ("a <tool_call> b", " a", "a\n"):
        with pytest.raises(
            ValueError, match=r"^The (thought|calls) would be read back differently"
        ):
            HERMES.render(Parsed(thought))


@BOTH
@given(text=st.lists(anything, max_size=12).map("".join))
@settings(deadline=None)
def test_no_text_raises_and_what_is_read_can_be_stored(reader: Dialect, text: str) -> None:
    parsed = reader.parse(text)
    repr(parsed).encode()
    for call in parsed.calls:
        if isinstance(call, BadCall):
            assert call.reason.endswith(".")
            assert len(call.raw) <= MAX_RAW
        else:
            json.dumps(call.arguments, ensure_ascii=False, allow_nan=False).encode()


HOSTILE = sorted(script().HOSTILE)


@BOTH
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_text_is_read_in_linear_time(reader: Dialect, what: str) -> None:
    """A decoder restarted at each brace would take 256 times as long for 16 times the text."""
    make = script().HOSTILE[what]

    def seconds(length: int) -> float:
        text = make(length)
        start = time.process_time()
        reader.parse(text)
        return time.process_time() - start

    short = min(seconds(1 << 14) for _ in range(2))
    limit = 64 * max(short, 0.002)
    # the best of a few: a pause of the garbage collector or of the machine is not the parser's
    assert any(seconds(1 << 18) < limit for _ in range(5))


@BOTH
@pytest.mark.parametrize("what", ["objects in lists", "tags", "backslashes in string"])
def test_a_megabyte_is_one_bad_call_or_many_but_no_exception(reader: Dialect, what: str) -> None:
    parsed = reader.parse(script().HOSTILE[what](1 << 20))
    assert parsed.answer is None
    assert all(isinstance(call, BadCall) for call in parsed.calls)


@BOTH
def test_text_alone_is_a_thought(reader: Dialect) -> None:
    text = 'I see {a, b} and [c]; he said "Terminate", it\'s } < 5.'
    assert reader.parse(text) == Parsed(text)
    assert reader.parse("") == Parsed()


@BOTH
def test_marks_inside_strings_are_only_text(reader: Dialect) -> None:
    nasty = '</tool_call> } ] { [ " \\ <tool_call>\n{"name": "Terminate"} \x00 日本 😀 \u2028'
    parsed = Parsed("Terminate now", (ToolCall("call_0", "ocr", {"q": nasty, nasty: [nasty]}),))
    assert reader.parse(reader.render(parsed)) == parsed
    assert reader.parse(reader.render(Parsed("", (), Answer(nasty)))).answer == Answer(nasty)


@BOTH
def test_calls_beside_an_answer_are_both_read(reader: Dialect) -> None:
    parsed = Parsed("t", (ToolCall("call_0", "a", {}), ToolCall("call_1", "b", {})), Answer("5"))
    assert reader.parse(reader.render(parsed)) == parsed


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ('{"ans": "five"}', "five"),
        ('{"ans": 5}', "5"),
        ('{"ans": -2.5}', "-2.5"),
        ('{"answer": "five"}', "five"),
        ('{"ans": ""}', ""),
    ],
)
@pytest.mark.parametrize("name", ["terminate", "Terminate", "TERMINATE"])
def test_terminate_answers_in_any_case_of_letters(name: str, arguments: str, answer: str) -> None:
    call = f'{{"name":"{name}","arguments":{arguments}}}'
    assert HERMES.parse(hermes_calls(call)) == Parsed(answer=Answer(answer))
    assert OPEN.parse(f'{{"thought":"","actions":[{call}]}}') == Parsed(answer=Answer(answer))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("5", "object"),
        ('{"arguments": {}}', '"name"'),
        ('{"name": "", "arguments": {}}', '"name"'),
        ('{"name": 5, "arguments": {}}', '"name"'),
        ('{"name": "a"}', '"arguments"'),
        ('{"name": "a", "arguments": [1]}', '"arguments"'),
        ('{"name": "a", "arguments": "{}"}', '"arguments"'),
        ('{"name": "terminate", "arguments": {}}', '"ans"'),
        ('{"name": "terminate", "arguments": {"ans": null}}', '"ans"'),
        ('{"name": "terminate", "arguments": {"ans": true}}', '"ans"'),
        ('{"name": "a", "arguments": {"x": NaN}}', "NaN"),
        ('{"name": "a", "arguments": {"x": -Infinity}}', "-Infinity"),
        ('{"name": "a", "arguments": {"x": 1e999}}', "1e999"),
        ('{"name": "a", "arguments": {"x": %s}}' % ("9" * 5000), "5000 digits"),
        ('{"name": "a", "arguments": {"x": 0.%s}}' % ("3" * 5000), "5002 digits"),
        ('{"name": "a", "arguments": {},}', "not JSON"),
        ("{'name': 'a', 'arguments': {}}", ""),
        ('{"name": "a", "arguments": {"x": "two\nlines"}}', "not JSON"),
        ('{"name": "a", "arguments": ' + '{"a":' * 99 + "1" + "}" * 100, f"{MAX_DEPTH} levels"),
    ],
)
def test_a_malformed_call_is_reported_and_the_others_are_read(call: str, reason: str) -> None:
    good = '{"name": "zoom", "arguments": {}}'
    parsed = HERMES.parse("\n".join(map(hermes_calls, (good, call, good))))
    first, bad, last = parsed.calls
    assert first == ToolCall("call_0", "zoom", {})
    assert last == ToolCall("call_1", "zoom", {})
    assert isinstance(bad, BadCall)
    assert bad.raw == hermes_calls(call)[:MAX_RAW]
    assert reason in bad.reason
    parsed = OPEN.parse(f'{{"thought": "t", "actions": [{call}]}} {{"actions": [{good}]}}')
    assert reason in bad_reasons(parsed)[0]
    assert parsed.answer is None


@BOTH
def test_the_last_of_equal_keys_wins(reader: Dialect) -> None:
    call = '{"name": "a", "name": "b", "arguments": {"x": 1, "x": 2}}'
    text = hermes_calls(call) if reader is HERMES else f'{{"thought": "", "actions": [{call}]}}'
    assert reader.parse(text) == Parsed(calls=(ToolCall("call_0", "b", {"x": 2}),))


@BOTH
def test_a_second_answer_is_a_bad_call(reader: Dialect) -> None:
    call = '{"name": "terminate", "arguments": {"ans": "%s"}}'
    blocks = hermes_calls(call % 1) + hermes_calls(call % 2)
    text = blocks if reader is HERMES else f'{{"actions": [{call % 1}, {call % 2}]}}'
    parsed = reader.parse(text)
    assert parsed.answer == Answer("1")
    assert bad_reasons(parsed) == ["This is a second answer; answer once."]


@BOTH
def test_half_surrogate_pairs_become_replacement_characters(reader: Dialect) -> None:
    call = '{"name": "a", "arguments": {"\\ud800": ["\\udc00\\ud83d\\ude00"]}}'
    block = hermes_calls(call) if reader is HERMES else f'{{"actions": [{call}]}}'
    parsed = reader.parse("\ud800" + block)
    assert parsed == Parsed("\ufffd", (ToolCall("call_0", "a", {"\ufffd": ["\ufffd😀"]}),))


@given(value=st.dictionaries(texts, values, max_size=4), tail=anything)
@settings(deadline=None)
def test_the_finder_agrees_with_the_standard_library(value: dict[str, object], tail: str) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert read_object(text + tail, 0) == (value, len(text), "")
        assert read_object("{" + text + tail, 1) == (value, len(text) + 1, "")


frames = st.sampled_from(
    [
        Frame.pixels(640, 480),
        Frame.thousand(640, 480),
        Frame.resized(640, 480, resized_width=308, resized_height=224),
        Frame.unit(640, 480),
        Frame.percent(640, 480),
    ]
)
sides = st.tuples(st.floats(0, 430), st.floats(0, 430), st.floats(1, 40), st.floats(1, 40))
boxes = sides.map(lambda s: Box(s[0], s[1], s[0] + s[2], s[1] + s[3]))


@BOTH
@given(frame=frames, box=boxes)
@settings(deadline=None)
def test_boxes_survive_call_and_observation_within_half_a_unit(
    reader: Dialect, frame: Frame, box: Box
) -> None:
    exact = [v * frame.extent[i % 2] / (640, 480)[i % 2] for i, v in enumerate(box.as_tuple())]
    call = ToolCall("call_0", "zoom", {"box": list(frame.encode_box(box))})
    (again,) = reader.parse(reader.render(Parsed(calls=(call,)))).calls
    assert isinstance(again, ToolCall)
    result = ToolResult(call, (BoxFound(IMAGE, box, "bar"),))
    shown = re.search(r"bar (\[.*\])", reader.observation([result], frame=lambda _: frame).text)
    assert shown is not None
    for written in (again.arguments["box"], json.loads(shown[1])):
        half = 0.5 if frame.is_integral else 0.0005
        assert written == pytest.approx(exact, abs=half + 1e-9, rel=0)


@given(st.integers(1, 6), st.integers(1, 6), st.data())
@settings(deadline=None)
def test_a_mask_is_shown_by_its_share_and_bounds(
    width: int, height: int, data: st.DataObject
) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=width * height, max_size=width * height))
    array = np.array(bits).reshape(height, width)
    if not array.any():
        return
    ys, xs = np.nonzero(array)
    result = ToolResult(BadCall("", ""), (MaskFound(IMAGE, Mask.from_array(array), "sky"),))
    ((text,),) = part_lines(result, lambda image: Frame.pixels(width, height))
    share = f"{100 * array.mean():.3g}"
    bounds = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert text == Text(f"sky {share}% of the image, [{', '.join(map(str, bounds))}]")


# --- instructions ---------------------------------------------------------------------------------

ZOOM = ToolSpec(
    "zoom",
    "Cut a region out and enlarge it.\n\nMore on that.",
    {
        "type": "object",
        "properties": {"image": {"type": "string"}, "box": {"type": "array"}, "by": {}},
        "required": ["image", "box"],
        "additionalProperties": False,
    },
)
ANSWER = ToolSpec(
    "terminate",
    "Give the answer.",
    {"type": "object", "properties": {"ans": {"type": "string"}}, "required": ["ans"]},
)


def test_a_signature_listing_is_a_line_for_each_tool_and_no_more() -> None:
    listed = "zoom(image, box, by?): Cut a region out and enlarge it.\n{}(ans): Give the answer."
    specs = (ZOOM, ANSWER)
    assert dialect("hermes", style="signature").instructions(specs) == listed.format("terminate")
    assert dialect("openthinkimg", style="signature").instructions(specs) == listed.format(
        "Terminate"
    )


def test_hermes_lists_a_schema_on_each_line_of_its_tools_block() -> None:
    text = HERMES.instructions((ZOOM, ANSWER))
    block = text.split("<tools>\n", 1)[1].split("\n</tools>", 1)[0]
    listed = [json.loads(line)["function"] for line in block.split("\n")]
    assert [tool["parameters"] for tool in listed] == [ZOOM.schema, ANSWER.schema]
    assert [tool["name"] for tool in listed] == ["zoom", "terminate"]


def test_openthinkimg_lists_a_schema_on_a_line_and_the_form_of_a_turn() -> None:
    lines = OPEN.instructions((ZOOM, ANSWER)).split("\n")
    listed = [json.loads(line) for line in lines if line.startswith('{"name"')]
    assert [tool["name"] for tool in listed] == ["zoom", "Terminate"]
    assert any('"actions": [' in line for line in lines)


def test_unknown_dialects_and_styles_are_named_in_the_error() -> None:
    with pytest.raises(RecipeError, match=r"'xml'.*hermes, mixed, openthinkimg"):
        dialect("xml")
    with pytest.raises(RecipeError, match=r"'long'.*schema, signature"):
        dialect("hermes", style="long")  # type: ignore[arg-type]
    for name in DIALECTS:
        assert isinstance(dialect(name), Dialect)
        assert dialect(name).name == name


# --- observations ---------------------------------------------------------------------------------


def frame_of(image: ImageRef) -> Frame:
    return Frame.thousand(image.width, image.height)


CALL = ToolCall("call_0", "zoom", {})
SHOWN = ImageShown(IMAGE, "img_1")
RESULTS = (
    ToolResult(CALL, (SHOWN, Text("Enlarged."), BoxFound(IMAGE, Box(64, 48, 320, 240), "bar"))),
    ToolResult(BadCall("{", "The JSON is cut off."), (Text("The JSON is cut off."),), failed=True),
)


def test_hermes_shows_a_response_for_each_result_and_the_note_on_its_own_line() -> None:
    message = HERMES.observation(RESULTS, frame=frame_of, note="Answer now.")
    assert message == Message(
        "tool",
        (
            Text("<tool_response>\nimg_1: "),
            SHOWN,
            Text(
                "\nEnlarged.\nbar [100, 100, 500, 500]\n</tool_response>\n"
                "<tool_response>\nError: The JSON is cut off.\n</tool_response>\nAnswer now."
            ),
        ),
    )
    two = ToolResult(CALL, (Text("No such box."), Text("Try another.")), failed=True)
    assert HERMES.observation([two], frame=frame_of).text == (
        "<tool_response>\nError: No such box.\nTry another.\n</tool_response>"
    )
    one = ToolResult(CALL, (SHOWN,))
    assert HERMES.observation([one], frame=frame_of).parts == (
        Text("<tool_response>\nimg_1: "),
        SHOWN,
        Text("\n</tool_response>"),
    )
    assert HERMES.observation([], frame=frame_of, note="No call.").parts == (Text("No call."),)


def test_openthinkimg_shows_name_texts_images_and_a_request() -> None:
    message = OPEN.observation(RESULTS, frame=frame_of, note="Answer now.")
    assert message == Message(
        "tool",
        (
            Text("OBSERVATION:\nzoom\nEnlarged.\nbar [100, 100, 500, 500]\nimg_1: "),
            SHOWN,
            Text(
                "\naction\nError: The JSON is cut off.\nAnswer now.\n"
                "Go on with the next JSON object; Terminate answers."
            ),
        ),
    )


def test_texts_are_joined_once_each_however_many_there_are() -> None:
    """Each text was once joined to all before it: two minutes for a turn of 40,000 calls."""
    line = Text("x" * 100)
    started = time.perf_counter()
    (joined,) = merge_texts([line] * 40_000)
    assert time.perf_counter() - started < 1
    assert joined == Text("x" * 4_000_000)


def test_only_texts_between_two_pictures_are_joined_and_empty_ones_left_out() -> None:
    picture = ImageShown(IMAGE, "img_1")
    parts = [Text(""), picture, Text("a"), Text(""), Text("b"), picture, Text(""), picture]
    assert merge_texts(parts) == (picture, Text("ab"), picture, picture)


def test_numbers_of_a_fractional_frame_are_short() -> None:
    result = replace(RESULTS[0], parts=(BoxFound(IMAGE, Box(0, 0, 640 / 3, 480)),))
    shown = HERMES.observation([result], frame=lambda image: Frame.unit(640, 480))
    assert "[0.0, 0.0, 0.333, 1.0]" in shown.text


# --- hermes ---------------------------------------------------------------------------------------


def test_the_canonical_hermes_turn() -> None:
    zoom = ToolCall("call_0", "zoom", {"image": "img_0", "box": [1, 2, 3, 4]})
    block = (
        '<tool_call>\n{"name": "zoom", "arguments": {"image": "img_0", "box": [1, 2, 3, 4]}}\n'
        "</tool_call>"
    )
    assert HERMES.render(Parsed("thought", (zoom,))) == f"thought\n{block}"
    assert HERMES.render(Parsed("", (zoom,))) == block
    assert HERMES.render(Parsed("", (), Answer("5"))) == hermes_calls(
        '{"name": "terminate", "arguments": {"ans": "5"}}'
    )


def test_text_between_and_behind_hermes_calls_belongs_to_the_thought() -> None:
    block = hermes_calls('{"name": "a", "arguments": {}}')
    parsed = HERMES.parse(f" one \n{block} two {block}\nthree\n")
    assert parsed.thought == "one\ntwo\nthree"
    assert [c.id for c in parsed.calls if isinstance(c, ToolCall)] == ["call_0", "call_1"]


@pytest.mark.parametrize(
    "cut",
    ["<tool_call>", '<tool_call>\n{"name": "zo', '<tool_call>{"name": "a", "arguments": {}}'],
)
def test_a_hermes_turn_that_was_cut_off_is_a_bad_call(cut: str) -> None:
    parsed = HERMES.parse(f"look\n{cut}\n")
    assert parsed == Parsed("look", (BadCall(cut, "<tool_call> is not closed by </tool_call>."),))
    assert HERMES.render(parsed) == f"look\n{cut}"


def test_an_unclosed_string_does_not_swallow_the_next_hermes_call() -> None:
    good = hermes_calls('{"name": "a", "arguments": {}}')
    for broken in ('{"name": "zoom, "arguments": {}}', '{"name": "zoom}', '{"name": "zoom"}}'):
        bad, call = HERMES.parse(f"{hermes_calls(broken)}\n{good}").calls
        assert isinstance(bad, BadCall)
        assert call == ToolCall("call_0", "a", {})
    broken = '<tool_call>{"name": "zoom, "arguments": {}}</tool_call>'
    assert HERMES.parse(broken + good).calls[1:] == (ToolCall("call_0", "a", {}),)


def test_tags_in_strings_of_a_broken_hermes_call_start_no_call() -> None:
    inner = "<tool_call>{}</tool_call>"
    parsed = HERMES.parse(hermes_calls(f'{{"name": "a", "arguments": {{"q": "{inner}"}},}}'))
    assert len(parsed.calls) == 1
    assert isinstance(parsed.calls[0], BadCall)
    assert parsed.thought == ""


def test_an_xml_call_is_a_bad_call_for_hermes() -> None:
    parsed = HERMES.parse(hermes_calls("<function=zoom></function>"))
    assert bad_reasons(parsed) == ["There is no JSON object after <tool_call>."]


# --- openthinkimg ---------------------------------------------------------------------------------


def test_the_canonical_openthinkimg_turn() -> None:
    crop = ToolCall("call_0", "Crop", {"image": "img_0"})
    assert OPEN.render(Parsed("t", (crop,), Answer("5"))) == (
        '{"thought": "t", "actions": [{"name": "Crop", "arguments": {"image": "img_0"}}, '
        '{"name": "Terminate", "arguments": {"ans": "5"}}]}'
    )


def test_text_around_openthinkimg_json_is_tolerated() -> None:
    turn = '{"thought": "t", "actions": [{"name": "Crop", "arguments": {}}]}'
    want = Parsed("t", (ToolCall("call_0", "Crop", {}),))
    for text in (f'Use {{a}} and "{{\'b": ok\n{turn} }} done', f"```json\n{turn}\n```", turn):
        assert OPEN.parse(text) == want
    assert OPEN.parse(turn.replace('"t"', '""').join(("I see ", ""))).thought == "I see"


def test_every_object_of_an_openthinkimg_turn_is_read() -> None:
    turn = '{"thought": "%s", "actions": [{"name": "Crop", "arguments": {}}]}'
    parsed = OPEN.parse(f'{turn % "a"}\n{{"note": 1}}\n{turn % "b"}')
    assert parsed.thought == "a\nb"
    assert bad_reasons(parsed) == []
    assert [c.id for c in parsed.calls if isinstance(c, ToolCall)] == ["call_0", "call_1"]


def test_an_object_of_another_form_is_a_bad_call_where_nothing_else_is_offered() -> None:
    parsed = OPEN.parse('so {"name": "Crop", "arguments": {}}')
    assert parsed.thought == "so"
    assert "form" in bad_reasons(parsed)[0]
    assert bad_reasons(OPEN.parse('{"thought": "t", "actions": 5}')) == [
        '"actions" must be a list.'
    ]


def test_the_rest_of_a_broken_openthinkimg_turn_is_not_executed() -> None:
    good = '{"name": "b", "arguments": {}}'
    text = f'{{"thought": "t", "actions": [{{"name": "a", "arguments": {{x}}}}, {good}]}}'
    (bad,) = OPEN.parse(text).calls
    assert isinstance(bad, BadCall)
    (cut,) = OPEN.parse(text[:20]).calls
    assert cut == BadCall(text[:20], "The JSON is cut off.")


# --- the fuzzer -----------------------------------------------------------------------------------


def test_the_fuzzer_passes_and_finds_a_parser_that_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    fuzzer = script()
    assert fuzzer.fuzz_batch((1, 0, 300)) == ""

    class Broken:
        name = "broken"

        def parse(self, text: str) -> Parsed:
            return Parsed(json.loads(text))

        def render(self, parsed: Parsed) -> str:
            return HERMES.render(parsed)

    monkeypatch.setattr(fuzzer, "dialect", lambda name: Broken())
    assert "JSONDecodeError" in fuzzer.fuzz_batch((1, 0, 300))


def test_the_fuzzer_runs_from_the_command_line() -> None:
    command = [sys.executable, str(SCRIPT), "--count", "100", "--processes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said = " ".join(done.stdout.split())  # a narrow console wraps
    assert "100 strings through grounded and hermes and mixed and openthinkimg" in said
    assert "no exception" in said


# --- both ways of looking -------------------------------------------------------------------------


def test_a_turn_with_tags_thinks_with_boxes_and_any_other_points() -> None:
    both = dialect("mixed", tools=["look", "ocr"])
    thought = (
        "<think> red star [10, 20, 30, 40] </think> <rethink> above </rethink> "
        "<answer> true </answer>"
    )
    assert both.parse(thought) == dialect("grounded").parse(thought)
    assert both.parse(thought).calls == ()
    for text in ("bar 4 [810, 200, 870, 260]", "ocr: bar 4 [1, 2, 3, 4]", "83, 68\n15", "15"):
        assert both.parse(text) == dialect("pointing", tools=["look", "ocr"]).parse(text)
    assert both.parse("<answer> 15").answer is None


@given(st.text(alphabet="<>/thinkrea swo1,[]\n", max_size=80))
def test_what_the_mixed_dialect_writes_it_reads(text: str) -> None:
    both = dialect("mixed", tools=["look"])
    parsed = both.parse(text)
    try:
        written = both.render(parsed)
    except ValueError:
        return
    assert both.parse(written) == parsed
