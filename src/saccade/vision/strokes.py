"""Lines: long thin strokes of one colour.

Invariant: print, axes and grids are no lines; a line in pieces, as others cross it, is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade.geometry import Box, Point
from saccade.vision.colors import RGB
from saccade.vision.part import Part, holds, is_gray, once
from saccade.vision.scene import (
    MOST_AREAS,
    PIXELS,
    SMALL_PX,
    Bits,
    Pixels,
    Scene,
    away,
    frequent,
    window,
)

__all__ = ["Stroke", "find_lines", "find_strokes", "pieces_of", "thin_parts"]

LEAST_CORE = 0.2
"""Of a piece, what shows its full colour."""
LEAST_PIECE = 0.3
"""Of a line on no plot, what is in one piece."""
LEAST_SPAN = 0.25
"""Of its plot's width that a line runs through."""


class Stroke(NamedTuple):
    color: RGB
    mask: Bits
    """Over the whole picture."""
    core: Bits
    """Where it shows its full colour."""


class _Piece(NamedTuple):
    box: Box
    mask: Bits
    """Over its box."""


def find_lines(scene: Scene, strokes: Sequence[Stroke], frames: Sequence[Box]) -> list[Part]:
    """Long thin strokes of one colour; a line in pieces, as others cross it, is one line."""
    found = []
    for stroke in strokes:
        pieces = [p for p in pieces_of(stroke) if max(p.box.width, p.box.height) >= 8]
        for number, group in enumerate(_by_plot(pieces, frames, scene.drawn.shape)):
            if frames and is_gray(stroke.color) and group.span not in frames:
                continue  # print: gray lines have frames where other lines have
            part = _line(scene, stroke, group.pieces, group.span)
            if part is not None:
                found.append(part._replace(group=number))
    return once(found, least=0.9)


def thin_parts(scene: Scene, kept_out: Sequence[Box]) -> Bits:
    """What is drawn and belongs to no area that is thicker than a stroke."""
    import cv2

    thick = np.zeros(scene.drawn.shape, bool)
    for area in scene.areas:
        if min(area.mask.shape) >= SMALL_PX:
            window(thick, area)[area.mask] = True
    thin: Bits = scene.drawn & (cv2.dilate(thick.astype(np.uint8), np.ones((5, 5), np.uint8)) == 0)
    for box in kept_out:
        x0, y0, x1, y1 = (max(0, round(v)) for v in box.as_tuple())
        thin[y0:y1, x0:x1] = False
    return thin


def find_strokes(scene: Scene, thin: Bits) -> Iterator[Stroke]:
    """The colours of strokes, the most frequent first; edges that fade into the ground belong to
    the colour from which they fade.
    """
    import cv2

    contrast = away(scene.pixels, scene.ground)
    strongest = cv2.dilate(contrast, np.ones((3, 3), np.uint8))
    core = thin & (cv2.subtract(strongest, contrast) <= 20)
    for center in frequent(scene.pixels[core].astype(np.int16), least=0.08 * thin.shape[1]):
        full = core & (away(scene.pixels, center) <= 48)
        r, g, b = (int(v) for v in center)
        yield Stroke((r, g, b), _fading(scene.pixels, scene.ground, thin, center), full)


def _fading(pixels: Pixels, ground: Pixels, thin: Bits, color: NDArray[Any]) -> Bits:
    """Thin pixels that are a mixture of the ground and a colour."""
    ys, xs = np.nonzero(thin)
    under = ground[ys, xs].astype(np.float32)
    towards = color.astype(np.float32) - under
    seen = pixels[ys, xs].astype(np.float32) - under
    part = (seen * towards).sum(axis=1) / np.maximum((towards**2).sum(axis=1), 1.0)
    rest = np.abs(seen - part[:, None] * towards).max(axis=1)
    mixed = (part > 0.35) & (part < 1.2) & (rest < 34)
    mask = np.zeros(thin.shape, bool)
    mask[ys[mixed], xs[mixed]] = True
    return mask


def pieces_of(stroke: Stroke) -> list[_Piece]:
    """Connected pieces that show the full colour: the edges of darker strokes do not."""
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        stroke.mask.astype(np.uint8), connectivity=8
    )
    found = []
    for n in np.argsort(-stats[1:, PIXELS])[:MOST_AREAS] + 1:
        x, y, width, height, _ = (int(v) for v in stats[n])
        own = labels[y : y + height, x : x + width] == n
        if (own & stroke.core[y : y + height, x : x + width]).sum() < LEAST_CORE * own.sum():
            continue
        found.append(_Piece(Box(x, y, x + width, y + height), own))
    return found


class _Gathered(NamedTuple):
    pieces: list[_Piece]
    span: Box
    """Of the plot, or of the picture where no frame is."""


def _by_plot(
    pieces: Sequence[_Piece], frames: Sequence[Box], shape: tuple[int, ...]
) -> list[_Gathered]:
    """Pieces in one frame; outside of frames those that go on where another ends."""
    found: dict[Box, list[_Piece]] = {}
    outside: list[_Piece] = []
    for piece in sorted(pieces, key=lambda p: p.box.x0):
        around = [f for f in frames if holds(f.expand(2), piece.box)]
        if around:
            found.setdefault(min(around, key=lambda f: f.area), []).append(piece)
        else:
            outside.append(piece)
    whole = Box(0, 0, shape[1], shape[0])
    return [
        *(_Gathered(group, frame) for frame, group in found.items()),
        *(_Gathered(group, whole) for group in _chained(outside, gap=0.04 * max(shape[:2]))),
    ]


def _chained(pieces: Sequence[_Piece], *, gap: float) -> list[list[_Piece]]:
    """Pieces that come within a gap of each other, directly or by others between them."""
    from scipy.sparse.csgraph import connected_components

    if not pieces:
        return []
    x0, y0, x1, y1 = np.array([p.box.as_tuple() for p in pieces]).T
    near = (x0 - gap < x1[:, None]) & (y0 - gap < y1[:, None])
    count, labels = connected_components(near & near.T, directed=False)
    return [[p for p, n in zip(pieces, labels, strict=True) if n == c] for c in range(count)]


def _line(scene: Scene, stroke: Stroke, pieces: Sequence[_Piece], plot: Box) -> Part | None:
    """A line of pieces; None where they are print, an axis, a grid or too short."""
    framed = plot.width < scene.drawn.shape[1]
    least = LEAST_SPAN * plot.width if framed else 0.1 * plot.width
    pieces = [p for p in pieces if not _is_rule(p, stroke, plot, framed)]
    longest = max((p.box.width for p in pieces), default=0.0)
    if longest < 0.4 * least:
        return None
    pieces = [p for p in pieces if p.box.width >= 0.15 * longest or _is_link(p, pieces)]
    x0, x1 = min(p.box.x0 for p in pieces), max(p.box.x1 for p in pieces)
    y0, y1 = min(p.box.y0 for p in pieces), max(p.box.y1 for p in pieces)
    if x1 - x0 < least or (not framed and longest < LEAST_PIECE * (x1 - x0)):
        return None  # words go as far, letter after letter
    columns = np.zeros(round(x1 - x0), int)
    crossed = 0
    for p in pieces:
        at = round(p.box.x0 - x0)
        columns[at : at + p.mask.shape[1]] += p.mask.sum(axis=0)
        crossed += int((np.diff(p.mask.astype(np.int8), axis=0) == 1).sum() + p.mask[0].sum())
    seen = float((columns > 0).mean())
    strokes_per_column = crossed / max(1, (columns > 0).sum())
    if seen < 0.5 or strokes_per_column > 1.8 or _is_fat(pieces):
        return None  # hatches and print cross a column several times
    box = Box(x0, y0, x1, y1)
    point = _on_line(pieces, stroke.core, box)
    length_doubt = 0.6 + 0.4 * min(1.0, (x1 - x0) / (2 * least))
    return Part("line", box, point, stroke.color, 0.95 * seen * length_doubt, box.area, place=y0)


def _is_fat(pieces: Sequence[_Piece]) -> bool:
    import cv2

    largest = max(pieces, key=lambda p: p.mask.sum())
    depth = cv2.distanceTransform(np.pad(largest.mask, 1).astype(np.uint8), cv2.DIST_L2, 3)
    return bool(np.quantile(depth[depth > 0], 0.95) > 6)


def _is_rule(piece: _Piece, stroke: Stroke, plot: Box, framed: bool) -> bool:
    """An axis, a frame, a grid line: straight along a side, and gray; or along the frame itself."""
    colorless = is_gray(stroke.color)
    is_straight = piece.box.height <= 4 or piece.box.width <= 4
    along_frame = framed and (
        min(abs(piece.box.y0 - plot.y0), abs(piece.box.y1 - plot.y1)) <= 3
        and piece.box.width > 0.9 * plot.width
    )
    both_ways = colorless and piece.mask.mean() < 0.2 and _has_long_rule(piece)
    return (colorless and is_straight) or along_frame or both_ways


def _has_long_rule(piece: _Piece) -> bool:
    """Whether a straight row or column runs through most of a piece: axes and grids joined up."""
    rows, columns = piece.mask.mean(axis=1).max(), piece.mask.mean(axis=0).max()
    return bool(max(rows, columns) > 0.8)


def _is_link(piece: _Piece, pieces: Sequence[_Piece]) -> bool:
    """A short piece between longer ones: what is left of a line where another runs along it."""
    wide = [p.box for p in pieces if p.box.width > 2 * piece.box.width]
    return any(b.expand(14).intersection(piece.box) is not None for b in wide)


def _on_line(pieces: Sequence[_Piece], core: Bits, box: Box) -> Point:
    """A pixel of full colour, near the middle."""
    found = []
    for p in pieces:
        x, y = round(p.box.x0), round(p.box.y0)
        height, width = p.mask.shape
        own = p.mask & core[y : y + height, x : x + width]
        ys, xs = np.nonzero(own if own.any() else p.mask)
        found.append(np.column_stack([xs + x, ys + y]))
    places = np.concatenate(found)
    middle = np.array([box.center.x, box.center.y])
    px, py = places[np.argmin(((places - middle) ** 2).sum(axis=1))]
    return Point(float(px) + 0.5, float(py) + 0.5)
