"""What an episode is made of. Frozen, checked where they are built, free of torch.

Invariant: whether a token is trained follows from the origin of its segment alone; gaze follows
from the messages and the lineage of images alone. Neither is stored beside what it is derived from.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any, Literal, NamedTuple

from saccade.geometry import SLIVER, Affine, Box, Mask, Point, Polygon

__all__ = [
    "MAX_ANCESTORS",
    "MAX_STEPS",
    "TRAINED_ORIGINS",
    "Answer",
    "BadBox",
    "BadCall",
    "BoxFound",
    "BoxNamed",
    "Derivation",
    "Episode",
    "Evidence",
    "Group",
    "ImagePart",
    "ImageRef",
    "ImageShown",
    "LineageError",
    "MaskFound",
    "Message",
    "Origin",
    "Outcome",
    "Parsed",
    "Part",
    "PointFound",
    "Region",
    "Sample",
    "Score",
    "Segment",
    "StopReason",
    "Text",
    "ToolCall",
    "ToolResult",
    "ToolSpec",
    "Turn",
    "TurnRecord",
]


# --- images ---------------------------------------------------------------------------------------

MAX_STEPS = 64
"""Steps from an image to the original that is farthest."""
MAX_ANCESTORS = 256
"""Images that one image is made of, on all ways: what is on both sides of a comparison counts
twice, since what is shown of it is in two places.
"""


class LineageError(ValueError):
    """An image that would be made in more steps, or of more images, than any may be."""


@dataclass(frozen=True, slots=True)
class Derivation:
    """How a derived image is made again from its parents: an operation of `saccade.images` by
    name.
    """

    operation: str
    arguments: tuple[tuple[str, Any], ...] = ()
    """Names and JSON values, sorted by name."""
    version: int = 1


@dataclass(frozen=True, slots=True)
class ImagePart:
    """One rectangle of a derived image and where its pixels came from."""

    parent: ImageRef
    area: Box
    """Where the part lies in the derived image, in its pixels."""
    to_parent: Affine
    """Maps pixels of the derived image to pixels of the parent."""


@dataclass(frozen=True, slots=True)
class ImageRef:
    """An image by content: a root (no parts) or derived from parents by invertible maps.

    Raises LineageError beyond MAX_STEPS and MAX_ANCESTORS, so whoever follows every way to the
    originals makes few steps, and has few regions on them.
    """

    key: str
    """sha256 of a root's pixels; of (parents, operation, arguments, version) for a derived
    image.
    """
    width: int
    height: int
    parts: tuple[ImagePart, ...] = ()
    derivation: Derivation | None = None
    steps: int = field(init=False, repr=False, compare=False)
    """As MAX_STEPS counts; 0 of an original."""
    ancestors: int = field(init=False, repr=False, compare=False)
    """As MAX_ANCESTORS counts; 0 of an original."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"ImageRef needs a positive size, got {self.width} x {self.height}.")
        if bool(self.parts) != (self.derivation is not None):
            raise ValueError("ImageRef needs parts and a derivation, or neither.")
        steps = ancestors = 0
        for part in self.parts:
            steps = max(steps, part.parent.steps + 1)
            ancestors += part.parent.ancestors + 1
        if steps > MAX_STEPS or ancestors > MAX_ANCESTORS:
            raise LineageError(
                f"An image may be {MAX_STEPS} steps from its originals and made of {MAX_ANCESTORS} "
                f"others at most, this one would be {steps} steps from them and made of "
                f"{ancestors}; work on an earlier image."
            )
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "ancestors", ancestors)

    @property
    def is_root(self) -> bool:
        return not self.parts

    @property
    def box(self) -> Box:
        """The whole image."""
        return Box(0, 0, self.width, self.height)

    def lineage(self) -> tuple[ImageRef, ...]:
        """All that it is made of and itself, each once, parents before what is made of them."""
        found: dict[str, ImageRef] = {}
        pending = [self]
        while pending:
            ref = pending[-1]
            missing = [p.parent for p in ref.parts if p.parent.key not in found]
            if missing and ref.key not in found:
                pending += reversed(missing)
            else:
                found.setdefault(ref.key, pending.pop())
        return tuple(found.values())

    def roots(self) -> tuple[ImageRef, ...]:
        """The originals that it comes from, each once, in order."""
        return tuple(ref for ref in self.lineage() if ref.is_root)

    def to_roots(self, shape: Box | Point | None = None) -> tuple[tuple[ImageRef, Polygon], ...]:
        """Where a box (default: the whole image) lies on the originals: one polygon for each part
        it touches.

        Polygons are clipped to every part they pass through and to the originals, so a box over
        both halves of a comparison gives two, and the white corners of a rotated view give nothing;
        nor does what is too small there for floats to tell its corners apart.
        """
        if isinstance(shape, Point):
            shape = Box(shape.x - 0.5, shape.y - 0.5, shape.x + 0.5, shape.y + 0.5)
        shape = self.box if shape is None else shape
        return tuple(self._to_roots(shape.polygon()))

    def on_roots(self, box: Box | None = None) -> tuple[tuple[ImageRef, Box], ...]:
        """As `to_roots`, with the boxes around the polygons."""
        if self.is_root:
            inside = self.box if box is None else box.intersection(self.box)
            return () if inside is None else ((self, inside),)
        return tuple((root, polygon.bounds) for root, polygon in self.to_roots(box))

    def _to_roots(self, polygon: Polygon) -> Iterator[tuple[ImageRef, Polygon]]:
        inside = polygon.clip(self.box)
        if inside is None:
            return
        if self.is_root:
            yield self, inside
        for part in self.parts:
            piece = inside.clip(part.area)
            there = None if piece is None else _mapped(piece, part.to_parent)
            if there is not None:
                yield from part.parent._to_roots(there)

    def __hash__(self) -> int:
        return hash(self.key)  # the generated one would walk every ancestor, for each path to it


def _mapped(piece: Polygon, to_parent: Affine) -> Polygon | None:
    """The piece in its parent; None where a zoom of a zoom of a pixel is rounded to nothing."""
    try:
        there = to_parent.polygon(piece)
        return there if there.bounds.area > SLIVER else None
    except ValueError:
        return None


# --- content of messages --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Text:
    text: str


@dataclass(frozen=True, slots=True)
class ImageShown:
    """A picture that the model is shown, with the name by which it may refer to it."""

    image: ImageRef
    name: str


@dataclass(frozen=True, slots=True)
class BoxNamed:
    """A box that the model wrote, in a thought or as an argument, on a named image of the
    episode.
    """

    image: ImageRef
    box: Box
    phrase: str = ""
    is_cut: bool = False
    """Whether the model wrote it beyond the border."""
    is_rethought: bool = False
    """Whether it stands in a second thought (`Parsed.rethought`)."""


@dataclass(frozen=True, slots=True)
class BadBox:
    """Something in a thought that wanted to be a box and is none."""

    raw: str
    reason: str


@dataclass(frozen=True, slots=True)
class BoxFound:
    """A box that a tool reported on an image."""

    image: ImageRef
    box: Box
    label: str = ""
    score: float | None = None


@dataclass(frozen=True, slots=True)
class MaskFound:
    """A mask that a tool reported on an image."""

    image: ImageRef
    mask: Mask
    label: str = ""
    score: float | None = None


@dataclass(frozen=True, slots=True)
class PointFound:
    """A point that a tool reported on an image."""

    image: ImageRef
    point: Point
    label: str = ""
    score: float | None = None


Part = Text | ImageShown | BoxFound | MaskFound | PointFound


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A well-formed call, arguments as the model wrote them (in the model's frame, not yet
    validated).
    """

    id: str
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadCall:
    """Something that wanted to be a call and is none; the reason is shown to the model."""

    raw: str
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The final answer as the model gave it."""

    text: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """One turn of the model, read by a dialect. Never raises on the way here."""

    thought: str = ""
    calls: tuple[ToolCall | BadCall, ...] = ()
    """In the order written; calls beside an answer are run and the answer is ignored."""
    answer: Answer | None = None
    rethought: str = ""
    """A second thought, between the first and the answer, where the dialect has one."""


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool as its user sees it: derived from a function's signature, never written by hand."""

    name: str
    description: str
    schema: dict[str, Any]
    """JSON schema (2020-12) of the arguments, `additionalProperties: false`."""
    version: int = 1


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What came back from one call."""

    call: ToolCall | BadCall
    parts: tuple[Part, ...]
    failed: bool = False
    """True where the model made a mistake; the parts then hold the sentence."""
    seconds: float = 0.0
    named: tuple[BoxNamed, ...] = ()
    """Boxes among the arguments, in pixels of the image that the call named."""

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("ToolResult needs at least one part.")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the conversation, whoever produced it."""

    role: Literal["system", "user", "assistant", "tool"]
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        return "".join(p.text for p in self.parts if isinstance(p, Text))

    @property
    def images(self) -> tuple[ImageShown, ...]:
        return tuple(p for p in self.parts if isinstance(p, ImageShown))


# --- tokens ---------------------------------------------------------------------------------------

Origin = Literal["prompt", "sampled", "demonstrated", "observation"]
TRAINED_ORIGINS: frozenset[str] = frozenset({"sampled", "demonstrated"})


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens with one origin. Origin alone decides whether it is trained."""

    origin: Origin
    ids: tuple[int, ...]
    logprobs: tuple[float, ...] = ()
    """One for each sampled id, of the distribution it was drawn from; empty otherwise."""
    images: tuple[ImageRef, ...] = ()
    """In the order of their pads."""
    policy_version: int | None = None
    """Version of the weights that sampled it; None for what no policy sampled."""

    def __post_init__(self) -> None:
        want = len(self.ids) if self.origin == "sampled" else 0
        if len(self.logprobs) != want:
            raise ValueError(
                f"A {self.origin} segment needs {want} logprobs, got {len(self.logprobs)}."
            )
        if self.images and self.origin in TRAINED_ORIGINS:
            raise ValueError(f"A {self.origin} segment can't hold images, got {len(self.images)}.")

    @property
    def is_trained(self) -> bool:
        return self.origin in TRAINED_ORIGINS


@dataclass(frozen=True, slots=True)
class Turn:
    """What an engine returned for one turn of the model."""

    text: str
    finish: Literal["stop", "length"]
    """`stop`: the model ended its turn; `length`: it ran out of tokens."""
    ids: tuple[int, ...] | None = None
    """Sampled ids, the end-of-turn id included; None from engines without ids."""
    logprobs: tuple[float, ...] | None = None
    policy_version: int | None = None
    prompt_tokens: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if (self.ids is None) != (self.logprobs is None):
            raise ValueError("Turn needs ids and logprobs, or neither.")
        if self.ids is not None and len(self.ids) != len(self.logprobs or ()):
            raise ValueError(
                f"Turn needs one logprob for each of {len(self.ids)} ids, "
                f"got {len(self.logprobs or ())}."
            )


# --- data -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Evidence:
    """A region of an original image that the answer rests on."""

    image: ImageRef
    box: Box
    phrase: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about one or more original images."""

    id: str
    question: str
    images: tuple[ImageRef, ...]
    answer: str
    evidence: tuple[Evidence, ...] = ()
    kind: str = ""
    stratum: str = ""
    """`easy`, `look`, or empty where the task does not say."""
    meta: tuple[tuple[str, str], ...] = ()


class Outcome(Enum):
    """Whose doing the end of an episode is."""

    MODEL = "model"
    OURS = "ours"


class StopReason(Enum):
    """Why an episode ended; `outcome` says whether it may be scored and trained."""

    ANSWERED = "answered"
    MAX_TURNS = "max_turns"
    MAX_TOKENS = "max_tokens"
    CONTEXT_FULL = "context_full"
    TOOL_UNAVAILABLE = "tool_unavailable"
    TOOL_CRASHED = "tool_crashed"
    ENGINE_FAILED = "engine_failed"

    @property
    def outcome(self) -> Outcome:
        ours = (StopReason.TOOL_UNAVAILABLE, StopReason.TOOL_CRASHED, StopReason.ENGINE_FAILED)
        return Outcome.OURS if self in ours else Outcome.MODEL


@dataclass(frozen=True, slots=True)
class Region:
    """One look: a polygon on an original image, and how it was looked at."""

    image: ImageRef
    polygon: Polygon
    how: Literal["seen", "named", "found"]
    """`seen`: its pixels came back; `named`: the model wrote its box; `found`: a tool reported
    it.
    """
    turn: int
    phrase: str = ""


@dataclass(frozen=True, slots=True)
class Score:
    """What a reward said; value None means that it could not say, which is not 0."""

    value: float | None
    name: str = ""
    detail: str = ""
    turns: tuple[float | None, ...] | None = None
    """Optionally one value for each turn of the model."""

    def __post_init__(self) -> None:
        if self.value is not None and not math.isfinite(self.value):
            raise ValueError(f"Score {self.name!r} must be finite or None, got {self.value}.")


class TurnRecord(NamedTuple):
    """One turn of the model: its parsed text, what its calls returned, and boxes written into its
    thoughts.
    """

    parsed: Parsed
    results: tuple[ToolResult, ...] = ()
    named: tuple[BoxNamed, ...] = ()
    refused: tuple[BadBox, ...] = ()


@dataclass(frozen=True, slots=True)
class Episode:
    """One attempt at one sample: append-only while it runs, frozen afterwards."""

    sample: Sample
    rollout_index: int = 0
    messages: tuple[Message, ...] = ()
    turns: tuple[TurnRecord, ...] = ()
    segments: tuple[Segment, ...] = ()
    """Empty where no engine with ids made it and nothing tokenised it yet."""
    stop: StopReason | None = None
    error: str = ""
    """Traceback, where the end was our doing."""
    score: Score | None = None
    seconds: float = 0.0

    @property
    def answer(self) -> str | None:
        """The accepted answer, None where the episode ended without one."""
        if self.stop is not StopReason.ANSWERED or not self.turns:
            return None
        last = self.turns[-1].parsed.answer
        return last.text if last else None

    @property
    def images(self) -> dict[str, ImageRef]:
        """Every image of the episode by the name that the model was told."""
        return {p.name: p.image for m in self.messages for p in m.images}

    @property
    def results(self) -> tuple[ToolResult, ...]:
        return tuple(r for t in self.turns for r in t.results)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Well-formed calls, in order."""
        return tuple(r.call for r in self.results if isinstance(r.call, ToolCall))

    @property
    def completion_tokens(self) -> int:
        return sum(len(s.ids) for s in self.segments if s.is_trained)

    @property
    def gaze(self) -> tuple[Region, ...]:
        """The ordered regions of original images that were looked at; views of a whole image are
        no gaze, and a call that failed is no look.
        """
        found: list[Region] = []
        for number, turn in enumerate(self.turns):
            for named in turn.named:
                found += _regions(named.image, named.box, "named", number, named.phrase)
            for result in turn.results:
                if result.failed:
                    continue
                for named in result.named:
                    found += _regions(named.image, named.box, "named", number, named.phrase)
                for part in result.parts:
                    if isinstance(part, ImageShown):
                        found += _regions(part.image, part.image.box, "seen", number, part.name)
                    elif isinstance(part, BoxFound):
                        found += _regions(part.image, part.box, "found", number, part.label)
        return tuple(found)

    def with_score(self, score: Score) -> Episode:
        return replace(self, score=score)


def _regions(
    image: ImageRef, box: Box, how: Literal["seen", "named", "found"], turn: int, phrase: str
) -> list[Region]:
    return [
        Region(root, polygon, how, turn, phrase)
        for root, polygon in image.to_roots(box)
        if polygon.area < 0.999 * root.width * root.height
    ]


@dataclass(frozen=True, slots=True)
class Group:
    """The episodes of one prompt; the unit in which advantages are centred."""

    episodes: tuple[Episode, ...]

    def __post_init__(self) -> None:
        ids = {e.sample.id for e in self.episodes}
        if len(ids) != 1:
            raise ValueError(f"A group holds episodes of one sample, got {sorted(ids)}.")
