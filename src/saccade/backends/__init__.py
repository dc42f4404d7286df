"""What does the looking inside a tool: readers of print, detectors, pointers, segmenters.

A tool asks for one by annotating a keyword-only parameter with its kind; which one it gets is the
recipe's to say, by name. One file for each back end; a new one is listed in `builtin_backends` and
nowhere else. Installed packages offer their own as entry points (`saccade.backends`).

Invariant: a back end sees a picture and answers in that picture's pixels; it knows no tool, no
episode and no frame of a model. What it can't name it refuses with ToolError, what it did not find
is an empty list: it never guesses a place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import NamedTuple

from saccade import plugins
from saccade.backends.fills_segmenter import FillSegmenter
from saccade.backends.grounding_dino import GroundingDinoDetector
from saccade.backends.kinds import (
    Backend,
    Detected,
    Detector,
    Pointed,
    Pointer,
    Printed,
    Reader,
    Segmented,
    Segmenter,
)
from saccade.backends.pointing_vlm import VlmPointer
from saccade.backends.rapidocr_reader import RapidReader
from saccade.backends.sam import SamSegmenter
from saccade.backends.tesseract_reader import TesseractReader
from saccade.backends.vocabulary import VocabularyDetector, VocabularyPointer
from saccade.config import BackendChoice, BackendKind
from saccade.errors import RecipeError

__all__ = [
    "KINDS",
    "Backend",
    "Detected",
    "Detector",
    "Listed",
    "Pointed",
    "Pointer",
    "Printed",
    "Reader",
    "Segmented",
    "Segmenter",
    "all_made",
    "builtin_backends",
    "listed",
    "missing_packages",
    "most_at_once",
]

KINDS: dict[BackendKind, type[Backend]] = {
    "reader": Reader,
    "detector": Detector,
    "pointer": Pointer,
    "segmenter": Segmenter,
}
"""By the names that recipes use."""
DEFAULTS: dict[BackendKind, str] = {
    "reader": "rapidocr",
    "detector": "vocabulary",
    "pointer": "vocabulary-points",
    "segmenter": "fills",
}
"""Of each kind the one that a recipe gets that names none."""


def builtin_backends() -> dict[str, type[Backend]]:
    """Every back end that comes with saccade, by name."""
    readers = (RapidReader, TesseractReader)
    detectors = (VocabularyDetector, GroundingDinoDetector)
    pointers = (VocabularyPointer, VlmPointer)
    segmenters = (FillSegmenter, SamSegmenter)
    return {b.name: b for b in (*readers, *detectors, *pointers, *segmenters)}


class Listed(NamedTuple):
    """What people who choose a back end must know of it."""

    name: str
    kind: BackendKind
    is_default: bool
    needs: str
    missing: list[str]
    """Modules that are not installed here."""


def listed() -> list[Listed]:
    """Every back end that comes with saccade, by kind."""
    return [
        Listed(b.name, kind, DEFAULTS.get(kind) == b.name, b.needs, missing_packages(b))
        for kind, of_kind in KINDS.items()
        for b in builtin_backends().values()
        if issubclass(b, of_kind)
    ]


def all_made(
    kinds: Iterable[BackendKind], choices: Mapping[BackendKind, BackendChoice] | None = None
) -> dict[BackendKind, Backend]:
    """The chosen back ends of these kinds; all that look at print share one reader, and what it
    remembers. Raises RecipeError where there is none of a name or kind, or a package is missing.
    """
    chosen = {kind: (choices or {}).get(kind, BackendChoice()) for kind in KINDS}
    classes = {kind: _checked(kind, chosen[kind]) for kind in sorted(kinds)}
    looking = {kind: found for kind, found in classes.items() if found.reads}
    if looking:
        classes["reader"] = _checked("reader", chosen["reader"])
    ready = {kind: found(chosen[kind]) for kind, found in classes.items() if kind not in looking}
    for kind, found in looking.items():
        ready[kind] = found(chosen[kind], reader=ready["reader"])  # type: ignore[call-arg]
    return ready


def _checked(kind: BackendKind, choice: BackendChoice) -> type[Backend]:
    """The class of the chosen back end. Raises RecipeError as `all_made`."""
    name = choice.name or DEFAULTS[kind]
    found = _of_name(kind, name)
    if found is None:
        of_kind = [name for name, b in builtin_backends().items() if issubclass(b, KINDS[kind])]
        known = ", ".join(sorted({*of_kind, *plugins.offered("saccade.backends")}))
        raise RecipeError(f"No {kind} named {name!r}. Available: {known}.")
    if missing := missing_packages(found):
        raise RecipeError(
            f"The {kind} {name!r} needs {', '.join(missing)}, which is not installed: "
            f"pip install 'saccade[{found.extra}]', or choose another {kind}."
        )
    return found


def most_at_once(kind: BackendKind, choice: BackendChoice) -> int:
    """Calls that share a pass of the chosen back end's model; 1 of one that is not known here, as
    it may be only where tools run.
    """
    found = _of_name(kind, choice.name or DEFAULTS[kind])
    return 1 if found is None else found.most_at_once(choice)


def _of_name(kind: BackendKind, name: str) -> type[Backend] | None:
    found = builtin_backends().get(name) or plugins.load("saccade.backends", name)
    return found if isinstance(found, type) and issubclass(found, KINDS[kind]) else None


def missing_packages(backend: type[Backend]) -> list[str]:
    """Modules that it imports and that are not installed."""
    return [name for name in backend.packages if find_spec(name) is None]
