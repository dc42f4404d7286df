"""Rewards of reasoning with boxes, for data without box labels and for data with them.

What GRPO-GR (GRIT, 2025) pays for form can be earned without looking and with a wrong answer. Here
form counts boxes that could be looks (`Boxes.good`), is worth less than the answer in the shipped
recipes, and is paid behind a gate on the answer. What no reward without labels can price: whether a
good box lies on the thing that its phrase names (boxes anywhere, one of 89% of the picture, two on
one thing that share less than half), whether the words of the reasoning say anything, or the
contrary of the answer, and whether the answer came from the boxes. The evaluations with shuffled,
masked and replaced boxes measure the last; `grounded_iou` prices the first where the data has
boxes.

Invariant: a box that is not good never raises a reward, and what is written twice counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    "counts_things",
    "grounded_count",
    "grounded_format",
    "grounded_iou",
    "is_whole",
    "things_in",
]

FORM = ("think", "rethink", "answer")
FREE = "free"
"""What `form` says in the meta of a sample that may be answered in any form."""
LEAST_SIDE_PX = 4.0
"""Of the picture: what is narrower shows nothing. Pixels and no share of the picture, because a
thing of 20 pixels in a photograph of 7,680 is as much a thing as in one of 640.
"""
LEAST_SHARE = 4e-6
"""Of the picture's area: two steps of a thousand each way, below which the numbers of most families
can't say where a box is.
"""
MOST_SHARE = 0.9
"""A box with a larger share of the picture points at nothing."""
SAME = 0.7
"""IoU from which two boxes are one look."""
ONE_THING = 0.5
"""IoU from which two boxes are one counted thing. Below, they may be two that overlap."""
WITHIN = 0.8
"""Of the smaller box: what lies in another that far is no other counted thing."""
LEAST_WORDS = 2
"""Of reasoning, beside the boxes."""


Places = Sequence[tuple[ImageRef, Box]]
"""Where a box lies on the originals."""


@dataclass(frozen=True, slots=True)
class Boxes:
    """The boxes of an episode's thoughts, told apart by what they are worth."""

    good: tuple[BoxNamed, ...]
    """Those that could be a look: neither a speck nor the whole picture, each place once."""
    redundant: int
    """Those that repeat a good one."""
    invalid: int
    """Those that are no box of the picture: unreadable, reversed, without area, outside."""
    specks: int
    """Boxes too small to show anything."""
    wholes: int
    """Boxes of nearly the whole picture."""
    cut: int
    """Those of all that reach beyond the border."""
    named: tuple[BoxNamed, ...]
    """All that are boxes of the picture, whatever they are worth, but for those that a second
    thought only says again: those are free, so they stand in none of these numbers.
    """

    @property
    def written(self) -> int:
        return len(self.named) + self.invalid


def boxes_of(episode: Episode) -> Boxes:
    """The boxes in all thoughts of the episode. Which of them are on one place the originals tell,
    whatever views they are written on.
    """
    good: list[BoxNamed] = []
    places: list[Places] = []
    named: list[BoxNamed] = []
    said_again: set[int] = set()
    redundant = specks = wholes = 0
    for box in (box for turn in episode.turns for box in turn.named):
        share = box.box.area / (box.image.width * box.image.height)
        place = box.image.on_roots(box.box)
        same = [n for n, other in enumerate(places) if _iou(other, place) >= SAME]
        again = (n for n in same if box.is_rethought and _names_alike(box.phrase, good[n].phrase))
        number = next((n for n in again if n not in said_again), None)
        if number is not None and not good[number].is_rethought:
            said_again.add(number)
            continue
        named.append(box)
        if share > MOST_SHARE:
            wholes += 1
        elif (
            share < LEAST_SHARE
            or min(box.box.width, box.box.height) < LEAST_SIDE_PX
            or not place  # in the white corner of a rotated view
        ):
            specks += 1
        elif same:
            redundant += 1
        else:
            good.append(box)
            places.append(place)
    invalid = sum(len(turn.refused) for turn in episode.turns)
    cut = sum(box.is_cut for box in named)
    return Boxes(tuple(good), redundant, invalid, specks, wholes, cut, tuple(named))


def _names_alike(one: str, other: str) -> bool:
    """Whether two phrases end in the same word, or one is empty: prose has a clause before its
    box.
    """
    a, b = one.casefold().split(), other.casefold().split()
    return not a or not b or a[-1] == b[-1]


def things_in(boxes: Sequence[BoxNamed]) -> int:
    """How many things boxes can be on: the smallest first, one that mostly holds another, mostly
    lies in it or shares half with it is on the same thing.
    """
    things: list[Places] = []
    for place in sorted((box.image.on_roots(box.box) for box in boxes), key=_area):
        if not any(_is_one_thing(place, thing) for thing in things):
            things.append(place)
    return len(things)


def _area(place: Places) -> float:
    return sum(box.area for _, box in place)


def _common(a: Places, b: Places) -> float:
    pairs = ((x, y) for on, x in a for other, y in b if on == other)
    return sum(both.area for x, y in pairs if (both := x.intersection(y)) is not None)


def _iou(a: Places, b: Places) -> float:
    common = _common(a, b)
    return common / (_area(a) + _area(b) - common) if common else 0.0


def _is_one_thing(a: Places, b: Places) -> bool:
    smaller = min(_area(a), _area(b))
    shared = _common(a, b) / smaller if smaller else 0.0
    return shared >= WITHIN or _iou(a, b) >= ONE_THING


def counted(text: str | None) -> int | None:
    """The whole number that an answer says; None where it says none."""
    if text is None or len(text) > 100:
        return None
    said = whole_quantity(text.strip().casefold()) or only_quantity(text.strip().casefold())
    if said is None or said.value.denominator != 1 or said.value < 0:
        return None
    return int(said.value)


def counts_things(sample: Sample) -> bool:
    """Whether a sample asks how many of something there are."""
    return sample.kind == "count" or sample.kind.startswith("count:")


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
    """1 where a counting question has good boxes on as many things as the answer that was given
    says, and none that is worth nothing.

    None where the right answer is no whole number. After GRPO-GR's counting reward (GRIT, 2025),
    which counts matches of a regular expression, duplicates and boxes without area among them. A
    count of 0 needs no box.
    """
    if not counts_things(sample) or counted(sample.answer) is None or not asks_for_boxes(sample):
        return None
    said = counted(episode.answer)
    boxes = boxes_of(episode)
    worthless = boxes.invalid + boxes.specks + boxes.wholes
    return float(said is not None and things_in(boxes.good) == said and not worthless)


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
    golds = [place for e in sample.evidence for place in e.image.on_roots(e.box)]
    boxes = boxes_of(episode)
    looks = [place for b in boxes.named for place in b.image.on_roots(b.box)]
    if not looks:
        return 0.0
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    table = np.array([[_beyond_whole(gold, look) for look in looks] for gold in golds])
    rows, columns = linear_sum_assignment(table, maximize=True)
    earned = float(table[rows, columns].sum())
    return 0.5 * (earned / len(golds) + earned / boxes.written)


def _beyond_whole(gold: tuple[ImageRef, Box], look: tuple[ImageRef, Box]) -> float:
    if gold[0] != look[0]:
        return 0.0
    share = min(1.0, gold[1].area / (gold[0].width * gold[0].height))
    if share >= MOST_SHARE:  # then the whole picture is what is to be seen
        return iou(gold[1], look[1])
    return max(0.0, (iou(gold[1], look[1]) - share) / (1 - share))
