"""How boxes stand in prose, family by family: reading, writing, taking away and putting in others.

    inline      red circle [212, 40, 318, 166]
    json        {"bbox_2d": [212, 40, 318, 166], "label": "red circle"}     Qwen2.5-VL, Qwen3-VL
    qwen2       <|object_ref_start|>red circle<|object_ref_end|>
                <|box_start|>(212,40),(318,166)<|box_end|>              on the same line, Qwen2-VL
    internvl    <ref>red circle</ref><box>[[212, 40, 318, 166]]</box>

A renderer declares the notation of its family beside its frame; nothing is guessed from what stands
there. Four numbers in a row are no box: only what has the whole form is. What has the beginning of
the form, and can't be read, is a box that failed, so that it can be counted.

Invariant: reading never raises and takes time linear in the text; find(write(box, phrase)) is that
box with that phrase, for phrases that `is_phrase` accepts.

Left out on purpose: frames and pictures (`saccade.grounding`), and points.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from saccade.dialects.scan import read_object, replace_surrogates, write_json
from saccade.errors import RecipeError

__all__ = ["NOTATIONS", "BoxWritten", "Notation", "notation_named"]

LONGEST = 120
"""Characters between the brackets of a box: four numbers and what may stand between them."""
_NUMBER = re.compile(r"[-+]?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9}|inf|nan)", re.IGNORECASE)
_CLAUSE = re.compile(r"[.,;:!?](?=\s)|[\n\[\](){}<>|\"]")
"""What a phrase of prose can't reach across."""


@dataclass(frozen=True, slots=True)
class BoxWritten:
    """A box as it stands in a text."""

    values: tuple[float, float, float, float] | None
    """In the model's frame, in the order written; None where the form can't be read."""
    phrase: str
    start: int
    stop: int
    """What of the text is the box, with its phrase where the form holds it; half open."""
    image: str = ""
    """The name of the picture, where one is said."""
    numbers: tuple[int, int] = field(default=(0, 0), compare=False)
    """Where its four numbers stand in the text, with what is between them; half open."""
    is_next: bool = field(default=False, compare=False)
    """Whether it shares the phrase that the text has before it with the box before."""


class Notation(ABC):
    """One way to write a box into prose."""

    name: ClassVar[str]
    specials: ClassVar[tuple[str, ...]] = ()
    """Special tokens that the model must be free to write."""
    example: ClassVar[str]

    @abstractmethod
    def find(self, text: str) -> tuple[BoxWritten, ...]:
        """Boxes in order. Never raises."""

    @abstractmethod
    def write(self, values: Sequence[float], phrase: str) -> str:
        """A phrase with its box; numbers as they are."""

    def bare(self, written: BoxWritten) -> str:
        """What is left of its part of the text without the numbers: the phrase, once."""
        return "" if written.is_next else written.phrase

    def is_phrase(self, phrase: str) -> bool:
        """Whether the phrase, written with a box, is read back."""
        found = self.find(self.write((1, 2, 3, 4), phrase))
        return [(b.values, b.phrase) for b in found] == [((1.0, 2.0, 3.0, 4.0), phrase)]

    def rewritten(self, text: str, boxes: Sequence[Sequence[float] | None]) -> str:
        """The text with these numbers in the place of those of its boxes, in order, and nothing
        else changed. None takes a box away and leaves its phrase, no numbers leave it as it stands.
        Raises ValueError for another number of boxes, for numbers where none can be read, and where
        a box is taken out of a list that others stay in.
        """
        found = self.find(text)
        if len(found) != len(boxes):
            raise ValueError(f"The text has {len(found)} boxes, got {len(boxes)} to put there.")
        pieces, at = [], 0
        for number, (written, values) in enumerate(zip(found, boxes, strict=True)):
            if written.is_next and (values is None) != (boxes[number - 1] is None):
                raise ValueError("Boxes of one list are taken away together, or none of them.")
            pieces.append(text[at : written.start])
            pieces.append(self.bare(written) if values is None else _put(text, written, values))
            at = written.stop
        return "".join([*pieces, text[at:]])

    def dotted(self, text: str, tokens_of: Callable[[str], int]) -> str:
        """The text with dots in the place of its boxes, as many as make up for the tokens of each:
        as long as it was, and says nothing.
        """
        for box in reversed(self.find(text)):
            wanted, dotted = tokens_of(text[box.start : box.stop]), self.bare(box)
            while tokens_of(dotted) < wanted:
                dotted += " ."
            text = text[: box.start] + dotted + text[box.stop :]
        return text


# --- numbers --------------------------------------------------------------------------------------


def _four(inside: str) -> tuple[float, float, float, float] | None:
    """The four numbers between brackets; None where there are not exactly four."""
    items = [item.strip() for item in inside.split(",")]
    if len(items) != 4 or not all(_NUMBER.fullmatch(item) for item in items):
        return None
    x0, y0, x1, y1 = (float(item) for item in items)
    return (x0, y0, x1, y1)


def _four_of(value: object) -> tuple[float, float, float, float] | None:
    """The same of a JSON value."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    if any(isinstance(v, bool) or not isinstance(v, int | float) for v in value):
        return None
    try:
        x0, y0, x1, y1 = (float(v) for v in value)
    except OverflowError:
        return None
    return (x0, y0, x1, y1)


_ANY_NUMBER = re.compile(r"[-+]?(?:inf|nan|(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", re.IGNORECASE)


def _put(text: str, written: BoxWritten, values: Sequence[float]) -> str:
    """A box's part of the text with other numbers, each where the old one stands; one that is equal
    stays as it was written.
    """
    if not values:
        return text[written.start : written.stop]
    first, last = written.numbers
    old = [*_ANY_NUMBER.finditer(text, first, last)]
    if written.values is None or len(old) != 4:
        raise ValueError(f"No four numbers stand in {text[written.start : written.stop]!r}.")
    pieces, at = [], written.start
    for found, value in zip(old, values, strict=True):
        same = float(found[0]) == value
        pieces += [text[at : found.start()], found[0] if same else _shown(value)]
        at = found.end()
    return "".join([*pieces, text[at : written.stop]])


def _shown(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _listed(values: Sequence[float], between: str = ", ") -> str:
    return between.join(_shown(v) for v in values)


# --- the notations --------------------------------------------------------------------------------


class Inline(Notation):
    """The numbers in brackets behind the words, as a person would note them."""

    name = "inline"
    example = "red circle [212, 40, 318, 166]"

    def find(self, text: str) -> tuple[BoxWritten, ...]:
        found: list[BoxWritten] = []
        before, at = 0, 0
        while (start := text.find("[", at)) >= 0:
            at = start + 1
            stop = text.find("]", at, at + LONGEST)
            inside = text[at:stop] if stop >= 0 else ""
            if stop < 0 or "[" in inside or not _wants_to_be_box(inside):
                continue
            phrase = _phrase_before(text[max(before, start - LONGEST) : start])
            found.append(
                BoxWritten(_four(inside), phrase, start, stop + 1, numbers=(start + 1, stop))
            )
            before = at = stop + 1
        return tuple(found)

    def write(self, values: Sequence[float], phrase: str) -> str:
        box = f"[{_listed(values)}]"
        return f"{phrase} {box}" if phrase else box

    def bare(self, written: BoxWritten) -> str:
        return ""  # the phrase stands before its part of the text


def _wants_to_be_box(inside: str) -> bool:
    items = [item.strip() for item in inside.split(",")]
    return len(items) > 1 and any(_NUMBER.fullmatch(item) for item in items)


def _phrase_before(text: str) -> str:
    """The clause that ends the text."""
    last = 0
    for mark in _CLAUSE.finditer(text.rstrip(" \t")):
        last = mark.end()
    return text[last:].strip(" \t\n.,;:!?")


class Json(Notation):
    """Objects with `bbox_2d` and `label`, as Qwen2.5-VL and Qwen3-VL were taught; `image` names
    another picture than the first. One object may hold several, key by key, as GRIT's example does.
    The key without an object that can be read is a box that failed, and so is a list of lists.
    """

    name = "json"
    example = '{"bbox_2d": [212, 40, 318, 166], "label": "red circle"}'
    key = "bbox_2d"
    _start = re.compile(
        r'\{(?=\s*")|(?P<bare>(?P<brace>\{\s*)?["\']?\bbbox_2d["\']?\s*[:=]\s*[\[(\d])'
    )
    _list_end = re.compile(rf"[^\[\](){{}}\n]{{0,{LONGEST}}}[\])]")
    _brace_end = re.compile(rf"[^\[\](){{}}\n]{{0,{LONGEST}}}\}}")

    def find(self, text: str) -> tuple[BoxWritten, ...]:
        found: list[BoxWritten] = []
        at = 0
        while opened := self._start.search(text, at):
            start = opened.start()
            if opened["bare"]:
                at = self._bare_end(text, opened)
                found.append(BoxWritten(None, "", start, at))
                continue
            value, stop, _ = read_object(text, start)
            at = max(stop, start + 1)
            if f'"{self.key}"' not in text[start:at]:
                continue
            if value is None:
                found.append(BoxWritten(None, "", start, at))
            elif self.key not in value:  # boxes inside of something else
                at = start + 1
            else:
                found += self._boxes_of(text, start, at)
        return tuple(found)

    def _bare_end(self, text: str, opened: re.Match[str]) -> int:
        """Where something ends that has the key and is no JSON object, as far as it can be told."""
        closed = self._list_end.match(text, opened.end())
        at = closed.end() if closed else opened.end()
        shut = self._brace_end.match(text, at) if opened["brace"] else None
        return shut.end() if shut else at

    def _boxes_of(self, text: str, start: int, stop: int) -> list[BoxWritten]:
        """The boxes of an object that can be read; there is at least one."""
        made = []
        for said, first, last, numbers in self._said(text, start):
            label, image = said.get("label", ""), said.get("image", "")
            made.append(
                BoxWritten(
                    _four_of(said[self.key]),
                    replace_surrogates(label) if isinstance(label, str) else "",
                    first,
                    last,
                    replace_surrogates(image) if isinstance(image, str) else "",
                    numbers,
                )
            )
        return [*made[:-1], replace(made[-1], stop=stop)]

    def _said(
        self, text: str, start: int
    ) -> Iterator[tuple[dict[str, object], int, int, tuple[int, int]]]:
        """What an object says of each of its boxes, from where to where, and where its numbers are.
        A key that the last box has already begins the next one, so that each label stays with the
        box beside it.
        """
        said: dict[str, object] = {}
        begun = end = start
        numbers = (0, 0)
        for key, value, first, (begins, last) in _pairs(text, start):
            if key in (self.key, "label", "image"):
                if key in said:
                    if self.key in said:
                        yield said, begun, end, numbers
                        begun = first
                    said = {}
                said[key] = value
                if key == self.key:
                    numbers = (begins, last)
            end = last
        if self.key in said:
            yield said, begun, end, numbers

    def write(self, values: Sequence[float], phrase: str) -> str:
        label = f', "label": {write_json(phrase)}' if phrase else ""
        return f'{{"{self.key}": [{_listed(values)}]{label}}}'


_DECODER = json.JSONDecoder()
_BETWEEN = re.compile(r"[\s,:]*")


def _pairs(text: str, start: int) -> Iterator[tuple[str, object, int, tuple[int, int]]]:
    """Keys and values of the object at `start`, equal keys too, each with where it begins and where
    its value stands. The object is one that `read_object` could read.
    """
    found = _BETWEEN.match(text, start + 1)
    while found and text[found.end()] != "}":
        first = found.end()
        key, last = _DECODER.raw_decode(text, first)
        after = _BETWEEN.match(text, last)
        assert after is not None
        value, last = _DECODER.raw_decode(text, after.end())
        yield replace_surrogates(key), value, first, (after.end(), last)
        found = _BETWEEN.match(text, last)


class _Tagged(Notation):
    """A phrase and its boxes, each between tags."""

    ref: ClassVar[tuple[str, str]]
    box: ClassVar[tuple[str, str]]

    def find(self, text: str) -> tuple[BoxWritten, ...]:
        found: list[BoxWritten] = []
        at = 0
        while (opened := text.find(self.box[0], at)) >= 0:
            inner = opened + len(self.box[0])
            closed = text.find(self.box[1], inner, self._next(text, inner))
            if closed < 0:
                found.append(BoxWritten(None, "", opened, inner))
                at = inner
                continue
            start, phrase = self._phrase(text, at, opened)
            at = closed + len(self.box[1])
            pieces = list(self._pieces(text[inner:closed])) or [(None, 0, 0)]
            for number, (values, first, last) in enumerate(pieces):
                stop = at if number + 1 == len(pieces) else inner + last
                numbers = (inner + first, inner + last)
                found.append(
                    BoxWritten(values, phrase, start, stop, numbers=numbers, is_next=number > 0)
                )
                start = stop
        return tuple(found)

    def _next(self, text: str, at: int) -> int:
        """Where the next box begins, or the end: what lies between is looked at once."""
        following = text.find(self.box[0], at)
        return following if following >= 0 else len(text)

    def _phrase(self, text: str, at: int, opened: int) -> tuple[int, str]:
        """Where the phrase before the box begins, white space between them, and what it is."""
        before = text[at:opened].rstrip()
        if before.endswith(self.ref[1]):
            start = before.rfind(self.ref[0])
            if start >= 0:
                return at + start, before[start + len(self.ref[0]) : -len(self.ref[1])].strip()
        return opened, ""

    @abstractmethod
    def _pieces(
        self, inside: str
    ) -> Iterator[tuple[tuple[float, float, float, float] | None, int, int]]:
        """The boxes between the tags, each with where it begins and ends."""

    @abstractmethod
    def _numbers(self, values: Sequence[float]) -> str: ...

    def write(self, values: Sequence[float], phrase: str) -> str:
        box = f"{self.box[0]}{self._numbers(values)}{self.box[1]}"
        return f"{self.ref[0]}{phrase}{self.ref[1]}{box}" if phrase else box


class Qwen2(_Tagged):
    """Two corners between special tokens, as Qwen2-VL was taught."""

    name = "qwen2"
    ref = ("<|object_ref_start|>", "<|object_ref_end|>")
    box = ("<|box_start|>", "<|box_end|>")
    specials = (*ref, *box)
    example = (
        "<|object_ref_start|>red circle<|object_ref_end|><|box_start|>(212,40),(318,166)<|box_end|>"
    )
    _corners = re.compile(r"\s*\(([^()]*)\)\s*,\s*\(([^()]*)\)\s*")

    def _pieces(
        self, inside: str
    ) -> Iterator[tuple[tuple[float, float, float, float] | None, int, int]]:
        corners = self._corners.fullmatch(inside)
        yield (_four(f"{corners[1]},{corners[2]}") if corners else None), 0, len(inside)

    def _numbers(self, values: Sequence[float]) -> str:
        x0, y0, x1, y1 = (_shown(v) for v in values)
        return f"({x0},{y0}),({x1},{y1})"


class InternVL(_Tagged):
    """A list of boxes between tags, as InternVL was taught."""

    name = "internvl"
    ref = ("<ref>", "</ref>")
    box = ("<box>", "</box>")
    specials = (*ref, *box)
    example = "<ref>red circle</ref><box>[[212, 40, 318, 166]]</box>"
    _list = re.compile(r"\[([^\[\]]*)\]")
    _shell = re.compile(r"\s*\[\s*\[[^\[\]]*\](?:\s*,\s*\[[^\[\]]*\])*+\s*\]\s*")

    def _pieces(
        self, inside: str
    ) -> Iterator[tuple[tuple[float, float, float, float] | None, int, int]]:
        if self._shell.fullmatch(inside):
            for one in self._list.finditer(inside):
                yield _four(one[1]), one.start(), one.end()

    def _numbers(self, values: Sequence[float]) -> str:
        return f"[[{_listed(values)}]]"


NOTATIONS: dict[str, Notation] = {kind.name: kind() for kind in (Inline, Json, Qwen2, InternVL)}


def notation_named(name: str) -> Notation:
    """Raises RecipeError where there is none of that name."""
    if name not in NOTATIONS:
        raise RecipeError(
            f"No box notation named {name!r}. Available: {', '.join(sorted(NOTATIONS))}."
        )
    return NOTATIONS[name]
