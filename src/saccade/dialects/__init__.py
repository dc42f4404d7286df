"""How a model writes its turns and reads observations: the `Dialect` seam, and dialects by name.

Invariant: `parse` never raises, whatever the model wrote, and parse(render(x)) == x for every x
that `render` accepts. Coordinates in calls stay the numbers that the model wrote; boxes that it is
shown pass through a declared `Frame`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, get_args, runtime_checkable

from saccade.dialects.hermes import Hermes
from saccade.dialects.openthinkimg import OpenThinkIMG
from saccade.dialects.plain import Plain
from saccade.dialects.pointing import Pointing
from saccade.dialects.scan import FrameOf, Style
from saccade.errors import RecipeError
from saccade.types import Message, Parsed, ToolResult, ToolSpec

__all__ = [
    "DIALECTS",
    "Dialect",
    "FrameOf",
    "Hermes",
    "OpenThinkIMG",
    "Plain",
    "Pointing",
    "Style",
    "dialect",
]


@runtime_checkable
class Dialect(Protocol):
    """One way to write thoughts, calls, answers and observations as text."""

    @property
    def name(self) -> str: ...

    def parse(self, text: str) -> Parsed:
        """One turn of the model. Never raises; time linear in the length."""
        ...

    def render(self, parsed: Parsed) -> str:
        """The canonical text of a turn. Raises ValueError where it would not parse to the same."""
        ...

    def instructions(self, specs: Sequence[ToolSpec]) -> str:
        """The system prompt that explains the tools and how to call them."""
        ...

    def observation(
        self, results: Sequence[ToolResult], *, frame: FrameOf, note: str = ""
    ) -> Message:
        """What the calls returned, as one message of role "tool"; `note` has a line of its own."""
        ...


DIALECTS: dict[str, type[Hermes] | type[OpenThinkIMG] | type[Plain] | type[Pointing]] = {
    kind.name: kind for kind in (Hermes, OpenThinkIMG, Plain, Pointing)
}


def dialect(name: str, *, style: Style = "schema", tools: Sequence[str] = ()) -> Dialect:
    """The dialect of that name, for a model that is offered these tools. Raises RecipeError where
    there is none, or no such style.
    """
    if name not in DIALECTS:
        raise RecipeError(f"No dialect named {name!r}. Available: {', '.join(sorted(DIALECTS))}.")
    if style not in get_args(Style):
        raise RecipeError(f"No style named {style!r}. Available: {', '.join(get_args(Style))}.")
    if name == Pointing.name and tools:
        return Pointing(style, tools[0], tuple(tools[1:]))
    return DIALECTS[name](style)
