"""Charts drawn with exact geometry.

Invariant: boxes are those of what was drawn, in pixels of the picture. Labels overlap no other
label and no mark that is not their own.

Left out on purpose: a plotting library, whose charts are the split `test_unseen`
(`matplotlib_charts`). Drawing one here takes a few milliseconds, so that training is never waiting
for pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from saccade.geometry import Box
from saccade.worlds.chart_data import COLOR_NAMES, ChartSpec, Mark

__all__ = [
    "COLORS",
    "KEPT_OUT",
    "TRAINED",
    "ChartDrawing",
    "DrawnAxis",
    "Look",
    "draw",
    "thumbnail_scale",
]

Color = tuple[int, int, int]
COLORS: dict[str, tuple[Color, ...]] = {
    "red": ((214, 39, 40), (230, 60, 50), (190, 20, 45)),
    "blue": ((31, 90, 200), (50, 110, 230), (30, 60, 160)),
    "green": ((44, 150, 44), (20, 120, 60), (70, 170, 80)),
    "orange": ((255, 140, 20), (245, 125, 0), (250, 155, 60)),
    "purple": ((130, 60, 180), (110, 40, 150), (150, 85, 205)),
    "brown": ((130, 80, 50), (115, 65, 30), (145, 95, 65)),
    "pink": ((245, 130, 195), (250, 150, 205), (235, 110, 180)),
    "gray": ((127, 127, 127), (116, 116, 121), (145, 145, 150)),
    "yellow": ((235, 205, 30), (245, 220, 60), (225, 190, 10)),
    "cyan": ((30, 190, 210), (60, 205, 225), (20, 170, 195)),
}
# fmt: off
_HEAD_WORDS = (
    "visits", "output", "units", "orders", "rainfall", "energy", "traffic", "harvest", "index",
    "score", "budget", "annual", "monthly", "weekly", "total", "average", "regional", "daily",
    "net", "gross",
)
# fmt: on
LINE = (125, 125, 132)
"""Axes, outlines and paths. They, like all marks, are too bright to be print to `ink`: a look at a
label that also holds a piece of them is trimmed to the label.
"""
SHADE = 48
"""Levels that the background falls from side to side: a cue to place, as light gives in life."""


@dataclass(frozen=True, slots=True)
class Look:
    """What charts of a split may look like."""

    fonts: tuple[str, ...]
    backgrounds: tuple[Color, ...]
    colors: dict[str, tuple[Color, ...]]
    shapes: tuple[tuple[int, int], ...]
    """Width to height."""
    head_at_bottom: bool = False
    """The chart's head stands below it, and its axis on the right."""


TRAINED = Look(
    fonts=(
        "DejaVuSans.ttf",
        "DejaVuSans-Bold.ttf",
        "DejaVuSerif.ttf",
        "DejaVuSansMono.ttf",
        "STIXGeneral.ttf",
    ),
    backgrounds=(
        (255, 255, 255),
        (255, 255, 255),
        (248, 248, 244),
        (240, 244, 250),
        (250, 245, 235),
    ),
    colors=COLORS,
    shapes=((4, 3), (4, 3), (3, 2), (1, 1)),
)
_OTHER_COLORS = (
    (166, 206, 227), (31, 120, 180), (178, 223, 138), (51, 160, 44), (251, 154, 153),
    (253, 191, 111), (202, 178, 214), (106, 61, 154), (177, 89, 40), (141, 211, 199),
)  # fmt: skip
KEPT_OUT = Look(
    fonts=(
        "cmss10.ttf",
        "cmr10.ttf",
        "STIXGeneralBol.ttf",
        "DejaVuSerif-Italic.ttf",
        "DejaVuSansMono-Bold.ttf",
    ),
    backgrounds=((235, 250, 240), (252, 240, 246), (238, 238, 238)),
    colors={n: (c,) for n, c in zip(COLOR_NAMES, _OTHER_COLORS, strict=True)},
    shapes=((16, 9), (5, 4)),
    head_at_bottom=True,
)
"""Fonts, palettes and layouts that no training split has."""


class DrawnAxis(NamedTuple):
    """The axis of values of a chart or panel, and what stands on it."""

    parts: tuple[int, ...]
    area: Box
    base: float
    """Row of its zero."""
    unit: float
    """Pixels of one."""
    has_numbers: bool


@dataclass(frozen=True, slots=True)
class ChartDrawing:
    """A drawn chart with the boxes of its marks and of their labels, in its pixels."""

    image: Image.Image
    marks: dict[Mark, Box]
    labels: dict[Mark, Box]
    """Of values, and of the titles of panels."""
    extents: dict[Mark, float]
    """What the eye compares, in pixels: height above the axis, length of a part of a column, arc of
    a slice.
    """
    digit_heights: dict[Mark, float]
    """Height of the digits of each label's font in pixels of the chart."""
    axes: tuple[DrawnAxis, ...] = ()
    """Of charts that have one, where they were drawn here."""
    beside: tuple[tuple[str, Box], ...] = ()
    """What is printed there besides labels: its head, the numbers of its axes."""


def thumbnail_scale(width: int, height: int, max_pixels: int) -> float:
    """Size of the picture that a model is shown under that budget over the size of the original,
    at most 1.
    """
    return min(1.0, math.sqrt(max_pixels / (width * height)))


def draw(
    spec: ChartSpec, rng: np.random.Generator, *, max_pixels: int, look: Look = TRAINED
) -> ChartDrawing:
    """Draw a chart in a random style; a share of charts has labels that are large even in the
    thumbnail of `max_pixels`.
    """
    width, height = _size(rng, look)
    scale = thumbnail_scale(width, height, max_pixels)
    digit_px = rng.uniform(7.5, 10.0) if rng.random() < 0.35 else rng.uniform(1.7, 2.6)
    style = _style(rng, look, digit_px / scale)
    sheet = _Sheet(spec, style, rng, _shaded(style.background, width, height))
    middle = height * rng.uniform(0.03, 0.05)
    if rng.random() < 0.6:
        words = " ".join(str(w) for w in rng.choice(_HEAD_WORDS, size=2, replace=False))
        at = (width / 2, height - middle if look.head_at_bottom else middle)
        sheet.write(at, words, fill=(40, 40, 40), anchor="mm")
    inside = Box(
        width * rng.uniform(0.02, 0.04),
        height * (0.03 if look.head_at_bottom else rng.uniform(0.07, 0.1)),
        width * rng.uniform(0.96, 0.99),
        height * (0.91 if look.head_at_bottom else rng.uniform(0.94, 0.97)),
    )
    sheet.chart(inside)
    return ChartDrawing(
        image=sheet.image,
        marks=sheet.marks,
        labels=sheet.labels,
        extents=sheet.extents,
        digit_heights=sheet.digit_heights,
        axes=tuple(sheet.drawn_axes),
        beside=tuple(sheet.beside),
    )


@dataclass(frozen=True, slots=True)
class _Style:
    """One draw of everything that a chart's data do not say."""

    look: Look
    font_file: str
    digit_height: float
    """Wanted, in pixels; labels that would not fit are smaller."""
    small: ImageFont.FreeTypeFont
    background: Color
    ink: Color
    is_outlined: bool
    has_grid: bool
    has_ticks: bool
    has_axis: bool
    tick_step: int
    fills_hundred: bool
    """The axis ends at 100 rather than at the largest value."""
    bar_share: float
    """Half the width of a bar over its slot."""


def _style(rng: np.random.Generator, look: Look, digit_height: float) -> _Style:
    small = _font(str(rng.choice(look.fonts)), int(rng.integers(9, 17)))
    return _Style(
        look=look,
        font_file=str(rng.choice(look.fonts)),
        digit_height=digit_height,
        small=small,
        background=look.backgrounds[int(rng.integers(len(look.backgrounds)))],
        ink=(20, 20, 20) if rng.random() < 0.7 else (70, 70, 90),
        is_outlined=bool(rng.random() < 0.3),
        has_grid=bool(rng.random() < 0.5),
        has_ticks=bool(rng.random() < 0.7),
        has_axis=bool(rng.random() < 0.7),
        tick_step=int(rng.choice([10, 20, 25])),
        fills_hundred=bool(rng.random() < 0.5),
        bar_share=float(rng.uniform(0.28, 0.46)),
    )


@dataclass(slots=True)
class _Sheet:
    """A picture being drawn."""

    spec: ChartSpec
    style: _Style
    rng: np.random.Generator
    image: Image.Image
    marks: dict[Mark, Box] = field(default_factory=dict)
    labels: dict[Mark, Box] = field(default_factory=dict)
    extents: dict[Mark, float] = field(default_factory=dict)
    digit_heights: dict[Mark, float] = field(default_factory=dict)
    drawn_axes: list[DrawnAxis] = field(default_factory=list)
    beside: list[tuple[str, Box]] = field(default_factory=list)
    pen: ImageDraw.ImageDraw = field(init=False)

    def __post_init__(self) -> None:
        self.pen = ImageDraw.Draw(self.image)

    def chart(self, inside: Box) -> None:
        """The whole chart within a box."""
        kind = self.spec.chart
        if kind == "pie":
            self.pie(inside)
        elif kind == "panels":
            self.panels(inside)
        elif kind == "stacked":
            self.stacked(self.plot_area(inside))
        elif kind == "grouped":
            self.upright(self.plot_area(inside), list(range(len(self.spec.values))), "bar")
        else:
            self.upright(self.plot_area(inside), [0], kind)

    def panels(self, inside: Box) -> None:
        """Panels in reading order: two side by side or above each other, three in a row, four in
        a square; each below its title.
        """
        count = len(self.spec.values)
        columns = {2: int(self.rng.integers(1, 3)), 3: 3, 4: 2}[count]
        rows = count // columns
        width, height = inside.width / columns, inside.height / rows
        font = self.fitting("0" * 5, width * 0.7, height * 0.16)
        for part in range(count):
            row, column = divmod(part, columns)
            left, top = inside.x0 + column * width, inside.y0 + row * height
            digits = _digit_height(font)
            self.print(Mark(part), font, left + width / 2, top + height * 0.03 + digits)
            below = Box(
                left + width * 0.04,
                top + height * 0.05 + digits * 1.5,
                left + width * 0.97,
                top + height * 0.96,
            )
            self.upright(self.plot_area(below), [part], self.spec.panel)

    def plot_area(self, inside: Box) -> Box:
        """What is left beside the numbers of the axis."""
        numbers = self.style.small.getlength("100") + 8 if self.style.has_ticks else 4
        if self.style.look.head_at_bottom:
            return Box(inside.x0, inside.y0, inside.x1 - numbers, inside.y1)
        return Box(inside.x0 + numbers, inside.y0, inside.x1, inside.y1)

    def upright(self, area: Box, parts: list[int], kind: str) -> None:
        """Marks on an axis from left to right: bars, points on a line, dots."""
        spec, style = self.spec, self.style
        groups = [[Mark(p, k) for k in range(len(spec.values[p]))] for p in parts]
        between = 0.6 if len(groups) > 1 else 0.0  # slots of space between groups
        slots = sum(map(len, groups)) + between * len(groups)
        slot = area.width / slots
        room = slot * (0.62 if kind == "scatter" else 0.92)
        font = self.fitting("00", room, area.height * 0.2)
        digits = _digit_height(font)
        top = area.y0 + digits * 1.6
        base = area.y1
        if kind != "bar":
            base, top = base - digits * 0.2, top + min(slot * 0.12, area.height * 0.06)
        unit = (base - top) / (
            100 if style.fills_hundred else max(v for p in parts for v in spec.values[p])
        )
        self.axes(parts, Box(area.x0, top, area.x1, area.y1), base, unit)
        centers: dict[Mark, float] = {}
        at = area.x0
        for group in groups:
            at += between * slot / 2
            for mark in group:
                centers[mark] = at + slot / 2
                at += slot
            at += between * slot / 2
        if kind == "scatter":
            centers = {m: x + slot * self.rng.uniform(-0.17, 0.17) for m, x in centers.items()}
        tips = {m: base - unit * spec.value(m) for m in centers}
        if kind == "line":
            line_px = max(2, round(self.image.width * self.rng.uniform(0.003, 0.006)))
            path = [(centers[m], tips[m]) for m in centers]
            self.pen.line(path, fill=LINE, width=line_px)
        radius = max(4.0, min(slot * 0.2, self.image.width * self.rng.uniform(0.018, 0.035)))
        half = slot * (0.46 if len(groups) > 1 else style.bar_share)
        for mark, x in centers.items():
            y = tips[mark]
            self.extents[mark] = base - y
            if kind == "bar":
                self.bar(mark, Box(x - half, y, x + half, base))
                above = y
            else:
                self.dot(mark, Box(x - radius, y - radius, x + radius, y + radius))
                above = y - radius
            gap = max(2.0, digits * 0.25)
            self.print(mark, font, x, above - gap, clear=kind == "line")

    def stacked(self, area: Box) -> None:
        """Columns of parts, each with its label inside."""
        spec = self.spec
        columns = len(spec.values)
        slot = area.width / columns
        most = max(sum(part) for part in spec.values)
        unit = area.height * self.rng.uniform(0.85, 0.97) / most
        half = slot * self.rng.uniform(0.28, 0.44)
        least = min(v for part in spec.values for v in part) * unit
        font = self.fitting("00", 1.8 * half, least * 0.7)
        whole = Box(area.x0, area.y1 - most * unit, area.x1, area.y1)
        self.axes(range(columns), whole, area.y1, unit)
        for column, part in enumerate(spec.values):
            x, base = area.x0 + slot * (column + 0.5), area.y1
            for place, value in enumerate(part):
                mark = Mark(column, place)
                top = base - unit * value
                self.bar(mark, Box(x - half, top, x + half, base), lightened=True)
                self.extents[mark] = base - top
                # the baseline that centres digits on the part
                self.print(mark, font, x, (top + base) / 2 + _digit_height(font) / 2)
                base = top

    def pie(self, inside: Box) -> None:
        """Slices clockwise from the top, each with its label outside."""
        [values] = self.spec.values
        font = self.fitting("00", inside.width * 0.2, inside.height * 0.16)
        label = max(font.getlength("00"), 1.4 * _digit_height(font))
        most = min(inside.width / 2, inside.height / 2) - 1.35 * label
        radius = most * self.rng.uniform(0.85, 1.0)
        slack = inside.width / 2 - radius - 1.35 * label
        x = inside.center.x + slack * self.rng.uniform(-0.8, 0.8)
        y = inside.center.y
        round_box = Box(x - radius, y - radius, x + radius, y + radius)
        angle = -90.0
        for place, value in enumerate(values):
            mark = Mark(0, place)
            turn = 360 * value / sum(values)
            self.pen.pieslice(
                round_box.as_tuple(),
                angle,
                angle + turn,
                fill=self.fill(mark),
                outline=(250, 250, 250),
                width=max(1, round(radius * 0.01)),
            )
            steps = np.radians(np.linspace(angle, angle + turn, 40))
            xs, ys = x + radius * np.cos(steps), y + radius * np.sin(steps)
            self.marks[mark] = Box(min(x, *xs), min(y, *ys), max(x, *xs), max(y, *ys))
            self.extents[mark] = math.radians(turn) * radius
            middle = math.radians(angle + turn / 2)
            out = radius + 0.72 * label
            at = x + out * math.cos(middle), y + out * math.sin(middle)
            self.print(mark, font, at[0], at[1] + _digit_height(font) / 2)
            angle += turn

    def bar(self, mark: Mark, box: Box, *, lightened: bool = False) -> None:
        outline = LINE if self.style.is_outlined and not lightened else None
        self.pen.rectangle(box.as_tuple(), fill=self.fill(mark, lightened), outline=outline)
        self.marks[mark] = box

    def dot(self, mark: Mark, box: Box) -> None:
        outline = LINE if self.style.is_outlined else None
        self.pen.ellipse(box.as_tuple(), fill=self.fill(mark), outline=outline)
        self.marks[mark] = box

    def fill(self, mark: Mark, lightened: bool = False) -> Color:
        shades = self.style.look.colors[self.spec.color(mark)]
        r, g, b = shades[int(self.rng.integers(len(shades)))]
        if lightened:  # print on it must stay legible
            return ((r + 255) // 2, (g + 255) // 2, (b + 255) // 2)
        return r, g, b

    def print(
        self, mark: Mark, font: ImageFont.FreeTypeFont, x: float, bottom: float, clear: bool = False
    ) -> None:
        """A label, its ink centred on x and ending at `bottom`; on cleared ground where `clear`."""
        text = self.spec.printed(mark)
        x0, y0, x1, y1 = font.getbbox(text)
        at = (round(x - (x1 - x0) / 2 - x0), round(bottom - y1))
        label = Box(at[0] + x0, at[1] + y0, at[0] + x1, at[1] + y1)
        if clear:
            ground = label.expand(1)
            shade = _shade(self.style.background, ground, *self.image.size)
            self.pen.rectangle(ground.as_tuple(), fill=shade)
        self.pen.text(at, text, font=font, fill=self.style.ink)
        self.labels[mark] = label
        self.digit_heights[mark] = _digit_height(font)

    def fitting(self, widest: str, width: float, height: float) -> ImageFont.FreeTypeFont:
        """The font of the wanted size, or the largest one that keeps within width and height."""
        file = self.style.font_file
        size = max(8, round(self.style.digit_height / 0.72))
        while size > 8:
            font = _font(file, size)
            if font.getlength(widest) <= width and _digit_height(font) <= height:
                break
            size -= 1
        return _font(file, size)

    def write(self, at: tuple[float, float], text: str, *, fill: Color, anchor: str) -> None:
        """Small print."""
        font = self.style.small
        self.pen.text(at, text, font=font, fill=fill, anchor=anchor)
        x0, y0, x1, y1 = self.pen.textbbox(at, text, font=font, anchor=anchor)
        self.beside.append((text, Box(x0, y0, x1, y1)))

    def axes(self, parts: Sequence[int], area: Box, base: float, unit: float) -> None:
        """Lines, numbers and a grid around marks that stand on `base`."""
        style, pen = self.style, self.pen
        self.drawn_axes.append(DrawnAxis(tuple(parts), area, base, unit, style.has_ticks))
        on_right = style.look.head_at_bottom
        side = area.x1 if on_right else area.x0
        value = 0
        while (y := base - unit * value) >= area.y0 - 1:
            if style.has_grid:
                pen.line([(area.x0, y), (area.x1, y)], fill=(215, 215, 220), width=1)
            if style.has_ticks:
                at = (side + 6, y) if on_right else (side - 6, y)
                anchor = "lm" if on_right else "rm"
                self.write(at, str(value), fill=(90, 90, 90), anchor=anchor)
            value += style.tick_step
        pen.line([(area.x0, base), (area.x1, base)], fill=LINE, width=2)
        if style.has_axis:
            pen.line([(side, area.y0), (side, base)], fill=LINE, width=2)


@lru_cache(maxsize=512)
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_font_folder() / file), size)


@lru_cache(maxsize=512)
def _digit_height(font: ImageFont.FreeTypeFont) -> float:
    digits = font.getbbox("0123456789")
    return float(digits[3] - digits[1])


@lru_cache(maxsize=1)
def _font_folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _shaded(background: Color, width: int, height: int) -> Image.Image:
    """A background lit from the top left: red falls to the right, green to the bottom."""
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = (background[0] - np.linspace(0, SHADE, width)).astype(np.uint8)[None, :]
    pixels[..., 1] = (background[1] - np.linspace(0, SHADE, height)).astype(np.uint8)[:, None]
    pixels[..., 2] = background[2]
    return Image.fromarray(pixels)


def _shade(background: Color, box: Box, width: int, height: int) -> Color:
    """The colour of the shaded background in the middle of a box."""
    x, y = box.center.x / width, box.center.y / height
    return (round(background[0] - SHADE * x), round(background[1] - SHADE * y), background[2])


def _size(rng: np.random.Generator, look: Look) -> tuple[int, int]:
    """Sides of 448 to 1,024 pixels, some half a million pixels or less."""
    across, down = look.shapes[int(rng.integers(len(look.shapes)))]
    longest = int(rng.integers(max(600, 448 * across // down + 1), 1025))
    width = longest if across > down else min(longest, 900)
    return width, width * down // across
