"""Counterfactuals of reasoning with boxes: what an answer would have been had the boxes, or the
pixels that they point at, been others.

Two ways: the chain is changed and the model goes on from its end, or the picture is changed and the
model is asked anew. What changes the answer is what it rests on.

Invariant: a control changes the boxes of a chain, or pixels; everything else is as in the episode
that it starts from.
Where there is nothing to change, there is no counterfactual, and that is told apart from one that
changed nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, get_args

import numpy as np

from saccade.dialects.notations import Notation
from saccade.geometry import Box, Frame, iou
from saccade.grounding_figures import elsewhere
from saccade.image_store import ImageStore
from saccade.types import Episode, ImageRef, Sample

__all__ = [
    "CONTROLS",
    "MASKS",
    "Control",
    "Counterfactual",
    "chain_and_rethink",
    "counterfactual",
    "masked",
]

ChainControl = Literal["stripped", "shuffled", "random", "exchanged", "jittered"]
MaskControl = Literal["gaze-masked", "rest-masked", "random-masked"]
Control = ChainControl | MaskControl
MASKS: tuple[str, ...] = get_args(MaskControl)
CONTROLS: tuple[str, ...] = (*get_args(ChainControl), *MASKS)

END = "</think>"
"""Where a chain with its boxes ends."""
RETHINK, RETHOUGHT = "<rethink>", "</rethink>"
JITTER = 0.05
"""Of a side: by how much an edge of a jittered box moves, at most, or by one step of the grain."""
JITTERED_IOU = 0.7
"""With what it was: above it a jittered box is one of the same thing."""
JITTER_TRIES = 16


class Counterfactual(NamedTuple):
    """What to ask in the place of an episode's sample."""

    sample: Sample
    begun: str
    """How the model's turn begins; empty where it is asked anew."""


def counterfactual(
    control: Control,
    episode: Episode,
    *,
    notation: Notation,
    frame: Callable[[ImageRef], Frame],
    store: ImageStore,
    partner: Episode | None = None,
    seed: int = 0,
) -> Counterfactual | None:
    """What the control makes of a finished episode; None where it has no boxes to change.

    - `stripped`: the boxes are taken out of the chain, their phrases stay;
    - `shuffled`: they are those of `partner`, another sample's episode, in any order, each where it
      lies on the partner's picture, as shares of its sides;
    - `random`: they lie anywhere, each as large as it was;
    - `exchanged`: each has the place of the next one, so that things change their places;
    - `jittered`: each edge moves by up to a twentieth of its side, to a number as coarse as the
      model's own, so by one step of those where that is more; as many edges as leave the box an IoU
      above 0.7 with what it was, and none of one that is too small for that;
    - `gaze-masked`, `rest-masked`: the picture is gray where boxes are, or everywhere else;
    - `random-masked`: it is gray in as many places as large, anywhere.

    Draws depend on the seed, the sample and the partner alone. Nobody to shuffle with is nothing to
    change.
    """
    if control in MASKS:
        named = [box for turn in episode.turns for box in turn.named]
        gaze = [place for b in named for place in b.image.on_roots(b.box)]
        return masked(control, episode.sample, gaze, store, seed=seed)
    rng = np.random.default_rng([seed, *episode.sample.id.encode()])
    begun = _chain(episode)
    if begun is None:
        return None
    written = _written_in(begun, notation)
    values = [v for v in written if v is not None]
    if not values:
        return None
    own = frame(episode.sample.images[0])
    if control == "shuffled":
        theirs = [] if partner is None else _carried(partner, own, notation, frame)
        new = _shuffled(values, theirs, own, rng)
    else:
        new = _values(control, values, own, rng)
    if new is None:
        return None
    given = iter(new)
    unread: tuple[float, ...] | None = None if control == "stripped" else ()  # stays as it stands
    boxes = [unread if old is None else next(given) for old in written]
    return Counterfactual(episode.sample, notation.rewritten(begun, boxes))


def _chain(episode: Episode) -> str | None:
    """The first turn up to the end of its thought; None where that never ends."""
    said = next((m.text for m in episode.messages if m.role == "assistant"), "")
    end = said.find(END)
    return said[: end + len(END)] if end >= 0 else None


_Values = tuple[float, float, float, float]


def chain_and_rethink(episode: Episode) -> tuple[str, str] | None:
    """The first turn up to where it begins to think again, and what it then thinks; None where it
    has no whole `<rethink>` after its thought.
    """
    chain = _chain(episode)
    if chain is None:
        return None
    said = next(m.text for m in episode.messages if m.role == "assistant")
    start = said.find(RETHINK, len(chain))
    stop = said.find(RETHOUGHT, start)
    if start < 0 or stop < 0:
        return None
    start += len(RETHINK)
    return said[:start], said[start:stop]


def _written_in(chain: str, notation: Notation) -> list[_Values | None]:
    """The numbers of each box in a chain; None where they are no four finite ones."""
    found = (b.values for b in notation.find(chain))
    return [v if v is not None and all(map(math.isfinite, v)) else None for v in found]


def _carried(
    partner: Episode, own: Frame, notation: Notation, frame: Callable[[ImageRef], Frame]
) -> list[_Values]:
    """A partner's boxes in this frame: at the same shares of the sides of the picture."""
    there = frame(partner.sample.images[0])
    scale = np.divide(own.extent, there.extent).tolist() * 2
    found = (v for v in _written_in(_chain(partner) or "", notation) if v is not None)
    return [_four([n * s for n, s in zip(v, scale, strict=True)]) for v in found]


def _shuffled(
    values: Sequence[_Values], theirs: Sequence[_Values], frame: Frame, rng: np.random.Generator
) -> list[_Values | None] | None:
    if not theirs:
        return None
    grain, order = _grain(values), rng.permutation(len(theirs))
    drawn = [theirs[order[n % len(theirs)]] for n in range(len(values))]
    return [_written(v, frame, grain) for v in drawn]


def _values(
    control: str, values: Sequence[_Values], frame: Frame, rng: np.random.Generator
) -> list[_Values | None] | None:
    if control == "stripped":
        return [None] * len(values)
    grain = _grain(values)
    if control == "exchanged":
        return [*values[1:], values[0]] if len(set(values)) > 1 else None
    if control == "random":
        return [_anywhere(v, frame, grain, rng) for v in values]
    moved = [_jittered(v, frame, grain, rng) for v in values]
    return None if moved == list(values) else list(moved)


def _grain(values: Sequence[_Values]) -> int:
    """What all numbers of a chain are whole multiples of: 10, 5, 2 or 1. Models have habits, and a
    number of another kind would be another change than the one that is meant.
    """
    numbers = [n for v in values for n in v]
    return next(g for g in (10, 5, 2, 1) if g == 1 or all(n % g == 0 for n in numbers))


def _anywhere(values: _Values, frame: Frame, grain: int, rng: np.random.Generator) -> _Values:
    x0, y0, x1, y1 = values
    wide, high = min(abs(x1 - x0), frame.limit[0]), min(abs(y1 - y0), frame.limit[1])
    x = rng.uniform(0, frame.limit[0] - wide)
    y = rng.uniform(0, frame.limit[1] - high)
    return _written((x, y, x + wide, y + high), frame, grain)


def _jittered(values: _Values, frame: Frame, grain: int, rng: np.random.Generator) -> _Values:
    """The box with as many edges moved as it stands; itself where it can't be or is no box."""
    x0, y0, x1, y1 = values
    if x0 >= x1 or y0 >= y1:
        return values
    reach = (JITTER * (x1 - x0), JITTER * (y1 - y0)) * 2
    for edges in (4, 3, 2, 1):
        for _ in range(JITTER_TRIES):
            moved = list(values)
            for n in rng.permutation(4)[:edges]:
                by = _step(reach[n], grain, rng) if frame.is_integral else rng.uniform(0, reach[n])
                moved[n] += float(by * rng.choice((-1, 1)))
            if _is_same_thing(values, moved, frame):
                return _four(moved)
    return values


def _step(reach: float, grain: int, rng: np.random.Generator) -> int:
    """A way that an edge moves in whole numbers: from one grain to as many as reach so far."""
    return grain * int(rng.integers(1, max(1, int(reach // grain)) + 1))


def _is_same_thing(old: Sequence[float], new: Sequence[float], frame: Frame) -> bool:
    limits = (*frame.limit, *frame.limit)
    inside = all(a == b or 0 <= b <= m for a, b, m in zip(old, new, limits, strict=True))
    if not inside or new[0] >= new[2] or new[1] >= new[3]:
        return False
    return iou(Box(*old), Box(*new)) > JITTERED_IOU


def _four(values: Sequence[float]) -> _Values:
    a, b, c, d = values
    return (a, b, c, d)


def _written(values: _Values, frame: Frame, grain: int) -> _Values:
    """As the model would write it: on its grain, inside of the picture, and with an area."""
    if not frame.is_integral:
        return values
    most = [int(limit // grain) for limit in (*frame.limit, *frame.limit)]
    steps = [min(max(round(v / grain), 0), m) for v, m in zip(values, most, strict=True)]
    for low, high in ((0, 2), (1, 3)):
        if values[low] < values[high] and steps[low] == steps[high]:
            steps[high] = min(steps[low] + 1, most[high])
            steps[low] = steps[high] - 1
    return _four([float(grain * step) for step in steps])


MASK_TRIES = 100
AS_LARGE = 0.02
"""Of what boxes hide together: by how much others may hide more or less."""


def _as_large(boxes: Sequence[Box], image: ImageRef, rng: np.random.Generator) -> list[Box]:
    """Boxes of these sizes anywhere, that hide as much together: of several draws the nearest."""
    wanted = _union(boxes)
    best: list[Box] = []
    for _ in range(MASK_TRIES):
        drawn = [elsewhere(box, image, rng) for box in boxes]
        if not best or abs(_union(drawn) - wanted) < abs(_union(best) - wanted):
            best = drawn
        if abs(_union(best) - wanted) <= AS_LARGE * wanted:
            break
    return best


def _union(boxes: Sequence[Box]) -> float:
    """Area that boxes cover together."""
    x = np.unique([v for b in boxes for v in (b.x0, b.x1)])
    y = np.unique([v for b in boxes for v in (b.y0, b.y1)])
    covered = np.zeros((len(y) - 1, len(x) - 1), dtype=bool)
    for b in boxes:
        left, right = np.searchsorted(x, (b.x0, b.x1))
        top, bottom = np.searchsorted(y, (b.y0, b.y1))
        covered[top:bottom, left:right] = True
    return float(np.diff(y) @ covered @ np.diff(x))


def masked(
    control: Control,
    sample: Sample,
    gaze: Sequence[tuple[ImageRef, Box]],
    store: ImageStore,
    *,
    seed: int = 0,
) -> Counterfactual | None:
    """The sample with parts of its pictures gray, by boxes that need not be of the model that is
    asked; None without any.
    """
    if not gaze:
        return None
    rng = np.random.default_rng([seed, *sample.id.encode()])
    images = []
    for image in sample.images:
        boxes = [box for on, box in gaze if on == image]
        if control == "random-masked" and boxes:
            boxes = _as_large(boxes, image, rng)
        is_rest = control == "rest-masked"
        if not boxes and not is_rest:
            images.append(image)
            continue
        images.append(store.add(store.view(image).masked(boxes, outside=is_rest)))
    return Counterfactual(replace(sample, images=tuple(images)), "")
