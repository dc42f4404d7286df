"""Images that remember where their pixels came from: views, and the operations that derive them.

Invariant: a derived image is its recipe. Its key is a hash of (parents' keys, operation, arguments,
version), its parts map its pixels to those of its parents, and running the recipe again gives the
same pixels bit for bit; so nothing is hashed or encoded when a tool returns a picture.

Left out on purpose: files (`saccade.picture_files` reads them) and what a run keeps
(`saccade.image_store`).
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from PIL import Image, ImageColor, ImageDraw, ImageFilter, ImageOps

from saccade.errors import ImageError, ToolError
from saccade.geometry import Affine, Box, Mask, Point
from saccade.picture_files import to_rgb
from saccade.types import Derivation, ImagePart, ImageRef, LineageError

__all__ = [
    "MAX_OUTPUT_PIXELS",
    "OPERATIONS",
    "ImageView",
    "Operation",
    "again",
    "beside",
    "derived_pixels",
    "root_key",
    "root_view",
]

MAX_ASPECT = 200
"""Longer side over shorter side of a derived image: what model families can be shown."""
MAX_OUTPUT_PIXELS = 40_000_000
"""No operation makes a larger image; 120 MB of RGB."""

_SLACK = 1e-6  # pixels: float noise of frames must not add a row or a column to a crop


# --- operations -----------------------------------------------------------------------------------


class Operation(NamedTuple):
    """One way to make an image from others: pure, deterministic, arguments plain JSON values."""

    version: int
    """Part of the key of what it makes; raised when the same arguments give other pixels."""
    make: Callable[[tuple[Image.Image, ...], Mapping[str, Any]], Image.Image]


def _check_output(operation: str, width: int, height: int) -> None:
    """Recipes are read from files and from services too."""
    if not 0 < width * height <= MAX_OUTPUT_PIXELS:
        raise ImageError(
            f"A recipe says {operation} to {width} x {height} pixels, which is beyond the limit of "
            f"{MAX_OUTPUT_PIXELS}; the record was changed, take the original one."
        )


def _crop(parents: tuple[Image.Image, ...], arguments: Mapping[str, Any]) -> Image.Image:
    x0, y0, x1, y1 = (arguments[name] for name in ("x0", "y0", "x1", "y1"))
    _check_output("crop", x1 - x0, y1 - y0)
    return parents[0].crop((x0, y0, x1, y1))


def _resize(parents: tuple[Image.Image, ...], arguments: Mapping[str, Any]) -> Image.Image:
    method = Image.Resampling[arguments["method"].upper()]
    _check_output("resize", arguments["width"], arguments["height"])
    return parents[0].resize((arguments["width"], arguments["height"]), method)


def _rotate(parents: tuple[Image.Image, ...], arguments: Mapping[str, Any]) -> Image.Image:
    (parent,), degrees = parents, arguments["degrees"]
    if degrees == 0:
        return parent.copy()
    if degrees in _QUARTERS:
        return parent.transpose(_QUARTERS[degrees])
    width, height, m = _rotation(parent.width, parent.height, degrees)
    return parent.transform(
        (width, height),
        Image.Transform.AFFINE,
        (m.a, m.b, m.c, m.d, m.e, m.f),
        Image.Resampling.BICUBIC,
        fillcolor="white",
    )


def _draw_line(parents: tuple[Image.Image, ...], arguments: Mapping[str, Any]) -> Image.Image:
    image = parents[0].copy()
    ends = [arguments[name] for name in ("x0", "y0", "x1", "y1")]
    ImageDraw.Draw(image).line(ends, fill=arguments["color"], width=arguments["width"])
    return image


def _beside(parents: tuple[Image.Image, ...], arguments: Mapping[str, Any]) -> Image.Image:
    a, b = parents
    image = Image.new("RGB", (a.width + b.width, max(a.height, b.height)), "white")
    image.paste(a, (0, 0))
    image.paste(b, (a.width, 0))
    return image


def _enhance(parents: tuple[Image.Image, ...], arguments: Mapping[str, Any]) -> Image.Image:
    image, how = parents[0], arguments["how"]
    if how == "contrast":
        return ImageOps.autocontrast(image, cutoff=1, preserve_tone=True)
    if how == "invert":
        return ImageOps.invert(image)
    radius = 1 + max(image.size) / 500
    return image.filter(ImageFilter.UnsharpMask(radius=radius, percent=150, threshold=2))


def _black(parents: tuple[Image.Image, ...], arguments: Mapping[str, Any]) -> Image.Image:
    return Image.new("RGB", parents[0].size)


def _masked(parents: tuple[Image.Image, ...], arguments: Mapping[str, Any]) -> Image.Image:
    image, gray = parents[0], Image.new("RGB", parents[0].size, _GRAY)
    where = Image.new("L", image.size, 255 if arguments["outside"] else 0)
    draw = ImageDraw.Draw(where)
    for x0, y0, x1, y1 in arguments["boxes"]:
        if x0 < x1 and y0 < y1:
            draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=0 if arguments["outside"] else 255)
    return Image.composite(gray, image, where)


def _mark(parents: tuple[Image.Image, ...], arguments: Mapping[str, Any]) -> Image.Image:
    image = parents[0].copy()
    draw = ImageDraw.Draw(image)
    width = _mark_width(*image.size)
    for number, (x0, y0, x1, y1) in enumerate(arguments["boxes"]):
        # the last row and column of pixels of a box lie just before its far sides
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), None, _color(number), width)
    for number, (x, y) in enumerate(arguments["points"]):
        reach = 4 * width
        around = (x - reach, y - reach, x + reach, y + reach)
        draw.ellipse(around, None, _color(number), width)
        draw.ellipse((x - 1, y - 1, x + 1, y + 1), _color(number))
    return image


def _mark_width(width: int, height: int) -> int:
    return max(2, round(max(width, height) / 600))


def _color(number: int) -> str:
    return _MARKS[number % len(_MARKS)]


def _overlay(parents: tuple[Image.Image, ...], arguments: Mapping[str, Any]) -> Image.Image:
    image = parents[0]
    mask = Mask(image.width, image.height, tuple(arguments["runs"]))
    where = Image.fromarray(mask.array().astype("uint8") * 128)
    return Image.composite(Image.new("RGB", image.size, arguments["color"]), image, where)


_GRAY = (128, 128, 128)
_MARKS = ("#e6194b", "#0082c8", "#3cb44b", "#f58231", "#911eb4", "#008080")

OPERATIONS: dict[str, Operation] = {
    "beside": Operation(1, _beside),
    "black": Operation(1, _black),
    "crop": Operation(1, _crop),
    "draw_line": Operation(1, _draw_line),
    "enhance": Operation(1, _enhance),
    "mark": Operation(1, _mark),
    "masked": Operation(1, _masked),
    "overlay": Operation(1, _overlay),
    "resize": Operation(1, _resize),
    "rotate": Operation(1, _rotate),
}

_QUARTERS = {
    90.0: Image.Transpose.ROTATE_90,
    180.0: Image.Transpose.ROTATE_180,
    270.0: Image.Transpose.ROTATE_270,
}


def _rotation(width: int, height: int, degrees: float) -> tuple[int, int, Affine]:
    """Width and height after a counter-clockwise turn, and the map back to the parent."""
    quarter = degrees / 90
    if quarter == int(quarter):  # exact, so that a quarter turn maps pixel grids onto each other
        cos, sin = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(quarter)]
    else:
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    new_width = math.ceil(width * abs(cos) + height * abs(sin) - _SLACK)
    new_height = math.ceil(width * abs(sin) + height * abs(cos) - _SLACK)
    cx, cy, new_cx, new_cy = width / 2, height / 2, new_width / 2, new_height / 2
    back = Affine(
        cos, -sin, cx - cos * new_cx + sin * new_cy, sin, cos, cy - sin * new_cx - cos * new_cy
    )
    return new_width, new_height, back


def _derived_key(parents: Iterable[str], derivation: Derivation) -> str:
    recipe = [
        list(parents),
        derivation.operation,
        dict(derivation.arguments),
        derivation.version,
    ]
    text = json.dumps(recipe, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def derived_pixels(ref: ImageRef, parents: tuple[Image.Image, ...]) -> Image.Image:
    """The pixels of a derived image. Raises ImageError for a recipe that can't be followed."""
    derivation = ref.derivation
    assert derivation is not None
    operation = OPERATIONS.get(derivation.operation)
    if operation is None or operation.version != derivation.version:
        raise ImageError(
            f"Image {ref.key[:12]} was made by {derivation.operation!r} version "
            f"{derivation.version}, which is not here; use the version of saccade that made it."
        )
    image = operation.make(parents, dict(derivation.arguments))
    if image.size != (ref.width, ref.height):
        raise ImageError(
            f"Image {ref.key[:12]} should be {ref.width} x {ref.height} but its recipe gives "
            f"{image.width} x {image.height}; the record was changed, take the original one."
        )
    if _derived_key((part.parent.key for part in ref.parts), derivation) != ref.key:
        raise ImageError(
            f"Image {ref.key[:12]} is not what its recipe makes; the record was changed, take the "
            "original one."
        )
    return image


# --- views ----------------------------------------------------------------------------------------


class _Once:
    """Pixels computed when first asked for, then kept; safe to ask from several threads."""

    __slots__ = ("_image", "_lock", "_make")

    def __init__(self, make: Callable[[], Image.Image]) -> None:
        self._make: Callable[[], Image.Image] | None = make
        self._image: Image.Image | None = None
        self._lock = threading.Lock()

    def __call__(self) -> Image.Image:
        with self._lock:
            if self._image is None:
                assert self._make is not None
                self._image, self._make = self._make(), None
            return self._image

    @property
    def ready(self) -> Image.Image | None:
        return self._image


@dataclass(frozen=True, slots=True)
class ImageView:
    """An image that can be looked at: its reference, and its pixels when somebody asks for them.

    Operations return new views and leave this one alone. They check their arguments at once
    (ToolError, one sentence for the model) and compute no pixels.
    """

    ref: ImageRef
    parents: tuple[ImageView, ...] = field(default=(), repr=False, compare=False)
    """One for each part of the reference."""
    _source: Callable[[], Image.Image] = field(kw_only=True, repr=False, compare=False)

    @property
    def pixels(self) -> Image.Image:
        """RGB, shared by everyone who asks: copy it before you draw on it."""
        return self._source()

    @property
    def made(self) -> Image.Image | None:
        """The pixels where they are at hand without any work."""
        return self._source.ready if isinstance(self._source, _Once) else None

    def originals(self) -> tuple[ImageView, ...]:
        """The views that it is made from and that are made from none, each once, in order."""
        found: dict[str, ImageView] = {}
        pending, seen = [self], {self.ref.key}
        while pending:
            view = pending.pop()
            if not view.parents:
                found[view.ref.key] = view
            for parent in reversed(view.parents):
                if parent.ref.key not in seen:
                    seen.add(parent.ref.key)
                    pending.append(parent)
        return tuple(found.values())

    @property
    def width(self) -> int:
        return self.ref.width

    @property
    def height(self) -> int:
        return self.ref.height

    def crop(self, box: Box) -> ImageView:
        """The part of the image in a box: clipped to the image, grown outward to whole pixels."""
        inside = box.clip(self.width, self.height)
        if inside is None:
            raise ToolError(
                f"The box {_show(box)} lies outside the image of {self.width} x {self.height} "
                "pixels; choose one inside it."
            )
        if inside.width < 1 - _SLACK or inside.height < 1 - _SLACK:
            raise ToolError(
                f"The box {_show(box)} covers {inside.width:.3g} x {inside.height:.3g} pixels "
                "of the image; choose one of at least 1 x 1 pixels."
            )
        x0, y0 = math.floor(inside.x0 + _SLACK), math.floor(inside.y0 + _SLACK)
        x1, y1 = math.ceil(inside.x1 - _SLACK), math.ceil(inside.y1 - _SLACK)
        arguments = {"x0": x0, "x1": x1, "y0": y0, "y1": y1}
        to_parent = Affine.translate_scale(x0, y0)
        return _derive("crop", arguments, (self,), x1 - x0, y1 - y0, (to_parent,))

    def resize(
        self, width: int, height: int, *, method: Literal["lanczos", "bicubic"] = "lanczos"
    ) -> ImageView:
        """The whole image in another size."""
        if width < 1 or height < 1:
            raise ToolError(
                f"An image can't be resized to {width} x {height}; give sides of at least 1 pixel."
            )
        arguments = {"height": height, "method": method, "width": width}
        to_parent = Affine.translate_scale(0, 0, self.width / width, self.height / height)
        return _derive("resize", arguments, (self,), width, height, (to_parent,))

    def rotate(self, degrees: float) -> ImageView:
        """The whole image turned counter-clockwise about its centre, the corners white."""
        if not math.isfinite(degrees):
            raise ToolError(
                f"An image can't be rotated by {degrees} degrees; give a finite number."
            )
        turn = float(degrees) % 360.0
        turn = 0.0 if turn == 360.0 else turn  # a tiny negative angle rounds up to a full turn
        width, height, to_parent = _rotation(self.width, self.height, turn)
        return _derive("rotate", {"degrees": turn}, (self,), width, height, (to_parent,))

    def draw_line(
        self, start: Point, end: Point, *, color: str = "red", width: int = 2
    ) -> ImageView:
        """The image with a straight line on it, in the same coordinates."""
        for p in (start, end):
            if not (0 <= p.x <= self.width and 0 <= p.y <= self.height):
                raise ToolError(
                    f"The point ({p.x:g}, {p.y:g}) lies outside the image of "
                    f"{self.width} x {self.height} pixels; choose one inside it."
                )
        if not 1 <= width <= max(self.width, self.height):
            raise ToolError(
                f"A line can't be {width} pixels wide on an image of {self.width} x {self.height} "
                f"pixels; choose 1 to {max(self.width, self.height)}."
            )
        try:
            red, green, blue = ImageColor.getrgb(color)[:3]
        except ValueError as error:
            raise ToolError(
                f"There is no colour {color[:40]!r}; use a name such as 'red' or a code such as "
                "'#ff0000'."
            ) from error
        x0, x1 = (min(math.floor(p.x), self.width - 1) for p in (start, end))
        y0, y1 = (min(math.floor(p.y), self.height - 1) for p in (start, end))
        arguments = {
            "color": f"#{red:02x}{green:02x}{blue:02x}",
            "width": width,
            "x0": x0,
            "x1": x1,
            "y0": y0,
            "y1": y1,
        }
        return _derive("draw_line", arguments, (self,), self.width, self.height, (Affine(),))

    def enhance(self, how: Literal["contrast", "sharpen", "invert"]) -> ImageView:
        """The image with its brightness spread, its edges sharpened, or as its negative."""
        return _derive("enhance", {"how": how}, (self,), self.width, self.height, (Affine(),))

    def mark(self, boxes: Sequence[Box] = (), points: Sequence[Point] = ()) -> ImageView:
        """The image with these boxes outlined and these points ringed, in the same coordinates."""
        sides = (self.width, self.height, self.width, self.height)
        arguments = {
            "boxes": [
                [min(round(v), side) for v, side in zip(box.as_tuple(), sides, strict=True)]
                for box in boxes
            ],
            "points": [[round(p.x), round(p.y)] for p in points],
        }
        return _derive("mark", arguments, (self,), self.width, self.height, (Affine(),))

    def masked(self, boxes: Sequence[Box], *, outside: bool = False) -> ImageView:
        """The image with these boxes gray, or with all but them."""
        arguments = {
            "boxes": [[round(v) for v in box.as_tuple()] for box in boxes],
            "outside": outside,
        }
        return _derive("masked", arguments, (self,), self.width, self.height, (Affine(),))

    def overlay(self, mask: Mask, *, color: str = "#e6194b") -> ImageView:
        """The image with a mask of the same size laid over it, half transparent."""
        arguments = {"color": color, "runs": list(mask.runs)}
        return _derive("overlay", arguments, (self,), self.width, self.height, (Affine(),))

    def black(self) -> ImageView:
        """A black picture of the same size and place: what is shown where looking is tested."""
        return _derive("black", {}, (self,), self.width, self.height, (Affine(),))


def _show(box: Box) -> str:
    return "(" + ", ".join(f"{v:g}" for v in box.as_tuple()) + ")"


def root_view(pixels: Image.Image) -> ImageView:
    """An original: its key is the sha256 of its size and RGB bytes. The picture is copied."""
    image = to_rgb(pixels)
    ref = ImageRef(root_key(image), image.width, image.height)
    return ImageView(ref, _source=lambda: image)


def beside(a: ImageView, b: ImageView) -> ImageView:
    """Two images next to each other, top edges level, white under the shorter one."""
    width, height = a.width + b.width, max(a.height, b.height)
    to_b = Affine.translate_scale(-a.width, 0)
    return _derive("beside", {}, (a, b), width, height, (Affine(), to_b))


def again(ref: ImageRef, parents: tuple[ImageView, ...]) -> ImageView:
    """A derived image, made in the same way of other parents, one for each of its parts.

    Raises ToolError where that makes its lineage too long.
    """
    assert ref.derivation is not None
    parts = tuple(
        ImagePart(parent.ref, part.area, part.to_parent)
        for parent, part in zip(parents, ref.parts, strict=True)
    )
    key = _derived_key((p.ref.key for p in parents), ref.derivation)
    return _made(parents, key, ref.width, ref.height, parts, ref.derivation)


def _made(
    parents: tuple[ImageView, ...],
    key: str,
    width: int,
    height: int,
    parts: tuple[ImagePart, ...],
    derivation: Derivation,
) -> ImageView:
    try:
        ref = ImageRef(key, width, height, parts, derivation)
    except LineageError as error:
        raise ToolError(str(error)) from None
    make = _Once(lambda: derived_pixels(ref, tuple(p.pixels for p in parents)))
    return ImageView(ref, parents, _source=make)


def root_key(image: Image.Image) -> str:
    """The key of an RGB picture that derives from no other: see `root_view`."""
    digest = hashlib.sha256(f"{image.width}x{image.height}:".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def _derive(
    operation: str,
    arguments: Mapping[str, Any],
    parents: tuple[ImageView, ...],
    width: int,
    height: int,
    to_parents: tuple[Affine, ...],
) -> ImageView:
    """A view made by a registered operation: one part for each parent, where its pixels lie."""
    if width * height > MAX_OUTPUT_PIXELS:
        raise ToolError(
            f"{operation} would make an image of {width} x {height} pixels, above the limit of "
            f"{MAX_OUTPUT_PIXELS}; ask for a smaller one."
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ToolError(
            f"The result would be {width} x {height} pixels, more than {MAX_ASPECT} times as long "
            "as wide; choose a wider region."
        )
    derivation = Derivation(
        operation, tuple(sorted(arguments.items())), OPERATIONS[operation].version
    )
    parts = tuple(
        ImagePart(
            parent.ref, _area(parent, to_parent, Box(0, 0, width, height), len(parents)), to_parent
        )
        for parent, to_parent in zip(parents, to_parents, strict=True)
    )
    key = _derived_key((p.ref.key for p in parents), derivation)
    return _made(parents, key, width, height, parts, derivation)


def _area(parent: ImageView, to_parent: Affine, whole: Box, parents: int) -> Box:
    """Where a parent's pixels lie in the derived image: all of it, unless parents share it."""
    if parents == 1:
        return whole
    placed = to_parent.inverse().polygon(parent.ref.box).bounds.intersection(whole)
    assert placed is not None
    return placed
