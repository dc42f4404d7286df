"""What items of a split were read for, and by which model: a line for each reading.

Invariant: the line is there before the items are read, so that a run that is killed has it too.

Left out on purpose: readings by hand, and those of commands that keep no run folder.
"""

from __future__ import annotations

from datetime import UTC, datetime

from saccade.assemble import lineage_hash, weights_digest
from saccade.config import Recipe
from saccade.recipe_files import recipe_hash
from saccade.run_folder import RunFolder

__all__ = ["note_reading"]


def note_reading(
    folder: RunFolder,
    recipe: Recipe,
    *,
    arm: str,
    split: str,
    items: int,
    asks_model: bool = True,
) -> None:
    """A line in the ledger for those of the first `items` of a split that are about to be read;
    `asks_model`: by the recipe's model.
    """
    known = {row["number"] for row in folder.read("rows")}
    numbers = [number for number in range(items) if number not in known]
    folder.append(
        "ledger",
        {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "split": split,
            "items": len(numbers),
            "first": numbers[0] if numbers else None,
            "arm": arm,
            "seed": recipe.seed,
            "recipe": recipe_hash(recipe, stage="eval"),
            "model": lineage_hash(recipe) if asks_model else None,
            "weights": weights_digest(recipe) if asks_model else None,
        },
    )
