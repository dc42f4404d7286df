"""The chart world: pure, split by its data, with geometry that is what was drawn."""

import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw

import saccade.worlds.charts as charts_module
from saccade.errors import RecipeError
from saccade.geometry import Box, Frame
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.models.tiny import SETTINGS, build_tokenizer
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.tasks import Task, task_named
from saccade.tasks.charts import Charts
from saccade.types import Answer, Episode, Message, Parsed, StopReason, TurnRecord
from saccade.worlds.charts import (
    COLORS,
    KINDS,
    READABLE_PX,
    SPLITS,
    VISIBLE_GAP_PX,
    ChartItem,
    ChartSpec,
    draw,
    item,
    spec_for,
    thumbnail_scale,
)
from saccade.worlds.lessons import (
    GRAIN,
    TOPICS,
    Exchange,
    Lesson,
    label_region,
    lessons,
    rounded_box,
)

MAX_PIXELS = SETTINGS.max_pixels
RENDERER = Qwen2VLRenderer(build_tokenizer("red\n"), SETTINGS)
FRAME = Frame.thousand(1000, 1000)


@pytest.fixture(scope="module")
def items() -> list[ChartItem]:
    return [item("train", index, max_pixels=MAX_PIXELS) for index in range(150)]


PLACE = r"(?:bar|point) [1-5]"


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def is_shade(array: np.ndarray, name: str) -> np.ndarray:
    """Where pixels (..., 3) have one of the colours of that name."""
    radix = np.array([65536, 256, 1])
    return np.isin(array @ radix, np.array(COLORS[name]) @ radix)


def whole_pixels(box: Box) -> tuple[int, int, int, int]:
    return int(box.x0), int(box.y0), -int(-box.x1 // 1), -int(-box.y1 // 1)


# --- what an item is ------------------------------------------------------------------------------


def test_an_item_is_the_same_whenever_and_in_whatever_order_it_is_made() -> None:
    wanted = {(s, k): item(s, k) for s in SPLITS for k in (0, 3, 1_000_000)}
    for (split, index), one in reversed(wanted.items()):
        again = item(split, index)
        assert again.drawing.image.tobytes() == one.drawing.image.tobytes()
        for field in ("id", "spec", "question", "answer", "names", "evidence", "stratum", "kind"):
            assert getattr(again, field) == getattr(one, field)
        assert again.drawing.marks == one.drawing.marks
        assert again.drawing.labels == one.drawing.labels


def test_no_chart_stands_in_two_splits() -> None:
    found: dict[str, set[str]] = {}
    for split in SPLITS:
        specs = [spec_for(split, index)[0] for index in range(800)]
        assert all(s.split == split for s in specs)
        found[split] = {s.digest for s in specs}
        assert len(found[split]) > 770  # and hardly one twice in its own
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or not found[one] & found[other]


def test_every_hash_belongs_to_exactly_one_split() -> None:
    for percent in range(100):
        assert sum(low <= percent < high for low, high in SPLITS.values()) == 1


def test_the_split_follows_from_the_data_and_every_part_of_it_counts() -> None:
    spec = ChartSpec("bar", (("red", 10), ("blue", 20)))
    assert ChartSpec("bar", (("red", 10), ("blue", 20))).digest == spec.digest
    others = (
        ChartSpec("line", spec.entries),
        ChartSpec("bar", spec.entries[::-1]),
        ChartSpec("bar", (("red", 10), ("blue", 21))),
        ChartSpec("bar", (("red", 10), ("cyan", 20))),
    )
    assert len({spec.digest, *(o.digest for o in others)}) == 5


def test_an_unknown_split_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'dev'.*pretrain, train, validation, test"):
        item("dev", 0)


def test_answers_are_right_by_the_data(items: list[ChartItem]) -> None:
    for one in items:
        value = {one.spec.called(n): v for n, v in one.spec.entries}
        words = re.findall(PLACE, one.question)
        if one.kind == "value":
            assert one.question == f"What is the value of {words[0]}?"
            assert one.answer == str(value[words[0]])
        elif one.kind == "difference":
            assert one.question == f"How much higher is {words[0]} than {words[1]}?"
            assert int(one.answer) == value[words[0]] - value[words[1]] > 0
        elif one.kind == "comparison":
            assert one.question == f"Which is higher, {words[0]} or {words[1]}?"
            assert value[words[0]] != value[words[1]]
            assert one.answer == max(words, key=lambda n: value[n])
        else:
            best = max if "highest" in one.question else min
            extreme = best(value.values())
            assert [n for n, v in value.items() if v == extreme] == [one.answer]
        assert set(words) <= set(value)
        assert {n for n, _ in one.evidence} == set(one.names)
        assert len(value) == len(one.spec.entries)
        assert all(10 <= v <= 99 or one.kind == "extremum" for v in value.values())


def test_the_names_of_an_extremum_are_the_extreme_and_its_rival(items: list[ChartItem]) -> None:
    for one in (i for i in items if i.kind == "extremum"):
        order = sorted(dict(one.spec.entries).items(), key=lambda e: e[1])
        order = order[::-1] if "highest" in one.question else order
        assert one.names == (order[0][0], order[1][0])


def test_every_kind_and_both_strata_are_common(items: list[ChartItem]) -> None:
    strata = Counter(i.stratum for i in items)
    assert set(strata) == {"easy", "look"}
    assert min(strata.values()) > 0.25 * len(items)
    kinds = Counter(i.kind for i in items)
    assert set(kinds) == set(KINDS)
    assert min(kinds.values()) > 0.1 * len(items)
    assert {i.stratum for i in items if i.kind == "value"} == {"easy", "look"}
    assert {i.spec.chart for i in items} == {"bar", "line"}
    sides = Counter(
        [i.spec.called(n) for n in i.names].index(i.answer) for i in items if i.kind == "comparison"
    )
    assert min(sides[0], sides[1]) > 3  # neither place gives the answer away


# --- geometry is what was drawn -------------------------------------------------------------------


class NoLabels(ImageDraw.ImageDraw):
    """A pen that leaves out the value labels: the only text without an anchor."""

    def text(self, *arguments: object, **options: object) -> None:
        if "anchor" in options:
            super().text(*arguments, **options)


def ink_of_labels(index: int, monkeypatch: pytest.MonkeyPatch) -> tuple[ChartItem, np.ndarray]:
    """An item, and where (height, width) its labels left ink."""
    one = item("train", index)
    with monkeypatch.context() as patch:
        patch.setattr(charts_module.ImageDraw, "Draw", NoLabels)
        bare = item("train", index)
    assert bare.drawing.labels == one.drawing.labels
    return one, (pixels(one.drawing.image) != pixels(bare.drawing.image)).any(-1)


def test_label_boxes_hold_all_ink_of_their_labels_and_fit_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for index in range(20):
        one, ink = ink_of_labels(index, monkeypatch)
        left = ink.copy()
        for name, _ in one.spec.entries:
            x0, y0, x1, y1 = whole_pixels(one.drawing.labels[name])
            rows, columns = np.nonzero(ink[y0:y1, x0:x1])
            assert len(rows) > 10
            slack = 2 + 0.15 * one.drawing.digit_height
            assert rows.min() <= slack
            assert columns.min() <= slack
            assert (y1 - y0) - rows.max() <= 1 + slack
            assert (x1 - x0) - columns.max() <= 1 + slack
            left[y0:y1, x0:x1] = False
        assert not left.any()


def test_labels_overlap_no_other_label_and_no_mark(items: list[ChartItem]) -> None:
    for one in items:
        labels, marks = one.drawing.labels, one.drawing.marks
        for name, label in labels.items():
            for other in labels:
                assert other == name or label.intersection(labels[other]) is None
            for mark in marks.values():
                common = label.intersection(mark)
                assert common is None or common.area < 0.02 * label.area


def test_marks_and_labels_lie_in_the_picture(items: list[ChartItem]) -> None:
    for one in items:
        width, height = one.drawing.image.size
        for box in (*one.drawing.labels.values(), *one.drawing.marks.values()):
            assert 0 <= box.x0 < box.x1 <= width
            assert 0 <= box.y0 < box.y1 <= height


def test_marks_hold_their_own_colour_and_no_other_place_does(items: list[ChartItem]) -> None:
    for one in items[:25]:
        array = pixels(one.drawing.image)
        for name, mark in one.drawing.marks.items():
            mine = is_shade(array, name)
            x0, y0, x1, y1 = whole_pixels(mark)
            share = mine[y0:y1, x0:x1].mean()
            assert share > (0.6 if one.spec.chart == "line" else 0.85)
            mine[y0 : y1 + 1, x0 : x1 + 1] = False
            if name != "gray":  # the blended edges of dark text are gray
                assert mine.sum() <= 12


def test_tips_are_where_the_marks_end_to_the_pixel(items: list[ChartItem]) -> None:
    for one in items[:25]:
        array = pixels(one.drawing.image)
        for name, tip in one.drawing.tips.items():
            mark = one.drawing.marks[name]
            column = array[:, round(mark.center.x)]
            top = np.flatnonzero(is_shade(column, name)).min()
            if one.spec.chart == "bar":
                assert mark.y0 == tip
            else:
                assert mark.center.y == pytest.approx(tip)
            assert abs(top - mark.y0) <= 2  # one pixel, and one of the outline


def test_heights_are_proportional_to_values(items: list[ChartItem]) -> None:
    for one in items:
        values = np.array([v for _, v in one.spec.entries], float)
        tips = np.array([one.drawing.tips[n] for n, _ in one.spec.entries])
        slope, base = np.polyfit(values, tips, 1)
        assert slope < 0
        np.testing.assert_allclose(slope * values + base, tips, atol=1e-6)
        if one.spec.chart == "bar":
            bottoms = {m.y1 for m in one.drawing.marks.values()}
            assert len(bottoms) == 1
            assert bottoms.pop() == pytest.approx(base)


def test_entries_stand_from_left_to_right(items: list[ChartItem]) -> None:
    for one in items:
        for boxes in (one.drawing.marks, one.drawing.labels):
            centers = [boxes[n].center.x for n, _ in one.spec.entries]
            assert centers == sorted(centers)


# --- easy and look --------------------------------------------------------------------------------


def test_what_must_be_looked_at_can_not_be_read_or_seen_in_the_thumbnail(
    items: list[ChartItem],
) -> None:
    for one in items:
        scale = thumbnail_scale(*one.drawing.image.size, MAX_PIXELS)
        labels = one.drawing.labels
        tips = [one.drawing.tips[n] for n in (one.names[0], one.names[-1])]
        is_seen = one.kind in ("extremum", "comparison") and (
            abs(tips[0] - tips[1]) * scale >= VISIBLE_GAP_PX
        )
        if one.stratum == "look":
            assert not is_seen
            assert all(labels[n].height * scale < READABLE_PX for n in one.names)
        elif not is_seen:
            assert one.drawing.digit_height * scale >= READABLE_PX
        wanted = one.drawing.marks if is_seen else labels
        assert one.evidence == tuple((n, wanted[n]) for n in one.names)


def test_the_thumbnail_is_what_the_renderer_shows(items: list[ChartItem]) -> None:
    for one in items[:40]:
        width, height = one.drawing.image.size
        shown_height, shown_width = RENDERER.resized(root_view(one.drawing.image).ref)
        scale = thumbnail_scale(width, height, MAX_PIXELS)
        # never larger than the budget that decided the stratum
        assert shown_width * shown_height <= (width * scale) * (height * scale) * (1 + 1e-9)
        assert shown_width / width > 0.8 * scale
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
    """What crop is for: in the view of its own label the digits are large enough."""
    for one in (i for i in items if i.stratum == "look"):
        view = root_view(one.drawing.image)
        for name in one.names:
            region = label_region(one.drawing.labels[name], width=view.width, height=view.height)
            close = view.crop(region)
            height, _ = RENDERER.resized(close.ref)
            assert one.drawing.labels[name].height * height / close.height > READABLE_PX


# --- the task -------------------------------------------------------------------------------------


def finished(task: Charts, text: str, index: int) -> Episode:
    (sample,) = task.load("test", store=ImageStore(), start=index, count=1)
    turn = TurnRecord(Parsed(answer=Answer(text)))
    return Episode(
        sample, messages=(Message("assistant", ()),), turns=(turn,), stop=StopReason.ANSWERED
    )


def test_gold_answers_score_one_and_wrong_ones_less() -> None:
    task = task_named("charts", {"max_image_tokens": 48})
    assert isinstance(task, Task)
    for index in range(30):
        (sample,) = task.load("test", store=ImageStore(), start=index, count=1)
        assert task.rubric.score(finished(task, task.gold(sample), index)).value == 1.0
        assert task.rubric.score(finished(task, task.wrong(sample), index)).value == 0.0


def test_samples_carry_their_chart() -> None:
    store = ImageStore()
    samples = Charts(max_image_tokens=30).load("validation", store=store, start=5, count=3)
    for index, sample in enumerate(samples, start=5):
        chart = item("validation", index, max_pixels=30 * 784)
        assert sample.id == chart.id == f"charts/validation/{index}"
        assert (sample.kind, sample.stratum) == (chart.kind, chart.stratum)
        assert (sample.question, sample.answer) == (chart.question, chart.answer)
        (image,) = sample.images
        assert store.view(image).pixels.tobytes() == chart.drawing.image.tobytes()
        assert [(e.phrase, e.box) for e in sample.evidence] == list(chart.evidence)
        assert all(e.image == image for e in sample.evidence)


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


# --- lessons --------------------------------------------------------------------------------------


def lessons_of(one: ChartItem, seed: int = 0) -> list[Lesson]:
    frame = Frame.thousand(*one.drawing.image.size)
    rng = np.random.default_rng([seed, *map(ord, one.id)])
    return lessons(one, rng, frame=frame)


def exchanges_of(one: ChartItem, seed: int = 0) -> list[Exchange]:
    return [exchange for lesson in lessons_of(one, seed) for exchange in lesson]


def said(exchange: Exchange) -> str:
    """What was asked in words, a view as a mark."""
    return " ".join(a if isinstance(a, str) else "<view>" for a in exchange.asked)


def boxes_of(text: str) -> list[Box]:
    return [Box(*map(float, re.findall(r"\d+", b))) for b in re.findall(r"\[[^\]]*\]", text)]


def test_lessons_are_pure_and_cover_every_topic(items: list[ChartItem]) -> None:
    seen = set()
    for one in items[:40]:
        first, again = exchanges_of(one), exchanges_of(one)
        assert [(a.topic, said(a), a.answer) for a in first] == [
            (b.topic, said(b), b.answer) for b in again
        ]
        assert len(lessons_of(one)) == 5
        seen |= {exchange.topic for exchange in first}
    assert seen == set(TOPICS)


def test_no_lesson_shows_what_the_model_pointed_at_because_it_pointed() -> None:
    """Nothing of tools: the views of a second turn are independent of the answer before them."""
    follows = asked = 0
    for one in (item("pretrain", index) for index in range(150)):
        for lesson in (le for seed in range(2) for le in lessons_of(one, seed)):
            if len(lesson) == 2 and "label of" in said(lesson[0]):
                asked += 1
                place = re.findall(PLACE, said(lesson[0]))[0]
                value = dict(called_values(one))[place]
                follows += re.findall(r"\d+", lesson[1].answer)[0] == str(value)
    assert asked > 30
    assert follows / asked < 0.5  # a tool would make it 1; chance is about a quarter


def called_values(one: ChartItem) -> list[tuple[str, int]]:
    return [(one.spec.called(n), v) for n, v in one.spec.entries]


def test_boxes_of_lessons_are_true_and_rounded_outward(items: list[ChartItem]) -> None:
    for one in items[:40]:
        width, height = one.drawing.image.size
        for exchange in exchanges_of(one):
            if exchange.topic not in ("caption", "pointing"):
                continue
            lines = exchange.answer.split("\n")
            named = [line.split(" [")[0] for line in lines if not line.startswith("[")]
            named = named or re.findall(PLACE, said(exchange))
            colours = {one.spec.called(n): n for n, _ in one.spec.entries}
            names = [colours.get(n, n) for n in named]
            for name, box in zip(names, boxes_of(exchange.answer), strict=True):
                assert all(v % GRAIN == 0 for v in box.as_tuple())
                shown = Box(
                    box.x0 * width / 1000,
                    box.y0 * height / 1000,
                    box.x1 * width / 1000,
                    box.y1 * height / 1000,
                )
                is_label = "label" in said(exchange)
                target = (one.drawing.labels if is_label else one.drawing.marks)[name]
                common = shown.expand(0.6).intersection(target)
                assert common is not None
                assert common.area > 0.999 * target.area


def test_naming_asks_for_what_stands_there(items: list[ChartItem]) -> None:
    for one in items[:40]:
        width, height = one.drawing.image.size
        frame = Frame.thousand(width, height)
        for exchange in (e for e in exchanges_of(one) if e.topic == "naming"):
            (box,) = boxes_of(said(exchange))
            fits = {
                name
                for name, _ in one.spec.entries
                for target in (
                    one.drawing.marks[name],
                    label_region(one.drawing.labels[name], width=width, height=height),
                )
                if tuple(rounded_box(frame, target)) == box.as_tuple()
            }
            assert fits == {exchange.answer}


def test_views_show_whole_labels_and_are_read_in_their_order(items: list[ChartItem]) -> None:
    """Each view is found in the chart, and the label that it holds is the one that is read."""
    checked = 0
    for one in items[:40]:
        chart = pixels(one.drawing.image)
        for exchange in (e for e in exchanges_of(one) if e.topic == "reading"):
            views = [a for a in exchange.asked if not isinstance(a, str)]
            told = re.sub(PLACE, "", exchange.answer.split("\n")[0].partition(":")[0])
            numbers = re.findall(r"\d+", told)
            assert len(numbers) == len(views)
            for view, number in zip(views, numbers, strict=True):
                holds = {
                    one.spec.value(n)
                    for n, label in one.drawing.labels.items()
                    if shows_middle(chart, pixels(view), label)
                }
                assert int(number) in holds
                checked += 1
    assert checked > 50


def shows_middle(chart: np.ndarray, view: np.ndarray, label: Box) -> bool:
    """Whether the middle row of the label's digits stands in the view, pixel for pixel."""
    x0, y0, x1, y1 = whole_pixels(label)
    inner = chart[(y0 + y1) // 2, x0 + (x1 - x0) // 4 : x1 - (x1 - x0) // 4]
    if view.shape[1] < len(inner):
        return False
    windows = np.lib.stride_tricks.sliding_window_view(view, len(inner), axis=1)
    return bool((windows == inner.T).all(axis=(-2, -1)).any())


def test_questions_and_sums_are_right(items: list[ChartItem]) -> None:
    kinds: Counter[str] = Counter()
    for seed in range(6):
        for one in items[:25]:
            value = dict(called_values(one))
            for exchange in exchanges_of(one, seed):
                asked = said(exchange)
                words = re.findall(PLACE, asked)
                numbers = [int(n) for n in re.findall(r"\d+", re.sub(PLACE, "", asked))]
                *worked, answer = exchange.answer.split("\n")
                if exchange.topic == "arithmetic" and not words:
                    assert int(answer) == numbers[0] - numbers[1] >= 0
                elif exchange.topic == "arithmetic":
                    best = max if "higher" in asked else min
                    assert numbers[0] != numbers[1]
                    assert worked == [str(best(numbers))]
                    assert answer == words[numbers.index(best(numbers))]
                elif "What is the value" in asked:
                    assert exchange.answer == str(value[words[0]])
                elif "Which is higher" in asked:
                    assert answer == max(words, key=lambda n: value[n])
                elif "How much higher" in asked:
                    assert int(answer) == value[words[0]] - value[words[1]] > 0
                elif asked.startswith("Rank"):
                    order = [value[w] for w in answer.split(", ")]
                    assert order == sorted(value.values(), reverse="highest" in asked)
                elif "Which is the" in asked:
                    best = max if "highest" in asked else min
                    assert value[answer] == best(value.values())
                else:
                    continue
                kinds[asked.replace("<view>", "").split()[0] + str(bool(worked))] += 1
                if exchange.topic == "reading" and worked:
                    told, _, chosen = worked[0].partition(": ")
                    if "How much" in asked:
                        first, second = (int(n) for n in told.split(", "))
                        assert first - second == int(answer)
                    else:
                        pairs = [pair.split(" ", 1) for pair in told.split(", ")]
                        assert all(value[mark] == int(n) for n, mark in pairs)
                        assert value[answer] == int(chosen)
    assert len(kinds) >= 6


def test_rounding_outward_stays_in_the_frame() -> None:
    assert rounded_box(FRAME, Box(11, 19, 21, 30)) == [10, 10, 30, 30]
    assert rounded_box(FRAME, Box(0, 0, 1000, 1000)) == [0, 0, 1000, 1000]
    assert rounded_box(FRAME, Box(993, 1, 999, 2)) == [990, 0, 1000, 10]


def test_a_drawing_can_be_made_of_any_data() -> None:
    for entries in ((("red", 10), ("blue", 99), ("gray", 10)), tuple((n, 50) for n in COLORS)):
        drawing = draw(ChartSpec("line", entries), np.random.default_rng(1), max_pixels=MAX_PIXELS)
        assert set(drawing.labels) == {n for n, _ in entries}
