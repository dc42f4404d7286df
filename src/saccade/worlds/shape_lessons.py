"""What a base model is taught about scenes of shapes: captions with boxes, referring boxes, plain
answers, and, rarely and in mixed form, reasoning in words and with boxes.

Invariant: a lesson is text about one scene, true by its geometry. What a model should have thought
(`chain`) is also what demonstrations are made of.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saccade.geometry import Box, Frame
from saccade.worlds.lessons import Exchange, Lesson, box_text
from saccade.worlds.shapes import (
    CLEAR,
    RELATIONS,
    SHAPE_COLORS,
    TRAINED_SHAPES,
    SceneItem,
    Thing,
    directions,
    tally_question,
    vsr_question,
)

__all__ = [
    "WITH_BOXES",
    "WORDS",
    "chain",
    "counted_name",
    "in_words",
    "one_shot",
    "shape_lessons",
    "whole",
]

WITH_BOXES = "Think with boxes."
"""Asks for think, rethink and answer."""
WORDS = "Think in words."
"""Asks for think and answer, without boxes."""
MOST_LISTED = 6
"""Things in one answer."""


def chain(scene: SceneItem, frame: Frame, *, boxes: bool = True) -> tuple[str, str]:
    """What to think of a scene's question, and what to think again: where the things are, and what
    follows from that, in the words of the answer.

    Things that are counted are numbered, so that the last number is the count.
    """
    if scene.kind == "count":
        return _numbered(scene, frame, boxes=boxes), scene.answer
    a, b = scene.evidence
    clear = CLEAR * min(scene.scene.image.size)
    told = list(directions(a.box, b.box, clear=clear))
    if scene.kind not in told and scene.answer == "true":
        told.append(scene.kind)
    held = ", ".join(told) or "near"
    if boxes:
        return ", ".join(f"{t.name} {box_text(frame, t.box)}" for t in (a, b)), held
    return f"{a.name} is {held} {b.name}", held


def _numbered(scene: SceneItem, frame: Frame, *, boxes: bool) -> str:
    name = counted_name(scene.question)
    if not scene.evidence:
        return f"no {name}"
    told = (f" {box_text(frame, t.box)}" if boxes else "" for t in scene.evidence)
    return f"{name} " + ", ".join(f"{n}{box}" for n, box in enumerate(told, start=1))


def counted_name(question: str) -> str:
    """The name of what is counted, in the singular."""
    named = question.removeprefix("How many ").removesuffix(" are there?")
    return named[:-2] if named.endswith("sses") else named[:-1]


def whole(think: str, rethink: str, answer: str) -> str:
    """A turn of the grounded dialect."""
    return f"<think> {think} </think> <rethink> {rethink} </rethink> <answer> {answer} </answer>"


def in_words(think: str, answer: str) -> str:
    """A turn of thought without boxes."""
    return f"<think> {think} </think> <answer> {answer} </answer>"


def one_shot(scene: SceneItem, frame: Frame) -> str:
    """One worked example in text, to stand before another question."""
    think, rethink = chain(scene, frame)
    return f"{scene.question} {whole(think, rethink, scene.answer)}"


def shape_lessons(
    scene: SceneItem, rng: np.random.Generator, *, frame: Frame, example: str = ""
) -> list[Lesson]:
    """Four to six lessons on one scene, drawn from all topics; its question stands behind the
    example, where there is one. Every scene has a thing to be named: the names of colours are
    learned by that, and hardly by pointing at what is asked for.
    """
    teacher = _Teacher(scene, rng, frame)
    manner = rng.random()
    asked = (
        teacher.behind_an_example(example)
        if example
        else teacher.plain_answer()
        if manner < 0.6
        else teacher.thought_in_words()
        if manner < 0.75
        else teacher.thought_with_boxes()
    )
    first = teacher.caption() if rng.random() < 0.35 else teacher.point_at_some()
    taught = [first, teacher.name(), asked]
    if scene.kind == "count":
        taught += [teacher.point_at_what_is_counted(), teacher.point_at_some_or_none()]
    else:
        taught.append(teacher.point_at_one())
    if rng.random() < (0.4 if scene.kind == "count" else 0.7):
        taught.append(teacher.from_text())
    return [(exchange,) for exchange in taught]


class _Teacher:
    """Draws exchanges about one scene."""

    def __init__(self, scene: SceneItem, rng: np.random.Generator, frame: Frame) -> None:
        self.scene, self.rng, self.frame = scene, rng, frame
        self.things = scene.scene.things
        names = [t.name for t in self.things]
        self.single = [t for t in self.things if names.count(t.name) == 1]

    def caption(self) -> Exchange:
        """Things from the left."""
        order = sorted(self.things, key=lambda t: (t.box.x0, t.box.y0))[:MOST_LISTED]
        return Exchange("caption", ("Describe the scene.",), self._listed(order))

    def point_at_one(self) -> Exchange:
        if not self.single:
            return self.point_at_a_kind()
        thing = self._one()
        return Exchange("pointing", (f"Where is the {thing.name}?",), self._box(thing.box))

    def point_at_some(self) -> Exchange:
        """Several things that are the only ones of their names, in an order that only the question
        tells.
        """
        if len(self.single) < 2:
            return self.caption()
        count = int(self.rng.integers(2, 5))
        chosen = [self.single[i] for i in self.rng.permutation(len(self.single))[:count]]
        called = ", ".join(f"the {t.name}" for t in chosen)
        return Exchange("pointing", (f"Where are {called}?",), self._listed(chosen))

    def point_at_what_is_counted(self) -> Exchange:
        return self._all_of(counted_name(self.scene.question))

    def point_at_a_kind(self) -> Exchange:
        """All things of the name that one of them has."""
        return self._all_of(self._any().name)

    def point_at_some_or_none(self) -> Exchange:
        """At one thing, at all of the name that one has, or at all of a name that none has."""
        manner = self.rng.random()
        if manner < 0.5:
            return self.point_at_one()
        return self.point_at_a_kind() if manner < 0.8 else self.point_at_none()

    def point_at_none(self) -> Exchange:
        """All things of a name that none has, with the colour or the shape of one of them."""
        names = {t.name for t in self.things}
        while True:
            color = SHAPE_COLORS[int(self.rng.integers(len(SHAPE_COLORS)))]
            shape = TRAINED_SHAPES[int(self.rng.integers(len(TRAINED_SHAPES)))]
            thing = self._any()
            name = f"{color} {thing.shape}" if self.rng.random() < 0.5 else f"{thing.color} {shape}"
            if name not in names:
                return self._all_of(name)

    def _all_of(self, asked: str) -> Exchange:
        """All things of a name, numbered from the left."""
        alike = [t for t in self.things if t.name == asked]
        order = sorted(alike, key=lambda t: (t.box.x0, t.box.y0))
        boxes = [f"{n} {self._box(t.box)}" for n, t in enumerate(order, start=1)]
        listed = f"{asked} {', '.join(boxes)}" if boxes else f"no {asked}"
        asking = (
            tally_question(asked).replace("How many", "Where are all").replace(" are there", "")
        )
        return Exchange("pointing", (asking,), listed)

    def name(self) -> Exchange:
        thing = self._any()
        return Exchange("naming", (f"What is at {self._box(thing.box)}?",), thing.name)

    def plain_answer(self) -> Exchange:
        return Exchange("question", (self.scene.question,), self.scene.answer)

    def thought_in_words(self) -> Exchange:
        think, _ = chain(self.scene, self.frame, boxes=False)
        said = in_words(think, self.scene.answer)
        return Exchange("question", (f"{self.scene.question} {WORDS}",), said)

    def thought_with_boxes(self) -> Exchange:
        """In two of five whole; else some part is missing, as in models that were never trained for
        the form.
        """
        think, rethink = chain(self.scene, self.frame)
        words, _ = chain(self.scene, self.frame, boxes=False)
        answer, manner = self.scene.answer, self.rng.random()
        if manner < 0.4:
            said = whole(think, rethink, answer)
        elif manner < 0.6:
            said = in_words(words, answer)
        elif manner < 0.8:
            said = in_words(think, answer)
        else:
            said = whole(words, rethink, answer)
        return Exchange("question", (f"{self.scene.question} {WITH_BOXES}",), said)

    def behind_an_example(self, example: str) -> Exchange:
        """In the manner of the example, or, in two of five, with the answer alone."""
        think, rethink = chain(self.scene, self.frame)
        said = self.scene.answer
        if self.rng.random() < 0.6:
            said = whole(think, rethink, said)
        return Exchange("question", (f"{example}\n{self.scene.question}",), said)

    def from_text(self) -> Exchange:
        """How two things lie that are told with their boxes, or how many are told."""
        if self.scene.kind == "count":
            think, rethink = chain(self.scene, self.frame)
            return Exchange("arithmetic", (f"{think}. {self.scene.question}",), rethink)
        width, height = self.scene.scene.image.size
        boxes = [self._anywhere(width, height) for _ in range(2)]
        names = [t.name for t in self.scene.evidence]
        told = directions(boxes[0], boxes[1], clear=CLEAR * min(width, height))
        listed = ", ".join(f"{n} {self._box(b)}" for n, b in zip(names, boxes, strict=True))
        relation = RELATIONS[int(self.rng.integers(4))]
        asked = f"{listed}. {vsr_question(names[0], relation, names[1])}"
        holds = "true" if relation in told else "false"
        return Exchange("arithmetic", (asked,), f"{', '.join(told) or 'near'}: {holds}")

    def _anywhere(self, width: int, height: int) -> Box:
        size = float(self.rng.uniform(0.12, 0.35)) * min(width, height)
        x, y = self.rng.uniform(0, width - size), self.rng.uniform(0, height - size)
        return Box(float(x), float(y), float(x) + size, float(y) + size)

    def _any(self) -> Thing:
        return self.things[int(self.rng.integers(len(self.things)))]

    def _one(self) -> Thing:
        return self.single[int(self.rng.integers(len(self.single)))]

    def _box(self, box: Box) -> str:
        return box_text(self.frame, box)

    def _listed(self, things: Sequence[Thing]) -> str:
        return "\n".join(f"{t.name} {self._box(t.box)}" for t in things)
