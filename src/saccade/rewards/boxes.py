"""How well boxes agree: the metrics of the field under their own names, and exact areas for our own.

Invariant: a value is defined for every finite input; a box without area covers nothing and never divides by zero.
All boxes of one call are xyxy in one frame; nothing here rescales, swaps corners or guesses a frame.
Left out on purpose: parsing boxes out of text (dialects do that) and masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from saccade.geometry import Box

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "BoxLike",
    "Overlap",
    "acc_at_0_5",
    "center_acc",
    "covered_share",
    "iou_xyxy",
    "matched_f1",
    "overlap",
    "treebench_miou",
    "union_mask_iou",
]

BoxLike = Box | Sequence[float]
"""A `Box`, or four numbers x0, y0, x1, y1; the numbers may form a box without area."""


def _corners(box: BoxLike) -> tuple[float, float, float, float]:
    if isinstance(box, Box):
        return box.as_tuple()
    if len(box) != 4:
        raise ValueError(f"A box needs 4 numbers, got {len(box)}.")
    x0, y0, x1, y1 = box
    return (float(x0), float(y0), float(x1), float(y1))


def _area(box: tuple[float, float, float, float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def iou_xyxy(gold: BoxLike, prediction: BoxLike) -> float:
    """Intersection over union, in 0..1, as lmms-eval's RefCOCO code; 0 where neither box has an area.

    (Upstream divides by zero there.)
    """
    g, p = _corners(gold), _corners(prediction)
    shared = _area((max(g[0], p[0]), max(g[1], p[1]), min(g[2], p[2]), min(g[3], p[3])))
    union = _area(g) + _area(p) - shared
    return shared / union if union > 0 else 0.0


def acc_at_0_5(gold: BoxLike, prediction: BoxLike) -> bool:
    """Whether the IoU is at least 0.5 (RefCOCO ACC@0.5, inclusive)."""
    return iou_xyxy(gold, prediction) >= 0.5


def center_acc(gold: BoxLike, prediction: BoxLike) -> bool:
    """Whether the centre of the prediction lies in the gold box, its border included (RefCOCO Center_ACC)."""
    g, p = _corners(gold), _corners(prediction)
    x, y = (p[0] + p[2]) / 2, (p[1] + p[3]) / 2
    return g[0] <= x <= g[2] and g[1] <= y <= g[3]


def treebench_miou(targets: Sequence[BoxLike], predictions: Sequence[BoxLike]) -> float | None:
    """Mean over targets of the best IoU among predictions (TreeBench); None without targets.

    Recall only: extra boxes are free and one prediction may serve several targets. No prediction gives 0.
    """
    if not targets:
        return None
    best = [max((iou_xyxy(t, p) for p in predictions), default=0.0) for t in targets]
    return sum(best) / len(best)


class Overlap(NamedTuple):
    """Exact areas of two sets of boxes, in square units of their frame."""

    shared: float
    """Covered by both."""
    first: float
    second: float
    union: float


def overlap(first: Sequence[BoxLike], second: Sequence[BoxLike]) -> Overlap:
    """Exact areas of two unions of boxes, by coordinate compression: O(n^2) cells for n boxes in all."""
    import numpy as np

    a = [c for c in map(_corners, first) if _area(c) > 0]
    b = [c for c in map(_corners, second) if _area(c) > 0]
    xs = np.unique([x for c in a + b for x in (c[0], c[2])])
    ys = np.unique([y for c in a + b for y in (c[1], c[3])])
    if not len(xs):
        return Overlap(0.0, 0.0, 0.0, 0.0)
    width, height = np.diff(xs), np.diff(ys)

    def area(cells: np.ndarray) -> float:
        return float(width @ cells @ height)

    in_a, in_b = _cells(a, xs, ys), _cells(b, xs, ys)  # (columns, rows)
    return Overlap(area(in_a & in_b), area(in_a), area(in_b), area(in_a | in_b))


def _cells(
    boxes: Sequence[tuple[float, float, float, float]], xs: np.ndarray, ys: np.ndarray
) -> np.ndarray:
    import numpy as np

    covered = np.zeros((len(xs) - 1, len(ys) - 1), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        columns = slice(*np.searchsorted(xs, (x0, x1)).tolist())
        rows = slice(*np.searchsorted(ys, (y0, y1)).tolist())
        covered[columns, rows] = True
    return covered


def union_mask_iou(targets: Sequence[BoxLike], predictions: Sequence[BoxLike]) -> float | None:
    """Exact area IoU of the union of targets and the union of predictions (GRIT's "GIoU"); None without targets.

    Duplicates cost nothing; no prediction gives 0.
    """
    if not targets:
        return None
    areas = overlap(targets, predictions)
    return areas.shared / areas.union if areas.union > 0 else 0.0


def covered_share(boxes: Sequence[BoxLike], *, by: Sequence[BoxLike]) -> float | None:
    """Exact share of the area of `boxes` that `by` covers, in 0..1; None where `boxes` have no area."""
    areas = overlap(boxes, by)
    return areas.shared / areas.first if areas.first > 0 else None


def matched_f1(
    targets: Sequence[BoxLike], predictions: Sequence[BoxLike], *, threshold: float = 0.5
) -> float | None:
    """F1 of one-to-one matches with IoU >= threshold, matched to maximise their number; None without targets.

    Hungarian assignment; among assignments with equally many hits the one with the larger IoU sum. Extra and
    duplicate boxes cost precision.
    """
    if not targets:
        return None
    if not predictions:
        return 0.0
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    ious = np.array([[iou_xyxy(t, p) for p in predictions] for t in targets])
    hits = ious >= threshold
    # a hit outweighs every possible sum of IoUs, so the number of hits comes first
    weight = hits * (1.0 + min(ious.shape)) + ious
    rows, columns = linear_sum_assignment(weight, maximize=True)
    return float(2 * hits[rows, columns].sum() / (len(targets) + len(predictions)))
