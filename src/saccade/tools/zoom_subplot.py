"""zoom_subplot: one plot of a figure, with its labels.

Invariant: the region is cut around a plot that was seen; where the words name no plot, or several,
or a word is not understood, nothing is cut and the model is told which plots there are. Where a
slip in a title is forgiven, that is said.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from saccade.backends.kinds import Reader
from saccade.distances import edit_distance, look_alike
from saccade.errors import ToolError
from saccade.geometry import Box, rows_of
from saccade.images import ImageView
from saccade.tools.spec import tool
from saccade.vision.plots import Plot, find_plots

__all__ = ["zoom_subplot"]

_ROWS = {"top": 0, "upper": 0, "bottom": -1, "lower": -1}
_COLUMNS = {"left": 0, "right": -1}
_MIDDLE = frozenset({"middle", "center", "centre"})
_LINES = {"row": "row", "rows": "row", "column": "column", "columns": "column", "col": "column"}
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_TOKENS = re.compile(r"[a-z]+|\d+(?:st|nd|rd|th)?|#|[^\s\w]")
_OF_ALL = re.compile(r"\bof the (?:figure|image|picture|grid)\b")
_SAYS_NOTHING = frozenset({
    "the", "one", "in", "at", "on", "plot", "subplot", "panel", "chart", "graph", "axes", "figure",
    "subfigure", "image", "picture", "grid", "corner", "side", "hand", "please", "number", "#",
    ",", ".", ";", ":", "-", "(", ")",
})  # fmt: skip
"""Words and marks that name no place; with any other that is not understood no plot is named. `of`
is none: left of what is on top is not on the top left.
"""
LEAST_WORD = 5
"""Letters of a word of a title in which a slip is forgiven: shorter ones tell titles apart."""


class _Chosen(NamedTuple):
    plots: list[Plot]
    forgiven: str | None = None
    """The title that was taken, where it is not quite what was asked for."""


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
) -> list[ImageView | str]:
    """Cut one plot with its labels out of a figure that has several.

    The region reaches to the plots beside it. With a box, the plot that it covers most of is meant,
    or the box itself where there is none. A slip in a title is forgiven, and said. Raises ToolError
    where neither or both are given, or no plot or several fit.
    """
    if (where is None) == (box is None):
        raise ToolError("zoom_subplot takes either where or box; give one of them.")
    lines = [(line.text, line.box) for line in reader.read(image.pixels)]
    plots = find_plots(image.pixels, lines)
    if box is not None:
        near = [p for p in plots if p.core.intersection(box) is not None]
        if not near:
            return [image.crop(box)]
        return [image.crop(max(near, key=lambda p: _common(p.core, box) / p.core.area).region)]
    assert where is not None
    chosen = _named(where, plots)
    cut = image.crop(chosen.plots[0].region)
    if chosen.forgiven is None:
        return [cut]
    return [f"No title reads {where[:60]!r}; taken is {chosen.forgiven!r}.", cut]


def _common(a: Box, b: Box) -> float:
    inside = a.intersection(b)
    return 0.0 if inside is None else inside.area


def _named(where: str, plots: Sequence[Plot]) -> _Chosen:
    """The one plot that the words name: by its title, or by its place among all but insets."""
    if not plots:
        raise ToolError("No plots could be told apart in this image: give a box instead.")
    titled = _titled(where, plots)
    placed = _placed(where.lower(), [p for p in plots if not p.is_inset])
    chosen = titled if titled.plots else _Chosen(placed)
    is_one = len(chosen.plots) == 1
    if is_one and (not placed or titled.forgiven is not None or chosen.plots[0] in placed):
        return chosen
    what = "No plot is" if not chosen.plots else f"{len(chosen.plots)} plots are"
    if is_one:
        what = "One plot is titled so and another one is"
    titles = ", ".join(f"{n} {p.title!r}" for n, p in enumerate(plots, start=1) if p.title)
    rows = rows_of([p.core for p in plots if not p.is_inset])
    shape = " and ".join(str(len(row)) for row in rows)
    raise ToolError(
        f"{what} at {where[:60]!r}: there are {sum(map(len, rows))} plots in {len(rows)} rows of "
        f"{shape}{f', titled {titles}' if titles else ''}; say its title, its number, or row and "
        "column, and nothing else."
    )


def _titled(where: str, plots: Sequence[Plot]) -> _Chosen:
    """Plots with that title as it is printed; where there are none, the one in which a slip is
    forgiven: of letters that look alike, or of one letter in a longer word that tells no two titles
    apart.
    """
    asked = _plain(where)
    titles = [(p.title, p) for p in plots if p.title]
    exact = [p for title, p in titles if _plain(title) == asked]
    if exact or not asked:
        return _Chosen(exact)
    near = [(t, p) for t, p in titles if look_alike(_plain(t), asked)]
    near = near or [(t, p) for t, p in titles if _is_slip(where, t, [o for o, _ in titles])]
    return _Chosen([near[0][1]], near[0][0]) if len(near) == 1 else _Chosen([])


def _is_slip(where: str, title: str, titles: Sequence[str]) -> bool:
    """Whether one letter of one word is another, is missing or is too many."""
    words = [_plain(word) for word in where.split()]
    for n, word in enumerate(words):
        if any(o != title and _in_place_of(n, words, o) is not None for o in titles):
            continue  # that is the word in which titles differ
        printed = _in_place_of(n, words, title)
        if printed is None or len(printed) < LEAST_WORD or re.search(r"\d", word + printed):
            continue
        if edit_distance(printed, word) <= 1:
            return True
    return False


def _in_place_of(n: int, words: Sequence[str], title: str) -> str | None:
    """The word that a title has in the place of that one, where all others are the same. Spaces are
    often not read.
    """
    own = [_plain(word) for word in title.split()]
    if len(own) == len(words):
        return own[n] if own[:n] == words[:n] and own[n + 1 :] == words[n + 1 :] else None
    before, after, plain = "".join(words[:n]), "".join(words[n + 1 :]), "".join(own)
    middle = plain[len(before) : len(plain) - len(after)]
    return middle if len(own) < len(words) and plain == before + middle + after else None


def _plain(text: str) -> str:
    return re.sub(r"[^0-9a-z]", "", text.lower())


class _Place(NamedTuple):
    """What words say of a place; None: nothing."""

    row: int | None = None
    column: int | None = None
    number: int | None = None
    """In reading order, of those in the row and the column; from 0, -1 is the last."""
    middle: Literal["row", "column", "both"] | None = None


def _placed(words: str, plots: Sequence[Plot]) -> list[Plot]:
    """Plots at the place that the words name, if they are all understood and say it once."""
    of_core = {p.core: p for p in plots}
    rows = [[of_core[c] for c in row] for row in rows_of([p.core for p in plots])]
    place = _place(_TOKENS.findall(_OF_ALL.sub(" ", words)))
    if place is None or place == _Place():
        return []
    row, column = place.row, place.column
    if row is None and place.middle in ("row", "both") and len(rows) % 2:
        row = len(rows) // 2
    chosen = list(rows) if row is None else [_at(rows, row)]
    if column is None and place.middle in ("column", "both") and all(len(r) % 2 for r in chosen):
        fitting = [r[len(r) // 2] for r in chosen]
    else:
        fitting = [p for r in chosen for p in (r if column is None else [_at(r, column)]) if p]
    if place.number is None:
        return fitting
    one = _at(fitting, place.number)
    return [one] if one else []


def _place(tokens: Sequence[str]) -> _Place | None:
    """None where a word is not understood, or a row, a column or a number is said twice."""
    place = _Place()
    tokens = [t for t in tokens if t not in _SAYS_NOTHING]
    at = 0
    while at < len(tokens):
        token, after = tokens[at], tokens[at + 1] if at + 1 < len(tokens) else ""
        line = _LINES.get(after)
        said: dict[str, Any] = {}
        if (number := _number_of(token)) is not None:
            said = {line or "number": number}
        elif token in _LINES and (number := _number_of(after)) is not None:
            said, line = {_LINES[token]: number}, after
        elif token in _ROWS and line != "column":
            said = {"row": _ROWS[token]}
        elif token in _COLUMNS and line != "row":
            said = {"column": _COLUMNS[token]}
        elif token in _MIDDLE:
            said = {"middle": line or "both"}
        else:
            return None
        if any(getattr(place, what) not in (None, value) for what, value in said.items()):
            return None
        place = place._replace(**said)
        at += 2 if line else 1
    return place


def _number_of(token: str) -> int | None:
    """The place, from 0, that a number or an ordinal says."""
    if token in _ORDINALS:
        return _ORDINALS.index(token)
    if token == "last":
        return -1
    match = re.fullmatch(r"(\d{1,2})(?:st|nd|rd|th)?", token)
    return int(match[1]) - 1 if match else None


def _at(items: Sequence[Any], place: int) -> Any:
    """The item, or nothing where there is none."""
    return items[place] if -1 <= place < len(items) and items else ()
