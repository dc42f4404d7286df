"""Geometry: every property here is used somewhere to map a look back to the original picture."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from saccade.geometry import Affine, Box, Frame, Mask, Point, Polygon, iou, union_area

VECTORS = json.loads((Path(__file__).parent / "data" / "box_coord_vectors.json").read_text())

settings.register_profile("saccade", deadline=None, max_examples=100)
settings.load_profile("saccade")

coordinate = st.floats(-1000, 1000)
points = st.builds(Point, coordinate, coordinate)
side = st.floats(0.5, 1000)
boxes = st.builds(lambda x, y, w, h: Box(x, y, x + w, y + h), coordinate, coordinate, side, side)
whole_boxes = st.builds(
    lambda x, y, w, h: Box(x, y, x + w, y + h),
    *(st.integers(0, 30), st.integers(0, 30), st.integers(1, 12), st.integers(1, 12)),
)


@st.composite
def affines(draw: st.DrawFn) -> Affine:
    """Turned, scaled, sheared and moved: well away from singular."""
    angle = math.radians(draw(st.floats(-180, 180)))
    sx, sy = draw(st.floats(0.1, 10)), draw(st.floats(0.1, 10))
    flip, shear = draw(st.sampled_from((1, -1))), draw(st.floats(-1, 1))
    cos, sin = math.cos(angle), math.sin(angle)
    return Affine(
        cos * sx,
        shear * cos * sx - sin * sy * flip,
        draw(coordinate),
        sin * sx,
        shear * sin * sx + cos * sy * flip,
        draw(coordinate),
    )


def close(a: Point, b: Point, tolerance: float = 1e-6) -> bool:
    return abs(a.x - b.x) < tolerance and abs(a.y - b.y) < tolerance


@given(affines(), points)
def test_the_inverse_of_a_map_leads_back(affine: Affine, p: Point) -> None:
    assert close(affine.inverse().point(affine.point(p)), p)
    assert close(affine.then(affine.inverse()).point(p), p)


@given(affines(), affines(), points)
def test_then_applies_this_map_first_and_the_other_to_its_result(
    first: Affine, second: Affine, p: Point
) -> None:
    assert close(first.then(second).point(p), second.point(first.point(p)))


@given(affines(), affines(), affines(), points)
def test_then_is_associative(a: Affine, b: Affine, c: Affine, p: Point) -> None:
    assert close(a.then(b).then(c).point(p), a.then(b.then(c)).point(p), 1e-4)


def test_translate_scale_scales_before_it_moves() -> None:
    assert Affine.translate_scale(10, 20, 2, 3).point(Point(5, 5)) == Point(20, 35)


def test_a_map_that_squashes_the_plane_is_refused() -> None:
    with pytest.raises(ValueError, match="determinant 0"):
        Affine(1, 2, 0, 2, 4, 0)


@given(affines(), boxes)
def test_a_map_scales_areas_by_its_determinant(affine: Affine, box: Box) -> None:
    shape = affine.polygon(box)
    assert shape.area == pytest.approx(box.area * abs(affine.determinant), rel=1e-3, abs=1e-3)


@given(boxes, st.floats(-360, 360))
def test_a_turned_box_keeps_its_area_and_lies_within_its_bounds(box: Box, degrees: float) -> None:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = Affine(cos, -sin, 0, sin, cos, 0).polygon(box)
    assert turned.area == pytest.approx(box.area, rel=1e-3, abs=1e-3)
    bounds = turned.bounds
    assert bounds.area >= turned.area - 1e-3
    for p in turned.points:
        assert bounds.x0 <= p.x <= bounds.x1
        assert bounds.y0 <= p.y <= bounds.y1
    width, height = abs(box.width * cos) + abs(box.height * sin), bounds.height
    assert bounds.width == pytest.approx(width, abs=1e-6)
    assert height == pytest.approx(abs(box.width * sin) + abs(box.height * cos), abs=1e-6)


@pytest.mark.parametrize(("degrees", "still_a_box"), [(0, True), (90, True), (30, False)])
def test_only_quarter_turns_leave_a_box_a_box(degrees: float, still_a_box: bool) -> None:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = Affine(cos, -sin, 0, sin, cos, 0).polygon(Box(10, 20, 50, 90))
    assert turned.is_box is still_a_box


@pytest.mark.parametrize(
    "corners", [(5, 5, 5, 9), (5, 5, 4, 9), (0, 0, math.nan, 1), (0, 0, math.inf, 1)]
)
def test_a_box_without_area_or_with_strange_numbers_is_refused(
    corners: tuple[float, float, float, float],
) -> None:
    with pytest.raises(ValueError, match="Box needs"):
        Box(*corners)


def test_a_small_polygon_far_from_the_origin_has_its_area() -> None:
    small = Box(4000, 4000, 4000 + 3e-5, 4000 + 3e-5)
    assert small.polygon().area == pytest.approx(small.area, rel=1e-6)


def test_a_polygon_without_area_is_refused() -> None:
    with pytest.raises(ValueError, match="positive area"):
        Polygon((Point(0, 0), Point(1, 1), Point(2, 2)))
    with pytest.raises(ValueError, match="3 points"):
        Polygon((Point(0, 0), Point(1, 1)))


@given(whole_boxes, whole_boxes)
def test_iou_counts_pixels(a: Box, b: Box) -> None:
    ours, theirs = painted([a]), painted([b])
    assert iou(a, b) == pytest.approx((ours & theirs).sum() / (ours | theirs).sum())
    assert iou(a, b) == iou(b, a)
    assert iou(a, a) == 1


@given(st.lists(whole_boxes, max_size=6))
def test_the_area_of_a_union_counts_every_pixel_once(many: list[Box]) -> None:
    assert union_area(many) == painted(many).sum()


@given(boxes, st.integers(1, 500), st.integers(1, 500))
def test_a_clipped_box_lies_inside_the_image_and_none_means_nothing_is_inside(
    box: Box, width: int, height: int
) -> None:
    inside = box.clip(width, height)
    outside = box.x1 <= 0 or box.y1 <= 0 or box.x0 >= width or box.y0 >= height
    assert (inside is None) == outside
    if inside:
        assert 0 <= inside.x0 < inside.x1 <= width
        assert 0 <= inside.y0 < inside.y1 <= height
        assert inside.intersection(box) == inside


def painted(many: list[Box]) -> np.ndarray:
    canvas = np.zeros((50, 50), dtype=bool)
    for box in many:
        canvas[int(box.y0) : int(box.y1), int(box.x0) : int(box.x1)] = True
    return canvas


@given(st.integers(1, 12), st.integers(1, 12), st.data())
def test_a_mask_comes_back_from_its_run_lengths(
    width: int, height: int, data: st.DataObject
) -> None:
    bits = data.draw(st.lists(st.booleans(), min_size=width * height, max_size=width * height))
    assume(any(bits))
    array = np.array(bits).reshape(height, width)
    mask = Mask.from_array(array)
    assert np.array_equal(mask.array(), array)
    assert mask.area == array.sum()
    assert all(run > 0 for run in mask.runs[1:])
    assert Mask(mask.width, mask.height, mask.runs) == mask


def test_a_mask_of_nothing_or_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="positive area"):
        Mask(2, 2, (4,))
    with pytest.raises(ValueError, match="sum to 4"):
        Mask(2, 2, (1, 2))
    with pytest.raises(ValueError, match="non-negative"):
        Mask(2, 2, (5, -1))


frames = st.builds(
    lambda kind, w, h, rw, rh: (
        Frame.resized(w, h, resized_width=rw, resized_height=rh)
        if kind == "resized"
        else getattr(Frame, kind)(w, h)
    ),
    st.sampled_from(("pixels", "thousand", "resized", "unit", "percent")),
    *(st.integers(1, 5000) for _ in range(4)),
)


@given(frames, st.floats(0, 1), st.floats(0, 1))
def test_a_point_comes_back_from_a_frame_within_half_a_unit(
    frame: Frame, across: float, down: float
) -> None:
    """Within one at the far edge of a resized picture: its largest number is its size less one."""
    x, y = across * frame.width, down * frame.height
    written = frame.encode((x, y))
    back = frame.decode(written)
    for axis, (was, now, size) in enumerate(
        zip((x, y), back, (frame.width, frame.height), strict=True)
    ):
        assert 0 <= written[axis] <= frame.limit[axis]
        unit = size / frame.extent[axis]
        clamped = was / unit > frame.limit[axis]
        half = 0.5 if frame.is_integral else 0.0
        assert abs(was - now) <= unit * (1.0 if clamped else half) + 1e-6
    assert frame.encode(back) == pytest.approx(written)


@pytest.mark.parametrize("vector", VECTORS["coordinate_conversions"])
def test_frames_agree_with_the_published_conversions(vector: dict[str, list[float]]) -> None:
    box = Box(*vector["box_xyxy_px"])
    height, width = (int(v) for v in vector["orig_hw"])
    resized_height, resized_width = (int(v) for v in vector["qwen25vl_resized_hw"])
    thousand = Frame.thousand(width, height)
    resized = Frame.resized(
        width, height, resized_width=resized_width, resized_height=resized_height
    )
    assert list(thousand.encode_box(box)) == vector["qwen2vl_qwen3vl_0_1000"]
    assert list(resized.encode_box(box)) == vector["qwen25vl_resized_abs"]
    for frame in (thousand, resized):
        back = frame.decode_box(frame.encode_box(box))
        assert iou(back, box) > 0.9


def test_numbers_that_are_no_box_are_refused_with_a_sentence() -> None:
    frame = Frame.thousand(640, 480)
    with pytest.raises(ValueError, match="4 numbers, got 3"):
        frame.decode_box((1, 2, 3))
    with pytest.raises(ValueError, match="x0 < x1"):
        frame.decode_box((500, 0, 400, 10))
    with pytest.raises(ValueError, match="finite"):
        frame.decode_box((0, 0, math.nan, 10))


def test_a_frame_is_never_guessed_from_the_size_of_numbers() -> None:
    """Small numbers in 0..1000 stay what they are; a known evaluation takes them for fractions."""
    frame = Frame.thousand(2000, 1000)
    assert frame.decode_box((0.2, 0.2, 0.8, 0.8)) == Box(0.4, 0.2, 1.6, 0.8)
