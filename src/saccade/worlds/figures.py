"""Figures as people make them with matplotlib, with the place of everything in them: what the back
ends of tools are measured on.

Invariant: a figure is a pure function of (index, variety), whatever a user's matplotlibrc says. All
geometry is asked of matplotlib's own artists after drawing, in pixels of the picture from its top
left corner; what was not drawn, or was drawn outside the picture, is not told.

Left out on purpose: questions (`charts` has them), three dimensions, logarithmic axes. matplotlib
keeps its settings for the whole process: draw from one thread.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from saccade.geometry import Box, Point, box_around

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

__all__ = [
    "VARIETIES",
    "AxisScale",
    "FigureItem",
    "PlotKind",
    "PlotPart",
    "PrintedText",
    "Role",
    "Shape",
    "ShapeKind",
    "Variety",
    "figure",
]

ShapeKind = Literal["bar", "wedge", "line", "dot"]
PlotKind = Literal["bars", "lines", "pie", "scatter"]
Variety = Literal["plain", "hatched", "gradient", "jpeg", "dark", "borderless", "inset"]
"""`plain`, or with one thing that makes flat fills, frames or clean edges a bad guide."""
VARIETIES: tuple[Variety, ...] = get_args(Variety)
Role = Literal["title", "axis", "tick", "legend", "label"]

JPEG_QUALITY = 60
SEEN = 24
"""Levels from its ground from which a pixel is drawn."""
DOT_POINTS = 6.0
"""Across a dot of a scatter plot, in points of 1/72 inch."""
# fmt: off
COLORS = {
    "blue": "#1f77b4", "orange": "#ff7f0e", "green": "#2ca02c", "red": "#d62728",
    "purple": "#9467bd", "brown": "#8c564b", "pink": "#e377c2", "gray": "#7f7f7f",
    "yellow": "#e8d81c", "cyan": "#17becf",
}
"""Of marks, by the names that questions would use."""
_TITLES = (
    "Sales by region", "Market share", "Rainfall", "Test scores", "Energy use", "Visitors",
    "Unit cost", "Growth rate", "Web traffic", "Survey results", "Population", "Output",
)
_NAMES = (
    ("Jan", "Feb", "Mar", "Apr", "May", "Jun"), ("2019", "2020", "2021", "2022", "2023", "2024"),
    ("North", "South", "East", "West", "Centre", "Coast"),
    ("Alpha", "Beta", "Gamma", "Delta", "Omega", "Sigma"),
)
_UNITS = ("Count", "Percent", "Value", "Metres", "Euros", "Hours")
_SERIES = ("Old plan", "New plan", "Forecast", "Target")
_GRIDS = ((1, 1), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3))
_HATCHES = ("///", "xx", "...", "\\\\\\", "++")
# fmt: on


class PrintedText(NamedTuple):
    """Words in the picture."""

    text: str
    box: Box
    role: Role
    size_px: float
    """Of the font: from the lowest to the highest line of its letters."""


class AxisScale(NamedTuple):
    """A linear axis, by two of its pixels and their values."""

    pixels: tuple[float, float]
    values: tuple[float, float]

    def value_at(self, pixel: float) -> float:
        (p, q), (a, b) = self.pixels, self.values
        return a + (pixel - p) / (q - p) * (b - a)

    @property
    def range(self) -> float:
        """Between the ends of the axis, in its values."""
        return abs(self.values[1] - self.values[0])


class Shape(NamedTuple):
    """A bar, wedge, line or dot."""

    kind: ShapeKind
    color: str
    """Its name, of COLORS."""
    outline: tuple[Point, ...]
    """Its corners in order; of a line its points from the left."""

    @property
    def box(self) -> Box:
        x, y = [p.x for p in self.outline], [p.y for p in self.outline]
        return Box(min(x), min(y), max(x), max(y))


@dataclass(frozen=True, slots=True)
class PlotPart:
    """One plot of a figure."""

    kind: PlotKind
    frame: Box
    """Of its axes; around the wedges of a pie."""
    whole: Box
    """Around all that it draws, with what is printed around it, to the pixel."""
    title: str
    row: int
    """From the top, from 0; a plot inside another has the outer one's."""
    column: int
    shapes: tuple[Shape, ...]
    x_axis: AxisScale | None
    """None where it has no numbers."""
    y_axis: AxisScale | None
    legend: Box | None
    is_inset: bool = False
    is_framed: bool = True
    """Whether its axes, if it has any, are drawn to have frames."""


@dataclass(frozen=True, slots=True)
class FigureItem:
    """A picture and everything in it."""

    image: Image.Image
    rows: int
    columns: int
    plots: tuple[PlotPart, ...]
    """By rows, then columns; a plot inside another stands behind all of them."""
    texts: tuple[PrintedText, ...]
    also: frozenset[str] = frozenset()
    """Kinds of things of which something is there, though no place of it is told."""
    is_told: bool = True
    """Whether the places of print and frames are told; what is not there is known in any case."""


def figure(index: int, *, variety: Variety = "plain") -> FigureItem:
    """Figure `index` of a variety: one plot or a grid of them. Raises ValueError for no variety."""
    import matplotlib

    if variety not in VARIETIES:
        raise ValueError(f"No variety {variety!r} of figures. There are: {', '.join(VARIETIES)}.")
    rng = np.random.default_rng([index, VARIETIES.index(variety), 31])
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_settings(rng, variety))
        return _drawn(rng, variety)


def _settings(rng: np.random.Generator, variety: Variety) -> dict[str, Any]:
    """Of matplotlib: a font that comes with it, its size, and the colours of the variety."""
    size = float(rng.uniform(8, 13))
    found: dict[str, Any] = {
        "font.family": [str(rng.choice(["DejaVu Sans", "DejaVu Serif", "STIXGeneral"]))],
        "font.size": size,
        "axes.titlesize": size * 1.2,
        "axes.grid": bool(rng.random() < 0.3),
        "grid.color": "0.9",
        "hatch.linewidth": 0.8,
        "axes.axisbelow": True,
    }
    if variety == "dark":
        light, dark = "0.9", "#20242c"
        found |= dict.fromkeys(("figure.facecolor", "axes.facecolor", "legend.facecolor"), dark)
        inks = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
        found |= dict.fromkeys(inks, light) | {"grid.color": "0.3"}
    if variety == "borderless":
        found |= {f"axes.spines.{side}": False for side in ("left", "right", "top", "bottom")}
    return found


def _drawn(rng: np.random.Generator, variety: Variety) -> FigureItem:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = _GRIDS[int(rng.integers(len(_GRIDS)))]
    dpi = int(rng.integers(80, 130))
    made = Figure(figsize=(3.2 + 2.4 * columns, 2.4 + 1.9 * rows), dpi=dpi, layout="constrained")
    canvas = FigureCanvasAgg(made)
    titles = iter(rng.permutation(_TITLES))
    plots: list[_Plot] = []
    for row in range(rows):
        for column in range(columns):
            axes = made.add_subplot(rows, columns, 1 + row * columns + column)
            kind = _kind(rng)
            plots.append(_Plot(axes, kind, row, column, _fill(axes, kind, rng, variety)))
            axes.set_title(str(next(titles)))
    if variety == "inset":
        outer = next((p for p in plots if p.kind in ("lines", "scatter")), plots[0])
        inner = outer.axes.inset_axes((0.6, 0.6, 0.36, 0.34))
        inner.tick_params(labelsize=6)
        shapes = _fill(inner, "bars", rng, variety, small=True)
        plots.append(_Plot(inner, "bars", outer.row, outer.column, shapes, is_inset=True))
    canvas.draw()  # the layout is settled here
    made.set_layout_engine("none")
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    whole = Box(0, 0, *image.size)
    texts = tuple(t for p in plots for t in _texts(p.axes, made, whole))
    item = FigureItem(image, rows, columns, tuple(_part(p, made) for p in plots), texts)
    return _as_jpeg(item) if variety == "jpeg" else item


def _as_jpeg(item: FigureItem) -> FigureItem:
    file = io.BytesIO()
    item.image.save(file, "JPEG", quality=JPEG_QUALITY)
    with Image.open(file) as read:
        image = read.convert("RGB")
    return FigureItem(image, item.rows, item.columns, item.plots, item.texts)


# --- what plots show ------------------------------------------------------------------------------


class _Plot(NamedTuple):
    axes: Axes
    kind: PlotKind
    row: int
    column: int
    outlines: list[tuple[str, str, Callable[[], np.ndarray]]]
    """Kind and colour of each shape, and its outline (N, 2) once it is drawn."""
    is_inset: bool = False


def _kind(rng: np.random.Generator) -> PlotKind:
    kinds: tuple[PlotKind, ...] = ("bars", "bars", "lines", "pie", "scatter")
    return kinds[int(rng.integers(len(kinds)))]


def _fill(
    axes: Axes, kind: PlotKind, rng: np.random.Generator, variety: Variety, *, small: bool = False
) -> list[tuple[str, str, Callable[[], np.ndarray]]]:
    """Draw one plot; the outlines of its shapes, to be asked once the figure is drawn."""
    names = [str(c) for c in rng.permutation(list(COLORS))]
    labels = _NAMES[int(rng.integers(len(_NAMES)))]
    count = 3 if small else int(rng.integers(3, 6))  # more names would run into each other
    if kind == "bars":
        found = _bars(axes, rng, variety, names, labels[:count], is_single=small)
    elif kind == "pie":
        found = _pie(axes, rng, variety, names, labels[:count])
    elif kind == "lines":
        found = _lines(axes, rng, names)
    else:
        found = _dots(axes, rng, names)
    if kind != "pie" and not small:
        axes.set_ylabel(str(rng.choice(_UNITS)))
    return found


def _bars(
    axes: Axes,
    rng: np.random.Generator,
    variety: Variety,
    names: list[str],
    labels: tuple[str, ...],
    *,
    is_single: bool,
) -> list[tuple[str, str, Callable[[], np.ndarray]]]:
    groups = 1 if is_single else int(rng.choice([1, 1, 2]))
    width = 0.7 / groups
    found = []
    for group in range(groups):
        heights = rng.uniform(15, 100, size=len(labels))
        places = np.arange(len(labels)) + (group - (groups - 1) / 2) * width
        drawn = axes.bar(
            places,
            heights,
            width=width,
            color=COLORS[names[group]],
            label=_SERIES[group],
            hatch=_HATCHES[int(rng.integers(len(_HATCHES)))] if variety == "hatched" else None,
            edgecolor="black" if variety == "hatched" else None,
            alpha=0.0 if variety == "gradient" else None,
        )
        for bar in drawn:
            if variety == "gradient":
                _shade(axes, bar, COLORS[names[group]])
            found.append(("bar", names[group], _outline_of(bar)))
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlim(-0.7, len(labels) - 0.3)
    axes.set_ylim(0, float(rng.choice([105, 110, 120])) if groups == 1 else 160.0)
    if groups > 1:  # above all bars
        legend = axes.legend(loc=str(rng.choice(["upper right", "upper left", "upper center"])))
        for swatch in legend.legend_handles:  # bars that fade are drawn apart, and not seen here
            if swatch is not None:
                swatch.set_alpha(1.0)
    return found


def _shade(axes: Axes, bar: Any, color: str) -> None:
    """A bar that fades from its colour at the top to a light one at the bottom."""
    from matplotlib.colors import LinearSegmentedColormap

    fade = LinearSegmentedColormap.from_list("fade", ["#ececec", color])
    left, low = bar.get_xy()
    extent = (left, left + bar.get_width(), low, low + bar.get_height())
    ramp = np.linspace(0.35, 1, 128)[:, None]
    axes.imshow(ramp, extent=extent, origin="lower", aspect="auto", cmap=fade, vmin=0, vmax=1)


def _pie(
    axes: Axes,
    rng: np.random.Generator,
    variety: Variety,
    names: list[str],
    labels: tuple[str, ...],
) -> list[tuple[str, str, Callable[[], np.ndarray]]]:
    shares = rng.uniform(12, 40, size=len(labels))
    wedges = axes.pie(
        shares,
        labels=labels,
        colors=[COLORS[name] for name in names[: len(labels)]],
        startangle=float(rng.uniform(0, 360)),
        hatch=list(_HATCHES[: len(labels)]) if variety == "hatched" else None,
        wedgeprops={"edgecolor": "white", "linewidth": 1.0},
    )[0]
    return [("wedge", n, _outline_of(w)) for n, w in zip(names, wedges, strict=False)]


def _lines(
    axes: Axes, rng: np.random.Generator, names: list[str]
) -> list[tuple[str, str, Callable[[], np.ndarray]]]:
    count, points = int(rng.integers(1, 4)), int(rng.integers(5, 12))
    x = np.arange(points) * float(rng.choice([1, 2, 5]))
    found = []
    for number in range(count):
        y = np.cumsum(rng.normal(0, 8, size=points)) + rng.uniform(20, 80)
        [line] = axes.plot(x, y, color=COLORS[names[number]], label=_SERIES[number], linewidth=2.0)
        found.append(("line", names[number], _points_of(axes, line.get_xydata())))
    if count > 1:
        axes.legend()
    return found


def _dots(
    axes: Axes, rng: np.random.Generator, names: list[str]
) -> list[tuple[str, str, Callable[[], np.ndarray]]]:
    places = rng.uniform(0, 100, size=(int(rng.integers(8, 25)), 2))
    axes.scatter(places[:, 0], places[:, 1], s=DOT_POINTS**2, color=COLORS[names[0]])
    axes.set_xlabel(str(rng.choice(_UNITS)))
    return [("dot", names[0], _circle_of(axes, place)) for place in places]


def _outline_of(patch: Any) -> Callable[[], np.ndarray]:
    """Of a bar or wedge, in pixels from the bottom left; curves in short pieces."""

    def ask() -> np.ndarray:
        path = patch.get_transform().transform_path(patch.get_path())
        [polygon] = path.to_polygons(closed_only=True)
        return np.asarray(polygon)

    return ask


def _points_of(axes: Axes, data: Any) -> Callable[[], np.ndarray]:
    values = np.array(data, dtype=float)
    return lambda: np.asarray(axes.transData.transform(values))


def _circle_of(axes: Axes, place: np.ndarray) -> Callable[[], np.ndarray]:
    """Of a dot, in pixels from the bottom left."""

    def ask() -> np.ndarray:
        radius = DOT_POINTS / 2 * float(axes.figure.dpi) / 72
        turn = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        circle = radius * np.stack([np.cos(turn), np.sin(turn)], axis=1)
        return np.asarray(axes.transData.transform(place)) + circle

    return ask


# --- where things are -----------------------------------------------------------------------------


def _part(plot: _Plot, made: Figure) -> PlotPart:
    height = made.bbox.height
    axes = plot.axes
    shapes = tuple(
        Shape(kind, color, tuple(Point(float(x), float(height - y)) for x, y in ask()))  # type: ignore[arg-type]
        for kind, color, ask in plot.outlines
    )
    frame = _flipped(axes.get_window_extent(), height)
    if plot.kind == "pie":
        frame = box_around([s.box for s in shapes])
    legend = axes.get_legend()
    is_numeric = plot.kind in ("lines", "scatter")
    return PlotPart(
        kind=plot.kind,
        frame=frame,
        whole=_inked(made, _flipped(axes.get_tightbbox(made.canvas.get_renderer()), height)),  # type: ignore[attr-defined]
        title=axes.get_title(),
        row=plot.row,
        column=plot.column,
        shapes=shapes,
        x_axis=_scale(axes, 0, height) if is_numeric else None,
        y_axis=_scale(axes, 1, height) if plot.kind != "pie" else None,
        legend=None if legend is None else _flipped(legend.get_window_extent(), height),
        is_inset=plot.is_inset,
    )


def _inked(made: Figure, box: Box) -> Box:
    """The part of a box that differs from the ground of the figure: print has room for letters that
    it does not use, and pies stand in a square that is not drawn.
    """
    picture = np.asarray(made.canvas.buffer_rgba())[..., :3].astype(int)  # type: ignore[attr-defined]
    x0, y0 = max(0, math.floor(box.x0)), max(0, math.floor(box.y0))
    part = picture[y0 : math.ceil(box.y1), x0 : math.ceil(box.x1)]
    drawn = np.abs(part - picture[0, 0]).max(axis=2) > SEEN
    rows, columns = np.flatnonzero(drawn.any(axis=1)), np.flatnonzero(drawn.any(axis=0))
    if not len(rows):
        return box
    return Box(x0 + columns[0], y0 + rows[0], x0 + columns[-1] + 1, y0 + rows[-1] + 1)


def _scale(axes: Axes, side: int, height: float) -> AxisScale:
    low, high = axes.get_xlim() if side == 0 else axes.get_ylim()
    ends = axes.transData.transform([(low, low), (high, high)] if side else [(low, 0), (high, 0)])
    a, b = (float(end[side]) for end in ends)
    pixels = (height - a, height - b) if side else (a, b)
    return AxisScale(pixels, (float(low), float(high)))


def _texts(axes: Axes, made: Figure, whole: Box) -> Iterator[PrintedText]:
    """Everything printed on axes, as far as it is seen."""
    height = made.bbox.height
    legend = axes.get_legend()
    # ticks are made anew for each drawing: ask for those that lie inside the limits
    ticks: list[Text] = []
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        slack = 1e-6 * (high - low)
        ticks += [
            tick.label1
            for tick in axis.get_major_ticks()
            if low - slack <= tick.get_loc() <= high + slack and axes.axison
        ]
    of: list[tuple[Role, list[Text]]] = [
        ("title", [axes.title]),
        ("axis", [axes.xaxis.label, axes.yaxis.label]),
        ("tick", ticks),
        ("legend", list(legend.get_texts()) if legend is not None else []),
        ("label", list(axes.texts)),
    ]
    for role, found in of:
        for text in found:
            if not text.get_text().strip() or not text.get_visible():
                continue
            box = _flipped(text.get_window_extent(), height)
            inside = box.intersection(whole)
            if inside is not None and inside.area > 0.98 * box.area:
                size_px = float(text.get_fontsize()) * made.dpi / 72
                yield PrintedText(text.get_text(), inside, role, size_px)


def _flipped(extent: Any, height: float) -> Box:
    """matplotlib counts from the bottom."""
    x0, x1, y0, y1 = (
        float(v) for v in (extent.x0, extent.x1, height - extent.y1, height - extent.y0)
    )
    return Box(x0, y0, x1, y1)
