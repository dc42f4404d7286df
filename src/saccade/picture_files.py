"""Picture files from anywhere, read safely: one RGB picture, upright and on white, or one sentence.

Invariant: whatever bytes come in, time and memory stay within `Limits` and nothing but ImageError
comes out; a header is judged, and hostile metadata left out, before anything is decoded.

Left out on purpose: colour management (ICC profiles are ignored), metadata other than the Exif
orientation, frames after the first, and formats whose decoders run other programs (EPS, PDF, SVG).
"""

from __future__ import annotations

import io
import itertools
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from saccade.errors import ImageError

__all__ = ["Limits", "load_image", "to_rgb"]


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
    """Counted no further than one above the limit, where counting takes time."""
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
        file = _HEADERS[kind](data, limits)
    except _Unfit as error:
        raise ImageError(
            f"{name} is a {kind} file with {error}; export it again as PNG."
        ) from error
    except (struct.error, IndexError) as error:
        raise ImageError(
            f"{name} is a broken or truncated {kind} file; export it again."
        ) from error
    if file.frames > limits.max_frames:
        raise ImageError(
            f"{name} has more frames or pages than the limit of {limits.max_frames}; "
            "save the one you mean as a PNG file."
        )
    _check_size(name, file.width, file.height, limits)
    try:
        image = Image.open(io.BytesIO(file.data), formats=[kind])
        _check_size(name, *image.size, limits)  # a decoder may see another size than the header
        image.load()
        rgb = to_rgb(image)
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


def _at_most(count: int, things: str) -> Iterator[None]:
    """Something to loop over `count` times; raises _Unfit for a file that has more of the things.

    Millions of tiny ones fit into the limit of bytes, and each takes time here and in the decoder.
    """
    yield from itertools.repeat(None, count)
    raise _Unfit(f"more than {count} {things}")


def _png_header(data: bytes, limits: Limits) -> _File:
    width, height = struct.unpack_from(">II", data, 16)
    kept, frames, orientation, at = [data[:8]], 1, 1, 8
    for _ in _at_most(_MAX_PARTS, "chunks"):
        if at + 8 > len(data):
            break
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
        if kind == b"IEND":
            break
        at += length + 12
    return _File(width, height, frames, orientation, b"".join(kept))


def _jpeg_header(data: bytes, limits: Limits) -> _File:
    width = height = 0
    kept, orientation, at = {"start": data[:2]}, 1, 2
    for _ in _at_most(_MAX_PARTS, "markers"):
        fill = _JPEG_FILL.match(data, at)
        at = fill.end() - 1 if fill else at
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


def _gif_header(data: bytes, limits: Limits) -> _File:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _palette_bytes(flags)
    kept, control, frames = [data[:at]], b"", 0
    for _ in _at_most(_MAX_PARTS, "blocks"):
        if at >= len(data) or data[at] not in (0x21, 0x2C):
            break
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


def _bmp_header(data: bytes, limits: Limits) -> _File:
    (header,) = struct.unpack_from("<I", data, 14)
    width, height = struct.unpack_from("<HH" if header == 12 else "<ii", data, 18)
    if header > 12 and struct.unpack_from("<I", data, 30)[0] in (1, 2) and len(data) > 2**20:
        raise _Unfit("more than 1 MiB of run lengths")
    return _File(width, abs(height), 1, 1, data)


def _webp_header(data: bytes, limits: Limits) -> _File:
    width = height = frames = 0
    orientation, at = 1, 12
    for _ in _at_most(_MAX_PARTS, "chunks"):
        if at + 8 > len(data):
            break
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


def _tiff_header(data: bytes, limits: Limits) -> _File:
    order = "<" if data[:2] == b"II" else ">"
    (first,) = struct.unpack_from(order + "I", data, 4)
    pages, at = 0, first
    seen: set[int] = set()
    while at and at not in seen and pages <= limits.max_frames:
        seen.add(at)
        pages += 1
        (entries,) = struct.unpack_from(order + "H", data, at)
        (at,) = struct.unpack_from(order + "I", data, at + 2 + 12 * entries)
    values: dict[int, int] = {}
    room = len(data)  # entries may all point at the same bytes, and the decoder copies each
    directories = [first]
    allowed = _at_most(_MAX_PARTS, "entries")  # without values they take no room, and may go round
    while directories:
        for tag, kind, count, place in _directory(data, order, directories.pop()):
            next(allowed)
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
_HEADERS: dict[str, Callable[[bytes, Limits], _File]] = {
    "PNG": _png_header,
    "JPEG": _jpeg_header,
    "WEBP": _webp_header,
    "GIF": _gif_header,
    "BMP": _bmp_header,
    "TIFF": _tiff_header,
}
_MAX_PARTS = 2**16
"""Chunks, markers, blocks or entries of a file: many times what honest programs write."""
_JPEG_FILL = re.compile(rb"\xff+")
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


def to_rgb(image: Image.Image) -> Image.Image:
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
