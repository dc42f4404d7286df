"""One plot of a figure: by its place, by a box, or not at all."""

from __future__ import annotations

import pytest

from saccade.benches.found import bench_found
from saccade.errors import ToolError
from saccade.geometry import Box
from saccade.images import ImageView, root_view
from saccade.tools import zoom_subplot
from saccade.worlds.figures import FigureItem, figure


def framed(rows: int, columns: int) -> FigureItem:
    """The first figure of that grid whose plots all have frames."""
    for index in range(400):
        made = figure(index)
        kinds = {p.kind for p in made.plots}
        if (made.rows, made.columns) == (rows, columns) and "pie" not in kinds:
            return made
    raise AssertionError("no such figure")


GRID = framed(2, 2)
VIEW = root_view(GRID.image)


def shown(view: ImageView) -> Box:
    ((_, polygon),) = view.ref.to_roots()
    return polygon.bounds


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
    ],
)
def test_a_plot_is_named_by_its_place(words: str, number: int) -> None:
    region = shown(zoom_subplot(VIEW, where=words))
    wanted = GRID.plots[number]
    for plot in GRID.plots:
        common = region.intersection(plot.frame)
        if plot is wanted:
            assert common is not None
            assert common.area > 0.98 * plot.frame.area
        else:
            assert common is None


def test_a_plot_is_cut_with_all_that_is_printed_around_it() -> None:
    for number, plot in enumerate(GRID.plots, start=1):
        region = shown(zoom_subplot(VIEW, where=str(number)))
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
    assert shown(zoom_subplot(VIEW, box=loose)) == shown(zoom_subplot(VIEW, where="4"))


def test_a_box_without_any_frame_is_cut_as_it_is() -> None:
    pie = next(f for f in map(figure, range(200)) if {p.kind for p in f.plots} == {"pie"})
    box = Box(20, 30, 120, 140)
    assert shown(zoom_subplot(root_view(pie.image), box=box)) == box


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("top", "2 plots are at 'top': there are 4 framed plots in 2 rows of 2 and 2"),
        ("row 3 column 1", "No plot is at 'row 3 column 1'"),
        ("9", "No plot is at '9'"),
        ("the one about rain", "No plot is at .* number from 1 to 4"),
    ],
)
def test_what_names_no_plot_or_several_is_told_with_what_there_is(words: str, said: str) -> None:
    with pytest.raises(ToolError, match=said):
        zoom_subplot(VIEW, where=words)


def test_place_or_box_but_not_both() -> None:
    for given in ({}, {"where": "1", "box": Box(0, 0, 50, 50)}):
        with pytest.raises(ToolError, match="either where or box"):
            zoom_subplot(VIEW, **given)


def test_the_table_counts_what_is_missed_and_what_is_wrong() -> None:
    plain, bare = bench_found(count=3, varieties=("plain", "borderless"), show=False)
    assert plain.found == 1.0
    assert plain.quality is not None
    assert plain.quality > 0.98
    assert plain.wrong == 0
    assert (bare.found, bare.quality) == (0.0, 0.0)  # no frame is there to be seen
    assert bare.there > 0
    assert plain.ms > 0
