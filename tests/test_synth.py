"""Demonstrations: kept as text, replayed through the real tools, right in what they answer."""

import asyncio
import json
import math
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.coverage import overlap
from saccade.dialects import dialect
from saccade.engines.scripted import ScriptedEngine
from saccade.errors import DataError
from saccade.geometry import Box, Frame
from saccade.image_store import ImageStore
from saccade.models.tiny import SETTINGS, build_tokenizer
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.rollout import Limits, Setup
from saccade.synth.charts import QUALITIES, demonstrate, demonstrations
from saccade.synth.replay import (
    Demonstration,
    read_demonstrations,
    replay,
    samples_by_id,
    write_demonstrations,
)
from saccade.tasks.charts import Charts
from saccade.tools import ToolBox, builtin_tools
from saccade.types import Answer, Episode, Parsed, StopReason, ToolCall
from saccade.worlds.chart_data import Mark
from saccade.worlds.charts import ChartItem, item
from saccade.worlds.lessons import label_region

HERMES = dialect("hermes", style="signature")
RENDERER = Qwen2VLRenderer(build_tokenizer("red\n"), SETTINGS)
TASK = Charts()
LINES = st.text(st.characters(exclude_characters="\x85\u2028\u2029", exclude_categories=["Cs"]))


def setup() -> Setup:
    store = ImageStore()
    return Setup(
        engine=ScriptedEngine({}),
        dialect=HERMES,
        store=store,
        toolbox=ToolBox([t for t in builtin_tools().values() if not t.needs], store=store),
        renderer=RENDERER,
        limits=Limits(4, 400, 4096),
        rubric=TASK.rubric,
    )


def played(found: list[Demonstration]) -> list[Episode]:
    return asyncio.run(replay(found, TASK, setup()))


def saying(*turns: str, sample: str = "charts/train/7") -> Demonstration:
    return Demonstration(sample, turns)


def ending(text: str) -> str:
    return f'<tool_call>\n{{"name": "terminate", "arguments": {{"ans": "{text}"}}}}\n</tool_call>'


CROP = (
    '<tool_call>\n{"name": "crop", "arguments": '
    '{"image": "img_0", "box": [0, 0, 500, 500]}}\n</tool_call>'
)


# --- the file -------------------------------------------------------------------------------------


def round_trip(path: Path, found: list[Demonstration]) -> list[Demonstration]:
    write_demonstrations(path, found)
    return read_demonstrations(path)


DEMONSTRATIONS = st.lists(
    st.builds(Demonstration, LINES, st.lists(LINES, min_size=1, max_size=3).map(tuple), LINES),
    min_size=1,
    max_size=4,
)


@given(DEMONSTRATIONS)
@settings(deadline=None, max_examples=60)
def test_demonstrations_come_back_from_their_file(
    tmp_path_factory: pytest.TempPathFactory, found: list[Demonstration]
) -> None:
    assert round_trip(tmp_path_factory.getbasetemp() / "d.jsonl", found) == found


@pytest.mark.parametrize("mark", ["\x85", "\u2028", "\u2029", "\ud800"])
def test_unicode_line_ends_and_half_surrogates_survive_the_file(tmp_path: Path, mark: str) -> None:
    found = [saying(f"a{mark}b")]
    assert round_trip(tmp_path / "d.jsonl", found)[0].turns[0] in (f"a{mark}b", "a\ufffdb")


def test_bad_lines_are_all_named(tmp_path: Path) -> None:
    good = json.dumps({"sample": "charts/train/1", "turns": ["x"]})
    bad = ["{", "[1]", "7", '{"turns": ["x"]}', '{"sample": "s"}', '{"sample": "s", "turns": []}']
    bad += ['{"sample": "s", "turns": [1]}', '{"sample": "s", "turns": 3}']
    path = tmp_path / "d.jsonl"
    path.write_text("\n".join([good, *bad]) + "\n")
    with pytest.raises(DataError) as caught:
        read_demonstrations(path)
    message = str(caught.value)
    assert message.startswith("Demonstrations 'd.jsonl' can't be used: ")
    assert [f"line {k}:" in message for k in range(1, 10)] == [False] + [True] * 8


def test_a_text_is_no_list_of_turns(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"sample": "s", "turns": "abc"}\n')
    with pytest.raises(DataError, match="line 1: turns must be a list of texts"):
        read_demonstrations(path)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"d\.jsonl"):
        read_demonstrations(path)


def test_a_line_that_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("[" * 200_000)
    with pytest.raises(DataError, match="line 1: it is nested too deeply"):
        read_demonstrations(path)


def test_an_empty_or_missing_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    with pytest.raises(DataError, match=r"'d.jsonl' can't be read: No such file"):
        read_demonstrations(path)
    path.write_text("")
    with pytest.raises(DataError, match="it is empty"):
        read_demonstrations(path)


# --- samples and replay ---------------------------------------------------------------------------


def test_samples_are_found_by_their_ids_in_order() -> None:
    ids = ["charts/train/9", "charts/test/2", "charts/train/0", "charts/train/9"]
    found = samples_by_id(TASK, ids, setup())
    assert [s.id for s in found] == ids
    assert found[0] == found[3]


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("train/1", "is not named task/split/index"),
        ("charts/train/x", "is not named task/split/index"),
        ("charts/train/-1", "is not named task/split/index"),
        ("other/train/1", "Task charts has no sample 'other/train/1'; it has 'charts/train/1'"),
        ("charts/train/01", "it has 'charts/train/1' there"),
    ],
)
def test_a_name_that_is_no_sample_is_refused(name: str, word: str) -> None:
    with pytest.raises(DataError, match=word):
        samples_by_id(TASK, [name], setup())


def test_a_replay_runs_the_tools_for_real() -> None:
    (sample,) = samples_by_id(TASK, ["charts/train/7"], setup())
    (episode,) = played([saying(CROP, ending(sample.answer))])
    assert episode.stop is StopReason.ANSWERED
    assert episode.score is not None
    assert episode.score.value == 1.0
    shown = episode.images["img_1"]
    halves = (math.ceil(sample.images[0].width / 2), math.ceil(sample.images[0].height / 2))
    assert (shown.width, shown.height) == halves
    assert [m.text for m in episode.messages if m.role == "assistant"] == [
        CROP,
        ending(sample.answer),
    ]


def test_two_demonstrations_of_one_sample_are_two_episodes() -> None:
    found = played([saying(ending("1")), saying(CROP, ending("2"))])
    assert [e.answer for e in found] == ["1", "2"]
    assert len({e.sample.id for e in found}) == 2


def test_a_demonstration_that_ends_before_its_last_turn_is_refused() -> None:
    with pytest.raises(DataError, match=r"'charts/train/7' ended after 1 of 2 turns: answered"):
        played([saying(ending("1"), ending("2"))])
    with pytest.raises(DataError, match=r"ended after 4 of 5 turns: max_turns"):
        played([saying(*[CROP] * 4, ending("1"))])


def test_a_demonstration_that_never_answers_is_refused() -> None:
    with pytest.raises(DataError, match="charts/train/7"):
        played([saying(CROP)])


# --- the oracle -----------------------------------------------------------------------------------


def test_demonstrations_of_charts_are_pure_and_of_the_shares_promised() -> None:
    found = demonstrations(120, seed=1, dialect=HERMES)
    assert demonstrations(2, seed=1, dialect=HERMES, start=1_000_005) == found[5:7]
    assert [d.sample for d in found[:2]] == ["charts/train/1000000", "charts/train/1000001"]
    shares = Counter(d.quality for d in found)
    for quality, share in QUALITIES.items():
        assert shares[quality] / 120 == pytest.approx(share, abs=0.13)
    assert sum(QUALITIES.values()) == pytest.approx(1)


def test_every_demonstration_replays_to_a_right_answer() -> None:
    found = demonstrations(40, seed=3, dialect=HERMES)
    for demonstration, episode in zip(found, played(found), strict=True):
        assert episode.stop is StopReason.ANSWERED
        assert episode.score is not None
        assert episode.score.value == 1.0
        assert not any(r.failed for r in episode.results)
        assert len(episode.turns) == len(demonstration.turns)


def by_stratum(stratum: str, count: int, *kinds: str) -> list[ChartItem]:
    found = (item("train", k) for k in range(1000))
    wanted = (i for i in found if i.stratum == stratum and (not kinds or i.kind in kinds))
    return list(islice(wanted, count))


def looked_at(chart: ChartItem) -> list[Mark]:
    """The marks whose labels a demonstration looks at, in their order."""
    if chart.kind == "count":
        return []
    if chart.kind == "two_step":
        return [*chart.spec.title_marks, chart.asked[-1]]
    return list(chart.asked)


def boxes(chart: ChartItem, quality: str, seed: int = 0) -> list[list[int]]:
    turns = demonstrate(chart, quality, np.random.default_rng(seed))
    calls = [c for t in turns for c in t.calls]
    assert all(isinstance(c, ToolCall) for c in calls)
    return [c.arguments["box"] for c in calls]


def test_who_looks_is_decided_by_need_and_quality() -> None:
    for chart in by_stratum("look", 25):
        for quality in ("good", "sloppy", "needless"):
            assert len(boxes(chart, quality)) == len(looked_at(chart)) > 0
        assert boxes(chart, "no_look") == []
    for chart in by_stratum("easy", 25):
        for quality in ("good", "sloppy", "no_look"):
            assert boxes(chart, quality) == []
        assert len(boxes(chart, "needless")) == len(looked_at(chart))


def test_nothing_printed_would_tell_a_number_of_marks() -> None:
    for chart in by_stratum("easy", 3, "count"):
        for quality in QUALITIES:
            turns = demonstrate(chart, quality, np.random.default_rng(0))
            assert turns == [Parsed(answer=Answer(chart.answer))]


def test_two_steps_read_all_titles_first_and_then_one_label() -> None:
    for chart in by_stratum("look", 8, "two_step"):
        title, mark = chart.asked
        titles, place = chart.spec.titles, title.part + 1
        first, second, last = demonstrate(chart, "good", np.random.default_rng(0))
        panels = [f"panel {k + 1}" for k in range(len(titles))]
        assert first.thought.split("\n") == panels
        assert len(first.calls) == len(titles)
        own = chart.spec.called(mark).removeprefix(f"panel {place} ")
        told = [f"{word} panel {k}" for k, word in enumerate(titles, start=1)]
        assert second.thought == (
            f"{titles[place - 1]} {own}: {', '.join(told)}: {titles[place - 1]} panel {place} {own}"
        )
        assert len(second.calls) == 1
        assert (first.answer, second.answer, last) == (
            None,
            None,
            Parsed(answer=Answer(chart.answer)),
        )


def test_a_demonstration_works_from_what_it_read_and_says_nothing_that_it_only_saw() -> None:
    for chart in by_stratum("look", 6, "difference"):
        *_, last = demonstrate(chart, "good", np.random.default_rng(0))
        a, b = (chart.spec.printed(m) for m in chart.asked)
        assert last.thought == f"{a}, {b}"
    for chart in by_stratum("easy", 12, "comparison", "extremum"):
        *_, last = demonstrate(chart, "good", np.random.default_rng(0))
        assert bool(last.thought) != chart.by_sight


def test_a_good_look_holds_the_label_and_a_sloppy_one_often_misses_it() -> None:
    charts = by_stratum("look", 25)

    def held(quality: str, seed: int) -> list[float]:
        shares = []
        for chart in charts:
            frame = Frame.thousand(*chart.drawing.image.size)
            for mark, box in zip(looked_at(chart), boxes(chart, quality, seed), strict=True):
                label = chart.drawing.labels[mark]
                common = frame.decode_box(box).intersection(label)
                shares.append(common.area / label.area if common else 0.0)
        return shares

    assert min(held("good", 0)) > 0.999
    sloppy = held("sloppy", 0) + held("sloppy", 1)
    assert np.mean(np.array(sloppy) < 0.9) > 0.3
    assert np.mean(sloppy) < 0.8


def test_good_looks_earn_more_than_sloppy_ones() -> None:
    charts = by_stratum("look", 10)

    def earned(quality: str) -> float:
        found = []
        for chart in charts:
            turns = demonstrate(chart, quality, np.random.default_rng(5))
            found.append(Demonstration(chart.id, tuple(HERMES.render(t) for t in turns)))
        areas = [overlap(e.sample.evidence, e.gaze) for e in played(found)]
        return sum(a.coverage or 0.0 for a in areas) / len(areas)

    assert earned("good") > 0.99 > 0.9 > earned("sloppy")
    assert earned("no_look") == 0.0


def test_every_look_is_a_box_of_at_least_three_grains_in_the_frame() -> None:
    for seed, chart in enumerate(by_stratum("look", 25)):
        for quality in ("good", "sloppy"):
            for x0, y0, x1, y1 in boxes(chart, quality, seed):
                assert 0 <= x0 <= x1 - 30 <= 970
                assert 0 <= y0 <= y1 - 30 <= 970
                assert all(isinstance(v, int) for v in (x0, y0, x1, y1))


def test_a_label_in_a_corner_still_gets_a_whole_box() -> None:
    [chart] = by_stratum("look", 1, "value")
    width, height = chart.drawing.image.size
    [mark] = chart.asked
    for corner in (Box(0, 0, 3, 3), Box(width - 3, height - 3, width, height)):
        moved = replace(
            chart, drawing=replace(chart.drawing, labels={**chart.drawing.labels, mark: corner})
        )
        x0, y0, x1, y1 = boxes(moved, "good")[0]
        shown = Frame.thousand(width, height).decode_box((x0, y0, x1, y1))
        common = shown.intersection(label_region(corner, width=width, height=height))
        assert common is not None
        assert common.area == pytest.approx(
            label_region(corner, width=width, height=height).area, rel=1e-6
        )
