"""Images by content: a safe loader, views that remember where their pixels came from, and a store.

Invariant: a derived image is its recipe. Its key is a hash of (parents' keys, operation, arguments,
version), its parts map its pixels to those of its parents, and running the recipe again gives the
same pixels bit for bit; so only roots are ever written, and nothing is hashed or encoded when a
tool returns a picture.

Left out on purpose: colour management (ICC profiles are ignored), metadata other than the Exif
orientation, frames after the first, and formats whose decoders run other programs (EPS, PDF, SVG).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw, UnidentifiedImageError

from saccade.errors import ImageError, StorageError, ToolError
from saccade.geometry import Affine, Box, Point
from saccade.types import Derivation, ImagePart, ImageRef

__all__ = [
    "MAX_OUTPUT_PIXELS",
    "OPERATIONS",
    "ImageStore",
    "ImageView",
    "Limits",
    "Operation",
    "beside",
    "load_image",
    "root_view",
]

MAX_ASPECT = 200
"""Longer side over shorter side of a derived image: what model families can be shown."""
MAX_OUTPUT_PIXELS = 40_000_000
"""No operation makes a larger image; 120 MB of RGB."""

_SLACK = 1e-6  # pixels: float noise of frames must not add a row or a column to a crop


# --- reading files --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """What a picture file may cost; checked on its header, before anything is decoded."""

    max_bytes: int = 32 * 2**20
    max_pixels: int = 40_000_000
    max_frames: int = 1
    """Files with more frames or pages are refused; of the others the first is taken."""
    max_aspect: float = 200.0
    """Longer side over shorter side; the image processors of the Qwen families refuse more."""


class _Unfit(Exception):
    """A file that no honest program writes; says what it has."""


class _File(NamedTuple):
    """What the header of a picture file says."""

    width: int
    height: int
    frames: int
    orientation: int
    """As Exif numbers it, 1 to 8; 1 is upright."""
    data: bytes
    """What the decoder gets: metadata, and frames after the first, are left out where they are
    easy to leave out, because decoders in Python take quadratic time over hostile metadata."""


def load_image(source: bytes | Path, *, limits: Limits = Limits()) -> Image.Image:
    """An RGB picture from a PNG, JPEG, WEBP, GIF, BMP or TIFF file: upright, and on white.

    Time and memory are bounded by the limits: about 25 bytes of memory for each pixel at the worst.
    Raises ImageError, one sentence, for a file that is missing, not accepted, too large or broken.
    """
    name = f"Picture {source}" if isinstance(source, Path) else "The picture"
    data = _read(source, name, limits)
    kind = next((k for k, accepts in _SIGNATURES.items() if accepts.match(data)), None)
    if kind is None:
        raise ImageError(
            f"{name} is not of an accepted format (it starts with {data[:8]!r}); "
            f"convert it to one of {', '.join(_SIGNATURES)}."
        )
    try:
        file = _HEADERS[kind](data)
    except _Unfit as error:
        raise ImageError(
            f"{name} is a {kind} file with {error}; export it again as PNG."
        ) from error
    except (struct.error, IndexError) as error:
        raise ImageError(
            f"{name} is a broken or truncated {kind} file; export it again."
        ) from error
    _check_size(name, file.width, file.height, limits)
    if file.frames > limits.max_frames:
        raise ImageError(
            f"{name} has {file.frames} frames or pages, above the limit of {limits.max_frames}; "
            "save the one you mean as a PNG file."
        )
    try:
        image = Image.open(io.BytesIO(file.data), formats=[kind])
        _check_size(name, *image.size, limits)  # a decoder may see another size than the header
        image.load()
        rgb = _to_rgb(image)
    except _BROKEN as error:
        words = " ".join(str(error).split())
        detail = f" ({words})" if words and not isinstance(error, UnidentifiedImageError) else ""
        raise ImageError(
            f"{name} is a broken or unsupported {kind} file{detail}; export it again as PNG."
        ) from error
    turn = _UPRIGHT.get(file.orientation)
    return rgb if turn is None else rgb.transpose(turn)


def _read(source: bytes | Path, name: str, limits: Limits) -> bytes:
    if isinstance(source, Path):
        try:
            if not source.is_file():  # a pipe or a device would block or never end
                raise ImageError(f"{name} is not there or is no file; check the path.")
            with source.open("rb") as file:
                source = file.read(limits.max_bytes + 1)
        except OSError as error:
            raise ImageError(
                f"{name} can't be read ({error.strerror}); check the path and its permissions."
            ) from error
    if not source:
        raise ImageError(f"{name} is empty (0 bytes); download or export it again.")
    if len(source) > limits.max_bytes:
        raise ImageError(
            f"{name} is larger than the limit of {limits.max_bytes} bytes; save it smaller."
        )
    return source


def _check_size(name: str, width: int, height: int, limits: Limits) -> None:
    if width < 1 or height < 1:
        raise ImageError(
            f"{name} is {width} x {height} pixels and so holds nothing; export it again."
        )
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{name} has {width} x {height} pixels, above the limit of {limits.max_pixels}; "
            "scale it down."
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        raise ImageError(
            f"{name} is {width} x {height} pixels, one side more than {limits.max_aspect:g} times "
            "the other; cut it into parts."
        )


def _png_header(data: bytes) -> _File:
    width, height = struct.unpack_from(">II", data, 16)
    kept, frames, orientation, at = [data[:8]], 1, 1, 8
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"tRNS" and data[25] == 0 and data[24] in (2, 4):  # few-bit greys
            # Pillow spreads the pixels over 0..255 but not the grey that is transparent
            (grey,) = struct.unpack_from(">H", data, at + 8)
            chunk = b"tRNS" + struct.pack(">H", grey * 255 // (2 ** data[24] - 1) & 0xFFFF)
            kept.append(struct.pack(">I", 2) + chunk + struct.pack(">I", zlib.crc32(chunk)))
        elif kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            kept.append(data[at : at + length + 12])
        elif kind == b"acTL":
            frames = max(1, struct.unpack_from(">I", data, at + 8)[0])
        elif kind == b"eXIf":
            orientation = _exif_orientation(data[at + 8 : at + 8 + length])
        at += length + 12
    return _File(width, height, frames, orientation, b"".join(kept))


def _jpeg_header(data: bytes) -> _File:
    width = height = 0
    kept, orientation, at = {"start": data[:2]}, 1, 2
    while True:
        while data[at] == 0xFF and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        marker = data[at + 1]
        if data[at] != 0xFF or marker in (0xD8, 0xD9):
            raise _Unfit("a broken header")
        if marker == 0xDA:  # the scans; few in any real file, each a pass over all pixels
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:
            at += 2
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        segment = data[at : at + 2 + length]
        if marker in _JPEG_FRAMES and not width:
            height, width = struct.unpack_from(">HH", data, at + 5)
        if marker in (0xE0, 0xEE):  # JFIF and Adobe: needed for the colours, once
            kept.setdefault(f"application {marker}", segment)
        elif marker == 0xE1 and segment[4:10] == b"Exif\0\0" and orientation == 1:
            orientation = _exif_orientation(segment[10:])
        elif marker < 0xE0 and len(kept) < _MAX_JPEG_PARTS:
            kept[f"table at {at}"] = segment
        at += 2 + length
    if data.count(b"\xff\xda", at) > _MAX_JPEG_PARTS:
        raise _Unfit(f"more than {_MAX_JPEG_PARTS} scans")
    return _File(width, height, 1, orientation, b"".join(kept.values()) + data[at:])


def _gif_header(data: bytes) -> _File:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _palette_bytes(flags)
    kept, control, frames = [data[:at]], b"", 0
    while at < len(data) and data[at] in (0x21, 0x2C):
        start = at
        if data[at] == 0x21:  # an extension: two bytes, then blocks
            at = _after_blocks(data, at + 2)
            if data[start + 1] == 0xF9:
                control = data[start:at]
        else:
            at = _after_blocks(data, at + 11 + _palette_bytes(data[at + 9]))
            frames += 1
            if frames == 1:
                kept += [control, data[start:at]]
    return _File(width, height, frames, 1, b"".join(kept) + b";")


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    while size := data[at]:
        at += size + 1
    return at + 1


def _bmp_header(data: bytes) -> _File:
    (header,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
    if header > 12 and struct.unpack_from("<I", data, 30)[0] in (1, 2) and len(data) > 2**20:
        raise _Unfit("more than 1 MiB of run lengths")
    return _File(width, abs(height), 1, 1, data)


def _webp_header(data: bytes) -> _File:
    width = height = frames = 0
    orientation, at = 1, 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        if kind == b"ANMF":
            frames += 1
        elif kind == b"EXIF":
            orientation = _exif_orientation(data[at + 8 : at + 8 + length])
        elif kind == b"VP8X":
            width, height = (
                1 + int.from_bytes(data[at + i : at + i + 3], "little") for i in (12, 15)
            )
        elif kind == b"VP8 " and not width:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, at + 14))
        elif kind == b"VP8L" and not width:
            (bits,) = struct.unpack_from("<I", data, at + 9)
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        at += 8 + length + length % 2
    return _File(width, height, max(1, frames), orientation, data)


def _tiff_header(data: bytes) -> _File:
    order = "<" if data[:2] == b"II" else ">"
    (first,) = struct.unpack_from(order + "I", data, 4)
    pages, at = 0, first
    seen: set[int] = set()
    while at and at not in seen:
        seen.add(at)
        pages += 1
        (entries,) = struct.unpack_from(order + "H", data, at)
        (at,) = struct.unpack_from(order + "I", data, at + 2 + 12 * entries)
    values: dict[int, int] = {}
    room = len(data)  # entries may all point at the same bytes, and the decoder copies each
    directories = [first]
    while directories:
        for tag, kind, count, place in _directory(data, order, directories.pop()):
            room -= _TIFF_BYTES.get(kind, 1) * count
            if room < 0:
                raise _Unfit("entries larger than the file")
            value = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, place)[0]
            if tag in (34665, 34853, 40965):  # directories inside: Exif, GPS, interoperability
                directories.append(value)
            values.setdefault(tag, value)
    width, height = values.get(256, 0), values.get(257, 0)
    if values.get(322, 0) * values.get(323, 0) > max(4 * width * height, 2**22):
        raise _Unfit("tiles larger than the image")
    return _File(width, height, pages, 1, data)  # Pillow turns TIFF upright itself


def _directory(data: bytes, order: str, at: int) -> Iterator[tuple[int, int, int, int]]:
    """Tag, type, count and place of the value of each entry of a TIFF directory."""
    (entries,) = struct.unpack_from(order + "H", data, at)
    for place in range(at + 2, at + 2 + 12 * entries, 12):
        tag, kind, count = struct.unpack_from(order + "HHI", data, place)
        yield tag, kind, count, place + 8


def _exif_orientation(exif: bytes) -> int:
    """1 where it says nothing that can be understood."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(order + "I", exif, 4)
        for tag, kind, count, place in _directory(exif, order, first):
            if (tag, kind, count) == (0x0112, 3, 1):
                return int(struct.unpack_from(order + "H", exif, place)[0])
    except struct.error:
        pass
    return 1


_SIGNATURES = {
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n....IHDR", re.DOTALL),
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "GIF": re.compile(rb"GIF8[79]a"),
    "BMP": re.compile(rb"BM"),
    "TIFF": re.compile(rb"II\*\0|MM\0\*"),
}
_HEADERS: dict[str, Callable[[bytes], _File]] = {
    "PNG": _png_header,
    "JPEG": _jpeg_header,
    "WEBP": _webp_header,
    "GIF": _gif_header,
    "BMP": _bmp_header,
    "TIFF": _tiff_header,
}
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_MAX_JPEG_PARTS = 100
_TIFF_BYTES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow's decoders have no common error; these are what broken files make them raise.
_BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    Image.DecompressionBombError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
    struct.error,
    zlib.error,
)


def _to_rgb(image: Image.Image) -> Image.Image:
    """A new RGB picture: 16-bit and floating values scaled, what is transparent on white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        rgb = _scaled(image).convert("RGB")
    elif image.has_transparency_data:
        key = image.info.get("transparency")
        if isinstance(key, tuple) and max(key) > 255:  # of 16 bits, where the pixels have 8 left
            image.info["transparency"] = tuple(value >> 8 for value in key)
        rgba = image.convert("LA") if image.mode == "La" else image
        rgba = rgba.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(rgba)
        rgb = white.convert("RGB")
    else:
        rgb = image.convert("RGB")
    rgb.info.clear()  # what is left there may be written again with the picture
    return rgb


def _scaled(image: Image.Image) -> Image.Image:
    """8-bit greys: 16-bit values by their range; others from the least (or 0) to the greatest."""
    values = np.asarray(image)
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        grey = np.rint(values / np.float32(257))
    else:
        grey = values.astype(np.float64)
        np.nan_to_num(grey, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        low, high = min(0.0, grey.min()), max(0.0, grey.max())
        grey -= low  # in place: large pictures must not be held four times over
        grey /= max(high - low, np.finfo(np.float64).tiny)
        grey *= 255
        np.rint(grey, out=grey)
    if isinstance(key, int):
        grey = np.where(values == key, 255, grey)
    return Image.fromarray(grey.astype(np.uint8))


# --- operations -----------------------------------------------------------------------------------


class Operation(NamedTuple):
    """One way to make an image from others: pure, deterministic, arguments plain JSON values."""

    version: int
    """Part of the key of what it makes; raised when the same arguments give other pixels."""
    make: Callable[[tuple[Image.Image, ...], Mapping[str, Any]], Image.Image]


def _crop(parents: tuple[Image.Image, ...], arguments: Mapping[str, Any]) -> Image.Image:
    return parents[0].crop(tuple(arguments[name] for name in ("x0", "y0", "x1", "y1")))


def _resize(parents: tuple[Image.Image, ...], arguments: Mapping[str, Any]) -> Image.Image:
    method = Image.Resampling[arguments["method"].upper()]
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


OPERATIONS: dict[str, Operation] = {
    "beside": Operation(1, _beside),
    "crop": Operation(1, _crop),
    "draw_line": Operation(1, _draw_line),
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


def _make(ref: ImageRef, parents: tuple[Image.Image, ...]) -> Image.Image:
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


def _show(box: Box) -> str:
    return "(" + ", ".join(f"{v:g}" for v in box.as_tuple()) + ")"


def root_view(pixels: Image.Image) -> ImageView:
    """An original: its key is the sha256 of its size and RGB bytes. The picture is copied."""
    image = _to_rgb(pixels)
    ref = ImageRef(_root_key(image), image.width, image.height)
    return ImageView(ref, _source=lambda: image)


def beside(a: ImageView, b: ImageView) -> ImageView:
    """Two images next to each other, top edges level, white under the shorter one."""
    width, height = a.width + b.width, max(a.height, b.height)
    to_b = Affine.translate_scale(-a.width, 0)
    return _derive("beside", {}, (a, b), width, height, (Affine(), to_b))


def _root_key(image: Image.Image) -> str:
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
    ref = ImageRef(key, width, height, parts, derivation)
    make = _Once(lambda: _make(ref, tuple(p.pixels for p in parents)))
    return ImageView(ref, parents, _source=make)


def _area(parent: ImageView, to_parent: Affine, whole: Box, parents: int) -> Box:
    """Where a parent's pixels lie in the derived image: all of it, unless parents share it."""
    if parents == 1:
        return whole
    placed = to_parent.inverse().polygon(parent.ref.box).bounds.intersection(whole)
    assert placed is not None
    return placed


# --- store ----------------------------------------------------------------------------------------


class ImageStore:
    """Every image of a run, each kept once by its key. Safe to use from several threads.

    Pixels of derived images are a cache and are made again from their recipes when gone. Roots
    stay: those that `folder` holds are read when asked for; the others are kept in memory, packed
    without loss when the cache is full.
    """

    def __init__(self, folder: Path | None = None, *, cache_bytes: int = 256 * 2**20) -> None:
        self._folder = folder
        """A run folder: roots are read from its `images/`."""
        self._cache_bytes = cache_bytes
        """For unpacked pixels; the image asked for last is kept even if it is larger."""
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, Image.Image] = OrderedDict()  # least recently used first
        self._cached_bytes = 0
        self._kept: dict[str, bytes | None] = {}  # roots that are nowhere else; bytes once packed

    def add(self, view: ImageView) -> ImageRef:
        """Keep an image, and the roots that it is made from. Computes and hashes nothing."""
        pending, seen = [view], set()
        while pending:
            one = pending.pop()
            if one.ref.key in seen:
                continue
            seen.add(one.ref.key)
            pending += one.parents
            if one.ref.is_root and not self._has_root(one.ref):
                self._remember(one.ref, one.pixels, keep=True)
        if view.made is not None:
            self._remember(view.ref, view.made)
        return view.ref

    def view(self, ref: ImageRef) -> ImageView:
        """A view that makes or reads its pixels when asked. Raises ImageError without its roots."""
        for root in ref.roots():
            if not self._has_root(root):
                where = f"nor in {self._folder / 'images'}" if self._folder else "without a folder"
                raise ImageError(
                    f"Image {root.key[:12]} is not in this store, {where}; add it, or open the "
                    "store on the run folder that holds it."
                )
        return self._view(ref)

    def _view(self, ref: ImageRef) -> ImageView:
        parents = tuple(self._view(part.parent) for part in ref.parts)
        return ImageView(ref, parents, _source=lambda: self._pixels(ref))

    def save(self, refs: Iterable[ImageRef], folder: Path) -> None:
        """Write the roots of these images to `folder/images/<key>.png`, lossless, each once.

        A file appears whole or not at all. Raises StorageError where it can't be written.
        """
        roots = {root.key: root for ref in refs for root in ref.roots()}
        for root in roots.values():
            path = _root_path(folder, root)
            if not path.exists():
                image = self.view(root).pixels
                try:
                    _write_png(image, path)
                except OSError as error:
                    raise StorageError(
                        f"Can't write image {path} ({error.strerror}); free some space or make the "
                        "folder writable, then run the same command again."
                    ) from error
            if folder == self._folder:
                with self._lock:
                    self._kept.pop(root.key, None)

    def forget(self, refs: Iterable[ImageRef]) -> None:
        """Drop these roots: a training run does not keep the pictures of every step it made.

        What derives from them can't be made again here; roots that a folder holds are still read.
        """
        with self._lock:
            for ref in refs:
                self._kept.pop(ref.key, None)
                dropped = self._cache.pop(ref.key, None)
                if dropped is not None:
                    self._cached_bytes -= _bytes(dropped)

    def _has_root(self, root: ImageRef) -> bool:
        with self._lock:
            if root.key in self._kept or root.key in self._cache:
                return True
        return self._folder is not None and _root_path(self._folder, root).exists()

    def _pixels(self, ref: ImageRef) -> Image.Image:
        with self._lock:
            found = self._cache.get(ref.key)
            if found is not None:
                self._cache.move_to_end(ref.key)
                return found
            packed = self._kept.get(ref.key)
        if not ref.is_root:
            image = _make(ref, tuple(self._pixels(part.parent) for part in ref.parts))
        elif packed is not None:
            image = Image.frombytes("RGB", (ref.width, ref.height), zlib.decompress(packed))
        else:
            image = self._read_root(ref)
        return self._remember(ref, image)

    def _read_root(self, root: ImageRef) -> Image.Image:
        assert self._folder is not None
        path = _root_path(self._folder, root)
        pixels = root.width * root.height
        limits = Limits(
            max_bytes=4 * pixels + 2**20,  # a lossless file of ours can't be longer
            max_pixels=pixels,
            max_aspect=math.inf,
        )
        image = load_image(path, limits=limits)
        if _root_key(image) != root.key:
            raise ImageError(
                f"Image file {path} holds other pixels than its name says; restore the original."
            )
        return image

    def _remember(self, ref: ImageRef, image: Image.Image, *, keep: bool = False) -> Image.Image:
        """What the cache holds for it afterwards; the least recently used ones make room.

        With `keep`, it is a root that nobody else has.
        """
        key = ref.key
        with self._lock:
            if keep:
                self._kept.setdefault(key, None)
            kept = self._cache.get(key)
            if kept is None:
                kept = self._cache[key] = image
                self._cached_bytes += _bytes(image)
            self._cache.move_to_end(key)
            while self._cached_bytes > self._cache_bytes and len(self._cache) > 1:
                old, gone = self._cache.popitem(last=False)
                self._cached_bytes -= _bytes(gone)
                if old in self._kept and self._kept[old] is None:
                    self._kept[old] = zlib.compress(gone.tobytes(), 1)
            return kept


def _bytes(image: Image.Image) -> int:
    return 3 * image.width * image.height


def _root_path(folder: Path, root: ImageRef) -> Path:
    if not re.fullmatch(r"[0-9a-f]{64}", root.key):  # a key becomes a file name
        raise ImageError(
            f"{root.key[:80]!r} is no key of an image; it must be 64 hexadecimal digits."
        )
    return folder / "images" / f"{root.key}.png"


def _write_png(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            image.save(file, format="PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
