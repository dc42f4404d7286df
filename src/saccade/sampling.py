"""A few episodes of a recipe, to look at."""

from __future__ import annotations

import asyncio

from saccade.assemble import answering, task_of
from saccade.config import Recipe
from saccade.engines import Sampling
from saccade.episode_json import episode_to_json
from saccade.image_store import ImageStore
from saccade.ledger import note_reading
from saccade.observing import partners_among
from saccade.progress import progress
from saccade.rollout import rollout
from saccade.run_folder import RunFolder
from saccade.types import Episode

__all__ = ["sample_episodes"]


def sample_episodes(recipe: Recipe, split: str, *, count: int) -> list[Episode]:
    """Scored episodes of the first `count` samples of a split; kept in the recipe's run folder if
    it has one.
    """
    # a folder that can't be written is found before the work
    folder = None if recipe.run is None else RunFolder(recipe.run)
    store = ImageStore()
    task = task_of(recipe)
    if folder is not None:
        with folder:
            note_reading(folder, recipe, arm="rollout", split=split, items=count)
    samples = task.load(split, store=store, count=count)
    setup = answering(recipe, store=store, rubric=task.rubric)
    sampling = Sampling(recipe.rollout.temperature, recipe.rollout.max_tokens_per_turn)
    with progress(f"rollout {split}", total=len(samples)) as bar:
        episodes = asyncio.run(
            rollout(
                samples,
                setup,
                partners=partners_among(samples, mode=setup.observation),
                sampling=sampling,
                seed=recipe.seed,
                concurrency=recipe.rollout.concurrency,
                on_done=lambda _: bar.advance(),
            )
        )
    if folder is not None:
        with folder:
            for episode in episodes:
                store.save(episode.images.values(), folder.path)
                folder.append("episodes", episode_to_json(episode))
    return episodes
