"""Tools, rewards and tasks of other installed packages, found by their entry points.

A package offers its own under one of the groups, by the name that recipes use:

    [project.entry-points."saccade.tools"]
    ruler = "my_package.ruler:ruler"

Invariant: nothing of another package is imported before a recipe names it; names of saccade's own
can't be taken over.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from saccade.errors import RecipeError

__all__ = ["Group", "load", "offered"]

Group = Literal["saccade.tools", "saccade.backends", "saccade.rewards", "saccade.tasks"]


def offered(group: Group) -> list[str]:
    """Names that installed packages offer, sorted."""
    return sorted({point.name for point in entry_points(group=group)})


def load(group: Group, name: str) -> Any:
    """What a package offers under that name; None where none does.

    Raises RecipeError where two packages offer it, and where it can't be imported.
    """
    found: tuple[EntryPoint, ...] = tuple(entry_points(group=group, name=name))
    if not found:
        return None
    if len({point.value for point in found}) > 1:
        values = ", ".join(sorted(point.value for point in found))
        raise RecipeError(f"{group} {name!r} is offered more than once: {values}; remove one.")
    try:
        return found[0].load()
    except Exception as error:  # whatever that package does while it is imported
        cause = f"{type(error).__name__}: {error}".rstrip(".")
        what = f"{group} {name!r} ({found[0].value})"
        raise RecipeError(f"{what} can't be loaded: {cause}.") from None
