"""detect and point: the grammar, what is found in figures whose contents are known, and what is
refused. Print comes from a scripted reader that knows what was printed.
"""

from __future__ import annotations

import asyncio
import math
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from saccade.backends.kinds import Detected, Detector, Pointed, Pointer, Printed
from saccade.backends.vocabulary import VocabularyDetector, VocabularyPointer
from saccade.config import BackendChoice
from saccade.distances import look_alike
from saccade.errors import ToolError
from saccade.geometry import Box, Frame, Point, iou
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.tools import ToolBox
from saccade.tools.detect import MOST_BOXES, detect
from saccade.tools.point import MOST_POINTS, point
from saccade.tools.spec import Tool
from saccade.types import BoxFound, ImageShown, PointFound, Text, ToolCall, ToolResult
from saccade.vision.chart_parts import chart_parts
from saccade.vision.colors import COLOR_NAMES, name_scores, score_of
from saccade.vision.print_roles import text_roles
from saccade.vision.requests import Wanted, parse
from saccade.worlds.figures import COLORS, FigureItem, Variety, figure
from saccade.worlds.lookalikes import SORTS, lookalike
from scripted_reader import Scripted, printed


def found(item: FigureItem, query: str) -> list[Detected]:
    return VocabularyDetector(BackendChoice(), reader=printed(item)).detect(item.image, query)


def blind(picture: Image.Image, query: str) -> list[Detected]:
    """Of a picture without print."""
    return VocabularyDetector(BackendChoice(), reader=Scripted([])).detect(picture, query)


def a_figure_with(kind: str, *, variety: Variety = "plain", first: int = 2000) -> FigureItem:
    items = (figure(index, variety=variety) for index in range(first, first + 60))
    return next(item for item in items if any(p.kind == kind for p in item.plots))


def shapes(item: FigureItem, kind: str) -> list[tuple[str, Box]]:
    return [(s.color, s.box) for p in item.plots for s in p.shapes if s.kind == kind]


# --- colours --------------------------------------------------------------------------------------


def rgb(code: str) -> tuple[int, int, int]:
    r, g, b = (int(code[i : i + 2], 16) for i in (1, 3, 5))
    return r, g, b


def test_the_colours_of_figures_have_the_names_that_people_give_them() -> None:
    for name, code in COLORS.items():
        scores = name_scores(rgb(code))
        assert max(scores, key=lambda n: scores[n]) == name
        assert scores[name] > 0.85
    assert {"black", "white", "cyan"} < set(COLOR_NAMES)


def test_a_colour_between_two_names_is_sure_of_neither() -> None:
    between = name_scores((10, 155, 185))  # cyan, or blue
    first, second = sorted(between.values())[-2:][::-1]
    assert first < 0.75
    assert first + second == pytest.approx(1.0)


def test_light_and_dark_are_told_by_lightness() -> None:
    pale, deep = (166, 206, 227), (10, 30, 110)
    assert score_of(pale, "blue", shade="light") > 0.7 > score_of(pale, "blue", shade="dark")
    assert score_of(pale, "red", shade="light") < 0.5  # pale, but not red
    assert score_of(deep, "blue", shade="dark") > 0.5 > score_of(deep, "blue", shade="light")


# --- the grammar ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "wanted"),
    [
        ("bars", Wanted("bar")),
        ("the red bar", Wanted("bar", color="red")),
        ("Light Grey columns", Wanted("bar", color="gray", shade="light")),
        ("tallest blue bar", Wanted("bar", color="blue", superlative="tallest")),
        ("smallest pie slice", Wanted("wedge", superlative="smallest")),
        ("third bar", Wanted("bar", number=3)),
        ("the third bar from the left", Wanted("bar", number=3)),
        ("second bar from the right", Wanted("bar", number=-2)),
        ("second tallest bar", Wanted("bar", superlative="tallest", number=2)),
        ("find the red bar", Wanted("bar", color="red")),
        ("bar 3", Wanted("bar", number=3)),
        ("last bar", Wanted("bar", number=-1)),
        ("bar of Jan", Wanted("bar", name="Jan")),
        ("slice labelled 'North'", Wanted("wedge", name="North")),
        ("bar 2021", Wanted("bar", name="2021")),
        ("Jan bar", Wanted("bar", name="Jan")),
        ('the label "New plan"', Wanted("label", name="New plan")),
        ('"Old plan"', Wanted("text", name="Old plan")),
        ("tick label 40", Wanted("tick label", name="40")),
        ("leftmost marker", Wanted("dot", superlative="leftmost")),
        ("top panel", Wanted("plot", superlative="topmost")),
        ("curve", Wanted("line")),
    ],
)
def test_a_thing_is_parsed(request_: str, wanted: Wanted) -> None:
    [thing] = parse(request_)
    assert thing._replace(words="") == wanted


def test_several_things_share_a_noun_or_have_their_own() -> None:
    assert [(w.noun, w.color) for w in parse("red and blue bars. legend")] == [
        ("bar", "red"),
        ("bar", "blue"),
        ("legend", None),
    ]


@pytest.mark.parametrize(
    "request_",
    [
        "giraffe",
        "red giraffe",
        "the highest point of the red line",
        "",
        "  ",
        "red",
        "bar " * 200,
        "bars above 4",
        "bar over 5",
        "bars with 3",
        "bar next to Bob",
        "bar in the middle",
        "Not red bar",
        "the bar which is tallest",
        "least red bar",
        "most red bar",
        "bar at 5",
    ],
)
def test_words_that_are_not_known_are_refused_with_those_that_are(request_: str) -> None:
    with pytest.raises(ToolError, match=r"bar") as refused:
        parse(request_)
    assert "\n" not in str(refused.value)


def test_an_unknown_word_is_named() -> None:
    with pytest.raises(ToolError, match=r"'giraffe'.*things bar, line, wedge.*colours"):
        parse("giraffe")


# --- things in figures ----------------------------------------------------------------------------


@pytest.mark.parametrize("variety", ["plain", "dark", "gradient", "jpeg", "borderless"])
@pytest.mark.parametrize(("noun", "kind"), [("bar", "bars"), ("slice", "pie"), ("line", "lines")])
def test_things_of_a_colour_are_found_and_no_others(variety: Variety, noun: str, kind: str) -> None:
    item = a_figure_with(kind, variety=variety)
    shape = {"bar": "bar", "slice": "wedge", "line": "line"}[noun]
    [color, *_] = {c for c, _ in shapes(item, shape)}
    wanted = [b for c, b in shapes(item, shape) if c == color]
    boxes = [d.box for d in found(item, f"{color} {noun}s")]
    assert len(boxes) == len(wanted)
    assert all(max(iou(w, b) for b in boxes) > 0.5 for w in wanted)


def test_hatches_do_not_hide_a_bar_and_make_it_less_sure() -> None:
    item = a_figure_with("bars", variety="hatched", first=2010)
    hatched = found(item, "bars")
    wanted = [b for _, b in shapes(item, "bar")]
    hits = [d for d in hatched if max(iou(d.box, w) for w in wanted) > 0.5]
    assert len(hits) == len(hatched) >= 0.6 * len(wanted)
    plain = found(a_figure_with("bars"), "bars")
    assert max(d.score or 0 for d in hatched) < 0.88 < max(d.score or 0 for d in plain)


def test_what_is_not_in_a_figure_is_not_found() -> None:
    item = a_figure_with("bars")
    used = {s.color for p in item.plots for s in p.shapes}
    kinds = {p.kind for p in item.plots}
    for color in set(COLORS) - used:
        assert found(item, f"{color} bar") == []
    if "pie" not in kinds:
        assert found(item, "wedge") == []
    assert found(item, "triangle") == []
    assert found(item, 'bar of "Nowhere"') == []
    assert found(item, "bar 99") == []


def test_legends_are_found_and_where_none_is_no_box_is_made_up() -> None:
    there, right, told = 0, 0, 0
    for index in range(2100, 2112):
        item = figure(index)
        wanted = [p.legend for p in item.plots if p.legend is not None]
        boxes = [d.box for d in found(item, "legend")]
        there, told = there + len(wanted), told + len(boxes)
        right += sum(any(iou(w, b) > 0.5 for b in boxes) for w in wanted)
    assert there >= 4
    assert right == told
    assert right >= 0.9 * there


def test_a_colour_has_one_name_where_it_is_near_two() -> None:
    between = (
        (r, g, b) for r in range(0, 250, 10) for g in range(0, 250, 10) for b in range(0, 250, 10)
    )
    color = next(c for c in between if 0.47 < sorted(name_scores(c).values())[-2] < 0.5)
    paper = Image.new("RGB", (400, 300), "white")
    for n in range(4):
        box = (40 + 90 * n, 120 - 20 * n, 90 + 90 * n, 260)
        ImageDraw.Draw(paper).rectangle(box, fill=color)
    assert len(blind(paper, "bars")) == 4
    names = [name for name in COLOR_NAMES if blind(paper, f"{name} bars")]
    assert len(names) == 1


def legend_with(sides: str, *, entries: int) -> Image.Image:
    """Swatches with something beside them, inside those sides of a frame."""
    paper = Image.new("RGB", (400, 300), "white")
    draw = ImageDraw.Draw(paper)
    bottom = 50 + 24 * entries
    for n, color in enumerate(("#d62728", "#1f77b4")[:entries]):
        draw.rectangle((60, 56 + 24 * n, 90, 66 + 24 * n), fill=color)
        for x in range(102, 160, 8):  # letters
            draw.rectangle((x, 56 + 24 * n, x + 3, 66 + 24 * n), outline="black")
    ends = {"left": (50, 46, 50, bottom), "right": (170, 46, 170, bottom)}
    ends |= {"top": (50, 46, 170, 46), "bottom": (50, bottom, 170, bottom)}
    for side in sides.split():
        draw.line(ends[side], fill="#808080")
    return paper


def test_a_legend_is_sure_where_its_frame_is_whole_and_one_entry_alone_needs_one() -> None:
    [whole] = blind(legend_with("left right top bottom", entries=2), "legend")
    assert iou(whole.box, Box(50, 46, 171, 99)) > 0.95
    [open_] = blind(legend_with("left right bottom", entries=2), "legend")
    assert (open_.score or 0) < 0.7 < (whole.score or 0)
    assert len(blind(legend_with("left right top bottom", entries=1), "legend")) == 1
    assert blind(legend_with("left right bottom", entries=1), "legend") == []


def test_superlatives_choose_by_length_and_by_angle() -> None:
    item = a_figure_with("bars")
    bars = [b for _, b in shapes(item, "bar")]
    [tallest] = found(item, "tallest bar")
    assert iou(tallest.box, max(bars, key=lambda b: b.height)) > 0.5
    [shortest] = found(item, "lowest bar")
    assert iou(shortest.box, min(bars, key=lambda b: b.height)) > 0.5
    picture = pie([60, 200, 100])
    largest = blind(picture, "largest slice")
    assert [d.label for d in largest] == ["largest slice"]
    assert largest[0].box.height > 150


def pie(degrees: list[int]) -> Image.Image:
    paper = Image.new("RGB", (300, 260), "white")
    draw = ImageDraw.Draw(paper)
    at = 0
    colors = ("#d62728", "#1f77b4", "#2ca02c", "#ff7f0e")
    for color, turn in zip(colors, degrees, strict=False):
        draw.pieslice((60, 40, 240, 220), at, at + turn, fill=color, outline="white")
        at += turn
    return paper


def test_a_disc_in_one_piece_is_a_circle_and_no_slice() -> None:
    paper = Image.new("RGB", (300, 260), "white")
    ImageDraw.Draw(paper).ellipse((60, 40, 240, 220), fill="#1f77b4")
    assert blind(paper, "slice") == []
    [circle] = blind(paper, "blue circle")
    assert iou(circle.box, Box(60, 40, 240, 220)) > 0.95


def test_a_rectangle_alone_is_no_bar() -> None:
    paper = Image.new("RGB", (300, 260), "white")
    ImageDraw.Draw(paper).rectangle((80, 60, 180, 200), fill="#d62728")
    assert blind(paper, "bar") == []
    [box] = blind(paper, "red rectangle")
    assert iou(box.box, Box(80, 60, 181, 201)) > 0.95


def test_parts_that_are_stacked_and_bars_that_lie_are_bars() -> None:
    paper = Image.new("RGB", (400, 300), "white")
    draw = ImageDraw.Draw(paper)
    for n, (low, high) in enumerate([(60, 40), (90, 30), (50, 70)]):
        x = 60 + 100 * n
        draw.rectangle((x, 250 - low, x + 50, 249), fill="#1f77b4")
        draw.rectangle((x, 250 - low - high, x + 50, 249 - low), fill="#ff7f0e")
    assert len(blind(paper, "orange bars")) == 3
    lying = paper.transpose(Image.Transpose.ROTATE_270)
    assert len(blind(lying, "blue bars")) == 3
    [longest] = blind(lying, "longest blue bar")
    assert longest.box.width == pytest.approx(90, abs=2)


def test_the_second_largest_is_one_rank_below_the_largest() -> None:
    paper = Image.new("RGB", (400, 300), "white")
    draw = ImageDraw.Draw(paper)
    for n, height in enumerate([60, 160, 100, 30]):
        draw.rectangle((60 + 80 * n, 250 - height, 100 + 80 * n, 249), fill="#1f77b4")
    [second] = blind(paper, "second tallest bar")
    assert second.box.height == pytest.approx(100, abs=2)
    [third] = blind(paper, "third smallest bar")
    assert third.box.height == pytest.approx(100, abs=2)
    [right] = blind(paper, "second bar from the right")
    assert right.box == second.box


def test_of_bars_that_hang_the_lowest_reaches_furthest_down() -> None:
    paper = Image.new("RGB", (400, 300), "white")
    draw = ImageDraw.Draw(paper)
    for n, height in enumerate([90, -120, 60, -30]):
        low, high = sorted((150, 150 - height))
        draw.rectangle((60 + 80 * n, low, 100 + 80 * n, high), fill="#1f77b4")
    [highest] = blind(paper, "highest bar")
    assert highest.box.x0 == pytest.approx(60, abs=2)
    [lowest] = blind(paper, "lowest bar")
    assert lowest.box.x0 == pytest.approx(140, abs=2)


def bars_of(heights: list[int], *, lying: bool = False) -> Image.Image:
    paper = Image.new("RGB", (400, 300), "white")
    for n, height in enumerate(heights):
        low, high = sorted((150, 150 - height))
        ImageDraw.Draw(paper).rectangle((60 + 80 * n, low, 100 + 80 * n, high), fill="#1f77b4")
    return paper.transpose(Image.Transpose.ROTATE_270) if lying else paper


@pytest.mark.parametrize("lying", [False, True])
def test_of_bars_that_hang_the_tallest_ends_highest_above_their_base(lying: bool) -> None:
    paper = bars_of([60, -120, 40, -20], lying=lying)
    order = ("tallest", "second tallest", "second lowest", "lowest")
    found = [blind(paper, f"{which} bar") for which in order]
    bars = sorted(blind(paper, "bars"), key=lambda d: -d.box.y0 if lying else d.box.x0)
    assert [len(f) for f in found] == [1, 1, 1, 1]
    ends = [d.box.x1 if lying else -d.box.y0 for [d] in found[:2]]
    assert ends[0] > ends[1]
    assert max(b.box.height * b.box.width for b in bars) == pytest.approx(
        found[3][0].box.height * found[3][0].box.width
    )
    for which in ("largest", "longest", "smallest", "shortest"):
        with pytest.raises(ToolError, match="2 of these bars go from their base to the negative"):
            blind(paper, f"{which} bar")


def test_the_tallest_of_what_is_no_bar_is_the_highest_box() -> None:
    paper = Image.new("RGB", (400, 300), "white")
    for box in ((20, 20, 60, 200), (100, 210, 320, 290)):
        ImageDraw.Draw(paper).rectangle(box, fill="#1f77b4")
    [tall] = blind(paper, "tallest rectangle")
    assert tall.box.x0 == pytest.approx(20, abs=2)
    [large] = blind(paper, "largest rectangle")
    assert large.box.x0 == pytest.approx(100, abs=2)


def a_pie(explode: list[float], width: float) -> Image.Image:
    made = Figure(figsize=(6, 4))
    canvas = FigureCanvasAgg(made)
    made.add_subplot().pie([40, 25, 20, 15], explode=explode, wedgeprops={"width": width})
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


@pytest.mark.parametrize(("away", "width"), [(0.1, 1.0), (0.1, 0.4), (0.2, 1.0)])
def test_a_slice_that_is_pulled_out_is_one_of_its_pie(away: float, width: float) -> None:
    picture = a_pie([0, 0, 0, away], width)
    assert len(blind(picture, "slices")) == 4
    [smallest] = blind(picture, "smallest slice")
    red = (np.asarray(picture).astype(int) - (214, 39, 40)).__abs__().max(axis=2) < 20
    ys, xs = np.nonzero(red)
    assert iou(smallest.box, Box(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)) > 0.9


def test_a_box_in_two_halves_is_no_pie() -> None:
    paper = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(paper).rectangle((100, 80, 132, 96), fill="#1f77b4")
    ImageDraw.Draw(paper).rectangle((100, 98, 132, 113), fill="#1f77b4")
    assert blind(paper, "slices") == []


def test_slices_of_which_one_is_missing_are_not_compared() -> None:
    picture = a_pie([0, 0.3, 0, 0], 0.4)
    assert len(blind(picture, "slices")) == 3
    assert len(blind(picture, "red slice")) == 1
    for query in ("largest slice", "smallest slice", "second slice"):
        with pytest.raises(ToolError, match="of 360 degrees of this pie were seen as slices"):
            blind(picture, query)


# --- what looks like things and is none -----------------------------------------------------------


@pytest.mark.parametrize("sort", list(SORTS))
def test_what_looks_like_bars_is_none(sort: str) -> None:
    first = list(SORTS).index(sort)
    for index in range(first, first + 5 * len(SORTS), len(SORTS)):
        assert blind(lookalike(index).image, "bar") == [], index


def on_axis(*boxes: tuple[int, int, int, int], axis: bool) -> Image.Image:
    paper = Image.new("RGB", (400, 300), "white")
    for box in boxes:
        ImageDraw.Draw(paper).rectangle(box, fill="#1f77b4")
    if axis:
        ImageDraw.Draw(paper).line((30, 251, 370, 251), fill="black", width=2)
    return paper


def test_as_long_as_each_other_bars_are_bars_on_an_axis_alone() -> None:
    equal = [(60 + 80 * n, 150, 100 + 80 * n, 249) for n in range(4)]
    assert len(blind(on_axis(*equal, axis=True), "bars")) == 4
    assert blind(on_axis(*equal, axis=False), "bars") == []
    two = [(60, 150, 100, 249), (140, 90, 180, 249)]
    assert len(blind(on_axis(*two, axis=True), "bars")) == 2
    assert blind(on_axis(*two, axis=False), "bars") == []


def test_a_bar_as_high_as_its_plot_is_one_among_others_and_bands_are_none() -> None:
    def plot(tops: list[int]) -> Image.Image:
        paper = Image.new("RGB", (460, 320), "white")
        draw = ImageDraw.Draw(paper)
        for n, top in enumerate(tops):
            draw.rectangle((80 + 90 * n, top, 130 + 90 * n, 279), fill="#1f77b4")
        draw.rectangle((50, 20, 430, 280), outline="black")
        return paper

    assert len(blind(plot([21, 120, 80, 160]), "bars")) == 4
    assert blind(plot([21, 21, 21, 21]), "bars") == []
    crossed = plot([21, 21, 21])
    ImageDraw.Draw(crossed).line((50, 90, 430, 200), fill="black", width=3)
    assert blind(crossed, "bars") == []


# --- things by print ------------------------------------------------------------------------------


def test_a_bar_is_found_by_the_label_under_it_and_a_slice_by_the_one_beside_it() -> None:
    items = [figure(index) for index in range(2000, 2040)]
    single = [i for i in items if len(i.plots) == 1 and i.plots[0].legend is None]
    item = next(i for i in single if i.plots[0].kind == "bars")
    ticks = sorted(
        (t for t in item.texts if t.role == "tick" and t.box.y0 > item.plots[0].frame.y1),
        key=lambda t: t.box.x0,
    )
    bars = sorted((b for _, b in shapes(item, "bar")), key=lambda b: b.x0)
    for tick, bar in zip(ticks, bars, strict=True):
        [hit] = found(item, f'bar of "{tick.text}"')
        assert iou(hit.box, bar) > 0.5
    round_ = next(i for i in single if i.plots[0].kind == "pie")
    labels = [t for t in round_.texts if t.role == "label"]
    for label, (_, wedge) in zip(labels, shapes(round_, "wedge"), strict=True):
        [hit] = found(round_, f"slice {label.text}")
        assert iou(hit.box, wedge) > 0.5


def test_print_is_found_by_what_it_is_for() -> None:
    for index in (2001, 2003, 2005, 2008):
        item = figure(index)
        for query, role in (("titles", "title"), ("tick labels", "tick")):
            wanted = [t.box for t in item.texts if t.role == role]
            got = [d.box for d in found(item, query)]
            assert sum(any(iou(w, g) > 0.9 for g in got) for w in wanted) >= 0.9 * len(wanted)
            assert all(any(iou(w, g) > 0.9 for w in wanted) for g in got)


def test_a_slip_of_the_reader_is_forgiven_where_nothing_is_exact() -> None:
    lines = [
        Printed("F0recast", Box(10, 10, 80, 24), 0.9),
        Printed("2019", Box(10, 40, 50, 54), 0.9),
        Printed("Jun", Box(10, 70, 40, 84), 0.9),
    ]
    detector = VocabularyDetector(BackendChoice(), reader=Scripted(lines))
    paper = Image.new("RGB", (200, 100), "white")
    [slip] = detector.detect(paper, 'the label "Forecast"')
    assert slip.box == lines[0].box
    assert (slip.score or 0) < 0.9
    assert detector.detect(paper, '"2018"') == []  # a digit is never forgiven
    assert detector.detect(paper, '"Jan"') == []  # nor a letter of three


@pytest.mark.parametrize(
    ("names", "asked"),
    [
        (("Male", "May", "June"), "Jane"),
        (("Male", "May", "June"), "Mary"),
        (("Male", "May", "June"), "Maya"),
        (("India", "China", "Japan"), "Indie"),
        (("Austria", "Italy", "Spain"), "Australia"),
        (("North", "South", "East"), "Worth"),
    ],
)
def test_another_name_is_no_slip(names: tuple[str, ...], asked: str) -> None:
    paper = Image.new("RGB", (420, 320), "white")
    lines = []
    for n, name in enumerate(names):
        x = 60 + 110 * n
        ImageDraw.Draw(paper).rectangle((x, 180 - 40 * n, x + 60, 279), fill="#1f77b4")
        lines.append(Printed(name, Box(x + 8, 286, x + 52, 300), 1.0))
    detector = VocabularyDetector(BackendChoice(), reader=Scripted(lines))
    assert detector.detect(paper, f'bar of "{asked}"') == []
    [own] = detector.detect(paper, f'bar of "{names[2]}"')
    assert own.box.x0 == pytest.approx(280, abs=2)


@pytest.mark.parametrize(
    ("a", "b", "alike"),
    [("0ld", "old", True), ("modern", "modem", True), ("sa1es", "sales", True),
     ("jane", "june", False), ("2019", "2018", False), ("6", "b", False), ("", "", True)],
)  # fmt: skip
def test_only_letters_that_look_alike_are_taken_for_each_other(a: str, b: str, alike: bool) -> None:
    assert look_alike(a, b) is alike


def test_no_digit_looks_like_another_digit() -> None:
    assert not any(look_alike(a, b) for a in "0123456789" for b in "0123456789" if a != b)


def test_numbers_are_compared_by_their_value() -> None:
    lines = [
        Printed(text, Box(10, 10 + 30 * n, 50, 24 + 30 * n), 0.9)
        for n, text in enumerate(["1.5", "15", "-3", "3", "1,500"])
    ]
    detector = VocabularyDetector(BackendChoice(), reader=Scripted(lines))
    paper = Image.new("RGB", (200, 200), "white")
    for asked, place in (("1.5", 0), ("15", 1), ("-3", 2), ("3", 3), ("1500", 4)):
        assert [d.box for d in detector.detect(paper, f'"{asked}"')] == [lines[place].box]


def labelled_bars() -> tuple[Image.Image, list[Printed]]:
    """Five bars with a column of numbers on their left, names under them and a title."""
    paper = Image.new("RGB", (420, 320), "white")
    draw = ImageDraw.Draw(paper)
    lines = [Printed("Sales", Box(190, 6, 240, 20), 1.0)]
    for n, height in enumerate([90, 150, 60, 240, 180]):
        x = 60 + 70 * n
        draw.rectangle((x, 280 - height, x + 44, 279), fill="#1f77b4")
        lines.append(
            Printed(["Ann", "Bob", "Cid", "Dee", "Eva"][n], Box(x + 8, 286, x + 36, 300), 1.0)
        )
    for value in range(0, 9, 2):
        y = 280 - 30 * value
        lines.append(Printed(str(value), Box(40, y - 7, 50, y + 7), 1.0))
    return paper, lines


def test_neither_a_tick_nor_a_title_names_a_bar_that_stands() -> None:
    paper, lines = labelled_bars()
    detector = VocabularyDetector(BackendChoice(), reader=Scripted(lines))
    [dee] = detector.detect(paper, "bar of Dee")
    assert dee.box.x0 == pytest.approx(270, abs=2)
    for query in ('bar of "2"', "Sales bar", "bar of Sales", "bar -1"):
        assert detector.detect(paper, query) == []


@pytest.mark.parametrize("query", ["largest number", "smallest tick label", "highest text"])
def test_print_is_not_compared_by_size(query: str) -> None:
    paper, lines = labelled_bars()
    detector = VocabularyDetector(BackendChoice(), reader=Scripted(lines))
    with pytest.raises(ToolError, match="neither size nor value"):
        detector.detect(paper, query)


def test_words_inside_a_line_of_print_are_found_at_their_place() -> None:
    lines = [Printed("Sales by region", Box(100, 10, 250, 30), 1.0)]
    detector = VocabularyDetector(BackendChoice(), reader=Scripted(lines))
    [word] = detector.detect(Image.new("RGB", (300, 60), "white"), 'the word "region"')
    assert word.box.x0 == pytest.approx(190, abs=1)
    assert word.box.x1 == pytest.approx(250, abs=1)


def test_print_is_read_only_where_a_request_needs_it_and_once() -> None:
    item = a_figure_with("bars")
    reader = printed(item)
    detector = VocabularyDetector(BackendChoice(), reader=reader)
    detector.detect(item.image, "tallest bar, legend, red bars")
    assert reader.sizes == []
    detector.detect(item.image, "title, tick labels, bar of Jan")
    assert reader.sizes == [item.image.size]


def test_numbers_beside_plots_without_frames_are_ticks_and_what_is_above_is_the_title() -> None:
    column = [(str(n), Box(20, 200 - 40 * k, 40, 212 - 40 * k)) for k, n in enumerate((0, 5, 10))]
    row = [(t, Box(60 + 60 * k, 226, 84 + 60 * k, 238)) for k, t in enumerate(("a1", "b2", "c3"))]
    title = ("Rainfall", Box(100, 80, 160, 94))
    roles = text_roles([*column, *row, title], [])
    assert roles == ["tick"] * 6 + ["title"]


# --- points ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variety", ["plain", "hatched", "jpeg", "dark", "inset"])
def test_a_point_lies_on_its_thing(variety: Variety) -> None:
    item = a_figure_with("pie", variety=variety)
    pointer = VocabularyPointer(BackendChoice(), reader=printed(item))
    kinds = {"bars": "bar", "pie": "wedge", "lines": "line"}
    for kind in {p.kind for p in item.plots} & set(kinds):
        outlines = [s.outline for p in item.plots for s in p.shapes if s.kind == kinds[kind]]
        for told in pointer.point(item.image, kinds[kind]):
            if kind == "lines":
                assert min(off_path(told.point, path) for path in outlines) < 3
            else:
                assert any(within(told.point, outline) for outline in outlines)


def within(p: Point, outline: tuple[Point, ...]) -> bool:
    inside = False
    for a, b in zip(outline, outline[1:] + outline[:1], strict=True):
        if (a.y > p.y) != (b.y > p.y) and p.x < a.x + (p.y - a.y) / (b.y - a.y) * (b.x - a.x):
            inside = not inside
    return inside


def off_path(p: Point, path: tuple[Point, ...]) -> float:
    best = math.inf
    for a, b in pairwise(path):
        dx, dy = b.x - a.x, b.y - a.y
        t = min(1.0, max(0.0, ((p.x - a.x) * dx + (p.y - a.y) * dy) / (dx * dx + dy * dy)))
        best = min(best, math.hypot(p.x - a.x - t * dx, p.y - a.y - t * dy))
    return best


def test_the_point_of_a_wide_slice_is_not_at_the_centre_of_its_box() -> None:
    pointer = VocabularyPointer(BackendChoice(), reader=Scripted([]))
    picture = pie([300, 60])
    [told] = pointer.point(picture, "red slice")
    assert picture.getpixel((int(told.point.x), int(told.point.y))) == (214, 39, 40)
    [other] = pointer.point(picture, "blue wedge")
    assert picture.getpixel((int(other.point.x), int(other.point.y))) == (31, 119, 180)


# --- hostile pictures -----------------------------------------------------------------------------


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("RGB", (1, 1), "white"),
        Image.new("RGB", (1, 2000), "red"),
        Image.new("RGB", (2000, 1), "red"),
        Image.new("RGB", (300, 200), "black"),
        noise(400, 300),
        noise(7, 5),
    ],
    ids=["1x1", "1x2000", "2000x1", "black", "noise", "small noise"],
)
def test_nothing_is_found_where_nothing_is(picture: Image.Image) -> None:
    for query in ("bars", "slices", "lines", "dots", "legend", "triangle", "title"):
        assert blind(picture, query) == []


def test_what_is_not_drawn_on_paper_is_no_chart() -> None:
    cloudy = noise(40, 30).resize((800, 600), Image.Resampling.BICUBIC)
    mosaic = noise(20, 15).resize((800, 600), Image.Resampling.NEAREST)
    for query in ("bars", "slices", "lines", "dots", "legend"):
        assert blind(cloudy, query) == []
        assert blind(mosaic, query) == []


def test_a_picture_of_twelve_million_pixels_is_answered_in_bounded_time() -> None:
    small = noise(800, 600)
    picture = small.resize((4000, 3000), Image.Resampling.BICUBIC)
    began = time.process_time()
    chart_parts(picture)
    assert time.process_time() - began < 10  # two seconds on an idle machine


# --- tools ----------------------------------------------------------------------------------------


class Told(Detector):
    name = "told"

    def __init__(self, found: list[Detected]) -> None:
        super().__init__(BackendChoice())
        self.found = found

    def detect(self, picture: Image.Image, query: str) -> list[Detected]:
        return self.found


class Pointing(Pointer):
    name = "pointing"

    def __init__(self, found: list[Pointed]) -> None:
        super().__init__(BackendChoice())
        self.found = found

    def point(self, picture: Image.Image, description: str) -> list[Pointed]:
        return self.found


def call(tool: Tool, arguments: dict[str, Any]) -> ToolResult:
    store = ImageStore()
    images = {"img_0": store.add(root_view(Image.new("RGB", (200, 100), "white")))}
    [result] = asyncio.run(
        ToolBox([tool], store=store).call_all(
            [ToolCall("c", tool.name, {"image": "img_0", **arguments})],
            images=images,
            frame=lambda ref: Frame.thousand(ref.width, ref.height),
        )
    )
    return result


def test_boxes_come_with_label_and_score_and_a_picture_and_the_rest_is_counted() -> None:
    many = [Detected("bar", Box(n, 0, n + 3, 9), 0.9) for n in range(MOST_BOXES + 4)]
    result = call(detect.with_backends({"detector": Told(many)}), {"query": "bar"})
    boxes = [p for p in result.parts if isinstance(p, BoxFound)]
    assert len(boxes) == MOST_BOXES
    assert (boxes[0].label, boxes[0].score, boxes[0].box) == ("bar", 0.9, Box(0, 0, 3, 9))
    assert any(isinstance(p, Text) and p.text.startswith("4 more were left") for p in result.parts)
    assert isinstance(result.parts[-1], ImageShown)


def test_points_come_with_label_and_score_and_a_picture_and_the_rest_is_counted() -> None:
    many = [Pointed("dot", Point(n, 5), 0.8) for n in range(MOST_POINTS + 1)]
    result = call(point.with_backends({"pointer": Pointing(many)}), {"description": "dots"})
    points = [p for p in result.parts if isinstance(p, PointFound)]
    assert len(points) == MOST_POINTS
    assert (points[3].label, points[3].point) == ("dot", Point(3, 5))
    assert any(isinstance(p, Text) and p.text.startswith("1 more were left") for p in result.parts)
    assert isinstance(result.parts[-1], ImageShown)


def test_where_nothing_is_found_that_is_said_and_no_place_is_made_up() -> None:
    nothing = call(detect.with_backends({"detector": Told([])}), {"query": "red bar"})
    assert nothing.parts == (Text("Nothing was found for 'red bar'."),)
    none = call(point.with_backends({"pointer": Pointing([])}), {"description": "red bar"})
    assert none.parts == (Text("Nothing was found for 'red bar'."),)
    assert not nothing.failed


def test_a_word_that_is_not_known_is_the_models_mistake() -> None:
    detector = VocabularyDetector(BackendChoice(), reader=Scripted([]))
    result = call(detect.with_backends({"detector": detector}), {"query": "giraffe"})
    assert result.failed
    [said] = [p.text for p in result.parts if isinstance(p, Text)]
    assert "'giraffe'" in said
