"""Episodes as pictures and pages, and the report of a run: what they show and never do."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from saccade.dialects import NOTATIONS
from saccade.episode_json import episode_from_json, episode_to_json
from saccade.errors import DataError, ImageError
from saccade.geometry import Box, Frame
from saccade.grounding import boxes_named
from saccade.image_store import ImageStore
from saccade.images import beside, root_view
from saccade.report import write_report
from saccade.rewards.builtin import looked_at_evidence
from saccade.run_folder import RunFolder
from saccade.types import (
    Answer,
    BadBox,
    BadCall,
    BoxFound,
    BoxNamed,
    Episode,
    Evidence,
    ImageShown,
    Message,
    Parsed,
    Sample,
    Score,
    StopReason,
    Text,
    ToolCall,
    ToolResult,
    TurnRecord,
)
from saccade.view import EVIDENCE_COLOR, GAZE_COLORS, episode_html, gaze_picture

HOSTILE = (
    "</p><script>alert(1)</script><img src=x onerror=alert(2)> \"' {{ 7*7 }} </style> \ud800 \x00"
)


class Page(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.by_class: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text.append(" " if tag in ("dt", "dd", "div", "p", "small", "b") else "")
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._open.append(dict(attrs).get("class") or "")
        self.by_class.setdefault(self._open[-1], []).append("")

    def handle_endtag(self, tag: str) -> None:
        if self._open:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._open:
            self.by_class[self._open[-1]][-1] += data

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


def _picture(width: int = 400, height: int = 300) -> Image.Image:
    return Image.new("RGB", (width, height), "#dddddd")


def _crop_turn(store: ImageStore, box: Box, thought: str = "I look closer.") -> TurnRecord:
    view = root_view(_picture())
    call = ToolCall("1", "crop", {"image": "img_1", "box": list(box.as_tuple())})
    shown = ImageShown(store.add(view.crop(box)), "img_2")
    named = (BoxNamed(view.ref, box),)
    return TurnRecord(Parsed(thought, (call,)), (ToolResult(call, (shown,), named=named),))


def _episode(
    store: ImageStore,
    *turns: TurnRecord,
    evidence: tuple[Box, ...] = (),
    answer: str = "7",
    sample_id: str = "s1",
    score: float | None = 1.0,
) -> Episode:
    ref = store.add(root_view(_picture()))
    proof = tuple(Evidence(ref, box, "bar") for box in evidence)
    sample = Sample(sample_id, "How high is the bar?", (ref,), "7", proof, "value", "look")
    last = TurnRecord(Parsed("It says so.", (), Answer(answer)))
    return Episode(
        sample, turns=(*turns, last), stop=StopReason.ANSWERED, score=Score(score, "terminal")
    )


def test_looks_nested_as_deep_as_may_be_are_scored_stored_and_shown_in_no_time() -> None:
    """Regions on the original double with each comparison of a view with itself."""
    store = ImageStore()
    view, results = root_view(_picture()), []
    call = ToolCall("1", "compare", {"image": "img_1"})
    while view.ref.ancestors < 120:
        view = view.rotate(7.0)
        across, down = view.width, view.height
        left = view.crop(Box(0.1 * across, 0.1 * down, 0.7 * across, 0.9 * down))
        right = view.crop(Box(0.3 * across, 0.1 * down, 0.9 * across, 0.9 * down))
        view = beside(left, right).resize(400, 300)
        results.append(ToolResult(call, (ImageShown(store.add(view), f"img_{len(results) + 2}"),)))
    turn = TurnRecord(Parsed("I compare.", (call,)), tuple(results))
    episode = _episode(store, turn, evidence=(Box(100, 100, 200, 200),))
    began = time.process_time()
    assert 40 < len(episode.gaze) < 256
    assert looked_at_evidence(episode, episode.sample) is not None
    line = json.dumps(episode_to_json(episode))
    assert episode_from_json(json.loads(line)) == episode
    assert len(line) < 100_000
    assert "img_2" in episode_html(episode, store)
    assert time.process_time() - began < 5


# --- the picture of the gaze ----------------------------------------------------------------------


def _near(picture: Image.Image, x: float, y: float, color: str) -> bool:
    want = ImageColor.getrgb(color)
    return any(
        max(abs(a - b) for a, b in zip(picture.getpixel((px, py)), want, strict=True)) < 60
        for px in range(max(0, int(x) - 2), min(picture.width, int(x) + 3))
        for py in range(max(0, int(y) - 2), min(picture.height, int(y) + 3))
    )


def _share(picture: Image.Image, box: Box, scale: float, color: str) -> float:
    """Share of points along the right and lower edge, away from the corners, in that colour."""
    along = [0.1 + 0.8 * i / 79 for i in range(80)]
    points = [(box.x1, box.y0 + t * box.height) for t in along]
    points += [(box.x0 + t * box.width, box.y1) for t in along]
    return sum(_near(picture, x * scale, y * scale, color) for x, y in points) / len(points)


def test_a_look_is_solid_a_written_box_dashed_and_evidence_green() -> None:
    store = ImageStore()
    seen, evidence, found = Box(20, 20, 160, 120), Box(200, 40, 260, 90), Box(300, 200, 380, 280)
    ref = store.add(root_view(_picture()))
    written = Box(30, 160, 200, 270)
    turn = _crop_turn(store, seen)
    look = turn.results[0]
    turn = turn._replace(
        named=(BoxNamed(ref, written, "the bar"),),
        results=(ToolResult(look.call, (*look.parts, BoxFound(ref, found)), named=()),),
    )
    episode = _episode(store, turn, evidence=(evidence,))
    assert [r.how for r in episode.gaze] == ["named", "seen", "found"]
    picture = gaze_picture(episode, store, max_side_px=800)
    assert picture.size == (800, 600)
    assert _share(picture, seen, 2, GAZE_COLORS[1]) == 1
    assert 0.3 < _share(picture, written, 2, GAZE_COLORS[0]) < 0.95
    assert _share(picture, found, 2, GAZE_COLORS[2]) == 1
    assert _share(picture, evidence, 2, EVIDENCE_COLOR) == 1
    assert picture.getpixel((420, 420)) == (0xDD, 0xDD, 0xDD)


@pytest.mark.parametrize("name", ["InternVLChatModel", "internvl3", "InternVL3-2B"])
def test_boxes_of_0_to_1000_are_drawn_on_their_things_whatever_the_model_is_called(
    name: str,
) -> None:
    """GRIT's drawings tell the frame by the case of a name, and take 0..1000 for pixels."""
    store = ImageStore()
    ref = store.add(root_view(_picture()))
    thing = Box(200, 60, 320, 210)  # of 400 x 300
    frame = Frame.thousand(ref.width, ref.height)
    said = f"{name}: " + NOTATIONS["internvl"].write(frame.encode_box(thing), "the bar")
    parsed = Parsed(said, answer=Answer("7"))
    named, refused = boxes_named(
        parsed, NOTATIONS["internvl"], images={"img_0": ref}, frame=lambda image: frame
    )
    episode = _episode(store, TurnRecord(parsed, named=named, refused=refused))
    picture = gaze_picture(episode, store, max_side_px=800)
    assert [r.phrase for r in episode.gaze] == ["the bar"]
    assert 0.3 < _share(picture, thing, 2, GAZE_COLORS[0]) < 0.95  # dashed
    as_pixels = Box(*frame.encode_box(thing)).clip(ref.width, ref.height)
    assert as_pixels is None or _share(picture, as_pixels, 2, GAZE_COLORS[0]) < 0.1


def test_a_written_box_stays_visible_on_the_look_that_it_asked_for() -> None:
    store = ImageStore()
    box = Box(40, 40, 300, 200)
    picture = gaze_picture(_episode(store, _crop_turn(store, box)), store, max_side_px=400)
    assert _share(picture, box, 1, GAZE_COLORS[0]) > 0.3
    assert _share(picture, box, 1, GAZE_COLORS[1]) > 0.3


def test_colours_of_the_gaze_are_distinct_and_none_is_the_evidence_green() -> None:
    assert len({*GAZE_COLORS, EVIDENCE_COLOR}) == len(GAZE_COLORS) + 1


def test_the_picture_keeps_its_limit_and_its_original_is_left_alone() -> None:
    store = ImageStore()
    pixels = _picture(3000, 500)
    ref = store.add(root_view(pixels))
    episode = Episode(Sample("s", "?", (ref,), "1", (Evidence(ref, Box(0, 0, 3000, 500)),)))
    assert gaze_picture(episode, store).size == (900, 150)
    assert store.view(ref).pixels.getcolors() == [(1_500_000, (0xDD, 0xDD, 0xDD))]
    tiny = store.add(root_view(_picture(1, 1)))
    assert gaze_picture(Episode(Sample("s", "?", (tiny,), "1")), store).size == (2, 2)


def test_several_originals_stand_side_by_side_with_their_own_regions() -> None:
    store = ImageStore()
    a = root_view(Image.new("RGB", (200, 200), "#cccccc"))
    b = root_view(Image.new("RGB", (200, 100), "#eeeeee"))
    both = beside(a, b)
    call = ToolCall("1", "find", {})
    found = BoxFound(store.add(both), Box(100, 0, 300, 100))
    turn = TurnRecord(Parsed("", (call,)), (ToolResult(call, (found,)),))
    sample = Sample("s", "?", (store.add(a), store.add(b)), "1")
    episode = Episode(sample, turns=(turn,))
    assert len(episode.gaze) == 2
    picture = gaze_picture(episode, store, max_side_px=810)
    assert picture.size == (810, 400)
    assert _near(picture, 300, 199, GAZE_COLORS[0])  # lower edge of the part in the first picture
    assert _near(picture, 410 + 199, 100, GAZE_COLORS[1])  # right edge in the second


def test_an_original_that_is_not_stored_is_an_error_in_the_picture_and_a_word_in_the_page() -> None:
    store = ImageStore()
    episode = _episode(store, _crop_turn(store, Box(0, 0, 50, 50)))
    with pytest.raises(ImageError):
        gaze_picture(episode, ImageStore())
    page = Page(episode_html(episode, ImageStore()))
    assert "picture not stored" in page.words
    assert "img" not in page.tags
    assert "I look closer." in page.words


@given(
    boxes=st.lists(st.tuples(*[st.floats(-99, 99)] * 2, *[st.floats(0.01, 200)] * 2), max_size=8),
    degrees=st.floats(0, 360),
)
@settings(deadline=None, max_examples=20)
def test_any_gaze_can_be_drawn(boxes: list[tuple[float, ...]], degrees: float) -> None:
    store = ImageStore()
    view = root_view(_picture(80, 60))
    images = (store.add(view), store.add(view.rotate(degrees)))
    named = tuple(
        BoxNamed(image, Box(x, y, x + w, y + h)) for x, y, w, h in boxes for image in images
    )
    turn = TurnRecord(Parsed("?"), (), named)
    episode = Episode(Sample("s", "?", (images[0],), "1"), turns=(turn,))
    try:
        regions = len(episode.gaze)
    except ValueError:  # a sliver of no area, refused by the geometry
        return
    assert gaze_picture(episode, store).size == (160, 120)
    numbers = [int(n) for n in Page(episode_html(episode, store)).by_class.get("chip", [])]
    assert sorted(set(numbers)) == list(range(1, regions + 1))


# --- the episode as HTML --------------------------------------------------------------------------


def test_each_thought_stands_beside_the_look_it_rests_on() -> None:
    store = ImageStore()
    html = episode_html(_episode(store, _crop_turn(store, Box(20, 20, 160, 120))), store)
    first, second = re.findall(r"<li>.*?</li>", html, re.DOTALL)
    assert "the picture" in first
    assert "I look closer." in first
    assert 'crop(image="img_1", box=[20, 20, 160, 120])' in Page(first).words
    assert Page(first).words.endswith("1asked for 2img_2, 140 × 100 px")
    assert "It says so." in second
    assert Page(second).words.startswith("2img_2")
    (width,) = re.findall(r'<img[^>]* width="(\d+)"', second)
    (height,) = re.findall(r'<img[^>]* height="(\d+)"', second)
    assert int(width) / int(height) == pytest.approx(1.4, rel=0.02)


def test_answer_gold_and_score_are_told_and_a_missing_score_is_a_dash() -> None:
    store = ImageStore()
    page = Page(episode_html(_episode(store, answer="8", score=-1.0), store))
    assert page.words.endswith("answer 8 right answer 7 score −1.00")
    page = Page(episode_html(_episode(store, score=None), store))
    assert page.words.endswith("score –")
    episode = Episode(_episode(store).sample, stop=StopReason.MAX_TURNS)
    assert "none: max turns" in Page(episode_html(episode, store)).words


def test_failed_calls_and_calls_that_never_ran_say_so() -> None:
    store = ImageStore()
    bad, late = BadCall('{"name": ', "the JSON ends early"), ToolCall("2", "zoom", {"by": 2})
    failed = ToolResult(bad, (Text("the JSON ends early; write one object"),), failed=True)
    turn = TurnRecord(Parsed("", (bad, late)), (failed,))
    page = Page(episode_html(_episode(store, turn), store))
    assert '{"name": the JSON ends early; write one object' in page.words
    assert page.words.count("the JSON ends early") == 1
    assert "zoom(by=2) not run" in page.words
    assert "call failed" in page.by_class


def test_a_box_that_was_none_says_why_and_the_second_thought_is_told() -> None:
    turn = TurnRecord(
        Parsed("first thought", answer=Answer("7"), rethought="second thought"),
        refused=(BadBox("[9, 9, 1, 1]", "corners reversed"),),
    )
    store = ImageStore()
    page = Page(episode_html(_episode(store, turn), store)).words
    assert "[9, 9, 1, 1]" in page
    assert "not a box: corners reversed" in page
    assert page.index("first thought") < page.index("second thought")


def test_in_a_control_the_picture_is_the_one_that_the_model_was_shown() -> None:
    """The page once drew the true crop where the model had been shown a black one."""
    store = ImageStore()
    episode = _episode(store, _crop_turn(store, Box(20, 20, 60, 60)))

    def darkest(one: Episode) -> int:
        found = re.findall(r'src="data:image/webp;base64,([^"]+)"', episode_html(one, store))
        pictures = [Image.open(io.BytesIO(base64.b64decode(f))).convert("L") for f in found]
        return min(p.getpixel((p.width // 2, p.height // 2)) for p in pictures)

    black = store.add(root_view(Image.new("RGB", (40, 40), "#000000")))
    told = (Message("tool", (ImageShown(black, "img_2"),)),)
    assert darkest(episode) > 150
    assert darkest(replace(episode, messages=told)) < 50


def _hostile_episode(store: ImageStore, text: str) -> Episode:
    ref = store.add(root_view(_picture()))
    call = ToolCall(text, text, {text: text})
    crop = ImageShown(store.add(root_view(_picture()).crop(Box(0, 0, 9, 9))), text)
    result = ToolResult(call, (Text(text), crop, BoxFound(ref, Box(1, 1, 5, 5), text, 0.5)))
    bad = ToolResult(BadCall(text, text), (Text(text),), failed=True)
    named = (BoxNamed(ref, Box(2, 2, 9, 9), text),)
    sample = Sample(text, text, (ref,), text, (Evidence(ref, Box(1, 1, 3, 3), text),), text, text)
    turns = (
        TurnRecord(Parsed(text, (call, bad.call)), (result, bad), named),
        TurnRecord(Parsed(text, (), Answer(text))),
    )
    score = Score(0.5, text, text)
    return Episode(sample, turns=turns, stop=StopReason.ANSWERED, score=score, error=text)


def _assert_harmless(html: str) -> Page:
    page = Page(html)
    assert "script" not in page.tags
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href"):
            assert re.match(r"data:image/|#", value), (tag, name, value)
    return page


def test_hostile_text_in_any_field_stays_text() -> None:
    store = ImageStore()
    html = episode_html(_hostile_episode(store, HOSTILE), store)
    page = _assert_harmless(html)
    assert page.tags.count("img") == len(re.findall(r'<img src="data:image/webp;base64,', html))
    assert "<script>alert(1)</script>" in page.words
    assert "{{ 7*7 }}" in page.words
    html.encode("utf-8")


@given(text=st.text(st.characters(), max_size=40))
@settings(deadline=None, max_examples=50)
def test_any_thought_reads_as_it_was_written(text: str) -> None:
    store = ImageStore()
    ref = store.add(root_view(_picture(4, 3)))
    episode = Episode(Sample("s", "?", (ref,), "7"), turns=(TurnRecord(Parsed(text + ".")),))
    shown = Page(episode_html(episode, store)).by_class["thought"][0]
    text = (text + ".").replace("\r\n", "\n")
    assert len(shown) == len(text)
    for a, b in zip(shown, text, strict=True):
        assert a == b or (a == "\ufffd" and not b.isprintable())


# --- the report -----------------------------------------------------------------------------------


def _arm(**values: Any) -> dict[str, Any]:
    return {
        "n": 500,
        "accuracy": {"all": [0.5, 0.45, 0.55], "look": [0.4, 0.33, 0.47]},
        "lenient": {"all": [0.52, 0.47, 0.57]},
        "calls": 0.8,
        "completion_tokens": 44.13,
        "coverage": {"all": [0.6, 0.5, 0.7]},
        "tightness": {"all": [0.2, 0.1, 0.3]},
        "unscored": 1,
        "extraction_failed": 3,
        "truncated": 2,
        "seconds": 12.3,
        **values,
    }


def _run(folder: Path, *, results: Any = None, metrics: tuple[Mapping[str, Any], ...] = ()) -> Path:
    with RunFolder(folder) as run:
        if results is not None:
            run.write_json("results", results)
        for row in metrics:
            run.append("metrics", row)
    return folder


def _pair(a: str, b: str, difference: list[float | None] | None, **more: Any) -> dict[str, Any]:
    return {
        "a": a,
        "b": b,
        "stratum": "look",
        "metric": "accuracy",
        "difference": difference,
        **more,
    }


def _cells(html: str) -> dict[str, list[str]]:
    """Rows of all tables by their first cell, the later ones after the earlier."""
    found: dict[str, list[str]] = {}
    for row in re.findall(r"<tr>(.*?)</tr>", html, re.DOTALL):
        head = re.search(r"<th[^>]*>(.*?)</th>", row)
        assert head
        cells = [Page(c).words for c in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]
        found[head[1]] = found.get(head[1], []) + cells
    return found


def test_the_table_shows_shares_with_intervals_and_a_dash_for_what_is_missing(
    tmp_path: Path,
) -> None:
    base = _arm(coverage=None, tightness={}, calls=0, completion_tokens=None)
    rl = _arm(coverage=[0.6, None, None])
    html = write_report(_run(tmp_path, results={"arms": {"base": base, "rl": rl}})).read_text()
    cells = _cells(html)
    assert cells["base"] == [
        *("50.0 45.0 to 55.0", "40.0 33.0 to 47.0", "52.0 47.0 to 57.0", "–", "–"),
        *("500", "0", "–", "3", "2", "1", "12.30"),
    ]
    assert cells["rl"][3:5] == ["60.0", "20.0 10.0 to 30.0"]
    assert "Compared on the same samples" not in html


def test_pairs_say_which_is_above_and_when_they_are_not_told_apart(tmp_path: Path) -> None:
    pairs = [
        _pair("rl", "sft", [0.23, 0.171, 0.29]),
        _pair("sft", "rl", [-0.23, -0.29, -0.17]),
        _pair("rl", "old", [0.02, -0.01, 0.05]),
        _pair("rl", "few", None, reason="1 independent sample."),
    ]
    arms = {name: _arm() for name in ("rl", "sft", "old", "few")}
    cells = _cells(write_report(_run(tmp_path, results={"arms": arms, "pairs": pairs})).read_text())
    assert cells["rl − sft"] == ["look", "accuracy", "+23.0 +17.1 to +29.0", "rl is above sft"]
    assert cells["sft − rl"][-1] == "sft is below rl"
    assert cells["rl − old"][2:] == ["+2.0 −1.0 to +5.0", "the interval holds 0: not told apart"]
    assert cells["rl − few"][2:] == ["–", "1 independent sample."]


@pytest.mark.parametrize(
    ("unscored", "sentence"),
    [
        (6, "6 of 500 episodes of sft are unscored, above 1%"),
        (None, "How many episodes of sft went unscored is not known"),
        (5, None),
    ],
)
def test_nothing_is_compared_above_one_per_cent_unscored(
    tmp_path: Path, unscored: int | None, sentence: str | None
) -> None:
    arms = {"rl": _arm(), "sft": _arm(unscored=unscored)}
    results = {"arms": arms, "pairs": [_pair("rl", "sft", [0.23, 0.17, 0.29])]}
    html = write_report(_run(tmp_path, results=results)).read_text()
    row = _cells(html)["rl − sft"]
    if sentence is None:
        assert row[2] == "+23.0 +17.0 to +29.0"
    else:
        assert row[2] == "–"
        assert row[3].startswith(sentence)
        assert "+23" not in html


def test_curves_are_drawn_for_what_was_logged_one_line_for_each_stage(tmp_path: Path) -> None:
    rows = [{"stage": "sft", "step": i, "loss": 3.0 / (i + 1)} for i in range(9)]
    rows += [{"stage": "rl", "step": i, "loss": 0.1 * i, "reward": -1.0 + i} for i in range(9)]
    rows += [{"stage": "rl", "step": 9, "loss": math.nan, "kl": None, "calls": "many"}]
    html = write_report(_run(tmp_path, metrics=tuple(rows))).read_text()
    titles = re.findall(r"<figcaption>(\w+) ", html)
    assert titles == ["Reward", "Loss"]
    reward, loss = re.findall(r"<svg viewBox.*?</svg>", html, re.DOTALL)
    assert set(re.findall(r"var\(--c\d\)", loss)) == {"var(--c0)", "var(--c1)"}
    assert set(re.findall(r"var\(--c\d\)", reward)) == {"var(--c1)"}
    legend = re.findall(r'--stroke:(var\(--c\d\))"><bdi>(\w+)', html)
    assert legend == [("var(--c0)", "sft"), ("var(--c1)", "rl")]
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="#|url\(#)([^")]+)', html)
    assert set(used) <= set(ids)


def test_long_curves_are_thinned_and_smoothed(tmp_path: Path) -> None:
    rows = tuple({"stage": "rl", "step": i, "reward": i * i % 101} for i in range(3000))
    html = write_report(_run(tmp_path, metrics=rows)).read_text()
    thin, thick = (
        [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path)]
        for path in re.findall(r'<path d="([^"]+)"[^>]*stroke: var\(--c0\)', html)
    )
    assert 100 < len(thin) <= 400
    assert max(thick) - min(thick) < (max(thin) - min(thin)) / 2


def test_a_stage_of_two_runs_is_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _run(tmp_path / name, metrics=({"stage": "rl", "step": 1, "loss": 1.0},))
    html = write_report(tmp_path).read_text()
    assert re.findall(r"--stroke:[^>]*><bdi>([^<]*)", html) == ["rl", "b: rl"]


def _demo(folder: Path, text: str = "reading") -> Path:
    """A demo's run folder: results above, runs one level down, pictures shared."""
    store = ImageStore()
    _run(folder, results={"arms": {"sft": _arm(), "rl": _arm()}, "pairs": []})
    for arm in ("sft", "rl"):
        with RunFolder(folder / f"eval-{arm}") as run:
            run.write_recipe(f"seed: 7\ntask:\n  name: {arm} task\nrl:\n  kl: null\n")
            run.write_env(threads=2)
            for number in range(4):
                turn = _crop_turn(store, Box(20, 20, 160, 120), f"{arm} {text} {number}")
                episode = _episode(store, turn, sample_id=f"s{number}")
                store.save(episode.sample.images, folder)
                run.append("episodes", {**episode_to_json(episode), "arm": arm})
    deeper = folder / "eval-rl" / "checkpoints" / "step-000001"
    _run(deeper, metrics=({"stage": "too deep", "step": 1, "loss": 1.0},))
    return folder


def test_runs_one_level_down_are_told_together_and_deeper_ones_are_not(tmp_path: Path) -> None:
    html = write_report(_demo(tmp_path / "demo")).read_text()
    page = Page(html)
    assert page.words.startswith("demo · saccade")
    assert "Evaluated on 500 items: sft, rl. Runs: eval-sft, eval-rl." in page.words
    assert page.by_class["episode"] != []
    assert len(page.by_class["episode"]) == 8
    assert "too deep" not in html
    assert "rl.kl–" in page.words.replace(" ", "")
    assert "sft task" in page.words
    assert "of 8 stored episodes 8 are shown" in page.words
    assert "picture not stored" not in page.words


def test_the_same_question_is_shown_in_every_arm_up_to_the_limit(tmp_path: Path) -> None:
    html = write_report(_demo(tmp_path / "demo"), episodes=3).read_text()
    thoughts = re.findall(r"(?:sft|rl) reading \d", html)
    assert thoughts == ["sft reading 0", "rl reading 0", "sft reading 1"]
    none = write_report(tmp_path / "demo", episodes=0).read_text()
    assert "<h2" in none
    assert "<article" not in none


def test_the_page_stands_alone_and_can_run_nothing(tmp_path: Path) -> None:
    demo = _demo(tmp_path / "demo", HOSTILE)
    store = ImageStore()
    with RunFolder(demo) as run:
        episode = _hostile_episode(store, HOSTILE)
        store.save(episode.sample.images, demo)
        run.append("episodes", {**episode_to_json(episode), "arm": HOSTILE})
        run.append("metrics", {"stage": HOSTILE, "step": 1, "loss": 1.0, "reward": 2.0})
        run.write_recipe(f"note: {HOSTILE.encode('ascii', 'replace')!r}\n")
        arms = {HOSTILE: _arm(accuracy={HOSTILE: [0.5, 0.4, 0.6]})}
        pairs = [_pair(HOSTILE, HOSTILE, None, reason=HOSTILE)]
        run.write_json("results", {"arms": arms, "pairs": pairs})
    html = write_report(demo, episodes=20).read_text("utf-8")
    page = _assert_harmless(html)
    assert page.by_class["picture"]
    assert "link" not in page.tags
    assert not re.search(r"https?:|//[a-z]", re.sub(r'"data:[^"]*"', "", html))
    assert "@import" not in html
    assert "url(" not in html.replace("url(#", "")
    assert "default-src 'none'" in html


def test_any_script_passes_through(tmp_path: Path) -> None:
    words = "größer 因此答案 لذلك הלכה ภาษา 🙂"
    path = write_report(_demo(tmp_path / "demo", words))
    assert words in path.read_text("utf-8")


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    demo = _demo(tmp_path / "demo")
    _run(demo, metrics=({"stage": "rl", "step": 1, "loss": 1.0, "reward": 2.0},))
    before = {k: v for k, v in mpl.rcParams.items() if k != "backend"}  # resolved when read
    first = write_report(demo, episodes=2).read_bytes()
    assert write_report(demo, episodes=2).read_bytes() == first
    assert {k: v for k, v in mpl.rcParams.items() if k != "backend"} == before


def test_no_plotting_state_is_shared(tmp_path: Path) -> None:
    _run(tmp_path, metrics=({"stage": "rl", "step": 1, "loss": 1.0},))
    script = (
        "import sys; from pathlib import Path; from saccade.report import write_report; "
        "write_report(Path(sys.argv[1])); "
        "sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)]).returncode == 0


def test_what_is_no_run_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run folder 'absent'"):
        write_report(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    with pytest.raises(DataError, match="holds no run"):
        write_report(tmp_path)
    (tmp_path / "episodes.jsonl").write_text('{"schema": 1, "sample": {"id": "s"}}\n')
    with pytest.raises(DataError, match=r"episodes\.jsonl of run .* row 1"):
        write_report(tmp_path)
    (tmp_path / "episodes.jsonl").write_text("")
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(DataError, match="has no arms"):
        write_report(tmp_path)


def test_a_run_that_is_still_writing_can_be_reported(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run") as run:
        run.append("metrics", {"stage": "rl", "step": 1, "loss": 1.0})
        with open(tmp_path / "run" / "metrics.jsonl", "ab") as file:
            file.write(b'{"stage": "rl", "st')
        before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
        html = write_report(tmp_path / "run").read_text()
        assert "Loss" in html
        assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_recipe_that_is_no_mapping_is_shown_as_it_stands(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.write_recipe("{ not: [yaml <b>")
    page = Page(write_report(tmp_path).read_text())
    assert "{ not: [yaml <b>" in page.words


def test_pictures_are_found_in_the_run_itself(tmp_path: Path) -> None:
    store = ImageStore()
    episode = _episode(store)
    with RunFolder(tmp_path) as run:
        run.append("episodes", episode_to_json(episode))
    assert "picture not stored" in write_report(tmp_path).read_text()
    store.save(episode.sample.images, tmp_path)
    html = write_report(tmp_path).read_text()
    assert "picture not stored" not in html
    assert "data:image/webp" in html
