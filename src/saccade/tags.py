"""Texts in sections: `<think> ... </think> <rethink> ... </rethink> <answer> ... </answer>`.

Invariant: reading never raises and takes time linear in the text; sections lie beside each other,
never inside: one that begins before the last has ended leaves that one unclosed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Sections", "sections"]


@dataclass(frozen=True, slots=True)
class Sections:
    """What a text holds, tag by tag."""

    closed: tuple[tuple[str, str], ...]
    """Name and text of each section that has both its tags, in order; text without white space at
    its ends.
    """
    outside: str
    """What stands outside of them, tags without a partner included; a line for each piece."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.closed)

    def only(self, name: str) -> str | None:
        """The text of the section of that name; None where there is none, or more than one."""
        found = [text for other, text in self.closed if other == name]
        return found[0] if len(found) == 1 else None


def sections(text: str, names: Sequence[str]) -> Sections:
    """The sections of these names in the text."""
    tag = re.compile(f"<(/?)({'|'.join(map(re.escape, names))})>")
    closed: list[tuple[str, str]] = []
    outside: list[str] = []
    opened: re.Match[str] | None = None
    at = 0
    for found in tag.finditer(text):
        is_end, name = bool(found[1]), found[2]
        if not is_end:
            outside.append(text[at : found.start()])
            at, opened = found.start(), found
        elif opened is not None and name == opened[2]:
            closed.append((name, text[opened.end() : found.start()].strip()))
            at, opened = found.end(), None
    outside.append(text[at:])
    kept = (piece.strip() for piece in outside)
    return Sections(tuple(closed), "\n".join(piece for piece in kept if piece))
