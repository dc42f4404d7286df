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


BATCH = 8
"""Calls that share a pass on a GPU, where a recipe says nothing else."""


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
    batches: ClassVar[bool] = False
    """Whether calls from several threads can share a pass of its model."""
    reads: ClassVar[bool] = False
    """Whether it looks at print too, with the chosen reader, which it is then given as `reader`."""

    def __init__(self, choice: BackendChoice) -> None:
        self.choice = choice

    @classmethod
    def most_at_once(cls, choice: BackendChoice) -> int:
        """Calls that share a pass of its model, where as many wait."""
        if not cls.batches:
            return 1
        return choice.batch or (1 if choice.device.startswith("cpu") else BATCH)


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
