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
from saccade.types import Sample

__all__ = ["Few"]

TRAIN = "train"


class Few:
    """Another task whose split `train` ends after `items` samples; other splits are as they are.

    Of a split without end each seed has the first samples of its own stretch, of one that ends a
    draw without replacement. Parts of a mix have as many each, one more where that does not go up.
    """

    def __init__(self, task: Task, *, items: int, seed: int) -> None:
        self.task = task
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
        stop = len(self._places) if count is None else start + count
        found: list[Sample] = []
        for place in self._places[start:stop]:
            found += self.task.load(split, store=store, start=int(place), count=1)
        return found

    def size(self, split: str) -> int | None:
        return len(self._places) if split == TRAIN else self.task.size(split)

    def gold(self, sample: Sample) -> str:
        return self.task.gold(sample)

    def wrong(self, sample: Sample) -> str:
        return self.task.wrong(sample)

    def find(self, sample: str, *, store: ImageStore) -> Sample | None:
        """As the whole task finds it, which has every sample of this one."""
        return find(self.task, sample, store=store)
