"""What the loops ask of the renderer of a model family.

Invariant: a renderer is all that a family is to them: its template, image tokens, tiling,
positions, coordinate frame and box notation, and what its vision tower takes. Whoever calls one
knows no family by name; `saccade.renderers.renderer_for` finds it by the model.

Left out on purpose: tensors. Arrays are numpy's, and become tensors where models are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol, Self, runtime_checkable

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from saccade.dialects.notations import Notation
from saccade.geometry import Frame
from saccade.types import ImageRef, Message, Segment

__all__ = ["NotationName", "Positions", "Renderer", "TowerKind"]

NotationName = Literal["inline", "json", "qwen2", "internvl"]
TowerKind = Literal["grids", "tiles"]
"""How pictures reach the vision tower: patches of all of them in one row, with a grid for each; or
as square tiles that see nothing of each other.
"""


@dataclass(frozen=True, slots=True)
class Positions:
    """Positions of a run of tokens: `ids` is (3, tokens): time, row, column. Families that count in
    one direction have three equal rows.
    """

    ids: np.ndarray
    next_start: int


@runtime_checkable
class Renderer(Protocol):
    """Turns messages and pictures into what models of a family read, and ids back into text.

    Append-only: rendering a later turn never changes an earlier token.
    """

    model_types: ClassVar[tuple[str, ...]]
    """What `config.json` of its models says they are."""
    tower: ClassVar[TowerKind]
    deviations: ClassVar[tuple[str, ...]]
    """Where it writes other tokens than the template that is shipped with the models, and why."""
    tokenizer: Tokenizer
    notation: Notation
    """How boxes stand in prose."""
    end_id: int
    """Of the end of a turn."""
    pad_id: int
    """Of what stands in a text for one feature of a picture."""
    stop_ids: frozenset[int]

    @classmethod
    def from_pretrained(
        cls,
        folder: Path,
        *,
        min_image_tokens: int | None = None,
        max_image_tokens: int | None = None,
        notation: NotationName | None = None,
    ) -> Self:
        """From a model folder. The budget, in tokens for one picture, is what was stored unless
        given; the notation of boxes is what the family was taught unless given.
        """
        ...

    def prompt(self, messages: Sequence[Message]) -> Segment:
        """System and user messages, and the header of the model's first turn."""
        ...

    def observation(self, message: Message) -> Segment:
        """What stands between the end of one turn of the model and the start of the next."""
        ...

    def demonstrated(self, text: str) -> Segment:
        """A turn that nobody sampled, with its end."""
        ...

    def begun(self, text: str) -> Segment:
        """The beginning of a turn of the model that somebody else wrote."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a sampled turn, without its end."""
        ...

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """Special ids that the model may not emit."""
        ...

    def never_sampled(self, logits: int) -> list[int]:
        """Ids among that many logits that may not be drawn."""
        ...

    def frame(self, image: ImageRef) -> Frame:
        """The coordinate frame in which the model writes about the image."""
        ...

    def image_tokens(self, image: ImageRef) -> int:
        """Features, and pads, that the image costs."""
        ...

    def grid(self, image: ImageRef) -> tuple[int, int, int]:
        """(pictures in time or tiles, rows, columns) of the patches of the image."""
        ...

    def patches(self, image: ImageRef, pixels: Image.Image) -> np.ndarray:
        """Pixels as the vision tower takes them, float32."""
        ...

    def positions(self, segment: Segment, start: int) -> Positions:
        """Positions of a segment whose first token stands at `start`."""
        ...
