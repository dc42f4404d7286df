"""Samples that are slow to draw: drawn once, read after that, equal in both cases."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from saccade.errors import DataError
from saccade.image_store import ImageStore
from saccade.tasks import Task, stored
from saccade.tasks.charts import Charts
from saccade.tasks.files import Files
from saccade.tasks.stored import Stored
from saccade.types import Sample


class Counted(Charts):
    """Charts that say what was drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[str, int]] = []

    def load(
        self, split: str, *, store: ImageStore, start: int = 0, count: int | None = None
    ) -> Sequence[Sample]:
        assert count is not None
        self.drawn += [(split, index) for index in range(start, start + count)]
        return super().load(split, store=store, start=start, count=count)


@pytest.fixture
def all_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "SLOW_S", 0.0)


def pixels(store: ImageStore, samples: Sequence[Sample]) -> list[np.ndarray]:
    return [np.asarray(store.view(i).pixels) for s in samples for i in s.images]


@pytest.mark.usefixtures("all_slow")
def test_what_was_drawn_is_read_and_equal(tmp_path: Path) -> None:
    charts, first, second = Counted(), ImageStore(), ImageStore()
    drawn = Stored(charts, tmp_path).load("test", store=first, start=3, count=4)
    assert charts.drawn == [("test", index) for index in (3, 4, 5, 6)]
    read = Stored(charts, tmp_path).load("test", store=second, start=4, count=4)
    assert charts.drawn[4:] == [("test", 7)]
    assert list(read[:3]) == list(drawn[1:])
    for one, other in zip(pixels(first, drawn[1:]), pixels(second, read[:3]), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.usefixtures("all_slow")
def test_splits_do_not_mix(tmp_path: Path) -> None:
    both = Stored(Charts(), tmp_path)
    for _ in range(2):
        for split in ("test", "validation"):
            [sample] = both.load(split, store=ImageStore(), start=0, count=1)
            assert sample.id == f"charts/{split}/0"


def test_what_is_drawn_quickly_is_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "SLOW_S", 1000.0)
    charts = Counted()
    for _ in range(2):
        Stored(charts, tmp_path).load("test", store=ImageStore(), start=0, count=1)
    assert charts.drawn == [("test", 0)] * 2
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("all_slow")
def test_a_split_that_ends_ends(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 48), "red").save(tmp_path / "a.png")
    rows = [{"image": "a.png", "question": f"{n}?", "answer": str(n)} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = Stored(Files(tmp_path / "rows.jsonl"), tmp_path / "stored")
    assert isinstance(task, Task)
    for count in (None, 7):
        found = task.load("test", store=ImageStore(), start=1, count=count)
        assert [s.answer for s in found] == ["1", "2"]


@pytest.mark.usefixtures("all_slow")
def test_a_picture_that_was_changed_is_refused(tmp_path: Path) -> None:
    from PIL import Image

    task = Stored(Charts(), tmp_path)
    task.load("test", store=ImageStore(), start=0, count=1)
    [picture] = (tmp_path / "images").iterdir()
    with Image.open(picture) as image:
        size = image.size
    Image.new("RGB", size).save(picture)
    with pytest.raises(Exception, match="holds other pixels"):
        task.load("test", store=ImageStore(), start=0, count=1)


@pytest.mark.usefixtures("all_slow")
def test_a_sample_that_was_damaged_is_refused(tmp_path: Path) -> None:
    task = Stored(Charts(), tmp_path)
    task.load("test", store=ImageStore(), start=0, count=1)
    (tmp_path / "test" / "0.json").write_text('{"schema": 99}')
    with pytest.raises(DataError, match="99"):
        task.load("test", store=ImageStore(), start=0, count=1)
