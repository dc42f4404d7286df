"""The reader that calls tesseract: what is made of its words; the program itself where it is."""

from __future__ import annotations

import shutil
from typing import Any

import pytesseract
import pytest
from PIL import Image

from saccade.backends import Reader, all_made
from saccade.config import BackendChoice
from saccade.errors import RecipeError, ToolError
from saccade.geometry import Box
from saccade.worlds.figures import figure

WORDS = {
    "text": ["", "Unit", "cost", "", "42", "smudge"],
    "conf": ["-1", "96.0", "90.0", "-1", "80.0", "12.0"],
    "block_num": [1, 1, 1, 2, 2, 3],
    "par_num": [0, 1, 1, 0, 1, 1],
    "line_num": [0, 1, 1, 0, 1, 1],
    "left": [0, 20, 60, 0, 10, 5],
    "top": [0, 40, 42, 0, 4, 5],
    "width": [200, 36, 40, 100, 20, 5],
    "height": [100, 16, 14, 50, 12, 5],
}
"""As it tells them: one row for each block, line and word."""


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = []

    def image_to_data(picture: Image.Image, **how: Any) -> dict[str, list[Any]]:
        asked.append({"size": picture.size, **how})
        return WORDS

    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(pytesseract, "get_languages", lambda: ["deu", "eng"])
    monkeypatch.setattr(pytesseract, "image_to_data", image_to_data)
    return asked


def reader(model: str | None = None) -> Reader:
    found = all_made(["reader"], {"reader": BackendChoice(name="tesseract", model=model)})["reader"]
    assert isinstance(found, Reader)
    return found


def test_words_of_a_line_are_joined_and_unsure_ones_left_out(played: list[dict[str, Any]]) -> None:
    lines = reader().read(Image.new("RGB", (100, 50)))
    assert [line.text for line in lines] == ["42", "Unit cost"]
    assert lines[0].box == Box(5, 2, 15, 8)  # it saw the picture at twice its size
    assert lines[1].box == Box(10, 20, 50, 28)
    assert lines[1].score == pytest.approx(0.93)
    assert played[0]["size"] == (200, 100)
    assert played[0]["lang"] == "eng"


def test_languages_are_the_models(played: list[dict[str, Any]]) -> None:
    reader("eng+deu").read(Image.new("RGB", (10, 10)))
    assert played[0]["lang"] == "eng+deu"
    with pytest.raises(RecipeError, match="no language 'fra' here, only deu, eng"):
        reader("eng+fra")


def test_without_the_program_the_recipe_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(RecipeError, match=r"needs the program tesseract.*apt install"):
        reader()


def test_a_picture_that_it_can_not_read_is_the_models_mistake(
    played: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: Any, **__: Any) -> None:
        raise RuntimeError("Tesseract process timeout")

    monkeypatch.setattr(pytesseract, "image_to_data", late)
    with pytest.raises(ToolError, match=r"30 x 20 pixels could not be read .*timeout"):
        reader().read(Image.new("RGB", (30, 20)))


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="tesseract is not installed")
def test_the_program_reads_a_figure() -> None:
    item = figure(3)
    read = {word for line in reader().read(item.image) for word in line.text.split()}
    words = {w for t in item.texts if t.box.width > t.box.height for w in t.text.split()}
    long = {w for w in words if len(w) > 3}
    assert len(long & read) > 0.9 * len(long)
