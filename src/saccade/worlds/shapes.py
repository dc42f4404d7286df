"""Drawn scenes of coloured shapes, with questions about how two of them lie and how many there are.

Invariant: an item is a pure function of (world, split, index). Boxes are those of the pixels that
can be seen of a thing, and of every thing at least half can be seen. A statement is clearly true or
clearly false: what would be near the border of a relation is not drawn. Every thing that a question
names by colour and shape is the only one of its name, or one of those that are counted.

Left out on purpose: pictures from life, which the tasks with files bring, and relations of more
than two things.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from saccade.geometry import Box
from saccade.worlds.drawing import COLORS

__all__ = [
    "COUNTS",
    "RELATIONS",
    "SHAPE_COLORS",
    "SPLITS",
    "TRAINED_SHAPES",
    "UNSEEN_SHAPES",
    "Scene",
    "SceneItem",
    "Thing",
    "World",
    "directions",
    "item",
    "sparse_item",
    "tally_question",
    "vsr_question",
]

World = Literal["vsr", "tally"]
SPLITS = ("pretrain", "train", "validation", "test", "test_unseen")
SHAPE_COLORS = ("red", "blue", "green", "orange", "purple", "pink", "yellow", "cyan")
TRAINED_SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
UNSEEN_SHAPES = ("heart", "pentagon", "moon", "arrow")
"""In `test_unseen` alone, beside the others."""
RELATIONS = ("left of", "right of", "above", "below", "inside", "touching", "behind")
COUNTS = tuple(range(16))
_HOLDS = ("circle", "square", "diamond")
"""Shapes wide enough in the middle for another to lie inside."""
CLEAR = 0.06
"""Of the shorter side of the picture: by how much a direction, or a gap, is clear."""
LEAST_SEEN = 0.55
"""Share of a thing's pixels that nothing covers."""
TRIES = 200

Bits = NDArray[np.bool_]


class Thing(NamedTuple):
    """One thing that was drawn."""

    color: str
    shape: str
    box: Box
    """Around the pixels of it that can be seen."""

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture and the things in it, those behind first."""

    image: Image.Image
    things: tuple[Thing, ...]


@dataclass(frozen=True, slots=True)
class SceneItem:
    """A scene with one question about it."""

    id: str
    scene: Scene
    kind: str
    """A relation, or `count`."""
    question: str
    answer: str
    evidence: tuple[Thing, ...]
    """What the answer rests on, in the order of the question or from the left."""
    choices: int
    """Answers that a guess would draw from."""


def item(world: World, split: str, index: int) -> SceneItem:
    """Item `index` of a split of a world: the same for the same arguments."""
    if split not in SPLITS:
        raise ValueError(f"Unknown split {split!r}. Available: {', '.join(SPLITS)}.")
    rng = np.random.default_rng([SPLITS.index(split), index, 31 if world == "vsr" else 37])
    # what is asked is settled first: what is hard to lay out must not become rare
    relation, holds = RELATIONS[int(rng.integers(len(RELATIONS)))], bool(rng.random() < 0.5)
    count = int(rng.integers(0, 7) if rng.random() < 0.8 else rng.integers(7, len(COUNTS)))
    while True:
        painter = _Painter(rng, split == "test_unseen")
        try:
            made = _vsr(painter, relation, holds) if world == "vsr" else _tally(painter, count)
        except _NoRoom:
            continue
        scene, kind, question, answer, evidence, choices = made
        name = f"shapes_{world}/{split}/{index}"
        return SceneItem(name, scene, kind, question, answer, evidence, choices)


def sparse_item(split: str, index: int) -> SceneItem:
    """Item `index` of scenes with few large things, in two of three with just one, and a question
    how many of a name there are: what colours and forms are learned on.
    """
    rng = np.random.default_rng([SPLITS.index(split), index, 41])
    while True:
        painter = _Painter(rng, split == "test_unseen")
        painter.sizes = (0.25, 0.5)
        count = int(rng.integers(0, 3))
        others = 1 - count if count < 2 else int(rng.integers(0, 3))
        try:
            made = _tally(painter, count, others=others)
        except _NoRoom:
            continue
        scene, kind, question, answer, evidence, choices = made
        name = f"shapes_sparse/{split}/{index}"
        return SceneItem(name, scene, kind, question, answer, evidence, choices)


def vsr_question(a: str, relation: str, b: str) -> str:
    """The statement that is true or false."""
    return f"Is the {a} {relation} the {b}?"


def tally_question(name: str) -> str:
    return f"How many {_plural(name)} are there?"


def _plural(name: str) -> str:
    return f"{name}es" if name.endswith("s") else f"{name}s"


def directions(a: Box, b: Box, *, clear: float) -> tuple[str, ...]:
    """How `a` lies from `b` where that is clear: left or right of, above or below."""
    across, down = a.center.x - b.center.x, a.center.y - b.center.y
    said = []
    if abs(across) >= clear:
        said.append("left of" if across < 0 else "right of")
    if abs(down) >= clear:
        said.append("above" if down < 0 else "below")
    return tuple(said)


# --- the two worlds -------------------------------------------------------------------------------


class _NoRoom(Exception):
    """What was to be drawn does not fit in."""


_Made = tuple[Scene, str, str, str, tuple[Thing, ...], int]


def _vsr(painter: _Painter, relation: str, holds: bool) -> _Made:
    first, second = painter.names(2, others=_HOLDS if relation == "inside" else None)
    a, b = _LAY.get(relation, _lay_apart)(painter, first, second, relation, holds)
    for name in painter.names(int(painter.rng.integers(0, 5)), but=(first, second)):
        painter.try_place(name)
    scene = painter.scene()
    pair = (scene.things[a], scene.things[b])
    if relation in _OPPOSITE:  # what can be seen decides, not what was meant
        told = directions(pair[0].box, pair[1].box, clear=CLEAR * painter.side)
        if (relation in told) != holds or not {relation, _OPPOSITE[relation]} & set(told):
            raise _NoRoom
    question = vsr_question(pair[0].name, relation, pair[1].name)
    return scene, relation, question, "true" if holds else "false", pair, 2


_OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def _tally(painter: _Painter, count: int, *, others: int | None = None) -> _Made:
    rng = painter.rng
    [target] = painter.names(1)
    if others is None:
        others = int(rng.integers(1, 5) if count < 8 else rng.integers(0, 3))
    shared = {n: (n[0] == target[0]) + (n[1] == target[1]) for n in painter.all_names}
    near, far = ([n for n, same in shared.items() if same == wanted] for wanted in (1, 0))
    wanted = [target] * count
    for _ in range(others):
        among = near if rng.random() < 0.5 else far
        wanted.append(among[int(rng.integers(len(among)))])
    painter.crowd(len(wanted))
    for place in rng.permutation(len(wanted)):
        painter.place(wanted[int(place)])
    scene = painter.scene()
    found = sorted(
        (t for t in scene.things if (t.color, t.shape) == target),
        key=lambda t: (t.box.x0, t.box.y0),
    )
    question = tally_question(" ".join(target))
    return scene, "count", question, str(count), tuple(found), len(COUNTS)


_Name = tuple[str, str]
_Lay = Callable[["_Painter", _Name, _Name, str, bool], tuple[int, int]]


def _lay_apart(p: _Painter, a: _Name, b: _Name, relation: str, holds: bool) -> tuple[int, int]:
    """On the side that the relation says, or on the other."""
    side = relation if holds else _OPPOSITE[relation]
    for _ in range(TRIES):
        first, second = p.spot(), p.spot()
        told = directions(p.box_at(*first), p.box_at(*second), clear=1.5 * CLEAR * p.side)
        if side in told:
            break
    else:
        raise _NoRoom
    return p.put(a, *first), p.put(b, *second)


def _lay_inside(p: _Painter, a: _Name, b: _Name, relation: str, holds: bool) -> tuple[int, int]:
    size = p.side * float(p.rng.uniform(0.42, 0.56))
    x, y = p.spot_for(size)
    outer = p.put(b, x, y, size, turn=0.0)
    inner = p.side * float(p.rng.uniform(0.13, 0.18))
    if holds:
        dx, dy = p.rng.uniform(-0.1, 0.1, size=2) * size
        return p.put(a, x + dx, y + dy, inner), outer
    return p.place(a, size=inner, gap=CLEAR * p.side), outer


def _lay_touching(p: _Painter, a: _Name, b: _Name, relation: str, holds: bool) -> tuple[int, int]:
    size = p.size()
    x, y = p.spot_for(p.side * 0.5)
    other = p.put(b, x, y, p.size())
    angle = float(p.rng.uniform(0, 2 * math.pi))
    turn = p.turn()
    near, far = 0.0, p.side * 0.6  # of the middles: overlapping, apart

    def at(distance: float) -> tuple[float, float]:
        return x + distance * math.cos(angle), y + distance * math.sin(angle)

    for _ in range(10):
        middle = (near + far) / 2
        if p.overlaps(a, *at(middle), size, turn):
            near = middle
        else:
            far = middle
    distance = near if holds else far + p.side * float(p.rng.uniform(1.3, 2.5)) * CLEAR
    return p.put(a, *at(distance), size, turn), other


def _lay_behind(p: _Painter, a: _Name, b: _Name, relation: str, holds: bool) -> tuple[int, int]:
    """One covers a part of the other; which one is asked."""
    x, y = p.spot_for(p.side * 0.5)
    angle = float(p.rng.uniform(0, 2 * math.pi))
    sizes = p.size(), p.size()
    distance = float(p.rng.uniform(0.5, 0.62)) * sum(sizes) / 2
    beyond = (x + distance * math.cos(angle), y + distance * math.sin(angle))
    if holds:
        lower, upper = p.put(a, x, y, sizes[0]), p.put(b, *beyond, sizes[1])
        p.must_cover(upper, lower)
        return lower, upper
    lower, upper = p.put(b, x, y, sizes[0]), p.put(a, *beyond, sizes[1])
    p.must_cover(upper, lower)
    return upper, lower


_LAY: dict[str, _Lay] = {
    "inside": _lay_inside,
    "touching": _lay_touching,
    "behind": _lay_behind,
}


# --- painting -------------------------------------------------------------------------------------


class _Painter:
    """Lays things out on one picture, each with the pixels that it covers."""

    def __init__(self, rng: np.random.Generator, is_unseen: bool) -> None:
        self.rng = rng
        self.side = self.width = self.height = int(rng.integers(280, 460))
        self.shapes: tuple[str, ...] = TRAINED_SHAPES + (UNSEEN_SHAPES if is_unseen else ())
        self.sizes = (0.12, 0.4) if is_unseen else (0.17, 0.3)
        self._is_unseen = is_unseen
        self._pixels = _ground(rng, self.width, self.height)
        self._masks: list[_Seen] = []
        self._names: list[_Name] = []
        self._alphas: list[tuple[NDArray[np.float32], NDArray[np.float32], tuple[int, int]]] = []
        self._boxes: list[Box] = []

    @property
    def all_names(self) -> list[_Name]:
        return [(color, shape) for color in SHAPE_COLORS for shape in self.shapes]

    def names(
        self, count: int, *, but: Sequence[_Name] = (), others: Sequence[str] | None = None
    ) -> list[_Name]:
        """Different ones; those behind the first of the shapes `others`, where given. Of unseen
        shapes as many as of the others.
        """
        found: list[_Name] = []
        while len(found) < count:
            shapes: tuple[str, ...] = self.shapes
            if others is not None and found:
                shapes = tuple(others)
            elif self._is_unseen and self.rng.random() < 0.5:
                shapes = UNSEEN_SHAPES
            color = SHAPE_COLORS[int(self.rng.integers(len(SHAPE_COLORS)))]
            name = (color, shapes[int(self.rng.integers(len(shapes)))])
            if name not in found and name not in but:
                found.append(name)
        return found

    def crowd(self, count: int) -> None:
        """Sizes for that many things."""
        most = min(self.sizes[1], 0.75 / math.sqrt(max(count, 1)))
        self.sizes = (min(self.sizes[0], 0.7 * most), most)

    def size(self) -> float:
        return self.side * float(self.rng.uniform(*self.sizes))

    def turn(self) -> float:
        return math.radians(float(self.rng.uniform(-12, 12)))

    def spot_for(self, size: float) -> tuple[float, float]:
        half = 0.5 * size + 2
        if 2 * half >= self.side:
            raise _NoRoom
        return (
            float(self.rng.uniform(half, self.width - half)),
            float(self.rng.uniform(half, self.height - half)),
        )

    def spot(self) -> tuple[float, float, float]:
        size = self.size()
        return (*self.spot_for(1.2 * size), size)

    @staticmethod
    def box_at(x: float, y: float, size: float) -> Box:
        return Box(x - size / 2, y - size / 2, x + size / 2, y + size / 2)

    def place(self, name: _Name, *, size: float | None = None, gap: float = 0.0) -> int:
        """Somewhere where it covers little and is seen whole; raises _NoRoom."""
        for _ in range(TRIES):
            made = self.size() if size is None else size
            x, y = self.spot_for(1.2 * made)
            around = self.box_at(x, y, 1.1 * made + 2 * gap)
            if all(_shared(around, box) <= (0.0 if gap else 0.18) for box in self._boxes):
                return self.put(name, x, y, made)
        raise _NoRoom

    def try_place(self, name: _Name) -> None:
        """Where it touches nothing; not at all where there is no room."""
        for _ in range(20):
            size = self.size()
            x, y = self.spot_for(1.2 * size)
            around = self.box_at(x, y, 1.3 * size)
            if not any(around.intersection(box) for box in self._boxes):
                self.put(name, x, y, size)
                return

    def put(
        self, name: _Name, x: float, y: float, size: float | None = None, turn: float | None = None
    ) -> int:
        """Draw it over what is there; its number. Raises _NoRoom where it would leave the picture,
        or leave too little to see of another.
        """
        size = self.size() if size is None else size
        turn = self.turn() if turn is None else turn
        alpha, corner = _alpha(name[1], x, y, size, turn)
        mask = self._mask(alpha, corner)
        for other in self._masks:
            seen = other.area - mask.shared(other)
            if seen < LEAST_SEEN * other.area:
                raise _NoRoom
        for other in self._masks:
            other.hide_under(mask)
        self._masks.append(mask)
        self._names.append(name)
        self._boxes.append(mask.bounds())
        paint = _paint(self.rng, name[0], alpha.shape)
        self._alphas.append((alpha, paint, corner))
        return len(self._masks) - 1

    def overlaps(self, name: _Name, x: float, y: float, size: float, turn: float) -> bool:
        """Whether it would cover anything of what is there."""
        alpha, corner = _alpha(name[1], x, y, size, turn)
        mask = self._mask(alpha, corner, must_fit=False)
        return any(mask.shared(other) > 0 for other in self._masks)

    def must_cover(self, upper: int, lower: int) -> None:
        """Raises _NoRoom where that covers too little of the other to be seen."""
        whole = self._boxes[lower]
        if _shared(self._boxes[upper], whole) < 0.12:
            raise _NoRoom
        alpha, _, _ = self._alphas[lower]
        drawn = int((alpha > 0.5).sum())
        if self._masks[lower].area > 0.9 * drawn:
            raise _NoRoom

    def _mask(
        self, alpha: NDArray[np.float32], corner: tuple[int, int], *, must_fit: bool = True
    ) -> _Seen:
        x, y = corner
        high, wide = alpha.shape
        left, top = max(0, -x), max(0, -y)
        right, bottom = min(wide, self.width - x), min(high, self.height - y)
        if must_fit and (left, top, right, bottom) != (0, 0, wide, high):
            raise _NoRoom
        bits = alpha[top : max(top, bottom), left : max(left, right)] > 0.5
        return _Seen(x + left, y + top, bits)

    def scene(self) -> Scene:
        for alpha, paint, (x, y) in self._alphas:
            part = self._pixels[y : y + alpha.shape[0], x : x + alpha.shape[1]]
            part += alpha[..., None] * (paint - part)
        np.rint(self._pixels, out=self._pixels)
        picture = Image.fromarray(self._pixels.clip(0, 255).astype(np.uint8))
        things = tuple(
            Thing(*name, mask.bounds()) for name, mask in zip(self._names, self._masks, strict=True)
        )
        return Scene(picture, things)


class _Seen:
    """The pixels of one thing that nothing covers: bits of a part of the picture."""

    def __init__(self, x: int, y: int, bits: Bits) -> None:
        self._x, self._y, self._bits = x, y, bits
        self.area = int(bits.sum())

    def shared(self, other: _Seen) -> int:
        """Pixels of both."""
        mine, theirs = self._common(other)
        return int((mine & theirs).sum())

    def hide_under(self, upper: _Seen) -> None:
        """Take away what the other covers."""
        mine, theirs = self._common(upper)
        self.area -= int((mine & theirs).sum())
        mine &= ~theirs

    def bounds(self) -> Box:
        """Around all that is seen; raises _NoRoom where nothing is."""
        rows, columns = (np.flatnonzero(self._bits.any(axis=axis)) for axis in (1, 0))
        if not rows.size:
            raise _NoRoom
        x, y = self._x, self._y
        return Box(
            float(x + columns[0]),
            float(y + rows[0]),
            float(x + columns[-1] + 1),
            float(y + rows[-1] + 1),
        )

    def _common(self, other: _Seen) -> tuple[Bits, Bits]:
        """The bits of both where their parts overlap, as views."""
        x0, y0 = max(self._x, other._x), max(self._y, other._y)
        x1 = max(x0, min(self._x + self._bits.shape[1], other._x + other._bits.shape[1]))
        y1 = max(y0, min(self._y + self._bits.shape[0], other._y + other._bits.shape[0]))
        mine, theirs = (
            s._bits[y0 - s._y : y1 - s._y, x0 - s._x : x1 - s._x] for s in (self, other)
        )
        return mine, theirs


def _shared(a: Box, b: Box) -> float:
    """What both cover, of the smaller one."""
    common = a.intersection(b)
    return common.area / min(a.area, b.area) if common else 0.0


def _ground(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """A background without hue: even, shaded, striped, checked or grained."""
    level = float(rng.choice([250, 235, 215, 190, 60, 40]))
    tint = rng.uniform(-6, 6, size=3)
    pixels = np.empty((height, width, 3), dtype=np.float32)
    pixels[:] = np.float32(level) + tint.astype(np.float32)
    y, x = (np.arange(n, dtype=np.float32) for n in (height, width))
    y = y[:, None]
    manner = int(rng.integers(5))
    if manner == 1:
        angle = rng.uniform(0, 2 * math.pi)
        ramp = (x / width - 0.5) * math.cos(angle) + (y / height - 0.5) * math.sin(angle)
        pixels += (60 * ramp)[..., None]
    elif manner == 2:
        step, slope = rng.uniform(14, 40), rng.uniform(-1, 1)
        pixels += (10 * np.sign(np.sin((x + y * slope) * 2 * math.pi / step)))[..., None]
    elif manner == 3:
        step = float(rng.uniform(16, 48))
        pixels += (8 * np.sign(np.sin(x * math.pi / step) * np.sin(y * math.pi / step)))[..., None]
    elif manner == 4:
        pixels += rng.normal(0, 9, size=(height, width, 1)).astype(np.float32)
    return pixels


def _paint(rng: np.random.Generator, color: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The surface of a thing: even, striped, dotted, or shaded, in shades of one colour."""
    tones = COLORS[color]
    base = np.array(tones[int(rng.integers(len(tones)))], dtype=np.float32)
    high, wide = shape
    pixels = np.broadcast_to(base, (high, wide, 3)).copy()
    y, x = np.arange(high, dtype=np.float32)[:, None], np.arange(wide, dtype=np.float32)
    manner = int(rng.integers(5))
    if manner == 1:
        step = max(4.0, wide / float(rng.uniform(4, 8)))
        bands = np.sin((x * rng.uniform(-1, 1) + y) * 2 * math.pi / step) > 0
        pixels[bands] *= 0.8
    elif manner == 2:
        step = max(5.0, wide / float(rng.uniform(4, 7)))
        dots = (np.mod(x, step) - step / 2) ** 2 + (np.mod(y, step) - step / 2) ** 2
        pixels[dots < (0.25 * step) ** 2] *= 0.78
    elif manner == 3:
        pixels *= (0.85 + 0.3 * x / max(1, wide))[..., None]
    return pixels


# --- forms ----------------------------------------------------------------------------------------

FINE = 3
"""Times as fine as the picture are forms drawn, then made small again."""


def _alpha(
    shape: str, x: float, y: float, size: float, turn: float
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """How much of each pixel the form covers, and where its array's corner lies in the picture."""
    points = _outline(shape) * (size / 2)
    cos, sin = math.cos(turn), math.sin(turn)
    points = points @ np.array([[cos, sin], [-sin, cos]]) + (x, y)
    x0, y0 = (int(v) for v in np.floor(points.min(axis=0)) - 1)
    x1, y1 = (int(v) for v in np.ceil(points.max(axis=0)) + 1)
    fine = Image.new("L", ((x1 - x0) * FINE, (y1 - y0) * FINE), 0)
    corners = [(float(a), float(b)) for a, b in (points - (x0, y0)) * FINE]
    ImageDraw.Draw(fine).polygon(corners, fill=255)
    small = fine.resize((x1 - x0, y1 - y0), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / np.float32(255), (x0, y0)


def _outline(shape: str) -> NDArray[np.float64]:
    """Corners of the form, about (0, 0), within 1 of it; y grows downward."""
    return np.array(_FORMS[shape])


def _ngon(count: int, *, start: float = -90.0) -> list[tuple[float, float]]:
    angles = [math.radians(start + 360 * i / count) for i in range(count)]
    return [(math.cos(a), math.sin(a)) for a in angles]


def _star() -> list[tuple[float, float]]:
    angles = [math.radians(-90 + 36 * i) for i in range(10)]
    return [
        ((1 if i % 2 == 0 else 0.42) * math.cos(a), (1 if i % 2 == 0 else 0.42) * math.sin(a))
        for i, a in enumerate(angles)
    ]


def _cross() -> list[tuple[float, float]]:
    t = 0.33
    return [
        *((-t, -1), (t, -1), (t, -t), (1, -t), (1, t), (t, t)),
        *((t, 1), (-t, 1), (-t, t), (-1, t), (-1, -t), (-t, -t)),
    ]


def _heart() -> list[tuple[float, float]]:
    found = []
    for i in range(40):
        a = 2 * math.pi * i / 40
        x = 16 * math.sin(a) ** 3
        y = 13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)
        found.append((x / 17, -(y + 2.5) / 15))
    return found


def _moon() -> list[tuple[float, float]]:
    outer = [math.radians(50 + 260 * i / 30) for i in range(31)]
    inner = [math.radians(310 - 260 * i / 30) for i in range(31)]
    return [(math.cos(a), math.sin(a)) for a in outer] + [
        (0.45 + 0.79 * math.cos(a) * 0.97, 0.79 * math.sin(a)) for a in inner
    ]


_FORMS: dict[str, list[tuple[float, float]]] = {
    "circle": _ngon(48),
    "square": [(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)],
    "triangle": [(0, -0.95), (1, 0.8), (-1, 0.8)],
    "star": _star(),
    "diamond": [(0, -1), (0.72, 0), (0, 1), (-0.72, 0)],
    "cross": _cross(),
    "heart": _heart(),
    "pentagon": _ngon(5),
    "moon": _moon(),
    "arrow": [(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)],
}
