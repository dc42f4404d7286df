"""read_axis: values of places and places of values, on axes that are known."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from saccade.backends import Printed
from saccade.errors import ToolError
from saccade.geometry import Box, Point
from saccade.images import ImageView, root_view
from saccade.tools.read_axis import read_axis
from saccade.types import PointFound
from saccade.vision.axes import Scale, find_scales, number_of
from saccade.vision.plots import find_plots, scales_at
from saccade.worlds.chart_figures import chart_figure
from saccade.worlds.figures import AxisScale, FigureItem, Variety, figure
from scripted_reader import Scripted, printed

WHITE = Image.new("RGB", (400, 300), "white")


def column(
    values: list[str], *, right: float = 50, top: float = 40, step: float = 40
) -> list[tuple[str, Box]]:
    """Numbers above each other, their middles `step` apart from `top` on."""
    return [
        (text, Box(right - 8 * len(text), top + n * step - 6, right, top + n * step + 6))
        for n, text in enumerate(values)
    ]


def values_at(item: FigureItem, place: Point) -> dict[str, float]:
    lines = [(t.text, t.box) for t in item.texts]
    at = {"x": place.x, "y": place.y}
    return {s.side: s.value_at(at[s.side]) for s in read(item.image, lines, place)}


def read(picture: Image.Image, lines: list[tuple[str, Box]], place: Point) -> list[Scale]:
    return scales_at(find_scales(picture, lines), find_plots(picture, lines), place)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("40", 40), ("-3.5", -3.5), ("−2", -2), ("1,200", 1200), ("80%", 80), ("$5k", 5000),
        ("2.5M", 2.5e6), ("+7", 7), (".5", 0.5), ("60 -", 60), ("70-", 70),
        ("Jan", None), ("2020-21", None), ("1,20", None), ("-", None), ("", None), ("12:30", None),
        ("1 000 000 of", None),
    ],
)  # fmt: skip
def test_numbers_as_axes_print_them(text: str, value: float | None) -> None:
    assert number_of(text) == value


@pytest.mark.parametrize("variety", ["plain", "dark", "jpeg", "borderless", "inset"])
def test_places_in_figures_are_read_within_a_hundredth_of_the_axis(variety: Variety) -> None:
    count = 0
    for item in (figure(n, variety=variety) for n in range(300, 304)):
        for plot in item.plots:
            axes: list[tuple[str, AxisScale | None]] = [("x", plot.x_axis), ("y", plot.y_axis)]
            for side, axis in axes:
                if axis is None or plot.is_inset:
                    continue
                at = axis.pixels[0] + 0.3 * (axis.pixels[1] - axis.pixels[0])
                middle = plot.frame.center
                place = Point(at, middle.y) if side == "x" else Point(middle.x, at)
                value = values_at(item, place)[side]
                assert abs(value - axis.value_at(at)) < 0.01 * axis.range, (side, plot.title)
                count += 1
    assert count >= 4


def test_places_in_charts_are_read_though_a_digit_is_not() -> None:
    """Of the numbers of an axis those of one digit are not read."""
    count = 0
    for item in map(chart_figure, range(30)):
        lines = [(t.text, t.box) for t in item.texts if len(t.text) > 1]
        for plot in item.plots:
            if plot.y_axis is None:
                continue
            low, high = plot.y_axis.pixels
            place = Point(plot.frame.center.x, low + 0.4 * (high - low))
            found = [s for s in read(item.image, lines, place) if s.side == "y"]
            for scale in found:
                off = scale.value_at(place.y) - plot.y_axis.value_at(place.y)
                assert abs(off) < 0.015 * plot.y_axis.range
                count += 1
    assert count >= 10


def test_what_does_not_fit_the_others_is_left_out() -> None:
    lines = column(["100", "8O", "60", "49", "20", "0"])  # 80 and 40, misread
    [scale] = find_scales(WHITE, lines)
    assert [value for _, value in scale.ticks] == [100, 60, 20, 0]
    assert scale.value_at(40 + 3 * 40) == pytest.approx(40, abs=0.5)
    assert scale.pixel_at(40) == pytest.approx(160, abs=0.5)


def test_numbers_that_form_no_scale_are_none() -> None:
    assert find_scales(WHITE, column(["7", "31", "12", "88"])) == []
    assert find_scales(WHITE, column(["100", "50"])) == []
    fitting_by_chance = [*column(["1", "2"], step=14), *column(["20"], top=40 + 19 * 14)]
    assert find_scales(WHITE, fitting_by_chance) == []


def test_two_numbers_are_a_scale_only_where_print_stands_a_step_further() -> None:
    lines = column(["50", "25"], top=60, step=80)
    assert find_scales(WHITE, lines) == []
    picture = WHITE.copy()
    ImageDraw.Draw(picture).rectangle((43, 215, 48, 224), fill="black")  # a nought
    [scale] = find_scales(picture, lines)
    assert scale.value_at(220) == pytest.approx(0, abs=0.2)
    odd = column(["53", "62"], top=60, step=80)
    assert find_scales(picture, odd) == []


def test_axes_of_plots_above_each_other_are_apart() -> None:
    lines = [*column(["20", "10", "0"], step=30), *column(["4", "2", "0"], top=180, step=30)]
    scales = sorted(find_scales(WHITE, lines), key=lambda s: s.box.y0)
    assert [[v for _, v in s.ticks] for s in scales] == [[20, 10, 0], [4, 2, 0]]


def test_decades_are_a_logarithmic_axis_and_other_numbers_are_not() -> None:
    [scale] = find_scales(WHITE, column(["1000", "100", "10", "1"]))
    assert scale.is_log
    assert scale.value_at(60) == pytest.approx(10**2.5, rel=1e-6)
    with pytest.raises(ValueError, match="has no 0"):
        scale.pixel_at(0)
    assert find_scales(WHITE, column(["27", "9", "3"])) == []


def test_an_axis_that_is_neither_linear_nor_logarithmic_is_none() -> None:
    """Symlog: ends and middle lie on a line, and everything between lies beside it."""
    values = ["-1000", "-100", "-10", "0", "10", "100", "1000"]
    assert find_scales(Image.new("RGB", (200, 400), "white"), column(values, step=45)) == []


def test_numbers_in_the_cells_of_a_plot_are_no_axis_of_it() -> None:
    picture = Image.new("RGB", (500, 400), "white")
    ImageDraw.Draw(picture).rectangle((60, 40, 460, 360), outline="black")
    cells = []
    for n in range(9):
        x, y = 130 + 100 * (n % 3), 90 + 80 * (n // 3)
        cells.append((str(10 * n + 20), Box(x, y, x + 24, y + 14)))
    assert find_scales(picture, cells) != []
    assert read(picture, cells, Point(250, 200)) == []


def test_the_ticks_of_neighbouring_plots_make_no_axis_of_the_one_between() -> None:
    picture = Image.new("RGB", (1000, 300), "white")
    draw = ImageDraw.Draw(picture)
    lines: list[tuple[str, Box]] = []
    for place in range(3):
        x = 60 + 330 * place
        draw.rectangle((x, 40, x + 240, 260), outline="black")
        for n in range(3):  # their numbers stand beside each other: 5, 10, 15 in the middle
            y = 60 + 90 * n
            text = str(5 + 5 * place) if n == 1 else str(7 * place + 3 * (2 - n))
            lines.append((text, Box(x - 28, y - 7, x - 8, y + 7)))
            draw.text((x - 28, y - 7), text, fill="black")
    assert [s for s in find_scales(picture, lines) if s.side == "x"]
    assert [s.side for s in read(picture, lines, Point(510, 100)) if s.side == "x"] == []


def test_marks_say_the_places_of_ticks_better_than_print() -> None:
    lines = [(t, b.moved(0, 2)) for t, b in column(["30", "20", "10", "0"])]  # print a little low
    picture = WHITE.copy()
    pen = ImageDraw.Draw(picture)
    pen.line((60, 20, 60, 180), fill="black")
    for n in range(4):
        pen.line((55, 40 + 40 * n, 60, 40 + 40 * n), fill="black")
    [scale] = find_scales(picture, lines)
    assert scale.pixel_at(0) == pytest.approx(160.5, abs=0.2)
    [without] = find_scales(WHITE, lines)
    assert without.pixel_at(0) == pytest.approx(162, abs=0.2)


@pytest.mark.parametrize(
    ("once", "value"), [("1e6", 15e6), ("1e-3", 0.015), ("+2e3", 2015.0), ("1e2+5e3", 6500.0)]
)
def test_what_is_printed_once_for_an_axis_counts(once: str, value: float) -> None:
    lines = [*column(["20", "10", "0"]), (once, Box(40, 8, 70, 20))]
    [scale] = find_scales(WHITE, lines)
    assert scale.value_at(60) == pytest.approx(value)
    assert scale.pixel_at(value) == pytest.approx(60)
    far = [*column(["20", "10", "0"]), (once, Box(240, 8, 270, 20))]
    assert find_scales(WHITE, far)[0].value_at(60) == pytest.approx(15)


# --- the tool -------------------------------------------------------------------------------------


def a_figure_of_lines() -> FigureItem:
    return next(
        i for i in map(figure, range(80)) if len(i.plots) == 1 and i.plots[0].kind == "lines"
    )


def call(item: FigureItem, **arguments: Any) -> list[Any]:
    tool = read_axis.with_backends({"reader": printed(item)})
    told: list[Any] = tool(root_view(item.image), **arguments)
    return told


def test_values_come_with_what_a_pixel_is_and_lines_to_the_axes() -> None:
    item = a_figure_of_lines()
    [plot] = item.plots
    assert plot.x_axis is not None
    assert plot.y_axis is not None
    place = plot.frame.center
    text, picture = call(item, point=place)
    match = re.fullmatch(
        r"x = (\S+) \(one pixel is (\S+); \d+ ticks from .*\); y = (\S+) \(one pixel is .*\)\.",
        text,
    )
    assert match is not None, text
    assert float(match[1]) == pytest.approx(
        plot.x_axis.value_at(place.x), abs=0.01 * plot.x_axis.range
    )
    assert float(match[3]) == pytest.approx(
        plot.y_axis.value_at(place.y), abs=0.01 * plot.y_axis.range
    )
    assert float(match[2]) == pytest.approx(plot.x_axis.range / plot.frame.width, rel=0.05)
    assert isinstance(picture, ImageView)
    changed = np.any(np.asarray(picture.pixels) != np.asarray(item.image), axis=2)
    assert changed[round(place.y), round(plot.frame.x0) - 2]
    assert changed[round(plot.frame.y1) + 2, round(place.x)]


def test_of_two_axes_both_are_told() -> None:
    left = column(["20", "10", "0"])
    right = [(t, b.moved(300, 0)) for t, b in column(["4", "3", "2"])]
    reader = Scripted([Printed(text, box, 1.0) for text, box in (*left, *right)])
    tool = read_axis.with_backends({"reader": reader})
    text, _ = tool(root_view(WHITE), point=Point(200, 80))
    assert text.startswith("y of the left axis = 10.0 (")
    assert "y of the right axis = 3.0" in text
    found, _ = tool(root_view(WHITE), point=Point(200, 80), y=20.0)
    assert found.point.y == pytest.approx(40, abs=0.5)


def test_the_place_of_values_keeps_the_other_coordinate() -> None:
    item = a_figure_of_lines()
    [plot] = item.plots
    assert plot.x_axis is not None
    assert plot.y_axis is not None
    place = plot.frame.center
    value = plot.y_axis.value_at(plot.frame.y0 + 0.25 * plot.frame.height)
    found, _ = call(item, point=place, y=value)
    assert isinstance(found, PointFound)
    assert found.point.x == place.x
    assert found.point.y == pytest.approx(plot.frame.y0 + 0.25 * plot.frame.height, abs=2)
    across = plot.x_axis.value_at(plot.frame.x0 + 0.8 * plot.frame.width)
    both, _ = call(item, point=place, x=across, y=value)
    assert isinstance(both, PointFound)
    assert both.point.x == pytest.approx(plot.frame.x0 + 0.8 * plot.frame.width, abs=2)
    assert both.point.y == found.point.y


def test_an_axis_that_was_not_read_is_named() -> None:
    """The vertical axis prints powers, as 10^3, which are read as 103."""
    row = [(str(10 * n), Box(80 + 90 * n, 270, 96 + 90 * n, 284)) for n in range(4)]
    powers = column(["103", "102", "101"])
    reader = Scripted([Printed(text, box, 1.0) for text, box in (*row, *powers[:2])])
    text, _ = read_axis.with_backends({"reader": reader})(root_view(WHITE), point=Point(200, 80))
    assert text.startswith("x = ")
    assert " The y axis was not read: it has fewer than three numbers that agree" in text


def test_ends_are_told_with_the_digits_that_tell_them_apart() -> None:
    reader = Scripted(
        [Printed(t, b, 1.0) for t, b in column(["100000.4", "100000.3", "100000.2", "100000.1"])]
    )
    tool = read_axis.with_backends({"reader": reader})
    text, _ = tool(root_view(WHITE), point=Point(200, 80))
    assert "4 ticks from 100000.1 to 100000.4)" in text
    assert text.startswith("y = 100000.3")
    found, _ = tool(root_view(WHITE), point=Point(200, 80), y=100000.25)
    assert found.label == "y = 100000.25"
    with pytest.raises(ToolError, match=r"y = 100009.5 lies .* from 99999\.\d+ to 100000\.\d+\."):
        tool(root_view(WHITE), point=Point(200, 80), y=100009.5)


def test_no_value_is_made_up() -> None:
    tool = read_axis.with_backends({"reader": Scripted([])})
    with pytest.raises(ToolError, match=r"No axis with three numbers or more .* \(10, 20\)"):
        tool(root_view(WHITE), point=Point(10, 20))
    upright = [Printed(text, box, 1.0) for text, box in column(["20", "10", "0"])]
    tool = read_axis.with_backends({"reader": Scripted(upright)})
    with pytest.raises(ToolError, match=r"x = 3 has no place here\. The x axis was not read"):
        tool(root_view(WHITE), point=Point(200, 80), x=3.0)
    with pytest.raises(ToolError, match="y = 900 lies outside the image, whose y axis goes from"):
        tool(root_view(WHITE), point=Point(200, 80), y=900.0)
