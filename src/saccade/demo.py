"""The whole path on a laptop: a small ladder with one seed, a question answered by the trained
model, and a report.

Invariant: a demo is an ordinary ladder of fewer arms; what is done is not done again.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

from saccade.ask import ask
from saccade.assemble import task_of
from saccade.atomic_files import Writing
from saccade.config import Recipe
from saccade.image_store import ImageStore
from saccade.ladder import runs as ladder
from saccade.recipe_files import changed
from saccade.types import Episode, Sample
from saccade.view import gaze_picture

__all__ = ["ask_one", "run", "small"]

ARMS = ("base", "sft", "rl-no-tools", "v-toolrl", "v-toolrl-black")
ITEMS = 500
PIECE = 10
"""Items drawn at a time in the search for one that needs a look."""


def small(recipe: Recipe) -> Recipe:
    """The recipe with a ladder for a coffee break: the arms that tell most, one seed, the rates of
    the recipe.
    """
    known = [arm for arm in ARMS if arm in recipe.ladder.arms]
    settings: dict[str, Any] = {
        "run": str(recipe.run or "runs/demo"),
        "eval.items": min(ITEMS, recipe.eval.items),
        "ladder.only": known,
        "ladder.seeds": [recipe.seed],
        "ladder.splits": [recipe.eval.split],
        "ladder.sft_rates": [],
        "ladder.rl_rates": [],
    }
    return changed(recipe, settings)


def run(recipe: Recipe) -> dict[str, Any]:
    """Train and measure the arms of the small ladder; returns the content of `ladder.json`."""
    return ladder.run(small(recipe))


def ask_one(recipe: Recipe) -> tuple[Episode, Path]:
    """The trained model's answer to the first item of validation that needs a look, and its gaze,
    drawn.
    """
    recipe = small(recipe)
    top = recipe.run
    assert top is not None
    store = ImageStore()
    sample = _needs_look(recipe, store)
    picture, gaze = top / "question.png", top / "gaze.png"
    with Writing(picture.name):
        store.view(sample.images[0]).pixels.save(picture)
    trained = changed(recipe, {"model": ladder.trained_model(recipe, recipe.ladder.tested)})
    episode, asked = ask(trained, picture, sample.question)
    drawn = gaze_picture(episode, asked)
    with Writing(gaze.name):
        drawn.save(gaze)
    return episode, gaze


def _needs_look(recipe: Recipe, store: ImageStore) -> Sample:
    """The first item that can't be answered from the first picture; the first one if none. No test
    item: those are read by measurements alone.
    """
    task, items = task_of(recipe), recipe.eval.items
    found = (
        sample
        for start in range(0, items, PIECE)
        for sample in task.load(
            recipe.ladder.validation, store=store, start=start, count=min(PIECE, items - start)
        )
    )
    first = next(found)
    return next((s for s in chain([first], found) if s.stratum == "look"), first)
