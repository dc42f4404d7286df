"""ocr: a scripted reader for what the tool makes of it, the real one for what is read."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import pytest
from PIL import Image, ImageDraw, ImageFont

from saccade import plugins
from saccade.backends import (
    Detector,
    Pointer,
    Printed,
    Reader,
    all_made,
    builtin_backends,
    rapidocr_reader,
)
from saccade.backends.remembered import Remembered
from saccade.benches.found import bench_found
from saccade.benches.judges import LEAST_PX
from saccade.config import BackendChoice
from saccade.daemon_threads import OneThread
from saccade.errors import RecipeError
from saccade.geometry import Box, Frame, iou
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.tools import ToolBox, builtin_tools, tools_named
from saccade.tools.ocr import MOST_LINES
from saccade.types import BoxFound, ImageShown, Text, ToolCall, ToolResult
from saccade.vision.lone_print import MOST_PLACES, lone_print
from saccade.worlds.chart_figures import chart_figure
from saccade.worlds.figures import figure
from scripted_reader import Scripted


def call(reader: Reader, arguments: dict[str, Any], picture: Image.Image) -> ToolResult:
    store = ImageStore()
    images = {"img_0": store.add(root_view(picture))}
    box = ToolBox([builtin_tools()["ocr"].with_backends({"reader": reader})], store=store)
    [result] = asyncio.run(
        box.call_all(
            [ToolCall("c", "ocr", {"image": "img_0", **arguments})],
            images=images,
            frame=lambda ref: Frame.thousand(ref.width, ref.height),
        )
    )
    return result


def test_lines_of_a_region_lie_on_the_image_that_was_named() -> None:
    reader = Scripted([Printed("42", Box(3, 4, 13, 14), 0.9)])
    result = call(reader, {"box": [500, 200, 750, 400]}, Image.new("RGB", (200, 100)))
    assert reader.sizes == [(50, 20)]
    line = result.parts[0]
    assert isinstance(line, BoxFound)
    assert line.image.is_root
    assert line.box == Box(103, 24, 113, 34)
    assert (line.label, line.score) == ("42", 0.9)
    picture = result.parts[-1]
    assert isinstance(picture, ImageShown)
    assert (picture.image.width, picture.image.height) == (200, 100)


def test_where_nothing_is_read_that_is_said_and_no_place_is_made_up() -> None:
    result = call(Scripted([]), {}, Image.new("RGB", (50, 50)))
    assert result.parts == (Text("No text was found."),)
    assert not result.failed


def test_what_is_left_out_for_length_is_counted() -> None:
    lines = [Printed(str(n), Box(0, n, 5, n + 1), None) for n in range(MOST_LINES + 7)]
    result = call(Scripted(lines), {}, Image.new("RGB", (100, 100)))
    assert sum(isinstance(p, BoxFound) for p in result.parts) == MOST_LINES
    assert Text("7 more lines were left out: ask for a smaller region.") in result.parts


def test_a_tool_without_its_back_end_is_not_taken_by_a_box() -> None:
    with pytest.raises(ValueError, match="Tool ocr has no reader yet"):
        ToolBox([builtin_tools()["ocr"]], store=ImageStore())


def test_the_model_is_told_nothing_of_back_ends() -> None:
    assert set(builtin_tools()["ocr"].spec.schema["properties"]) == {"image", "box"}


def test_an_unknown_back_end_is_refused_with_those_there_are() -> None:
    with pytest.raises(RecipeError, match=r"No reader named 'abacus'\. Available: .*rapidocr"):
        tools_named(["ocr"], {"reader": BackendChoice(name="abacus")})


def test_a_package_that_is_missing_is_named_with_the_way_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(builtin_backends()["rapidocr"], "packages", ("no_such_module",))
    with pytest.raises(RecipeError, match=r"needs no_such_module.*pip install 'saccade\[tools\]'"):
        tools_named(["ocr"])


@pytest.fixture(scope="module")
def rapid() -> Reader:
    reader = all_made(["reader"])["reader"]
    assert isinstance(reader, Reader)
    return reader


def test_the_words_of_a_figure_are_read_where_they_stand(rapid: Reader) -> None:
    item = figure(1)
    lines = rapid.read(item.image)
    titles = [t for t in item.texts if t.role == "title"]
    assert titles
    for title in titles:
        assert any(line.text == title.text and iou(line.box, title.box) > 0.5 for line in lines)


def test_the_smallest_picture_and_a_white_one_have_no_print(rapid: Reader) -> None:
    assert rapid.read(Image.new("RGB", (1, 1), "white")) == []
    assert rapid.read(Image.new("RGB", (300, 200), "white")) == []


def test_the_table_of_print_counts_words_characters_and_what_is_no_print(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    item = figure(1)
    texts = [t for t in item.texts if t.size_px >= LEAST_PX]
    title = next(t for t in texts if t.role == "title" and " " in t.text)
    words = sum(len(t.text.split()) for t in texts)
    nowhere = next(
        box
        for x in range(0, 400, 7)
        if not any((box := Box(x, 0, x + 2, 2)).intersection(t.box) for t in item.texts)
    )
    first, rest = title.text.split(" ", 1)
    lines = [
        *(Printed(t.text, t.box, 1.0) for t in texts if t is not title),
        Printed(f"{first[:-1]}# {rest}", title.box, 1.0),
        Printed("ghost", nowhere, 1.0),
    ]
    monkeypatch.setattr("saccade.benches.judges.all_made", lambda *_: {"reader": Scripted(lines)})
    monkeypatch.setattr("saccade.benches.found.figure", lambda *_, **__: item)
    [row] = bench_found(count=1, varieties=("plain",), what=("print",), show=False)
    assert row.there == words
    assert row.found == pytest.approx(1 - 1 / words)
    # one character of all that are printed is wrong, and the ghost is no print's
    assert row.quality == pytest.approx(1 - 1 / sum(len(t.text) for t in texts))
    assert row.wrong == 1


def test_print_that_stands_upright_is_read(rapid: Reader) -> None:
    item = figure(1)
    upright = [t for t in item.texts if t.box.height > 1.5 * t.box.width and len(t.text) > 2]
    assert upright
    read = {line.text for line in rapid.read(item.image)}
    assert {t.text for t in upright} <= read


# --- numbers that stand alone ---------------------------------------------------------------------


def printed(*places: tuple[str, int, int], size: int = 16) -> tuple[Image.Image, list[Box]]:
    picture = Image.new("RGB", (300, 200), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size)
    boxes = []
    for text, x, y in places:
        draw.text((x, y), text, font=font, fill="black")
        boxes.append(Box(*map(float, draw.textbbox((x, y), text, font=font))))
    return picture, boxes


def test_a_zero_alone_and_numbers_without_any_other_print_are_places_to_read_again() -> None:
    picture, boxes = printed(("0", 40, 150), ("27", 120, 60), ("318", 220, 90))
    found = lone_print(picture, [])
    assert len(found) == 3
    for place, box in zip(found, boxes, strict=True):
        assert iou(place, box) > 0.75


def test_print_that_was_read_is_no_place_and_tells_how_high_others_are() -> None:
    picture, [zero, word] = printed(("0", 40, 150), ("27", 120, 60))
    assert [iou(p, zero) > 0.7 for p in lone_print(picture, [("27", word.expand(3))])] == [True]
    low = Box(word.x0, word.y0, word.x1, word.y0 + 6)
    high = Box(word.x0, word.y0 - 40, word.x1, word.y1)
    assert lone_print(picture, [("27", low)]) == []
    assert lone_print(picture, [("27", high)]) == []


def test_rings_strokes_letters_of_words_and_textures_are_no_places() -> None:
    picture, _ = printed(("dozen", 40, 20))
    draw = ImageDraw.Draw(picture)
    draw.ellipse((150, 100, 164, 114), outline="black", width=2)
    draw.rectangle((200, 100, 202, 114), fill="black")
    assert lone_print(picture, []) == []
    digits, _ = printed(*[("8", 8 + 24 * (i % 12), 8 + 24 * (i // 12)) for i in range(84)])
    assert len(lone_print(digits.crop((0, 0, 300, 30)), [])) == 12
    assert MOST_PLACES < 84
    assert lone_print(digits, []) == []


def test_a_digit_that_touches_other_ink_is_no_place() -> None:
    picture, [zero] = printed(("0", 40, 150))
    assert len(lone_print(picture, [])) == 1
    ImageDraw.Draw(picture).line((zero.x1 + 2, 0, zero.x1 + 2, 199), fill="black")
    assert lone_print(picture, []) == []


def test_numbers_that_a_detector_passes_over_are_read_by_the_real_reader(rapid: Reader) -> None:
    item = chart_figure(16)
    numbers = [t for t in item.texts if t.text.isdigit()]
    assert len(numbers) == len(item.texts) == 4
    read = {line.text: line for line in rapid.read(item.image)}
    right = [t for t in numbers if t.text in read and read[t.text].box.intersection(t.box)]
    assert len(right) >= 3
    assert len(read) == len(right)


# --- many at once ---------------------------------------------------------------------------------


def test_however_many_ask_at_once_the_models_are_made_once_and_asked_by_one_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made_by: list[int] = []
    asked_by: list[int] = []

    class Nothing:
        boxes, txts, scores = None, (), ()

    def models(threads: int) -> Any:
        made_by.append(threading.get_ident())
        time.sleep(0.05)

        def ask(pixels: Any, **how: bool) -> Nothing:
            asked_by.append(threading.get_ident())
            return Nothing()

        return ask

    monkeypatch.setattr(rapidocr_reader, "_models", models)
    monkeypatch.setattr(rapidocr_reader, "_engines", {})
    reader = all_made(["reader"])["reader"]
    pictures = [Image.new("RGB", (40 + n, 30), "white") for n in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(reader.read, pictures)) == [[]] * 12
    assert len(made_by) == 1
    assert len(asked_by) == 12
    assert set(asked_by) == set(made_by)


def test_one_thread_works_in_turn_raises_what_its_work_raises_and_lives_on() -> None:
    one, order = OneThread(), []
    assert one.do(lambda: order.append(threading.get_ident())) is None
    with pytest.raises(ZeroDivisionError):
        one.do(lambda: 1 / 0)
    one.do(lambda: order.append(threading.get_ident()))
    assert len(set(order)) == 1
    assert order[0] != threading.get_ident()


def test_one_thread_is_there_in_a_process_that_was_forked() -> None:
    one = OneThread()
    one.do(int)
    child = os.fork()
    if child == 0:
        os._exit(0 if one.do(lambda: 7) == 7 else 1)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child waits for a thread that it does not have")


# --- pictures that were seen ----------------------------------------------------------------------


def pictures(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (20, 20), (n, 0, 0)) for n in range(count)]


def test_those_who_ask_about_one_picture_at_once_wait_for_one_look() -> None:
    looks: list[int] = []

    def look(picture: Image.Image) -> int:
        looks.append(1)
        time.sleep(0.05)
        return 7

    seen = Remembered[int](most=2)
    [picture] = pictures(1)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: seen.of(picture, look), range(8))) == [7] * 8
    assert len(looks) == 1


def test_as_many_pictures_are_remembered_as_were_asked_for_those_asked_last() -> None:
    looks: list[Image.Image] = []

    def look(picture: Image.Image) -> int:
        looks.append(picture)
        return len(looks)

    seen = Remembered[int](most=2)
    a, b, c = pictures(3)
    assert [seen.of(p, look) for p in (a, b, a, c, a, b)] == [1, 2, 1, 3, 1, 4]


class Noting(Reader):
    """Reads nothing, and notes of what sizes it saw pictures."""

    name = "noting"
    sizes: ClassVar[list[tuple[int, int]]] = []

    def read_anew(self, picture: Image.Image) -> list[Printed]:
        self.sizes.append(picture.size)
        return []


def test_all_that_look_at_print_share_the_chosen_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read a picture anew, and by RapidOCR, whatever a recipe said."""
    monkeypatch.setattr(plugins, "load", lambda group, name: Noting)
    chosen = {"reader": BackendChoice(name="noting")}
    made = all_made(["pointer", "detector"], chosen)
    detector, pointer, reader = (made[kind] for kind in ("detector", "pointer", "reader"))
    assert isinstance(detector, Detector)
    assert isinstance(pointer, Pointer)
    assert isinstance(reader, Reader)
    picture = Image.new("RGB", (30, 20))
    detector.detect(picture, "title")
    pointer.point(picture, "title")
    reader.read(picture)
    assert Noting.sizes == [(30, 20)]
    assert {*all_made(["segmenter"], chosen)} == {"segmenter"}
    assert {*all_made(["reader", "segmenter"], chosen)} == {"reader", "segmenter"}


def test_a_look_that_failed_is_made_again() -> None:
    def fail(picture: Image.Image) -> int:
        raise OSError("no")

    seen = Remembered[int](most=2)
    [picture] = pictures(1)
    for _ in range(2):
        with pytest.raises(OSError, match="no"):
            seen.of(picture, fail)
        assert not seen._looking
    assert seen.of(picture, lambda _: 5) == 5
    assert seen.of(picture, fail) == 5
