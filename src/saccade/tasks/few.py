"""A task of which training reads few items, the same ones round after round.

Invariant: which they are is a function of the seed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from saccade.image_store import ImageStore
from saccade.rewards import Rubric
from saccade.tasks import BETWEEN_SEEDS, Task, find
from saccade.tasks.mix import Mix
from saccade.tasks.moved import moved, unmoved
from saccade.types import Sample

__all__ = ["Few"]

TRAIN = "train"


class Few:
    """Another task whose split `train` ends after `items` samples; other splits are as they are.

    Of a split without end each seed has the first samples of its own stretch, of one that ends a
    draw without replacement. Parts of a mix have as many each, one more where that does not go up.
    With `ways` above 1 each comes as it is and with its pictures moved, as often altogether.
    """

    def __init__(self, task: Task, *, items: int, seed: int, ways: int = 1) -> None:
        self.task, self._seed, self._ways = task, seed, ways
        size = task.size(TRAIN)
        if size is None:
            self._places = seed * BETWEEN_SEEDS + np.arange(items)
        else:
            order = np.random.default_rng([seed, 17]).permutation(size)
            turns = task.turns if isinstance(task, Mix) else 1
            by_part = [order[order % turns == part] for part in range(turns)]
            longest = max(len(places) for places in by_part)
            taken = [int(p[k]) for k in range(longest) for p in by_part if k < len(p)]
            self._places = np.array(taken[:items], dtype=int)

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def rubric(self) -> Rubric:
        return self.task.rubric

    def load(
        self, split: str, *, store: ImageStore, start: int = 0, count: int | None = None
    ) -> Sequence[Sample]:
        if split != TRAIN:
            return self.task.load(split, store=store, start=start, count=count)
        size = len(self._places) * self._ways
        found: list[Sample] = []
        for number in range(start, size if count is None else min(start + count, size)):
            way, at = divmod(number, len(self._places))
            [sample] = self.task.load(split, store=store, start=int(self._places[at]), count=1)
            found.append(moved(sample, way, store=store, seed=self._seed))
        return found

    def size(self, split: str) -> int | None:
        return len(self._places) * self._ways if split == TRAIN else self.task.size(split)

    def gold(self, sample: Sample) -> str:
        return self.task.gold(sample)

    def wrong(self, sample: Sample) -> str:
        return self.task.wrong(sample)

    def find(self, sample: str, *, store: ImageStore) -> Sample | None:
        """As the whole task finds it, which has every sample of this one, or one of its ways."""
        found = find(self.task, sample, store=store)
        if found is None and self._ways > 1:
            name, way = unmoved(sample)
            found = find(self.task, name, store=store)
            return found and moved(found, way, store=store, seed=self._seed)
        return found
