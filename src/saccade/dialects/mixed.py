"""Both ways of looking: a turn with tags is read as `grounded`, any other as `pointing`.

For a model that is trained on both at once, such as the tiny one on charts and on shapes: on a
chart it points and is shown what is there, of shapes it thinks with boxes.

Invariant: parse never raises, and parse(render(x)) == x for every x that render accepts: what
`grounded` writes where there is a second thought, else what `pointing` does.

Left out on purpose: calls and boxes in one turn; models that read schemas have thoughts and calls
in `hermes`, where boxes in thoughts count too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from saccade.dialects.grounded import SECTIONS, Grounded
from saccade.dialects.notations import NOTATIONS, Notation
from saccade.dialects.pointing import Pointing
from saccade.dialects.scan import FrameOf, Style
from saccade.types import Message, Parsed, ToolResult, ToolSpec

__all__ = ["Mixed"]


@dataclass(frozen=True, slots=True)
class Mixed:
    """Reads and writes either of the two."""

    style: Style = "schema"
    notation: Notation = NOTATIONS["inline"]
    """How boxes stand in thoughts."""
    tool: str = "look"
    """What a box at the end of a line calls."""
    named: tuple[str, ...] = ()
    """Tools that are called by their names."""
    name: ClassVar[str] = "mixed"
    can_call: ClassVar[bool] = True

    @property
    def _grounded(self) -> Grounded:
        return Grounded(self.style, self.notation)

    @property
    def _pointing(self) -> Pointing:
        return Pointing(self.style, self.tool, self.named)

    def parse(self, text: str) -> Parsed:
        """One turn of the model. Never raises; time linear in the length."""
        tags = (f"<{end}{name}>" for name in SECTIONS for end in ("", "/"))
        is_grounded = any(tag in text for tag in tags)
        return (self._grounded if is_grounded else self._pointing).parse(text)

    def render(self, parsed: Parsed) -> str:
        """The canonical text of a turn. Raises ValueError where it would not parse to the same."""
        text = (self._grounded if parsed.rethought else self._pointing).render(parsed)
        if self.parse(text) != parsed:
            raise ValueError(f"The mixed dialect has no words for this turn: {text[:80]!r}.")
        return text

    def instructions(self, specs: Sequence[ToolSpec]) -> str:
        """Both forms of a turn; nothing in silent style."""
        told = (self._pointing.instructions(specs), self._grounded.instructions(specs))
        return "\n".join(text for text in told if text)

    def observation(
        self, results: Sequence[ToolResult], *, frame: FrameOf, note: str = ""
    ) -> Message:
        """As `pointing` shows it: thoughts with boxes call nothing."""
        return self._pointing.observation(results, frame=frame, note=note)
