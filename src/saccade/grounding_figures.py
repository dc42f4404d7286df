"""How well the boxes in thoughts agree with the evidence: one row for an episode.

Invariant: boxes are compared in pixels of the original, all that were written, of whatever size:
one that repeats another, shows everything or can't be read costs precision. What does not apply is
None. `union_iou_unscaled` alone repeats an error, on purpose: GRIT's evaluation compares numbers as
the model wrote them, in the frame of the resized picture, with gold boxes in original pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from pydantic import ConfigDict

from saccade.geometry import Box, Frame, iou
from saccade.rewards.boxes import matched_f1, treebench_miou, union_mask_iou
from saccade.rewards.grounded import boxes_of, counted, counts_things
from saccade.types import BoxNamed, Episode, Evidence, ImageRef, Sample

__all__ = ["Grounding", "elsewhere", "grounding_of", "mean_matched_iou"]


@dataclass(frozen=True, slots=True)
class Grounding:
    """What the boxes of one episode came to; IoUs are None where the sample has no evidence."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False
    )

    boxes: int
    """That were written, whatever they are worth."""
    invalid: int
    """No boxes of the picture: unreadable, reversed, without area, outside."""
    redundant: int
    """Repetitions of a good one."""
    cut: int
    """Reaching beyond the border."""
    f1: float | None
    """Of one-to-one matches with IoU 0.5, among all that were written."""
    mean_iou: float | None
    """Over the evidence: IoU of its one-to-one match, 0 without one."""
    recall_iou: float | None
    """Over the evidence: the best IoU of any box (TreeBench)."""
    union_iou: float | None
    """Of the union of all boxes with the union of the evidence (GRIT's GIoU)."""
    union_iou_unscaled: float | None
    """The same with numbers of the model's frame taken for pixels: the published frame error."""
    specks: int = 0
    """Too small to show anything; 0 in rows from before they were told from the invalid."""
    wholes: int = 0
    """Of nearly the whole picture; the same."""
    agreement: float | None = None
    """Of the boxes whose phrase names evidence: the share that lies on what is named, with IoU
    0.5; None without such boxes. GRIT asks a closed model whether text and boxes agree; here the
    evidence says it.
    """
    agreement_random: float | None = None
    """The same for boxes of these sizes anywhere in the picture: what agreement is held against."""
    on_nothing: float | None = None
    """Where there is nothing to count: 1 with boxes, 0 without; None for all other questions, and
    in rows from before it was told. Such boxes stand in no IoU, for want of evidence.
    """


def grounding_of(episode: Episode, *, frame: Callable[[ImageRef], Frame]) -> Grounding:
    """The row of an episode whose model writes in that frame."""
    found = boxes_of(episode)
    golds: dict[ImageRef, list[Box]] = {}
    for item in episode.sample.evidence:
        for root, box in item.image.on_roots(item.box):
            golds.setdefault(root, []).append(box)
    looks: dict[ImageRef, list[Box]] = {}
    unscaled: dict[ImageRef, list[Box]] = {}
    for named in found.named:
        for root, box in named.image.on_roots(named.box):
            looks.setdefault(root, []).append(box)
        x0, y0, x1, y1 = frame(named.image).encode_box(named.box)
        if x0 < x1 and y0 < y1:
            for root in named.image.roots():
                unscaled.setdefault(root, []).append(Box(x0, y0, x1, y1))
    on = list(golds)
    return Grounding(
        found.written,
        found.invalid,
        found.redundant,
        found.cut,
        specks=found.specks,
        wholes=found.wholes,
        f1=_over(on, golds, looks, matched_f1, extra=found.written),
        mean_iou=_over(on, golds, looks, mean_matched_iou),
        recall_iou=_over(on, golds, looks, treebench_miou),
        union_iou=_over(on, golds, looks, union_mask_iou),
        union_iou_unscaled=_over(on, golds, unscaled, union_mask_iou),
        on_nothing=_on_nothing(episode.sample, found.written),
        **_agreement(episode),
    )


def _on_nothing(sample: Sample, boxes: int) -> float | None:
    is_none = counts_things(sample) and counted(sample.answer) == 0 and not sample.evidence
    return float(boxes > 0) if is_none else None


RANDOM_DRAWS = 16
"""Places where each box is put, to see how often it would agree by chance."""
AGREES = 0.5
"""IoU."""


def _agreement(episode: Episode) -> dict[str, float | None]:
    said = [box for turn in episode.turns for box in turn.named]  # one place may have two names
    golds: dict[str, list[Evidence]] = {}
    for item in episode.sample.evidence:
        if item.phrase:
            golds.setdefault(item.phrase, []).append(item)
    pairs = [
        (box, name)
        for box, told in zip(said, _names_told(said), strict=True)
        for name in golds
        if f" {name} " in f" {told} "
    ]
    if not pairs:
        return {"agreement": None, "agreement_random": None}
    rng = np.random.default_rng([*episode.sample.id.encode(), 19])

    places = {
        name: [place for gold in found for place in gold.image.on_roots(gold.box)]
        for name, found in golds.items()
    }

    def agrees(named: BoxNamed, box: Box, name: str) -> bool:
        return any(
            root == other and iou(gold, there) >= AGREES
            for other, there in named.image.on_roots(box)
            for root, gold in places[name]
        )

    true = [agrees(named, named.box, name) for named, name in pairs]
    chance = [
        agrees(named, elsewhere(named.box, named.image, rng), name)
        for named, name in pairs
        for _ in range(RANDOM_DRAWS)
    ]
    return {
        "agreement": sum(true) / len(true),
        "agreement_random": sum(chance) / len(chance),
    }


def _names_told(boxes: Sequence[BoxNamed]) -> list[str]:
    """What each box is said to be: numbers that count are no part of the name, and what is only a
    number goes on with the last name.
    """
    told, last = [], ""
    for box in boxes:
        words = [w for w in box.phrase.split() if not w.isdigit()]
        last = " ".join(words) or last
        told.append(last)
    return told


def elsewhere(box: Box, image: ImageRef, rng: np.random.Generator) -> Box:
    """A box of this size anywhere in the picture."""
    x = float(rng.uniform(0, image.width - box.width)) if box.width < image.width else 0.0
    y = float(rng.uniform(0, image.height - box.height)) if box.height < image.height else 0.0
    return Box(x, y, x + box.width, y + box.height)


def _over(
    on: Sequence[ImageRef],
    golds: dict[ImageRef, list[Box]],
    looks: dict[ImageRef, list[Box]],
    metric: Callable[[Sequence[Box], Sequence[Box]], float | None],
    *,
    extra: int | None = None,
) -> float | None:
    """The mean over pictures with evidence, each by its number of evidence boxes; None without.

    Where `extra` says how many boxes there are in all, those on other pictures cost precision: F1
    over several pictures is 2 hits / (evidence + boxes).
    """
    if not on:
        return None
    if extra is not None:
        boxes = {ref: len(golds[ref]) + len(looks.get(ref, ())) for ref in on}
        hits = sum((metric(golds[r], looks.get(r, ())) or 0.0) * boxes[r] for r in on)
        return hits / (sum(len(golds[r]) for r in on) + extra)
    total = sum(len(golds[r]) for r in on)
    return sum((metric(golds[r], looks.get(r, ())) or 0.0) * len(golds[r]) for r in on) / total


def mean_matched_iou(targets: Sequence[Box], predictions: Sequence[Box]) -> float | None:
    """Mean over targets of the IoU of their Hungarian match, 0 for those without; None without
    targets.
    """
    if not targets:
        return None
    if not predictions:
        return 0.0
    from scipy.optimize import linear_sum_assignment

    table = np.array([[iou(t, p) for p in predictions] for t in targets])
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / len(targets))
