"""Figures with the place of everything in them: the places are those of the pixels."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageDraw

from saccade.geometry import Box
from saccade.worlds.figures import COLORS, VARIETIES, FigureItem, PlotPart, Shape, figure

INDICES = range(12)


@cache
def made(index: int, variety: str) -> FigureItem:
    return figure(index, variety=variety)  # type: ignore[arg-type]


def all_of(variety: str) -> list[FigureItem]:
    return [made(index, variety) for index in INDICES]


def plots_of(variety: str) -> list[tuple[FigureItem, PlotPart]]:
    return [(item, plot) for item in all_of(variety) for plot in item.plots]


def pixels(item: FigureItem) -> np.ndarray:
    return np.asarray(item.image, dtype=np.int64)


def inside(shape: Shape, size: tuple[int, int], *, margin: float) -> np.ndarray:
    """(H, W) whether a pixel lies in a shape, `margin` pixels from its border or more."""
    mask = Image.new("1", size)
    corners = [(p.x, p.y) for p in shape.outline]
    draw = ImageDraw.Draw(mask)
    draw.polygon(corners, fill=1)
    draw.line([*corners, corners[0]], fill=0, width=int(2 * margin))
    return np.asarray(mask)


def close(item: FigureItem, color: str, *, within: int = 12) -> np.ndarray:
    """(H, W) whether a pixel has a colour."""
    wanted = np.array(ImageColor.getrgb(COLORS[color]))
    return (np.abs(pixels(item) - wanted) <= within).all(axis=2)


# --- the whole ------------------------------------------------------------------------------------


@pytest.mark.parametrize("variety", VARIETIES)
def test_a_figure_is_the_same_whenever_it_is_made(variety: str) -> None:
    again = figure(2, variety=variety)  # type: ignore[arg-type]
    item = made(2, variety)
    assert again.image.tobytes() == item.image.tobytes()
    assert (again.plots, again.texts) == (item.plots, item.texts)


def test_what_a_user_has_set_in_matplotlib_changes_nothing_and_stays_set() -> None:
    code = (
        "import matplotlib; matplotlib.rcParams['axes.facecolor'] = 'red';"
        "from saccade.worlds.figures import figure; import hashlib;"
        "print(hashlib.sha256(figure(3).image.tobytes()).hexdigest(),"
        "matplotlib.rcParams['axes.facecolor'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == [
        hashlib.sha256(made(3, "plain").image.tobytes()).hexdigest(),
        "red",
    ]


def test_no_variety_is_told_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"No variety 'shiny'.*plain, hatched"):
        figure(0, variety="shiny")  # type: ignore[arg-type]


def test_all_kinds_and_grids_come() -> None:
    kinds = Counter(plot.kind for _, plot in plots_of("plain"))
    assert set(kinds) == {"bars", "lines", "pie", "scatter"}
    assert {(i.rows, i.columns) for i in all_of("plain")} >= {(1, 1), (2, 2)}
    assert all(len(i.plots) == i.rows * i.columns for i in all_of("plain"))


@pytest.mark.parametrize("variety", VARIETIES)
def test_everything_told_lies_in_the_picture_and_plots_do_not_overlap(variety: str) -> None:
    for item in all_of(variety):
        whole = Box(0, 0, *item.image.size)
        for plot in item.plots:
            assert plot.frame.intersection(whole) == plot.frame
            for other in item.plots:
                if other is not plot and not other.is_inset and not plot.is_inset:
                    assert plot.frame.intersection(other.frame) is None
        for text in item.texts:
            assert text.box.intersection(whole) == text.box


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bar", "wedge"])
def test_shapes_are_filled_with_their_colour_to_their_borders_and_not_beyond(kind: str) -> None:
    seen = 0
    for item, plot in plots_of("plain"):
        shapes = [s for s in plot.shapes if s.kind == kind]
        for shape in shapes:
            mask = inside(shape, item.image.size, margin=2)
            assert close(item, shape.color)[mask].mean() > 0.97
            seen += 1
        if shapes:  # beside the bars of a colour there is none of it, but in a legend
            x0, y0, x1, y1 = (round(v) for v in plot.frame.as_tuple())
            found = close(item, shapes[0].color)[y0:y1, x0:x1].copy()
            for box in [s.box for s in shapes] + ([plot.legend] if plot.legend else []):
                a, b, c, d = (round(v) for v in box.as_tuple())
                found[max(0, b - 2 - y0) : d + 2 - y0, max(0, a - 2 - x0) : c + 2 - x0] = False
            assert not found.any()
    assert seen > 8


def test_lines_run_through_their_points_and_dots_lie_in_their_circles() -> None:
    lines = dots = 0
    for item, plot in plots_of("plain"):
        for shape in plot.shapes:
            has = close(item, shape.color, within=40)
            if shape.kind == "line":
                for p in shape.outline:
                    x, y = int(p.x), int(p.y)
                    lines += has[y - 2 : y + 3, x - 2 : x + 3].any()
                    assert plot.frame.x0 <= p.x <= plot.frame.x1
            elif shape.kind == "dot":
                centre = shape.box.center
                dots += has[int(centre.y), int(centre.x)]
    # a line or dot may be covered by a later one or by a legend
    total = Counter(s.kind for _, p in plots_of("plain") for s in p.shapes)
    points = sum(len(s.outline) for _, p in plots_of("plain") for s in p.shapes if s.kind == "line")
    assert lines > 0.9 * points
    assert dots > 0.95 * total["dot"]


@pytest.mark.parametrize("variety", ["hatched", "gradient", "jpeg"])
def test_varieties_are_not_flat(variety: str) -> None:
    spreads = []
    for item, plot in plots_of(variety):
        for shape in plot.shapes:
            if shape.kind in ("bar", "wedge") and not (
                variety == "gradient" and shape.kind == "wedge"
            ):
                mask = inside(shape, item.image.size, margin=3)
                spreads.append(pixels(item)[mask].std(axis=0).max())
    assert np.mean(np.array(spreads) > (1 if variety == "jpeg" else 10)) > 0.9


# --- axes and words -------------------------------------------------------------------------------


@pytest.mark.parametrize("variety", ["plain", "dark", "borderless"])
def test_a_tick_stands_where_the_axis_has_its_value(variety: str) -> None:
    checked = 0
    for item in all_of(variety):
        ticks = [t for t in item.texts if t.role == "tick"]
        for plot in item.plots:
            for scale, side in ((plot.x_axis, 0), (plot.y_axis, 1)):
                if scale is None:
                    continue
                for tick in ticks:
                    centre = tick.box.center
                    beside = (
                        plot.frame.x0 - 5 <= centre.x <= plot.frame.x1 + 5
                        and 0 < tick.box.y0 - plot.frame.y1 < 30
                        if side == 0
                        else plot.frame.y0 - 8 <= centre.y <= plot.frame.y1 + 8
                        and 0 < plot.frame.x0 - tick.box.x1 < 30
                    )
                    if not beside:
                        continue
                    value = float(tick.text.replace("\N{MINUS SIGN}", "-"))
                    got = scale.value_at((centre.x, centre.y)[side])
                    assert abs(got - value) < 0.02 * scale.range
                    checked += 1
    assert checked > 40


def test_words_stand_where_they_are_told_and_nowhere_else_is_ink_of_theirs() -> None:
    for item in all_of("plain")[:6]:
        dark = pixels(item).max(axis=2) < 140
        for text in item.texts:
            x0, y0, x1, y1 = (int(v) for v in text.box.as_tuple())
            assert dark[y0 : y1 + 1, x0 : x1 + 1].any(), text
            assert text.size_px > 8
        titles = [t.text for t in item.texts if t.role == "title"]
        assert titles == [p.title for p in item.plots]


def test_a_legend_holds_its_words() -> None:
    legends = 0
    for item, plot in plots_of("plain"):
        if plot.legend is None:
            continue
        words = [
            t
            for t in item.texts
            if t.role == "legend" and t.box.intersection(plot.legend) is not None
        ]
        assert len(words) == len({s.color for s in plot.shapes})
        legends += 1
    assert legends > 1


def test_an_inset_stands_in_its_plot_and_is_told_last() -> None:
    for item in all_of("inset"):
        *outer, inner = item.plots
        assert inner.is_inset
        assert not any(p.is_inset for p in outer)
        [host] = [p for p in outer if (p.row, p.column) == (inner.row, inner.column)]
        assert inner.frame.intersection(host.frame) is not None
