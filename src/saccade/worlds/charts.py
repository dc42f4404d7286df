"""Bar and line charts drawn with exact geometry, and questions about them.

Invariant: an item is a pure function of (split, index); the hash of a chart's data decides its
split, so no chart (and thus no chart-kind-question) stands in two splits. Every question carries
the boxes its answer rests on.

Left out on purpose: charts by a plotting library. Drawing one takes a few milliseconds, so that a
training run is never waiting for pictures.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from saccade.geometry import Box

__all__ = [
    "COLORS",
    "KINDS",
    "SPLITS",
    "ChartDrawing",
    "ChartItem",
    "ChartSpec",
    "draw",
    "item",
    "question",
    "spec_for",
    "thumbnail_scale",
]

ChartKind = Literal["bar", "line"]
QuestionKind = Literal["value", "difference", "extremum", "comparison"]
KINDS: tuple[QuestionKind, ...] = ("value", "difference", "extremum", "comparison")
SPLITS = {"pretrain": (0, 70), "train": (70, 84), "validation": (84, 90), "test": (90, 100)}
"""Percentiles of the data hash that belong to each split."""

COLORS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "red": ((214, 39, 40), (230, 60, 50), (190, 20, 45)),
    "blue": ((31, 90, 200), (50, 110, 230), (30, 60, 160)),
    "green": ((44, 150, 44), (20, 120, 60), (70, 170, 80)),
    "orange": ((255, 140, 20), (245, 125, 0), (250, 155, 60)),
    "purple": ((130, 60, 180), (110, 40, 150), (150, 85, 205)),
    "brown": ((130, 80, 50), (115, 65, 30), (145, 95, 65)),
    "pink": ((245, 130, 195), (250, 150, 205), (235, 110, 180)),
    "gray": ((127, 127, 127), (105, 105, 110), (145, 145, 150)),
    "yellow": ((235, 205, 30), (245, 220, 60), (225, 190, 10)),
    "cyan": ((30, 190, 210), (60, 205, 225), (20, 170, 195)),
}
_BACKGROUNDS = ((255, 255, 255), (255, 255, 255), (248, 248, 244), (240, 244, 250), (250, 245, 235))
# fmt: off
_TITLE_WORDS = (
    "sales", "visits", "output", "units", "orders", "rainfall", "energy", "traffic", "harvest",
    "profit", "index", "score", "budget", "north", "south", "east", "west", "annual", "monthly",
    "weekly", "total", "average", "regional", "daily", "net", "gross",
)
# fmt: on
_FONT_FILES = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSansMono.ttf",
    "STIXGeneral.ttf",
)
SHADE = 48
"""Levels that the background falls from side to side: a cue to place, as light gives in life."""
READABLE_PX = 7.0
"""Digits of at least this height in the thumbnail count as readable there."""
VISIBLE_GAP_PX = 1.0
"""Two heights that differ by at least this much in the thumbnail can be compared there."""


@dataclass(frozen=True, slots=True)
class ChartSpec:
    """What a chart shows: its type and its (colour name, value) entries from left to right."""

    chart: ChartKind
    entries: tuple[tuple[str, int], ...]

    def value(self, name: str) -> int:
        return dict(self.entries)[name]

    def called(self, name: str) -> str:
        """A mark as questions call it: by its place from the left."""
        mark = "bar" if self.chart == "bar" else "point"
        return f"{mark} {[n for n, _ in self.entries].index(name) + 1}"

    @property
    def digest(self) -> str:
        text = json.dumps([self.chart, self.entries], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def split(self) -> str:
        percent = int(self.digest[:8], 16) % 100
        return next(s for s, (low, high) in SPLITS.items() if low <= percent < high)


@dataclass(frozen=True, slots=True)
class ChartDrawing:
    """A drawn chart with the boxes of its marks and of their value labels, in its pixels, by
    colour name.
    """

    image: Image.Image
    marks: dict[str, Box]
    labels: dict[str, Box]
    tips: dict[str, float]
    """y of the top of each bar, or of the point."""
    digit_height: float
    """Height of the labels' digits in pixels of the chart."""


@dataclass(frozen=True, slots=True)
class ChartItem:
    """One chart with one question about it."""

    id: str
    spec: ChartSpec
    drawing: ChartDrawing
    kind: QuestionKind
    question: str
    answer: str
    names: tuple[str, ...]
    """The entries that the answer rests on."""
    evidence: tuple[tuple[str, Box], ...]
    stratum: Literal["easy", "look"]


def thumbnail_scale(width: int, height: int, max_pixels: int) -> float:
    """Size of the picture that a model is shown under that budget over the size of the original,
    at most 1.
    """
    return min(1.0, math.sqrt(max_pixels / (width * height)))


@lru_cache(maxsize=512)
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_font_folder() / file), size)


@lru_cache(maxsize=1)
def _font_folder() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def _draw_entries(
    rng: np.random.Generator, kind: QuestionKind
) -> tuple[ChartSpec, tuple[str, ...]]:
    """Random data, and the names that the question of that kind is about."""
    count = int(rng.integers(3, 6))
    names = [str(n) for n in rng.permutation(list(COLORS))[:count]]
    values = [int(v) for v in rng.integers(10, 100, size=count)]
    asked: tuple[str, ...] = ()
    a, b = (int(i) for i in rng.permutation(count)[:2])
    close = rng.random() < 0.5
    if kind == "value":
        asked = (names[a],)
    elif kind == "difference":
        while values[a] == values[b]:
            values[b] = int(rng.integers(10, 100))
        asked = (names[a], names[b]) if values[a] > values[b] else (names[b], names[a])
    elif kind == "comparison":
        if close:
            values[b] = int(np.clip(values[a] + rng.choice([-2, -1, 1, 2]), 10, 99))
        while values[a] == values[b]:
            values[b] = int(rng.integers(10, 100))
        asked = (names[a], names[b])
    else:
        highest = rng.random() < 0.5
        values = [int(v) for v in rng.permutation(np.arange(20, 90))[:count]]
        order = sorted(range(count), key=lambda i: values[i], reverse=bool(highest))
        first, second = order[0], order[1]
        if close:
            values[first] = values[second] + (1 if highest else -1) * int(rng.integers(1, 3))
        asked = (names[first], names[second])
    chart: ChartKind = "bar" if rng.random() < 0.6 else "line"
    return ChartSpec(chart, tuple(zip(names, values, strict=True))), asked


def spec_for(
    split: str, index: int
) -> tuple[ChartSpec, QuestionKind, tuple[str, ...], np.random.Generator]:
    """The data of item `index` of a split, its question kind, the names asked about, and its
    generator.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}. Available: {', '.join(SPLITS)}.")
    rng = np.random.default_rng([list(SPLITS).index(split), index, 20])
    kind: QuestionKind = str(rng.choice(KINDS, p=[0.4, 0.2, 0.2, 0.2]))  # type: ignore[assignment]
    while True:
        spec, asked = _draw_entries(rng, kind)
        if spec.split == split:
            return spec, kind, asked, rng


def item(split: str, index: int, *, max_pixels: int = 16 * 28 * 28) -> ChartItem:
    """Item `index` of a split: the same for the same arguments.

    `max_pixels` is the budget of the picture that the model will be shown; it decides `easy` or
    `look`.
    """
    spec, kind, asked, rng = spec_for(split, index)
    drawing = draw(spec, rng, max_pixels=max_pixels)
    text, answer = question(spec, kind, asked)
    scale = thumbnail_scale(*drawing.image.size, max_pixels)
    gap_px = abs(drawing.tips[asked[0]] - drawing.tips[asked[-1]]) * scale
    by_height = kind in ("extremum", "comparison") and gap_px >= VISIBLE_GAP_PX
    evidence = tuple((n, drawing.marks[n] if by_height else drawing.labels[n]) for n in asked)
    readable = by_height or drawing.digit_height * scale >= READABLE_PX
    return ChartItem(
        id=f"charts/{split}/{index}",
        spec=spec,
        drawing=drawing,
        kind=kind,
        question=text,
        answer=answer,
        names=asked,
        evidence=evidence,
        stratum="easy" if readable else "look",
    )


def question(spec: ChartSpec, kind: QuestionKind, asked: tuple[str, ...]) -> tuple[str, str]:
    """The question of that kind about the asked marks, and its answer."""
    called = [spec.called(name) for name in asked]
    if kind == "value":
        return f"What is the value of {called[0]}?", str(spec.value(asked[0]))
    if kind == "difference":
        answer = str(spec.value(asked[0]) - spec.value(asked[1]))
        return f"How much higher is {called[0]} than {called[1]}?", answer
    if kind == "comparison":
        higher = called[0] if spec.value(asked[0]) > spec.value(asked[1]) else called[1]
        return f"Which is higher, {called[0]} or {called[1]}?", higher
    highest = spec.value(asked[0]) > spec.value(asked[1])
    return f"Which is the {'highest' if highest else 'lowest'}?", called[0]


def draw(spec: ChartSpec, rng: np.random.Generator, *, max_pixels: int) -> ChartDrawing:
    """Draw a chart in a random style; a share of charts has labels that are large even in the
    thumbnail.
    """
    width, height = _size(rng)
    scale = thumbnail_scale(width, height, max_pixels)
    count = len(spec.entries)
    digit_px = rng.uniform(7.5, 10.0) if rng.random() < 0.35 else rng.uniform(1.7, 2.6)
    font_file = str(rng.choice(_FONT_FILES))
    background = _BACKGROUNDS[int(rng.integers(len(_BACKGROUNDS)))]
    image = _shaded(background, width, height)
    pen = ImageDraw.Draw(image)

    left, right = width * rng.uniform(0.07, 0.13), width * rng.uniform(0.93, 0.98)
    slot = (right - left) / count
    font = _fitting_font(font_file, digit_px / scale, slot * 0.95)
    digits = font.getbbox("0123456789")
    digit_height = float(digits[3] - digits[1])
    base = height * rng.uniform(0.88, 0.93)
    top = height * rng.uniform(0.08, 0.14) + digit_height * 1.4
    most = max(v for _, v in spec.entries)
    unit = (base - top) / (100 if rng.random() < 0.5 else most)

    _draw_axes(pen, rng, (left, top, right, base), unit, (width, height))
    ink = (20, 20, 20) if rng.random() < 0.7 else (70, 70, 90)
    marks: dict[str, Box] = {}
    labels: dict[str, Box] = {}
    tips: dict[str, float] = {}
    centers = [left + slot * (i + 0.5) for i in range(count)]
    tops = [base - unit * v for _, v in spec.entries]
    if spec.chart == "line":
        line_px = max(2, round(width * rng.uniform(0.003, 0.006)))
        pen.line(list(zip(centers, tops, strict=True)), fill=(90, 90, 100), width=line_px)
    radius = max(5.0, width * rng.uniform(0.025, 0.04))
    half = slot * rng.uniform(0.28, 0.46)
    outlined = rng.random() < 0.3
    for (name, value), x, y in zip(spec.entries, centers, tops, strict=True):
        shade = COLORS[name][int(rng.integers(len(COLORS[name])))]
        if spec.chart == "bar":
            mark = Box(x - half, y, x + half, base)
            pen.rectangle(mark.as_tuple(), fill=shade, outline=(30, 30, 30) if outlined else None)
            above = y
        else:
            mark = Box(x - radius, y - radius, x + radius, y + radius)
            pen.ellipse(mark.as_tuple(), fill=shade, outline=(30, 30, 30) if outlined else None)
            above = y - radius
        text = str(value)
        x0, y0, x1, y1 = font.getbbox(text)
        gap = max(2.0, digit_height * 0.25)
        at = (round(x - (x1 - x0) / 2 - x0), round(above - gap - y1))
        label = Box(at[0] + x0, at[1] + y0, at[0] + x1, at[1] + y1)
        if spec.chart == "line":
            beside = label.expand(1)
            pen.rectangle(beside.as_tuple(), fill=_shade(background, beside, width, height))
        pen.text(at, text, font=font, fill=ink)
        marks[name], labels[name], tips[name] = mark, label, y
    return ChartDrawing(image, marks, labels, tips, digit_height)


def _shaded(background: tuple[int, int, int], width: int, height: int) -> Image.Image:
    """A background lit from the top left: red falls to the right, green to the bottom."""
    across = np.linspace(0, SHADE, width)[None, :]
    down = np.linspace(0, SHADE, height)[:, None]
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = background[0] - across
    pixels[..., 1] = background[1] - down
    pixels[..., 2] = background[2]
    return Image.fromarray(pixels)


def _shade(
    background: tuple[int, int, int], box: Box, width: int, height: int
) -> tuple[int, int, int]:
    """The colour of the shaded background in the middle of a box."""
    x, y = box.center.x / width, box.center.y / height
    return (round(background[0] - SHADE * x), round(background[1] - SHADE * y), background[2])


def _size(rng: np.random.Generator) -> tuple[int, int]:
    """Four to three, 600 x 450 to 1,024 x 768 pixels."""
    width = 4 * int(rng.integers(150, 257))
    return width, width * 3 // 4


def _fitting_font(file: str, digit_height: float, max_width: float) -> ImageFont.FreeTypeFont:
    """The font whose digits have about that height, or the largest one whose two digits fit the
    width.
    """
    size = max(8, round(digit_height / 0.72))
    while size > 8 and _font(file, size).getlength("00") > max_width:
        size -= 1
    return _font(file, size)


def _draw_axes(
    pen: ImageDraw.ImageDraw,
    rng: np.random.Generator,
    frame: tuple[float, float, float, float],
    unit: float,
    size: tuple[int, int],
) -> None:
    left, top, right, base = frame
    small = _font(str(rng.choice(_FONT_FILES)), max(9, round(size[1] * rng.uniform(0.016, 0.024))))
    faint = (215, 215, 220)
    step = int(rng.choice([10, 20, 25]))
    has_grid, has_ticks = rng.random() < 0.5, rng.random() < 0.7
    for value in range(0, 101, step):
        y = base - unit * value
        if y < top - 1:
            break
        if has_grid:
            pen.line([(left, y), (right, y)], fill=faint, width=1)
        if has_ticks:
            pen.text((left - 6, y), str(value), font=small, fill=(90, 90, 90), anchor="rm")
    pen.line([(left, base), (right, base)], fill=(60, 60, 60), width=2)
    if rng.random() < 0.7:
        pen.line([(left, top), (left, base)], fill=(60, 60, 60), width=2)
    if rng.random() < 0.6:
        words = " ".join(str(w) for w in rng.choice(_TITLE_WORDS, size=2, replace=False))
        pen.text((size[0] / 2, size[1] * 0.04), words, font=small, fill=(40, 40, 40), anchor="mm")
