"""The whole path on a laptop: base, cold start, V-ToolRL, each evaluated on the same items, and a
report.

Invariant: every stage is an ordinary run in a folder of its own under one run folder; what is done
is not done again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from saccade import measure, rl, sft
from saccade.ask import ask
from saccade.assemble import task_of
from saccade.config import Recipe, recipe_hash
from saccade.images import ImageStore
from saccade.report import write_report
from saccade.store import RunFolder
from saccade.types import Episode
from saccade.view import gaze_picture

__all__ = ["ARMS", "ask_one", "run"]

ARMS = ("base", "sft", "rl")
PAIRS = (("sft", "base"), ("rl", "sft"))


def run(recipe: Recipe) -> dict[str, Any]:
    """Train and evaluate all arms of the recipe in its run folder; returns the content of
    `results.json`.
    """
    top = recipe.run or Path("runs/demo")
    models = {"base": recipe.model}
    _evaluate(recipe, top, "base", recipe.model)
    models["sft"] = str(_stage(top / "sft", lambda r: sft.run(r), recipe))
    _evaluate(recipe, top, "sft", models["sft"])
    start = recipe.model_copy(update={"model": models["sft"]})
    models["rl"] = str(_stage(top / "rl", lambda r: rl.run(r), start))
    _evaluate(recipe, top, "rl", models["rl"])
    rows = {}
    for arm in ARMS:
        with RunFolder(top / f"eval-{arm}") as folder:
            rows[arm] = measure.rows_of(folder)
    results = measure.compare(rows, PAIRS, bootstrap=recipe.eval.bootstrap)
    with RunFolder(top) as folder:
        folder.write_json("results.json", results)
    write_report(top)
    return results


def ask_one(recipe: Recipe) -> tuple[Episode, Path]:
    """The trained model's answer to the first test item that needs a look, and its gaze, drawn."""
    top = recipe.run or Path("runs/demo")
    store = ImageStore()
    task = task_of(recipe)
    samples = task.load(recipe.eval.split, store=store, count=recipe.eval.items)
    sample = next((s for s in samples if s.stratum == "look"), samples[0])
    picture, gaze = top / "question.png", top / "gaze.png"
    store.view(sample.images[0]).pixels.save(picture)
    trained = recipe.model_copy(update={"model": str(top / "rl" / "model")})
    episode, asked = ask(trained, picture, sample.question)
    gaze_picture(episode, asked).save(gaze)
    return episode, gaze


def _stage(folder: Path, train: Any, recipe: Recipe) -> Path:
    """The stage's model, trained now or before by the same recipe."""
    model, stage = folder / "model", recipe.model_copy(update={"run": folder})
    made_by = model / "saccade.json"
    if made_by.is_file() and json.loads(made_by.read_text())["recipe"] == recipe_hash(stage):
        return model
    return Path(train(stage))


def _evaluate(recipe: Recipe, top: Path, arm: str, model: str) -> None:
    """The base knows no tools: it is asked plainly, without them."""
    changes: dict[str, object] = {"run": top / f"eval-{arm}", "model": model}
    if arm == "base":
        changes["dialect"] = "plain"
    measure.run(recipe.model_copy(update=changes), arm=arm)
