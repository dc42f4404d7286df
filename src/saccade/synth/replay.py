"""Demonstrations as text, replayed through the real tools.

A demonstration names a sample of a task and holds the model's turns as it should have written
them. Replaying runs the tools for real, so that a demonstration can't show what a tool would not
return, and shows what the setup's observation shows. The context is not limited in replay.

Invariant: a replayed episode passes through the same `rollout` as a sampled one. Left out on
purpose: images in the file; samples are loaded from their task.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from saccade.atomic_files import write_atomic
from saccade.engines import Sampling
from saccade.engines.scripted import ScriptedEngine
from saccade.errors import DataError
from saccade.image_store import ImageStore
from saccade.observing import partners_among
from saccade.progress import progress
from saccade.rollout import Setup, rollout
from saccade.tasks import Task, find
from saccade.types import Episode, Sample

__all__ = [
    "Demonstration",
    "read_demonstrations",
    "replay",
    "samples_by_id",
    "write_demonstrations",
]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What a model should have said about one sample."""

    sample: str
    """Id of a sample, `task/split/index` for generated tasks."""
    turns: tuple[str, ...]
    quality: str = ""
    """How it was made; for the reader, not for training."""


def read_demonstrations(path: Path) -> list[Demonstration]:
    """From a JSONL file. Raises DataError that names each bad line."""
    found, bad = [], []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise DataError(f"Demonstrations {path.name!r} can't be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"Demonstrations {path.name!r} are no UTF-8 text: {error}.") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            turns = row["turns"]
            if (
                not isinstance(turns, list)
                or not turns
                or not all(isinstance(t, str) for t in turns)
            ):
                raise ValueError("turns must be a list of texts")
            found.append(
                Demonstration(str(row["sample"]), tuple(turns), str(row.get("quality", "")))
            )
        except (ValueError, KeyError, TypeError) as error:
            bad.append(f"line {number}: {error}")
        except RecursionError:
            bad.append(f"line {number}: it is nested too deeply")
    if bad or not found:
        listed = "; ".join(bad[:20]) or "it is empty"
        raise DataError(f"Demonstrations {path.name!r} can't be used: {listed}.")
    return found


def write_demonstrations(path: Path, demonstrations: Sequence[Demonstration]) -> None:
    rows = (
        {"sample": d.sample, "turns": list(d.turns), "quality": d.quality} for d in demonstrations
    )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomic(path, text.encode("utf-8"))


def samples_by_id(task: Task, ids: Sequence[str], setup: Setup) -> list[Sample]:
    """Samples in the order of `ids`: named `.../split/index`, or in any way where the split `train`
    has an end and holds them. Raises DataError for other names.
    """
    found = []
    listed: dict[str, Sample] | None = None
    with progress("demonstrations: pictures", total=len(ids)) as bar:
        for name in ids:
            sample = find(task, name, store=setup.store)
            if sample is None or sample.id != name:
                if listed is None:
                    listed = _of_train(task, setup.store)
                if name not in listed:
                    raise DataError(_missing(task, name, sample))
                sample = listed[name]
            found.append(sample)
            bar.advance()
    return found


def _of_train(task: Task, store: ImageStore) -> dict[str, Sample]:
    return {s.id: s for s in task.load("train", store=store)} if _size(task, "train") else {}


def _size(task: Task, split: str) -> int | None:
    """As `Task.size`, but 0 for rows that there are not: their ids may look like places."""
    try:
        return task.size(split)
    except DataError:
        return 0


def _missing(task: Task, name: str, instead: Sample | None) -> str:
    if instead is None:
        return (
            f"Sample {name!r} is not named task/split/index, and the task {task.name} has no other "
            "of that name."
        )
    return f"Task {task.name} has no sample {name!r}; it has {instead.id!r} there."


async def replay(
    demonstrations: Sequence[Demonstration], task: Task, setup: Setup
) -> list[Episode]:
    """The demonstrations as episodes, their tools run for real.

    Raises DataError where one does not end as its last turn says: a demonstration that its own
    tools contradict.
    """
    for demonstration in demonstrations:
        last = setup.dialect.parse(demonstration.turns[-1])
        if last.answer is None or last.calls:
            raise DataError(
                f"The demonstration of {demonstration.sample!r} does not end with an answer alone."
            )
    samples = samples_by_id(task, [d.sample for d in demonstrations], setup)
    # an episode of its own for each, since two demonstrations may share a sample
    samples = [replace(s, id=f"{s.id}#{k}") for k, s in enumerate(samples)]
    script = {s.id: list(d.turns) for s, d in zip(samples, demonstrations, strict=True)}
    scripted = replace(setup, engine=ScriptedEngine(script), frame=setup.frame_of)
    with progress("demonstrations: replay", total=len(samples)) as bar:
        episodes = await rollout(
            samples,
            scripted,
            partners=partners_among(samples, mode=setup.observation),
            sampling=Sampling(),
            on_done=lambda _: bar.advance(),
        )
    for episode, demonstration in zip(episodes, demonstrations, strict=True):
        if len(episode.turns) != len(demonstration.turns):
            ended = episode.stop.value if episode.stop else ""
            raise DataError(
                f"The demonstration of {demonstration.sample!r} ended after {len(episode.turns)} "
                f"of {len(demonstration.turns)} turns: {ended}."
            )
    return episodes
