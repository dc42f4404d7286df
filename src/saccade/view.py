"""An episode to look at: its gaze drawn on the original picture, and its steps as a piece of HTML.

Invariant: whatever a model, a tool or a data set wrote is shown as text and never becomes markup,
in any script; the number of a region in the picture is its place in `episode.gaze`, everywhere.
Left out on purpose: masks (a tool's mask is told in words), editing, and anything that needs a
browser's script.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image, ImageDraw, ImageFont

from saccade.errors import SaccadeError
from saccade.geometry import Box, Polygon
from saccade.image_store import ImageStore
from saccade.types import (
    BadCall,
    BoxFound,
    BoxNamed,
    Episode,
    ImageRef,
    ImageShown,
    MaskFound,
    Part,
    PointFound,
    Region,
    Text,
    ToolCall,
    ToolResult,
)

__all__ = [
    "GAZE_COLORS",
    "call_text",
    "data_uri",
    "episode_html",
    "gaze_picture",
    "html_templates",
]

GAZE_COLORS = ("#d55e00", "#0072b2", "#b5489a", "#c28100", "#2a9dd6", "#7a4fc9", "#8c4a2f")
"""One after the other; told apart with any kind of colour vision, and never green."""
EVIDENCE_COLOR = "#009e73"

_SUPERSAMPLE = 2
_GAP_PX = 10
_TEXT_LIMIT = 4000
_UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


# --- the picture ----------------------------------------------------------------------------------


def gaze_picture(episode: Episode, store: ImageStore, *, max_side_px: int = 900) -> Image.Image:
    """The original picture, or several side by side, with every region of the gaze on it.

    Regions are numbered in order: solid where their pixels came back, dashed where the model wrote
    the box, thin where a tool found it. Evidence is outlined in green. RGB, no side above
    `max_side_px`; a small original is enlarged up to twice. Raises ImageError where the store lacks
    an original.
    """
    originals = _originals(episode)
    gaps = _GAP_PX * (len(originals) - 1)
    wide, high = sum(o.width for o in originals), max(o.height for o in originals)
    scale = min(2.0, max(1, max_side_px - gaps) / wide, max_side_px / high)
    sizes = [(max(1, int(o.width * scale)), max(1, int(o.height * scale))) for o in originals]
    picture = Image.new(
        "RGB", (sum(w for w, _ in sizes) + gaps, max(h for _, h in sizes)), "#ffffff"
    )
    offsets, x = {}, 0
    for original, size in zip(originals, sizes, strict=True):
        picture.paste(store.view(original).pixels.resize(size, Image.Resampling.LANCZOS), (x, 0))
        offsets[original.key] = x
        x += size[0] + _GAP_PX
    pen = _Pen(picture.size)
    for evidence in episode.sample.evidence:
        for root, polygon in evidence.image.to_roots(evidence.box):
            pen.evidence(_placed(polygon, offsets[root.key], scale))
    looks = [(r, _placed(r.polygon, offsets[r.image.key], scale)) for r in episode.gaze]
    # dashes last: a look often has the very outline that the model wrote
    for how in ("seen", "found", "named"):
        for number, (region, corners) in enumerate(looks, start=1):
            if region.how == how:
                pen.outline(corners, how=how, color=_color(number))
    for number, (_, corners) in enumerate(looks, start=1):
        pen.tag(corners, number=number, color=_color(number))
    return pen.on(picture)


def _originals(episode: Episode) -> list[ImageRef]:
    shown = [root for image in episode.sample.images for root in image.roots()]
    shown += [root for e in episode.sample.evidence for root in e.image.roots()]
    shown += [region.image for region in episode.gaze]
    return list({root.key: root for root in shown}.values())


def _color(number: int) -> str:
    return GAZE_COLORS[(number - 1) % len(GAZE_COLORS)]


_Corners = list[tuple[float, float]]


def _placed(polygon: Polygon, offset: float, scale: float) -> _Corners:
    return [(offset + p.x * scale, p.y * scale) for p in polygon.points]


class _Pen:
    """Draws on a clear sheet of the picture's size, finer than it, and lays it over the picture."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        k = _SUPERSAMPLE
        self._sheet = Image.new("RGBA", (size[0] * k, size[1] * k), (255, 255, 255, 0))
        self._draw = ImageDraw.Draw(self._sheet)
        self._tags: list[Box] = []

    def evidence(self, corners: _Corners) -> None:
        self._line(corners, width=6, color="#ffffffc0")
        self._line(corners, width=4, color=EVIDENCE_COLOR)

    def outline(self, corners: _Corners, *, how: str, color: str) -> None:
        width = {"seen": 4.0, "named": 4.0, "found": 1.6}[how]
        dash = 10.0 if how == "named" else None
        if dash is None:  # a pale rim keeps it visible on any ground
            self._line(corners, width=width + 2, color="#ffffffc0")
        self._line(corners, width=width, color=color, dash=dash)

    def tag(self, corners: _Corners, *, number: int, color: str) -> None:
        text = str(number)
        width, height = 14 + 12 * len(text), 27
        middle_x = sum(x for x, _ in corners) / len(corners)
        middle_y = sum(y for _, y in corners) / len(corners)
        whole = Box(0, 0, *self.size).expand(1)
        visible = [
            c for c in corners if whole.x0 <= c[0] <= whole.x1 and whole.y0 <= c[1] <= whole.y1
        ]
        places = [
            self._inside(
                (x if x <= middle_x else x - width) + step * (width + 2),
                y - height if y <= middle_y else y,
                width,
                height,
            )
            for step in range(8)
            for x, y in visible or corners
        ]
        free = (p for p in places if not any(p.intersection(t) for t in self._tags))
        place = next(free, places[0])
        self._tags.append(place)
        k = _SUPERSAMPLE
        area = tuple(v * k for v in place.as_tuple())
        self._draw.rounded_rectangle(area, radius=4 * k, fill=color, outline="#ffffff", width=k)
        middle = (place.center.x * k, place.center.y * k)
        self._draw.text(middle, text, fill="#ffffff", font=_font(20 * k), anchor="mm")

    def on(self, picture: Image.Image) -> Image.Image:
        sheet = self._sheet.resize(self.size, Image.Resampling.LANCZOS)
        return Image.alpha_composite(picture.convert("RGBA"), sheet).convert("RGB")

    def _inside(self, x: float, y: float, width: float, height: float) -> Box:
        x = max(0.0, min(x, self.size[0] - width))
        y = max(0.0, min(y, self.size[1] - height))
        return Box(x, y, x + width, y + height)

    def _line(
        self, corners: _Corners, *, width: float, color: str, dash: float | None = None
    ) -> None:
        k = _SUPERSAMPLE
        limit = 4.0 * max(self.size)  # far corners of a turned region would cost endless dashes
        fine = [
            (min(max(x, -limit), limit) * k, min(max(y, -limit), limit) * k) for x, y in corners
        ]
        closed = [*fine, fine[0]]
        strokes = [[*closed, fine[1]]] if dash is None else list(_dashes(closed, dash * k))
        for stroke in strokes:
            self._draw.line(stroke, fill=color, width=round(width * k), joint="curve")


def _dashes(path: _Corners, length: float) -> Iterator[_Corners]:
    for (x0, y0), (x1, y1) in pairwise(path):
        count = max(1, round(math.hypot(x1 - x0, y1 - y0) / length) | 1)  # odd: corners are drawn
        for i in range(0, count, 2):
            a, b = i / count, (i + 1) / count
            yield [(x0 + (x1 - x0) * t, y0 + (y1 - y0) * t) for t in (a, b)]


@lru_cache(maxsize=4)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


# --- text -----------------------------------------------------------------------------------------


def _showable(value: Any) -> Any:
    """Text without what HTML or UTF-8 can't hold; markup of ours is left as it is."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return _UNSHOWABLE.sub("\ufffd", value.replace("\r\n", "\n"))
    return value


@lru_cache(maxsize=1)
def html_templates() -> Environment:
    """The package's templates: every value is escaped, a missing one is an error."""
    return Environment(
        loader=PackageLoader("saccade", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_showable,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shortened(text: str) -> str:
    rest = len(text) - _TEXT_LIMIT
    return text if rest <= 0 else f"{text[:_TEXT_LIMIT]} … ({rest} more characters)"


# --- steps ----------------------------------------------------------------------------------------


class _Chip(NamedTuple):
    """The number of a region, in its colour."""

    number: int
    color: str


@dataclass(frozen=True, slots=True)
class _Figure:
    """A thumbnail; `source` is empty where the picture is not stored."""

    source: str
    width: int
    height: int
    caption: str
    chips: tuple[_Chip, ...]


class _Note(NamedTuple):
    """One part of an observation in words."""

    text: str
    chips: tuple[_Chip, ...] = ()
    figure: _Figure | None = None


class _Call(NamedTuple):
    text: str
    problem: str
    failed: bool
    notes: tuple[_Note, ...]


class _Step(NamedTuple):
    number: int
    thought: str
    figures: tuple[_Figure, ...]
    calls: tuple[_Call, ...]


class _Gaze:
    """Finds the numbers of what an episode shows."""

    def __init__(self, episode: Episode) -> None:
        self._numbers: dict[tuple[int, str, str, Polygon, str], list[int]] = {}
        for number, region in enumerate(episode.gaze, start=1):
            self._numbers.setdefault(self._key(region), []).append(number)

    @staticmethod
    def _key(region: Region) -> tuple[int, str, str, Polygon, str]:
        return (region.turn, region.how, region.image.key, region.polygon, region.phrase)

    def chips(
        self, image: ImageRef, box: Box, *, how: Any, turn: int, phrase: str
    ) -> tuple[_Chip, ...]:
        found = []
        for root, polygon in image.to_roots(box):
            key = self._key(Region(root, polygon, how, turn, phrase))
            found += self._numbers.get(key, [])
        return tuple(_Chip(n, _color(n)) for n in sorted(set(found)))


def episode_html(episode: Episode, store: ImageStore) -> str:
    """The episode as HTML: question, each thought beside what it rests on, calls, answer.

    Pictures are inline; one that the store lacks is told in words. Looks right with the rules of
    `templates/style.css`, which the report includes.
    """
    gaze = _Gaze(episode)
    steps = [_step(episode, number, gaze, store) for number in range(len(episode.turns))]
    try:
        picture = gaze_picture(episode, store)
    except SaccadeError:
        figure = _Figure("", 0, 0, "", ())
    else:
        figure = _Figure(data_uri(picture, quality=88), picture.width, picture.height, "", ())
    score = episode.score.value if episode.score else None
    return (
        html_templates()
        .get_template("episode.html.jinja")
        .render(
            sample=episode.sample,
            picture=figure,
            regions=len(episode.gaze),
            hows=[h for h in ("seen", "named", "found") if any(r.how == h for r in episode.gaze)],
            evidence=bool(episode.sample.evidence),
            steps=steps,
            answer=None if episode.answer is None else _shortened(episode.answer),
            gold=_shortened(episode.sample.answer),
            score=score,
            score_text="–" if score is None else f"{score:+.2f}".replace("-", "−"),
            detail=episode.score.detail if episode.score else "",
            stop=episode.stop.value.replace("_", " ") if episode.stop else "still running",
        )
    )


def _step(episode: Episode, number: int, gaze: _Gaze, store: ImageStore) -> _Step:
    turn = episode.turns[number]
    is_last = number + 1 == len(episode.turns)
    figures = [*_before(episode, number, gaze, store)]
    figures += [_named_figure(n, number, gaze, store) for n in turn.named]
    calls = [_call(r, number, gaze, store if is_last else None) for r in turn.results]
    for call in turn.parsed.calls[len(turn.results) :]:
        text, problem = call_text(call)
        calls.append(_Call(text, _not_a_call(problem), failed=False, notes=(_Note("not run"),)))
    for bad in turn.refused:
        calls.append(_Call(_shortened(bad.raw), f"not a box: {bad.reason}", failed=True, notes=()))
    said = "\n".join(text for text in (turn.parsed.thought, turn.parsed.rethought) if text)
    return _Step(number + 1, _shortened(said), tuple(figures), tuple(calls))


def _not_a_call(problem: str) -> str:
    return f"not a call: {problem}" if problem else ""


def _before(episode: Episode, number: int, gaze: _Gaze, store: ImageStore) -> Iterator[_Figure]:
    """What lay before the model when it thought: the question's pictures, or what came back."""
    if number == 0:
        for place, image in enumerate(episode.sample.images, start=1):
            name = "the picture" if len(episode.sample.images) == 1 else f"picture {place}"
            yield _figure(image, name, (), store)
        return
    for result in episode.turns[number - 1].results:
        for part in result.parts:
            if isinstance(part, ImageShown):
                # in a control another picture stood under that name
                shown = episode.images.get(part.name, part.image)
                yield _shown_figure(part, shown, number - 1, gaze, store)


def _shown_figure(
    part: ImageShown, shown: ImageRef, turn: int, gaze: _Gaze, store: ImageStore
) -> _Figure:
    """What the model was shown of a look, with the gaze of the look itself."""
    chips = gaze.chips(part.image, part.image.box, how="seen", turn=turn, phrase=part.name)
    return _figure(shown, part.name, chips, store)


def _named_figure(named: BoxNamed, turn: int, gaze: _Gaze, store: ImageStore) -> _Figure:
    chips = gaze.chips(named.image, named.box, how="named", turn=turn, phrase=named.phrase)
    inside = named.box.clip(named.image.width, named.image.height)
    caption = named.phrase or "named"
    return _figure(named.image, caption, chips, store, part=inside)


def call_text(call: ToolCall | BadCall) -> tuple[str, str]:
    """What the model wrote, and why it is no call; that is empty where it is one."""
    if isinstance(call, BadCall):
        return _shortened(call.raw), call.reason
    arguments = ", ".join(
        f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in call.arguments.items()
    )
    return _shortened(f"{call.name}({arguments})"), ""


def _call(result: ToolResult, turn: int, gaze: _Gaze, store: ImageStore | None) -> _Call:
    """A call with what came back; with thumbnails where there is a store."""
    notes = [_note(part, turn, gaze, store) for part in result.parts]
    for named in result.named:
        chips = gaze.chips(named.image, named.box, how="named", turn=turn, phrase=named.phrase)
        if chips:
            notes.insert(0, _Note("asked for", chips))
    text, problem = call_text(result.call)
    if any(problem in note.text for note in notes):  # the observation says it
        problem = ""
    return _Call(text, _not_a_call(problem), result.failed, tuple(notes))


def _note(part: Part, turn: int, gaze: _Gaze, store: ImageStore | None) -> _Note:
    if isinstance(part, Text):
        return _Note(_shortened(part.text))
    if isinstance(part, ImageShown):
        chips = gaze.chips(part.image, part.image.box, how="seen", turn=turn, phrase=part.name)
        figure = _shown_figure(part, part.image, turn, gaze, store) if store else None
        return _Note(f"{part.name}, {part.image.width} × {part.image.height} px", chips, figure)
    sure = "" if part.score is None else f" ({part.score:.2f})"
    if isinstance(part, MaskFound):
        return _Note(f"mask of {part.label or 'something'}{sure}, {part.mask.area} px")
    if isinstance(part, PointFound):
        place = f"({part.point.x:.0f}, {part.point.y:.0f})"
        return _Note(f"point at {part.label or 'something'}{sure}: {place} px")
    return _Note(f"found {part.label or 'something'}{sure}", _found_chips(part, turn, gaze))


def _found_chips(part: BoxFound, turn: int, gaze: _Gaze) -> tuple[_Chip, ...]:
    return gaze.chips(part.image, part.box, how="found", turn=turn, phrase=part.label)


# --- pictures in HTML -----------------------------------------------------------------------------


def _figure(
    image: ImageRef,
    caption: str,
    chips: Sequence[_Chip],
    store: ImageStore,
    *,
    part: Box | None = None,
) -> _Figure:
    try:
        pixels = store.view(image).pixels
    except SaccadeError:
        return _Figure("", 0, 0, caption, tuple(chips))
    if part is not None:
        x0, y0 = min(int(part.x0), image.width - 1), min(int(part.y0), image.height - 1)
        x1, y1 = max(math.ceil(part.x1), x0 + 1), max(math.ceil(part.y1), y0 + 1)
        pixels = pixels.crop((x0, y0, x1, y1))
    scale = min(4.0, 190 / pixels.width, 150 / pixels.height)
    size = (max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale)))
    fine = (size[0] * 2, size[1] * 2)  # sharp on dense screens where the view has the pixels
    if fine[0] > pixels.width:
        fine = size if size[0] > pixels.width else pixels.size
    thumbnail = pixels.resize(fine, Image.Resampling.LANCZOS)
    return _Figure(data_uri(thumbnail, quality=82), *size, caption, tuple(chips))


def data_uri(image: Image.Image, *, quality: int) -> str:
    """The picture as an address that a page holds in itself."""
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=quality, method=3)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
