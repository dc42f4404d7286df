"""Episodes that were made elsewhere, as an arm of a ladder: read before anything is trained, scored
on our own items.

Invariant: question, answer and evidence are those of the recipe's task; what the file says of them
is not believed. Every item has exactly one episode.

Left out on purpose: making them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from saccade.atomic_files import Reading
from saccade.config import Recipe
from saccade.episode_json import episode_from_json
from saccade.errors import DataError
from saccade.evaluate import row_of
from saccade.image_store import ImageStore
from saccade.ledger import note_reading
from saccade.measure import CHUNK
from saccade.recipe_files import dump_recipe
from saccade.run_folder import RunFolder
from saccade.tasks import Task
from saccade.types import Episode

__all__ = ["episodes_file", "read_episodes", "score"]

SHOWN = 3
"""Ids that an error names."""


def episodes_file(pattern: Path, split: str) -> Path:
    """The file of a split: `{split}` in the pattern stands for it."""
    return Path(str(pattern).replace("{split}", split))


def read_episodes(path: Path, *, items: int) -> dict[str, Episode]:
    """Finished episodes by the id of their sample, from a JSONL file.

    Raises DataError for a line that is none, for a sample that comes twice, and for fewer than
    `items`.
    """
    with Reading(path.name):
        lines = path.read_text(encoding="utf-8").splitlines()
    found: dict[str, Episode] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"Line {number} of {path.name!r}"
        try:
            told = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is no episode: {error}.") from None
        try:
            episode = episode_from_json(told)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        if episode.stop is None:
            raise DataError(f"{where} is an episode that has not ended.")
        if episode.sample.id in found:
            raise DataError(f"{where} is another episode of sample {episode.sample.id!r}.")
        found[episode.sample.id] = episode
    if len(found) < items:
        raise DataError(
            f"{path.name!r} holds {len(found)} episodes, and the split has {items} items to score: "
            "add the others, or lower eval.items."
        )
    return found


def score(recipe: Recipe, task: Task, path: Path, *, arm: str, items: int) -> None:
    """Write a row for each of the first `items` samples of the recipe's split into its run folder.

    Raises DataError where a sample has no episode, or the file has others.
    """
    assert recipe.run is not None
    split, store = recipe.eval.split, ImageStore()
    made = read_episodes(path, items=items)
    with RunFolder(recipe.run) as folder:
        folder.write_recipe(dump_recipe(recipe))
        folder.drop("rows", lambda row: True)
        note_reading(folder, recipe, arm=arm, split=split, items=items, asks_model=False)
        rows = []
        for start in range(0, items, CHUNK):
            count = min(CHUNK, items - start)
            for sample in task.load(split, store=store, start=start, count=count):
                episode = made.pop(sample.id, None)
                if episode is None:
                    raise DataError(f"{path.name!r} has no episode of sample {sample.id!r}.")
                rows.append(row_of(replace(episode, sample=sample), task.rubric))
                store.forget(sample.images)
        if made:
            raise DataError(
                f"{path.name!r} has episodes of samples that are not asked: {_some(list(made))}."
            )
        for number, row in enumerate(rows):
            folder.append("rows", {"number": number, **row.to_json()})


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(repr(i) for i in ids[:SHOWN]) + more
