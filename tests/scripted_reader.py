"""A reader that reads what it is told to, for tests of what is made of print."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from saccade.backends import Printed, Reader
from saccade.config import BackendChoice
from saccade.worlds.figures import FigureItem


class Scripted(Reader):
    """Reads what it is told to, whatever it sees, and remembers the sizes of what it saw."""

    name = "scripted"

    def __init__(self, lines: Sequence[Printed]) -> None:
        super().__init__(BackendChoice())
        self.script = list(lines)
        self.sizes: list[tuple[int, int]] = []

    def read_anew(self, picture: Image.Image) -> list[Printed]:
        self.sizes.append(picture.size)
        return self.script


def printed(item: FigureItem) -> Scripted:
    """A reader that makes no mistake in that figure."""
    lines = [Printed(t.text, t.box, 1.0) for t in item.texts]
    return Scripted(sorted(lines, key=lambda line: (line.box.y0, line.box.x0)))
