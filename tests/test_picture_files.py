"""The loader of picture files: what it lets in, and what it refuses in one sentence."""

from __future__ import annotations

import io
import os
import struct
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from saccade.errors import ImageError
from saccade.picture_files import Limits, load_image


def picture(width: int = 40, height: int = 30, *, seed: int = 0) -> Image.Image:
    """Noise: no two places look alike."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    """Smooth, so that lossy formats come close; and no side looks like another."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, 255 - x], axis=-1).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.mode == b.mode and a.tobytes() == b.tobytes()


def chunk(kind: bytes, data: bytes) -> bytes:
    tail = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + tail


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (chunk(b"IHDR", header), *more, pixels, chunk(b"IEND", b""))
    )


def is_one_sentence(error: pytest.ExceptionInfo[BaseException]) -> bool:
    text = str(error.value)
    return text.endswith(".") and "\n" not in text and " object at " not in text


@pytest.mark.parametrize(
    ("kind", "options", "far"),
    [
        ("PNG", {}, 0),
        ("JPEG", {"quality": 95}, 12),
        ("JPEG", {"quality": 95, "progressive": True}, 12),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 16),
        ("BMP", {}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("TIFF", {"compression": "tiff_adobe_deflate"}, 0),
    ],
)
def test_accepted_formats_give_the_pixels_that_were_saved(
    kind: str, options: dict[str, Any], far: int
) -> None:
    image = gradient()
    got = load_image(encoded(image, kind, **options))
    assert (got.mode, got.size) == ("RGB", image.size)
    assert np.abs(np.asarray(got).astype(int) - np.asarray(image)).max() <= far


def test_a_gif_with_one_frame_gives_its_picture() -> None:
    image = gradient().quantize(16)
    assert same(load_image(encoded(image, "GIF")), image.convert("RGB"))


def test_a_path_is_read_like_bytes(tmp_path: Path) -> None:
    path = tmp_path / "é 图.png"
    path.write_bytes(encoded(picture(), "PNG"))
    assert same(load_image(path), picture())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("JPEG", {})]
)
def test_exif_orientation_is_applied_before_any_coordinate(
    kind: str, options: dict[str, Any], orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = gradient()
    want = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(image, "PNG", exif=exif))))
    got = load_image(encoded(image, kind, exif=exif, **options))
    assert got.size == want.size
    assert np.abs(np.asarray(got).astype(int) - np.asarray(want)).max() <= (kind == "JPEG") * 24


def test_what_is_transparent_becomes_white_and_shows_no_hidden_colour() -> None:
    hidden = Image.new("RGBA", (8, 8), (200, 0, 0, 0))
    hidden.putpixel((3, 3), (0, 0, 255, 255))
    hidden.putpixel((4, 4), (0, 0, 0, 128))
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        got = load_image(encoded(hidden, kind, **options))
        assert got.getpixel((0, 0)) == (255, 255, 255)
        assert got.getpixel((3, 3)) == (0, 0, 255)
        assert got.getpixel((4, 4)) == (127, 127, 127)


def test_a_palette_with_transparency_is_put_on_white() -> None:
    image = Image.new("P", (4, 1))
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    image.putdata([0, 1, 2, 0])
    for transparency in (0, b"\x00\xff\xff"):
        got = load_image(encoded(image, "PNG", transparency=transparency))
        assert [got.getpixel((x, 0)) for x in range(3)] == [
            (255, 255, 255),
            (0, 200, 0),
            (0, 0, 200),
        ]
    got = load_image(encoded(image, "GIF", transparency=0))
    assert got.getpixel((0, 0)) == (255, 255, 255)
    assert got.getpixel((1, 0)) == (0, 200, 0)


@pytest.mark.parametrize(
    ("depth", "colour", "row", "key", "want"),
    [
        (2, 0, b"\x50", b"\x00\x01", [(255, 255, 255), (255, 255, 255), (0, 0, 0)]),
        (4, 0, b"\x55\x20", b"\x00\x05", [(255, 255, 255), (255, 255, 255), (34, 34, 34)]),
        (8, 0, b"\x05\x06\x00", b"\x00\x05", [(255, 255, 255), (6, 6, 6), (0, 0, 0)]),
        (
            16,
            0,
            b"\x12\x34\x12\x35\x00\x00",
            b"\x12\x34",
            [(255, 255, 255), (18, 18, 18), (0, 0, 0)],
        ),
        (
            16,
            2,
            b"\x12\x34\x56\x78\x9a\xbc" + b"\x11\x11" + bytes(10),
            b"\x12\x34\x56\x78\x9a\xbc",
            [(255, 255, 255), (17, 0, 0), (0, 0, 0)],
        ),
    ],
)
def test_a_transparent_colour_is_found_at_every_depth(
    depth: int, colour: int, row: bytes, key: bytes, want: list[tuple[int, int, int]]
) -> None:
    """Pillow spreads few-bit greys over 0..255 and leaves the transparent grey as it stood."""
    got = load_image(png(3, 1, depth, colour, b"\0" + row, chunk(b"tRNS", key)))
    assert [got.getpixel((x, 0)) for x in range(3)] == want


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_and_not_clipped(kind: str) -> None:
    values = np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.uint16)
    got = np.asarray(load_image(encoded(Image.fromarray(values), kind)))
    assert np.abs(got[..., 0] - values / 257).max() <= 0.5
    assert (got == got[..., :1]).all()


def test_floats_run_from_the_least_or_zero_to_the_greatest() -> None:
    values = np.array([[-1.0, 0.0, 1.0], [np.nan, np.inf, 0.5]], dtype=np.float32)
    got = np.asarray(load_image(encoded(Image.fromarray(values), "TIFF")))[..., 0]
    assert got.tolist() == [[0, 128, 255], [128, 128, 191]]
    dark = Image.fromarray(np.zeros((2, 2), dtype=np.float32))
    assert np.asarray(load_image(encoded(dark, "TIFF"))).max() == 0


def test_cmyk_is_converted() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for kind in ("JPEG", "TIFF"):
        red, green, blue = load_image(encoded(image, kind)).getpixel((8, 8))
        assert red > 240
        assert max(green, blue) < 15


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_nothing_of_the_file_but_pixels_stays_on_the_picture(kind: str) -> None:
    """What is left in `info` may be written again with the picture and change it."""
    assert load_image(encoded(picture(), kind, dpi=(300, 300))).info == {}


def animation(kind: str) -> bytes:
    return encoded(
        picture(seed=1), kind, save_all=True, append_images=[picture(seed=i) for i in (2, 3)]
    )


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_is_refused_and_with_a_higher_limit_its_first_frame_is_taken(
    kind: str,
) -> None:
    data = animation(kind)
    with pytest.raises(ImageError, match="more frames or pages than the limit of 1") as error:
        load_image(data)
    assert is_one_sentence(error)
    with pytest.raises(ImageError, match="than the limit of 2"):
        load_image(data, limits=Limits(max_frames=2))
    got = np.asarray(load_image(data, limits=Limits(max_frames=3))).astype(int)
    first = picture(seed=1).quantize(256).convert("RGB") if kind == "GIF" else picture(seed=1)
    distance = np.abs(got - np.asarray(first)).mean()
    assert distance < (0.1 if kind in ("PNG", "TIFF") else 60)


def tiff(entries: list[tuple[int, int, int, int]]) -> bytes:
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + packed + bytes(4)


SMALL = encoded(Image.new("RGB", (8, 8), "red"), "PNG")
JPEG = encoded(gradient(), "JPEG")
HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is empty"),
    "text": (b"hello, world", "not of an accepted format"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not of an accepted"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not of an accepted"),
    "icon": (encoded(picture(16, 16), "ICO"), "not of an accepted"),
    "bomb": (encoded(Image.new("1", (9000, 9000)), "PNG"), "9000 x 9000 pixels, above the limit"),
    "bomb of webp": (
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0" + bytes(4) + b"\xff\x3f\0\xff\x3f\0",
        "16384 x 16384 pixels, above the limit",
    ),
    "no width": (png(0, 5, 8, 0, b""), "0 x 5 pixels"),
    "needle": (encoded(Image.new("L", (1, 201)), "PNG"), "1 x 201 pixels, one side"),
    "truncated png": (encoded(picture(), "PNG")[:900], "broken"),
    "truncated header": (SMALL[:20], "broken"),
    "truncated jpeg": (JPEG[:-80], "broken"),
    "truncated jpeg header": (JPEG[:100], "broken"),
    "truncated gif": (encoded(picture(), "GIF")[:-60], "broken"),
    "truncated webp": (encoded(picture(), "WEBP")[:-60], "broken"),
    "truncated bmp": (encoded(picture(), "BMP")[:-60], "broken"),
    "truncated tiff": (encoded(picture(), "TIFF")[:-60], "broken"),
    "jpeg of scans": (JPEG[: JPEG.rindex(b"\xff\xda")] + b"\xff\xda\0\x02" * 200, "100 scans"),
    "tiff that copies itself": (
        tiff([(256, 3, 1, 8), (257, 3, 1, 8), *((t, 1, 500, 0) for t in range(300, 400))]),
        "entries larger than the file",
    ),
    "tiff of one tile": (
        tiff([(256, 3, 1, 8), (257, 3, 1, 8), (322, 3, 1, 60000), (323, 3, 1, 60000)]),
        "tiles larger",
    ),
    "slow bmp": (
        encoded(Image.new("P", (8, 8)), "BMP")[:30] + b"\1\0\0\0" + bytes(2**20),
        "1 MiB of run lengths",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_with_one_sentence(name: str) -> None:
    data, pattern = HOSTILE[name]
    started = time.perf_counter()
    with pytest.raises(ImageError, match=pattern) as error:
        load_image(data)
    assert is_one_sentence(error)
    assert time.perf_counter() - started < 2


GIF = encoded(Image.new("P", (8, 8)), "GIF")
GIF_START = 13 + (3 << (GIF[10] & 7) + 1)
SLOW: dict[str, bytes] = {
    "comments of a gif": GIF[:GIF_START]
    + b"!\xfe"
    + (b"\xff" + b"a" * 255) * 60_000
    + b"\0"
    + GIF[GIF_START:],
    "exif of a jpeg in bits": JPEG[:2]
    + (b"\xff\xe1\x01\x98Exif\0\0" + b"x" * 400) * 60_000
    + JPEG[2:],
    "fill bytes of a jpeg": JPEG[:2] + b"\xff" * (30 * 2**20) + JPEG[2:],
    "text of a png": SMALL[:33]
    + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10**7))) * 50
    + SMALL[33:],
    "exif that copies itself": SMALL[:33]
    + chunk(
        b"eXIf",
        b"MM\0*\0\0\0\x08"
        + struct.pack(">H", 30000)
        + b"".join(struct.pack(">HHII", i + 300, 1, 300_000, 0) for i in range(30000)),
    )
    + SMALL[33:],
}


@pytest.mark.parametrize("name", SLOW)
def test_hostile_metadata_is_left_out_before_decoding(name: str) -> None:
    """Pillow joins comments and Exif bit by bit and copies every entry: minutes and gigabytes."""
    started = time.perf_counter()
    assert load_image(SLOW[name]).mode == "RGB"
    assert time.perf_counter() - started < 3


def chained_tiff(pages: int) -> bytes:
    """Directories without entries, each naming the next."""
    chain = b"".join(struct.pack("<HI", 0, 14 + 6 * number) for number in range(pages))
    return b"II*\0\x08\0\0\0" + chain[:-4] + bytes(4)


def looping_tiff(count: int) -> bytes:
    """A directory whose entries each name it as the directory inside."""
    size = count * 2**20  # an allowance of bytes is none where entries have no values
    entries = struct.pack("<HHII", 34665, 4, count, 8) * 20_000
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 20_000) + entries + bytes(4 + size)


PIXEL = png(1, 1, 8, 0, b"\0\0")
SCRAPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "pages of a tiff": (lambda: chained_tiff(5_590_000), "more frames or pages than the limit"),
    "a tiff inside itself": (lambda: looping_tiff(30), "more than 65536 entries"),
    "a tiff inside itself for ever": (lambda: looping_tiff(0), "more than 65536 entries"),
    "empty chunks of a png": (
        lambda: PIXEL[:-12] + chunk(b"IDAT", b"") * 2_700_000 + PIXEL[-12:],
        "more than 65536 chunks",
    ),
    "markers of a jpeg": (
        lambda: JPEG[:2] + b"\xff\x01" * 16_700_000 + JPEG[2:],
        "more than 65536 markers",
    ),
    "extensions of a gif": (
        lambda: GIF[:GIF_START] + b"!\xfe\0" * 11_000_000 + GIF[GIF_START:],
        "more than 65536 blocks",
    ),
    "chunks of a webp": (
        lambda: encoded(gradient(), "WEBP") + b"XXXX\0\0\0\0" * 4_100_000,
        "more than 65536 chunks",
    ),
}


@pytest.mark.parametrize("name", SCRAPS)
def test_a_file_of_nothing_but_scraps_is_refused_without_reading_them_all(name: str) -> None:
    """Files of 32 MiB took up to ten seconds and half a gigabyte, one of them for ever."""
    make, pattern = SCRAPS[name]
    data = make()
    started = time.perf_counter()
    with pytest.raises(ImageError, match=pattern) as error:
        load_image(data)
    assert is_one_sentence(error)
    assert time.perf_counter() - started < 1


def test_many_small_chunks_of_an_honest_picture_are_read() -> None:
    data = encoded(picture(), "PNG")
    at = data.index(b"IDAT") - 4
    pixels = data[at + 8 : -16]
    bits = b"".join(chunk(b"IDAT", pixels[i : i + 1]) for i in range(len(pixels)))
    assert same(load_image(data[:at] + bits + data[-12:]), picture())


def test_what_stands_behind_the_end_of_a_png_is_not_read() -> None:
    assert load_image(SMALL + bytes(2**20)).size == (8, 8)


def test_more_bytes_than_the_limit_are_refused_before_they_are_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    path.write_bytes(SMALL)
    for source in (SMALL, path):
        with pytest.raises(ImageError, match="larger than the limit of 10 bytes"):
            load_image(source, limits=Limits(max_bytes=10))


def test_limits_themselves_are_allowed() -> None:
    assert load_image(encoded(Image.new("L", (1, 200)), "PNG")).size == (1, 200)
    exact = Limits(max_bytes=len(SMALL), max_pixels=64)
    assert load_image(SMALL, limits=exact).size == (8, 8)
    with pytest.raises(ImageError, match="limit of 63"):
        load_image(SMALL, limits=replace(exact, max_pixels=63))


def test_a_path_that_is_no_file_is_refused_and_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing.png", "pipe", ".", "nul\0character"):
        with pytest.raises(ImageError, match="check the path") as error:
            load_image(tmp_path / name)
        assert is_one_sentence(error)


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from(("PNG", "JPEG", "GIF", "BMP", "WEBP")),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=8),
    st.integers(1, 2000),
)
def test_a_damaged_file_gives_a_picture_or_one_sentence(
    kind: str, changes: list[tuple[int, int]], length: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(
        encoded(gradient(), kind, **({} if kind in ("GIF", "BMP") else {"exif": exif}))
    )
    for at, value in changes:
        data[at % len(data)] = value
    try:
        assert load_image(bytes(data[:length])).mode == "RGB"
    except ImageError as error:
        text = str(error)
        assert text.endswith(".")
        assert "\n" not in text
