"""Whether a task keeps its promises: `saccade check TASK`.

Invariant: no model is asked. Gold and wrong answers go through the task's own rubric as if a model
had looked at all the evidence and then said them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from saccade.errors import DataError, RecipeError
from saccade.image_store import ImageStore
from saccade.progress import Bar, progress
from saccade.rewards.answers import extract, strict
from saccade.tasks import Task
from saccade.tasks.hacks import Hacked, hacked
from saccade.types import (
    Answer,
    BoxNamed,
    Episode,
    ImageShown,
    Message,
    Parsed,
    Sample,
    StopReason,
    Text,
    TurnRecord,
)

__all__ = ["CheckReport", "answered", "check"]

SPLITS = ("train", "validation", "test")
PIECE = 10
"""Samples between two moves of the progress bar."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check` found."""

    task: str
    split: str
    samples: int
    compared: tuple[str, ...]
    """Other splits whose ids were compared: those of them that the task has."""
    gold_accuracy: float
    """Share of gold answers that the strict rule accepts."""
    wrong_accuracy: float
    """Share of wrong answers that it accepts."""
    problems: tuple[str, ...]
    """One sentence each; empty where the task keeps its promises."""
    hacks: tuple[Hacked, ...] = ()
    """What strings that break published rewards earn on its samples; empty where none of them has
    named evidence.
    """

    @property
    def ok(self) -> bool:
        return not self.problems


def check(
    task: Task, split: str, *, count: int | None = 100, others: Sequence[str] = SPLITS
) -> CheckReport:
    """Checks the first `count` samples (None: all) of a split, their ids against other splits too.

    Every gold answer must reach the highest score and be right by the strict rule; every wrong one
    must score less and not be right; evidence must lie on the sample's images and not be a whole
    one, which no gaze covers; ids must be unique. Raises DataError where the split can't be loaded.
    """
    sizes = {split: _size(task, split, count)}
    for other in others:
        with suppress(DataError, RecipeError):  # the task may have no such split
            sizes.setdefault(other, _size(task, other, count))
    with progress(f"check {task.name}", total=sum(n or 0 for n in sizes.values())) as bar:
        samples = _load(task, split, sizes[split], bar)
        ids = Counter(sample.id for sample in samples)
        problems = [f"{task.name} has no samples in {split}."] if not samples else []
        problems += [f"Id {i!r} stands {n} times in {split}." for i, n in ids.items() if n > 1]
        for sample in samples:
            problems += _evidence_problems(sample)
        verdicts = [(s, task.gold(s), task.wrong(s)) for s in samples]
        problems += _score_problems(task, verdicts)
        compared = [other for other in sizes if other != split]
        for other in compared:
            shared = sorted(ids.keys() & {s.id for s in _load(task, other, sizes[other], bar)})
            problems += [f"Id {i!r} stands in {split} and in {other}." for i in shared]
    return CheckReport(
        task=task.name,
        split=split,
        samples=len(samples),
        compared=tuple(compared),
        gold_accuracy=_share([_is_right(s, gold) for s, gold, _ in verdicts]),
        wrong_accuracy=_share([_is_right(s, wrong) for s, _, wrong in verdicts]),
        problems=tuple(problems),
        hacks=tuple(hacked(verdicts)) if any(_is_grounded(s) for s in samples) else (),
    )


def _is_grounded(sample: Sample) -> bool:
    return any(e.phrase for e in sample.evidence)


def answered(sample: Sample, answer: str) -> Episode:
    """An episode that names all the evidence and then terminates with that answer."""
    images = tuple(ImageShown(ref, f"image_{n}") for n, ref in enumerate(sample.images, 1))
    named = tuple(BoxNamed(e.image, e.box, e.phrase) for e in sample.evidence)
    return Episode(
        sample,
        messages=(
            Message("user", (*images, Text(sample.question))),
            Message("assistant", (Text(answer),)),
        ),
        turns=(TurnRecord(Parsed(answer=Answer(answer)), named=named),),
        stop=StopReason.ANSWERED,
    )


def _size(task: Task, split: str, count: int | None) -> int | None:
    """How many samples of a split are looked at; None: all of one without an end."""
    size = task.size(split)
    return count if size is None else size if count is None else min(count, size)


def _load(task: Task, split: str, count: int | None, bar: Bar) -> list[Sample]:
    """The first samples of a split, piece by piece, so that the bar moves."""
    store = ImageStore()
    if count is None:
        return list(task.load(split, store=store))
    found: list[Sample] = []
    for start in range(0, count, PIECE):
        found += task.load(split, store=store, start=start, count=min(PIECE, count - start))
        bar.advance(by=len(found) - start)
    return found


def _score_problems(task: Task, verdicts: Sequence[tuple[Sample, str, str]]) -> Iterator[str]:
    rubric = task.rubric
    scores = [
        (rubric.score(answered(s, gold)).value, rubric.score(answered(s, wrong)).value)
        for s, gold, wrong in verdicts
    ]
    # Rewards for looking pay only where there is evidence, so samples with and without differ.
    tops: dict[bool, float] = {}
    for (sample, _, _), (high, _) in zip(verdicts, scores, strict=True):
        if high is not None:
            tops[bool(sample.evidence)] = max(high, tops.get(bool(sample.evidence), high))
    for (sample, gold, wrong), (high, low) in zip(verdicts, scores, strict=True):
        where = f"Sample {sample.id!r}: "
        if high is None:
            yield f"{where}the rubric can't score the gold answer {gold!r}."
        elif high < (top := tops[bool(sample.evidence)]):
            yield f"{where}the gold answer {gold!r} scores {high:g}, others {top:g}."
        if low is None:
            yield f"{where}the rubric can't score the wrong answer {wrong!r}."
        elif high is not None and low >= high:
            yield f"{where}the wrong answer {wrong!r} scores {low:g}, the gold one {high:g}."
        if not _is_right(sample, gold):
            yield f"{where}the strict rule rejects the gold answer {gold!r}."
        if _is_right(sample, wrong):
            yield f"{where}the strict rule accepts the wrong answer {wrong!r}."


def _evidence_problems(sample: Sample) -> Iterator[str]:
    keys = {ref.key for ref in sample.images}
    for number, item in enumerate(sample.evidence):
        where = f"Sample {sample.id!r}: evidence {number} "
        inside = item.box.clip(item.image.width, item.image.height)
        if item.image.key not in keys:
            yield f"{where}is on an image that the sample does not have."
        if inside != item.box:
            yield f"{where}reaches outside its image: {item.box.as_tuple()}."
        elif item.box.area >= 0.999 * item.image.box.area:
            yield f"{where}is a whole image, which no gaze covers; leave it out."


def _is_right(sample: Sample, answer: str) -> bool:
    found = extract(answer)
    return strict(sample.answer, answer) or (found is not None and strict(sample.answer, found))


def _share(claims: Sequence[bool]) -> float:
    return sum(claims) / len(claims) if claims else 0.0
