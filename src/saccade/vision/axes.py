"""The scales of axes: which value stands at which pixel.

How: numbers whose print is aligned, in a column or a row, are ticks where their values fall on one
straight line over their places, or their logarithms do. Where an axis is drawn, the marks of its
ticks say the places better than the middle of their print.

Invariant: a scale rests on three ticks or more that agree, of which one may be print that was seen
where the other two say and not read; what does not fit them is left out, and where fewer agree
there is no scale.

Left out on purpose: dates, categories, scales of other kinds, and axes that stand aslant.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saccade.geometry import Box, box_around

__all__ = ["Scale", "Side", "find_scales", "number_of"]

Side = Literal["x", "y"]
LEAST_TICKS = 3
SLACK = 0.3
"""Of the height of print: how far a tick may lie from where the scale says."""
ALIGNED = 0.5
"""Of the height of print: how far the ends, or middles, of print on one axis differ."""
GAP = 3.3
"""Steps between two ticks, at most: what lies between was not read."""
INK = 60
"""Levels that print differs from its ground by."""
MARK_PX = 14
"""From print to the mark of its tick, at most."""
_NUMBER = re.compile(r"[$€£]?\s*([-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?)\s*(%|[kKmMbB])?")
_ONCE = re.compile(r"(?P<factor>1e[+-]?\d{1,3})?(?P<offset>[+-]\d+(?:\.\d+)?(?:e[+-]?\d{1,3})?)?")
FAR_ENDS = 3.5
"""Heights of print between the last tick and a factor that is printed for all."""
_TIMES = {"k": 1e3, "m": 1e6, "b": 1e9}


@dataclass(frozen=True, slots=True)
class Scale:
    """One axis: value = start + slope * pixel, or ten to the power of that."""

    side: Side
    start: float
    slope: float
    is_log: bool
    ticks: tuple[tuple[float, float], ...]
    """Pixel and value of each that agrees, by pixels."""
    box: Box
    """Around their print."""

    def value_at(self, pixel: float) -> float:
        """In the units that are printed."""
        value = self.start + self.slope * pixel
        return float(10.0**value) if self.is_log else value

    def pixel_at(self, value: float) -> float:
        """Raises ValueError for what a logarithmic axis has not."""
        if self.is_log:
            if value <= 0:
                raise ValueError(f"A logarithmic axis has no {value:g}.")
            value = math.log10(value)
        return (value - self.start) / self.slope

    @property
    def span(self) -> tuple[float, float]:
        """Pixels from its first tick to its last."""
        return self.ticks[0][0], self.ticks[-1][0]

    def step_at(self, pixel: float) -> float:
        """How much one pixel is there."""
        return abs(self.value_at(pixel + 0.5) - self.value_at(pixel - 0.5))


class _Number(NamedTuple):
    value: float
    box: Box


def number_of(text: str) -> float | None:
    """The number that print says, with thousands, percent, k, M or B; None where it says none."""
    plain = text.replace("−", "-").replace("–", "-").replace("—", "-")
    plain = plain.strip(" _").rstrip("-.,' ")  # the mark of a tick is read as a dash
    match = _NUMBER.fullmatch(plain)
    if match is None or not any(c.isdigit() for c in match[1]):
        return None
    return float(match[1].replace(",", "")) * _TIMES.get((match[2] or "").lower(), 1.0)


def find_scales(picture: Image.Image, lines: Sequence[tuple[str, Box]]) -> list[Scale]:
    """Every axis whose ticks are among the lines of print, those of most ticks first."""
    numbers = []
    for text, box in lines:
        if (value := number_of(text)) is not None:
            numbers.append(_Number(value, box))
    found: list[Scale] = []
    gray = np.asarray(picture.convert("L"), dtype=np.int16)
    sides: tuple[Side, ...] = ("y", "x")
    for side in sides:
        for group in _aligned(numbers, side):
            found += _scales(gray, group, side)
    found.sort(key=lambda s: -len(s.ticks))
    # a column is seen by its left and by its right ends
    kept: list[Scale] = []
    for scale in found:
        if not any(s.side == scale.side and s.box.intersection(scale.box) for s in kept):
            kept.append(scale)
    return [_in_full(s, lines) for s in kept]


def _in_full(scale: Scale, lines: Sequence[tuple[str, Box]]) -> Scale:
    """The scale with what is printed once at the end of its axis: a factor as 1e6, an offset as
    +2.02e3.
    """
    box = scale.box
    size = box.height if scale.side == "x" else (box.height - (scale.span[1] - scale.span[0]))
    for text, place in lines:
        match = _ONCE.fullmatch(text.replace("−", "-").replace(" ", ""))
        if match is None or not match[0] or scale.is_log:
            continue
        away = place.center.y - box.center.y if scale.side == "x" else box.y0 - place.center.y
        along = place.x1 - box.x1 if scale.side == "x" else place.x0 - box.x1
        if 0 < away < FAR_ENDS * size and abs(along) < FAR_ENDS * size:
            factor, offset = float(match["factor"] or 1), float(match["offset"] or 0)
            return replace(
                scale,
                start=scale.start * factor + offset,
                slope=scale.slope * factor,
                ticks=tuple((at, value * factor + offset) for at, value in scale.ticks),
            )
    return scale


def _aligned(numbers: Sequence[_Number], side: Side) -> Iterator[list[_Number]]:
    """Numbers above each other with their right or left ends in line; or beside each other."""

    def ends(n: _Number) -> tuple[float, ...]:
        return (n.box.x1, n.box.x0) if side == "y" else (n.box.center.y,)

    for end in range(2 if side == "y" else 1):
        left = sorted(numbers, key=lambda n: ends(n)[end])
        while left:
            first = left[0]
            reach = ALIGNED * first.box.height
            group = [n for n in left if ends(n)[end] - ends(first)[end] <= 2 * reach]
            yield group
            left = [n for n in left if n not in group]


def _scales(gray: NDArray[np.int16], group: Sequence[_Number], side: Side) -> Iterator[Scale]:
    """The scales that fit most of a group, then most of what is left: plots above each other."""
    left = list(group)
    while len(left) >= LEAST_TICKS - 1:
        best: list[_Number] = []
        best_log = False
        for is_log in (False, True):
            for fitting in _fits(left, side, is_log=is_log):
                # a straight line through as many explains them as well and is likelier
                if len(fitting) > len(best):
                    best, best_log = fitting, is_log
        if len(best) < LEAST_TICKS:
            pair = next((p for p in combinations(left, 2) if _has_third(gray, p, side)), None)
            if pair is None:
                return
            best, best_log = list(pair), False
        if not _is_contradicted(best, left, side):
            yield _scale(gray, best, side, is_log=best_log)
        left = [n for n in left if n not in best]


def _is_contradicted(fitting: Sequence[_Number], group: Sequence[_Number], side: Side) -> bool:
    """Whether as many numbers between its ends are beside the line as on it: then the axis is
    neither linear nor logarithmic.
    """
    places = [_middle(n.box, side) for n in fitting]
    others = [
        n for n in group if n not in fitting and min(places) < _middle(n.box, side) < max(places)
    ]
    return len(others) >= len(fitting) - 1 > 0


def _has_third(gray: NDArray[np.int16], pair: Sequence[_Number], side: Side) -> bool:
    """Whether print stands a step before or behind two round numbers above each other, and nothing
    halfway there: digits that stand alone are often not read.
    """
    first, second = sorted(pair, key=lambda n: _middle(n.box, side))
    step = _middle(second.box, side) - _middle(first.box, side)
    height = first.box.height
    if side == "x" or step < 3 * height or not _is_round(first.value, second.value):
        return False
    if abs(first.box.x1 - second.box.x1) > 0.2 * height:
        return False
    right = round(max(first.box.x1, second.box.x1))
    columns = slice(max(0, round(right - 1.2 * height)), right)

    def has_ink(middle: float, share: float) -> bool:
        rows = slice(max(0, round(middle - share * height)), round(middle + share * height))
        piece = gray[rows, columns]
        return bool(piece.size and np.abs(piece - np.median(piece)).max() > INK)

    for start, towards in ((second, step), (first, -step)):
        at = _middle(start.box, side) + towards
        if height < at < len(gray) - height:
            alone = not has_ink(at - 0.5 * towards, 1.0) and not has_ink(at + 1.2 * height, 0.3)
            if has_ink(at, 0.4) and alone:
                return True
    return False


def _is_round(first: float, second: float) -> bool:
    """Whether two values are a step of ticks apart, and multiples of it."""
    step = abs(first - second)
    if step == 0:
        return False
    lead = step / 10 ** math.floor(math.log10(step) + 1e-9)
    is_step = any(abs(lead - s) < 1e-6 for s in (1, 2, 2.5, 5))
    return is_step and abs(first / step - round(first / step)) < 1e-6


def _fits(numbers: Sequence[_Number], side: Side, *, is_log: bool) -> Iterator[list[_Number]]:
    """For each pair of numbers those that lie on the line through both."""
    usable = [n for n in numbers if not is_log or _is_decade(n.value)]
    for a, b in combinations(usable, 2):
        run = _middle(b.box, side) - _middle(a.box, side)
        rise = _level(b.value, is_log) - _level(a.value, is_log)
        if abs(run) < a.box.height or rise == 0 or abs(rise / run) < 1e-300:
            continue
        slope = rise / run
        zero = _middle(a.box, side) - _level(a.value, is_log) / slope
        fitting = [
            n
            for n in usable
            if abs(zero + _level(n.value, is_log) / slope - _middle(n.box, side))
            <= SLACK * n.box.height
        ]
        yield _evenly(fitting, side)


def _is_decade(value: float) -> bool:
    """Whether it is ten to a whole power: what logarithmic axes print."""
    return value > 0 and abs(math.log10(value) - round(math.log10(value))) < 1e-9


def _evenly(numbers: Sequence[_Number], side: Side) -> list[_Number]:
    """Of numbers on a line the longest run in which no more than GAP steps are empty: others fit by
    chance.
    """
    in_order = sorted(numbers, key=lambda n: _middle(n.box, side))
    apart = in_order[:1]
    for n in in_order[1:]:
        if _middle(n.box, side) - _middle(apart[-1].box, side) > 0.5 * n.box.height:
            apart.append(n)  # else read twice
    gaps = np.diff([_middle(n.box, side) for n in apart])
    if not len(gaps):
        return apart
    ends = [0, *(np.flatnonzero(gaps > GAP * gaps.min()) + 1).tolist(), len(apart)]
    return max((apart[a:b] for a, b in pairwise(ends)), key=len)


def _level(value: float, is_log: bool) -> float:
    return math.log10(value) if is_log else value


def _middle(box: Box, side: Side) -> float:
    return box.center.x if side == "x" else box.center.y


def _scale(gray: NDArray[np.int16], ticks: Sequence[_Number], side: Side, *, is_log: bool) -> Scale:
    places = _marks(gray, [t.box for t in ticks], side)
    levels = [_level(t.value, is_log) for t in ticks]
    # the values as they stand over the places: noise is in the places
    run, at = np.polyfit(levels, places, 1)
    found = sorted((place, t.value) for place, t in zip(places, ticks, strict=True))
    around = box_around([t.box for t in ticks])
    return Scale(side, float(-at / run), float(1 / run), is_log, tuple(found), around)


def _marks(gray: NDArray[np.int16], boxes: Sequence[Box], side: Side) -> list[float]:
    """Middles of the marks of ticks beside their print, on one line of pixels; of the print where
    not every one has a mark.
    """
    middles = [_middle(b, side) for b in boxes]
    picture = gray if side == "y" else gray.T
    for at in _beside(boxes, side, picture.shape[1]):
        strip = picture[:, at]
        found = [_mark(strip, m, b.height) for m, b in zip(middles, boxes, strict=True)]
        if all(f is not None for f in found):
            off = np.array([f - m for f, m in zip(found, middles, strict=True) if f is not None])
            if np.ptp(off) <= 3:  # all print stands alike to its marks
                return [f for f in found if f is not None]
    return middles


def _beside(boxes: Sequence[Box], side: Side, limit: int) -> Iterator[int]:
    """Lines of pixels next to print: on the right of a column and then its left; above a row and
    then below it.
    """
    low = min(b.x0 if side == "y" else b.y0 for b in boxes)
    high = max(b.x1 if side == "y" else b.y1 for b in boxes)
    after = range(round(high), round(high) + MARK_PX)
    before = range(round(low) - 1, round(low) - 1 - MARK_PX, -1)
    for places in (after, before) if side == "y" else (before, after):
        for at in places:
            if 0 <= at < limit:
                yield at


def _mark(strip: NDArray[np.int16], middle: float, height: float) -> float | None:
    """The middle of the one short run that stands out near a place of a line of pixels."""
    reach = max(3, round(0.5 * height))
    low, high = max(0, round(middle) - reach), min(len(strip), round(middle) + reach + 1)
    piece = strip[low:high]
    if len(piece) < 3:
        return None
    weight = np.abs(piece - np.median(piece)).astype(float)
    marked = weight > 40
    if not marked.any() or marked.sum() > 4:
        return None
    places = np.flatnonzero(marked)
    if places[-1] - places[0] > 3:
        return None
    around = slice(max(0, places[0] - 1), places[-1] + 2)
    at = np.arange(len(piece))[around]
    return float(low + (at * weight[around]).sum() / weight[around].sum() + 0.5)
