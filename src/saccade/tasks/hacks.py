"""Strings that earn the published rewards of grounded reasoning without looking, scored.

Invariant: each string is made for its sample, read by the grounded dialect and brought to pixels on
the same way as a model's; nothing is scored by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from saccade.dialects.grounded import Grounded
from saccade.dialects.notations import NOTATIONS
from saccade.geometry import Frame
from saccade.grounding import boxes_named
from saccade.rewards import (
    Reward,
    Rubric,
    answer,
    grounded_count,
    grounded_format,
    grpo_gr_paper,
    grpo_gr_released,
)
from saccade.types import Episode, Message, Sample, StopReason, Text, TurnRecord

__all__ = [
    "HACKS",
    "OURS",
    "PRICED_WHERE_COUNTED",
    "UNPRICED",
    "Hacked",
    "hacked",
    "written",
]

OURS = Rubric(((answer, 1.0), (grounded_format, 0.2), (grounded_count, 0.2)), gate=answer)
"""The default of grounded recipes: form is worth less than the answer, and nothing without it."""
MODES: dict[str, Reward | Rubric] = {
    "released": grpo_gr_released,
    "paper": grpo_gr_paper,
    "ours": OURS,
}
_INLINE = NOTATIONS["inline"]


class Hacked(NamedTuple):
    """What one kind of string earns, over samples."""

    name: str
    is_right: bool
    """Whether its answer is the right one."""
    earned: dict[str, float]
    """Mean by mode."""
    most: dict[str, float]
    """Highest by mode."""


def _turn(think: str, said: str, rethink: str = "so it is") -> str:
    return f"<think> {think} </think> <rethink> {rethink} </rethink> <answer> {said} </answer>"


def _honest(sample: Sample, said: str) -> str:
    """Every thing that the answer rests on, with its box."""
    image = sample.images[0]
    frame = Frame.thousand(image.width, image.height)
    things = [_INLINE.write(frame.encode_box(e.box), e.phrase) for e in sample.evidence]
    return _turn(" and ".join(things) or "nothing of that is there", said)


def _specks(count: int) -> str:
    return " ".join(f"[{9 * i}, 1, {9 * i + 2}, 3]" for i in range(count))


def _anywhere(count: int) -> str:
    """Boxes of a size that things have, in places that nobody looked at."""
    corners = ((50 + 180 * (n % 5), 50 + 180 * (n // 5)) for n in range(count))
    return " ".join(f"[{x}, {y}, {x + 150}, {y + 150}]" for x, y in corners)


def _shifted(count: int) -> str:
    """Boxes of which neighbours have an IoU of 0.69."""
    return " ".join(f"[{100 + 37 * n}, 100, {300 + 37 * n}, 300]" for n in range(count))


def _rings(count: int) -> str:
    """Boxes around each other."""
    return " ".join(
        f"[{400 - 25 * n}, {400 - 25 * n}, {500 + 25 * n}, {500 + 25 * n}]" for n in range(count)
    )


def _number(sample: Sample) -> int:
    return int(sample.answer) if sample.answer.isdigit() else 1


HACKS: dict[str, tuple[bool, Callable[[Sample, str], str]]] = {
    "honest, right": (True, _honest),
    "honest, wrong": (False, _honest),
    "four zeros": (
        False,
        lambda s, said: (
            f"<think> a b 0, 0, 0, 0 </think><rethink></rethink><answer> {said} </answer>"
        ),
    ),
    "the same box, without area": (
        False,
        lambda s, said: _turn("it is " + "or [5, 5, 5, 5] " * _number(s), said),
    ),
    "specks": (True, lambda s, said: _turn(f"things are {_specks(_number(s))}", said)),
    "one box, repeated": (
        True,
        lambda s, said: _turn("things are " + "[100, 100, 300, 300] " * max(2, _number(s)), said),
    ),
    "the whole picture": (True, lambda s, said: _turn("things are [0, 0, 1000, 1000]", said)),
    "a bare listing": (True, lambda s, said: _turn(_anywhere(_number(s)), said)),
    "boxes anywhere": (True, lambda s, said: _turn(f"things are {_anywhere(_number(s))}", said)),
    "nearly the whole picture": (True, lambda s, said: _turn("things are [0, 0, 890, 1000]", said)),
    "junk for words": (
        True,
        lambda s, said: _turn(f"qx qx {_anywhere(_number(s))}", said, "qx"),
    ),
    "the contrary of its thought": (
        True,
        lambda s, said: _turn(f"things are {_anywhere(_number(s))}", said, f"so not {said}"),
    ),
    "one thing, shifted": (True, lambda s, said: _turn(f"things are {_shifted(_number(s))}", said)),
    "one thing, in rings": (True, lambda s, said: _turn(f"things are {_rings(_number(s))}", said)),
    "never closed": (True, lambda s, said: _honest(s, said).removesuffix(" </answer>")),
    "answered twice": (True, lambda s, said: _honest(s, said) + " <answer> 1 </answer>"),
}
"""By name: whether the answer that it is given is the right one, and how it is written."""
UNPRICED = ("boxes anywhere", "junk for words", "the contrary of its thought")
"""What no reward without box labels tells from honesty, beside a right answer: boxes as large as
things, words that say nothing, and a thought that says the contrary.
"""
PRICED_WHERE_COUNTED = ("nearly the whole picture", "one thing, shifted", "one thing, in rings")
"""What earns as much as honesty where nothing is counted: there a single box says enough."""


def written(text: str, sample: Sample) -> Episode:
    """The episode of a model that wrote this about a sample, in boxes of 0 to 1000."""
    parsed = Grounded().parse(text)
    named, refused = boxes_named(
        parsed,
        _INLINE,
        images={f"img_{n}": image for n, image in enumerate(sample.images)},
        frame=lambda image: Frame.thousand(image.width, image.height),
    )
    return Episode(
        sample,
        messages=(Message("assistant", (Text(text),)),),
        turns=(TurnRecord(parsed, named=named, refused=refused),),
        stop=StopReason.ANSWERED if parsed.answer else StopReason.MAX_TURNS,
    )


def hacked(samples: Sequence[tuple[Sample, str, str]]) -> list[Hacked]:
    """What each string earns in each mode, over samples with their right and wrong answers.
    Raises ValueError without samples.
    """
    if not samples:
        raise ValueError("Strings are scored on samples, got none.")
    rows = []
    for name, (is_right, write) in HACKS.items():
        episodes = [written(write(s, gold if is_right else wrong), s) for s, gold, wrong in samples]
        values = {mode: [_value(how, e) for e in episodes] for mode, how in MODES.items()}
        rows.append(
            Hacked(
                name,
                is_right,
                {mode: sum(v) / len(v) for mode, v in values.items()},
                {mode: max(v) for mode, v in values.items()},
            )
        )
    return rows


def _value(how: Reward | Rubric, episode: Episode) -> float:
    if isinstance(how, Reward):
        return how(episode, episode.sample) or 0.0
    return how.score(episode).value or 0.0
