"""No protocol at all: the whole turn is the answer. For models that were never taught one.

Invariant: parse never raises; every turn is an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from saccade.dialects.scan import FrameOf, Style, replace_surrogates
from saccade.types import Answer, Message, Parsed, Text, ToolResult, ToolSpec

__all__ = ["Plain"]


@dataclass(frozen=True, slots=True)
class Plain:
    """Reads a turn as its answer, less white space at its ends."""

    style: Style = "schema"
    name: ClassVar[str] = "plain"
    can_call: ClassVar[bool] = False

    def parse(self, text: str) -> Parsed:
        return Parsed(answer=Answer(replace_surrogates(text).strip()))

    def render(self, parsed: Parsed) -> str:
        """The answer. Raises ValueError for thoughts and calls, which this dialect has no words
        for.
        """
        if parsed.thought or parsed.calls or parsed.answer is None:
            raise ValueError("The plain dialect can only write an answer: no thought, no calls.")
        if self.parse(parsed.answer.text) != parsed:
            raise ValueError("The answer has white space at its ends or half surrogate pairs.")
        return parsed.answer.text

    def instructions(self, specs: Sequence[ToolSpec]) -> str:
        return ""

    def observation(
        self, results: Sequence[ToolResult], *, frame: FrameOf, note: str = ""
    ) -> Message:
        return Message("tool", (Text(note),))
