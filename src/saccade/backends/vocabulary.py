"""Detection and pointing over a fixed vocabulary of charts, without a learned model but the reader.

Invariant: a request that is not understood is refused with what would be; a thing that is known and
not plainly there is an empty list. Scores multiply the doubts of shape, colour and print, and what
falls below THRESHOLD is not told. Print is read only where a request needs it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from PIL import Image

from saccade.backends.kinds import Detected, Detector, Pointed, Pointer, Printed, Reader
from saccade.backends.remembered import Remembered
from saccade.config import BackendChoice
from saccade.distances import look_alike
from saccade.errors import ToolError
from saccade.geometry import Box, Point
from saccade.vision.axes import number_of
from saccade.vision.chart_parts import chart_parts
from saccade.vision.colors import score_of
from saccade.vision.part import Part
from saccade.vision.print_roles import TextRole, text_roles
from saccade.vision.requests import ROLES, Wanted, known_words, parse

__all__ = ["THRESHOLD", "VocabularyDetector", "VocabularyPointer"]

THRESHOLD = 0.45
"""Scores below it are not told."""
LEAST_COLOR = 0.5
"""Of a colour's name: nearer to another name it is not meant."""
WHOLE_DEGREES = 345.0
"""Of a pie whose slices were all seen."""
TIE_PX = 0.75
"""Sizes and places that differ by less are equal."""


class _Found(NamedTuple):
    """A thing that may be meant."""

    box: Box
    point: Point
    score: float
    size: float
    order: tuple[float, ...]
    """In reading order."""
    part: Part | None = None


class _Sight:
    """What one picture shows; print is read once, when it is first needed."""

    def __init__(self, picture: Image.Image, read: Callable[[Image.Image], list[Printed]]) -> None:
        self.picture = picture
        self.parts = chart_parts(picture)
        self._read = read
        self._lines: list[Printed] | None = None

    @property
    def lines(self) -> list[Printed]:
        if self._lines is None:
            self._lines = self._read(self.picture)
        return self._lines

    def roles(self) -> list[TextRole]:
        return text_roles([(line.text, line.box) for line in self.lines], self.parts)


def _meant(wanted: Wanted, sight: _Sight) -> list[_Found]:
    """All that one clause means, the surest first."""
    found = _print(wanted, sight) if wanted.noun in ROLES else _things(wanted, sight)
    found = [f for f in found if f.score >= THRESHOLD]
    if wanted.noun == "wedge" and (wanted.superlative or wanted.number is not None):
        _check_whole(sight.parts, {f.part.group for f in found if f.part is not None})
    found = _selected(wanted, sorted(found, key=lambda f: f.order))
    return sorted(found, key=lambda f: -f.score)


def _check_whole(parts: Sequence[Part], groups: set[int]) -> None:
    """Raises ToolError where slices of a pie are missing: among those that are left none is the
    largest, or the second.
    """
    for group in groups:
        degrees = sum(p.size for p in parts if p.kind == "wedge" and p.group == group)
        if degrees < WHOLE_DEGREES:
            raise ToolError(
                f"Only {degrees:.0f} of 360 degrees of this pie were seen as slices, so they can't "
                "be compared or counted; ask for a slice by its colour or name, or zoom in."
            )


def _things(wanted: Wanted, sight: _Sight) -> list[_Found]:
    found = []
    for part in sight.parts:
        if part.kind == wanted.noun:
            order = (part.group, part.place, part.box.y0)
            found.append(_Found(part.box, part.point, part.score, part.size, order, part))
    if wanted.color is not None:
        found = [f._replace(score=f.score * _color_score(wanted, f)) for f in found]
        found = [f for f in found if f.score > 0]
    if wanted.name is not None and found:
        found = _named(wanted.name, found, sight)
    return found


def _color_score(wanted: Wanted, found: _Found) -> float:
    color = found.part.color if found.part is not None else None
    if color is None or wanted.color is None or score_of(color, wanted.color) < LEAST_COLOR:
        return 0.0
    score = score_of(color, wanted.color, shade=wanted.shade)
    return score if wanted.shade is None or score >= 0.5 * LEAST_COLOR else 0.0


def _selected(wanted: Wanted, found: list[_Found]) -> list[_Found]:
    """Those that a superlative or an ordinal leaves, of things in reading order."""
    if wanted.superlative is not None and found:
        measure = _MEASURES[_meaning(wanted, found)]
        if wanted.number is not None:  # the second largest
            found = sorted(found, key=measure, reverse=True)
        else:
            most = max(measure(f) for f in found)
            found = [f for f in found if measure(f) >= most - TIE_PX]
    if wanted.number is not None:
        at = wanted.number - 1 if wanted.number > 0 else len(found) + wanted.number
        found = found[at : at + 1] if 0 <= at < len(found) else []
    return found


def _rise(found: _Found) -> float:
    return 0.0 if found.part is None else found.part.rise


_MEASURES: Mapping[str, Callable[[_Found], float]] = {
    "most": _rise,
    "least": lambda f: -_rise(f),
    "tallest": lambda f: f.box.height,
    "largest": lambda f: f.size,
    "smallest": lambda f: -f.size,
    "highest": lambda f: -f.box.y0,
    "lowest": lambda f: f.box.y1,
    "leftmost": lambda f: -f.box.x0,
    "rightmost": lambda f: f.box.x1,
    "topmost": lambda f: -f.box.y0,
    "bottommost": lambda f: f.box.y1,
}


def _meaning(wanted: Wanted, found: Sequence[_Found]) -> str:
    """The highest of bars that stand on one line is the longest; where some hang from it, the one
    of the greatest value; of dots, the one that reaches furthest up. Raises ToolError where bars
    hang and length and value may be meant.
    """
    asked = wanted.superlative or "largest"
    if wanted.noun == "wedge":
        of_slices = {"tallest": "largest", "highest": "largest", "lowest": "smallest"}
        return of_slices.get(asked, asked)
    if wanted.noun != "bar" or asked not in ("tallest", "highest", "lowest", "largest", "smallest"):
        return asked
    hanging = [f for f in found if _rise(f) < 0]
    if hanging:
        if asked in ("highest", "lowest") or (asked == "tallest" and len(hanging) < len(found)):
            return "least" if asked == "lowest" else "most"
        raise ToolError(
            f"{len(hanging)} of these bars go from their base to the negative side: ask for the "
            f"'highest' or the 'lowest' bar (by value), not for the {wanted.words[:40]!r}."
        )
    feet = [f.box.y1 for f in found]
    stand = max(feet) - min(feet) <= 2 * TIE_PX + 2
    if asked == "tallest":
        return "largest"
    if asked in ("highest", "lowest") and (stand or _lie(found)):
        return "largest" if asked == "highest" else "smallest"
    return asked


def _lie(bars: Sequence[_Found]) -> bool:
    """Whether bars grow from left to right: their left ends are more alike than their feet."""
    if len(bars) == 1:
        return bars[0].box.width > bars[0].box.height
    left, feet = [b.box.x0 for b in bars], [b.box.y1 for b in bars]
    return max(left) - min(left) < max(feet) - min(feet)


# --- print ----------------------------------------------------------------------------------------


def _print(wanted: Wanted, sight: _Sight) -> list[_Found]:
    if wanted.superlative in ("largest", "smallest", "highest", "lowest", "tallest"):
        raise ToolError(f"Of print neither size nor value is compared. {known_words()}")
    lines = sight.lines
    meant = ROLES[wanted.noun]
    roles = sight.roles() if meant is not None else None
    found = []
    for n, line in enumerate(lines):
        if roles is not None and meant is not None and roles[n] not in meant:
            continue
        box, fits = line.box, 1.0
        if wanted.name is not None:
            match = _fit(wanted.name, line)
            if match is None:
                continue
            box, fits = match
        score = fits * (1.0 if line.score is None else line.score)
        score *= 1.0 if meant is None else 0.95
        found.append(_Found(box, box.center, score, box.area, (box.y0, box.x0)))
    if wanted.color is not None:
        raise ToolError(f"The colour of print is not known. {known_words()}")
    return _best_fits(found) if wanted.name is not None else found


def _best_fits(found: Sequence[_Found]) -> list[_Found]:
    """Exact print where there is any; a slip is forgiven only where nothing is exact."""
    best = max((f.score for f in found), default=0.0)
    return [f for f in found if f.score >= 0.8 * best]


def _fit(name: str, line: Printed) -> tuple[Box, float] | None:
    """Where in a line of print a name stands, and how well it fits."""
    asked, read = _plain(name), _plain(line.text)
    if not asked or not read:
        return None
    if asked == read:
        return line.box, 1.0
    words = re.split(r"\s+", line.text.strip())
    count = len(re.split(r"\s+", name.strip()))
    for at in range(len(words) - count + 1):
        if len(words) > count and _plain(" ".join(words[at : at + count])) == asked:
            before = len(" ".join(words[:at])) + (at > 0)
            return _piece(line, before, len(" ".join(words[at : at + count]))), 0.9
    if look_alike(asked, read):
        return line.box, 0.7
    return None


def _piece(line: Printed, start: int, length: int) -> Box:
    """Letters are taken to be equally wide, along the longer side."""
    box, total = line.box, max(1, len(line.text.strip()))
    if box.height > 1.6 * box.width:
        return box
    x0 = box.x0 + box.width * start / total
    x1 = min(box.x1, box.x0 + box.width * (start + length) / total)
    return Box(x0, box.y0, x1, box.y1) if x1 > x0 else box


def _plain(text: str) -> str:
    """What is compared: letters and digits; of numbers their value, so that 1.5 is not 15."""
    if (value := number_of(text)) is not None:
        return f"{value:g}" + ("%" if "%" in text else "")
    return re.sub(r"[^0-9a-z%]", "", text.lower()) or text.strip()


# --- things by the print beside them --------------------------------------------------------------


def _named(name: str, things: list[_Found], sight: _Sight) -> list[_Found]:
    """Things that a name belongs to: by the legend, by the print under or beside them, or plots by
    their titles.
    """
    fits = [(n, fit) for n, line in enumerate(sight.lines) if (fit := _fit(name, line)) is not None]
    if not fits:
        return []
    best = max(score for _, (_, score) in fits)
    roles = sight.roles()
    found: dict[int, _Found] = {}
    for n, (box, score) in fits:
        if score < best:
            continue
        owners = _by_legend(box, things, sight) if roles[n] == "legend" else []
        if roles[n] != "legend":
            owners = [t for t in things if _owns(t, sight.lines[n].box, sight.lines, things)]
        if roles[n] in ("title", "axis"):  # they name plots, and nothing in them
            owners = [t for t in owners if t.part is not None and t.part.kind == "plot"]
        doubt = score * (sight.lines[n].score or 1.0)
        for thing in owners:
            found[id(thing)] = thing._replace(score=thing.score * doubt)
    return list(found.values())


def _by_legend(name: Box, things: Sequence[_Found], sight: _Sight) -> list[_Found]:
    """Things of the colour on the left of a name in a legend, in the legend's own plot."""
    color = _swatch_color(sight.picture, name)
    if color is None:
        return []
    plots = [p.box for p in sight.parts if p.kind == "plot" and _contains(p.box, name.center)]
    plot = min(plots, key=lambda b: b.area) if plots else None
    return [
        t
        for t in things
        if t.part is not None
        and t.part.color is not None
        and max(abs(a - b) for a, b in zip(t.part.color, color, strict=True)) <= 40
        and (plot is None or _contains(plot.expand(3), t.box.center))
    ]


def _swatch_color(picture: Image.Image, name: Box) -> tuple[int, int, int] | None:
    """The strongest colour at the height of a name and up to three heights left of it."""
    middle = round(name.center.y)
    size = name.height
    x0, x1 = max(0, round(name.x0 - 2.6 * size)), max(0, round(name.x0 - 0.1 * size))
    reach = max(1, round(0.12 * size))
    if x1 - x0 < 3 or not 0 <= middle < picture.height:
        return None
    strip = picture.crop((x0, max(0, middle - reach), x1, min(picture.height, middle + reach + 1)))
    counted = strip.getcolors(strip.width * strip.height) or []
    ground = picture.getpixel((x0, max(0, middle - round(size) // 2)))
    away = [
        (count, color)
        for count, color in counted
        if max(abs(a - b) for a, b in zip(color, ground, strict=True)) > 60  # type: ignore[arg-type]
    ]
    return max(away)[1] if away else None  # type: ignore[return-value]


def _owns(thing: _Found, name: Box, lines: Sequence[Printed], things: Sequence[_Found]) -> bool:
    part = thing.part
    if part is None:
        return False
    if part.kind == "bar":
        return _stands_at(part.box, name, lines, things)
    if part.kind == "wedge":
        return part is _wedge_at(name, things)
    if part.kind == "plot":
        nearest = min(
            things,
            key=lambda t: math.hypot(t.box.center.x - name.center.x, t.box.y0 - name.y1),
        )
        return thing is nearest and name.center.y < thing.box.center.y
    return _contains(part.box.expand(name.height), name.center)


def _stands_at(bar: Box, name: Box, lines: Sequence[Printed], things: Sequence[_Found]) -> bool:
    """Whether a name stands right under a bar and no other name there is nearer to it; or left of
    a lying one.
    """
    size = min(name.height, name.width)
    if -size < name.y0 - bar.y1 < 3 * size:
        level = [
            line.box for line in lines if abs(line.box.center.y - name.center.y) < 0.5 * name.height
        ]
        nearest = min(level, key=lambda b: abs(b.center.x - bar.center.x))
        off = abs(name.center.x - bar.center.x)
        return nearest == name and off < 1.2 * bar.width + 0.5 * name.width
    if _lie(things) and -size < bar.x0 - name.x1 < 3 * size:
        return bar.y0 - 0.5 * bar.height < name.center.y < bar.y1 + 0.5 * bar.height
    return False


def _wedge_at(name: Box, things: Sequence[_Found]) -> Part | None:
    """The wedge at whose outside, or in which, a name stands."""
    wedges = [t.part for t in things if t.part is not None and t.part.kind == "wedge"]
    groups: dict[int, list[Part]] = {}
    for wedge in wedges:
        groups.setdefault(wedge.group, []).append(wedge)
    for group in groups.values():
        x0, x1 = min(w.box.x0 for w in group), max(w.box.x1 for w in group)
        y0, y1 = min(w.box.y0 for w in group), max(w.box.y1 for w in group)
        x, y, radius = (x0 + x1) / 2, (y0 + y1) / 2, max(x1 - x0, y1 - y0) / 2
        # the corner of the name that is nearest to the disc is what stands at the wedge
        near_x, near_y = min(max(x, name.x0), name.x1), min(max(y, name.y0), name.y1)
        if math.hypot(near_x - x, near_y - y) > 1.35 * radius:
            continue
        at = (math.degrees(math.atan2(near_y - y, near_x - x)) + 90) % 360
        for wedge in group:
            off = abs((at - wedge.place + 180) % 360 - 180)
            if off <= wedge.size / 2:
                return wedge
    return None


def _contains(box: Box, point: Point) -> bool:
    return box.x0 <= point.x <= box.x1 and box.y0 <= point.y <= box.y1


# --- back ends ------------------------------------------------------------------------------------


class _Eyes:
    """What both back ends see with."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._sights = Remembered[_Sight](most=2)

    def meant(self, picture: Image.Image, request: str) -> list[tuple[str, _Found]]:
        """With the words of the clause that means it, the surest first, each thing once."""
        things = parse(request)
        sight = self._sights.of(
            picture.convert("RGB"), lambda picture: _Sight(picture, self._reader.read)
        )
        found: dict[Box, tuple[str, _Found]] = {}
        for wanted in things:
            for meant in _meant(wanted, sight):
                if meant.box not in found or found[meant.box][1].score < meant.score:
                    found[meant.box] = (wanted.words, meant)
        return sorted(found.values(), key=lambda f: -f[1].score)


@lru_cache(maxsize=4)
def _eyes(reader: Reader) -> _Eyes:
    """The same for those that share a reader."""
    return _Eyes(reader)


class VocabularyDetector(Detector):
    """Parts of charts by colour, kind, size, place and print."""

    name = "vocabulary"
    packages = ("cv2",)
    needs = "nothing to download; a vocabulary of charts, and the reader where print is asked for"
    reads = True

    def __init__(self, choice: BackendChoice, *, reader: Reader) -> None:
        super().__init__(choice)
        self._eyes = _eyes(reader)

    def detect(self, picture: Image.Image, query: str) -> list[Detected]:
        return [
            Detected(words, found.box, round(found.score, 3))
            for words, found in self._eyes.meant(picture, query)
        ]


class VocabularyPointer(Pointer):
    """As the detector, with a place on each thing."""

    name = "vocabulary-points"
    packages = VocabularyDetector.packages
    needs = VocabularyDetector.needs
    reads = True

    def __init__(self, choice: BackendChoice, *, reader: Reader) -> None:
        super().__init__(choice)
        self._eyes = _eyes(reader)

    def point(self, picture: Image.Image, description: str) -> list[Pointed]:
        return [
            Pointed(words, found.point, round(found.score, 3))
            for words, found in self._eyes.meant(picture, description)
        ]
