"""segment and segment_around_point: a scripted segmenter for what the tools make of it, the fills
for what is found.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from saccade.backends import Segmented, Segmenter
from saccade.backends.fills_segmenter import FillSegmenter
from saccade.config import BackendChoice
from saccade.errors import ToolError
from saccade.geometry import Box, Frame, Mask, Point, iou
from saccade.image_store import ImageStore
from saccade.images import ImageView, root_view
from saccade.tools import ToolBox
from saccade.tools.segment import segment
from saccade.tools.segment_around_point import segment_around_point
from saccade.types import ImageShown, MaskFound, Text, ToolCall, ToolResult
from saccade.vision.filled import LEAST, filled
from saccade.worlds.figures import Shape, Variety, figure

FILLS = FillSegmenter(BackendChoice())


class Scripted(Segmenter):
    """Finds what it is told to, whatever it sees."""

    name = "scripted"

    def __init__(self, found: Segmented | None) -> None:
        super().__init__(BackendChoice())
        self.found = found
        self.asked: list[tuple[Box | None, tuple[Point, ...], tuple[Point, ...]]] = []

    def segment(
        self,
        picture: Image.Image,
        *,
        box: Box | None = None,
        points: Sequence[Point] = (),
        outside: Sequence[Point] = (),
    ) -> Segmented | None:
        self.asked.append((box, tuple(points), tuple(outside)))
        return self.found


def call(
    segmenter: Segmenter, name: str, arguments: dict[str, Any], picture: Image.Image
) -> ToolResult:
    store = ImageStore()
    images = {"img_0": store.add(root_view(picture))}
    tools = [t.with_backends({"segmenter": segmenter}) for t in (segment, segment_around_point)]
    [result] = asyncio.run(
        ToolBox(tools, store=store).call_all(
            [ToolCall("c", name, {"image": "img_0", **arguments})],
            images=images,
            frame=lambda ref: Frame.thousand(ref.width, ref.height),
        )
    )
    return result


def a_mask(width: int, height: int, box: tuple[int, int, int, int]) -> Mask:
    bits = np.zeros((height, width), dtype=bool)
    x0, y0, x1, y1 = box
    bits[y0:y1, x0:x1] = True
    return Mask.from_array(bits)


def paper(
    *shapes: tuple[tuple[int, int, int, int], str], size: tuple[int, int] = (300, 200)
) -> Image.Image:
    """White, with filled rectangles (x0, y0, x1, y1), half open."""
    made = Image.new("RGB", size, "white")
    for (x0, y0, x1, y1), color in shapes:
        ImageDraw.Draw(made).rectangle((x0, y0, x1 - 1, y1 - 1), fill=color)
    return made


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max(1, (a | b).sum()))


def pixels_of(shape: Shape, size: tuple[int, int]) -> np.ndarray:
    """Those of which the outline covers half or more."""
    fine = Image.new("L", (4 * size[0], 4 * size[1]))
    corners = [(4 * p.x - 0.5, 4 * p.y - 0.5) for p in shape.outline]
    ImageDraw.Draw(fine).polygon(corners, fill=255)
    return np.asarray(fine.resize(size, Image.Resampling.BOX)) >= 128


# --- the tools ------------------------------------------------------------------------------------


def test_a_box_reaches_the_segmenter_in_pixels_and_the_mask_lies_on_the_image() -> None:
    mask = a_mask(200, 100, (100, 20, 150, 40))
    segmenter = Scripted(Segmented(mask, 0.9))
    result = call(segmenter, "segment", {"box": [500, 200, 750, 400]}, Image.new("RGB", (200, 100)))
    assert segmenter.asked == [(Box(100, 20, 150, 40), (), ())]
    found, told, picture = result.parts
    assert isinstance(found, MaskFound)
    assert found.image.is_root
    assert (found.mask, found.score) == (mask, 0.9)
    assert told == Text("1000 pixels, 5.00% of the image.")
    assert isinstance(picture, ImageShown)
    assert (picture.image.width, picture.image.height) == (200, 100)


def test_points_reach_the_segmenter_in_pixels_inside_ones_and_outside_ones_apart() -> None:
    segmenter = Scripted(None)
    arguments = {"point": [500, 500], "include": [[0, 0]], "exclude": [[1000, 100]]}
    call(segmenter, "segment_around_point", arguments, Image.new("RGB", (200, 100)))
    inside, outside = (Point(100, 50), Point(0, 0)), (Point(200, 10),)
    assert segmenter.asked == [(None, inside, outside)]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("segment", {"box": [0, 0, 500, 500]}), ("segment_around_point", {"point": [500, 500]})],
)
def test_where_nothing_is_plain_that_is_said_and_no_mask_is_made_up(
    name: str, arguments: dict[str, Any]
) -> None:
    result = call(Scripted(None), name, arguments, Image.new("RGB", (50, 50)))
    [told] = result.parts
    assert isinstance(told, Text)
    assert told.text.startswith("No ")
    assert "was found" in told.text
    assert not result.failed


def test_with_neither_a_box_nor_points_the_model_is_told_what_is_needed() -> None:
    result = call(FILLS, "segment", {}, Image.new("RGB", (50, 50)))
    assert result.failed
    assert "needs a box around the thing or points on it" in str(result.parts)
    with pytest.raises(ValueError, match="needs a box or a point"):
        FILLS.segment(Image.new("RGB", (50, 50)))


def test_places_outside_the_image_are_refused_by_name() -> None:
    view = root_view(Image.new("RGB", (50, 40)))
    with pytest.raises(ToolError, match=r"\(60, 5\) lies outside the image of 50 x 40"):
        segment(view, points=[Point(60, 5)], segmenter=FILLS)
    with pytest.raises(ToolError, match=r"box \(50, 0, 70, 9\) lies outside the image"):
        segment(view, box=Box(50, 0, 70, 9), segmenter=FILLS)
    with pytest.raises(ToolError, match=r"\(-1, 5\) lies outside"):
        segment_around_point(view, Point(5, 5), exclude=[Point(-1, 5)], segmenter=FILLS)


def test_a_point_outside_the_box_and_one_that_is_both_in_and_out_are_refused() -> None:
    view = root_view(Image.new("RGB", (50, 40)))
    with pytest.raises(ToolError, match=r"\(30, 5\) lies outside the box \(0, 0, 20, 20\)"):
        segment(view, box=Box(0, 0, 20, 20), points=[Point(30, 5)], segmenter=FILLS)
    with pytest.raises(ToolError, match="both in the region and out of it"):
        segment_around_point(view, Point(5, 5), exclude=[Point(5, 5)], segmenter=FILLS)


def test_the_mask_of_a_crop_lies_on_the_crop_and_leads_back_to_the_original() -> None:
    whole = root_view(paper(((150, 60, 210, 160), "#1f77b4")))
    part = whole.crop(Box(120, 40, 260, 190))
    found = segment(part, points=[Point(60, 60)], segmenter=FILLS)[0]
    assert isinstance(found, MaskFound)
    assert found.image == part.ref
    [(root, place)] = found.image.to_roots(found.mask.bounds)
    assert root == whole.ref
    assert iou(place.bounds, Box(150, 60, 210, 160)) > 0.95


def test_the_picture_of_the_mask_is_coloured_where_the_thing_is_and_nowhere_else() -> None:
    view = root_view(paper(((150, 60, 210, 160), "#1f77b4")))
    [found, _, picture] = segment(view, box=Box(150, 60, 210, 160), segmenter=FILLS)
    assert isinstance(found, MaskFound)
    assert isinstance(picture, ImageView)
    changed = (np.asarray(picture.pixels) != np.asarray(view.pixels)).any(axis=2)
    assert (changed == found.mask.array()).all()


# --- the fills ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variety", ["plain", "hatched", "gradient", "jpeg", "dark", "borderless", "inset"]
)
def test_bars_and_wedges_of_figures_are_found_to_the_edge(variety: Variety) -> None:
    rng = np.random.default_rng(0)
    by_box: list[float] = []
    by_point: list[float] = []
    for index in range(3000, 3004):
        made = figure(index, variety=variety)
        shapes = [s for p in made.plots for s in p.shapes if s.kind in ("bar", "wedge")]
        for number in rng.permutation(len(shapes))[:3]:
            there = pixels_of(shapes[number], made.image.size)
            places = np.argwhere(there)
            y, x = places[np.abs(places - places.mean(axis=0)).sum(axis=1).argmin()]
            point = Point(float(x) + 0.5, float(y) + 0.5)
            for found, overlaps in (
                (filled(made.image, box=shapes[number].box), by_box),
                (filled(made.image, points=[point]), by_point),
            ):
                overlaps.append(0.0 if found is None else overlap(found.mask, there))
    assert len(by_box) >= 5
    assert np.mean(by_box) > 0.9
    assert np.mean(by_point) > 0.9


def test_coins_of_a_photograph_are_found_by_box_and_by_point() -> None:
    from scipy.ndimage import binary_fill_holes, find_objects, label
    from skimage.data import coins
    from skimage.filters import sobel
    from skimage.segmentation import watershed

    photograph = coins()
    marks = np.where(photograph < 30, 1, np.where(photograph > 150, 2, 0))
    there, _ = label(binary_fill_holes(watershed(sobel(photograph), marks) == 2))
    picture = Image.fromarray(photograph).convert("RGB")
    overlaps = []
    for number, (rows, columns) in enumerate(find_objects(there), start=1):
        coin = there == number
        if coin.sum() < 500:
            continue
        box = Box(columns.start, rows.start, columns.stop, rows.stop)
        for found in (filled(picture, points=[box.center]), filled(picture, box=box)):
            overlaps.append(0.0 if found is None else overlap(found.mask, coin))
    assert len(overlaps) == 48
    assert min(overlaps) > 0.8
    assert np.mean(overlaps) > 0.95


def test_a_thing_is_surer_than_what_is_hardly_there() -> None:
    plain = filled(paper(((100, 50, 160, 150), "#1f77b4")), points=[Point(130, 100)])
    faint = filled(paper(((100, 50, 160, 150), "#f0f4f6")), points=[Point(130, 100)])
    assert plain is not None
    assert plain.score > 0.9
    assert faint is None or faint.score < 0.6


def test_what_fills_the_box_is_meant_and_not_what_runs_through_it() -> None:
    made = paper(((0, 90, 300, 110), "#d62728"), ((100, 60, 140, 140), "#1f77b4"))
    found = filled(made, box=Box(100, 60, 140, 140))
    assert found is not None
    assert found.mask.sum() == 40 * 80


def test_a_mask_never_leaves_its_box() -> None:
    made = paper(((100, 50, 160, 150), "#1f77b4"))
    found = filled(made, box=Box(100.4, 40, 150.2, 160))
    assert found is not None
    _, xs = np.nonzero(found.mask)
    assert xs.min() >= 100
    assert xs.max() < 151


def test_box_and_points_together_give_the_thing_on_the_points_inside_the_box() -> None:
    made = paper(((80, 40, 140, 160), "#d62728"), ((140, 40, 220, 160), "#1f77b4"))
    both = Box(80, 40, 220, 160)
    left = filled(made, box=both, points=[Point(100, 100)])
    assert left is not None
    assert overlap(left.mask, a_mask(300, 200, (80, 40, 140, 160)).array()) > 0.95
    assert filled(made, box=both, points=[Point(20, 20)]) is None


def test_a_point_that_must_be_inside_makes_the_region_larger() -> None:
    made = paper(((80, 40, 140, 160), "#d62728"), ((140, 40, 220, 160), "#1f77b4"))
    point, other = Point(100, 100), Point(200, 100)
    small, large = filled(made, points=[point]), filled(made, points=[point, other])
    assert small is not None
    assert large is not None
    assert overlap(small.mask, a_mask(300, 200, (80, 40, 140, 160)).array()) > 0.95
    assert overlap(large.mask, a_mask(300, 200, (80, 40, 220, 160)).array()) > 0.95


def test_a_point_that_must_be_outside_cuts_one_colour_at_its_neck() -> None:
    made = paper(
        ((40, 60, 120, 140), "#2ca02c"),
        ((120, 95, 160, 105), "#2ca02c"),
        ((160, 60, 240, 140), "#2ca02c"),
    )
    joined = filled(made, points=[Point(80, 100)])
    assert joined is not None
    assert joined.mask[100, 200]
    apart = filled(made, points=[Point(80, 100)], outside=[Point(200, 100)])
    assert apart is not None
    assert overlap(apart.mask, a_mask(300, 200, (40, 60, 120, 140)).array()) > 0.9
    assert not apart.mask[100, 200]


def test_hatches_and_print_belong_to_the_thing_that_they_are_on() -> None:
    made = paper(((100, 40, 180, 160), "#ff7f0e"))
    draw = ImageDraw.Draw(made)
    for offset in range(-120, 80, 7):
        points = [(x, x - 100 + 40 - offset) for x in range(100, 180)]
        draw.point([(x, y) for x, y in points if 40 <= y < 160], fill="black")
    draw.text((120, 90), "42.5", fill="black")
    found = filled(made, points=[Point(140, 70)])
    assert found is not None
    assert overlap(found.mask, a_mask(300, 200, (100, 40, 180, 160)).array()) > 0.95


def test_a_small_hole_belongs_to_the_thing_and_a_large_one_does_not() -> None:
    for side, belongs in ((12, True), (40, False)):
        hole = (130, 80, 130 + side, 80 + side)
        found = filled(
            paper(((100, 40, 200, 160), "#ff7f0e"), (hole, "white")), points=[Point(105, 50)]
        )
        assert found is not None
        assert found.mask[85, 135] == belongs


def test_a_thing_whose_colour_changes_from_side_to_side_is_one() -> None:
    made = paper()
    for x in range(60, 240):
        shade = (x - 60) * 200 // 180
        ImageDraw.Draw(made).line([(x, 50), (x, 149)], fill=(0, shade, shade // 2))
    there = a_mask(300, 200, (60, 50, 240, 150)).array()
    for found in (
        filled(made, points=[Point(150, 100)]),
        filled(made, box=Box(60, 50, 240, 150)),
    ):
        assert found is not None
        assert overlap(found.mask, there) > 0.95


def test_of_two_plain_things_the_one_whose_sides_are_those_of_the_box_is_meant() -> None:
    made = paper(((60, 40, 240, 160), "#9ecae1"), ((110, 60, 190, 140), "#d62728"))
    for box, row, column in ((Box(60, 40, 240, 160), 50, 70), (Box(110, 60, 190, 140), 100, 150)):
        found = filled(made, box=box)
        assert found is not None
        assert found.mask[row, column]
        ys, xs = np.nonzero(found.mask)
        seen = Box(float(xs.min()), float(ys.min()), float(xs.max()) + 1, float(ys.max()) + 1)
        assert iou(seen, box) > 0.95


@pytest.mark.parametrize(
    "point", [Point(0, 0), Point(300, 200), Point(0, 200), Point(299.99, 0.5), Point(300, 100)]
)
def test_points_on_the_border_lie_on_what_they_border(point: Point) -> None:
    found = filled(paper(((0, 0, 60, 60), "red"), ((240, 140, 300, 200), "blue")), points=[point])
    if found is not None:
        assert found.mask[min(199, int(point.y)), min(299, int(point.x))]
    if point in (Point(0, 0), Point(300, 200)):
        assert found is not None
        assert found.mask.sum() == 3600


@pytest.mark.parametrize(
    "box", [Box(0, 0, 1, 1), Box(299, 199, 300, 200), Box(120, 80, 121, 160), Box(5.2, 5.2, 5.4, 9)]
)
def test_in_boxes_of_a_pixel_nothing_is_plain(box: Box) -> None:
    assert filled(paper(((100, 50, 160, 150), "#1f77b4")), box=box) is None


def test_noise_slopes_and_empty_paper_hold_nothing() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (200, 300, 3), dtype=np.uint8)
    slope = np.linspace(0, 255, 300)[None, :].repeat(200, 0).astype(np.uint8)
    for made in (Image.fromarray(noise), Image.fromarray(slope), paper()):
        for question in (
            {"points": [Point(150, 100)]},
            {"box": Box(60, 40, 200, 150)},
            {"box": Box(0, 0, 300, 200)},
        ):
            assert filled(made.convert("RGB"), **question) is None


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (2, 2), (4000, 3000)])
def test_pictures_of_any_size_are_answered_in_time(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    made = Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))
    middle = Point(size[0] / 2, size[1] / 2)
    began = time.process_time()
    found = [FILLS.segment(made, points=[middle]), FILLS.segment(made, box=Box(0, 0, *size))]
    assert time.process_time() - began < 4
    assert found == [None, None]


def test_a_thing_in_a_large_picture_is_found_at_its_own_scale() -> None:
    made = paper(((2000, 1500, 2030, 1550), "#1f77b4"), size=(4000, 3000))
    found = filled(made, points=[Point(2010, 1510)])
    assert found is not None
    assert found.mask.sum() == 30 * 50


def test_the_same_question_gives_the_same_mask_whatever_was_drawn_by_lot_before() -> None:
    import cv2
    from skimage.data import astronaut

    picture = Image.fromarray(astronaut())
    found = []
    for seed in range(4):
        cv2.setRNGSeed(seed)  # as other work in this thread may
        found.append(FILLS.segment(picture, box=Box(60, 0, 400, 510)))
    assert found[0] is not None
    assert all(f == found[0] for f in found)


@st.composite
def hostile(draw: st.DrawFn) -> tuple[Image.Image, Box | None, list[Point], list[Point]]:
    """Pictures of few colours in blocks, with places anywhere on them."""
    width, height = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    block, colors = draw(st.integers(1, 30)), draw(st.integers(1, 4))
    cells = rng.integers(0, colors, (60, 60))
    table = rng.integers(0, 256, (colors, 3), dtype=np.uint8)
    pixels = np.kron(cells, np.ones((block, block), dtype=np.int64))[:height, :width]
    x, y = st.floats(0, width), st.floats(0, height)
    places = st.lists(st.builds(Point, x, y), max_size=3)
    box = None
    if draw(st.booleans()):
        x0, x1 = sorted((draw(x), draw(x)))
        y0, y1 = sorted((draw(y), draw(y)))
        box = Box(x0, y0, x1, y1) if x1 > x0 and y1 > y0 else Box(0, 0, width, height)
    inside = draw(places if box else st.lists(st.builds(Point, x, y), min_size=1, max_size=3))
    return Image.fromarray(table[pixels]), box, inside, draw(places)


@settings(max_examples=150, deadline=None)
@given(hostile())
def test_whatever_is_asked_a_mask_keeps_to_its_points_and_its_box(
    asked: tuple[Image.Image, Box | None, list[Point], list[Point]],
) -> None:
    picture, box, inside, outside = asked
    found = filled(picture, box=box, points=inside, outside=outside)
    if found is None:
        return
    width, height = picture.size
    assert found.mask.shape == (height, width)
    assert LEAST <= found.score <= 1
    ys, xs = np.nonzero(found.mask)
    for p in inside:
        assert found.mask[min(height - 1, int(p.y)), min(width - 1, int(p.x))]
    for p in outside:
        assert not found.mask[min(height - 1, int(p.y)), min(width - 1, int(p.x))]
    if box is not None:
        assert box.x0 - 1 < xs.min()
        assert xs.max() < box.x1
        assert box.y0 - 1 < ys.min()
        assert ys.max() < box.y1
