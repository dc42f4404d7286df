"""Rewards of reasoning with boxes, for data without box labels and for data with them.

What GRPO-GR (GRIT, 2025) pays for form can be earned without looking and with a wrong answer. Here
form counts boxes that could be looks (`Boxes.good`), is worth less than the answer in the shipped
recipes, and is paid behind a gate on the answer. What no reward without labels can price: whether a
good box lies on the thing that its phrase names, and whether the answer came from the boxes. The
evaluations with shuffled, masked and replaced boxes measure both; `grounded_iou` prices the first
where the data has boxes.

Invariant: a box that is not good never raises a reward, and what is written twice counts once.
"""

from __future__ import annotations

from dataclasses import dataclass

from saccade.geometry import Box, iou
from saccade.rewards.quantities import only_quantity, whole_quantity
from saccade.rewards.rubric import reward
from saccade.tags import sections
from saccade.types import BoxNamed, Episode, ImageRef, Sample

__all__ = [
    "FREE",
    "SAME",
    "Boxes",
    "asks_for_boxes",
    "boxes_of",
    "counted",
    "grounded_count",
    "grounded_format",
    "grounded_iou",
    "is_whole",
]

FORM = ("think", "rethink", "answer")
FREE = "free"
"""What `form` says in the meta of a sample that may be answered in any form."""
LEAST_SHARE = 1e-4
"""Of the picture: a box with a smaller share of its area shows nothing (1% of each side)."""
MOST_SHARE = 0.9
"""A box with a larger share of the picture points at nothing."""
SAME = 0.7
"""IoU from which two boxes are one look."""
LEAST_WORDS = 2
"""Of reasoning, beside the boxes."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """The boxes of an episode's thoughts, told apart by what they are worth."""

    good: tuple[BoxNamed, ...]
    """Those that could be a look: neither a speck nor the whole picture, each place once."""
    redundant: int
    """Those that repeat a good one."""
    invalid: int
    """Those that are no box of the picture, specks and wholes."""
    cut: int
    """Those of all that reach beyond the border."""

    @property
    def written(self) -> int:
        return len(self.good) + self.redundant + self.invalid


def boxes_of(episode: Episode) -> Boxes:
    """The boxes in all thoughts of the episode."""
    good: list[BoxNamed] = []
    redundant = 0
    invalid = sum(len(turn.refused) for turn in episode.turns)
    named = [box for turn in episode.turns for box in turn.named]
    for box in named:
        share = box.box.area / (box.image.width * box.image.height)
        if not LEAST_SHARE <= share <= MOST_SHARE:
            invalid += 1
        elif any(box.image == g.image and iou(box.box, g.box) >= SAME for g in good):
            redundant += 1
        else:
            good.append(box)
    return Boxes(tuple(good), redundant, invalid, sum(box.is_cut for box in named))


def counted(text: str | None) -> int | None:
    """The whole number that an answer says; None where it says none."""
    if text is None or len(text) > 100:
        return None
    said = whole_quantity(text.strip().casefold()) or only_quantity(text.strip().casefold())
    if said is None or said.value.denominator != 1 or said.value < 0:
        return None
    return int(said.value)


def is_whole(text: str) -> bool:
    """Whether a turn is think, rethink and answer, each once, in this order, and nothing else."""
    found = sections(text, FORM)
    return found.names == FORM and not found.outside and all(said for _, said in found.closed)


def asks_for_boxes(sample: Sample) -> bool:
    """Whether a sample is to be answered by reasoning with boxes: all are but those that say that
    their form is free, as the task `mix` tells parts that are answered by tools.
    """
    return dict(sample.meta).get("form") != FREE


@reward(required=False)
def grounded_format(episode: Episode, sample: Sample) -> float | None:
    """1 for a whole turn that reasons in words and with good boxes, less for each other box.

    Think, rethink and answer, each once and none empty; at least two words of thought beside the
    boxes; at least one good box, unless what was counted is 0. After GRPO-GR's structure and region
    terms (GRIT, 2025), which any four numbers satisfy. None where the form is free.
    """
    if not asks_for_boxes(sample):
        return None
    said = [m.text for m in episode.messages if m.role == "assistant"]
    if not said or not is_whole(said[-1]) or _words(episode) < LEAST_WORDS:
        return 0.0
    boxes = boxes_of(episode)
    if not boxes.written:
        return float(counted(sample.answer) == 0 == counted(episode.answer))
    return len(boxes.good) / boxes.written


def _words(episode: Episode) -> int:
    """Of the thoughts, without what holds a figure or a bracket: those belong to boxes. Or of the
    phrases that boxes are named by, which some notations have inside the box.
    """
    thought = " ".join(turn.parsed.thought for turn in episode.turns)
    phrases = " ".join(box.phrase for turn in episode.turns for box in turn.named)
    return max(_plain_words(thought), _plain_words(phrases))


def _plain_words(text: str) -> int:
    return sum(
        any(c.isalpha() for c in word) and not set(word) & set('[]{}()<>"0123456789')
        for word in text.split()
    )


@reward(required=False)
def grounded_count(episode: Episode, sample: Sample) -> float | None:
    """1 where a counting question has as many good boxes as the answer that was given says.

    None where the right answer is no whole number. After GRPO-GR's counting reward (GRIT, 2025),
    which counts matches of a regular expression, duplicates and boxes without area among them. A
    count of 0 needs no box.
    """
    counts = sample.kind == "count" or sample.kind.startswith("count:")
    if not counts or counted(sample.answer) is None or not asks_for_boxes(sample):
        return None
    said = counted(episode.answer)
    boxes = boxes_of(episode)
    return float(said is not None and len(boxes.good) == said and not boxes.invalid)


@reward(required=False)
def grounded_iou(episode: Episode, sample: Sample) -> float | None:
    """Dual IoU in 0..1, matched one to one and without what a box of the whole picture would earn.

    Mean of recall (over evidence) and precision (over all boxes that were written), each the sum of
    the IoUs of Hungarian matches over the number of boxes, as TreeVGR pays (2025), so that extra
    boxes, repetitions and what can't be read cost. Boxes may be of any size.
    Each IoU is (IoU - share) / (1 - share), at least 0, where share is what the evidence covers of
    the picture: what the whole picture as box has for its IoU is worth nothing, and large things no
    more than small ones (against the bias that Ground-R1 names; the formula is ours). None without
    evidence.
    """
    if not sample.evidence:
        return None
    golds = [(root, p.bounds) for e in sample.evidence for root, p in e.image.to_roots(e.box)]
    named = [box for turn in episode.turns for box in turn.named]
    looks = [(root, p.bounds) for b in named for root, p in b.image.to_roots(b.box)]
    if not looks:
        return 0.0
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    table = np.array([[_beyond_whole(gold, look) for look in looks] for gold in golds])
    rows, columns = linear_sum_assignment(table, maximize=True)
    earned = float(table[rows, columns].sum())
    return 0.5 * (earned / len(golds) + earned / boxes_of(episode).written)


def _beyond_whole(gold: tuple[ImageRef, Box], look: tuple[ImageRef, Box]) -> float:
    if gold[0] != look[0]:
        return 0.0
    share = min(1.0, gold[1].area / (gold[0].width * gold[0].height))
    if share >= MOST_SHARE:  # then the whole picture is what is to be seen
        return iou(gold[1], look[1])
    return max(0.0, (iou(gold[1], look[1]) - share) / (1 - share))
