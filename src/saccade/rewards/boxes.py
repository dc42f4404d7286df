"""How well boxes agree: the metrics of the field under their own names.

Invariant: a value is defined for every finite input; a box without area covers nothing and nothing
divides by zero. All boxes of one call are xyxy in one frame; nothing here rescales, swaps corners
or guesses a frame.
Left out on purpose: parsing boxes out of text (dialects do that) and masks.
"""

from __future__ import annotations

from collections.abc import Sequence

from saccade.coverage import shared_areas
from saccade.geometry import Box, Polygon

__all__ = [
    "BoxLike",
    "acc_at_0_5",
    "center_acc",
    "iou_xyxy",
    "matched_f1",
    "treebench_miou",
    "union_mask_iou",
]

BoxLike = Box | Sequence[float]
"""A `Box`, or four numbers x0, y0, x1, y1, which may also describe a box without area."""

_Corners = tuple[float, float, float, float]


def _corners(box: BoxLike) -> _Corners:
    if isinstance(box, Box):
        return box.as_tuple()
    if len(box) != 4:
        raise ValueError(f"A box needs 4 numbers, got {len(box)}.")
    x0, y0, x1, y1 = box
    return (float(x0), float(y0), float(x1), float(y1))


def _area(box: _Corners) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _polygons(boxes: Sequence[BoxLike]) -> list[Polygon]:
    """Those that have an area."""
    return [Box(*c).polygon() for c in map(_corners, boxes) if _area(c) > 0]


def iou_xyxy(gold: BoxLike, prediction: BoxLike) -> float:
    """Intersection over union, in 0..1, as in lmms-eval's RefCOCO code.

    Where neither box has an area it is 0 (upstream divides by zero).
    """
    g, p = _corners(gold), _corners(prediction)
    shared = _area((max(g[0], p[0]), max(g[1], p[1]), min(g[2], p[2]), min(g[3], p[3])))
    union = _area(g) + _area(p) - shared
    return shared / union if union > 0 else 0.0


def acc_at_0_5(gold: BoxLike, prediction: BoxLike) -> bool:
    """Whether the IoU is at least 0.5 (RefCOCO ACC@0.5, inclusive)."""
    return iou_xyxy(gold, prediction) >= 0.5


def center_acc(gold: BoxLike, prediction: BoxLike) -> bool:
    """Whether the prediction's centre is in the gold box, border included (RefCOCO Center_ACC)."""
    g, p = _corners(gold), _corners(prediction)
    x, y = (p[0] + p[2]) / 2, (p[1] + p[3]) / 2
    return g[0] <= x <= g[2] and g[1] <= y <= g[3]


def treebench_miou(targets: Sequence[BoxLike], predictions: Sequence[BoxLike]) -> float | None:
    """Mean over targets of the best IoU among predictions (TreeBench); None without targets.

    Recall only: extra boxes are free and one prediction may serve several targets. No prediction
    gives 0.
    """
    if not targets:
        return None
    best = [max((iou_xyxy(t, p) for p in predictions), default=0.0) for t in targets]
    return sum(best) / len(best)


def union_mask_iou(targets: Sequence[BoxLike], predictions: Sequence[BoxLike]) -> float | None:
    """Exact area IoU of the union of targets and that of predictions; None without targets.

    This is what GRIT calls GIoU. Duplicates cost nothing; no prediction gives 0.
    """
    if not targets:
        return None
    areas = shared_areas(_polygons(targets), by=_polygons(predictions))
    union = areas.evidence + areas.gaze - areas.shared
    return areas.shared / union if union > 0 else 0.0


def matched_f1(
    targets: Sequence[BoxLike], predictions: Sequence[BoxLike], *, threshold: float = 0.5
) -> float | None:
    """F1 of one-to-one matches whose IoU reaches the threshold; None without targets.

    Matched by the Hungarian algorithm for the most matches, then for the largest sum of IoUs.
    Extra and duplicate boxes cost precision.
    """
    if not targets:
        return None
    if not predictions:
        return 0.0
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    ious = np.array([[iou_xyxy(t, p) for p in predictions] for t in targets])  # (targets, preds)
    hits = ious >= threshold
    # a hit outweighs every possible sum of IoUs, so the number of hits comes first
    weight = hits * (1.0 + min(ious.shape)) + ious
    rows, columns = linear_sum_assignment(weight, maximize=True)
    return float(2 * hits[rows, columns].sum() / (len(targets) + len(predictions)))
