"""One question about one picture, answered by a model with tools, and what its answer rests on."""

from __future__ import annotations

import asyncio
from pathlib import Path

from saccade.assemble import answering
from saccade.config import Recipe
from saccade.engines import Sampling
from saccade.errors import RecipeError
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.picture_files import load_image
from saccade.rollout import run_episode
from saccade.types import Episode, Sample

__all__ = ["TINY_KNOWS", "ask"]

TINY_KNOWS = (
    "saccade-tiny knows drawn bar and line charts of three to five marks, called bar 1, bar 2 ... "
    "or point 1, point 2 ... from the left: values, differences, the highest or lowest, which of "
    "two is higher. It knows nothing else: no photographs, no other words. For those, give a real "
    "model with --model."
)


def ask(recipe: Recipe, image: Path, question: str) -> tuple[Episode, ImageStore]:
    """The episode of one question, greedy, and the store that holds its pictures.

    Raises ImageError for a picture that can't be read safely, RecipeError for a recipe that shows
    another picture's views.
    """
    if recipe.rollout.observation == "swapped":
        raise RecipeError(
            "One question has no other picture to show, so rollout.observation can't be swapped "
            "here: set rollout.observation=image."
        )
    store = ImageStore()
    root = store.add(root_view(load_image(image)))
    sample = Sample(id=f"ask/{root.key[:12]}", question=question, images=(root,), answer="")
    setup = answering(recipe, store=store)
    sampling = Sampling(0.0, recipe.rollout.max_tokens_per_turn)
    return asyncio.run(run_episode(sample, setup, sampling=sampling, seed=recipe.seed)), store
