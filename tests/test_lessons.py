"""Lessons on charts: true by the geometry and the data, and nothing of tools."""

import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from saccade.geometry import Box, Frame
from saccade.worlds.chart_data import TITLES, Mark
from saccade.worlds.charts import ChartItem, item
from saccade.worlds.lessons import (
    GRAIN,
    TOPICS,
    Exchange,
    Lesson,
    found_by_title,
    label_region,
    lessons,
    rounded_box,
    worked_answer,
)

FRAME = Frame.thousand(1000, 1000)
PLACE = r"(?:(?:group|column|panel) \d )?(?:bar|point|dot|slice|part) \d"
TITLE = "|".join(TITLES)


@pytest.fixture(scope="module")
def items() -> list[ChartItem]:
    return [item("pretrain", index) for index in range(150)]


def lessons_of(one: ChartItem, seed: int = 0) -> list[Lesson]:
    frame = Frame.thousand(*one.drawing.image.size)
    return lessons(one, np.random.default_rng([seed, *map(ord, one.id)]), frame=frame)


def exchanges_of(one: ChartItem, seed: int = 0) -> list[Exchange]:
    return [exchange for lesson in lessons_of(one, seed) for exchange in lesson]


def said(exchange: Exchange) -> str:
    """What was asked in words, a view as a mark."""
    return " ".join(a if isinstance(a, str) else "<view>" for a in exchange.asked)


def boxes_of(text: str) -> list[Box]:
    return [Box(*map(float, re.findall(r"\d+", b))) for b in re.findall(r"\[[^\]]*\]", text)]


def values_of(one: ChartItem) -> dict[str, int]:
    return {one.spec.called(m): one.spec.value(m) for m in one.spec.marks}


def marks_of(one: ChartItem) -> dict[str, Mark]:
    """Marks, and titles by their panels, by what they are called."""
    return {one.spec.called(m): m for m in (*one.spec.marks, *one.spec.title_marks)}


def region(one: ChartItem, mark: Mark) -> Box:
    width, height = one.drawing.image.size
    return label_region(one.drawing.labels[mark], width=width, height=height)


# --- what lessons are -----------------------------------------------------------------------------


def test_lessons_are_pure_and_cover_every_topic(items: list[ChartItem]) -> None:
    seen = set()
    for one in items[:40]:
        first, again = exchanges_of(one), exchanges_of(one)
        for a, b in zip(first, again, strict=True):
            assert (a.topic, said(a), a.answer) == (b.topic, said(b), b.answer)
            views = [[p.tobytes() for p in e.asked if isinstance(p, Image.Image)] for e in (a, b)]
            assert views[0] == views[1]
        assert [len(lesson) for lesson in lessons_of(one)][:4] == [1, 1, 1, 1]
        assert len(lessons_of(one)) == 5
        seen |= {exchange.topic for exchange in first}
    assert seen == set(TOPICS)


def test_no_lesson_shows_what_the_model_pointed_at_because_it_pointed(
    items: list[ChartItem],
) -> None:
    """Nothing of tools: the views of a second turn are independent of the answer before them."""
    follows = asked = 0
    for one in items:
        for lesson in (le for seed in range(3) for le in lessons_of(one, seed)):
            opening = said(lesson[0])
            if opening.endswith("Where are the titles?"):
                continue  # what is shown then are those titles
            if len(lesson) == 2 and opening.startswith("Where is the label of"):
                [place] = re.findall(PLACE, said(lesson[0]))
                asked += 1
                numbers = re.findall(r"\d+", lesson[1].answer)
                follows += numbers[:1] == [str(values_of(one)[place])]
    assert asked > 30
    assert follows / asked < 0.5  # a tool would make it 1; chance is about a quarter


# --- places ---------------------------------------------------------------------------------------


def targets(one: ChartItem, lesson: Lesson, exchange: Exchange) -> list[Box]:
    """What the boxes of an answer must hold, in their order."""
    asked, drawing, spec = said(exchange), one.drawing, one.spec
    if asked.endswith("Where are the titles?"):
        return [region(one, mark) for mark in spec.title_marks]
    called = marks_of(one)
    if exchange.topic == "caption":
        found = re.search(r" of (\w+ \d)\.$", asked)
        marks = [m for m in spec.marks if not found or spec.called(Mark(m.part)) == found[1]]
        is_marks = asked.startswith("Describe")
        return [drawing.marks[m] if is_marks else region(one, m) for m in marks]
    if exchange.topic == "reading":  # the label of a mark in the panel of a title
        whole = " ".join(map(said, lesson))
        found = re.search(r"(?:label|value) of (\w+ \d) in the panel titled (\w+)\?", whole)
        assert found
        panel = spec.titles.index(found[2]) + 1
        return [region(one, called[f"panel {panel} {found[1]}"])]
    names = re.findall(rf"{PLACE}|panel \d", asked)
    is_marks = "label" not in asked and "title" not in asked
    return [drawing.marks[called[n]] if is_marks else region(one, called[n]) for n in names]


def test_boxes_of_lessons_are_those_asked_for_rounded_outward(items: list[ChartItem]) -> None:
    seen = Counter()
    for one in items:
        frame = Frame.thousand(*one.drawing.image.size)
        for lesson, exchange in ((le, e) for le in lessons_of(one) for e in le):
            told = boxes_of(exchange.answer)
            if exchange.topic not in ("caption", "pointing") and not told:
                continue
            wanted = targets(one, lesson, exchange)
            seen[" ".join(said(exchange).replace("<view> Read. ", "").split()[:4])] += 1
            for box, target in zip(told, wanted, strict=True):
                assert all(v % GRAIN == 0 for v in box.as_tuple())
                # outward, but for half a unit of the frame
                assert frame.decode_box(box.as_tuple()).expand(1).intersection(target) is not None
                exact = frame.encode_box(target)
                outward = np.array([-1, -1, 1, 1]) * (np.array(box.as_tuple()) - exact)
                assert (outward >= 0).all()
                assert (outward < GRAIN).all()
    assert {k for k in seen if k.startswith(("Where is the", "Where are the"))}
    assert min(sum(n for k, n in seen.items() if k.startswith(w)) for w in OPENINGS) > 2


OPENINGS = (
    *("Describe the", "List the labels", "Where are the titles", "Where are the labels"),
    *("Where is the title", "Where is the label"),
)


def test_captions_name_colours_and_pointing_names_places_in_order(items: list[ChartItem]) -> None:
    for one in items:
        spec = one.spec
        for exchange in exchanges_of(one):
            lines = exchange.answer.split("\n")
            words = [line.partition(" [")[0] for line in lines]
            if exchange.topic == "caption":
                found = re.search(r" of (\w+ \d)\.$", said(exchange))
                marks = [
                    m for m in spec.marks if not found or found[1] == spec.called(Mark(m.part))
                ]
                assert words == [spec.color(m) for m in marks]
                assert spec.chart in said(exchange) or "labels" in said(exchange)
                assert len(words) <= max(5, max(map(len, spec.values)))
            elif exchange.topic == "pointing" and not lines[0].startswith("["):
                asked = re.findall(rf"{PLACE}|panel \d", said(exchange))
                if said(exchange).endswith("Where are the titles?"):
                    asked = [spec.called(m) for m in spec.title_marks]
                assert words == asked
                assert len(set(words)) == len(words) <= 4


def test_naming_asks_for_what_stands_there(items: list[ChartItem]) -> None:
    checked = 0
    for one in items:
        frame = Frame.thousand(*one.drawing.image.size)
        for exchange in (e for e in exchanges_of(one) if e.topic == "naming"):
            [box] = boxes_of(said(exchange))
            fits = {
                one.spec.color(m)
                for m in one.spec.marks
                for target in (one.drawing.marks[m], region(one, m))
                if tuple(rounded_box(frame, target)) == box.as_tuple()
            }
            assert fits == {exchange.answer}
            checked += 1
    assert checked > 10


def test_rounding_outward_stays_in_the_frame() -> None:
    assert rounded_box(FRAME, Box(11, 19, 21, 30)) == [10, 10, 30, 30]
    assert rounded_box(FRAME, Box(0, 0, 1000, 1000)) == [0, 0, 1000, 1000]
    assert rounded_box(FRAME, Box(993, 1, 999, 2)) == [990, 0, 1000, 10]


# --- reading --------------------------------------------------------------------------------------


def shows_middle(chart: np.ndarray, view: np.ndarray, label: Box) -> bool:
    """Whether the middle row of a label stands in the view, pixel for pixel."""
    x0, y0, x1, y1 = (round(v) for v in label.as_tuple())
    inner = chart[(y0 + y1) // 2, x0 + (x1 - x0) // 4 : x1 - (x1 - x0) // 4]
    if view.shape[1] < len(inner):
        return False
    windows = np.lib.stride_tricks.sliding_window_view(view, len(inner), axis=1)
    return bool((windows == inner.T).all(axis=(-2, -1)).any())


def test_views_show_whole_labels_and_are_read_in_their_order(items: list[ChartItem]) -> None:
    """Each view is found in the chart, and the label that it holds is the one that is read."""
    numbers_read = titles_read = 0
    for one in items[:70]:
        chart = np.asarray(one.drawing.image).astype(int)
        for exchange in (e for e in exchanges_of(one) if e.topic == "reading"):
            views = [a for a in exchange.asked if not isinstance(a, str)]
            first, *later = exchange.answer.split("\n")[0].split(": ")
            told = re.sub(rf"{PLACE}|panel \d", "", later[0] if len(later) == 2 else first)
            read = re.findall(rf"\d+|{TITLE}", told)
            assert len(read) == len(views)
            for view, text in zip(views, read, strict=True):
                holds = {
                    one.spec.printed(mark)
                    for mark, label in one.drawing.labels.items()
                    if shows_middle(chart, np.asarray(view).astype(int), label)
                }
                assert text in holds
                numbers_read += text.isdigit()
                titles_read += not text.isdigit()
    assert numbers_read > 40
    assert titles_read > 5


def test_a_label_is_framed_with_three_quarters_of_its_height_and_stays_inside() -> None:
    assert label_region(Box(40, 40, 60, 48), width=100, height=90) == Box(34, 34, 66, 54)
    assert label_region(Box(2, 2, 20, 10), width=22, height=90) == Box(0, 0, 22, 16)


def test_what_is_looked_for_stands_before_the_titles_and_where_it_is_behind_them() -> None:
    assert found_by_title(["rain", "coal", "sun"], "coal", "bar 2") == (
        "coal bar 2: rain panel 1, coal panel 2, sun panel 3: coal panel 2 bar 2"
    )


def test_a_label_is_found_by_the_title_of_its_panel_in_two_exchanges(
    items: list[ChartItem],
) -> None:
    seen = 0
    for one in items:
        for lesson in lessons_of(one):
            if not said(lesson[0]).endswith("Where are the titles?"):
                continue
            first, second = lesson
            views = [a for a in second.asked if not isinstance(a, str)]
            assert len(views) == len(one.spec.titles) == len(boxes_of(first.answer))
            [told] = re.findall(r"of (\w+ \d) in the panel titled (\w+)\?", said(first))
            own, title = told
            assert second.answer.startswith(found_by_title(one.spec.titles, title, own))
            seen += 1
    assert seen > 5


# --- questions and sums ---------------------------------------------------------------------------


def check_exchange(one: ChartItem, exchange: Exchange) -> str:
    """The answer is right by the words that were asked and the data; which form it had."""
    value, spec = values_of(one), one.spec
    asked = said(exchange)
    words = re.findall(PLACE, asked)
    *worked, answer = exchange.answer.split("\n")
    if asked.startswith("The titles are"):
        listed, _, wanted = asked.partition(". Which panel is titled ")
        titles = re.findall(TITLE, listed)
        assert answer == f"panel {titles.index(wanted.rstrip('?')) + 1}"
        return "titles"
    if exchange.topic == "arithmetic":
        numbers = [int(n) for n in re.findall(r"\d+", re.sub(PLACE, "", asked))]
        if not words:
            assert int(answer) == numbers[0] - numbers[1] >= 0
            return "subtraction"
        best = max if re.search("higher|larger", asked) else min
        assert numbers[0] != numbers[1]
        assert worked == [str(best(numbers))]
        assert answer == words[numbers.index(best(numbers))]
        return "choice"
    if asked.endswith("Where are the titles?"):
        return "other"
    if found := re.search(r"value of (\w+ \d) in the panel titled (\w+)\?", asked):
        panel = spec.titles.index(found[2]) + 1
        assert answer == str(value[f"panel {panel} {found[1]}"])
        return "two steps"
    if "What is the title" in asked:
        [panel] = re.findall(r"panel (\d)", asked)
        assert answer == spec.titles[int(panel) - 1]
        return "title"
    if "What is the value" in asked:
        assert exchange.answer == str(value[words[0]])
        return "value"
    if "How many" in asked:
        assert answer == str(len(spec.values) if len(spec.values) > 1 else len(spec.values[0]))
        return "count"
    if asked.startswith("Rank"):
        order = [value[w] for w in answer.split(", ")]
        falling = bool(re.search("highest|largest", asked))
        found = re.search(r" in (\w+ \d)\.$", asked)
        among = [v for n, v in value.items() if not found or n.startswith(f"{found[1]} ")]
        assert order == sorted(among, reverse=falling)
        return "rank"
    if re.search("Which is (higher|larger),", asked):
        assert answer == max(words, key=lambda n: value[n])
        assert value[words[0]] != value[words[1]]
    elif re.search("How much (higher|larger)", asked):
        assert int(answer) == value[words[0]] - value[words[1]] > 0
    elif found := re.search(r"Which is the (\w+)(?: in (\w+ \d))?\?", asked):
        among = {n: v for n, v in value.items() if not found[2] or n.startswith(f"{found[2]} ")}
        best = max if found[1] in ("highest", "largest") else min
        assert value[answer] == best(among.values())
    else:
        return "other"
    if worked:
        told, _, chosen = worked[0].partition(": ")
        if "How much" in asked:
            first, second = (int(n) for n in told.split(", "))
            assert first - second == int(answer)
        else:
            pairs = [pair.split(" ", 1) for pair in told.split(", ")]
            assert all(value[mark] == int(number) for number, mark in pairs)
            assert value[answer] == int(chosen)
    return "worked" if worked else "at once"


def test_questions_and_sums_are_right(items: list[ChartItem]) -> None:
    forms: Counter[str] = Counter()
    for seed in range(3):
        for one in items[:100]:
            forms.update(check_exchange(one, e) for e in exchanges_of(one, seed))
    del forms["two steps"]  # seldom: that all titles and the label are large
    assert set(forms) == {
        *("titles", "subtraction", "choice", "title", "value", "count", "rank"),
        *("worked", "at once", "other"),
    }
    assert min(forms.values()) >= 5


def test_a_question_of_the_chart_is_asked_plainly_only_where_it_can_be_seen(
    items: list[ChartItem],
) -> None:
    plain: Counter[str] = Counter()
    for seed in range(3):
        for one in items[:100]:
            taught = lessons_of(one, seed)
            asked = [lesson[0].asked for lesson in taught if len(lesson) == 1]
            plain[one.stratum] += (one.question,) in asked
    assert plain["easy"] > 20
    assert plain["look"] <= 3  # by accident: drawn as one of the other questions


def test_what_follows_from_one_label_is_its_own_working(items: list[ChartItem]) -> None:
    """And what follows from two is told behind both: the number first, then whose it is."""
    for one in items:
        worked = worked_answer(one, one.kind, one.asked, one.answer)
        if one.kind in ("difference", "comparison", "extremum"):
            before, _, answer = worked.partition("\n")
            assert answer == one.answer
            told = [f"{one.spec.value(m)}" for m in one.asked]
            assert re.findall(r"\d+", re.sub(PLACE, "", before))[:2] == told
        else:
            assert worked == one.answer
