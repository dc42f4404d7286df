"""How well the boxes in thoughts agree with the evidence: one row for an episode.

Invariant: boxes are compared in pixels of the original, each place once; what does not apply is
None. `union_iou_unscaled` alone repeats an error, on purpose: GRIT's evaluation compares numbers as
the model wrote them, in the frame of the resized picture, with gold boxes in original pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

from saccade.geometry import Box, Frame, iou
from saccade.rewards.boxes import matched_f1, treebench_miou, union_mask_iou
from saccade.rewards.grounded import boxes_of
from saccade.types import Episode, ImageRef

__all__ = ["Grounding", "grounding_of", "mean_matched_iou"]


@dataclass(frozen=True, slots=True)
class Grounding:
    """What the boxes of one episode came to; IoUs are None where the sample has no evidence."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False
    )

    boxes: int
    """That were written, whatever they are worth."""
    invalid: int
    """No boxes of the picture, specks and wholes."""
    redundant: int
    """Repetitions of a good one."""
    cut: int
    """Reaching beyond the border."""
    f1: float | None
    """Of one-to-one matches with IoU 0.5."""
    mean_iou: float | None
    """Over the evidence: IoU of its one-to-one match, 0 without one."""
    recall_iou: float | None
    """Over the evidence: the best IoU of any box (TreeBench)."""
    union_iou: float | None
    """Of the union of boxes with the union of the evidence (GRIT's GIoU)."""
    union_iou_unscaled: float | None
    """The same with numbers of the model's frame taken for pixels: the published frame error."""


def grounding_of(episode: Episode, *, frame: Callable[[ImageRef], Frame]) -> Grounding:
    """The row of an episode whose model writes in that frame."""
    found = boxes_of(episode)
    golds: dict[ImageRef, list[Box]] = {}
    for item in episode.sample.evidence:
        for root, polygon in item.image.to_roots(item.box):
            golds.setdefault(root, []).append(polygon.bounds)
    looks: dict[ImageRef, list[Box]] = {}
    unscaled: dict[ImageRef, list[Box]] = {}
    for named in found.good:
        for root, polygon in named.image.to_roots(named.box):
            looks.setdefault(root, []).append(polygon.bounds)
        x0, y0, x1, y1 = frame(named.image).encode_box(named.box)
        if x0 < x1 and y0 < y1:
            unscaled.setdefault(named.image, []).append(Box(x0, y0, x1, y1))
    on = list(golds)
    counts = len(found.good) + found.redundant + found.invalid
    return Grounding(
        counts,
        found.invalid,
        found.redundant,
        found.cut,
        f1=_over(on, golds, looks, matched_f1, extra=sum(map(len, looks.values()))),
        mean_iou=_over(on, golds, looks, mean_matched_iou),
        recall_iou=_over(on, golds, looks, treebench_miou),
        union_iou=_over(on, golds, looks, union_mask_iou),
        union_iou_unscaled=_over(on, golds, unscaled, union_mask_iou),
    )


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
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    table = np.array([[iou(t, p) for p in predictions] for t in targets])
    rows, columns = linear_sum_assignment(table, maximize=True)
    return float(table[rows, columns].sum() / len(targets))
