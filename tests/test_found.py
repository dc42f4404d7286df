"""The table of what is found: every judge counts what is missed and what is made up."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from saccade.backends import (
    Detected,
    Detector,
    Pointed,
    Pointer,
    Printed,
    Segmented,
    Segmenter,
)
from saccade.benches.found import LIMITS, SOURCES, bench_found
from saccade.benches.judges import JUDGES, Eyes, Seen
from saccade.config import BackendChoice
from saccade.errors import RecipeError
from saccade.geometry import Box, Mask, Point
from saccade.worlds.chart_figures import chart_figure
from saccade.worlds.figures import FigureItem, PrintedText, figure
from saccade.worlds.lookalikes import lookalike
from saccade.worlds.photographs import photograph
from scripted_reader import Scripted, printed

BARS = next(i for i in map(figure, range(60)) if {p.kind for p in i.plots} == {"bars"})

GRAY_LINES = next(i for i in map(chart_figure, range(60)) if {p.kind for p in i.plots} == {"lines"})


class Told(Detector, Pointer, Segmenter):
    """Answers with what it is told."""

    name = "told"

    def __init__(self, boxes: Callable[[str], Sequence[Box]]) -> None:
        super().__init__(BackendChoice())
        self.boxes = boxes

    def detect(self, picture: Image.Image, query: str) -> list[Detected]:
        return [Detected(query, box, None) for box in self.boxes(query)]

    def point(self, picture: Image.Image, description: str) -> list[Pointed]:
        return [Pointed(description, box.center, None) for box in self.boxes(description)]

    def segment(
        self,
        picture: Image.Image,
        *,
        box: Box | None = None,
        points: Sequence[Point] = (),
        outside: Sequence[Point] = (),
    ) -> Segmented | None:
        if box is None:
            return None
        x0, y0, x1, y1 = (round(v) for v in box.as_tuple())
        bits = np.zeros((picture.height, picture.width), dtype=bool)
        bits[y0:y1, x0:x1] = True
        return Segmented(Mask.from_array(bits), 1.0)


class Played(Eyes):
    """Eyes that see what they are told."""

    def __init__(self, item: FigureItem, boxes: Callable[[str], Sequence[Box]] = lambda _: ()):
        super().__init__()
        self.reader = printed(item)
        self.detector = self.pointer = self.segmenter = Told(boxes)


def judged(what: str, item: FigureItem, boxes: Callable[[str], Sequence[Box]]) -> Seen:
    return JUDGES[what](Played(item, boxes))(item)


def bars_of(item: FigureItem, query: str) -> list[Box]:
    return [s.box for p in item.plots for s in p.shapes if query == f"{s.color} bar"]


def test_every_bar_that_is_asked_for_counts_once() -> None:
    there = sum(len(p.shapes) for p in BARS.plots)
    seen = judged("bars", BARS, lambda query: bars_of(BARS, query))
    assert seen.found == [True] * there
    assert seen.quality == pytest.approx([1.0] * there)
    assert seen.wrong == 0
    blind = judged("bars", BARS, lambda _: ())
    assert blind.found == [False] * there
    assert blind.wrong == 0


def test_what_is_made_up_is_wrong_also_where_nothing_is() -> None:
    nowhere = Box(0, 0, 3, 3)
    seen = judged("bars", BARS, lambda _: [nowhere])
    assert not any(seen.found)
    assert seen.wrong == len({s.color for p in BARS.plots for s in p.shapes}) + 1  # an absent one
    twice = judged("bars", BARS, lambda query: 2 * bars_of(BARS, query))
    assert all(twice.found)
    assert twice.wrong == sum(len(p.shapes) for p in BARS.plots)
    assert judged("legends", photograph(0), lambda _: [nowhere]).wrong == 1


def text(word: str, x: float) -> PrintedText:
    return PrintedText(word, Box(x, 10, x + 40, 24), "tick", 14.0)


def line(words: str, x0: float, x1: float) -> Printed:
    return Printed(words, Box(x0, 10, x1, 24), 1.0)


def read(texts: list[PrintedText], lines: list[Printed]) -> Seen:
    item = FigureItem(Image.new("RGB", (300, 60), "white"), 1, 1, (), tuple(texts))
    eyes = Played(item)
    eyes.reader = Scripted(lines)
    return JUDGES["print"](eyes)(item)


def test_a_word_that_was_read_serves_one_that_is_printed() -> None:
    once = read([text("Jan", 10), text("Jan", 60)], [line("Jan", 10, 100)])
    assert sorted(once.found) == [False, True]
    assert sum(once.quality) == pytest.approx(3)  # of six characters
    both = read([text("Jan", 10), text("Jan", 60)], [line("Jan Jan", 10, 100)])
    assert both.found == [True, True]
    near = read([text("Jan", 10), text("Feb", 60)], [line("Feb", 10, 30), line("Jan", 60, 80)])
    assert near.found == [False, False]  # what stands elsewhere is not read here
    assert np.mean(near.quality) == pytest.approx(0.0)


def test_characters_are_counted_by_edits_and_what_is_made_up_apart() -> None:
    seen = read(
        [text("March", 10), text("July", 100)],
        [line("Marsch x", 10, 50), line("July", 100, 140), line("noise", 200, 240)],
    )
    assert seen.found == [False, True]
    assert len(seen.quality) == 9
    assert 1 - np.mean(seen.quality) == pytest.approx(3 / 9)
    assert seen.wrong == 1
    nothing = read([text("March", 10)], [])
    assert (nothing.found, np.mean(nothing.quality)) == ([False], 0.0)
    in_pieces = read([text("New plan", 10)], [line("plan", 32, 50), line("New", 10, 30)])
    assert in_pieces.found == [True, True]
    assert np.mean(in_pieces.quality) == 1.0


def test_a_kind_is_claimed_or_not_where_nothing_of_it_is() -> None:
    somewhere = Box(0, 0, 30, 30)
    for item in (photograph(0), lookalike(0)):
        claimed = judged("no-bar", item, lambda query: 3 * [somewhere] if query == "bar" else [])
        assert (claimed.found, claimed.wrong) == ([False], 1)
        rightly = judged("no-bar", item, lambda query: [] if query == "bar" else [somewhere])
        assert (rightly.found, rightly.wrong) == ([True], 0)
    assert judged("no-bar", BARS, lambda _: [somewhere]).found == []  # there are some
    pie = next(i for i in map(figure, range(60)) if {p.kind for p in i.plots} == {"pie"})
    assert judged("no-circle", pie, lambda _: [somewhere]).found == []  # and a disc is one
    assert judged("no-slice", BARS, lambda _: [somewhere]).found == [False]
    assert judged("no-line", GRAY_LINES, lambda _: [somewhere]).found == []
    assert judged("print", lookalike(0), lambda _: ()) == Seen([], [], 0, None)


def test_plots_are_cut_as_they_were_drawn_within_a_twentieth() -> None:
    for make in (figure, chart_figure):
        items = [i for i in map(make, range(16)) if len(i.plots) > 1]
        overlaps = [q for i in items for q in judged("plots-title", i, lambda _: ()).quality]
        assert len(overlaps) > 6
        assert np.mean(overlaps) > 0.95


def test_points_must_lie_near_the_middle_and_on_the_thing() -> None:
    item = chart_figure(next(n for n in range(40) if chart_figure(n).plots[0].kind == "bars"))
    there = {s.color: s.box for p in item.plots for s in p.shapes}
    middle = judged("points", item, lambda query: [there[query.split()[0]]])
    assert middle.found
    assert all(middle.found)
    assert set(middle.quality) == {1.0}
    corner = Box(0, 0, 2, 2)
    off = judged("points", item, lambda _: [corner])
    assert not any(off.found)
    assert set(off.quality) == {0.0}
    assert off.wrong == len(off.found)


def test_masks_are_judged_by_their_overlap() -> None:
    seen = judged("segment-box", BARS, lambda _: ())
    assert seen.found
    assert all(seen.found)
    assert min(seen.quality) > 0.9
    assert not any(judged("segment-point", BARS, lambda _: ()).found)


@pytest.mark.parametrize("what", ["plots-title", "plots-place", "axes", "print", "frames"])
def test_what_is_there_is_found_where_print_is_read(what: str) -> None:
    items = (figure(n) for n in range(40))
    item = next(i for i in items if len(i.plots) > 1 and any(p.y_axis for p in i.plots))
    seen = judged(what, item, lambda _: ())
    assert len(seen.found) > 1
    assert all(seen.found)
    assert seen.wrong == 0


def test_rows_hold_recall_precision_and_f1_of_all_figures() -> None:
    [row] = bench_found(count=2, varieties=("photographs",), what=("legends",), show=False)
    assert (row.there, row.found, row.precision, row.f1) == (0, None, None, None)
    [row] = bench_found(count=3, varieties=("plain",), what=("frames",), show=False)
    assert row.figures == 3
    assert row.f1 == row.precision == row.found == 1.0
    assert row.ms is not None
    assert row.ms > 0


def test_a_bench_that_was_killed_goes_on_with_the_figures_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = partial(bench_found, count=3, varieties=("plain", "photographs"), show=False)
    what = ("frames", "dots")
    whole = bench(what=what)
    drawn: list[int] = []

    def dies(index: int) -> FigureItem:
        drawn.append(index)
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return figure(index)

    monkeypatch.setattr("saccade.benches.found.SOURCES", {**SOURCES, "plain": dies})
    with pytest.raises(KeyboardInterrupt):
        bench(what=what, run=tmp_path)
    again = bench(what=what, run=tmp_path)
    assert drawn == [0, 1, 2, 2]
    assert [replace(row, ms=None) for row in again] == [replace(row, ms=None) for row in whole]
    assert bench(what=what, run=tmp_path) == again
    with pytest.raises(RecipeError, match="was begun with"):
        bench(what=("dots",), run=tmp_path)


def test_rows_of_every_judge_can_be_told_as_json() -> None:
    rows = bench_found(count=1, varieties=("plain", "charts"), what=list(JUDGES), show=False)
    assert len(json.loads(json.dumps([asdict(row) for row in rows]))) == 2 * len(JUDGES)


def test_there_are_no_more_photographs_than_there_are() -> None:
    [row] = bench_found(count=50, varieties=("photographs",), what=("dots",), show=False)
    assert row.figures == LIMITS["photographs"]
    assert row.wrong == 0


def test_what_nobody_looks_for_or_draws_is_refused() -> None:
    with pytest.raises(RecipeError, match="Nobody looks for 'cats'"):
        bench_found(count=1, what=("cats",), show=False)
    with pytest.raises(RecipeError, match="No figures are 'round', only plain"):
        bench_found(count=1, varieties=("round",), show=False)
