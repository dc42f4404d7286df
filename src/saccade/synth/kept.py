"""Demonstrations from the questions that RL would see: gold answers alone, or the model's own
episodes that were right.

Invariant: the samples are those of `rl` under the same recipe, in its order, each once: prompts
0 to `count` of the stream of the recipe's seed. Demonstrations are text, as all are, and `sft` uses
their files as they are.

Left out on purpose: resuming, which a minute of work does not need, and choosing among right
episodes by how they looked.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from saccade.assemble import answering, task_of
from saccade.config import Recipe
from saccade.dialects import Dialect
from saccade.engines import Sampling
from saccade.evaluate import row_of
from saccade.image_store import ImageStore
from saccade.observing import partners_among
from saccade.progress import progress
from saccade.rollout import Failures, rollout
from saccade.synth.replay import Demonstration
from saccade.tasks import Task, stream
from saccade.types import Answer, Episode, Parsed, Sample, StopReason

__all__ = ["Kept", "answers_only", "kept_rollouts"]

CHUNK = 64
"""Prompts whose pictures are in memory together."""


class Kept(NamedTuple):
    """What came of rejection sampling."""

    demonstrations: tuple[Demonstration, ...]
    tried: int
    """Episodes."""
    right: int
    """Of those; as many of each sample were kept as were asked for."""
    written: int
    """Tokens that the model wrote in all of them."""


def answers_only(
    task: Task, *, split: str, start: int, count: int, seed: int, dialect: Dialect
) -> list[Demonstration]:
    """The gold answer as the single turn, for each distinct sample among `count` prompts of the
    stream from `start` on.
    """
    found: list[Demonstration] = []
    with progress("answers", total=count) as bar:
        for drawn, new in _chunks(
            task, split, store=ImageStore(), start=start, count=count, seed=seed, size=CHUNK
        ):
            for sample in (drawn[k] for k in new):
                text = dialect.render(Parsed(answer=Answer(task.gold(sample))))
                found.append(Demonstration(sample.id, (text,), "answer"))
            bar.advance(by=len(drawn))
    return found


def kept_rollouts(
    recipe: Recipe, *, split: str, count: int, rollouts: int, most_per_sample: int
) -> Kept:
    """Rejection sampling: `rollouts` episodes of the recipe's model for each distinct sample among
    the first `count` prompts that `rl` would see, drawn at the recipe's temperature.

    Kept are those that answered, right by the strict rule: at most `most_per_sample` of a sample,
    those that differ in their text before those that repeat one.
    """
    return asyncio.run(
        _kept(recipe, split, count=count, rollouts=rollouts, most_per_sample=most_per_sample)
    )


async def _kept(
    recipe: Recipe, split: str, *, count: int, rollouts: int, most_per_sample: int
) -> Kept:
    task, store = task_of(recipe), ImageStore()
    setup = replace(answering(recipe, store=store), failures=Failures())
    sampling = Sampling(recipe.rollout.temperature, recipe.rollout.max_tokens_per_turn)
    found: list[Demonstration] = []
    tried = right = written = 0
    with progress(f"rollouts {split}", total=count) as bar:
        for drawn, new in _chunks(
            task,
            split,
            store=store,
            start=0,
            count=count,
            seed=recipe.seed,
            size=recipe.rl.prompts_per_step,  # as in RL, where partners are of the same step
        ):
            partners = partners_among(drawn, mode=setup.observation)
            episodes = await rollout(
                [drawn[k] for k in new],
                setup,
                partners=[partners[k] for k in new] if partners else (),
                sampling=sampling,
                seed=recipe.seed,
                group_size=rollouts,
                concurrency=recipe.rollout.concurrency,
            )
            tried += len(episodes)
            written += sum(e.completion_tokens for e in episodes)
            for at in range(0, len(episodes), rollouts):
                group = [e for e in episodes[at : at + rollouts] if _is_right(e, task)]
                right += len(group)
                found += [
                    Demonstration(group[0].sample.id, turns, "kept")
                    for turns in _distinct_first([_turns(e) for e in group])[:most_per_sample]
                ]
            bar.advance(f"kept {len(found)}", by=len(drawn))
    return Kept(tuple(found), tried, right, written)


def _is_right(episode: Episode, task: Task) -> bool:
    return episode.stop is StopReason.ANSWERED and bool(row_of(episode, task.rubric).strict)


def _turns(episode: Episode) -> tuple[str, ...]:
    return tuple(m.text for m in episode.messages if m.role == "assistant")


def _distinct_first(texts: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Each text once, in order, then those that came again."""
    first = list(dict.fromkeys(texts))
    again = list(texts)
    for text in first:
        again.remove(text)
    return first + again


def _chunks(
    task: Task, split: str, *, store: ImageStore, start: int, count: int, seed: int, size: int
) -> Iterator[tuple[list[Sample], list[int]]]:
    """The prompts, `size` at a time, and at which places samples come for the first time; their
    pictures are dropped afterwards.
    """
    seen: set[str] = set()
    for at in range(start, start + count, size):
        wanted = min(size, start + count - at)
        prompts = stream(task, split, store=store, start=at, count=wanted, seed=seed)
        drawn, new = [s for s, _ in prompts], []
        for place, sample in enumerate(drawn):
            if sample.id not in seen:
                seen.add(sample.id)
                new.append(place)
        yield drawn, new
        store.forget(i for s in drawn for i in s.images)
