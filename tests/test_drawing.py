"""Charts are what their geometry says, whoever drew them: `drawing`, or matplotlib."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.font_manager import findfont
from matplotlib.text import Text
from PIL import Image, ImageDraw

import saccade.worlds.drawing as drawing_module
import saccade.worlds.matplotlib_charts as matplotlib_module
from saccade.geometry import Box
from saccade.ink import print_box
from saccade.models.tiny import SETTINGS
from saccade.worlds.chart_data import CHARTS, COLOR_NAMES, ChartSpec, Mark
from saccade.worlds.charts import ChartItem, item
from saccade.worlds.drawing import KEPT_OUT, TRAINED, Color, draw
from saccade.worlds.lessons import label_region

MAX_PIXELS = SETTINGS.max_pixels
OURS = ("train", "test_style")
ALL = (*OURS, "test_unseen")


@pytest.fixture(scope="module")
def unseen() -> list[tuple[ChartItem, matplotlib_module._Sheet]]:
    """Charts by matplotlib with the figures that they were drawn in."""
    sheets = []
    drawn = matplotlib_module._Sheet.drawn

    def recorded(sheet: matplotlib_module._Sheet) -> drawing_module.ChartDrawing:
        sheets.append(sheet)
        return drawn(sheet)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matplotlib_module._Sheet, "drawn", recorded)
        items = [item("test_unseen", k, max_pixels=MAX_PIXELS) for k in range(80)]
    return list(zip(items, sheets, strict=True))  # none was drawn twice


@pytest.fixture(scope="module")
def items(unseen: list[tuple[ChartItem, matplotlib_module._Sheet]]) -> list[ChartItem]:
    ours = [("train", 150), ("test_style", 60)]
    made = [item(s, k, max_pixels=MAX_PIXELS) for s, count in ours for k in range(count)]
    return [*made, *(one for one, _ in unseen)]


def of(items: list[ChartItem], *splits: str) -> list[ChartItem]:
    return [i for i in items if i.id.split("/")[1] in splits]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def whole_pixels(box: Box) -> tuple[int, int, int, int]:
    return int(box.x0), int(box.y0), -int(-box.x1 // 1), -int(-box.y1 // 1)


def shades(one: ChartItem, mark: Mark) -> tuple[Color, ...]:
    """The colours that a mark may have been drawn with."""
    look = KEPT_OUT if "/test_style/" in one.id else TRAINED
    own = look.colors[one.spec.color(mark)]
    if one.spec.chart == "stacked":  # paler, under print
        return tuple((int(r + 255) // 2, (g + 255) // 2, (b + 255) // 2) for r, g, b in own)
    return own


def is_one_of(array: np.ndarray, colors: tuple[Color, ...]) -> np.ndarray:
    """Where pixels (..., 3) have one of the colours."""
    radix = np.array([65536, 256, 1])
    return np.isin(array @ radix, np.array(colors) @ radix)


def kind_of(one: ChartItem) -> str:
    return one.spec.panel if one.spec.chart == "panels" else one.spec.chart


# --- labels ---------------------------------------------------------------------------------------


class NoLabels(ImageDraw.ImageDraw):
    """A pen that leaves out labels: the only text without an anchor."""

    def text(self, *arguments: object, **options: object) -> None:
        if "anchor" in options:
            super().text(*arguments, **options)


@pytest.mark.parametrize("split", OURS)
def test_label_boxes_hold_all_ink_of_their_labels_and_fit_it(
    split: str, items: list[ChartItem], monkeypatch: pytest.MonkeyPatch
) -> None:
    for index, one in enumerate(of(items, split)[:25]):
        with monkeypatch.context() as patch:
            patch.setattr(drawing_module.ImageDraw, "Draw", NoLabels)
            bare = item(split, index, max_pixels=MAX_PIXELS)
        assert bare.drawing.labels == one.drawing.labels
        ink = (pixels(one.drawing.image) != pixels(bare.drawing.image)).any(-1)
        for label in one.drawing.labels.values():
            assert_ink_fills(label, ink)
        assert not ink.any()


def assert_ink_fills(label: Box, ink: np.ndarray) -> None:
    """The label's ink reaches all sides of its box; it is wiped."""
    x0, y0, x1, y1 = whole_pixels(label)
    rows, columns = np.nonzero(ink[y0:y1, x0:x1])
    assert len(rows) > 10
    slack = 2 + 0.22 * label.height  # a font leaves space beside a digit 1
    assert rows.min() <= slack
    assert columns.min() <= slack
    assert (y1 - y0) - rows.max() <= 1 + slack
    assert (x1 - x0) - columns.max() <= 1 + slack
    ink[y0:y1, x0:x1] = False


@pytest.mark.parametrize("split", ALL)
def test_labels_hold_dark_print_from_side_to_side(split: str, items: list[ChartItem]) -> None:
    """What `look` trims to. Of very few labels it takes a part: thin strokes of small fonts fade
    into the ground.
    """
    shares = []
    for one in of(items, split):
        for label in one.drawing.labels.values():
            found = print_box(one.drawing.image.crop(whole_pixels(label)))
            assert found is not None
            shares.append(min(found.height / label.height, found.width / label.width))
    assert np.mean(np.array(shares) < 0.7) < 0.02
    assert np.mean(shares) > 0.85  # boxes end where fonts say, a pixel beyond the strokes


def test_all_marks_and_titles_have_labels_and_nothing_else_has(items: list[ChartItem]) -> None:
    for one in items:
        assert set(one.drawing.marks) == set(one.drawing.extents) == set(one.spec.marks)
        wanted = {*one.spec.marks, *one.spec.title_marks}
        assert set(one.drawing.labels) == set(one.drawing.digit_heights) == wanted


@pytest.mark.parametrize("split", OURS)
def test_a_look_at_a_label_is_trimmed_to_it(split: str, items: list[ChartItem]) -> None:
    """Marks, axes and outlines beside a label are not taken for print."""
    larger = []
    for one in of(items, split):
        width, height = one.drawing.image.size
        for label in one.drawing.labels.values():
            region = label_region(label, width=width, height=height)
            corners = (int(region.x0), int(region.y0), -int(-region.x1), -int(-region.y1))
            found = print_box(one.drawing.image.crop(corners))
            assert found is not None
            larger.append(found.height > 1.5 * label.height + 2)
    assert len(larger) > 300
    assert np.mean(larger) < 0.05  # another label may stand in the margin


def test_labels_overlap_no_other_label_and_no_other_mark(items: list[ChartItem]) -> None:
    for one in items:
        labels, marks = one.drawing.labels, one.drawing.marks
        for mark, label in labels.items():
            assert all(k == mark or label.intersection(b) is None for k, b in labels.items())
            for key, box in marks.items():
                if one.spec.chart == "pie" or (one.spec.chart == "stacked" and key == mark):
                    continue
                common = label.intersection(box)
                assert common is None or common.area < 0.02 * label.area


def test_labels_of_parts_stand_inside_them_and_labels_of_slices_outside_the_pie(
    items: list[ChartItem],
) -> None:
    for one in items:
        marks = one.drawing.marks
        for mark, label in one.drawing.labels.items():
            if one.spec.chart == "stacked":
                common = label.intersection(marks[mark])
                assert common is not None
                assert common.area == pytest.approx(label.area)
            elif one.spec.chart == "pie":
                x, y, radius = circle(one)
                nearest = max(label.x0 - x, x - label.x1, 0), max(label.y0 - y, y - label.y1, 0)
                assert math.hypot(*nearest) > radius - 1


def circle(one: ChartItem) -> tuple[float, float, float]:
    """Centre and radius of a pie, from its arcs and boxes: the first slice starts at the top."""
    total = sum(one.spec.values[0])
    first = one.drawing.extents[Mark(0, 0)]
    radius = first / (2 * math.pi * one.spec.values[0][0] / total)
    boxes = list(one.drawing.marks.values())
    top = min(b.y0 for b in boxes)
    x = boxes[0].x0 if one.spec.values[0][0] / total <= 0.5 else max(b.x1 for b in boxes) - radius
    return x, top + radius, radius


def test_marks_and_labels_lie_in_the_picture(items: list[ChartItem]) -> None:
    for one in items:
        width, height = one.drawing.image.size
        assert 448 <= min(width, height) < max(width, height) + 1 <= 1025
        for box in (*one.drawing.labels.values(), *one.drawing.marks.values()):
            assert 0 <= box.x0 < box.x1 <= width
            assert 0 <= box.y0 < box.y1 <= height


def test_digits_are_as_high_as_is_said(items: list[ChartItem]) -> None:
    for one in items:
        for mark in one.spec.marks:
            told = one.drawing.digit_heights[mark]
            assert one.drawing.labels[mark].height == pytest.approx(told, abs=1 + 0.2 * told)


# --- marks ----------------------------------------------------------------------------------------


def test_marks_hold_their_own_colour(items: list[ChartItem]) -> None:
    for one in of(items, *OURS)[:120]:
        array = pixels(one.drawing.image)
        labels = np.zeros(array.shape[:2], dtype=bool)
        for label in one.drawing.labels.values():
            x0, y0, x1, y1 = whole_pixels(label)
            labels[y0:y1, x0:x1] = True
        for mark, box in one.drawing.marks.items():
            x0, y0, x1, y1 = whole_pixels(box)
            mine = is_one_of(array[y0:y1, x0:x1], shades(one, mark)) | labels[y0:y1, x0:x1]
            if one.spec.chart == "pie":
                middle = slice_middle(one, mark)
                assert is_one_of(array[middle[1], middle[0]], shades(one, mark))
            else:
                assert mine.mean() > (0.8 if kind_of(one) in ("bar", "grouped", "stacked") else 0.5)


def slice_middle(one: ChartItem, mark: Mark) -> tuple[int, int]:
    """The pixel in the middle of a slice, clockwise from the top by the values alone."""
    x, y, radius = circle(one)
    [values] = one.spec.values
    place = mark.place or 0
    turn = 2 * math.pi * (sum(values[:place]) + values[place] / 2) / sum(values)
    return round(x + 0.7 * radius * math.sin(turn)), round(y - 0.7 * radius * math.cos(turn))


def test_marks_of_matplotlib_are_of_one_colour_that_is_no_background(
    items: list[ChartItem],
) -> None:
    for one in of(items, "test_unseen"):
        array = pixels(one.drawing.image)
        for mark, box in one.drawing.marks.items():
            if one.spec.chart == "pie":
                x, y = slice_middle(one, mark)
            elif one.spec.chart == "stacked":
                x, y = int(box.x0 + 4), int(box.center.y)
            else:
                x, y = int(box.center.x), int(box.center.y)
            color = array[y, x]
            assert np.abs(color - array[0, 0]).max() > 8
            around = array[y - 2 : y + 2, x - 2 : x + 2].reshape(-1, 3)
            assert (around == color).all() or min(box.width, box.height) < 8
            outside = array[max(0, int(box.y0) - 3), x]  # a pixel or two above it
            if one.spec.chart not in ("pie", "stacked", "grouped"):
                assert (outside != color).any()


def test_sizes_are_proportional_to_values(items: list[ChartItem]) -> None:
    """Heights of bars and of points above the axis, lengths of parts, arcs of slices."""
    for one in items:
        together = [one.spec.marks]
        if one.spec.chart == "panels":
            together = [
                [m for m in one.spec.marks if m.part == p] for p in range(len(one.spec.values))
            ]
        is_shifted = "/test_unseen/" in one.id and kind_of(one) in ("line", "scatter")
        for marks in together:
            values = np.array([one.spec.value(m) for m in marks], float)
            sizes = np.array([one.drawing.extents[m] for m in marks])
            assert (sizes > 0).all()
            if len(set(values)) < 2:
                assert np.ptp(sizes) < 1e-6
                continue
            slope, at_zero = np.polyfit(values, sizes, 1)
            assert slope > 0
            np.testing.assert_allclose(slope * values + at_zero, sizes, atol=1e-6)
            assert is_shifted or at_zero == pytest.approx(0, abs=1e-6)


def test_boxes_of_marks_have_the_sizes_that_are_told(items: list[ChartItem]) -> None:
    for one in items:
        marks = one.drawing.marks
        for mark, box in marks.items():
            if kind_of(one) in ("bar", "grouped", "stacked"):
                assert box.height == pytest.approx(one.drawing.extents[mark])
            elif one.spec.chart != "pie":
                assert box.width == pytest.approx(box.height)
        for part in range(len(one.spec.values)):
            boxes = [marks[m] for m in one.spec.marks if m.part == part]
            if kind_of(one) in ("bar", "grouped"):
                assert np.ptp([b.y1 for b in boxes]) < 1e-6
            elif one.spec.chart == "stacked":
                for below, above in pairwise(boxes):
                    assert above.y1 == pytest.approx(below.y0)


def test_tops_of_bars_are_where_their_colour_begins(items: list[ChartItem]) -> None:
    for one in of(items, *OURS):
        if one.spec.chart not in ("bar", "grouped"):
            continue
        array = pixels(one.drawing.image)
        for mark, box in one.drawing.marks.items():
            column = is_one_of(array[:, round(box.center.x)], shades(one, mark))
            assert abs(np.flatnonzero(column).min() - box.y0) <= 2  # one of it is the outline


def test_marks_stand_in_the_order_of_their_names(items: list[ChartItem]) -> None:
    for one in items:
        for boxes in (one.drawing.marks, one.drawing.labels):
            centers = [[boxes[m].center for m in one.spec.marks if m.part == p] for p in parts(one)]
            if one.spec.chart == "stacked":  # from the bottom, and columns from the left
                assert all(np.all(np.diff([c.y for c in column]) < 0) for column in centers)
                centers = [[column[0] for column in centers]]
            if one.spec.chart == "pie":
                if boxes is one.drawing.labels:
                    x, y, _ = circle(one)
                    turns = [math.atan2(c.x - x, y - c.y) % (2 * math.pi) for c in centers[0]]
                    assert turns == sorted(turns)
                continue
            for marks in centers:
                assert np.all(np.diff([c.x for c in marks]) > 0)
        if one.spec.chart == "grouped":
            assert np.all(np.diff([one.drawing.marks[m].x0 for m in one.spec.marks]) > 0)


def parts(one: ChartItem) -> range:
    return range(len(one.spec.values))


def test_panels_stand_in_reading_order_each_below_its_title(items: list[ChartItem]) -> None:
    checked = Counter()
    for one in (i for i in items if i.spec.chart == "panels"):
        labels = one.drawing.labels
        titles = [labels[Mark(p)] for p in parts(one)]
        for before, after in pairwise(titles):
            is_beside = abs(before.center.y - after.center.y) < before.height
            is_below = after.y0 > before.y1
            assert is_beside != is_below
            assert is_below or before.x1 < after.x0
            checked[is_below] += 1
        hulls = [hull(one, part) for part in parts(one)]
        for number, here in enumerate(hulls):
            assert here.y0 == titles[number].y0
            assert all(here.intersection(other) is None for other in hulls[:number])
    assert min(checked.values()) > 5


def hull(one: ChartItem, part: int) -> Box:
    """Around all that is drawn of a panel."""
    drawn = [*one.drawing.labels.items(), *one.drawing.marks.items()]
    boxes = [b for m, b in drawn if m.part == part]
    low = [min(b.as_tuple()[k] for b in boxes) for k in (0, 1)]
    return Box(*low, *(max(b.as_tuple()[k] for b in boxes) for k in (2, 3)))


def test_a_drawing_can_be_made_of_any_data() -> None:
    crowded = ChartSpec("line", ((10, 99) * 5,), (COLOR_NAMES,))
    steep = ChartSpec("bar", ((10, 99, 10),), (("red", "blue", "gray"),))
    equal = ChartSpec("grouped", ((50, 50), (50, 50)), (("red", "blue"),) * 2)
    for spec in (crowded, steep, equal):
        drawing = draw(spec, np.random.default_rng(1), max_pixels=MAX_PIXELS)
        assert list(drawing.labels) == spec.marks


# --- matplotlib -----------------------------------------------------------------------------------


def test_matplotlib_draws_every_kind_in_every_sheet_and_font(
    unseen: list[tuple[ChartItem, matplotlib_module._Sheet]],
) -> None:
    assert {one.spec.chart for one, _ in unseen} == set(CHARTS)
    assert {sheet.style.sheet for _, sheet in unseen} == set(matplotlib_module.SHEETS)
    families = {sheet.style.family for _, sheet in unseen}
    assert families == set(matplotlib_module._FONTS)
    for _, sheet in unseen:
        texts = sheet.figure.findobj(Text)
        assert len(texts) > 3
        assert all(t.get_fontfamily() == [sheet.style.family] for t in texts)
    for family, file in matplotlib_module._FONTS.items():
        assert Path(findfont(family, fallback_to_default=False)).name == file


def test_labels_of_matplotlib_say_what_the_data_say(
    unseen: list[tuple[ChartItem, matplotlib_module._Sheet]],
) -> None:
    for one, sheet in unseen:
        assert {m: t.get_text() for m, t in sheet.texts.items()} == {
            m: one.spec.printed(m) for m in one.drawing.labels
        }


def test_no_line_of_matplotlib_runs_through_a_label(items: list[ChartItem]) -> None:
    """Above and below its ink, the ground is plain."""
    lines = [i for i in of(items, "test_unseen") if kind_of(i) == "line"]
    assert len(lines) > 5
    for one in lines:
        array = pixels(one.drawing.image)
        for mark in one.spec.marks:
            x0, y0, x1, y1 = whole_pixels(one.drawing.labels[mark])
            for row in (y0 - 1, y1):
                assert (array[row, x0:x1] == array[y0 - 1, x0]).all()


def test_matplotlib_draws_the_same_whatever_its_settings_are(items: list[ChartItem]) -> None:
    one = of(items, "test_unseen")[4]
    before = dict(matplotlib.rcParams)
    changed = {"font.family": ["cmr10"], "axes.facecolor": "red", "figure.dpi": 30}
    with matplotlib.rc_context({**changed, "lines.linewidth": 9, "text.antialiased": False}):
        during = dict(matplotlib.rcParams)
        again = item("test_unseen", 4, max_pixels=MAX_PIXELS)
        assert dict(matplotlib.rcParams) == during
    assert again.drawing.image.tobytes() == one.drawing.image.tobytes()
    assert again.drawing.labels == one.drawing.labels
    assert dict(matplotlib.rcParams) == before


def test_labels_that_are_in_the_way_are_drawn_again_smaller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def clear_at_third(spec: ChartSpec, drawing: drawing_module.ChartDrawing) -> bool:
        seen.append(max(drawing.digit_heights.values()))
        return len(seen) == 3

    monkeypatch.setattr(matplotlib_module, "_is_clear", clear_at_third)
    spec = ChartSpec("pie", ((20, 30),), (("red", "blue"),))
    matplotlib_module.draw(spec, np.random.default_rng(0), max_pixels=12_544)
    assert len(seen) == 3
    assert seen[0] > seen[1] > seen[2]


def test_what_is_in_the_way_is_seen(items: list[ChartItem]) -> None:
    one = next(i for i in of(items, "test_unseen") if i.spec.chart == "bar")
    is_clear = matplotlib_module._is_clear
    assert is_clear(one.spec, one.drawing)
    first, second = one.spec.marks[:2]
    labels = one.drawing.labels
    for place in (labels[second], one.drawing.marks[second], Box(0, 5, 9, 9)):
        moved = dict(labels) | {first: place}
        assert not is_clear(one.spec, replace(one.drawing, labels=moved))
