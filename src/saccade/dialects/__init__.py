"""How a model writes its turns and reads observations: the `Dialect` seam, and dialects by name.

Invariant: `parse` never raises, whatever the model wrote, and parse(render(x)) == x for every x
that `render` accepts. Coordinates in calls stay the numbers that the model wrote; boxes that it is
shown pass through a declared `Frame`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, get_args, runtime_checkable

from saccade.dialects.grounded import Grounded
from saccade.dialects.hermes import Hermes
from saccade.dialects.mixed import Mixed
from saccade.dialects.notations import NOTATIONS, BoxWritten, Notation, notation_named
from saccade.dialects.openthinkimg import OpenThinkIMG
from saccade.dialects.plain import Plain
from saccade.dialects.pointing import Pointing
from saccade.dialects.scan import FrameOf, Style
from saccade.errors import RecipeError
from saccade.types import Message, Parsed, ToolResult, ToolSpec

__all__ = [
    "DIALECTS",
    "NOTATIONS",
    "BoxWritten",
    "Dialect",
    "FrameOf",
    "Grounded",
    "Hermes",
    "Mixed",
    "Notation",
    "OpenThinkIMG",
    "Plain",
    "Pointing",
    "Style",
    "dialect",
    "notation_named",
]


@runtime_checkable
class Dialect(Protocol):
    """One way to write thoughts, calls, answers and observations as text."""

    @property
    def name(self) -> str: ...

    @property
    def can_call(self) -> bool:
        """Whether it has words for calls."""
        ...

    def parse(self, text: str) -> Parsed:
        """One turn of the model. Never raises; time linear in the length."""
        ...

    def render(self, parsed: Parsed) -> str:
        """The canonical text of a turn. Raises ValueError where it would not parse to the same."""
        ...

    def instructions(self, specs: Sequence[ToolSpec]) -> str:
        """The system prompt: the form of a turn, the tools and how to call them. Of a dialect
        that is all about calls, nothing where there are no tools.
        """
        ...

    def observation(
        self, results: Sequence[ToolResult], *, frame: FrameOf, note: str = ""
    ) -> Message:
        """What the calls returned, as one message of role "tool"; `note` has a line of its own."""
        ...


DIALECTS: dict[str, type[Grounded | Hermes | Mixed | OpenThinkIMG | Plain | Pointing]] = {
    kind.name: kind for kind in (Grounded, Hermes, Mixed, OpenThinkIMG, Plain, Pointing)
}


def dialect(
    name: str,
    *,
    style: Style = "schema",
    tools: Sequence[str] = (),
    notation: Notation | None = None,
) -> Dialect:
    """The dialect of that name, for a model that is offered these tools and writes boxes so.
    Raises RecipeError where there is none, or no such style.
    """
    if name not in DIALECTS:
        raise RecipeError(f"No dialect named {name!r}. Available: {', '.join(sorted(DIALECTS))}.")
    if style not in get_args(Style):
        raise RecipeError(f"No style named {style!r}. Available: {', '.join(get_args(Style))}.")
    if name == Pointing.name and tools:
        return Pointing(style, tools[0], tuple(tools[1:]))
    if name == Grounded.name and notation is not None:
        return Grounded(style, notation)
    if name == Mixed.name:
        calls = (tools[0], tuple(tools[1:])) if tools else ("look", ())
        return Mixed(style, notation or NOTATIONS["inline"], *calls)
    return DIALECTS[name](style)
