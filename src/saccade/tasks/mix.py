"""The task `mix`: several tasks in turn, as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from saccade.errors import RecipeError
from saccade.image_store import ImageStore
from saccade.rewards import Rubric
from saccade.rewards.grounded import FREE
from saccade.tasks import Task, find, task_named
from saccade.types import Sample

__all__ = ["Mix"]


class Mix:
    """Sample k comes from part k modulo the number of parts, so any run of samples is mixed
    evenly; a split ends where its first part ends.
    """

    name = "mix"

    def __init__(
        self, *, parts: Sequence[str | Mapping[str, object]], train: Sequence[str] = ()
    ) -> None:
        """Names of tasks, or mappings of `name` and their options; `request` is said behind each
        question of a part, and `form: free` says of one that its questions need no boxes, so that
        rewards of form leave them out. `train` names the parts that split `train` is made of, where
        these are not all. Raises RecipeError where a part is no task, stands twice or scores by
        other rules than the first.
        """
        told = [{"name": p} if isinstance(p, str) else dict(p) for p in parts]
        if not told or any("name" not in t for t in told):
            raise RecipeError(f"Task mix needs parts with names, got {list(parts)!r}.")
        self._parts: dict[str, Task] = {}
        self._requests: dict[str, str] = {}
        self._free: set[str] = set()
        for options in told:
            name = str(options.pop("name"))
            if name in self._parts:
                raise RecipeError(f"Task mix has the part {name!r} twice.")
            self._requests[name] = str(options.pop("request", ""))
            form = options.pop("form", None)
            if form not in (None, FREE):
                raise RecipeError(f"Part {name!r} of task mix: form can be {FREE}, got {form!r}.")
            if form == FREE:
                self._free.add(name)
            self._parts[name] = task_named(name, options)
        self.rubric: Rubric = next(iter(self._parts.values())).rubric
        for name, part in self._parts.items():
            if part.rubric != self.rubric:
                raise RecipeError(f"Task mix can't score {name!r}: its rubric is another one.")
        for name in train:
            if name not in self._parts:
                raise RecipeError(
                    f"Task mix can't train on {name!r}: its parts are {', '.join(self._parts)}."
                )
        self._trained = [name for name in self._parts if not train or name in train]

    def load(
        self, split: str, *, store: ImageStore, start: int = 0, count: int | None = None
    ) -> Sequence[Sample]:
        """Samples `start` to `start + count`."""
        size = self.size(split)
        if count is None:
            if size is None:
                raise RecipeError(f"Split {split!r} of task mix has no end; say how many items.")
            count = max(0, size - start)
        stop = start + count if size is None else min(start + count, size)
        parts = self._of(split)
        width = len(parts)
        found: dict[int, Sample] = {}
        for place, part in enumerate(parts):
            numbers = range(start + (place - start) % width, stop, width)
            if numbers:
                first = numbers[0] // width
                samples = part.load(split, store=store, start=first, count=len(numbers))
                named = (self._named(sample, part.name) for sample in samples)
                found |= dict(zip(numbers, named, strict=True))
        return [found[n] for n in range(start, stop)]

    def size(self, split: str) -> int | None:
        """As often as all parts can take their turn; None where none of them ends."""
        sizes = [part.size(split) for part in self._of(split)]
        ends = [size for size in sizes if size is not None]
        return min(ends) * len(sizes) if ends else None

    @property
    def turns(self) -> int:
        """Parts that take turns in split `train`: sample k is of the part k modulo that many."""
        return len(self._trained)

    def _of(self, split: str) -> list[Task]:
        names = self._trained if split == "train" else list(self._parts)
        return [self._parts[name] for name in names]

    def gold(self, sample: Sample) -> str:
        return self._part(sample.id).gold(sample)

    def wrong(self, sample: Sample) -> str:
        return self._part(sample.id).wrong(sample)

    def find(self, sample: str, *, store: ImageStore) -> Sample | None:
        """The sample of this id, asked as its part asks; None where its part has none."""
        part = self._part(sample)
        found = find(part, sample, store=store)
        if found is None:
            found = find(part, sample.removeprefix(f"{part.name}/"), store=store)
        return found and self._named(found, part.name)

    def _part(self, sample: str) -> Task:
        """The part that a sample is from: ids begin with the name of their task."""
        name = sample.partition("/")[0]
        if name in self._parts:
            return self._parts[name]
        raise RecipeError(f"Sample {sample!r} is of no part of task mix.")

    def _named(self, sample: Sample, part: str) -> Sample:
        """The sample under an id that begins with its part, asked as its part asks."""
        name = sample.id if sample.id.startswith(f"{part}/") else f"{part}/{sample.id}"
        request = self._requests[part]
        asked = f"{sample.question} {request}" if request else sample.question
        meta = (*sample.meta, ("form", FREE)) if part in self._free else sample.meta
        return replace(sample, id=name, question=asked, meta=meta)
