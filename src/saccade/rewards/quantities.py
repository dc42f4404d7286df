"""Numbers as people write them: with separators, in words, with magnitudes, units and currencies.

Invariant: values are exact; reading takes time about linear in the text.
Left out on purpose: dates, ranges and fractions.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

__all__ = ["NUMBER_WORDS", "Quantity", "only_quantity", "quantities_agree", "whole_quantity"]

_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
NUMBER_WORDS = {word: value for value, word in enumerate(_ONES.split())}
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS_WORDS = {word: 10 * (i + 2) for i, word in enumerate(_TENS.split())}
_MAGNITUDES = {
    "hundred": 10**2,
    **dict.fromkeys(("k", "thousand"), 10**3),
    **dict.fromkeys(("m", "mn", "million", "millions"), 10**6),
    **dict.fromkeys(("b", "bn", "billion", "billions"), 10**9),
    **dict.fromkeys(("t", "tn", "trillion", "trillions"), 10**12),
}
_UNITS = {
    **dict.fromkeys(("%", "percent", "percentage", "pct"), "%"),
    **dict.fromkeys(("$", "usd", "dollar"), "dollar"),
    **dict.fromkeys(("€", "eur", "euro"), "euro"),
    **dict.fromkeys(("£", "gbp", "pound"), "pound"),
    **dict.fromkeys(("¥", "jpy", "yen"), "yen"),
}
_DIGITS = r"(?:[0-9]{1,3}(?:[, ][0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_WORDED = (
    rf"(?:(?:{'|'.join(_TENS_WORDS)})[- ](?:{'|'.join(_ONES.split()[1:10])})"
    rf"|{'|'.join([*reversed(_ONES.split()), *_TENS_WORDS])})\b"
)
_QUANTITY = re.compile(
    rf"(?<![\w.])(?P<sign>[+-]?) ?(?P<currency>[$€£¥]?) ?"
    rf"(?:(?P<digits>{_DIGITS})(?P<exponent>e[+-]?[0-9]{{1,3}}\b)?|(?P<words>{_WORDED}))"
    rf" ?(?:(?P<magnitude>{'|'.join(_MAGNITUDES)})\b)?"
    r" ?(?P<percent>%)?"
)


class Quantity(NamedTuple):
    value: Fraction
    magnitude: int
    """1 where no magnitude word stands beside the number."""
    symbol: str
    """The magnitude as written, where it is one letter and might be a unit."""
    units: frozenset[str]


def _unit(word: str) -> str:
    word = word.strip(".")
    return _UNITS.get(word) or _UNITS.get(word.removesuffix("s")) or word.removesuffix("s")


def _read(found: re.Match[str], rest: str) -> Quantity:
    """The quantity of a match, with its unit among the words that follow."""
    words = found.group("words")
    if words:
        value = Fraction(sum({**NUMBER_WORDS, **_TENS_WORDS}[w] for w in re.split("[- ]", words)))
    else:
        digits = found.group("digits").replace(",", "").replace(" ", "")
        value = Fraction(digits + (found.group("exponent") or ""))
    magnitude = found.group("magnitude") or ""
    units = {_unit(w) for w in (found.group("currency"), found.group("percent")) if w}
    units |= {_unit(w) for w in re.findall(r"[^\W\d_]+", rest)}
    return Quantity(
        -value if found.group("sign") == "-" else value,
        _MAGNITUDES.get(magnitude, 1),
        magnitude if len(magnitude) == 1 else "",
        frozenset(units),
    )


def whole_quantity(text: str) -> Quantity | None:
    """A text that is a number with at most three words of unit, and nothing else."""
    found = _QUANTITY.match(text)
    if not found:
        return None
    rest = text[found.end() :].strip(" .")
    if not re.fullmatch(r"(?:[^\W\d_]+\.?(?: |$)){0,3}", rest):
        return None
    return _read(found, rest)


def only_quantity(text: str) -> Quantity | None:
    """The quantity of a sentence that names just one; without unit, as any word may follow it."""
    found = list(_QUANTITY.finditer(text))
    if len(found) != 1 or any(
        c.isdigit() for c in text[: found[0].start()] + text[found[0].end() :]
    ):
        return None
    return _read(found[0], "")


def _values(of: Quantity, *, beside: Quantity) -> set[Fraction]:
    """What a number may mean: a magnitude or percent missing on the other side may be implied."""
    values = {of.value * of.magnitude}
    if of.magnitude != 1 and beside.magnitude == 1:
        values.add(of.value)
    if "%" in of.units and "%" not in beside.units:
        values |= {v / 100 for v in values}
    return values


def quantities_agree(gold: Quantity, answer: Quantity, *, year: bool) -> bool:
    g_units, a_units = gold.units, answer.units
    if gold.magnitude != answer.magnitude and 1 in (gold.magnitude, answer.magnitude):
        # "5 m" may be metres: beside a unit it has to fit that unit
        g_units |= {gold.symbol} - {""} if a_units else set()
        a_units |= {answer.symbol} - {""} if g_units else set()
    if g_units and a_units and not (g_units <= a_units or a_units <= g_units):
        return False
    pairs = [(g, a) for g in _values(gold, beside=answer) for a in _values(answer, beside=gold)]
    if year:
        return any(g == a for g, a in pairs)
    return any(20 * abs(a - g) <= abs(g) for g, a in pairs)
