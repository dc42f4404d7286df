"""What a base model is taught about charts: captions with boxes, referring boxes, reading enlarged
views, plain questions and small arithmetic. Nothing of tools, and no conversation in which a
picture comes back.

Invariant: a lesson is text about one chart (and at most one enlarged view of it), true by the
chart's geometry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from saccade.geometry import Box, Frame
from saccade.worlds.charts import ChartItem, Naming, QuestionKind, question

__all__ = [
    "GRAIN",
    "TOPICS",
    "Lesson",
    "Topic",
    "box_text",
    "label_region",
    "lessons",
    "rounded_box",
]

Topic = Literal["caption", "pointing", "naming", "question", "reading", "arithmetic"]
TOPICS: tuple[Topic, ...] = ("caption", "pointing", "naming", "question", "reading", "arithmetic")
GRAIN = 10
"""Boxes of lessons are rounded outward to multiples of this many units of the frame."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A question and its answer, asked about the chart or about an enlarged view shown after it."""

    topic: Topic
    question: str
    answer: str
    view: Image.Image | None = None


def box_text(frame: Frame, box: Box) -> str:
    """A box as a list of numbers in the frame."""
    return "[" + ", ".join(str(v) for v in rounded_box(frame, box)) + "]"


def rounded_box(frame: Frame, box: Box) -> list[int]:
    """The box in units of the frame, rounded outward to the grain: what a small eye can tell
    apart.
    """
    x0, y0, x1, y1 = frame.encode_box(box)
    low = [math.floor(v / GRAIN) * GRAIN for v in (x0, y0)]
    high = [math.ceil(v / GRAIN) * GRAIN for v in (x1, y1)]
    return [*low, *(min(h, int(m)) for h, m in zip(high, frame.limit, strict=True))]


def label_region(label: Box, *, width: int, height: int) -> Box:
    """The label with the margin that one would frame it with: three quarters of its height on each
    side.
    """
    region = label.expand(0.75 * label.height).clip(width, height)
    assert region is not None
    return region


def lessons(
    item: ChartItem, rng: np.random.Generator, *, frame: Frame, by: Naming = "place"
) -> list[Lesson]:
    """Four lessons on one chart, drawn from all topics: for seeing many charts."""
    spec, drawing = item.spec, item.drawing
    width, height = drawing.image.size
    names = [n for n, _ in spec.entries]
    regions = {n: label_region(drawing.labels[n], width=width, height=height) for n in names}
    captioned = rng.random() < 0.4
    found = [
        _caption(item, regions, rng, frame)
        if captioned
        else _pointing(item, regions, rng, frame, by)
    ]
    name = str(rng.choice(names))
    if rng.random() < 0.7:
        asked = f"Where is the label of {spec.called(name, by)}?"
        found.append(Lesson("pointing", asked, box_text(frame, regions[name])))
    else:
        box = drawing.marks[name] if rng.random() < 0.5 else regions[name]
        found.append(Lesson("naming", f"What is at {box_text(frame, box)}?", name))
    kind = rng.random()
    if kind < 0.4:
        found.append(Lesson("question", *question(spec, item.kind, item.names, by=by)))
    else:
        called = [spec.called(n, by) for n in names]
        found.append(_other_question(item, rng, by) if kind < 0.6 else _arithmetic(rng, called))
    found.append(_reading(item, str(rng.choice(names)), rng))
    return found


def _pointing(
    item: ChartItem,
    regions: dict[str, Box],
    rng: np.random.Generator,
    frame: Frame,
    by: Naming,
) -> Lesson:
    """All marks, or all labels, in an order that only the question tells."""
    names = [str(n) for n in rng.permutation([n for n, _ in item.spec.entries])]
    asked, boxes = ("", item.drawing.marks) if rng.random() < 0.4 else ("the labels of ", regions)
    called = [item.spec.called(n, by) for n in names]
    found = zip(called, names, strict=True)
    listed = "\n".join(f"{c} {box_text(frame, boxes[n])}" for c, n in found)
    return Lesson("pointing", f"Where are {asked}{', '.join(called)}?", listed)


def _caption(
    item: ChartItem, regions: dict[str, Box], rng: np.random.Generator, frame: Frame
) -> Lesson:
    if rng.random() < 0.4:
        listed = [f"{n} {box_text(frame, item.drawing.marks[n])}" for n, _ in item.spec.entries]
        return Lesson("caption", f"Describe the {item.spec.chart} chart.", "\n".join(listed))
    listed = [f"{n} {box_text(frame, regions[n])}" for n, _ in item.spec.entries]
    return Lesson("caption", "List the labels.", "\n".join(listed))


def _other_question(item: ChartItem, rng: np.random.Generator, by: Naming) -> Lesson:
    """A plain question on the same chart about two marks at random."""
    entries = item.spec.entries
    a, b = (int(i) for i in rng.permutation(len(entries))[:2])
    asked = (entries[a][0], entries[b][0])
    kind: QuestionKind = (
        "value" if rng.random() < 0.5 or entries[a][1] == entries[b][1] else "comparison"
    )
    return Lesson("question", *question(item.spec, kind, asked, by=by))


def _reading(item: ChartItem, name: str, rng: np.random.Generator) -> Lesson:
    """The number of one label from a view of it: trimmed to the digits, or framed loosely."""
    label = item.drawing.labels[name]
    image = item.drawing.image
    pad = label.height * (0.05 if rng.random() < 0.6 else rng.uniform(0.1, 1.0))
    left, up, right, down = rng.uniform(0.0, 1.2, size=4) * pad
    box = Box(label.x0 - left, label.y0 - up, label.x1 + right, label.y1 + down)
    inside = box.clip(*image.size)
    assert inside is not None
    corners = (int(inside.x0), int(inside.y0), -int(-inside.x1 // 1), -int(-inside.y1 // 1))
    return Lesson("reading", f"Read {name}.", str(item.spec.value(name)), image.crop(corners))


def _arithmetic(rng: np.random.Generator, names: list[str]) -> Lesson:
    a, b = (int(v) for v in rng.integers(10, 100, size=2))
    if rng.random() < 0.6:
        return Lesson("arithmetic", f"{max(a, b)} - {min(a, b)}?", str(abs(a - b)))
    if rng.random() < 0.5:
        b = int(np.clip(a + rng.integers(-3, 4), 10, 99))
    a, b = (a, b) if a != b else (a, b + 1)
    first, second = names[0], names[1]
    word = "higher" if rng.random() < 0.75 else "lower"
    wins = first if (a > b) == (word == "higher") else second
    return Lesson("arithmetic", f"{first} {a}, {second} {b}. Which is {word}?", wins)
