"""Samples that took long to make, stored in a folder for whoever asks the same task next.

Invariant: a sample that was stored equals the one that was made, pixel by pixel; a killed writer
leaves nothing that is read.

Left out on purpose: an end. The folder belongs to one run and goes with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

from saccade.atomic_files import Reading, Writing, write_atomic
from saccade.episode_json import episode_from_json, episode_to_json
from saccade.image_store import ImageStore
from saccade.rewards import Rubric
from saccade.tasks import Task
from saccade.types import Episode, Sample

__all__ = ["Stored"]

SLOW_S = 0.03
"""What is made faster than that is made again: a file would be no faster."""


class Stored:
    """A task, some of whose samples are read from `folder` when they are asked for again."""

    def __init__(self, task: Task, folder: Path) -> None:
        """The folder must be one task's own, with one set of options."""
        self.task, self.folder = task, folder
        self._images = ImageStore(folder, cache_bytes=0)

    @property
    def name(self) -> str:
        return self.task.name

    @property
    def rubric(self) -> Rubric:
        return self.task.rubric

    def load(
        self, split: str, *, store: ImageStore, start: int = 0, count: int | None = None
    ) -> Sequence[Sample]:
        size = self.task.size(split)
        if count is None and size is None:
            return self.task.load(split, store=store, start=start)  # it says what is missing
        stop = min(n for n in (size, None if count is None else start + count) if n is not None)
        return [self._load(split, index, store) for index in range(start, stop)]

    def size(self, split: str) -> int | None:
        return self.task.size(split)

    def gold(self, sample: Sample) -> str:
        return self.task.gold(sample)

    def wrong(self, sample: Sample) -> str:
        return self.task.wrong(sample)

    def _load(self, split: str, index: int, store: ImageStore) -> Sample:
        path = self.folder / split / f"{index}.json"
        if path.is_file():
            with Reading(path.name):
                told = json.loads(path.read_text(encoding="utf-8"))
            sample = episode_from_json(told).sample
            for image in sample.images:
                store.add(self._images.view(image))
            return sample
        began = time.perf_counter()
        [sample] = self.task.load(split, store=store, start=index, count=1)
        if time.perf_counter() - began > SLOW_S:
            store.save(sample.images, self.folder)
            row = json.dumps(episode_to_json(Episode(sample)), allow_nan=False)
            with Writing(path.name):
                path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, row.encode())
        return sample
