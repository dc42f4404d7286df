"""Charts as people draw them, by matplotlib: the split `test_unseen`, which nothing is trained on.

Invariant: a function of the data and the generator. Whatever a user's matplotlibrc or installed
fonts say is set aside. Boxes are those of what was drawn, in pixels of the picture: of marks from
their artists, of labels from the pixels that drawing them changed.

Left out on purpose: the light on the background that `drawing` has, since no plotting library has
it; the colours that the data name, since a style sheet brings its own and no question names one.
matplotlib keeps its settings for the whole process: draw from one thread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image, ImageFont

from saccade.geometry import Box
from saccade.ink import DARK, NEUTRAL
from saccade.worlds.chart_data import ChartSpec, Mark
from saccade.worlds.drawing import ChartDrawing, thumbnail_scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

__all__ = ["SHEETS", "draw"]

SHEETS = (
    "default",
    "default",
    "ggplot",
    "seaborn-v0_8",
    "seaborn-v0_8-whitegrid",
    "bmh",
    "fivethirtyeight",
    "grayscale",
    "tableau-colorblind10",
)
"""Style sheets that come with matplotlib."""
# fmt: off
_FONTS = {
    "DejaVu Sans": "DejaVuSans.ttf", "DejaVu Serif": "DejaVuSerif.ttf",
    "STIXGeneral": "STIXGeneral.ttf",
}
"""Families that come with matplotlib, the same on every machine."""
_FIGURES_INCHES = ((6.4, 4.8), (6.4, 4.8), (8.0, 6.0), (7.0, 5.0), (8.0, 5.0), (10.0, 6.0), (6, 6))
_SIDES_PX = (448, 1024)
_NAMES = (
    ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep"),
    ("A", "B", "C", "D", "E", "F", "G", "H", "I"),
    ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun", "Hol", "Avg"),
)
_SERIES = (("Old", "New", "Next"), ("Ann", "Bob", "Cem"), ("Low", "Mid", "Top"))
_HEADS = (
    "Survey results", "Market share", "Sales by region", "Quarterly report", "Responses",
    "Mean temperature", "Members", "Test scores", "Downloads", "Units sold",
)
_AXIS_NAMES = ("Count", "Value", "Percent", "Units", "Score")
_INKS = ("black", "0.1", "0.25")
# fmt: on
_LEAST_PX = 8.0
"""Size of the smallest font of labels."""


@dataclass(frozen=True, slots=True)
class _Style:
    """One draw of everything that a chart's data do not say."""

    sheet: str
    family: str
    width_px: int
    height_px: int
    dpi: int
    digit_height_px: float
    """Wanted; labels that would not fit are smaller."""
    ink: str
    head: str
    axis_name: str
    names: tuple[str, ...]
    series: tuple[str, ...]
    is_many_coloured: bool
    """Bars, points and dots of one series have colours of their own."""
    first_color: int
    has_grid: bool
    is_framed: bool
    is_zero_based: bool
    """Axes of lines and dots begin at 0."""
    bar_share: float
    """Width of a bar over its slot."""
    is_title_left: bool
    panel_columns: int
    jitter: tuple[float, ...]
    """Of dots, in slots, from -1 to 1."""


def _style(spec: ChartSpec, rng: np.random.Generator, max_pixels: int) -> _Style:
    inches = _FIGURES_INCHES[int(rng.integers(len(_FIGURES_INCHES)))]
    low, high = math.ceil(_SIDES_PX[0] / min(inches)), math.floor(_SIDES_PX[1] / max(inches))
    dpi = int(rng.integers(low, high + 1))
    width_px, height_px = (round(side * dpi) for side in inches)
    scale = thumbnail_scale(width_px, height_px, max_pixels)
    digit_px = rng.uniform(7.5, 10.0) if rng.random() < 0.35 else rng.uniform(1.7, 2.6)
    panels = len(spec.values)
    return _Style(
        sheet=str(rng.choice(SHEETS)),
        family=str(rng.choice(list(_FONTS), p=[0.7, 0.15, 0.15])),
        width_px=width_px,
        height_px=height_px,
        dpi=dpi,
        digit_height_px=digit_px / scale,
        ink=str(rng.choice(_INKS)),
        head=str(rng.choice(_HEADS)) if rng.random() < 0.7 else "",
        axis_name=str(rng.choice(_AXIS_NAMES)) if rng.random() < 0.5 else "",
        names=_NAMES[int(rng.integers(len(_NAMES)))],
        series=_SERIES[int(rng.integers(len(_SERIES)))],
        is_many_coloured=bool(rng.random() < 0.4),
        first_color=int(rng.integers(4)),
        has_grid=bool(rng.random() < 0.4),
        is_framed=bool(rng.random() < 0.6),
        is_zero_based=bool(rng.random() < 0.5),
        bar_share=float(rng.choice([0.8, 0.8, 0.6, 0.5])),
        is_title_left=bool(rng.random() < 0.2),
        panel_columns={2: int(rng.integers(1, 3)), 3: 3}.get(panels, 2),
        jitter=tuple(float(x) for x in rng.uniform(-1, 1, size=len(spec.marks))),
    )


def draw(spec: ChartSpec, rng: np.random.Generator, *, max_pixels: int) -> ChartDrawing:
    """Draw a chart in a random style sheet; a share of charts has labels that are large even in
    the thumbnail of `max_pixels`, the same share as in `drawing.draw`.
    """
    import matplotlib
    from matplotlib import style as sheets

    style = _style(spec, rng, max_pixels)
    with sheets.context(style.sheet, after_reset=True):
        matplotlib.rcParams.update({"font.family": [style.family], "axes.titleweight": "normal"})
        shrunk = 1.0
        while True:
            sheet = _Sheet(spec, style, shrunk)
            drawing = sheet.drawn()
            if _is_clear(spec, drawing) or sheet.is_smallest:
                return drawing
            shrunk *= 0.85


def _is_clear(spec: ChartSpec, drawing: ChartDrawing) -> bool:
    """Labels lie in the picture, on no other label and on no mark but their own."""
    labels = list(drawing.labels.items())
    width, height = drawing.image.size
    for number, (mark, label) in enumerate(labels):
        if label.x0 < 1 or label.y0 < 1 or label.x1 > width - 1 or label.y1 > height - 1:
            return False
        if any(label.intersection(other) for _, other in labels[:number]):
            return False
        # around a pie, boxes of slices hold more than slices: its layout keeps labels off it
        marks = {} if spec.chart == "pie" else drawing.marks
        if any(label.intersection(box) for other, box in marks.items() if other != mark):
            return False
    return True


@dataclass(slots=True)
class _Sheet:
    """A figure being drawn, in pixels from the top left."""

    spec: ChartSpec
    style: _Style
    shrunk: float
    """Size of labels over the wanted one."""
    figure: Figure = field(init=False)
    palette: list[tuple[float, ...]] = field(init=False)
    ticks_px: float = field(init=False)
    """Size of the font of everything but labels."""
    is_smallest: bool = True
    """No label could be smaller."""
    texts: dict[Mark, Text] = field(default_factory=dict)
    marks: dict[Mark, Box] = field(default_factory=dict)
    extents: dict[Mark, float] = field(default_factory=dict)
    digit_heights: dict[Mark, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from matplotlib import rcParams
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.colors import to_rgb
        from matplotlib.figure import Figure
        from matplotlib.font_manager import FontProperties

        style = self.style
        # a hundredth of a pixel more: inches times dpi must not fall below whole pixels
        width, height = ((side + 0.01) / style.dpi for side in (style.width_px, style.height_px))
        self.figure = Figure(figsize=(width, height), dpi=style.dpi)
        FigureCanvasAgg(self.figure)
        named = [to_rgb(c) for c in rcParams["axes.prop_cycle"].by_key()["color"]]
        colors = [c for c in named if not _is_print(c)]
        first = style.first_color % len(colors)
        self.palette = [*colors[first:], *colors[:first]]
        points = FontProperties(size=rcParams["ytick.labelsize"]).get_size_in_points()
        self.ticks_px = points * style.dpi / 72

    def drawn(self) -> ChartDrawing:
        style, spec = self.style, self.spec
        top = 0.03 * style.height_px
        if style.head:
            self.figure.text(
                0.5,
                1 - top / style.height_px,
                style.head,
                ha="center",
                va="top",
                fontsize=self.points(self.ticks_px * 1.2),
            )
            top += self.ticks_px * 1.9
        inside = Box(0.02 * style.width_px, top, 0.975 * style.width_px, style.height_px * 0.98)
        if spec.chart == "pie":
            self.pie(inside)
        elif spec.chart == "panels":
            self.panels(inside)
        elif spec.chart == "stacked":
            self.stacked(self.above_legend(inside))
        elif spec.chart == "grouped":
            self.grouped(self.above_legend(inside))
        else:
            self.upright(inside, 0, spec.chart)
        return self.rendered()

    def panels(self, inside: Box) -> None:
        """Panels in reading order, each below its title."""
        columns = self.style.panel_columns
        rows = len(self.spec.values) // columns
        width, height = inside.width / columns, inside.height / rows
        font_px = self.fitting("autumn", width * 0.85, height * 0.16)
        digits = self.digits(font_px)
        for part in range(len(self.spec.values)):
            row, column = divmod(part, columns)
            left, top = inside.x0 + column * width, inside.y0 + row * height
            below = Box(
                left + 0.02 * width,
                top + 1.8 * digits + 4,
                left + 0.97 * width,
                top + 0.97 * height,
            )
            axes = self.upright(below, part, self.spec.panel)
            title = axes.set_title(
                self.spec.titles[part],
                fontsize=self.points(font_px),
                color=self.style.ink,
                loc="left" if self.style.is_title_left else "center",
                y=1.0,  # else matplotlib moves a title that it does not see yet
            )
            self.label(Mark(part), title, font_px)

    def upright(self, inside: Box, part: int, kind: str) -> Axes:
        """Marks on an axis from left to right: bars, points on a line, dots."""
        spec, style = self.spec, self.style
        values = spec.values[part]
        marks = [Mark(part, k) for k in range(len(values))]
        area = self.plot_area(inside)
        slot = area.width / len(values)
        font_px = self.fitting("00", slot * (0.6 if kind == "scatter" else 0.85), area.height * 0.2)
        digits = self.digits(font_px)
        # in points, as matplotlib takes them
        diameter = self.points(max(8.0, min(0.36 * slot, 0.045 * style.width_px)))
        away = 2.0 if kind == "bar" else diameter / 2 + 2 + 0.1 * self.points(font_px)
        headroom = digits * 1.7 + self.pixels(away)
        base = 0.0
        if kind != "bar" and not style.is_zero_based:
            base = min(values) - max(2.0, 0.15 * (max(values) - min(values)))
        axes = self.axes(area, len(values), slot)
        axes.set_ylim(base, base + (max(values) - base) / (1 - headroom / area.height))
        xs = [float(k) for k in range(len(values))]
        cycle = [self.color(part + k if style.is_many_coloured else part) for k in range(9)]
        colors = cycle[: len(values)]
        if kind == "bar":
            bars = axes.bar(xs, values, width=style.bar_share, color=colors)
            self.bars(axes, dict(zip(marks, bars, strict=True)), bars, font_px)
            return axes
        if kind == "scatter":
            jitter = style.jitter[part * len(values) :]
            xs = [x + 0.17 * j for x, j in zip(xs, jitter, strict=False)]
        else:
            axes.plot(xs, values, color=colors[0] if not style.is_many_coloured else "0.6")
        axes.scatter(xs, values, s=diameter**2, color=colors, zorder=3, linewidths=0)
        radius = self.pixels(diameter) / 2
        for mark, x, value in zip(marks, xs, values, strict=True):
            across, up = axes.transData.transform((x, value))
            down = style.height_px - up
            self.marks[mark] = Box(across - radius, down - radius, across + radius, down + radius)
            self.extents[mark] = area.y1 - down
            text = axes.annotate(
                spec.printed(mark),
                (x, value),
                xytext=(0, away),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=self.points(font_px),
                color=style.ink,
            )
            if kind == "line":  # the line may run where the label stands
                ground = {"facecolor": axes.get_facecolor(), "edgecolor": "none"}
                text.set_bbox({**ground, "boxstyle": "square,pad=0.08"})
            self.label(mark, text, font_px)
        return axes

    def grouped(self, inside: Box) -> None:
        """Groups of bars from left to right."""
        groups = self.spec.values
        series = len(groups[0])
        area = self.plot_area(inside)
        slot = area.width / len(groups)
        width = 0.8 / series
        font_px = self.fitting("00", slot * width * 0.9, area.height * 0.2)
        most = max(max(group) for group in groups)
        axes = self.axes(area, len(groups), slot)
        axes.set_ylim(0, most / (1 - (self.digits(font_px) * 1.7 + self.pixels(2)) / area.height))
        for place in range(series):
            marks = [Mark(g, place) for g in range(len(groups))]
            xs = [g + (place - (series - 1) / 2) * width for g in range(len(groups))]
            bars = axes.bar(
                xs, [self.spec.value(m) for m in marks], width=width, color=self.color(place)
            )
            self.bars(axes, dict(zip(marks, bars, strict=True)), bars, font_px)

    def stacked(self, inside: Box) -> None:
        """Columns of parts, each with its label inside, on a paler colour."""
        columns = self.spec.values
        area = self.plot_area(inside)
        slot = area.width / len(columns)
        most = max(sum(column) for column in columns)
        unit = 0.95 * area.height / most
        least = min(min(column) for column in columns) * unit
        font_px = self.fitting("00", slot * self.style.bar_share * 0.9, least * 0.7)
        axes = self.axes(area, len(columns), slot)
        axes.set_ylim(0, most / 0.95)
        bottoms = [0] * len(columns)
        for place in range(len(columns[0])):
            marks = [Mark(c, place) for c in range(len(columns))]
            heights = [self.spec.value(m) for m in marks]
            bars = axes.bar(
                [float(c) for c in range(len(columns))],
                heights,
                width=self.style.bar_share,
                bottom=bottoms,
                color=[(1 + v) / 2 for v in self.color(place)],
            )
            self.bars(axes, dict(zip(marks, bars, strict=True)), bars, font_px, where="center")
            bottoms = [b + h for b, h in zip(bottoms, heights, strict=True)]

    def pie(self, inside: Box) -> None:
        """Slices clockwise from the top, each with its label outside."""
        [values] = self.spec.values
        font_px = self.fitting("00", inside.width * 0.2, inside.height * 0.16)
        digits = self.digits(font_px)
        label_width = _font(self.style.family, round(font_px)).getlength("00")
        away = 0.62 * 1.4 * digits + 4
        radius = min(
            inside.width / 2 - label_width - away - 4, inside.height / 2 - away - 0.6 * digits - 4
        )
        center = inside.center
        square = Box(center.x - radius, center.y - radius, center.x + radius, center.y + radius)
        axes = self.figure.add_axes(self.fractions(square))
        wedges, texts = axes.pie(
            values,
            labels=[self.spec.printed(m) for m in self.spec.marks],
            startangle=90,
            counterclock=False,
            colors=[self.color(k) for k in range(len(values))],
            labeldistance=1 + away / radius,
            wedgeprops={"edgecolor": "white", "linewidth": 1} if self.style.is_framed else None,
            textprops={"fontsize": self.points(font_px), "color": self.style.ink},
        )[:2]
        axes.set(xlim=(-1, 1), ylim=(-1, 1))
        for mark, wedge, text in zip(self.spec.marks, wedges, texts, strict=True):
            self.marks[mark] = self.box(wedge.get_window_extent())
            self.extents[mark] = math.radians(abs(wedge.theta2 - wedge.theta1)) * radius
            self.label(mark, text, font_px)

    def bars(
        self,
        axes: Axes,
        found: dict[Mark, Any],
        container: Any,
        font_px: float,
        where: Literal["edge", "center"] = "edge",
    ) -> None:
        """Boxes and labels of bars."""
        texts = axes.bar_label(
            container,
            labels=[self.spec.printed(m) for m in found],
            label_type=where,
            padding=2 if where == "edge" else 0,
            fontsize=self.points(font_px),
            color=self.style.ink,
        )
        for (mark, bar), text in zip(found.items(), texts, strict=True):
            box = self.box(bar.get_window_extent())
            self.marks[mark], self.extents[mark] = box, box.height
            self.label(mark, text, font_px)

    def label(self, mark: Mark, text: Text, font_px: float) -> None:
        """Kept for last, so that what it changes is its ink."""
        text.set_visible(False)
        self.texts[mark] = text
        self.digit_heights[mark] = self.digits(font_px)
        self.is_smallest = self.is_smallest and font_px <= _LEAST_PX

    def rendered(self) -> ChartDrawing:
        """The figure without its labels, then each label, whose box is what it changes."""
        canvas: Any = self.figure.canvas
        canvas.draw()
        renderer = canvas.get_renderer()
        pixels = np.asarray(renderer.buffer_rgba())  # (height, width, 4), a view
        for text in self.texts.values():
            text.set_visible(True)
            if text.get_bbox_patch():  # its ground alone, which is none of its ink
                text.set_color("none")
                text.draw(renderer)
                text.set(color=self.style.ink, bbox=None)
        labels = {}
        for mark, text in self.texts.items():
            near = self.box(text.get_window_extent(renderer)).expand(3)
            x0, y0 = max(0, int(near.x0)), max(0, int(near.y0))
            around = pixels[y0 : math.ceil(near.y1), x0 : math.ceil(near.x1)]
            before = around.copy()
            text.draw(renderer)
            changed = (around != before).any(-1)
            rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
            labels[mark] = Box(
                float(x0 + columns[0]),
                float(y0 + rows[0]),
                float(x0 + columns[-1] + 1),
                float(y0 + rows[-1] + 1),
            )
        image = Image.fromarray(pixels[..., :3].copy())
        return ChartDrawing(image, self.marks, labels, self.extents, self.digit_heights)

    def axes(self, area: Box, slots: int, slot_px: float) -> Axes:
        """Axes with room for so many marks, without any yet."""
        style = self.style
        axes = self.figure.add_axes(self.fractions(area))
        axes.set_xlim(-0.5, slots - 0.5)
        names = style.names[:slots]
        small = _font(style.family, round(self.ticks_px))
        if max(small.getlength(n) for n in names) > 0.9 * slot_px:
            names = ("",) * slots
        axes.set_xticks(range(slots), names)
        if style.axis_name and area.width > 0.6 * style.width_px:
            axes.set_ylabel(style.axis_name, fontsize=self.points(self.ticks_px))
        if style.has_grid:
            axes.grid(axis="y", alpha=0.4)
        axes.set_axisbelow(True)
        if not style.is_framed:
            axes.spines[["top", "right"]].set_visible(False)
        return axes

    def plot_area(self, inside: Box) -> Box:
        """What is left beside the numbers and names of the axes."""
        numbers = _font(self.style.family, round(self.ticks_px)).getlength("100")
        is_wide = inside.width > 0.6 * self.style.width_px
        name = 1.5 * self.ticks_px if self.style.axis_name and is_wide else 0.0
        ticks = self.pixels(7)
        return Box(
            inside.x0 + numbers + ticks + name,
            inside.y0,
            inside.x1,
            inside.y1 - 1.3 * self.ticks_px - ticks,
        )

    def above_legend(self, inside: Box) -> Box:
        """What a legend at the bottom leaves; it names the series by their colours."""
        from matplotlib.patches import Patch

        is_pale = self.spec.chart == "stacked"
        colors = [self.color(k) for k in range(len(self.spec.values[0]))]
        shades = [tuple((1 + v) / 2 for v in c) if is_pale else c for c in colors]
        handles = [Patch(color=c, label=n) for c, n in zip(shades, self.style.series, strict=False)]
        self.figure.legend(
            handles=handles,
            loc="lower center",
            ncols=len(handles),
            frameon=False,
            fontsize=self.points(self.ticks_px),
        )
        return Box(inside.x0, inside.y0, inside.x1, inside.y1 - 1.9 * self.ticks_px)

    def color(self, number: int) -> tuple[float, ...]:
        return self.palette[number % len(self.palette)]

    def fitting(self, widest: str, width: float, height: float) -> float:
        """The wanted size of a font, or the largest one that keeps within width and height."""
        family = self.style.family
        unit = _digit_height(family, 100) / 100
        size = max(_LEAST_PX, self.style.digit_height_px / unit)
        length = _font(family, 100).getlength(widest) / 100
        return max(_LEAST_PX, self.shrunk * min(size, width / length, height / unit))

    def digits(self, font_px: float) -> float:
        return _digit_height(self.style.family, 100) / 100 * font_px

    def points(self, pixels: float) -> float:
        return pixels * 72 / self.style.dpi

    def pixels(self, points: float) -> float:
        return points * self.style.dpi / 72

    def fractions(self, box: Box) -> tuple[float, float, float, float]:
        """Left, bottom, width and height over the figure's, as matplotlib places axes."""
        width, height = self.style.width_px, self.style.height_px
        return (
            box.x0 / width,
            1 - box.y1 / height,
            box.width / width,
            box.height / height,
        )

    def box(self, extent: Any) -> Box:
        """From matplotlib's pixels, which count from the bottom."""
        height = self.style.height_px
        return Box(extent.x0, height - extent.y1, extent.x1, height - extent.y0)


def _is_print(color: tuple[float, ...]) -> bool:
    """Black and dark gray marks would be print to `ink`, and to readers of labels on them."""
    levels = [255 * v for v in color]
    return max(levels) <= DARK and max(levels) - min(levels) <= NEUTRAL


@lru_cache(maxsize=64)
def _font(family: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / _FONTS[family]), size)


@lru_cache(maxsize=64)
def _digit_height(family: str, size: int) -> float:
    digits = _font(family, size).getbbox("0123456789")
    return float(digits[3] - digits[1])
