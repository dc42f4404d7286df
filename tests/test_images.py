"""Images: where derived pixels came from, and what their keys say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade.errors import ToolError
from saccade.geometry import Affine, Box, Point
from saccade.image_store import ImageStore
from saccade.images import (
    MAX_OUTPUT_PIXELS,
    OPERATIONS,
    ImageView,
    Operation,
    again,
    beside,
    root_view,
)
from saccade.types import MAX_ANCESTORS, MAX_STEPS, ImageRef, LineageError

quick = settings(deadline=None, max_examples=60)


def picture(width: int = 40, height: int = 30, *, seed: int = 0) -> Image.Image:
    """Noise: no two places look alike."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def same(a: Image.Image, b: Image.Image) -> bool:
    return a.size == b.size and a.mode == b.mode and a.tobytes() == b.tobytes()


def is_one_sentence(error: pytest.ExceptionInfo[BaseException]) -> bool:
    text = str(error.value)
    return text.endswith(".") and "\n" not in text and " object at " not in text


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


# --- long lineages --------------------------------------------------------------------------------


def compared(view: ImageView, times: int) -> ImageView:
    """The image beside itself, and that beside itself, and so on."""
    for _ in range(times):
        view = beside(view.crop(Box(0, 0, 12, 9)), view.crop(Box(6, 0, view.width, 9)))
    return view


def test_what_is_on_both_sides_of_a_comparison_is_in_its_lineage_once() -> None:
    a, b = root_view(picture()), root_view(picture(seed=1))
    view = beside(compared(a, 4), b)
    lineage = view.ref.lineage()
    assert [ref.key for ref in lineage[:1]] == [a.ref.key]
    assert lineage[-1] is view.ref
    assert len(lineage) == len({ref.key for ref in lineage}) == 1 + 3 * 4 + 2
    for number, ref in enumerate(lineage):
        assert {part.parent.key for part in ref.parts} <= {r.key for r in lineage[:number]}
    assert view.ref.roots() == (a.ref, b.ref)
    assert view.originals() == (a, b)
    assert (view.ref.steps, view.ref.ancestors) == (9, 2 + 60)


def test_no_image_is_more_steps_from_its_originals_than_may_be() -> None:
    view = root_view(picture())
    for _ in range(MAX_STEPS):
        view = view.enhance("invert")
    assert view.ref.steps == view.ref.ancestors == MAX_STEPS
    assert same(view.pixels, picture())
    with pytest.raises(ToolError, match=r"64 steps from its originals .* would be 65") as error:
        view.enhance("invert")
    assert is_one_sentence(error)


def test_no_image_is_made_of_more_images_than_may_be() -> None:
    """Beside itself 18 times over, an image of 8 x 4 pixels took seconds, and 30 times for ever."""
    view = root_view(picture())
    with pytest.raises(ToolError, match=f"of {MAX_ANCESTORS} others at most.* of 508") as error:
        compared(view, 30)
    assert is_one_sentence(error)
    most = compared(view, 6)
    assert most.ref.ancestors == 252
    assert len(most.ref.to_roots()) <= 64
    assert len(repr(most.ref)) < 200_000
    assert most.ref == compared(root_view(picture()), 6).ref


def test_a_recipe_that_is_followed_on_a_long_lineage_is_refused_as_well() -> None:
    """What ran elsewhere, on pictures without lineage, is put where the caller's images are."""
    there = compared(root_view(picture()), 6)
    assert again(there.ref.parts[0].parent, there.parents[0].parents).ref.steps == 11
    with pytest.raises(ToolError, match="work on an earlier image"):
        again(there.ref, (there, there))


def test_a_record_of_a_longer_lineage_is_none() -> None:
    view = root_view(picture())
    for _ in range(MAX_STEPS):
        view = view.enhance("invert")
    part = view.ref.parts[0]
    with pytest.raises(LineageError, match="would be 65 steps"):
        ImageRef("a" * 64, 40, 30, (replace(part, parent=view.ref),), view.ref.derivation)


def test_a_box_that_float_noise_makes_too_wide_ends_where_its_part_ends() -> None:
    """The other part had a piece of it 4e-16 pixels wide, which was none where it came from."""
    root = root_view(picture(1000, 1000))
    view = beside(root.crop(Box(700, 700, 703, 703)), root.crop(Box(800, 800, 803, 803)))
    ((_, polygon),) = view.ref.to_roots(Box(0, 0, 3.0000000000000004, 3))
    assert polygon.bounds == Box(700, 700, 703, 703)


def test_a_zoom_of_a_zoom_of_a_pixel_lies_on_the_original_as_long_as_floats_can_tell() -> None:
    view = root_view(picture(1000, 1000))
    sizes = []
    for _ in range(6):
        view = view.crop(Box(500, 500, 501, 501)).resize(1000, 1000)
        sizes.append([polygon.bounds.width for _, polygon in view.ref.to_roots()])
    assert sizes[0] == [1]
    assert sizes[1] == [pytest.approx(1e-3)]
    assert sizes[2:] == [[]] * 4
