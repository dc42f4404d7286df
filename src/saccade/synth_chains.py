"""Demonstrations of reasoning with boxes that a base model makes itself: it points, a rule draws
the conclusion, and what contradicts the right answer is thrown away.

Invariant: no box label is read. The boxes are those that the model pointed at when it was asked
where things are; of the sample only its question and its answer are used, as GRPO-GR does.

Left out on purpose: other worlds than those of shapes, whose questions name what to point at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

from saccade.assemble import answering, task_of
from saccade.config import Recipe
from saccade.dialects import FrameOf, dialect
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
from saccade.synth import Demonstration
from saccade.types import Answer, BoxNamed, Episode, Parsed, Sample
from saccade.worlds.shapes import CLEAR, directions

__all__ = ["Made", "asked_where", "chain_of", "notation_of", "pointing_setup", "self_made"]

CHUNK = 64
"""Samples whose pictures are in memory together."""
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
    """Demonstrations from `count` samples of the recipe's task, at most one of each: what the model
    is surest of, and, where that leads nowhere, the first of `tries` - 1 that it draws. `blank`:
    with dots in the place of each box, so that a chain says where nothing is and is as long as with
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
            kept: dict[str, Demonstration] = {}
            for attempt in range(tries):
                missing = [s for s in samples if s.id not in kept]
                if not missing:
                    break
                episodes = await rollout(
                    [replace(s, question=asked_where(s)) for s in missing],
                    setup,
                    past=[attempt] * len(missing),
                    sampling=Sampling(float(attempt > 0), recipe.rollout.max_tokens_per_turn),
                    seed=recipe.seed,
                    concurrency=recipe.rollout.concurrency,
                )
                written += sum(e.completion_tokens for e in episodes)
                for sample, episode in zip(missing, episodes, strict=True):
                    demonstration = _made(sample, episode, setup, blank=blank)
                    if demonstration is not None:
                        kept[sample.id] = demonstration
            found += [kept[s.id] for s in samples if s.id in kept]
            store.forget(i for s in samples for i in s.images)
            bar.advance(f"kept {len(found)}", by=wanted)
    return Made(tuple(found), count, written)


def _made(sample: Sample, episode: Episode, setup: Setup, *, blank: bool) -> Demonstration | None:
    """The demonstration that an episode leads to; None where it leads to none."""
    notation = notation_of(setup)
    named = _pointed(episode, notation, setup.frame_of)
    chain = chain_of(sample, named, episode.answer or "", notation)
    if chain is None:
        return None

    def tokens_of(said: str) -> int:
        assert setup.renderer is not None  # the model is loaded here
        return len(setup.renderer.begun(said).ids)

    if blank:
        chain = replace(chain, thought=notation.dotted(chain.thought, tokens_of))
    with suppress(ValueError):  # it wrote tags where a thing was to be named
        turn = Grounded("silent", notation).render(chain)
        return Demonstration(sample.id, (turn,), "self-made")
    return None


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


def _names(sample: Sample) -> tuple[str, str]:
    first, _, second = sample.question.removeprefix("Is the ").partition(f" {sample.kind} the ")
    return first, second.partition("?")[0]


def _pointed(episode: Episode, notation: Notation, frame: FrameOf) -> tuple[BoxNamed, ...]:
    """The boxes of its answer; none where one of them is no box."""
    images = {f"img_{n}": image for n, image in enumerate(episode.sample.images)}
    said = Parsed(episode.answer or "")
    good, bad = boxes_named(said, notation, images=images, frame=frame)
    return () if bad else good


def chain_of(
    sample: Sample, named: Sequence[BoxNamed], said: str, notation: Notation
) -> Parsed | None:
    """The turn that the boxes lead to; None where they are not as many as were asked for, repeat
    each other, or contradict the right answer.

    Sides and counts follow from the boxes. Whether one thing is inside, touching or behind another
    does not, so there the answer stands among what is thought again. What is asked is said again
    beside what holds: from a question far back the tiny model did not learn to compare the two.
    """
    if any(iou(a.box, b.box) >= SAME for a, b in combinations(named, 2)):
        return None  # one thing told twice
    if sample.kind == "count":
        if len(named) != int(sample.answer):
            return None
        thought = " ".join(said.split("\n")).strip()
        return Parsed(thought, answer=Answer(sample.answer), rethought=sample.answer)
    if [b.phrase for b in named] != list(_names(sample)):
        return None
    a, b = (n.box for n in named)
    width, height = sample.images[0].width, sample.images[0].height
    told = list(directions(a, b, clear=CLEAR * min(width, height)))
    if sample.kind in SIDES and (sample.kind in told) != (sample.answer == "true"):
        return None
    if sample.kind not in SIDES and sample.answer == "true":
        told.append(sample.kind)
    thought = ", ".join(line for line in said.split("\n") if notation.find(line))
    held = f"{sample.kind}: {', '.join(told) or 'near'}"
    return Parsed(thought, answer=Answer(sample.answer), rethought=held)
