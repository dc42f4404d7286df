"""What a back end of each kind is asked, and what it answers.

Invariant: places are pixels of the picture that was given; scores are in 0..1, and None where a
back end has none to give.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from PIL import Image

from saccade.backends.remembered import Remembered
from saccade.config import BackendChoice
from saccade.geometry import Box, Mask, Point

__all__ = [
    "Backend",
    "Detected",
    "Detector",
    "Pointed",
    "Pointer",
    "Printed",
    "Reader",
    "Segmented",
    "Segmenter",
]


class Printed(NamedTuple):
    """A line of print."""

    text: str
    box: Box
    score: float | None


class Detected(NamedTuple):
    """A thing that the words name."""

    label: str
    box: Box
    score: float | None


class Pointed(NamedTuple):
    """A place on a thing that the words name."""

    label: str
    point: Point
    score: float | None


class Segmented(NamedTuple):
    """Which pixels belong to one thing."""

    mask: Mask
    score: float | None


class Backend(ABC):
    """Base of all kinds. Made once in a process and called from several threads."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    """Modules that it imports, and no earlier than when it is made."""
    extra: ClassVar[str] = "tools"
    """Extra of saccade that brings them."""
    needs: ClassVar[str] = "nothing to download"
    """For people who choose: what it needs at hand."""

    def __init__(self, choice: BackendChoice) -> None:
        self.choice = choice


class Reader(Backend):
    """Reads print. Of the last pictures it remembers what it read."""

    def __init__(self, choice: BackendChoice) -> None:
        super().__init__(choice)
        self._lines = Remembered[tuple[Printed, ...]](most=64)

    def read(self, picture: Image.Image) -> list[Printed]:
        """Lines of print in an RGB picture, from the top, then from the left."""
        return list(self._lines.of(picture, lambda picture: tuple(self.read_anew(picture))))

    @abstractmethod
    def read_anew(self, picture: Image.Image) -> list[Printed]:
        """What `read` answers for a picture that it does not remember."""


class Detector(Backend):
    """Finds things by name."""

    @abstractmethod
    def detect(self, picture: Image.Image, query: str) -> list[Detected]:
        """All that the words name, the surest first. Raises ToolError for words it has no idea of,
        in a sentence that says what it knows.
        """


class Pointer(Backend):
    """Points at things by description."""

    @abstractmethod
    def point(self, picture: Image.Image, description: str) -> list[Pointed]:
        """A place on each thing that is meant, the surest first. Raises ToolError as a detector."""


class Segmenter(Backend):
    """Tells the pixels of one thing from all others."""

    @abstractmethod
    def segment(
        self,
        picture: Image.Image,
        *,
        box: Box | None = None,
        points: Sequence[Point] = (),
        outside: Sequence[Point] = (),
    ) -> Segmented | None:
        """The thing that fills the box, or that all `points` lie on and none of `outside` does;
        None where none is plain. With both, the box bounds it. Raises ValueError with neither.
        """
