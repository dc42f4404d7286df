"""The rewards that come with saccade.

Invariant: each needs nothing but the episode and its sample; a missing answer is wrong, not
unknown.
Left out on purpose: format rewards (nothing is paid for bare form) and judges.
"""

from __future__ import annotations

from saccade.coverage import overlap
from saccade.rewards.answers import judged, lenient, strict
from saccade.rewards.rubric import reward
from saccade.types import Episode, Sample, Score, TurnRecord

__all__ = [
    "answer",
    "answer_lenient",
    "answer_published",
    "looked_at_evidence",
    "per_turn",
    "valid_calls",
]


def _is_right(episode: Episode, sample: Sample) -> bool:
    said = judged(sample.answer, episode.answer)
    return said is not None and strict(sample.answer, said)


@reward
def answer(episode: Episode, sample: Sample) -> float | None:
    """1 for the right answer (equal text or exactly equal number), 0 for a wrong one or none."""
    return 1.0 if _is_right(episode, sample) else 0.0


@reward
def answer_lenient(episode: Episode, sample: Sample) -> float | None:
    """1 for what a patient reader would accept (`saccade.rewards.answers.lenient`), else 0."""
    said = judged(sample.answer, episode.answer)
    return float(said is not None and lenient(sample.answer, said))


@reward
def answer_published(episode: Episode, sample: Sample) -> float | None:
    """+1 for the right answer, -1 for a wrong one or none: the terminal reward of V-ToolRL."""
    return 1.0 if _is_right(episode, sample) else -1.0


@reward(required=False)
def looked_at_evidence(episode: Episode, sample: Sample) -> float | None:
    """Share of the evidence that the gaze covers, times the share of the gaze that is evidence.

    Exact areas on the original images, of regions seen or named; 0 where nothing was looked at,
    None without evidence. A view of the whole image is no gaze.
    """
    areas = overlap(sample.evidence, episode.gaze)
    if areas.coverage is None:
        return None
    return areas.coverage * (areas.tightness or 0.0)


@reward(required=False)
def valid_calls(episode: Episode, sample: Sample) -> float | None:
    """Share of tool calls that did not fail, unreadable ones included; None without calls."""
    results = episode.results
    if not results:
        return None
    return sum(not r.failed for r in results) / len(results)


@reward(required=False)
def per_turn(episode: Episode, sample: Sample) -> Score:
    """Mean worth of the turns that called tools, each turn's share credited to it.

    A turn is worth the share of its calls that did not fail, times, where the sample has evidence,
    how well its results show it (as `looked_at_evidence`, for this turn alone). The values of the
    turns sum to the mean, so more calls never pay more; a turn without calls has None.
    """
    worth = [_worth(turn, sample) for turn in episode.turns]
    calling = [w for w in worth if w is not None]
    if not calling:
        return Score(None, detail="no calls")
    turns = tuple(None if w is None else w / len(calling) for w in worth)
    return Score(sum(calling) / len(calling), turns=turns)


def _worth(turn: TurnRecord, sample: Sample) -> float | None:
    if not turn.results:
        return None
    worked = sum(not r.failed for r in turn.results) / len(turn.results)
    # only what its calls brought: a box in the thought is not an outcome of a tool
    looks = Episode(sample, turns=(turn._replace(named=()),)).gaze
    areas = overlap(sample.evidence, looks)
    if areas.coverage is None:
        return worked
    return worked * areas.coverage * (areas.tightness or 0.0)
