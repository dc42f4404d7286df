"""Looking by pointing: a line that ends in a box is a look there; a turn without one answers.

    bar 4 [810, 200, 870, 260]
    bar 3 [600, 320, 650, 380]

asks for a look at both boxes of img_0, and

    83, 68
    15

answers 15. For models that can point and know no JSON, such as the tiny one: what they learned as
an answer becomes a call, or stays an answer, as it stands. Another tool that takes a box can stand
behind the same words; further ones are called by their names, as in

    ocr: bar 4 [810, 200, 870, 260]

Invariant: parse never raises, and parse(render(x)) == x for every x that render accepts: calls of
its tools on img_0 with whole numbers and one line of thought each, or an answer of one line.

Left out on purpose: other arguments, and other images than the first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from saccade.dialects.scan import FrameOf, Style, merge_texts, part_lines, replace_surrogates
from saccade.types import (
    Answer,
    BadCall,
    BoxFound,
    ImageShown,
    Message,
    Parsed,
    Part,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
)

__all__ = ["Pointing"]

_LOOK = re.compile(r" ?\[(\d{1,4}), (\d{1,4}), (\d{1,4}), (\d{1,4})\]$")
REQUEST = "Read."
"""Stands behind each picture, as behind the views of which a base model was asked to read."""
_IMAGE = "img_0"


@dataclass(frozen=True, slots=True)
class Pointing:
    """Reads and writes boxes at the ends of lines."""

    style: Style = "schema"
    tool: str = "look"
    """What a box calls: the first of the tools on offer."""
    named: tuple[str, ...] = ()
    """Tools that a box calls where their name and a colon begin the line."""
    name: ClassVar[str] = "pointing"
    can_call: ClassVar[bool] = True

    def parse(self, text: str) -> Parsed:
        """One turn of the model. Never raises; time linear in the length."""
        said: list[str] = []
        calls: list[ToolCall] = []
        for line in replace_surrogates(text).split("\n"):
            found = _LOOK.search(line[-32:])
            if found:
                box = [int(v) for v in found.groups()]
                name = f"call_{len(calls)}"
                line = line[: len(line) - len(found[0])]
                tool, line = self._called(line)
                calls.append(ToolCall(name, tool, {"image": _IMAGE, "box": box}))
            if line.strip():
                said.append(line.strip())
        if calls or not said:
            return Parsed("\n".join(said), tuple(calls))
        return Parsed("\n".join(said[:-1]), answer=Answer(said[-1]))

    def _called(self, line: str) -> tuple[str, str]:
        """The tool that a line calls, and the rest of it."""
        head, colon, rest = line.partition(":")
        if colon and head.strip() in self.named:
            return head.strip(), rest
        return self.tool, line

    def render(self, parsed: Parsed) -> str:
        """The canonical text of a turn. Raises ValueError where it would not parse to the same."""
        lines = parsed.thought.split("\n") if parsed.thought else []
        if parsed.calls:
            looks = [(c, box) for c in parsed.calls if (box := _box(c)) is not None]
            if len(looks) != len(lines):
                raise ValueError(f"{len(looks)} looks need as many lines, got {len(lines)}.")
            lines = [
                f"{self._prefix(call)}{said} [{', '.join(str(v) for v in box)}]"
                for said, (call, box) in zip(lines, looks, strict=True)
            ]
        if parsed.answer is not None:
            lines.append(parsed.answer.text)
        text = "\n".join(lines)
        if self.parse(text) != parsed:
            raise ValueError(f"The pointing dialect has no words for this turn: {text[:80]!r}.")
        return text

    def _prefix(self, call: ToolCall | BadCall) -> str:
        is_named = isinstance(call, ToolCall) and call.name in self.named
        return f"{call.name}: " if is_named and isinstance(call, ToolCall) else ""

    def instructions(self, specs: Sequence[ToolSpec]) -> str:
        """How to look and answer; nothing in silent style."""
        if self.style == "silent" or not specs:
            return ""
        return (
            "To look at a part of the picture, write a line with what it is and its box, like "
            "label [x0, y0, x1, y1]. To answer, write no box; the last line is the answer."
            + (
                f" Write {' or '.join(f'{n}:' for n in self.named)} before the words to use that."
                if self.named
                else ""
            )
        )

    def observation(
        self, results: Sequence[ToolResult], *, frame: FrameOf, note: str = ""
    ) -> Message:
        """The pictures in the order of the looks, then what was said, a line each; of what was
        found, the words alone.
        """
        parts: list[Part] = []
        for result in results:
            words = [p.label for p in result.parts if isinstance(p, BoxFound) and p.label]
            if words:
                parts.append(Text(" ".join(words) + "\n"))
                continue
            pictures = [p for p in result.parts if isinstance(p, ImageShown)]
            for picture in pictures:
                parts += (picture, Text(REQUEST))
            if not pictures:
                for line in part_lines(result, frame):
                    parts += (*line, Text("\n"))
        if note:
            parts.append(Text(note))
        return Message("tool", merge_texts(parts))


def _box(call: ToolCall | BadCall) -> list[int] | None:
    """The four numbers of a look; None for what this dialect can't write."""
    box = None if isinstance(call, BadCall) else call.arguments.get("box")
    if not isinstance(box, list) or len(box) != 4 or any(type(v) is not int for v in box):
        return None
    return box
