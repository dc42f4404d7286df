"""How well a model points in scenes of shapes: asked where the things of a question are, F1 at IoU
0.5 and mean IoU of its boxes, one to one, with 95% intervals over items.

    python scripts/pointing.py saccade-tiny-grounded-base --items 500
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.stats import bootstrap

from saccade.config import Recipe
from saccade.engines import Sampling
from saccade.grounding import boxes_named
from saccade.grounding_figures import mean_matched_iou
from saccade.image_store import ImageStore
from saccade.recipe_files import load_recipe
from saccade.rewards.boxes import matched_f1
from saccade.rollout import rollout
from saccade.synth.chains import asked_where, notation_of, pointing_setup
from saccade.tasks import task_named
from saccade.types import Parsed

TASKS = {"relations": "shapes_vsr", "counts": "shapes_tally"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--split", default="validation")
    given = parser.parse_args()
    for name, task in TASKS.items():
        recipe = load_recipe(
            None,
            [
                f"model={given.model}",
                f"task.name={task}",
                *("dialect=grounded", "tool_style=silent", "notation=inline"),
                *("min_image_tokens=2", "max_image_tokens=25", "rollout.max_tokens_per_turn=256"),
            ],
        )
        figures = asyncio.run(_pointed(recipe, task, split=given.split, items=given.items))
        for what, values in zip(("F1 at IoU 0.5", "mean IoU"), figures, strict=True):
            print(f"{name}: {what} {_interval(values)}, {len(values)} items")


async def _pointed(
    recipe: Recipe, task: str, *, split: str, items: int
) -> tuple[list[float], list[float]]:
    store = ImageStore()
    setup = pointing_setup(recipe, store)
    notation = notation_of(setup)
    samples = task_named(task, {}).load(split, store=store, count=items)
    asked = [replace(s, question=asked_where(s)) for s in samples]
    episodes = await rollout(asked, setup, sampling=Sampling(0.0, 256), concurrency=64)
    f1s, ious = [], []
    for episode in episodes:
        golds = [e.box for e in episode.sample.evidence]
        if not golds:  # nothing to point at
            continue
        images = {"img_0": episode.sample.images[0]}
        said = Parsed(episode.answer or "")
        named, _ = boxes_named(said, notation, images=images, frame=setup.frame_of)
        found = [b.box for b in named]
        f1s.append(matched_f1(golds, found) or 0.0)
        ious.append(mean_matched_iou(golds, found) or 0.0)
    return f1s, ious


def _interval(values: Sequence[float]) -> str:
    drawn = bootstrap((np.array(values),), np.mean, method="percentile", rng=0)
    low, high = drawn.confidence_interval
    return f"{np.mean(values):.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
