"""An oracle that demonstrates how to answer chart questions, well in most cases and badly in some.

Invariant: the answer of every demonstration is right, as the published filter demands; what may be
wrong is where it looked. Real demonstrations are like that: the filter sees the answer and not the
gaze.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saccade.dialects import Dialect
from saccade.geometry import Box, Frame
from saccade.progress import progress
from saccade.synth.replay import Demonstration
from saccade.types import Answer, Parsed, ToolCall
from saccade.worlds.chart_data import Mark
from saccade.worlds.charts import ChartItem, item
from saccade.worlds.lessons import (
    GRAIN,
    found_by_title,
    label_region,
    rounded_box,
    worked_answer,
)

__all__ = ["QUALITIES", "demonstrate", "demonstrations"]

QUALITIES = {"good": 0.5, "sloppy": 0.2, "no_look": 0.25, "needless": 0.05}
"""Shares: looks where the evidence is; looks beside it; answers without looking; looks without
need.
"""


def demonstrations(
    count: int,
    *,
    seed: int,
    dialect: Dialect,
    tools: Sequence[str] = ("look",),
    start: int = 1_000_000,
    max_pixels: int = 16 * 784,
) -> list[Demonstration]:
    """`count` demonstrations on charts of the train split from `start` on. Each looks with one of
    the tools, which take an image and a box, drawn by lot.
    """
    found = []
    with progress("demonstrations", total=count) as bar:
        for index in range(start, start + count):
            chart = item("train", index, max_pixels=max_pixels)
            rng = np.random.default_rng([seed, index, 3])
            quality = str(rng.choice(list(QUALITIES), p=list(QUALITIES.values())))
            tool = tools[0] if len(tools) == 1 else str(rng.choice(list(tools)))
            shown = demonstrate(chart, quality, rng, tool=tool)
            turns = tuple(dialect.render(p) for p in shown)
            found.append(Demonstration(chart.id, turns, quality))
            bar.advance()
    return found


def demonstrate(
    chart: ChartItem, quality: str, rng: np.random.Generator, *, tool: str = "look"
) -> list[Parsed]:
    """The turns of one demonstration."""
    should_look = chart.stratum == "look"
    looks = (should_look and quality != "no_look") or (not should_look and quality == "needless")
    worked = worked_answer(chart, chart.kind, chart.asked, chart.answer)
    thought = "" if chart.by_sight and not looks else worked.rpartition("\n")[0]
    final = Parsed(thought=thought, answer=Answer(chart.answer))
    if not looks or chart.kind == "count":  # nothing is printed that would tell a number of marks
        return [final]
    if chart.kind != "two_step":
        called = [chart.spec.called(mark) for mark in chart.asked]
        return [_turn(chart, called, chart.asked, quality, rng, tool), final]
    title, mark = chart.asked
    titles = chart.spec.title_marks
    first = _turn(chart, [chart.spec.called(t) for t in titles], titles, quality, rng, tool)
    own = chart.spec.called(mark).removeprefix(f"{chart.spec.called(title)} ")
    found = found_by_title(chart.spec.titles, chart.spec.printed(title), own)
    return [first, _turn(chart, [found], [mark], quality, rng, tool), final]


def _turn(
    chart: ChartItem,
    said: Sequence[str],
    marks: Sequence[Mark],
    quality: str,
    rng: np.random.Generator,
    tool: str,
) -> Parsed:
    """A look at the label of each mark, with what is said of it."""
    calls = tuple(
        ToolCall(
            f"call_{number}",
            tool,
            {"image": "img_0", "box": _look(chart, mark, quality, rng)},
        )
        for number, mark in enumerate(marks)
    )
    return Parsed(thought="\n".join(said), calls=calls)


def _look(chart: ChartItem, mark: Mark, quality: str, rng: np.random.Generator) -> list[int]:
    """The box of one look in the model's frame: around the label, or beside it."""
    width, height = chart.drawing.image.size
    frame = Frame.thousand(width, height)
    label = chart.drawing.labels[mark]
    region = label_region(label, width=width, height=height)
    if quality == "sloppy":
        reach = 2.0 * max(label.width, label.height)
        dx, dy = rng.uniform(-reach, reach, size=2)
        moved = Box(region.x0 + dx, region.y0 + dy, region.x1 + dx, region.y1 + dy)
        region = moved.clip(width, height) or region
    x0, y0, x1, y1 = rounded_box(frame, region)
    # a sliver at the border is no place to look: at least three grains on each side
    return [*_wide(x0, x1), *_wide(y0, y1)][0::2] + [*_wide(x0, x1), *_wide(y0, y1)][1::2]


def _wide(low: int, high: int) -> tuple[int, int]:
    least = 3 * GRAIN
    if high - low >= least:
        return low, high
    low = min(low, 1000 - least)
    return low, low + least
