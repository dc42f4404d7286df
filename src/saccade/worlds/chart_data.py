"""What charts show: their data, the names of their marks, and the split that follows from it.

Invariant: the hash of a chart's data decides its split, so no chart (and thus no question on it)
stands in two splits.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar

import numpy as np

__all__ = [
    "CHARTS",
    "COLOR_NAMES",
    "KINDS",
    "SPLITS",
    "TAUGHT",
    "TITLES",
    "ChartKind",
    "ChartSpec",
    "Mark",
    "QuestionKind",
    "draw_data",
    "possible_answers",
]

ChartKind = Literal["bar", "line", "scatter", "pie", "grouped", "stacked", "panels"]
PanelKind = Literal["bar", "line", "scatter"]
T = TypeVar("T")
QuestionKind = Literal[
    "value", "difference", "comparison", "extremum", "count", "label", "two_step"
]
KINDS: dict[QuestionKind, float] = {
    "value": 0.28,
    "difference": 0.17,
    "comparison": 0.13,
    "extremum": 0.12,
    "count": 0.08,
    "label": 0.10,
    "two_step": 0.12,
}
"""Kinds of questions and their shares."""
CHARTS: dict[ChartKind, float] = {
    "bar": 0.22,
    "line": 0.17,
    "scatter": 0.13,
    "pie": 0.12,
    "grouped": 0.12,
    "stacked": 0.10,
    "panels": 0.14,
}
"""Kinds of charts and their shares, where the question does not demand panels."""
TAUGHT: dict[ChartKind, float] = {
    "bar": 0.14,
    "line": 0.12,
    "scatter": 0.10,
    "pie": 0.24,
    "grouped": 0.13,
    "stacked": 0.17,
    "panels": 0.10,
}
"""Their shares among the charts of the pretraining split: more of those whose labels stand at no
common height, which are learned last.
"""
SPLITS = {
    "pretrain": (0, 66),
    "train": (66, 80),
    "validation": (80, 86),
    "test": (86, 93),
    "test_style": (93, 96),
    "test_unseen": (96, 100),
}
"""Percentiles of the data hash that belong to each split."""
# fmt: off
COLOR_NAMES = (
    "red", "blue", "green", "orange", "purple", "brown", "pink", "gray", "yellow", "cyan",
)
TITLES = (
    "north", "south", "east", "west", "spring", "summer", "autumn", "winter", "sales", "costs",
    "profit", "rain", "wind", "sun", "wheat", "coal",
)
"""Words that panels are titled with."""
# fmt: on
_MARK = {
    "bar": "bar",
    "line": "point",
    "scatter": "dot",
    "pie": "slice",
    "grouped": "bar",
    "stacked": "part",
}
_PART = {"grouped": "group", "stacked": "column", "panels": "panel"}
_RANGE: dict[ChartKind, tuple[int, int]] = {"pie": (20, 80), "stacked": (20, 60)}
"""Values from ... to below, where 10 to 99 would leave no room for labels."""
_COUNTS: dict[ChartKind, tuple[int, int]] = {
    "pie": (2, 6),
    "grouped": (2, 5),
    "stacked": (2, 6),
    "panels": (2, 5),
}
"""What a question may count, from ... to below; other charts have 2 to 8 marks then."""


class Mark(NamedTuple):
    """A bar, point, dot, slice or part of a chart; or, without a place, the title of a panel."""

    part: int
    """Group, column or panel, from 0; 0 where the chart has one part."""
    place: int | None = None
    """From the left; from the bottom in a column, clockwise from the top in a pie; from 0."""


@dataclass(frozen=True, slots=True)
class ChartSpec:
    """What a chart shows. Everything but panels, groups and columns has one part."""

    chart: ChartKind
    values: tuple[tuple[int, ...], ...]
    """Of each part, in order."""
    colors: tuple[tuple[str, ...], ...]
    """Names of colours, like `values`."""
    panel: PanelKind = "bar"
    """What panels hold."""
    titles: tuple[str, ...] = ()
    """Of panels."""

    @property
    def marks(self) -> list[Mark]:
        return [Mark(p, k) for p, part in enumerate(self.values) for k in range(len(part))]

    @property
    def title_marks(self) -> list[Mark]:
        return [Mark(p) for p in range(len(self.titles))]

    @property
    def thing(self) -> str:
        """What its marks are called."""
        return _MARK[self.panel if self.chart == "panels" else self.chart]

    @property
    def counted(self) -> str:
        """What a question about their number calls its parts, or its marks where it has one."""
        return _PART.get(self.chart, self.thing) + "s"

    @property
    def has_heights(self) -> bool:
        """Its marks stand on an axis: one is higher, and not larger, than another."""
        return self.chart not in ("pie", "stacked")

    def value(self, mark: Mark) -> int:
        assert mark.place is not None
        return self.values[mark.part][mark.place]

    def color(self, mark: Mark) -> str:
        assert mark.place is not None
        return self.colors[mark.part][mark.place]

    def printed(self, mark: Mark) -> str:
        """What its label says."""
        return self.titles[mark.part] if mark.place is None else str(self.value(mark))

    def called(self, mark: Mark) -> str:
        """A mark as questions call it: by its place. A title is called by its panel."""
        part = f"{_PART[self.chart]} {mark.part + 1}" if self.chart in _PART else ""
        own = "" if mark.place is None else f"{self.thing} {mark.place + 1}"
        return f"{part} {own}".strip()

    @property
    def digest(self) -> str:
        data = [self.chart, self.values, self.colors, self.panel, self.titles]
        text = json.dumps(data, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def split(self) -> str:
        percent = int(self.digest[:8], 16) % 100
        return next(s for s, (low, high) in SPLITS.items() if low <= percent < high)


def draw_data(
    rng: np.random.Generator, kind: QuestionKind, charts: dict[ChartKind, float] = CHARTS
) -> tuple[ChartSpec, tuple[Mark, ...]]:
    """Random data, and the marks that a question of that kind rests on: one or two, the extreme
    and its rival, all marks of a count, the title and the mark of a question in two steps.
    """
    needs_panels = kind in ("label", "two_step")
    chart: ChartKind = "panels" if needs_panels else _choice(rng, charts)
    lengths = _lengths(rng, chart, kind)
    low, high = _values(chart)
    values = [[int(v) for v in rng.integers(low, high, size=n)] for n in lengths]
    marks = [Mark(p, k) for p, n in enumerate(lengths) for k in range(n)]
    asked = _asked(rng, chart, kind, marks)
    if kind == "difference":
        asked = _differing(rng, values, asked, (low, high), close=False)
    elif kind == "comparison":
        first, second = _differing(rng, values, asked, (low, high), close=rng.random() < 0.5)
        asked = (first, second) if rng.random() < 0.5 else (second, first)
    elif kind == "extremum":
        asked = _extreme(rng, values, asked, (low, high))
    spec = ChartSpec(
        chart=chart,
        values=tuple(tuple(part) for part in values),
        colors=_colors(rng, chart, lengths),
        panel=_choice(rng, {"bar": 0.5, "line": 0.3, "scatter": 0.2}),
        titles=tuple(str(t) for t in rng.permutation(TITLES)[: len(lengths)])
        if chart == "panels"
        else (),
    )
    return spec, asked


def possible_answers(chart: ChartKind, kind: QuestionKind) -> int:
    """How many answers a question of that kind may have on such a chart, where that is the same for
    all of them. Raises ValueError for an extremum, whose answer is one of the marks.
    """
    low, high = _values(chart)
    if kind == "count":
        least, most = _counts(chart)
        return most - least
    if kind == "extremum":
        raise ValueError("Of an extremum the answer is one of the marks in its scope: count those.")
    if kind == "comparison":
        return 2
    if kind == "label":
        return len(TITLES)
    return high - low - (kind == "difference")  # a difference is at least 1


def _values(chart: ChartKind) -> tuple[int, int]:
    return _RANGE.get(chart, (10, 100))


def _counts(chart: ChartKind) -> tuple[int, int]:
    return _COUNTS.get(chart, (2, 9))


def _choice(rng: np.random.Generator, shares: dict[T, float]) -> T:
    return list(shares)[int(rng.choice(len(shares), p=list(shares.values())))]


def _lengths(rng: np.random.Generator, chart: ChartKind, kind: QuestionKind) -> list[int]:
    """Marks of each part."""
    if chart == "panels":
        return [int(rng.integers(2, 4))] * int(rng.choice([2, 3, 4], p=[0.5, 0.2, 0.3]))
    if chart == "grouped":
        groups = int(rng.integers(*_counts(chart) if kind == "count" else (2, 4)))
        return [2 if groups > 2 else int(rng.integers(2, 4))] * groups
    if chart == "stacked":
        parts = int(rng.integers(2, 4))
        return [parts] * int(rng.integers(*_counts(chart) if kind == "count" else (2, 4)))
    if kind == "count":
        return [int(rng.integers(*_counts(chart)))]
    return [int(rng.integers(3, 6))]


def _asked(
    rng: np.random.Generator, chart: ChartKind, kind: QuestionKind, marks: list[Mark]
) -> tuple[Mark, ...]:
    """Marks that a question is about, before the data are fitted to it."""
    one = marks[int(rng.integers(len(marks)))]
    if kind == "label":
        return (Mark(one.part),)
    if kind == "two_step":
        return (Mark(one.part), one)
    if kind == "value":
        return (one,)
    if kind == "count":
        return tuple(marks)
    beside = [m for m in marks if m.part == one.part and m != one]
    if kind == "extremum":
        # heights of several panels, and parts of several columns, stand on no common line
        return (one, *beside) if chart in ("panels", "stacked") else tuple(marks)
    others = beside if rng.random() < 0.6 else [m for m in marks if m != one]
    return (one, others[int(rng.integers(len(others)))])


def _differing(
    rng: np.random.Generator,
    values: list[list[int]],
    asked: tuple[Mark, ...],
    limits: tuple[int, int],
    *,
    close: bool,
) -> tuple[Mark, Mark]:
    """The two marks, the higher one first, once their values differ; by 1 or 2 where `close`."""
    first, second = ((m.part, m.place or 0) for m in asked)
    low, high = limits
    here = values[first[0]][first[1]]
    other = values[second[0]][second[1]]
    if close:
        other = int(np.clip(here + rng.choice([-2, -1, 1, 2]), low, high - 1))
    while other == here:
        other = int(rng.integers(low, high))
    values[second[0]][second[1]] = other
    higher, lower = (first, second) if here > other else (second, first)
    return Mark(*higher), Mark(*lower)


def _extreme(
    rng: np.random.Generator,
    values: list[list[int]],
    among: tuple[Mark, ...],
    limits: tuple[int, int],
) -> tuple[Mark, Mark]:
    """The extreme of the marks and its rival, once all of their values differ."""
    highest = rng.random() < 0.5
    low, high = limits
    margin = (high - low) // 9
    drawn = rng.permutation(np.arange(low + margin, high - margin))[: len(among)]
    order = [among[i] for i in np.argsort(-drawn if highest else drawn)]
    for mark, value in zip(among, drawn, strict=True):
        values[mark.part][mark.place or 0] = int(value)
    first, second = order[0], order[1]
    if rng.random() < 0.5:
        rival = values[second.part][second.place or 0]
        step = int(rng.integers(1, 3))
        values[first.part][first.place or 0] = rival + (step if highest else -step)
    return first, second


def _colors(
    rng: np.random.Generator, chart: ChartKind, lengths: list[int]
) -> tuple[tuple[str, ...], ...]:
    """Groups and columns repeat their colours; panels have their own; others differ by mark."""
    names = [str(n) for n in rng.permutation(COLOR_NAMES)]
    if chart == "panels" and rng.random() < 0.5:
        return tuple((names[p],) * n for p, n in enumerate(lengths))
    return tuple(tuple(names[:n]) for n in lengths)
