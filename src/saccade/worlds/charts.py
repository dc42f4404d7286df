"""Charts with questions about them: bars, lines, dots, pies, groups, columns of parts, panels.

Invariant: an item is a pure function of (split, index). Every question carries the boxes its
answer rests on, and is `easy` where they can be read or seen in the thumbnail, else `look`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from saccade.geometry import Box
from saccade.worlds import matplotlib_charts
from saccade.worlds.chart_data import (
    CHARTS,
    KINDS,
    SPLITS,
    TAUGHT,
    ChartSpec,
    Mark,
    QuestionKind,
    draw_data,
    possible_answers,
)
from saccade.worlds.drawing import KEPT_OUT, TRAINED, ChartDrawing, draw, thumbnail_scale

__all__ = [
    "READABLE_PX",
    "ChartItem",
    "item",
    "question",
    "spec_for",
    "visible_gap_px",
]

READABLE_PX = 7.0
"""Digits of at least this height in the thumbnail count as readable there."""


@dataclass(frozen=True, slots=True)
class ChartItem:
    """One chart with one question about it."""

    id: str
    spec: ChartSpec
    drawing: ChartDrawing
    kind: QuestionKind
    question: str
    answer: str
    asked: tuple[Mark, ...]
    """What the answer rests on."""
    by_sight: bool
    """The marks themselves answer, in the thumbnail: no label need be read."""
    stratum: Literal["easy", "look"]

    @property
    def evidence(self) -> tuple[tuple[Mark, Box], ...]:
        boxes = self.drawing.marks if self.by_sight else self.drawing.labels
        return tuple((m, boxes[m]) for m in self.asked)

    @property
    def choices(self) -> int:
        """Answers that a guess would draw from."""
        if self.kind == "extremum":
            return len(_scope(self.spec, self.asked[0]))
        return possible_answers(self.spec.chart, self.kind)


def spec_for(
    split: str, index: int
) -> tuple[ChartSpec, QuestionKind, tuple[Mark, ...], np.random.Generator]:
    """The data of item `index` of a split, its question kind, the marks asked about, and its
    generator.
    """
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}. Available: {', '.join(SPLITS)}.")
    rng = np.random.default_rng([list(SPLITS).index(split), index, 20])
    kind = list(KINDS)[int(rng.choice(len(KINDS), p=list(KINDS.values())))]
    charts = TAUGHT if split == "pretrain" else CHARTS
    while True:
        spec, asked = draw_data(rng, kind, charts)
        if spec.split == split:
            return spec, kind, asked, rng


def item(split: str, index: int, *, max_pixels: int = 16 * 28 * 28) -> ChartItem:
    """Item `index` of a split: the same for the same arguments.

    `max_pixels` is the budget of the picture that the model will be shown; it decides `easy` or
    `look`.
    """
    spec, kind, asked, rng = spec_for(split, index)
    if split == "test_unseen":
        drawing = matplotlib_charts.draw(spec, rng, max_pixels=max_pixels)
    else:
        look = KEPT_OUT if split == "test_style" else TRAINED
        drawing = draw(spec, rng, max_pixels=max_pixels, look=look)
    text, answer = question(spec, kind, asked)
    scale = thumbnail_scale(*drawing.image.size, max_pixels)
    by_sight = kind == "count" or (
        kind in ("extremum", "comparison") and _is_seen(spec, drawing, asked, scale)
    )
    readable = by_sight or all(drawing.digit_heights[m] * scale >= READABLE_PX for m in asked)
    return ChartItem(
        id=f"charts/{split}/{index}",
        spec=spec,
        drawing=drawing,
        kind=kind,
        question=text,
        answer=answer,
        asked=asked,
        by_sight=by_sight,
        stratum="easy" if readable else "look",
    )


def visible_gap_px(spec: ChartSpec) -> float:
    """Two extents that differ by at least this much in the thumbnail can be compared there."""
    return 1.0 if spec.has_heights else 2.0


def question(spec: ChartSpec, kind: QuestionKind, asked: tuple[Mark, ...]) -> tuple[str, str]:
    """The question of that kind about the asked marks, and its answer."""
    called = [spec.called(m) for m in asked]
    more, most, least = (
        ("higher", "highest", "lowest") if spec.has_heights else ("larger", "largest", "smallest")
    )
    if kind == "value":
        return f"What is the value of {called[0]}?", spec.printed(asked[0])
    if kind == "label":
        return f"What is the title of {called[0]}?", spec.printed(asked[0])
    if kind == "count":
        parts = len(spec.values)
        count = parts if parts > 1 else len(spec.values[0])
        return f"How many {spec.counted} are there?", str(count)
    if kind == "two_step":
        title, mark = asked
        own = f"{spec.thing} {(mark.place or 0) + 1}"
        asked_for = f"What is the value of {own} in the panel titled {spec.printed(title)}?"
        return asked_for, spec.printed(mark)
    a, b = asked
    if kind == "difference":
        answer = str(spec.value(a) - spec.value(b))
        return f"How much {more} is {called[0]} than {called[1]}?", answer
    if kind == "comparison":
        larger = called[0] if spec.value(a) > spec.value(b) else called[1]
        return f"Which is {more}, {called[0]} or {called[1]}?", larger
    extreme = most if spec.value(a) > spec.value(b) else least
    among = _scope(spec, a)
    where = f" in {spec.called(Mark(a.part))}" if len(among) < len(spec.marks) else ""
    return f"Which is the {extreme}{where}?", called[0]


def _scope(spec: ChartSpec, mark: Mark) -> list[Mark]:
    """The marks among which an extremum is asked for."""
    if spec.chart in ("panels", "stacked"):
        return [m for m in spec.marks if m.part == mark.part]
    return spec.marks


def _is_seen(spec: ChartSpec, drawing: ChartDrawing, asked: tuple[Mark, ...], scale: float) -> bool:
    a, b = asked
    if spec.chart == "panels" and a.part != b.part:
        return False  # each panel has an axis of its own
    gap_px = abs(drawing.extents[a] - drawing.extents[b]) * scale
    return gap_px >= visible_gap_px(spec)
