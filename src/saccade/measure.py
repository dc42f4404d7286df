"""Evaluation runs: a model, a split, a row for each sample, a summary.

Invariant: each sample is asked once; a killed evaluation goes on with the samples that have no
row. The rows hold what every figure is made of, so that they can be scored again without asking
again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saccade.assemble import answering, task_of
from saccade.config import Recipe, check_same_run, dump_recipe
from saccade.engines import Sampling
from saccade.evaluate import (
    Comparison,
    Metric,
    SampleRow,
    Summary,
    paired,
    remaining,
    results_json,
    row_of,
    summarise,
)
from saccade.images import ImageStore
from saccade.progress import progress
from saccade.rollout import Setup, rollout
from saccade.store import RunFolder, episode_to_json
from saccade.tasks import Task
from saccade.types import Episode

__all__ = ["compare", "rows_of", "run"]

METRICS: tuple[Metric, ...] = ("accuracy", "coverage", "calls")
CHUNK = 100
"""Samples between two writes."""
FAILURE_LIMIT = 0.05
"""Share of our own failures in a chunk above which the evaluation stops; below, they are shown."""
KEPT_EPISODES = 24
"""Whole episodes kept for the report."""


def run(recipe: Recipe, *, arm: str) -> Summary:
    """Ask the recipe's model the items of its split, or those still missing, and sum up all of
    them.
    """
    return asyncio.run(_run(recipe, arm=arm))


async def _run(recipe: Recipe, *, arm: str) -> Summary:
    config = recipe.eval
    task = task_of(recipe)
    with RunFolder(recipe.run or Path("runs/eval")) as folder:
        check_same_run(folder.recipe(), recipe, stage="eval")
        folder.write_recipe(dump_recipe(recipe))
        folder.write_env(threads=recipe.threads)
        rows = rows_of(folder)
        with progress(f"eval {arm}", total=config.items, done=len(rows)) as bar:
            if len(rows) < config.items:
                store = ImageStore()
                setup = answering(recipe, store=store, rubric=task.rubric)
                for start in range(0, config.items, CHUNK):
                    count = min(CHUNK, config.items - start)
                    samples = task.load(config.split, store=store, start=start, count=count)
                    missing = [sample for sample, _ in remaining(samples, rows)]
                    if not missing:
                        continue
                    sampling = Sampling(config.temperature, recipe.rollout.max_tokens_per_turn)
                    episodes = await rollout(
                        missing,
                        setup,
                        sampling=sampling,
                        seed=recipe.seed,
                        concurrency=recipe.rollout.concurrency,
                        failure_limit=FAILURE_LIMIT,
                        on_done=lambda _: bar.advance(),
                    )
                    rows += _keep(folder, episodes, task, setup, arm=arm, first=start)
                    store.forget(i for s in samples for i in s.images)
        if len(rows) > config.items:  # made before with more items
            rows = rows[: config.items]
        summary = summarise(rows, bootstrap=config.bootstrap, seed=recipe.seed)
        folder.write_json("results.json", results_json({arm: summary}, ()))
    return summary


def _keep(
    folder: RunFolder,
    episodes: Sequence[Episode],
    task: Task,
    setup: Setup,
    *,
    arm: str,
    first: int,
) -> list[SampleRow]:
    rows = []
    for number, episode in enumerate(episodes, start=first):
        if number < KEPT_EPISODES:
            setup.store.save(episode.images.values(), folder.path)
            folder.append("episodes", {"arm": arm, **episode_to_json(episode)})
        row = row_of(episode, task.rubric)
        folder.append("rows", row.to_json())  # last: a row says that its sample is done
        rows.append(row)
    return rows


def rows_of(folder: RunFolder) -> list[SampleRow]:
    """The rows of an evaluation so far."""
    return [SampleRow.from_json(row) for row in folder.read("rows")]


def compare(
    arms: Mapping[str, Sequence[SampleRow]], pairs: Sequence[tuple[str, str]], *, bootstrap: int
) -> dict[str, Any]:
    """Summaries of several arms on the same items, and paired differences between pairs of them."""
    summaries = {name: summarise(rows, bootstrap=bootstrap) for name, rows in arms.items()}
    found: list[Comparison] = []
    for a, b in pairs:
        strata = sorted({r.stratum for r in arms[a] if r.stratum})
        for stratum in ("all", *strata):
            for metric in METRICS:
                found.append(
                    paired(
                        arms[a],
                        arms[b],
                        stratum=stratum,
                        metric=metric,
                        names=(a, b),
                        bootstrap=bootstrap,
                    )
                )
    return results_json(summaries, found)
