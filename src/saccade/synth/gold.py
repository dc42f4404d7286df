"""Demonstrations of reasoning with boxes, from the boxes that a task holds: what few-shot
fine-tuning is given.

Left out on purpose: other worlds than those of shapes, whose answers follow from boxes.
"""

from __future__ import annotations

from saccade.assemble import task_of
from saccade.config import Recipe
from saccade.dialects.grounded import Grounded
from saccade.errors import DataError
from saccade.image_store import ImageStore
from saccade.progress import progress
from saccade.synth.chains import chain_of, notation_of, pointing_setup
from saccade.synth.replay import Demonstration
from saccade.tasks import stream
from saccade.types import BoxNamed
from saccade.worlds.lessons import rounded_box

__all__ = ["gold_chains"]

CHUNK = 64
"""Samples whose pictures are in memory together."""


def gold_chains(recipe: Recipe, *, split: str, count: int) -> list[Demonstration]:
    """Chains with the right boxes and what follows from them, for each distinct sample among the
    first `count` that `rl` would see under this recipe.
    """
    task, store = task_of(recipe), ImageStore()
    setup = pointing_setup(recipe, store)
    notation = notation_of(setup)
    writes = Grounded("silent", notation)
    found: dict[str, Demonstration] = {}

    def write(box: BoxNamed, phrase: str) -> str:
        return notation.write(rounded_box(setup.frame_of(box.image), box.box), phrase)

    with progress("chains with the right boxes", total=count) as bar:
        for at in range(0, count, CHUNK):
            wanted = min(CHUNK, count - at)
            drawn = stream(task, split, store=store, start=at, count=wanted, seed=recipe.seed)
            for sample, _ in drawn:
                named = [BoxNamed(e.image, e.box, e.phrase) for e in sample.evidence]
                chain = chain_of(sample, named, write)
                if chain is None:
                    raise DataError(
                        f"The evidence of sample {sample.id!r} does not lead to its answer."
                    )
                found[sample.id] = Demonstration(sample.id, (writes.render(chain),), "gold")
            store.forget(i for s, _ in drawn for i in s.images)
            bar.advance(by=wanted)
    return list(found.values())
