"""Images: what the loader lets in, where derived pixels came from, and what the store keeps."""

from __future__ import annotations

import io
import json
import math
import os
import struct
import threading
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

from saccade.errors import ImageError, StorageError, ToolError
from saccade.geometry import Affine, Box, Point
from saccade.images import (
    MAX_OUTPUT_PIXELS,
    OPERATIONS,
    ImageStore,
    ImageView,
    Limits,
    Operation,
    beside,
    load_image,
    root_view,
)
from saccade.types import Derivation, ImagePart, ImageRef

quick = settings(deadline=None, max_examples=60)


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


# --- reading files --------------------------------------------------------------------------------


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
    with pytest.raises(ImageError, match="has 3 frames or pages, above the limit of 1") as error:
        load_image(data)
    assert is_one_sentence(error)
    with pytest.raises(ImageError, match="above the limit of 2"):
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
    "exif of a jpeg in bits": JPEG[:2] + b"\xff\xe1\x00\x09Exif\0\0x" * 200_000 + JPEG[2:],
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


# --- views ----------------------------------------------------------------------------------------

Step = Callable[[ImageView], ImageView]


@st.composite
def steps(draw: st.DrawFn) -> Step:
    """Any operation, with arguments that suit any image of at least 4 x 4 pixels."""
    kind = draw(st.sampled_from(("crop", "resize", "rotate", "draw_line", "beside")))
    fractions = [draw(st.floats(0, 1)) for _ in range(4)]
    degrees = draw(st.one_of(st.sampled_from((0, 90, 180, 270, -90, 360)), st.floats(-400, 400)))
    size = draw(st.integers(4, 90)), draw(st.integers(4, 90))
    method = draw(st.sampled_from(("lanczos", "bicubic")))

    def step(view: ImageView) -> ImageView:
        if kind == "crop":
            x, y = fractions[0] * (view.width - 4), fractions[1] * (view.height - 4)
            right, down = 4 + fractions[2] * view.width, 4 + fractions[3] * view.height
            return view.crop(Box(x, y, x + right, y + down))
        if kind == "resize":
            return view.resize(*size, method=method)
        if kind == "rotate":
            return view.rotate(degrees)
        if kind == "draw_line":
            a = Point(fractions[0] * view.width, fractions[1] * view.height)
            return view.draw_line(a, Point(fractions[2] * view.width, fractions[3] * view.height))
        return beside(view, view.crop(Box(0, 0, 4, 4)))

    return step


def made(recipe: list[Step], *, seed: int = 0) -> ImageView:
    view = root_view(picture(seed=seed))
    for step in recipe:
        view = step(view)
    return view


@quick
@given(st.lists(steps(), min_size=1, max_size=5))
def test_an_image_replayed_from_its_roots_is_the_same_bit_for_bit(recipe: list[Step]) -> None:
    view = made(recipe)
    store = ImageStore(cache_bytes=1)
    ref = store.add(view)
    assert same(store.view(ref).pixels, view.pixels)
    assert view.pixels.size == (ref.width, ref.height)
    assert same(view.pixels, made(recipe).pixels)


@quick
@given(st.lists(steps(), min_size=1, max_size=4), st.lists(steps(), min_size=1, max_size=4))
def test_equal_keys_mean_equal_pixels_and_the_same_recipe_the_same_key(
    one: list[Step], other: list[Step]
) -> None:
    a, b = made(one), made(other)
    assert made(one).ref == a.ref
    assert (a.ref.key == b.ref.key) == (a.ref == b.ref)
    assert made(one, seed=1).ref.key != a.ref.key


@quick
@given(
    st.lists(st.tuples(*[st.floats(0, 0.4)] * 2, *[st.floats(0.6, 1)] * 2), min_size=1, max_size=4),
    st.data(),
)
def test_a_pixel_of_a_root_is_found_at_its_mapped_place_in_crops_of_crops(
    fractions: list[tuple[float, float, float, float]], data: st.DataObject
) -> None:
    root = root_view(picture(120, 90))
    view = root
    for x0, y0, x1, y1 in fractions:
        w, h = view.width, view.height
        view = view.crop(Box(x0 * w, y0 * h, max(x1 * w, x0 * w + 1), max(y1 * h, y0 * h + 1)))
    chain = to_root(view.ref)
    x = data.draw(st.integers(0, view.width - 1))
    y = data.draw(st.integers(0, view.height - 1))
    there = chain.point(Point(x, y))
    assert (there.x, there.y) == (int(there.x), int(there.y))
    assert view.pixels.getpixel((x, y)) == root.pixels.getpixel((int(there.x), int(there.y)))


def to_root(ref: ImageRef) -> Affine:
    chain = Affine()
    while ref.parts:
        chain, ref = chain.then(ref.parts[0].to_parent), ref.parts[0].parent
    return chain


@quick
@given(
    st.integers(20, 79),
    st.integers(20, 59),
    st.one_of(st.sampled_from((0.0, 90.0, 180.0, 270.0)), st.floats(-360, 360)),
    st.floats(1, 3),
    st.sampled_from(("lanczos", "bicubic")),
    st.booleans(),
)
def test_a_dot_in_a_root_is_found_where_rotations_and_resizes_map_it(
    x: int, y: int, degrees: float, scale: float, method: Any, turn_first: bool
) -> None:
    """The centre of mass of what is dark, within half a pixel of the map."""
    canvas = Image.new("RGB", (100, 80), "white")
    canvas.paste((0, 0, 0), (x - 2, y - 2, x + 3, y + 3))
    view = root_view(canvas)
    if turn_first:
        view = view.rotate(degrees)
    view = view.resize(round(view.width * scale), round(view.height * scale), method=method)
    view = view.crop(Box(3, 2, view.width, view.height))
    if not turn_first:
        view = view.rotate(degrees)
    dark = 255.0 - np.asarray(view.pixels.convert("L"), dtype=float)
    rows, columns = np.mgrid[: view.height, : view.width] + 0.5
    found = Point((dark * columns).sum() / dark.sum(), (dark * rows).sum() / dark.sum())
    want = to_root(view.ref).inverse().point(Point(x + 0.5, y + 0.5))
    assert math.hypot(found.x - want.x, found.y - want.y) < 0.5


@pytest.mark.parametrize("degrees", [0, 90, 180, 270, -90, 450])
def test_quarter_turns_move_every_pixel_exactly(degrees: float) -> None:
    root = root_view(picture(7, 5))
    view = root.rotate(degrees)
    back = view.ref.parts[0].to_parent
    for x in range(view.width):
        for y in range(view.height):
            p = back.point(Point(x + 0.5, y + 0.5))
            here = view.pixels.getpixel((x, y))
            assert here == root.pixels.getpixel((math.floor(p.x), math.floor(p.y)))


def test_positive_degrees_turn_counter_clockwise() -> None:
    canvas = Image.new("RGB", (9, 9), "white")
    canvas.putpixel((8, 4), (0, 0, 0))
    assert root_view(canvas).rotate(90).pixels.getpixel((4, 0)) == (0, 0, 0)


@given(st.floats(-720, 720), st.integers(1, 60), st.integers(1, 60))
@quick
def test_a_turned_image_holds_the_whole_parent_and_white_corners(
    degrees: float, width: int, height: int
) -> None:
    root = root_view(Image.new("RGB", (width, height), "black"))
    view = root.rotate(degrees)
    corners = view.ref.parts[0].to_parent.inverse().polygon(root.ref.box).bounds
    assert corners.x0 > -0.01
    assert corners.y0 > -0.01
    assert corners.x1 < view.width + 0.01
    assert corners.y1 < view.height + 0.01
    assert max(view.width - corners.width, view.height - corners.height) < 1.01
    if width > 20 and height > 20 and 30 < degrees % 90 < 60:
        assert view.pixels.getpixel((0, 0)) == (255, 255, 255)


def test_a_box_in_a_crop_of_a_crop_maps_back_to_the_photograph() -> None:
    root = root_view(picture(100, 80))
    view = root.crop(Box(10, 20, 90, 60)).resize(160, 80).crop(Box(40, 20, 100, 60))
    ((image, polygon),) = view.ref.to_roots(Box(10, 10, 30, 20))
    assert image == root.ref
    assert polygon.bounds == Box(35, 35, 45, 40)


def test_two_images_side_by_side_are_two_parts_that_map_to_their_parents() -> None:
    a, b = root_view(picture(20, 10)), root_view(picture(30, 40, seed=1))
    view = beside(a, b)
    assert (view.width, view.height) == (50, 40)
    left, right = view.ref.parts
    assert (left.area, right.area) == (Box(0, 0, 20, 10), Box(20, 0, 50, 40))
    assert same(view.pixels.crop((0, 0, 20, 10)), a.pixels)
    assert same(view.pixels.crop((20, 0, 50, 40)), b.pixels)
    assert view.pixels.getpixel((5, 20)) == (255, 255, 255)
    assert right.to_parent.point(Point(25, 7)) == Point(5, 7)
    assert [ref for ref, _ in view.ref.to_roots(Box(15, 2, 25, 8))] == [a.ref, b.ref]


def test_a_line_is_drawn_through_its_points_and_coordinates_stay() -> None:
    root = root_view(Image.new("RGB", (30, 20), "white"))
    view = root.draw_line(Point(0, 7.9), Point(30, 7.9), color="#0000ff", width=1)
    assert view.ref.parts[0].to_parent == Affine()
    blue = np.asarray(view.pixels) == (0, 0, 255)
    assert np.flatnonzero(blue.all(axis=(1, 2))).tolist() == [7]
    assert np.asarray(root.pixels).min() == 255


def test_a_crop_grows_outward_to_whole_pixels_and_forgives_float_noise() -> None:
    view = root_view(picture())
    assert view.crop(Box(1.5, 2.5, 3.5, 4.5)).ref.parts[0].to_parent == Affine(c=1, f=2)
    assert view.crop(Box(1.5, 2.5, 3.5, 4.5)).pixels.size == (3, 3)
    assert view.crop(Box(2.9999999999, 0, 6.0000000001, 5)).pixels.size == (3, 5)
    assert view.crop(Box(-50, -50, 500, 500)).pixels.size == (40, 30)


@pytest.mark.parametrize(
    ("ask", "pattern"),
    [
        (lambda v: v.crop(Box(40, 0, 50, 10)), r"\(40, 0, 50, 10\) lies outside .* 40 x 30"),
        (lambda v: v.crop(Box(5, 5, 5.5, 20)), "covers 0.5 x 15 pixels"),
        (lambda v: v.crop(Box(39.5, 5, 60, 20)), "covers 0.5 x 15 pixels"),
        (lambda v: v.resize(0, 5), "resized to 0 x 5"),
        (lambda v: v.resize(10**6, 10**6), f"above the limit of {MAX_OUTPUT_PIXELS}"),
        (lambda v: v.rotate(math.nan), "rotated by nan"),
        (lambda v: v.draw_line(Point(0, 0), Point(41, 3)), r"\(41, 3\) lies outside"),
        (lambda v: v.draw_line(Point(0, 0), Point(4, 3), color="rot"), "no colour 'rot'"),
        (lambda v: v.draw_line(Point(0, 0), Point(4, 3), width=0), "can't be 0 pixels wide"),
        (lambda v: v.draw_line(Point(0, 0), Point(4, 3), width=10**9), "choose 1 to 40"),
    ],
)
def test_impossible_arguments_are_the_models_mistake_and_one_sentence(
    ask: Step, pattern: str
) -> None:
    with pytest.raises(ToolError, match=pattern) as error:
        ask(root_view(picture()))
    assert is_one_sentence(error)


def test_asking_for_an_image_computes_no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counted(name: str, operation: Operation) -> Operation:
        def make(parents: Any, arguments: Any) -> Image.Image:
            calls.append(name)
            return operation.make(parents, arguments)

        return operation._replace(make=make)

    for name, operation in OPERATIONS.items():
        monkeypatch.setitem(OPERATIONS, name, counted(name, operation))
    view = root_view(picture()).resize(20, 20).rotate(10).crop(Box(1, 1, 9, 9))
    store = ImageStore()
    ref = store.add(view)
    assert calls == []
    again = store.view(ref)
    assert again.pixels.size == again.pixels.size == (8, 8)
    assert calls == ["resize", "rotate", "crop"]
    assert store.view(ref).resize(4, 4).pixels.size == (4, 4)
    assert calls == ["resize", "rotate", "crop", "resize"]


def test_arguments_are_json_and_come_back_from_it_with_the_same_key() -> None:
    view = made([lambda v: v.rotate(33), lambda v: v.draw_line(Point(1, 1), Point(9, 9))])
    for ref in (view.ref, view.ref.parts[0].parent):
        assert ref.derivation is not None
        arguments = dict(ref.derivation.arguments)
        assert json.loads(json.dumps(arguments)) == arguments
        assert list(arguments) == sorted(arguments)
    hash(view.ref)


def test_a_new_version_of_an_operation_gives_new_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    root = root_view(picture())
    old = root.crop(Box(0, 0, 9, 9))
    monkeypatch.setitem(OPERATIONS, "crop", OPERATIONS["crop"]._replace(version=2))
    assert root.crop(Box(0, 0, 9, 9)).ref.key != old.ref.key


def test_the_key_of_a_root_is_its_size_and_pixels_alone() -> None:
    flat = Image.new("RGB", (6, 4), "red")
    tagged = flat.copy()
    tagged.info["transparency"] = (255, 0, 0)
    tagged.info.clear()
    assert root_view(flat).ref == root_view(tagged).ref
    assert root_view(flat).ref.key != root_view(Image.new("RGB", (4, 6), "red")).ref.key


def test_a_root_does_not_change_with_the_picture_that_it_was_made_from() -> None:
    image = picture()
    view = root_view(image)
    image.paste((0, 0, 0), (0, 0, 40, 30))
    assert same(view.pixels, picture())


# --- store ----------------------------------------------------------------------------------------


def test_roots_are_written_once_and_everything_comes_back_from_the_folder(tmp_path: Path) -> None:
    store = ImageStore()
    views = [
        made([lambda v, i=i: v.crop(Box(i, i, 20, 20)).rotate(i)], seed=i % 2) for i in range(4)
    ]
    both = beside(views[0], views[1])
    refs = [store.add(v) for v in (*views, both)]
    store.save(refs, tmp_path)
    files = sorted((tmp_path / "images").iterdir())
    assert {f.stem for f in files} == {root_view(picture(seed=i)).ref.key for i in (0, 1)}
    times = [f.stat().st_mtime_ns for f in files]
    store.save(refs, tmp_path)
    assert [f.stat().st_mtime_ns for f in files] == times
    other = ImageStore(tmp_path)
    for ref, view in zip(refs, (*views, both), strict=True):
        assert same(other.view(ref).pixels, view.pixels)


def test_a_small_cache_forgets_pixels_and_loses_no_image(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, cache_bytes=5000)
    roots = [root_view(picture(seed=i)) for i in range(6)]
    crops = [root.crop(Box(2, 2, 30, 30)) for root in roots]
    refs = [store.add(crop) for crop in crops]
    assert store._cached_bytes <= 5000
    store.save(refs[:3], tmp_path)
    assert len(store._kept) == 3
    for _ in range(2):
        for ref, crop in zip(refs, crops, strict=True):
            assert same(store.view(ref).pixels, crop.pixels)
            assert store._cached_bytes <= 5000
            assert store._cached_bytes == sum(3 * i.width * i.height for i in store._cache.values())


def test_pixels_at_hand_are_not_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    view = root_view(picture()).resize(300, 200)
    pixels = view.pixels
    monkeypatch.setitem(OPERATIONS, "resize", Operation(1, lambda parents, arguments: 1 / 0))
    store = ImageStore()
    assert store.view(store.add(view)).pixels is pixels


def test_an_image_of_one_store_can_be_added_to_another() -> None:
    first, second = ImageStore(), ImageStore()
    view = first.view(first.add(made([lambda v: v.rotate(20)])))
    ref = second.add(view.crop(Box(0, 0, 9, 9)))
    assert same(second.view(ref).pixels, first.view(view.ref).crop(Box(0, 0, 9, 9)).pixels)


def test_an_image_that_is_nowhere_is_one_sentence(tmp_path: Path) -> None:
    ref = made([lambda v: v.rotate(20)]).ref
    for store in (ImageStore(), ImageStore(tmp_path)):
        with pytest.raises(ImageError, match="is not in this store") as error:
            store.view(ref)
        assert is_one_sentence(error)


def test_a_key_that_is_no_hash_never_becomes_a_path(tmp_path: Path) -> None:
    (tmp_path / "run" / "images").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(SMALL)
    ref = ImageRef("../../secret", 8, 8)
    with pytest.raises(ImageError, match="is no key of an image"):
        ImageStore(tmp_path / "run").view(ref)


def test_a_file_that_is_broken_or_holds_other_pixels_is_refused(tmp_path: Path) -> None:
    view = root_view(picture())
    store = ImageStore()
    store.save([store.add(view)], tmp_path)
    path = tmp_path / "images" / f"{view.ref.key}.png"
    whole = path.read_bytes()
    for data in (whole[:200], b"", encoded(picture(seed=5), "PNG"), encoded(picture(9, 9), "PNG")):
        path.write_bytes(data)
        with pytest.raises(ImageError) as error:
            _ = ImageStore(tmp_path).view(view.ref).pixels
        assert is_one_sentence(error)
    path.write_bytes(whole)
    assert same(ImageStore(tmp_path).view(view.ref).pixels, view.pixels)


def test_a_large_or_long_root_of_ours_is_read_again_whatever_the_limits(tmp_path: Path) -> None:
    store = ImageStore()
    ref = store.add(root_view(Image.new("RGB", (3, 900), "red")))
    store.save([ref], tmp_path)
    assert ImageStore(tmp_path).view(ref).pixels.size == (3, 900)


def test_a_folder_that_cannot_be_written_is_one_sentence_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ImageStore()
    ref = store.add(root_view(picture()))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="Can't write image") as error:
        store.save([ref], tmp_path / "file")
    assert is_one_sentence(error)

    def full(self: Image.Image, file: Any, format: str) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(StorageError, match="No space left on device"):
        store.save([ref], tmp_path)
    assert list((tmp_path / "images").iterdir()) == []
    monkeypatch.undo()
    store.save([ref], tmp_path)
    assert same(ImageStore(tmp_path).view(ref).pixels, picture())


def test_a_recipe_that_was_changed_or_is_of_another_version_is_refused() -> None:
    view = root_view(picture()).crop(Box(0, 0, 9, 9))
    store = ImageStore()
    store.add(view)
    part = ImagePart(view.parents[0].ref, Box(0, 0, 9, 9), Affine())
    for operation, version, width, pattern in (
        ("crop", 2, 9, "made by 'crop' version 2"),
        ("eval", 1, 9, "made by 'eval' version 1"),
        ("crop", 1, 8, "should be 8 x 9 but its recipe gives 9 x 9"),
        ("crop", 1, 9, "is not what its recipe makes"),
    ):
        assert view.ref.derivation is not None
        derivation = Derivation(operation, view.ref.derivation.arguments, version)
        ref = ImageRef("0" * 64, width, 9, (part,), derivation)
        with pytest.raises(ImageError, match=pattern) as error:
            _ = store.view(ref).pixels
        assert is_one_sentence(error)


def test_many_threads_share_one_store(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, cache_bytes=20_000)
    failures: list[BaseException] = []
    wanted = {i: root_view(picture(seed=i)).resize(30, 30).pixels.tobytes() for i in range(8)}
    start = threading.Barrier(8)

    def work(offset: int) -> None:
        try:
            start.wait()
            for turn in range(16):
                seed = (turn + offset) % 8
                ref = store.add(root_view(picture(seed=seed)).resize(30, 30))
                assert store.view(ref).pixels.tobytes() == wanted[seed]
                if turn % 4 == 0:
                    store.save([ref], tmp_path)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(list((tmp_path / "images").iterdir())) == 8
