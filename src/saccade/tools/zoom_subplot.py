"""zoom_subplot: one plot of a figure, with its labels.

Invariant: the region is cut around a plot that was seen; where the words name no plot, or several,
nothing is cut and the model is told which plots there are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any

from saccade.backends.kinds import Reader
from saccade.distances import edit_distance
from saccade.errors import ToolError
from saccade.geometry import Box, rows_of
from saccade.images import ImageView
from saccade.tools.spec import tool
from saccade.vision.plots import Plot, find_plots

__all__ = ["zoom_subplot"]

_ROWS = {"top": 0, "upper": 0, "first row": 0, "bottom": -1, "lower": -1, "last row": -1}
_COLUMNS = {"left": 0, "right": -1}
_MIDDLE = ("middle", "center", "centre")
_PLACES = r"first|second|third|fourth|fifth|sixth|last|\d{1,2}(?:st|nd|rd|th)"
_LINES = tuple(
    re.compile(rf"(?:({_PLACES})\s+{line}\b|{line}\s*#?(\d{{1,2}}))")
    for line in ("row", "col(?:umn)?")
)
"""Of a row and of a column: "second row", "row 2"."""
_NEITHER = frozenset({"not", "but", "except", "without", "other", "no"})
"""Words that say which plot is not meant: that names none."""
_NUMBER = re.compile(r"(?:plot|subplot|panel|number|#)?\s*(\d{1,2})")
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
MISREAD = 0.2
"""Of a title's letters, that a reader may have wrong."""


@tool(aliases=("ZoomInSubplot", "ZoomInSubfigure"))
def zoom_subplot(
    image: ImageView,
    where: Annotated[
        str | None,
        "which plot: its title, or 'top left', 'row 2 column 1', its number in reading order",
    ] = None,
    box: Annotated[Box | None, "or a region in which the plot lies"] = None,
    *,
    reader: Reader,
) -> ImageView:
    """Cut one plot with its labels out of a figure that has several.

    The region reaches to the plots beside it. With a box, the plot that it covers most of is meant,
    or the box itself where there is none. Raises ToolError where neither or both are given, or no
    plot or several fit.
    """
    if (where is None) == (box is None):
        raise ToolError("zoom_subplot takes either where or box; give one of them.")
    lines = [(line.text, line.box) for line in reader.read(image.pixels)]
    plots = find_plots(image.pixels, lines)
    if box is not None:
        near = [p for p in plots if p.core.intersection(box) is not None]
        if not near:
            return image.crop(box)
        return image.crop(max(near, key=lambda p: _common(p.core, box) / p.core.area).region)
    assert where is not None
    return image.crop(_named(where, plots).region)


def _common(a: Box, b: Box) -> float:
    inside = a.intersection(b)
    return 0.0 if inside is None else inside.area


def _named(where: str, plots: Sequence[Plot]) -> Plot:
    """The plot that the words name: by its title, or by its place among all but insets."""
    if not plots:
        raise ToolError("No plots could be told apart in this image: give a box instead.")
    chosen = _titled(where, plots) or _placed(where.lower(), [p for p in plots if not p.is_inset])
    if len(chosen) == 1:
        return chosen[0]
    what = "No plot is" if not chosen else f"{len(chosen)} plots are"
    titles = ", ".join(f"{n} {p.title!r}" for n, p in enumerate(plots, start=1) if p.title)
    rows = rows_of([p.core for p in plots if not p.is_inset])
    shape = " and ".join(str(len(row)) for row in rows)
    raise ToolError(
        f"{what} at {where[:60]!r}: there are {sum(map(len, rows))} plots in {len(rows)} rows of "
        f"{shape}{f', titled {titles}' if titles else ''}; say its title, its number, or row and "
        "column."
    )


def _titled(where: str, plots: Sequence[Plot]) -> list[Plot]:
    """Plots with that title, as it is printed or but for what a reader gets wrong."""
    asked = _plain(where)
    titles = [(_plain(p.title), p) for p in plots if p.title]
    exact = [p for title, p in titles if title == asked]
    if exact or not asked:
        return exact
    return [
        p
        for title, p in titles
        if re.sub(r"\D", "", title) == re.sub(r"\D", "", asked)  # no digit is forgiven
        and edit_distance(title, asked) <= MISREAD * len(title)
    ]


def _plain(text: str) -> str:
    return re.sub(r"[^0-9a-z]", "", text.lower())


def _placed(words: str, plots: Sequence[Plot]) -> list[Plot]:
    of_core = {p.core: p for p in plots}
    rows = [[of_core[c] for c in row] for row in rows_of([p.core for p in plots])]
    in_order = [p for row in rows for p in row]
    if _NEITHER & set(re.findall(r"[a-z]+", words)):
        return []
    row, column = (_line_named(words, line) for line in _LINES)
    if row is not None or column is not None:
        across = rows if row is None else [_at(rows, row)]
        return [p for r in across for p in (r if column is None else [_at(r, column)]) if p]
    if number := _NUMBER.fullmatch(words.strip()):
        place = int(number[1]) - 1
        return [in_order[place]] if 0 <= place < len(in_order) else []
    ordinals = [word for word in re.findall(r"[a-z]+", words) if word in (*_ORDINALS, "last")]
    if len(ordinals) > 1:
        return []
    if ordinals:
        place = -1 if ordinals[0] == "last" else _ORDINALS.index(ordinals[0])
        return [in_order[place]] if place < len(in_order) else []
    return _by_side(words, rows)


def _line_named(words: str, line: re.Pattern[str]) -> int | None:
    """Which row, or column, the words name, from 0; -1 is the last."""
    found = line.search(words)
    if found is None:
        return None
    said = found[1] or found[2]
    if said in _ORDINALS:
        return _ORDINALS.index(said)
    return -1 if said == "last" else int(re.sub(r"\D", "", said)) - 1


def _at(items: Sequence[Any], place: int) -> Any:
    """The item, or nothing where there is none."""
    return items[place] if -1 <= place < len(items) else ()


def _by_side(words: str, rows: Sequence[Sequence[Plot]]) -> list[Plot]:
    """Plots at the sides that are named; of sides that are not, all."""
    tokens = set(re.findall(r"[a-z]+", words))
    row = next((r for name, r in _ROWS.items() if name in tokens), None)
    column = next((c for name, c in _COLUMNS.items() if name in tokens), None)
    is_middle = bool(tokens & set(_MIDDLE))
    if row is None and column is None and not is_middle:
        return []
    if row is None and is_middle and len(rows) % 2:
        row = len(rows) // 2
    chosen = list(rows) if row is None else [rows[row]]
    if column is None and is_middle and all(len(r) % 2 for r in chosen):
        return [r[len(r) // 2] for r in chosen]
    return [plot for r in chosen for plot in (r if column is None else [r[column]])]
