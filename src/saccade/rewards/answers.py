"""Whether an answer is right, by our own two rules, and which words of a text are the answer.

Invariant: every function takes (gold, prediction) in this order, never raises on any text, and
takes time about linear in the length of the prediction. `strict` is for rewards and metrics;
`lenient` shows beside it what formatting cost.
Left out on purpose: judges, and partial credit.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Sequence
from fractions import Fraction

from saccade.rewards.quantities import only_quantity, quantities_agree, whole_quantity

__all__ = ["SCORER_VERSION", "extract", "judged", "lenient", "strict"]

SCORER_VERSION = 2
"""Stored beside scores, so that runs can be scored again and told apart."""


# --- our strict rule ------------------------------------------------------------------------------

_NUMBER_LIMIT = 100
_NUMBER = re.compile(
    r"([+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?:e[+-]?[0-9]{1,3})?)(%?)"
)


def _exact_number(text: str) -> Fraction | None:
    """The exact value of a number, perhaps with separators, decimals, exponent and percent sign."""
    if len(text) > _NUMBER_LIMIT:
        return None
    found = _NUMBER.fullmatch(text)
    if not found:
        return None
    value = Fraction(found.group(1).replace(",", ""))
    return value / 100 if found.group(2) else value


def strict(gold: str, prediction: str) -> bool:
    """Whether the two say the same: equal text or exactly equal numbers; no partial credit.

    Text is compared without white space at the ends, runs of white space, case and trailing dots.
    Numbers may have thousands separators, decimals, an exponent or a percent sign: 1,000 == 1000 ==
    1e3, 57 == 57.0, 50% == 0.5. An empty prediction is wrong. Nothing is extracted: pass the final
    answer.
    """
    g, p = " ".join(gold.casefold().split()), " ".join(prediction.casefold().split())
    if not p:
        return False
    if g == p:
        return True
    g, p = g.rstrip(" ."), p.rstrip(" .")
    if p and g == p:
        return True
    g_value, p_value = _exact_number(g), _exact_number(p)
    return g_value is not None and g_value == p_value


# --- the extractor --------------------------------------------------------------------------------

_TEXT_LIMIT = 20_000
_SHORT_WORDS = 12
_CUE = re.compile(
    r"\b(?:answer|(?:correct|best|right)\s{1,3}(?:option|choice))(?:\s{1,3}is|\s{0,3}[:=])[\s:*]{0,5}",
    re.IGNORECASE,
)
_AFTER_ANSWER = re.compile(r"\n|[.;]\s|,?\s(?:because|since)\b")
_CONCLUSION = re.compile(
    r"[,;.]\s{0,3}(?:so|therefore|thus|hence),?\s{1,3}(\S{1,40})$", re.IGNORECASE
)
_LONE_LETTER = re.compile(r"(?:\w{1,30}\s){2}\w{1,30},\s{1,3}\(?([A-Z])\)?\.?$")


def extract(text: str) -> str | None:
    """The final answer in what a model wrote; None where none can be told, which is to be counted.

    Reasoning is dropped first: everything up to the last `</think>`, and an open `<think>` to its
    end. Then the first of these that applies, each taken from its last occurrence:
    1. the inside of `<answer>`, closed or not;
    2. the inside of `\\boxed{...}`;
    3. what follows "answer is", "answer:", "best/correct/right option is", up to the end of the
    sentence;
    4. the one word after a closing "so", "therefore", "thus" or "hence", or a lone
       capital after the last comma;
    5. the whole text, or else its last line, where that has at most 12 words.
    Only the last 20,000 characters are read.
    """
    text = text[-_TEXT_LIMIT:].rpartition("</think>")[2].partition("<think>")[0]
    _, opened, inside = text.rpartition("<answer>")
    if opened:
        return _trimmed(inside.partition("</answer>")[0])
    boxed = _boxed(text)
    if boxed is not None:
        return _trimmed(boxed)
    cues = list(_CUE.finditer(text))
    if cues:
        return _trimmed(_AFTER_ANSWER.split(text[cues[-1].end() :], maxsplit=1)[0])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    ending = _CONCLUSION.search(lines[-1][-200:]) or _LONE_LETTER.search(lines[-1][-200:])
    if ending:
        return _trimmed(ending.group(1))
    for candidate in (" ".join(lines), lines[-1]):
        if len(candidate.split()) <= _SHORT_WORDS:
            return _trimmed(candidate)
    return None


def judged(gold: str, said: str | None) -> str | None:
    """The answer that rewards and evaluation judge. What equals the gold answer as it stands needs
    no extractor; None where there is none.
    """
    return said if said is None or strict(gold, said) else extract(said)


def _boxed(text: str) -> str | None:
    """The inside of the last \\boxed{...} with balanced braces."""
    _, opened, rest = text.rpartition("\\boxed{")
    if not opened:
        return None
    depth = 1
    for i, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if not depth:
            return rest[:i]
    return None


def _trimmed(text: str) -> str | None:
    """Without white space, quotes, emphasis and a trailing dot; None where nothing is left."""
    text = text.strip().strip("*`\"' \n\t")
    if text.endswith(".") and text.count(".") == 1:
        text = text[:-1].rstrip("*`\"' ")
    return text or None


# --- our lenient rule -----------------------------------------------------------------------------

_ANSWER_LIMIT = 400
_YES, _NO = ("yes", "true"), ("no", "false")
"""A statement that holds may be called true, or be answered with yes."""


def _plain_text(text: str) -> str:
    """Lower case, one kind of white space and minus, no mathematics delimiters and no quotes."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-")
    text = " ".join(text.split())
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1]
    return text.replace("\\%", "%").replace("\\{", "{").replace("\\}", "}").strip("*`\"' ")


def _items(text: str) -> list[str] | None:
    """The items of a list in brackets or braces, or with commas, semicolons or "and" between."""
    bracketed = re.fullmatch(r"[\[{](.*)[\]}]", text)
    if bracketed:
        parts = re.split(r"[,;]", bracketed.group(1))
    else:
        parts = re.split(r"[,;] (?:and )?| and ", text)
        if len(parts) < 2:
            return None
    return [part.strip("\"' ") for part in parts]


def _texts_agree(gold: str, answer: str) -> bool:
    if gold in _YES + _NO:
        same, other = (_YES, _NO) if gold in _YES else (_NO, _YES)
        opening = re.match(r"(yes|no|true|false)(?:[,.;:!]|$)", answer)
        words = re.findall(r"\w+", answer)
        return bool(opening) and words[0] in same and not {*other} & {*words}
    if len(gold) == 1 and gold in string.ascii_lowercase:
        option = re.match(r"\(([a-z])\)|([a-z])[).:](?= |$)|([a-z])$", answer)
        return option is not None and gold in option.groups()
    return bool(gold) and gold.replace(".", "") == answer.replace(".", "")


def _items_agree(gold: str, answer: str, *, year: bool) -> bool:
    g = whole_quantity(gold)
    if g is None:
        return _texts_agree(gold, answer)
    a = whole_quantity(answer) or only_quantity(answer)
    return a is not None and quantities_agree(g, a, year=year)


def _lists_agree(golds: Sequence[str], answers: Sequence[str], *, year: bool) -> bool:
    """Whether the items pair up in any order: augmenting paths, as one item may fit several."""
    if len(golds) != len(answers):
        return False
    fits = [[_items_agree(g, a, year=year) for a in answers] for g in golds]
    partner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, fit in enumerate(fits[row]):
            if fit and column not in tried:
                tried.add(column)
                if column not in partner or place(partner[column], tried):
                    partner[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(golds)))


def lenient(gold: str, prediction: str, *, year: bool = False) -> bool:
    """Whether a patient reader would accept the answer; everything `strict` accepts, and more.

    The prediction goes through `extract` first. Then it may differ from the gold answer by 5%
    (inclusive, exact arithmetic; not where `year` says that the data set asks for a year), by
    separators, a unit, a currency or a percent sign that one side leaves out, by magnitude words
    (1.4 billion, 1.4, 1,400,000,000), number words, dots, quotes, and in lists by order. Units on
    both sides must agree. Nothing is guessed from four digits.
    """
    if strict(gold, prediction):
        return True
    answer = extract(prediction)
    if answer is None or len(answer) > _ANSWER_LIMIT or len(gold) > _ANSWER_LIMIT:
        return False
    if strict(gold, answer):
        return True
    g, a = _plain_text(gold), _plain_text(answer)
    golds, answers = _items(g), _items(a)
    if golds is not None and answers is not None and _lists_agree(golds, answers, year=year):
        return True
    return _items_agree(g, a, year=year)
