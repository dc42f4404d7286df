"""What a base model is taught about charts: captions with boxes, referring boxes, reading enlarged
views, plain questions and small arithmetic; single questions, and conversations of two. Nothing
of tools: views are shown by whoever asks, whatever the model itself pointed at before.

Invariant: a lesson is text about one chart (and enlarged views of it), true by the chart's
geometry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from saccade.geometry import Box, Frame
from saccade.ink import print_box
from saccade.worlds.charts import ChartItem, QuestionKind, question

__all__ = [
    "GRAIN",
    "TOPICS",
    "Exchange",
    "Lesson",
    "Topic",
    "box_text",
    "label_region",
    "lessons",
    "rounded_box",
    "worked_answer",
]

Topic = Literal["caption", "pointing", "naming", "question", "reading", "arithmetic"]
TOPICS: tuple[Topic, ...] = ("caption", "pointing", "naming", "question", "reading", "arithmetic")
GRAIN = 10
"""Boxes of lessons are rounded outward to multiples of this many units of the frame."""
READ = "Read."
"""Asked behind a view."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """What the user says and shows, and what the model should answer."""

    topic: Topic
    asked: tuple[str | Image.Image, ...]
    answer: str


Lesson = tuple[Exchange, ...]
"""A conversation behind the picture of the chart, which starts its first user turn."""


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


def worked_answer(item: ChartItem, kind: QuestionKind, names: Sequence[str], answer: str) -> str:
    """The answer behind the numbers it follows from; a value is its own working.

    A choice is told in two steps, the number and then whose it is: in one step, from numbers to a
    mark, a small model stayed at chance.
    """
    if kind == "value":
        return answer
    numbers = [item.spec.value(n) for n in names]
    if kind == "difference":
        return ", ".join(str(n) for n in numbers) + "\n" + answer
    told = ", ".join(f"{v} {item.spec.called(n)}" for v, n in zip(numbers, names, strict=True))
    chosen = next(v for v, n in zip(numbers, names, strict=True) if item.spec.called(n) == answer)
    return f"{told}: {chosen}\n{answer}"


def lessons(item: ChartItem, rng: np.random.Generator, *, frame: Frame) -> list[Lesson]:
    """Five lessons on one chart, drawn from all topics: for seeing many charts."""
    teacher = _Teacher(item, rng, frame)
    first = rng.random()
    whole = (
        teacher.caption()
        if first < 0.3
        else teacher.point_at_all()
        if first < 0.75
        else teacher.rank()
    )
    part = teacher.point_at_one() if rng.random() < 0.7 else teacher.name()
    plain = teacher.question() if rng.random() < 0.6 else teacher.other_question()
    reading: Lesson = (teacher.reading(),)
    if rng.random() < 0.6:
        before = (teacher.point_at_one, teacher.name, teacher.arithmetic, teacher.other_question)
        reading = (before[int(rng.integers(len(before)))](), *reading)
    return [(whole,), (part,), (plain,), (teacher.arithmetic(),), reading]


class _Teacher:
    """Draws exchanges about one chart."""

    def __init__(self, item: ChartItem, rng: np.random.Generator, frame: Frame) -> None:
        self.item, self.spec, self.drawing = item, item.spec, item.drawing
        self.rng, self.frame = rng, frame
        self.names = [n for n, _ in item.spec.entries]
        width, height = item.drawing.image.size
        self.regions = {
            n: label_region(item.drawing.labels[n], width=width, height=height) for n in self.names
        }

    def caption(self) -> Exchange:
        """All marks, or all labels, from left to right."""
        if self.rng.random() < 0.4:
            asked, boxes = f"Describe the {self.spec.chart} chart.", self.drawing.marks
        else:
            asked, boxes = "List the labels.", self.regions
        listed = "\n".join(f"{n} {box_text(self.frame, boxes[n])}" for n in self.names)
        return Exchange("caption", (asked,), listed)

    def point_at_all(self) -> Exchange:
        """All marks, or all labels, in an order that only the question tells."""
        names = [str(n) for n in self.rng.permutation(self.names)]
        of_marks = self.rng.random() < 0.4
        asked, boxes = ("", self.drawing.marks) if of_marks else ("the labels of ", self.regions)
        called = [self.spec.called(n) for n in names]
        listed = "\n".join(
            f"{c} {box_text(self.frame, boxes[n])}" for c, n in zip(called, names, strict=True)
        )
        return Exchange("pointing", (f"Where are {asked}{', '.join(called)}?",), listed)

    def rank(self) -> Exchange:
        """All marks from the highest to the lowest, or from the lowest to the highest."""
        falling = self.rng.random() < 0.5
        order = sorted(self.names, key=self.spec.value, reverse=falling)
        asked = f"Rank from the {'highest' if falling else 'lowest'}."
        return Exchange("question", (asked,), ", ".join(self.spec.called(n) for n in order))

    def point_at_one(self) -> Exchange:
        name = self._one()
        asked = f"Where is the label of {self.spec.called(name)}?"
        return Exchange("pointing", (asked,), box_text(self.frame, self.regions[name]))

    def name(self) -> Exchange:
        name = self._one()
        box = self.drawing.marks[name] if self.rng.random() < 0.5 else self.regions[name]
        return Exchange("naming", (f"What is at {box_text(self.frame, box)}?",), name)

    def question(self) -> Exchange:
        """The chart's own question, answered at once."""
        asked, answer = question(self.spec, self.item.kind, self.item.names)
        return Exchange("question", (asked,), answer)

    def other_question(self) -> Exchange:
        """A plain question on the same chart about two marks at random."""
        a, b = self._two()
        kind: QuestionKind = "comparison"
        if self.rng.random() < 0.5 or self.spec.value(a) == self.spec.value(b):
            kind = "value"
        asked, answer = question(self.spec, kind, (a, b))
        return Exchange("question", (asked,), answer)

    def arithmetic(self) -> Exchange:
        """A difference or a comparison of two numbers that are told."""
        a, b = (int(v) for v in self.rng.integers(10, 100, size=2))
        if self.rng.random() < 0.5:
            return Exchange("arithmetic", (f"{max(a, b)} - {min(a, b)}?",), str(abs(a - b)))
        if self.rng.random() < 0.3:
            b = int(np.clip(a + self.rng.integers(-3, 4), 10, 99))
        a, b = (a, b) if a != b else (a, b + 1)
        first, second = (self.spec.called(n) for n in self._two())
        word = "higher" if self.rng.random() < 0.75 else "lower"
        chosen = max(a, b) if word == "higher" else min(a, b)
        asked = f"{a} {first}, {b} {second}. Which is {word}?"
        return Exchange("arithmetic", (asked,), f"{chosen}\n{first if chosen == a else second}")

    def reading(self) -> Exchange:
        """The numbers of one or two enlarged labels, or a question answered from them."""
        kind = self.rng.random()
        if kind < 0.3:
            name = self._one()
            asked = READ if self.rng.random() < 0.7 else f"Read {self.spec.called(name)}."
            return Exchange("reading", (self._view(name), asked), str(self.spec.value(name)))
        if kind < 0.5:
            a, b = self._two()
            read = f"{self.spec.value(a)}, {self.spec.value(b)}"
            return Exchange("reading", (self._view(a), READ, self._view(b), READ), read)
        return self._question_with_views()

    def _question_with_views(self) -> Exchange:
        own = self.rng.random() < 0.5
        kind, names = (self.item.kind, self.item.names) if own else self._other()
        asked, answer = question(self.spec, kind, names)
        views = [part for n in names for part in (self._view(n), READ)]
        parts = (asked, *views) if self.rng.random() < 0.5 else (*views, asked)
        return Exchange("reading", parts, worked_answer(self.item, kind, names, answer))

    def _other(self) -> tuple[QuestionKind, tuple[str, ...]]:
        """Another question that two marks, or one, can answer: any kind but an extremum."""
        a, b = self._two()
        if self.spec.value(a) < self.spec.value(b):
            a, b = b, a  # a difference is asked of the higher one
        chosen = self.rng.random()
        if chosen < 0.3 or self.spec.value(a) == self.spec.value(b):
            return "value", (a,)
        if chosen < 0.7:
            return "difference", (a, b)
        return "comparison", (a, b) if self.rng.random() < 0.5 else (b, a)

    def _view(self, name: str) -> Image.Image:
        """One label, enlarged by whoever asks: trimmed to its print, or framed loosely."""
        label, image = self.drawing.labels[name], self.drawing.image
        manner = self.rng.random()
        if manner < 0.55:  # framed, then trimmed: print beside the label may stay
            sides = self.rng.uniform(0.2, 1.3, size=4) * label.height
        elif manner < 0.75:
            sides = self.rng.uniform(0.0, 0.06, size=4) * label.height
        else:
            sides = self.rng.uniform(0.0, 1.2, size=4) * label.height * self.rng.uniform(0.1, 1.0)
        left, up, right, down = sides
        box = Box(label.x0 - left, label.y0 - up, label.x1 + right, label.y1 + down)
        inside = box.clip(*image.size)
        assert inside is not None
        view = image.crop(_whole(inside))
        trim = print_box(view) if manner < 0.55 else None
        return view if trim is None else view.crop(_whole(trim))

    def _one(self) -> str:
        return str(self.rng.choice(self.names))

    def _two(self) -> tuple[str, str]:
        a, b = self.rng.permutation(self.names)[:2]
        return str(a), str(b)


def _whole(box: Box) -> tuple[int, int, int, int]:
    """Corners of the whole pixels that a box touches."""
    return (int(box.x0), int(box.y0), -int(-box.x1 // 1), -int(-box.y1 // 1))
