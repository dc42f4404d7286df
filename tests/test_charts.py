"""The chart world: pure, split by its data, right in its answers, honest about what can be seen."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

import saccade.worlds.charts as charts_module
from saccade.errors import RecipeError
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.models.tiny import SETTINGS, build_tokenizer
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.tasks import CLUSTER, Task, task_named
from saccade.tasks.charts import Charts
from saccade.types import Answer, Episode, Message, Parsed, StopReason, TurnRecord
from saccade.worlds.chart_data import (
    CHARTS,
    KINDS,
    SPLITS,
    TAUGHT,
    TITLES,
    ChartKind,
    ChartSpec,
    Mark,
    draw_data,
)
from saccade.worlds.charts import READABLE_PX, ChartItem, item, spec_for, visible_gap_px
from saccade.worlds.drawing import KEPT_OUT, TRAINED, thumbnail_scale
from saccade.worlds.lessons import label_region

MAX_PIXELS = SETTINGS.max_pixels
RENDERER = Qwen2VLRenderer(build_tokenizer("red\n"), SETTINGS)
PLACE = r"(?:(?:group|column|panel) \d )?(?:bar|point|dot|slice|part) \d"
SPEC = ChartSpec("bar", ((10, 20),), (("red", "blue"),))
COUNTED = {
    "bar": "bars",
    "line": "points",
    "scatter": "dots",
    "pie": "slices",
    "grouped": "groups",
    "stacked": "columns",
    "panels": "panels",
}
PANELS = ChartSpec(
    "panels", ((10, 90), (50, 30)), (("red", "red"), ("blue", "blue")), "line", ("rain", "coal")
)


@pytest.fixture(scope="module")
def items() -> list[ChartItem]:
    made = [item("train", index, max_pixels=MAX_PIXELS) for index in range(220)]
    made += [item("test_style", index, max_pixels=MAX_PIXELS) for index in range(60)]
    return made + [item("test_unseen", index, max_pixels=MAX_PIXELS) for index in range(60)]


# --- what an item is ------------------------------------------------------------------------------


def test_an_item_is_the_same_whenever_and_in_whatever_order_it_is_made() -> None:
    wanted = {(s, k): item(s, k) for s in SPLITS for k in (0, 3, 1_000_000)}
    for (split, index), one in reversed(wanted.items()):
        again = item(split, index)
        assert again.drawing.image.tobytes() == one.drawing.image.tobytes()
        assert replace(again.drawing, image=one.drawing.image) == one.drawing
        assert replace(again, drawing=one.drawing) == one


def test_no_chart_stands_in_two_splits() -> None:
    found: dict[str, set[str]] = {}
    for split in SPLITS:
        specs = [spec_for(split, index)[0] for index in range(500)]
        assert all(s.split == split for s in specs)
        found[split] = {s.digest for s in specs}
        assert len(found[split]) > 470  # and hardly one twice in its own
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or not found[one] & found[other]


def test_every_hash_belongs_to_exactly_one_split() -> None:
    for percent in range(100):
        assert sum(low <= percent < high for low, high in SPLITS.values()) == 1


def test_the_split_follows_from_the_data_and_every_part_of_it_counts() -> None:
    assert replace(PANELS).digest == PANELS.digest
    others = (
        replace(PANELS, chart="grouped"),
        replace(PANELS, values=((10, 90), (50, 31))),
        replace(PANELS, values=((50, 30), (10, 90))),
        replace(PANELS, colors=(("red", "red"), ("cyan", "cyan"))),
        replace(PANELS, panel="bar"),
        replace(PANELS, titles=("coal", "rain")),
    )
    assert len({PANELS.digest, *(o.digest for o in others)}) == 7


def test_an_unknown_split_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'dev'.*pretrain, train, .*test_style, test_unseen"):
        item("dev", 0)


def test_marks_are_called_by_their_place_and_titles_by_their_panel() -> None:
    assert [SPEC.called(m) for m in SPEC.marks] == ["bar 1", "bar 2"]
    assert [PANELS.called(m) for m in PANELS.marks] == [
        *("panel 1 point 1", "panel 1 point 2", "panel 2 point 1", "panel 2 point 2")
    ]
    assert [PANELS.called(m) for m in PANELS.title_marks] == ["panel 1", "panel 2"]
    assert [PANELS.printed(m) for m in PANELS.title_marks] == ["rain", "coal"]
    names = {"grouped": "group 2 bar 1", "stacked": "column 2 part 1"}
    for chart, name in names.items():
        assert replace(PANELS, chart=chart).called(Mark(1, 0)) == name
    names = {"line": "point 2", "scatter": "dot 2", "pie": "slice 2"}
    for chart, name in names.items():
        assert replace(SPEC, chart=chart).called(Mark(0, 1)) == name


# --- questions ------------------------------------------------------------------------------------


def scope(spec: ChartSpec, part: str) -> dict[str, int]:
    """Values by what their marks are called, those of one part where one is named."""
    value = {spec.called(m): spec.value(m) for m in spec.marks}
    return {name: v for name, v in value.items() if not part or name.startswith(f"{part} ")}


def check_answer(spec: ChartSpec, kind: str, asked: str, answer: str) -> None:
    """A question is right by the data: read from its words alone."""
    value = scope(spec, "")
    words = re.findall(PLACE, asked)
    assert set(words) <= set(value) or kind == "two_step"
    more, most, least = ("higher", "highest", "lowest")
    if spec.chart in ("pie", "stacked"):
        more, most, least = ("larger", "largest", "smallest")
    if kind == "value":
        assert asked == f"What is the value of {words[0]}?"
        assert answer == str(value[words[0]])
    elif kind == "difference":
        assert asked == f"How much {more} is {words[0]} than {words[1]}?"
        assert int(answer) == value[words[0]] - value[words[1]] > 0
    elif kind == "comparison":
        assert asked == f"Which is {more}, {words[0]} or {words[1]}?"
        assert value[words[0]] != value[words[1]]
        assert answer == max(words, key=lambda n: value[n])
    elif kind == "extremum":
        found = re.fullmatch(rf"Which is the ({most}|{least})(?: in (\w+ \d))?\?", asked)
        assert found
        among = scope(spec, found[2] or "")
        extreme = (max if found[1] == most else min)(among.values())
        assert [n for n, v in among.items() if v == extreme] == [answer]
    elif kind == "count":
        counted = COUNTED[spec.chart]
        has_parts = counted in ("groups", "columns", "panels")
        number = len(spec.values) if has_parts else len(spec.values[0])
        assert (asked, answer) == (f"How many {counted} are there?", str(number))
    elif kind == "label":
        found = re.fullmatch(r"What is the title of panel (\d)\?", asked)
        assert found
        assert answer == spec.titles[int(found[1]) - 1]
    else:
        pattern = r"What is the value of (\w+ \d) in the panel titled (\w+)\?"
        found = re.fullmatch(pattern, asked)
        assert found
        assert spec.titles.count(found[2]) == 1
        panel = spec.titles.index(found[2]) + 1
        assert answer == str(value[f"panel {panel} {found[1]}"])


def test_answers_of_all_kinds_on_all_charts_are_right_by_the_data() -> None:
    seen: Counter[tuple[str, str]] = Counter()
    rng = np.random.default_rng(5)
    for kind in KINDS:
        for _ in range(300):
            spec, asked = draw_data(rng, kind)
            check_answer(spec, kind, *charts_module.question(spec, kind, asked))
            seen[kind, spec.chart] += 1
    demanding = ("label", "two_step")
    wanted = {(k, c) for k in KINDS for c in (["panels"] if k in demanding else CHARTS)}
    assert set(seen) == wanted


def test_an_item_asks_what_its_data_say(items: list[ChartItem]) -> None:
    for one in items:
        check_answer(one.spec, one.kind, one.question, one.answer)


def test_values_keep_their_range_and_parts_their_length() -> None:
    for index in range(400):
        spec, *_ = spec_for("pretrain", index)
        low, high = {"pie": (20, 79), "stacked": (20, 59)}.get(spec.chart, (10, 99))
        assert all(low <= v <= high for part in spec.values for v in part)
        assert [len(p) for p in spec.values] == [len(p) for p in spec.colors]
        assert len({len(p) for p in spec.values}) == 1
        assert len(spec.titles) == (len(spec.values) if spec.chart == "panels" else 0)
        assert set(spec.titles) <= set(TITLES)
        assert len(set(spec.titles)) == len(spec.titles)


def test_an_extremum_rests_on_the_extreme_and_its_rival(items: list[ChartItem]) -> None:
    for one in (i for i in items if i.kind == "extremum"):
        part = one.asked[0].part if one.spec.chart in ("panels", "stacked") else None
        among = [m for m in one.spec.marks if part in (None, m.part)]
        falling = bool(re.search("highest|largest", one.question))
        order = sorted(among, key=one.spec.value, reverse=falling)
        assert one.asked == (order[0], order[1])
        assert one.choices == len(among)


def test_a_question_in_two_steps_rests_on_the_title_and_then_the_mark() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        _, (title, mark) = draw_data(rng, "two_step")
        assert title == Mark(mark.part)
        assert mark.place is not None


@pytest.mark.parametrize(("split", "charts"), [("pretrain", TAUGHT), ("train", CHARTS)])
def test_kinds_and_charts_come_in_the_stated_shares(
    split: str, charts: dict[ChartKind, float]
) -> None:
    found = [spec_for(split, index)[:2] for index in range(2000)]
    kinds = Counter(kind for _, kind in found)
    assert sum(KINDS.values()) == pytest.approx(1)
    for kind, share in KINDS.items():
        assert kinds[kind] / 2000 == pytest.approx(share, abs=0.035)
    free = [spec.chart for spec, kind in found if kind not in ("label", "two_step")]
    assert sum(charts.values()) == pytest.approx(1)
    for chart, share in charts.items():
        assert free.count(chart) / len(free) == pytest.approx(share, abs=0.035)


def test_no_place_gives_an_answer_away() -> None:
    rng = np.random.default_rng(2)
    first = Counter()
    for _ in range(600):
        spec, (a, b) = draw_data(rng, "comparison")
        first[spec.value(a) > spec.value(b)] += 1
        first["left"] += max((a, b), key=spec.value) < min((a, b), key=spec.value)
    assert 0.4 < first[True] / 600 < 0.6
    assert 0.4 < first["left"] / 600 < 0.6


def test_choices_hold_every_answer_of_their_kind() -> None:
    answers: dict[tuple[str, str], set[str]] = {}
    choices: dict[tuple[str, str], int] = {}
    rng = np.random.default_rng(3)
    one = item("train", 0)
    for kind in set(KINDS) - {"extremum"}:
        for _ in range(1200):
            spec, asked = draw_data(rng, kind)
            text, answer = charts_module.question(spec, kind, asked)
            made = replace(one, spec=spec, kind=kind, asked=asked, question=text, answer=answer)
            key = kind, spec.chart
            assert choices.setdefault(key, made.choices) == made.choices
            if kind != "comparison":
                answers.setdefault(key, set()).add(answer)
    for (kind, chart), found in answers.items():
        assert len(found) <= choices[kind, chart]
        if kind in ("count", "label"):  # few enough that all of them come
            assert len(found) == choices[kind, chart]
    assert answers["label", "panels"] == set(TITLES)
    assert answers["count", "bar"] == set("2345678")
    assert {c: choices["value", c] for c in ("bar", "pie", "stacked")} == {
        "bar": 90,
        "pie": 60,
        "stacked": 40,
    }
    assert choices["difference", "stacked"] == 39
    assert {int(a) for a in answers["value", "pie"]} <= set(range(20, 80))
    assert max(int(a) for a in answers["difference", "stacked"]) <= 39


# --- easy and look --------------------------------------------------------------------------------


def test_both_strata_are_common_in_all_test_splits(items: list[ChartItem]) -> None:
    for split, count in (("train", 220), ("test_style", 60), ("test_unseen", 60)):
        strata = Counter(i.stratum for i in items if i.id.startswith(f"charts/{split}/"))
        assert set(strata) == {"easy", "look"}
        assert min(strata.values()) > 0.25 * count
    for kind in set(KINDS) - {"count"}:
        assert {i.stratum for i in items if i.kind == kind} == {"easy", "look"}


def test_what_must_be_looked_at_can_not_be_read_or_seen_in_the_thumbnail(
    items: list[ChartItem],
) -> None:
    for one in items:
        scale = thumbnail_scale(*one.drawing.image.size, MAX_PIXELS)
        digits = [one.drawing.digit_heights[m] * scale for m in one.asked]
        is_seen = one.kind == "count"
        if one.kind in ("comparison", "extremum"):
            a, b = one.asked
            gap = abs(one.drawing.extents[a] - one.drawing.extents[b]) * scale
            is_seen = gap >= visible_gap_px(one.spec)
            if one.spec.chart == "panels" and a.part != b.part:
                is_seen = False
        assert one.by_sight == is_seen
        is_read = min(digits) >= READABLE_PX
        assert one.stratum == ("easy" if is_seen or is_read else "look")
        boxes = one.drawing.marks if is_seen else one.drawing.labels
        assert one.evidence == tuple((m, boxes[m]) for m in one.asked)


def test_slices_and_parts_are_harder_to_compare_than_heights() -> None:
    assert visible_gap_px(SPEC) < visible_gap_px(replace(SPEC, chart="pie"))
    assert visible_gap_px(replace(SPEC, chart="stacked")) == 2.0


def test_the_thumbnail_is_what_the_renderer_shows(items: list[ChartItem]) -> None:
    for one in items[:40]:
        width, height = one.drawing.image.size
        shown_height, shown_width = RENDERER.resized(root_view(one.drawing.image).ref)
        scale = thumbnail_scale(width, height, MAX_PIXELS)
        # never larger than the budget that decided the stratum
        assert shown_width * shown_height <= (width * scale) * (height * scale) * (1 + 1e-9)
        assert shown_width / width > 0.65 * scale
    assert thumbnail_scale(100, 100, MAX_PIXELS) == 1.0


def test_a_larger_budget_shows_more() -> None:
    small, large = (thumbnail_scale(800, 600, tokens * 784) for tokens in (48, 96))
    assert small < large < 1


def test_looking_at_the_whole_picture_again_shows_nothing_new(items: list[ChartItem]) -> None:
    for one in items[:10]:
        view = root_view(one.drawing.image)
        again = view.crop(view.ref.box)
        np.testing.assert_array_equal(
            RENDERER.patches(view.ref, view.pixels), RENDERER.patches(again.ref, again.pixels)
        )
        assert not Episode(Charts()._sample(one, ImageStore())).gaze


def test_looking_at_a_label_makes_it_readable(items: list[ChartItem]) -> None:
    """What a look is for: in the view of its own label the print is large enough."""
    for one in (i for i in items if i.stratum == "look"):
        view = root_view(one.drawing.image)
        for mark in one.asked:
            region = label_region(one.drawing.labels[mark], width=view.width, height=view.height)
            close = view.crop(region)
            height, _ = RENDERER.resized(close.ref)
            assert one.drawing.digit_heights[mark] * height / close.height > READABLE_PX


# --- splits that are kept apart -------------------------------------------------------------------


def test_test_style_has_what_no_trained_split_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in ("fonts", "backgrounds", "shapes"):
        assert not set(getattr(TRAINED, field)) & set(getattr(KEPT_OUT, field))
    shades = [{c for own in look.colors.values() for c in own} for look in (TRAINED, KEPT_OUT)]
    assert not shades[0] & shades[1]
    looks = []

    def recorded(*arguments, look, **options):
        looks.append(look)
        return made(*arguments, look=look, **options)

    made = charts_module.draw
    monkeypatch.setattr(charts_module, "draw", recorded)
    for split in SPLITS:
        item(split, 0)
    assert looks == [TRAINED] * 4 + [KEPT_OUT]  # and test_unseen is drawn by matplotlib


def test_pictures_of_test_style_show_its_shapes_and_backgrounds(items: list[ChartItem]) -> None:
    for one in items[:100] + items[220:280]:
        look = KEPT_OUT if "/test_style/" in one.id else TRAINED
        width, height = one.drawing.image.size
        fits = [s for s in look.shapes if abs(width * s[1] / s[0] - height) < 1]
        assert len(set(fits)) == 1
        assert one.drawing.image.getpixel((0, 0)) in look.backgrounds


# --- the task -------------------------------------------------------------------------------------


def finished(task: Charts, text: str, index: int) -> Episode:
    (sample,) = task.load("test", store=ImageStore(), start=index, count=1)
    turn = TurnRecord(Parsed(answer=Answer(text)))
    return Episode(
        sample, messages=(Message("assistant", ()),), turns=(turn,), stop=StopReason.ANSWERED
    )


def test_gold_answers_of_all_kinds_score_one_and_wrong_ones_nothing() -> None:
    task = task_named("charts", {"max_image_tokens": 48})
    assert isinstance(task, Task)
    kinds = set()
    for index in range(50):
        (sample,) = task.load("test", store=ImageStore(), start=index, count=1)
        kinds.add(sample.kind)
        assert task.rubric.score(finished(task, task.gold(sample), index)).value == 1.0
        assert task.rubric.score(finished(task, task.wrong(sample), index)).value == 0.0
    assert kinds == set(KINDS)


def test_samples_carry_their_chart() -> None:
    store = ImageStore()
    samples = Charts(max_image_tokens=30).load("validation", store=store, start=5, count=3)
    for index, sample in enumerate(samples, start=5):
        chart = item("validation", index, max_pixels=30 * 784)
        assert sample.id == chart.id == f"charts/validation/{index}"
        assert (sample.kind, sample.stratum) == (chart.kind, chart.stratum)
        assert (sample.question, sample.answer) == (chart.question, chart.answer)
        assert dict(sample.meta) == {
            CLUSTER: chart.spec.digest,
            "chart": chart.spec.chart,
            "choices": str(chart.choices),
        }
        (image,) = sample.images
        assert store.view(image).pixels.tobytes() == chart.drawing.image.tobytes()
        assert [(e.phrase, e.box) for e in sample.evidence] == [
            (chart.spec.called(m), b) for m, b in chart.evidence
        ]
        assert all(e.image == image for e in sample.evidence)


def test_questions_on_the_same_data_are_one_cluster(items: list[ChartItem]) -> None:
    one, other = items[0], items[250]
    other = replace(other, spec=one.spec, asked=(), by_sight=True)
    made = [dict(Charts()._sample(i, ImageStore()).meta)[CLUSTER] for i in (one, other, items[1])]
    assert made[0] == made[1] != made[2]


def test_loading_in_parts_gives_the_same_samples() -> None:
    task = Charts()
    whole = task.load("train", store=ImageStore(), start=0, count=4)
    parts = [task.load("train", store=ImageStore(), start=k, count=1)[0] for k in range(4)]
    assert list(whole) == parts
    assert task.load("train", store=ImageStore(), start=2, count=0) == []


@pytest.mark.parametrize(
    ("split", "count", "word"), [("dev", 1, "no split 'dev'"), ("train", None, "has no end")]
)
def test_splits_that_can_not_be_loaded_are_refused(
    split: str, count: int | None, word: str
) -> None:
    with pytest.raises(RecipeError, match=word):
        Charts().load(split, store=ImageStore(), count=count)


@pytest.mark.parametrize("value", [0, -3, "abc", 1.5, True, None])
@pytest.mark.parametrize("option", ["max_image_tokens", "factor"])
def test_a_budget_that_is_no_number_is_refused(option: str, value: object) -> None:
    with pytest.raises(RecipeError, match=f"Option '{option}' of task charts .*, got {value!r}"):
        task_named("charts", {option: value})
