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
from saccade.worlds.chart_data import TITLES, Mark, QuestionKind
from saccade.worlds.charts import ChartItem, question

__all__ = [
    "GRAIN",
    "TOPICS",
    "Exchange",
    "Lesson",
    "Topic",
    "box_text",
    "found_by_title",
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
MOST_LISTED = 5
"""Marks in one answer: charts of panels have up to twelve."""


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


def worked_answer(item: ChartItem, kind: QuestionKind, asked: Sequence[Mark], answer: str) -> str:
    """The answer behind the numbers it follows from; what stands on one label is its own working.

    A choice is told in two steps, the number and then whose it is: in one step, from numbers to a
    mark, a small model stayed at chance.
    """
    spec = item.spec
    if kind == "difference":
        return ", ".join(spec.printed(m) for m in asked) + "\n" + answer
    if kind not in ("comparison", "extremum"):
        return answer
    told = ", ".join(f"{spec.printed(m)} {spec.called(m)}" for m in asked)
    chosen = next(spec.printed(m) for m in asked if spec.called(m) == answer)
    return f"{told}: {chosen}\n{answer}"


def found_by_title(titles: Sequence[str], wanted: str, own: str) -> str:
    """What is looked for, the titles with their panels, and so where it is.

    Each word of the result stands shortly before it: a small model finds by copying, and does not
    learn to count or to look far back.
    """
    told = [f"{title} panel {number}" for number, title in enumerate(titles, start=1)]
    return f"{wanted} {own}: {', '.join(told)}: {told[list(titles).index(wanted)]} {own}"


def lessons(item: ChartItem, rng: np.random.Generator, *, frame: Frame) -> list[Lesson]:
    """Five lessons on one chart, drawn from all topics: for seeing many charts."""
    teacher = _Teacher(item, rng, frame)
    first = rng.random()
    whole = (
        teacher.caption()
        if first < 0.2
        else teacher.point_at_some()
        if first < 0.7
        else teacher.rank()
    )
    part = teacher.point_at_one() if rng.random() < 0.8 else teacher.name()
    seen = item.stratum == "easy" and rng.random() < 0.6  # what can't be seen is not asked plainly
    plain = teacher.question() if seen else teacher.other_question()
    more = teacher.arithmetic() if rng.random() < 0.5 else teacher.point_at_some()
    reading: Lesson = (teacher.reading(),)
    if item.spec.titles and rng.random() < 0.4:
        reading = teacher.find_by_title()
    elif rng.random() < 0.6:
        before = (
            teacher.point_at_one,
            teacher.point_at_some,
            teacher.arithmetic,
            teacher.other_question,
        )
        reading = (before[int(rng.integers(len(before)))](), *reading)
    return [(whole,), (part,), (plain,), (more,), reading]


class _Teacher:
    """Draws exchanges about one chart."""

    def __init__(self, item: ChartItem, rng: np.random.Generator, frame: Frame) -> None:
        self.item, self.spec, self.drawing = item, item.spec, item.drawing
        self.rng, self.frame = rng, frame
        width, height = item.drawing.image.size
        self.regions = {
            m: label_region(box, width=width, height=height)
            for m, box in item.drawing.labels.items()
        }

    def caption(self) -> Exchange:
        """All marks, or all labels, in order, within one part of a chart that has many."""
        spec = self.spec
        marks, where = spec.marks, ""
        if len(marks) > MOST_LISTED:
            part = int(self.rng.integers(len(spec.values)))
            marks = [m for m in marks if m.part == part]
            where = f" of {spec.called(Mark(part))}"
        if self.rng.random() < 0.4:
            asked, boxes = f"Describe the {spec.chart} chart{where}.", self.drawing.marks
        else:
            asked, boxes = f"List the labels{where}.", self.regions
        listed = "\n".join(f"{spec.color(m)} {box_text(self.frame, boxes[m])}" for m in marks)
        return Exchange("caption", (asked,), listed)

    def point_at_some(self) -> Exchange:
        """Several marks, their labels, or titles, in an order that only the question tells."""
        manner = self.rng.random()
        titles = self.spec.title_marks
        if titles and manner < 0.4:
            chosen, kind, boxes = titles, "the titles of ", self.regions
        elif manner < 0.6:
            chosen, kind, boxes = self.spec.marks, "", self.drawing.marks
        else:
            chosen, kind, boxes = self.spec.marks, "the labels of ", self.regions
        marks = [chosen[i] for i in self.rng.permutation(len(chosen))[: MOST_LISTED - 1]]
        called = [self.spec.called(m) for m in marks]
        listed = "\n".join(
            f"{c} {box_text(self.frame, boxes[m])}" for c, m in zip(called, marks, strict=True)
        )
        return Exchange("pointing", (f"Where are {kind}{', '.join(called)}?",), listed)

    def rank(self) -> Exchange:
        """The marks of one part from the one extreme to the other."""
        spec = self.spec
        part = int(self.rng.integers(len(spec.values)))
        falling = self.rng.random() < 0.5
        marks = [m for m in spec.marks if m.part == part]
        order = sorted(marks, key=spec.value, reverse=falling)
        where = f" in {spec.called(Mark(part))}" if len(spec.values) > 1 else ""
        most, least = ("highest", "lowest") if spec.has_heights else ("largest", "smallest")
        asked = f"Rank from the {most if falling else least}{where}."
        return Exchange("question", (asked,), ", ".join(spec.called(m) for m in order))

    def point_at_one(self) -> Exchange:
        titles = self.spec.title_marks
        if titles and self.rng.random() < 0.3:
            mark = titles[int(self.rng.integers(len(titles)))]
            asked = f"Where is the title of {self.spec.called(mark)}?"
        else:
            mark = self._one()
            asked = f"Where is the label of {self.spec.called(mark)}?"
        return Exchange("pointing", (asked,), box_text(self.frame, self.regions[mark]))

    def name(self) -> Exchange:
        mark = self._one()
        box = self.drawing.marks[mark] if self.rng.random() < 0.5 else self.regions[mark]
        asked = f"What is at {box_text(self.frame, box)}?"
        return Exchange("naming", (asked,), self.spec.color(mark))

    def question(self) -> Exchange:
        """The chart's own question, answered at once."""
        asked, answer = question(self.spec, self.item.kind, self.item.asked)
        return Exchange("question", (asked,), answer)

    def other_question(self) -> Exchange:
        """A plain question on the same chart: its count, a value, or two marks at random."""
        manner = self.rng.random()
        a, b = self._two()
        kind: QuestionKind = "comparison"
        if manner < 0.2:
            kind = "count"
        elif manner < 0.35 or self.spec.value(a) == self.spec.value(b):
            kind = "value"
        asked, answer = question(self.spec, kind, (a, b))
        return Exchange("question", (asked,), answer)

    def arithmetic(self) -> Exchange:
        """A difference or a comparison of two numbers, or a choice of titles, that are told."""
        if self.spec.titles and self.rng.random() < 0.4:
            return self._choose_title()
        a, b = (int(v) for v in self.rng.integers(10, 100, size=2))
        if self.rng.random() < 0.5:
            return Exchange("arithmetic", (f"{max(a, b)} - {min(a, b)}?",), str(abs(a - b)))
        if self.rng.random() < 0.3:
            b = int(np.clip(a + self.rng.integers(-3, 4), 10, 99))
        a, b = (a, b) if a != b else (a, b + 1)
        first, second = (self.spec.called(m) for m in self._two())
        more, less = ("higher", "lower") if self.spec.has_heights else ("larger", "smaller")
        word = more if self.rng.random() < 0.75 else less
        chosen = max(a, b) if word == more else min(a, b)
        asked = f"{a} {first}, {b} {second}. Which is {word}?"
        return Exchange("arithmetic", (asked,), f"{chosen}\n{first if chosen == a else second}")

    def _choose_title(self) -> Exchange:
        count = int(self.rng.integers(2, 5))
        titles = [str(t) for t in self.rng.permutation(TITLES)[:count]]
        wanted = str(self.rng.choice(titles))
        asked = f"The titles are {', '.join(titles)}. Which panel is titled {wanted}?"
        return Exchange("arithmetic", (asked,), f"panel {titles.index(wanted) + 1}")

    def reading(self) -> Exchange:
        """What one or two enlarged labels say, or a question answered from them."""
        kind = self.rng.random()
        if self.spec.titles and kind < 0.35:
            return self._point_by_title() if kind < 0.2 else self._read_titles()
        if kind < 0.45:
            mark = self._one()
            asked = READ if self.rng.random() < 0.7 else f"Read {self.spec.called(mark)}."
            return Exchange("reading", (self._view(mark), asked), self.spec.printed(mark))
        if kind < 0.6:
            a, b = self._two()
            read = f"{self.spec.printed(a)}, {self.spec.printed(b)}"
            return Exchange("reading", (self._view(a), READ, self._view(b), READ), read)
        return self._question_with_views()

    def _read_titles(self) -> Exchange:
        titles = self.spec.title_marks
        chosen = [titles[i] for i in self.rng.permutation(len(titles))]
        chosen = chosen[: int(self.rng.integers(1, len(chosen) + 1))]
        views = [part for m in chosen for part in (self._view(m), READ)]
        return Exchange("reading", tuple(views), ", ".join(self.spec.printed(m) for m in chosen))

    def _point_by_title(self) -> Exchange:
        """Views of all titles, then a label in the panel that one of them names."""
        mark, titles = self._one(), self.spec.title_marks
        views = [part for m in titles for part in (self._view(m), READ)]
        asked, found = self._by_title(mark)
        parts = (asked, *views) if self.rng.random() < 0.5 else (*views, asked)
        return Exchange("reading", parts, found)

    def find_by_title(self) -> Lesson:
        """The same in two exchanges: where the titles are, and what they say."""
        mark, titles = self._one(), self.spec.title_marks
        asked, found = self._by_title(mark)
        if self.rng.random() < 0.5:
            asked, _ = question(self.spec, "two_step", (Mark(mark.part), mark))
        listed = "\n".join(
            f"{self.spec.called(m)} {box_text(self.frame, self.regions[m])}" for m in titles
        )
        views = [part for m in titles for part in (self._view(m), READ)]
        first = Exchange("pointing", (f"{asked} Where are the titles?",), listed)
        return (first, Exchange("reading", tuple(views), found))

    def _by_title(self, mark: Mark) -> tuple[str, str]:
        """A question for the label of a mark in the panel of a title, and its answer."""
        title = self.spec.titles[mark.part]
        own = f"{self.spec.thing} {(mark.place or 0) + 1}"
        box = box_text(self.frame, self.regions[mark])
        found = found_by_title(self.spec.titles, title, own)
        return f"Where is the label of {own} in the panel titled {title}?", f"{found} {box}"

    def _question_with_views(self) -> Exchange:
        own = self.rng.random() < 0.5 and self.item.kind not in ("count", "two_step")
        kind, asked = (self.item.kind, self.item.asked) if own else self._other()
        text, answer = question(self.spec, kind, asked)
        views = [part for m in asked for part in (self._view(m), READ)]
        parts = (text, *views) if self.rng.random() < 0.5 else (*views, text)
        return Exchange("reading", parts, worked_answer(self.item, kind, asked, answer))

    def _other(self) -> tuple[QuestionKind, tuple[Mark, ...]]:
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

    def _view(self, mark: Mark) -> Image.Image:
        """One label, enlarged by whoever asks: trimmed to its print, or framed loosely."""
        label, image = self.drawing.labels[mark], self.drawing.image
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

    def _one(self) -> Mark:
        marks = self.spec.marks
        return marks[int(self.rng.integers(len(marks)))]

    def _two(self) -> tuple[Mark, Mark]:
        """Two marks, in three of five cases of one part."""
        marks = self.spec.marks
        one = self._one()
        others = [m for m in marks if m != one]
        if self.rng.random() < 0.6:
            others = [m for m in others if m.part == one.part] or others
        return one, others[int(self.rng.integers(len(others)))]


def _whole(box: Box) -> tuple[int, int, int, int]:
    """Corners of the whole pixels that a box touches."""
    return (int(box.x0), int(box.y0), -int(-box.x1 // 1), -int(-box.y1 // 1))
