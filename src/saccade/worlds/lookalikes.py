"""Pictures of what looks like the parts of charts and is none: cells, boxes, bands and buttons.

Invariant: a picture is a pure function of its index; each names every kind of thing of which
something in it may be called one, and holds nothing of the others: what is told of them is wrong.

Left out on purpose: the places of what they do show, and photographs (`photographs` has them).
matplotlib keeps its settings for the whole process: draw from one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from saccade.worlds.figures import FigureItem

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SORTS", "lookalike"]

_MAPS = ("viridis", "Blues", "coolwarm", "YlOrRd", "gray", "tab10")
_COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17becf")
_WORDS = ("Save", "Cancel", "Open", "Next", "Back", "Apply", "Help", "Print", "Close", "Send")
_HEADS = ("Region", "Year", "Sales", "Cost", "Share", "Units")

Draw = Callable[["Axes", np.random.Generator], None]


def _heat_map(axes: Axes, rng: np.random.Generator) -> None:
    rows, columns = (int(n) for n in rng.integers(2, 8, size=2))
    values = rng.integers(0, 100, size=(rows, columns))
    drawn = axes.imshow(values, cmap=str(rng.choice(_MAPS)), aspect="auto")
    axes.set_xticks(range(columns))
    axes.set_yticks(range(rows))
    if rng.random() < 0.5:
        axes.figure.colorbar(drawn, ax=axes)


def _numbered(axes: Axes, rng: np.random.Generator) -> None:
    """A heat map with its numbers in the cells, which a white grid may part."""
    rows, columns = (int(n) for n in rng.integers(2, 8, size=2))
    values = rng.integers(0, 100, size=(rows, columns))
    axes.pcolormesh(
        values,
        cmap=str(rng.choice(_MAPS)),
        edgecolors=str(rng.choice(["none", "white", "black"])),
        linewidth=float(rng.choice([1, 3])),
    )
    for (row, column), value in np.ndenumerate(values):
        axes.text(column + 0.5, row + 0.5, str(value), ha="center", va="center", color="white")


def _cells(axes: Axes, rng: np.random.Generator) -> None:
    """A few cells in one row or column."""
    count = int(rng.integers(2, 6))
    values = rng.permutation(count)[None].astype(float)
    shown = values if rng.random() < 0.5 else values.T
    axes.imshow(
        shown, cmap=str(rng.choice(_MAPS)), aspect="equal" if rng.random() < 0.5 else "auto"
    )


def _table(axes: Axes, rng: np.random.Generator) -> None:
    rows, columns = int(rng.integers(3, 8)), int(rng.integers(2, 6))
    tints = [_COLORS[int(n)] for n in rng.permutation(len(_COLORS))]
    shades = [["w" if (r + c) % 2 or rng.random() < 0.5 else tints[c] for c in range(columns)]
              for r in range(rows)]  # fmt: skip
    axes.axis("off")
    axes.table(
        [[str(v) for v in row] for row in rng.integers(0, 1000, size=(rows, columns))],
        cellColours=shades if rng.random() < 0.7 else None,
        colLabels=_HEADS[:columns],
        colColours=[tints[-1]] * columns,
        loc="center",
    )


def _boxes(axes: Axes, rng: np.random.Generator) -> None:
    """A box plot, upright or lying, filled or not."""
    groups = [rng.normal(rng.uniform(20, 60), rng.uniform(4, 15), size=40) for _ in range(4)]
    upright = rng.random() < 0.7
    drawn = axes.boxplot(
        groups[: int(rng.integers(2, 5))],
        patch_artist=bool(rng.random() < 0.7),
        showfliers=False,
        orientation="vertical" if upright else "horizontal",
    )
    if rng.random() < 0.5:
        for box, color in zip(drawn["boxes"], _COLORS, strict=False):
            box.set(facecolor=color) if hasattr(box, "set_facecolor") else box.set(color=color)


def _spans(axes: Axes, rng: np.random.Generator) -> None:
    """Bands from one side of a plot to the other, in some of which a line runs."""
    span = axes.axvspan if rng.random() < 0.6 else axes.axhspan
    axes.set(xlim=(0, 10), ylim=(0, 10))
    width = float(rng.uniform(0.5, 2.0))
    for place in rng.permutation(4)[: int(rng.integers(1, 5))]:
        low = 0.4 + 2.4 * float(place)
        span(low, low + width, color=_COLORS[int(place)], alpha=float(rng.choice([0.4, 1.0])))
    if rng.random() < 0.5:
        axes.plot(np.linspace(0, 10, 9), rng.uniform(2, 8, size=9), color="black")


def _buttons(axes: Axes, rng: np.random.Generator) -> None:
    """Rows of equal boxes with a word in each, on no axis."""
    from matplotlib.patches import FancyBboxPatch, Rectangle

    rows, columns = int(rng.choice([1, 1, 2, 3])), int(rng.integers(2, 6))
    axes.axis("off")
    axes.set(xlim=(0, columns), ylim=(0, max(2, rows)))
    one, is_round = _COLORS[int(rng.integers(len(_COLORS)))], rng.random() < 0.5
    for row in range(rows):
        for column in range(columns):
            at, size = (column + 0.1, row + 0.25), (0.8, float(rng.choice([0.4])))
            color = one if rng.random() < 0.8 else _COLORS[column]
            box = (
                FancyBboxPatch(at, *size, boxstyle="round,pad=0,rounding_size=0.05", color=color)
                if is_round
                else Rectangle(at, *size, color=color)
            )
            axes.add_patch(box)
            word = _WORDS[int(rng.integers(len(_WORDS)))]
            axes.text(column + 0.5, row + 0.45, word, ha="center", va="center", color="white")


def _letters(axes: Axes, rng: np.random.Generator) -> None:
    """Nothing but large print."""
    axes.axis("off")
    for row in range(3):
        words = " ".join(str(w) for w in rng.choice(_WORDS, size=3))
        axes.text(0.02, 0.1 + 0.3 * row, words, size=float(rng.uniform(14, 30)))


SORTS: Mapping[str, tuple[Draw, frozenset[str]]] = {
    "heat map": (_heat_map, frozenset({"plot"})),
    "numbered heat map": (_numbered, frozenset({"plot"})),
    "cells": (_cells, frozenset({"plot"})),
    "table": (_table, frozenset()),
    "box plot": (_boxes, frozenset({"plot", "line"})),
    "bands": (_spans, frozenset({"plot", "line"})),
    "buttons": (_buttons, frozenset()),
    "letters": (_letters, frozenset()),
}
"""How each sort is drawn, and the kinds of which something in it may be called one."""


def lookalike(index: int) -> FigureItem:
    """Picture `index`, sort after sort."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    draw, there = list(SORTS.values())[index % len(SORTS)]
    rng = np.random.default_rng([index, 47])
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["font.size"] = float(rng.uniform(8, 13))
        width, height = rng.uniform(3.6, 6.5), rng.uniform(2.8, 4.5)
        made = Figure(figsize=(width, height), dpi=int(rng.integers(80, 130)), layout="constrained")
        canvas = FigureCanvasAgg(made)
        draw(made.add_subplot(), rng)
        canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return FigureItem(image, 0, 0, (), (), there, is_told=False)
