"""Frames of plots, found in figures whose frames are known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from saccade.geometry import Box, iou
from saccade.vision.frames import find_frames
from saccade.worlds.figures import figure


@pytest.mark.parametrize("variety", ["plain", "hatched", "gradient", "dark", "jpeg", "inset"])
def test_frames_are_found_to_the_pixel_and_nothing_else_is(variety: str) -> None:
    found, wanted, false = 0, 0, 0
    for index in range(8):
        made = figure(100 + index, variety=variety)  # type: ignore[arg-type]
        frames = find_frames(made.image)
        truth = [p.frame for p in made.plots if p.kind != "pie"]
        wanted += len(truth)
        found += sum(max((iou(t, f) for f in frames), default=0.0) > 0.95 for t in truth)
        false += sum(max((iou(t, f) for t in truth), default=0.0) < 0.5 for f in frames)
    assert wanted >= 8
    assert found >= 0.95 * wanted
    assert false <= 1


def test_frames_are_told_in_reading_order() -> None:
    paper = Image.new("RGB", (600, 400), "white")
    draw = ImageDraw.Draw(paper)
    boxes = [(330, 24, 570, 180), (40, 20, 280, 180), (40, 220, 280, 380), (330, 222, 570, 380)]
    for box in boxes:
        draw.rectangle(box, outline="black", width=2)
    found = [tuple(round(v / 10) for v in b.as_tuple()) for b in find_frames(paper)]
    assert found == [(4, 2, 28, 18), (33, 2, 57, 18), (4, 22, 28, 38), (33, 22, 57, 38)]


def test_what_has_no_four_sides_is_no_frame() -> None:
    paper = Image.new("RGB", (600, 400), "white")
    draw = ImageDraw.Draw(paper)
    draw.line([(50, 50), (50, 350), (550, 350)], fill="black", width=2)  # two axes
    draw.rectangle((200, 100, 300, 349), fill="blue")  # a bar
    assert find_frames(paper) == []
    assert find_frames(Image.new("RGB", (300, 200), "white")) == []
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    assert find_frames(Image.fromarray(noise)) == []


def test_a_box_of_text_inside_a_frame_is_told_only_with_ticks() -> None:
    def paper(*, ticks: bool) -> Image.Image:
        made = Image.new("RGB", (600, 400), "white")
        draw = ImageDraw.Draw(made)
        draw.rectangle((60, 30, 560, 350), outline="black")
        draw.rectangle((400, 60, 540, 160), outline="black")
        if ticks:
            for x in (420, 460, 500):
                draw.line([(x, 161), (x, 165)], fill="black")
        return made

    assert len(find_frames(paper(ticks=False))) == 1
    assert len(find_frames(paper(ticks=True))) == 2


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 2), (12, 12)])
def test_pictures_of_any_shape_are_read(size: tuple[int, int]) -> None:
    assert find_frames(Image.new("RGB", size, "white")) == []


def test_an_outlined_bar_is_no_frame_and_a_filled_plot_is_one() -> None:
    picture = Image.new("RGB", (400, 300), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((60, 80, 160, 250), fill=(130, 80, 50), outline=(90, 90, 90), width=2)
    draw.text((95, 150), "42", fill="white")
    assert find_frames(picture) == []
    draw.rectangle((200, 40, 380, 250), fill=(235, 235, 240), outline=(90, 90, 90), width=2)
    for x in (220, 270, 320):
        draw.rectangle((x, 120, x + 30, 249), fill=(31, 90, 200))
    assert len(find_frames(picture)) == 1


def test_a_filled_plot_with_nothing_in_it_is_known_by_its_ticks() -> None:
    picture = Image.new("RGB", (400, 300), "white")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((60, 40, 360, 250), fill=(205, 205, 215), outline=(60, 60, 60))
    draw.ellipse((150, 100, 158, 108), fill=(31, 90, 200))
    assert find_frames(picture) == []
    for x in (100, 180, 260, 340):
        draw.line((x, 250, x, 255), fill=(60, 60, 60))
    assert len(find_frames(picture)) == 1


@pytest.mark.parametrize("ends", [(6, 0), (0, 6), (6, 6)])
def test_marks_of_ticks_at_the_corners_hide_no_frame(ends: tuple[int, int]) -> None:
    """Where limits are round numbers, the first and the last tick go on from the sides."""
    paper = Image.new("RGB", (600, 400), "white")
    draw = ImageDraw.Draw(paper)
    draw.rectangle((60, 30, 560, 350), outline="black")
    for x, mark in zip((60, 560), ends, strict=True):
        draw.line([(x, 350), (x, 350 + mark)], fill="black")
    draw.line([(60 - ends[0], 350), (60, 350)], fill="black")
    draw.line([(60 - ends[0], 30), (60, 30)], fill="black")
    [frame] = find_frames(paper)
    assert iou(frame, Box(60.5, 30.5, 560.5, 350.5)) > 0.99
    far = Image.new("RGB", (600, 400), "white")
    draw = ImageDraw.Draw(far)
    draw.rectangle((60, 30, 560, 350), outline="black")
    for x in (60, 560):
        draw.line([(x, 350), (x, 370)], fill="black")
    draw.line([(60, 350), (560, 350)], fill="white")
    draw.line([(60, 350), (590, 350)], fill="black")
    assert find_frames(far) == []
