"""One plot of a figure: by its place, by a box, or not at all."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw

from saccade.backends import Printed
from saccade.benches.found import bench_found
from saccade.errors import ToolError
from saccade.geometry import Box, iou
from saccade.images import ImageView, root_view
from saccade.tools import zoom_subplot
from saccade.worlds.chart_figures import chart_figure
from saccade.worlds.figures import FigureItem, PlotKind, PlotPart, Variety, figure
from scripted_reader import Scripted, printed


def framed(rows: int, columns: int) -> FigureItem:
    """The first figure of that grid whose plots all have frames."""
    for index in range(400):
        made = figure(index)
        kinds = {p.kind for p in made.plots}
        if (made.rows, made.columns) == (rows, columns) and "pie" not in kinds:
            return made
    raise AssertionError("no such figure")


GRID = framed(2, 2)


def zoomed(item: FigureItem, where: str | None = None, box: Box | None = None) -> Box:
    """What is cut out of a figure whose print is read without mistakes."""
    tool = zoom_subplot.with_backends({"reader": printed(item)})
    return shown(tool(root_view(item.image), where=where, box=box))


def shown(told: list[ImageView | str]) -> Box:
    *_, view = told
    assert isinstance(view, ImageView)
    ((_, polygon),) = view.ref.to_roots()
    bounds: Box = polygon.bounds
    return bounds


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("top left", 0),
        ("the upper right plot", 1),
        ("bottom left", 2),
        ("lower right", 3),
        ("row 2, column 1", 2),
        ("row 1 col 2", 1),
        ("3", 2),
        ("subplot 4", 3),
        ("the second plot", 1),
        ("second row, first column", 2),
        ("1st row 2nd column", 1),
        ("last row, last column", 3),
        ("the last plot", 3),
    ],
)
def test_a_plot_is_named_by_its_place(words: str, number: int) -> None:
    region = zoomed(GRID, where=words)
    wanted = GRID.plots[number]
    for plot in GRID.plots:
        common = region.intersection(plot.frame)
        if plot is wanted:
            assert common is not None
            assert common.area > 0.98 * plot.frame.area
        else:
            assert common is None


@pytest.mark.parametrize(
    "words",
    ["not the first", "anything but row 1 column 1", "second last", "second row", "third row",
     "row 3 column 1", "column 2", "no plot"],
)  # fmt: skip
def test_words_that_name_no_plot_or_several_cut_nothing(words: str) -> None:
    with pytest.raises(ToolError, match=r"plots in 2 rows of 2 and 2"):
        zoomed(GRID, where=words)


def test_no_digit_of_a_title_is_forgiven() -> None:
    lines = [Printed(t.text, t.box, 1.0) for t in GRID.texts if t.role != "title"]
    titles = [t for t in GRID.texts if t.role == "title"]
    years = [Printed(f"Sales {2019 + n}", t.box, 1.0) for n, t in enumerate(titles)]
    tool = zoom_subplot.with_backends({"reader": Scripted(lines + years)})
    assert shown(tool(root_view(GRID.image), where="sales 2020")) == zoomed(GRID, where="2")
    assert shown(tool(root_view(GRID.image), where="Sale 2020")) == zoomed(GRID, where="2")
    with pytest.raises(ToolError):
        tool(root_view(GRID.image), where="Sales 2010")


def test_a_plot_is_cut_with_all_that_is_printed_around_it() -> None:
    for number, plot in enumerate(GRID.plots, start=1):
        region = zoomed(GRID, where=str(number))
        near = plot.frame.expand(2)
        titles = [t for t in GRID.texts if t.role == "title" and t.text == plot.title]
        ticks = [
            t
            for t in GRID.texts
            if t.role == "tick"
            and 0 <= plot.frame.x0 - t.box.x1 < 20
            and near.y0 <= t.box.center.y <= near.y1
        ]
        assert titles
        assert ticks
        for text in (*titles, *ticks):
            common = region.intersection(text.box)
            assert common is not None
            assert common.area > 0.9 * text.box.area, text


def test_a_box_means_the_frame_that_it_covers_most_of() -> None:
    frame = GRID.plots[3].frame
    loose = Box(frame.x0 - 30, frame.y0 + 20, frame.x1 - 20, frame.y1)
    assert zoomed(GRID, box=loose) == zoomed(GRID, where="4")


def test_a_box_in_a_picture_without_plots_is_cut_as_it_is() -> None:
    tool = zoom_subplot.with_backends({"reader": Scripted([])})
    view = root_view(Image.new("RGB", (200, 160), "white"))
    box = Box(20, 30, 120, 140)
    assert shown(tool(view, box=box)) == box
    with pytest.raises(ToolError, match="No plots could be told apart in this image"):
        tool(view, where="top left")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("top", "2 plots are at 'top': there are 4 plots in 2 rows of 2 and 2, titled 1 '.*', 2 '"),
        ("row 3 column 1", "No plot is at 'row 3 column 1'"),
        ("9", "No plot is at '9'"),
        ("the one about whales", "No plot is at .*say its title, its number, or row and column"),
    ],
)
def test_what_names_no_plot_or_several_is_told_with_what_there_is(words: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        zoomed(GRID, where=words)


def test_place_or_box_but_not_both() -> None:
    with pytest.raises(ToolError, match="either where or box"):
        zoomed(GRID)
    with pytest.raises(ToolError, match="either where or box"):
        zoomed(GRID, where="1", box=Box(0, 0, 50, 50))


FRAMED: set[PlotKind] = {"bars", "lines", "scatter"}


def marks(plot: PlotPart) -> Box:
    boxes = [s.box for s in plot.shapes]
    return Box(
        min(b.x0 for b in boxes),
        min(b.y0 for b in boxes),
        max(b.x1 for b in boxes),
        max(b.y1 for b in boxes),
    )


def a_grid_with(kind: PlotKind, variety: Variety = "plain") -> FigureItem:
    items = (figure(index, variety=variety) for index in range(60))
    return next(i for i in items if i.rows > 1 and any(p.kind == kind for p in i.plots))


@pytest.mark.parametrize(
    "item",
    [
        GRID,
        a_grid_with("pie"),
        a_grid_with("bars", "borderless"),
        a_grid_with("lines", "dark"),
        next(i for i in map(chart_figure, range(40)) if len(i.plots) > 2),
    ],
    ids=["framed", "pies", "borderless", "dark", "charts"],
)
def test_a_plot_is_named_by_its_title_with_or_without_a_frame(item: FigureItem) -> None:
    for plot in item.plots:
        region = zoomed(item, where=plot.title)
        for other in item.plots:
            common = region.intersection(marks(other))
            share = 0.0 if common is None else common.area / marks(other).area
            assert share > 0.95 if other is plot else share < 0.05, (plot.title, other.title)
        [title] = [t for t in item.texts if t.text == plot.title and t.role == "title"]
        held = region.intersection(title.box)
        assert held is not None
        assert held.area > 0.8 * title.box.area


def a_grid_titled(titles: list[str], rows: int, columns: int) -> tuple[Image.Image, list[Printed]]:
    """Frames with bars in them and a title over each."""
    picture = Image.new("RGB", (60 + 220 * columns, 60 + 200 * rows), "white")
    draw, lines = ImageDraw.Draw(picture), []
    for n, title in enumerate(titles):
        x, y = 40 + 220 * (n % columns), 50 + 200 * (n // columns)
        draw.rectangle((x, y, x + 170, y + 130), outline="black")
        for k in range(3):
            draw.rectangle(
                (x + 20 + 50 * k, y + 90 - 20 * k, x + 50 + 50 * k, y + 129), fill="blue"
            )
        half = 4 * len(title)
        box = Box(x + 85 - half, y - 22, x + 85 + half, y - 8)
        draw.rectangle((box.x0, box.y0 + 2, box.x1 - 1, box.y1 - 2), fill="gray")
        lines.append(Printed(title, box, 1.0))
    return picture, lines


def cut(titles: list[str], where: str, *, rows: int, columns: int) -> tuple[int, list[str]]:
    """Which of a grid of plots is cut, from 0, and what is said with it."""
    picture, lines = a_grid_titled(titles, rows, columns)
    tool = zoom_subplot.with_backends({"reader": Scripted(lines)})
    told = tool(root_view(picture), where=where)
    middle = shown(told).center
    number = int((middle.y - 20) // 200) * columns + int((middle.x - 20) // 220)
    return number, [t for t in told if isinstance(t, str)]


SIX = ["A", "B", "C", "D", "E", "F"]


@pytest.mark.parametrize(
    "words",
    [
        "upper right corner of Panel D", "corner of Panel D, top right", "top right or bottom left",
        "Panel B (top left one)", "the one above the bottom left", "2 or 3",
        "subplot left of the top right one",
        "top or bottom right", "top/bottom left", "left of the top row", "Panel A, top right",
        "middle row", "the right part of the top left",
    ],
)  # fmt: skip
def test_no_place_is_taken_out_of_words_that_are_not_all_understood(words: str) -> None:
    with pytest.raises(ToolError, match=r"6 plots in 2 rows of 3 and 3, titled 1 'A'"):
        cut(SIX, words, rows=2, columns=3)


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("D", 3), ("upper right corner of the figure", 2), ("the bottom-left one", 3),
        ("bottom middle", 4), ("second plot in the bottom row", 4), ("top row, column 3", 2),
        ("center column, last row", 4), ("panel #6", 5),
    ],
)  # fmt: skip
def test_a_place_is_said_in_several_ways(words: str, number: int) -> None:
    assert cut(SIX, words, rows=2, columns=3) == (number, [])


def test_a_title_that_is_another_plots_place_names_none() -> None:
    titles = ["Left", "Top right", "3", "Rest"]
    assert cut(titles, "rest", rows=2, columns=2) == (3, [])
    assert cut(titles, "3", rows=2, columns=2) == (2, [])
    with pytest.raises(ToolError, match="One plot is titled so and another one is at 'left'"):
        cut(["Sun", "Left"], "left", rows=1, columns=2)


@pytest.mark.parametrize(
    ("titles", "words"),
    [
        (["Group A", "North"], "Group B"),
        (["Group A", "North"], "Group"),
        (["North", "South"], "Nouth"),
        (["Jane", "Total sales"], "June"),
        (["Model one", "Model two"], "Model onr"),
        (["Test scores", "Test stores"], "Test slores"),
        (["Sales 2019", "Costs"], "Sales 2018"),
        (["Old rate", "Growth"], "Bold rate"),
        (["Growth rate", "Growing rate"], "Growt rate"),
    ],
)
def test_what_may_tell_titles_apart_is_not_forgiven(titles: list[str], words: str) -> None:
    with pytest.raises(ToolError, match="No plot is at"):
        cut(titles, words, rows=1, columns=2)


@pytest.mark.parametrize(
    ("titles", "words"),
    [
        (["North", "Total sa1es"], "Total sales"),
        (["North", "Growth rate"], "Grwth rate"),
        (["North", "Growthrate"], "Growtx rate"),
        (["Unit cost", "Panel l"], "panel 1"),
    ],
)
def test_a_slip_is_forgiven_and_said(titles: list[str], words: str) -> None:
    number, said = cut(titles, words, rows=1, columns=2)
    assert number == 1
    assert said == [f"No title reads {words!r}; taken is {titles[1]!r}."]


def test_half_a_title_names_no_plot() -> None:
    title = GRID.plots[2].title
    with pytest.raises(ToolError, match="No plot is at"):
        zoomed(GRID, where=title[: len(title) // 2])


def test_the_heading_of_a_figure_is_in_no_plot() -> None:
    picture, lines = a_grid_titled(["Sales", "Costs"], 1, 2)
    taller = Image.new("RGB", (picture.width, picture.height + 40), "white")
    taller.paste(picture, (0, 40))
    moved = [Printed(t, box.moved(0, 40), s) for t, box, s in lines]
    heading = Box(40, 12, 180, 28)
    ImageDraw.Draw(taller).rectangle((40, 14, 179, 26), fill="gray")
    tool = zoom_subplot.with_backends({"reader": Scripted([*moved, Printed("All", heading, 1.0)])})
    region = shown(tool(root_view(taller), where="Sales"))
    assert region.intersection(heading) is None
    title = moved[0].box.expand(-1)  # a reader's box has a little white around its print
    assert region.intersection(title) == title
    above = moved[0].box.moved(0, -15)
    second = [Printed("All of them", above, 1.0)]  # a line of the same title
    ImageDraw.Draw(taller).rectangle(above.as_tuple(), fill="gray")
    tool = zoom_subplot.with_backends({"reader": Scripted([*moved, *second])})
    assert shown(tool(root_view(taller), where="Sales")).y0 < region.y0 - 8


def test_an_inset_has_its_plot_whole_and_counts_for_no_place() -> None:
    items = (figure(i, variety="inset") for i in range(40))
    item = next(
        i
        for i in items
        if len(i.plots) == 3
        and i.plots[-1].is_inset
        and i.plots[0].kind != "pie" != i.plots[1].kind
    )
    [outer] = [p for p in item.plots[:2] if iou(p.frame, item.plots[-1].frame) > 0]
    region = zoomed(item, where=outer.title)
    held = region.intersection(outer.frame)
    assert held is not None
    assert held.area > 0.98 * outer.frame.area
    inset = zoomed(item, box=item.plots[-1].frame)
    assert inset.area < 0.5 * region.area


def test_the_table_counts_what_is_missed_and_what_is_wrong() -> None:
    plain, bare = bench_found(count=3, varieties=("plain", "borderless"), show=False)
    assert plain.found == 1.0
    assert plain.quality is not None
    assert plain.quality > 0.98
    assert plain.wrong == 0
    assert (bare.found, bare.quality) == (0.0, 0.0)  # no frame is there to be seen
    assert bare.there > 0
    assert plain.ms > 0
