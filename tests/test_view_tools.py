"""Tools that show an image in another way, or measure it: what is seen, and where it maps back."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from saccade.geometry import Box, Frame, Point
from saccade.image_store import ImageStore
from saccade.images import ImageView, root_view
from saccade.tools import ToolBox, builtin_tools, compare, enhance, measure, rotate
from saccade.types import ImageShown, Text, ToolCall, ToolResult

WIDTH, HEIGHT = 400, 200


def noise(seed: int, *, low: int = 0, high: int = 255) -> ImageView:
    values = np.random.default_rng(seed).integers(low, high, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    return root_view(Image.fromarray(values))


def pixels(view: ImageView) -> np.ndarray:
    return np.asarray(view.pixels, dtype=np.int64)


def called(name: str, *images: ImageView, **arguments: Any) -> tuple[ToolResult, ImageStore]:
    """One call by a model that writes in thousandths, of images img_0, img_1 ..."""
    store = ImageStore()
    refs = {f"img_{n}": store.add(view) for n, view in enumerate(images)}
    box = ToolBox([t for t in builtin_tools().values() if not t.needs], store=store)
    [result] = asyncio.run(
        box.call_all(
            [ToolCall("c", name, arguments)],
            images=refs,
            frame=lambda ref: Frame.thousand(ref.width, ref.height),
        )
    )
    return result, store


# --- rotate ---------------------------------------------------------------------------------------


def test_a_quarter_turn_keeps_every_pixel_and_a_full_one_changes_nothing() -> None:
    view = noise(0)
    turned = rotate(view, 90)
    assert (pixels(turned) == np.rot90(pixels(view))).all()
    assert (pixels(rotate(view, -270)) == pixels(turned)).all()
    assert (pixels(rotate(view, 360)) == pixels(view)).all()


@pytest.mark.parametrize("degrees", [90.0, 180.0, -90.0, 30.0, -12.5])
def test_a_mark_in_the_turned_image_maps_back_to_where_it_was_drawn(degrees: float) -> None:
    paper = Image.new("RGB", (WIDTH, HEIGHT), "white")
    ImageDraw.Draw(paper).ellipse((95, 45, 105, 55), fill="black")
    turned = rotate(root_view(paper), degrees)
    rows, columns = np.nonzero(pixels(turned).sum(axis=2) < 200)
    centre = Point(columns.mean() + 0.5, rows.mean() + 0.5)
    ((_, polygon),) = turned.ref.to_roots(centre)
    found = polygon.bounds.center
    assert abs(found.x - 100.5) < 1
    assert abs(found.y - 50.5) < 1


# --- enhance --------------------------------------------------------------------------------------


def test_contrast_spreads_what_is_faint_over_the_whole_range() -> None:
    faint = noise(1, low=100, high=130)
    spread = pixels(enhance(faint, "contrast"))
    assert pixels(faint).std() * 4 < spread.std()
    assert spread.min() < 20
    assert spread.max() > 235


def test_inverted_twice_is_the_image_and_once_its_negative() -> None:
    view = noise(2)
    once = enhance(view, "invert")
    assert (pixels(once) == 255 - pixels(view)).all()
    assert (pixels(enhance(once, "invert")) == pixels(view)).all()


def test_a_soft_edge_gets_steeper() -> None:
    ramp = np.clip(np.linspace(-3000, 3250, WIDTH), 60, 190).astype(np.uint8)
    soft = root_view(Image.fromarray(np.repeat(ramp[None, :, None], HEIGHT, 0).repeat(3, 2)))
    before, after = (pixels(v)[HEIGHT // 2, :, 0] for v in (soft, enhance(soft, "sharpen")))
    assert after.max() - after.min() > before.max() - before.min()


@pytest.mark.parametrize("how", ["contrast", "sharpen", "invert"])
def test_an_enhanced_image_keeps_its_size_and_places(how: Any) -> None:
    view = noise(3)
    found = enhance(view, how)
    assert found.pixels.size == (WIDTH, HEIGHT)
    box = Box(10, 20, 110, 70)
    ((root, polygon),) = found.ref.to_roots(box)
    assert (root, polygon.bounds) == (view.ref, box)


def test_what_enhance_can_not_do_is_told_with_what_it_can() -> None:
    result, _ = called("enhance", noise(4), image="img_0", how="brighten")
    assert result.failed
    [part] = result.parts
    assert isinstance(part, Text)
    assert "one of 'contrast', 'sharpen', 'invert', got 'brighten'" in part.text


# --- compare --------------------------------------------------------------------------------------


def test_two_regions_stand_side_by_side_with_their_pixels_unchanged() -> None:
    a, b = noise(5), noise(6)
    both = compare(a, Box(10, 20, 60, 80), b, Box(100, 50, 130, 90))
    assert both.pixels.size == (80, 60)
    assert (pixels(both)[:, :50] == pixels(a)[20:80, 10:60]).all()
    assert (pixels(both)[:40, 50:] == pixels(b)[50:90, 100:130]).all()
    assert (pixels(both)[40:, 50:] == 255).all()


def test_boxes_of_a_comparison_are_read_on_their_own_images_and_map_back_to_them() -> None:
    a, b = noise(7), noise(8)
    result, store = called(
        "compare",
        a,
        b,
        image="img_0",
        box=[0, 0, 500, 500],
        other="img_1",
        other_box=[500, 500, 1000, 1000],
    )
    assert not result.failed
    assert [(n.image, n.box) for n in result.named] == [
        (a.ref, Box(0, 0, 200, 100)),
        (b.ref, Box(200, 100, 400, 200)),
    ]
    [part] = result.parts
    assert isinstance(part, ImageShown)
    places = {root.key: polygon.bounds for root, polygon in part.image.to_roots()}
    assert places == {a.ref.key: Box(0, 0, 200, 100), b.ref.key: Box(200, 100, 400, 200)}
    assert store.view(part.image).pixels.size == (400, 100)


# --- measure --------------------------------------------------------------------------------------


def test_a_distance_is_told_in_pixels_shares_and_degrees_upward() -> None:
    told = measure(noise(9), Point(100, 150), Point(140, 120))
    assert told == (
        "50.0 pixels apart: +40.0 across (+10.0% of the width), -30.0 down (-15.0% of the height), "
        "angle 36.9 degrees."
    )


def test_points_are_read_in_the_frame_of_the_model() -> None:
    result, _ = called("measure", noise(10), image="img_0", start=[0, 0], end=[1000, 0])
    [part] = result.parts
    assert isinstance(part, Text)
    assert part.text.startswith("400.0 pixels apart: +400.0 across (+100.0% of the width)")


def test_a_point_has_no_distance_from_itself() -> None:
    told = measure(noise(11), Point(5, 5), Point(5, 5))
    assert told.startswith("0.0 pixels apart")
    assert told.endswith("angle 0.0 degrees.")
