"""Reasoning with boxes in it, as GRIT writes it:

    <think> the red circle [212, 40, 318, 166] and the blue square [20, 300, 90, 360] </think>
    <rethink> the circle is right of the square </rethink>
    <answer> false </answer>

A turn is its answer where there is exactly one whole `<answer>`: two answers, or one that is never
closed, are none. Text outside of tags is dropped. How boxes look is the model family's business;
they are read from the thoughts by what drives the episode (`saccade.grounding`).

Invariant: parse never raises, and parse(render(x)) == x for every x that render accepts: no calls,
one thought, an answer, no tags and no white space at the ends of either.

Left out on purpose: tools. Boxes in the thoughts of other dialects count in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from saccade.dialects.notations import NOTATIONS, Notation
from saccade.dialects.scan import FrameOf, Style, check_readable, replace_surrogates
from saccade.tags import sections
from saccade.types import Answer, Message, Parsed, Text, ToolResult, ToolSpec

__all__ = ["SECTIONS", "Grounded"]

SECTIONS = ("think", "rethink", "answer")


@dataclass(frozen=True, slots=True)
class Grounded:
    """Reads and writes think, rethink, answer."""

    style: Style = "schema"
    notation: Notation = NOTATIONS["json"]
    """How the model writes boxes; shown to it in the instructions."""
    name: ClassVar[str] = "grounded"
    can_call: ClassVar[bool] = False

    def parse(self, text: str) -> Parsed:
        """One turn of the model. Never raises; time linear in the length."""
        found = sections(replace_surrogates(text), SECTIONS)
        thought = "\n".join(t for name, t in found.closed if name == "think" and t)
        rethought = "\n".join(t for name, t in found.closed if name == "rethink" and t)
        answer = found.only("answer")
        return Parsed(
            thought, answer=None if answer is None else Answer(answer), rethought=rethought
        )

    def render(self, parsed: Parsed) -> str:
        """The canonical text of a turn. Raises ValueError where it would not parse to the same."""
        if parsed.calls:
            raise ValueError("The grounded dialect has no words for calls.")
        answer = None if parsed.answer is None else parsed.answer.text
        texts = zip(SECTIONS, (parsed.thought, parsed.rethought, answer), strict=True)
        text = " ".join(f"<{name}> {said} </{name}>" for name, said in texts if said is not None)
        check_readable(parsed, self.parse(text))
        return text

    def instructions(self, specs: Sequence[ToolSpec]) -> str:
        """The form of a turn; nothing in silent style."""
        if self.style == "silent":
            return ""
        return (
            "First reason between <think> and </think>; wherever a thing in the picture matters, "
            f"name it with its box, like {self.notation.example}. Then, between <rethink> and "
            "</rethink>, think again about what the boxes show. Last give the answer alone between "
            "<answer> and </answer>."
        )

    def observation(
        self, results: Sequence[ToolResult], *, frame: FrameOf, note: str = ""
    ) -> Message:
        """The note alone: there are no calls."""
        return Message("tool", (Text(note),))
