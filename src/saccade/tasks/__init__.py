"""What is asked: the `Task` seam, and the tasks by name.

Invariant: a task's samples are the same whenever they are loaded, and its rubric gives its gold
answers the highest score (see `saccade.tasks.check`).
Left out on purpose: tasks named by a Python path.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from saccade import plugins
from saccade.errors import DataError, RecipeError
from saccade.image_store import ImageStore
from saccade.rewards import Rubric
from saccade.types import Sample

__all__ = ["BETWEEN_SEEDS", "CLUSTER", "TASKS", "Finder", "Task", "find", "stream", "task_named"]

GROUP: plugins.Group = "saccade.tasks"

CLUSTER = "cluster"
"""Name in `Sample.meta`: samples of equal value depend on each other (share a picture, say)."""
BETWEEN_SEEDS = 10**7
"""Samples of an endless split from the first of one seed to the first of the next."""
TASKS = (
    *("charts", "files", "gqa", "grit", "mathvista", "mix", "mme", "ovdeval"),
    *("shapes_tally", "shapes_vsr", "tallyqa", "vsr"),
)
"""Names of the tasks that come with saccade."""


@runtime_checkable
class Task(Protocol):
    """Questions about images, and how answers to them are scored."""

    @property
    def name(self) -> str: ...

    @property
    def rubric(self) -> Rubric: ...

    def load(
        self, split: str, *, store: ImageStore, start: int = 0, count: int | None = None
    ) -> Sequence[Sample]:
        """`count` samples (None: all) from the `start`-th on; their images are added to the store.

        Raises DataError or RecipeError for a split or rows that can't be used.
        """
        ...

    def size(self, split: str) -> int | None:
        """How many samples the split has; None: it has no end.

        Raises DataError or RecipeError for a split that there is not.
        """
        ...

    def gold(self, sample: Sample) -> str:
        """An answer that the rubric gives its highest score."""
        ...

    def wrong(self, sample: Sample) -> str:
        """An answer that the rubric gives less."""
        ...


@runtime_checkable
class Finder(Protocol):
    """A task whose samples have other places than their ids say."""

    def find(self, sample: str, *, store: ImageStore) -> Sample | None:
        """The sample of this id; None where it has none."""
        ...


def find(task: Task, sample: str, *, store: ImageStore) -> Sample | None:
    """The sample of an id `.../split/number`; None where that says no place that there is."""
    if isinstance(task, Finder):
        return task.find(sample, store=store)
    parts = sample.rsplit("/", 2)
    if len(parts) != 3 or not parts[2].isdecimal():
        return None
    number = int(parts[2])
    try:
        size = task.size(parts[1])
    except DataError:  # rows that there are not: their ids may look like places
        return None
    if size is not None and number >= size:
        return None
    [found] = task.load(parts[1], store=store, start=number, count=1)
    return found


def task_named(name: str, options: Mapping[str, object]) -> Task:
    """The task of that name, built from its options by name.

    Raises RecipeError for a name or option that does not exist, and for options that are missing.
    """
    if name == "charts":
        from saccade.tasks.charts import Charts

        return _build(Charts, name, options)
    if name == "files":
        from saccade.tasks.files import Files

        return _build(Files, name, options)
    if name == "mix":
        from saccade.tasks.mix import Mix

        return _build(Mix, name, options)
    if name in ("shapes_tally", "shapes_vsr"):
        from saccade.tasks.shapes import ShapesTally, ShapesVsr

        return _build(ShapesTally if name == "shapes_tally" else ShapesVsr, name, options)
    if name == "gqa":
        from saccade.tasks.gqa import Gqa

        return _build(Gqa, name, options)
    if name == "grit":
        from saccade.tasks.grit import Grit

        return _build(Grit, name, options)
    if name == "mathvista":
        from saccade.tasks.mathvista import MathVista

        return _build(MathVista, name, options)
    if name == "mme":
        from saccade.tasks.mme import Mme

        return _build(Mme, name, options)
    if name == "ovdeval":
        from saccade.tasks.ovdeval import OvdEval

        return _build(OvdEval, name, options)
    if name == "tallyqa":
        from saccade.tasks.tallyqa import TallyQa

        return _build(TallyQa, name, options)
    if name == "vsr":
        from saccade.tasks.vsr import Vsr

        return _build(Vsr, name, options)
    if (factory := plugins.load(GROUP, name)) is not None:
        return _build(factory, name, options)
    raise RecipeError(f"Unknown task {name!r}. {_hint(name, [*TASKS, *plugins.offered(GROUP)])}")


def stream(
    task: Task, split: str, *, store: ImageStore, start: int, count: int, seed: int
) -> list[tuple[Sample, int]]:
    """Samples for training, without end, each with the number of times that it came before.

    A split that ends is read again and again, each time in an order of its own, which is a function
    of seed and round. Of one without end each seed reads other samples.
    """
    size = task.size(split)
    if size is None:
        start += seed * BETWEEN_SEEDS
        return [(s, 0) for s in task.load(split, store=store, start=start, count=count)]
    rounds = range(start // size, (start + count - 1) // size + 1)
    orders = {past: np.random.default_rng([seed, past, 13]).permutation(size) for past in rounds}
    found = []
    for at in range(start, start + count):
        past, place = divmod(at, size)
        [sample] = task.load(split, store=store, start=int(orders[past][place]), count=1)
        found.append((sample, past))
    return found


def _build(factory: Callable[..., object], name: str, options: Mapping[str, Any]) -> Task:
    parameters = inspect.signature(factory).parameters
    for option in options:
        if option not in parameters:
            hint = _hint(option, parameters)
            raise RecipeError(f"Task {name} has no option {option!r}. {hint}")
    for parameter in parameters.values():
        if parameter.default is parameter.empty and parameter.name not in options:
            raise RecipeError(f"Task {name} needs the option {parameter.name!r}.")
    found = factory(**options)
    if not isinstance(found, Task):
        members = [m for m in vars(Task) if not m.startswith("_")]
        lacking = ", ".join(m for m in members if not hasattr(found, m))
        raise RecipeError(f"Task {name} can't be used: {type(found).__name__} lacks {lacking}.")
    return found


def _hint(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    if near := difflib.get_close_matches(name, list(known), n=1):
        return f"Did you mean {near[0]!r}?"
    return f"There are: {', '.join(known)}." if known else "It takes none."
