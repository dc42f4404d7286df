"""The whole path on a laptop: base, cold start, V-ToolRL, each evaluated on the same items, and a
report.

Invariant: every stage is an ordinary run in a folder of its own under one run folder; what is done
is not done again, and nothing that was made from other weights is passed off as made from these.
"""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

from saccade import measure, rl, sft
from saccade.ask import ask
from saccade.assemble import made_by, task_of
from saccade.atomic_files import Writing
from saccade.config import Recipe, Stage
from saccade.image_store import ImageStore
from saccade.report import write_report
from saccade.run_folder import RunFolder
from saccade.types import Episode, Sample
from saccade.view import gaze_picture

__all__ = ["ARMS", "ask_one", "run"]

ARMS = ("base", "sft", "rl", "rl-text")
"""`rl-text` is the model of `rl`, told the size of what it looked at and shown no pixels of it:
what it loses, looking gave.
"""
PAIRS = (("sft", "base"), ("rl", "sft"), ("rl", "rl-text"))
PIECE = 10
"""Items drawn at a time in the search for one that needs a look."""


def run(recipe: Recipe) -> dict[str, Any]:
    """Train and evaluate all arms of the recipe in its run folder; returns the content of
    `results.json`.
    """
    top = recipe.run or Path("runs/demo")
    models = {"base": recipe.model}
    _evaluate(recipe, top, "base", recipe.model)
    models["sft"] = str(_stage(top / "sft", "sft", recipe))
    _evaluate(recipe, top, "sft", models["sft"])
    start = recipe.model_copy(update={"model": models["sft"]})
    models["rl"] = str(_stage(top / "rl", "rl", start))
    _evaluate(recipe, top, "rl", models["rl"])
    _evaluate(recipe, top, "rl-text", models["rl"])
    rows = {}
    for arm in ARMS:
        with RunFolder(top / f"eval-{arm}") as folder:
            rows[arm] = measure.rows_of(folder, items=recipe.eval.items)
    results = measure.compare(rows, PAIRS, bootstrap=recipe.eval.bootstrap)
    with RunFolder(top) as folder:
        folder.write_json("results.json", results)
    write_report(top)
    return results


def ask_one(recipe: Recipe) -> tuple[Episode, Path]:
    """The trained model's answer to the first test item that needs a look, and its gaze, drawn."""
    top = recipe.run or Path("runs/demo")
    store = ImageStore()
    sample = _needs_look(recipe, store)
    picture, gaze = top / "question.png", top / "gaze.png"
    with Writing(picture.name):
        store.view(sample.images[0]).pixels.save(picture)
    trained = recipe.model_copy(update={"model": str(top / "rl" / "model")})
    episode, asked = ask(trained, picture, sample.question)
    drawn = gaze_picture(episode, asked)
    with Writing(gaze.name):
        drawn.save(gaze)
    return episode, gaze


def _needs_look(recipe: Recipe, store: ImageStore) -> Sample:
    """The first test item that can't be answered from the first picture; the first one if none."""
    task, items = task_of(recipe), recipe.eval.items
    found = (
        sample
        for start in range(0, items, PIECE)
        for sample in task.load(
            recipe.eval.split, store=store, start=start, count=min(PIECE, items - start)
        )
    )
    first = next(found)
    return next((s for s in chain([first], found) if s.stratum == "look"), first)


def _stage(folder: Path, stage: Stage, recipe: Recipe) -> Path:
    """The stage's model, trained now or before by the same recipe."""
    model = folder / "model"
    told = model / "saccade.json"
    if told.is_file() and json.loads(told.read_text()) == made_by(
        recipe, stage=stage, start=recipe.model
    ):
        return model
    return (sft.run if stage == "sft" else rl.run)(recipe.model_copy(update={"run": folder}))


def _evaluate(recipe: Recipe, top: Path, arm: str, model: str) -> None:
    """The base knows no tools: it is asked plainly, without them."""
    changes: dict[str, object] = {"run": top / f"eval-{arm}", "model": model}
    if arm == "base":
        changes["dialect"] = "plain"
    if arm == "rl-text":
        changes["rollout"] = recipe.rollout.model_copy(update={"observation": "text"})
    measure.run(recipe.model_copy(update=changes), arm=arm)
