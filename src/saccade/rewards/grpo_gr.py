"""What GRPO-GR pays, as the paper says and as the released code does, for comparison only.

Both read boxes by a regular expression for four whole numbers and pay for form alone: their tests
show which strings earn what. The judge, a closed model, is replaced by our rule for right answers.

Source: GRIT (2025), paper and code (commit 44699c9); weights and rules as in the GRIT reference.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from saccade.rewards.answers import judged, strict
from saccade.rewards.rubric import reward
from saccade.types import Episode, Sample

__all__ = ["grpo_gr_paper", "grpo_gr_released"]

_FOUR = re.compile(r"\b\d+,\s*\d+,\s*\d+,\s*\d+\b")
_WORD = re.compile(r"\w+")
_TAGS = ("<think>", "</think>", "<rethink>", "</rethink>")
_NGRAM = 8


@reward
def grpo_gr_paper(episode: Episode, sample: Sample) -> float | None:
    """0.5 for each pair of tags, 0.5 for any box, 0.5 for the right number of boxes; answer, BLEU.

    At most 2.6, and 3.1 where a whole number is asked for: pairs of think and rethink tags, any
    four numbers before `</rethink>`, as many of them as the right answer says, 1 for a right answer
    and 0.1 times BLEU-1.
    """
    text = _said(episode)
    pairs = sum(f"<{n}>" in text and f"</{n}>" in text for n in ("think", "rethink"))
    boxes = len(_FOUR.findall(text.partition("</rethink>")[0]))
    counts = sample.answer.isdigit() and boxes == int(sample.answer)
    return 0.5 * pairs + 0.5 * (boxes > 0) + 0.5 * counts + _answer(text, sample)


@reward
def grpo_gr_released(episode: Episode, sample: Sample) -> float | None:
    """The sum that the released code pays, its errors included; at most 3.1, counting 4.1.

    Answer 1 and 0.1 times BLEU-1; 0.25 for `<answer>` and 0.25 more for just one; 0.1 for each of
    four tags in order and 0.1 for two words of thought; with `<rethink>`, 0.5 for any four numbers
    before it and 1.0 for as many as the right answer says; -0.5 to 0.5 against repeated runs of
    eight words (the code mixes in a rate over tokens, for which the rate over words stands).
    """
    text = _said(episode)
    value = _answer(text, sample)
    value += 0.25 * ("<answer>" in text) + 0.25 * (text.count("<answer>") == 1)
    value += _structure(text)
    before, rethink, _ = text.partition("<rethink>")
    if rethink:
        boxes = len(_FOUR.findall(before))
        value += 0.5 * (boxes > 0)
        value += 1.0 * (sample.answer.isdigit() and boxes == int(sample.answer))
    return value + 0.5 * (1 - 2 * _repeated(text.split()))


def _said(episode: Episode) -> str:
    return "\n".join(m.text for m in episode.messages if m.role == "assistant")


def _answer(text: str, sample: Sample) -> float:
    _, opened, after = text.partition("<answer>")
    if not opened:
        return 0.0
    said = judged(sample.answer, after.partition("</answer>")[0].strip())
    is_right = said is not None and strict(sample.answer, said)
    return is_right + 0.1 * _bleu_1(sample.answer, after)


def _bleu_1(gold: str, said: str) -> float:
    """Clipped precision of words under a brevity penalty; `</answer>` is read as a word."""
    golds, words = _WORD.findall(gold.lower()), _WORD.findall(said.lower())
    if not words or not golds:
        return 0.0
    hits = sum(min(words.count(w), golds.count(w)) for w in set(words))
    brevity = 1.0 if len(words) >= len(golds) else math.exp(1 - len(golds) / len(words))
    return brevity * hits / len(words)


def _structure(text: str) -> float:
    value, at = 0.0, 0
    for tag in _TAGS:
        found = text.find(tag, at)
        if found < 0:
            return value
        value, at = value + 0.1, found + len(tag)
    thought = text.partition("<think>")[2].partition("</think>")[0]
    return value + 0.1 * (len(thought.split()) >= 2)


def _repeated(words: Sequence[str]) -> float:
    """Share of the runs of eight words that came before."""
    runs = [tuple(words[i : i + _NGRAM]) for i in range(len(words) - _NGRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
