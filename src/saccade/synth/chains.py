"""Demonstrations of reasoning with boxes that a base model makes itself: it points, several times,
and names again what is to be counted, of which it strikes what it calls otherwise; a rule draws the
conclusion, and what contradicts the right answer is thrown away.

Invariant: no box label is read. The boxes are those that the model pointed at when it was asked
where things are; of the sample only its question and its answer are used, as GRPO-GR does.

Left out on purpose: other worlds than those of shapes, whose questions name what to point at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

from saccade.assemble import answering, task_of
from saccade.config import Recipe
from saccade.dialects import dialect
from saccade.dialects.grounded import Grounded
from saccade.dialects.notations import Notation
from saccade.engines import Sampling
from saccade.errors import RecipeError
from saccade.geometry import iou
from saccade.grounding import boxes_named
from saccade.image_store import ImageStore
from saccade.progress import progress
from saccade.rewards.grounded import SAME
from saccade.rollout import Failures, Setup, rollout
from saccade.synth.replay import Demonstration
from saccade.types import Answer, BoxNamed, Episode, Parsed, Sample
from saccade.worlds.shape_lessons import counted_name
from saccade.worlds.shapes import CLEAR, directions

__all__ = [
    "Made",
    "asked_where",
    "chain_of",
    "notation_of",
    "pointing_setup",
    "self_made",
]

CHUNK = 64
"""Samples whose pictures are in memory together."""
SAME_PLACE = 0.5
"""IoU from which two boxes point at one thing."""
SIDES = ("left of", "right of", "above", "below")


class Made(NamedTuple):
    """What came of it."""

    demonstrations: tuple[Demonstration, ...]
    asked: int
    """Samples that the model was asked about."""
    written: int
    """Tokens that it wrote."""


def self_made(
    recipe: Recipe,
    *,
    split: str,
    start: int,
    count: int,
    tries: int = 1,
    blank: bool = False,
) -> Made:
    """Demonstrations from `count` samples of the recipe's task, at most one of each, from all that
    the model points at in `tries` tries: what it is surest of, and `tries` - 1 draws. `blank`: with
    dots in the place of each box, so that a chain says where nothing is and is as long as with
    boxes.
    """
    return asyncio.run(_self_made(recipe, split, start, count, tries, blank))


async def _self_made(
    recipe: Recipe, split: str, start: int, count: int, tries: int, blank: bool
) -> Made:
    task, store = task_of(recipe), ImageStore()
    setup = pointing_setup(recipe, store)
    notation_of(setup)
    found: list[Demonstration] = []
    written = 0
    with progress("self-made demonstrations", total=count) as bar:
        for at in range(start, start + count, CHUNK):
            wanted = min(CHUNK, start + count - at)
            samples = task.load(split, store=store, start=at, count=wanted)
            pointed: dict[str, list[BoxNamed]] = {s.id: [] for s in samples}
            for attempt in range(tries):
                where = [replace(s, question=asked_where(s)) for s in samples]
                episodes = await _asked(where, setup, recipe, past=attempt)
                written += sum(e.completion_tokens for e in episodes)
                for episode in episodes:
                    _add_places(pointed[episode.sample.id], _pointed(episode, setup))
            counted = [s for s in samples if s.kind == "count"]
            what = [
                replace(s, id=f"{s.id}/{n}", question=_asked_what(box, setup))
                for s in counted
                for n, box in enumerate(pointed[s.id])
            ]
            episodes = await _asked(what, setup, recipe, past=0)
            written += sum(e.completion_tokens for e in episodes)
            names = {e.sample.id: (e.answer or "").strip() for e in episodes}
            for s in counted:
                name = counted_name(s.question)
                boxes = enumerate(pointed[s.id])
                pointed[s.id] = [box for n, box in boxes if names[f"{s.id}/{n}"] == name]
            made = (_made(s, pointed[s.id], setup, blank=blank) for s in samples)
            found += [demonstration for demonstration in made if demonstration is not None]
            store.forget(i for s in samples for i in s.images)
            bar.advance(f"kept {len(found)}", by=wanted)
    return Made(tuple(found), count, written)


async def _asked(
    samples: Sequence[Sample], setup: Setup, recipe: Recipe, *, past: int
) -> list[Episode]:
    """What the model says, greedily where it was not asked before."""
    return await rollout(
        samples,
        setup,
        past=[past] * len(samples),
        sampling=Sampling(float(past > 0), recipe.rollout.max_tokens_per_turn),
        seed=recipe.seed,
        concurrency=recipe.rollout.concurrency,
    )


def _add_places(known: list[BoxNamed], pointed: Sequence[BoxNamed]) -> None:
    """Add what lies where nothing of that name is known yet."""
    for box in pointed:
        if all(iou(box.box, k.box) < SAME_PLACE for k in known if _is_alike(k, box)):
            known.append(box)


def _is_alike(a: BoxNamed, b: BoxNamed) -> bool:
    """Whether both were pointed at as the same: things that are counted are told by numbers."""
    return a.phrase == b.phrase or (a.phrase[-1:].isdigit() and b.phrase[-1:].isdigit())


def _made(
    sample: Sample, named: Sequence[BoxNamed], setup: Setup, *, blank: bool
) -> Demonstration | None:
    """The demonstration that the boxes lead to; None where they lead to none."""
    notation = notation_of(setup)

    def write(box: BoxNamed, phrase: str) -> str:
        return notation.write(setup.frame_of(box.image).encode_box(box.box), phrase)

    chain = chain_of(sample, named, write)
    if chain is None:
        return None

    def tokens_of(said: str) -> int:
        assert setup.renderer is not None  # the model is loaded here
        return len(setup.renderer.begun(said).ids)

    if blank:
        chain = replace(chain, thought=notation.dotted(chain.thought, tokens_of))
    return Demonstration(sample.id, (Grounded("silent", notation).render(chain),), "self-made")


def pointing_setup(recipe: Recipe, store: ImageStore) -> Setup:
    """Asks the recipe's model as it was before it learned any form."""
    return replace(
        answering(recipe, store=store),
        dialect=dialect("plain"),
        toolbox=None,
        request="",
        example="",
        failures=Failures(),
    )


def notation_of(setup: Setup) -> Notation:
    if setup.boxes_as is None:
        raise RecipeError("Say how the model writes boxes: notation.")
    return setup.boxes_as


def asked_where(sample: Sample) -> str:
    """The question where the things are that a question is about."""
    if sample.kind == "count":
        asked, _, _ = sample.question.partition(" are there?")
        return asked.replace("How many", "Where are all") + "?"
    first, second = _names(sample)
    return f"Where are the {first}, the {second}?"


def _asked_what(box: BoxNamed, setup: Setup) -> str:
    """The question what is there."""
    return (
        f"What is at {notation_of(setup).write(setup.frame_of(box.image).encode_box(box.box), '')}?"
    )


def _names(sample: Sample) -> tuple[str, str]:
    first, _, second = sample.question.removeprefix("Is the ").partition(f" {sample.kind} the ")
    return first, second.partition("?")[0]


def _pointed(episode: Episode, setup: Setup) -> tuple[BoxNamed, ...]:
    """The boxes of its answer."""
    images = {f"img_{n}": image for n, image in enumerate(episode.sample.images)}
    said = Parsed(episode.answer or "")
    return boxes_named(said, notation_of(setup), images=images, frame=setup.frame_of)[0]


def chain_of(
    sample: Sample, named: Sequence[BoxNamed], write: Callable[[BoxNamed, str], str]
) -> Parsed | None:
    """The turn that the boxes lead to, each written with a phrase by `write`; None where they are
    not as many as were asked for, or all contradict the right answer. Of several boxes of one name
    the first that do not.

    Sides and counts follow from the boxes. Whether one thing is inside, touching or behind another
    does not, so there the answer stands among what is thought again. What is asked is said again
    beside what holds, and the verdict behind it: from a question far back, or across a tag, the
    tiny model was slow to learn to compare the two.
    """
    if sample.kind == "count":
        if len(named) != int(sample.answer):
            return None
        thought = _numbered(counted_name(sample.question), named, write)
        return Parsed(thought, answer=Answer(sample.answer), rethought=sample.answer)
    width, height = sample.images[0].width, sample.images[0].height
    first, second = ([b for b in named if b.phrase == name] for name in _names(sample))
    for pair in product(first, second):
        a, b = (n.box for n in pair)
        if iou(a, b) >= SAME:
            continue  # one thing told twice
        told = list(directions(a, b, clear=CLEAR * min(width, height)))
        if sample.kind in SIDES and (sample.kind in told) != (sample.answer == "true"):
            continue
        if sample.kind not in SIDES and sample.answer == "true":
            told.append(sample.kind)
        thought = ", ".join(write(box, box.phrase) for box in pair)
        held = f"{sample.kind}: {', '.join(told) or 'near'}: {sample.answer}"
        return Parsed(thought, answer=Answer(sample.answer), rethought=held)
    return None


def _numbered(name: str, named: Sequence[BoxNamed], write: Callable[[BoxNamed, str], str]) -> str:
    """Boxes from the left, numbered, so that the last number is the count."""
    if not named:
        return f"no {name}"
    order = sorted(named, key=lambda b: (b.box.x0, b.box.y0))
    phrases = [f"{name} 1", *(str(n) for n in range(2, len(order) + 1))]
    return ", ".join(write(box, phrase) for box, phrase in zip(order, phrases, strict=True))
