"""Which pixels belong to one thing: the fill around points, or the one that fills a box.

Many fills are tried: of even and of shaded colour, at several tolerances, on the picture and on
copies of it without specks, thin dark lines or thin light lines, so that hatches and JPEG do not
stop them; in a box also GrabCut (Rother, Kolmogorov and Blake, 2004). Each is scored by what can be
seen: how much its surroundings differ from it, close by and a little further out; how even it is
inside; how solid, smooth and thick it is; how well its sides meet those of the box.

Invariant: a mask holds every point that must be inside and none that must not, lies inside the box,
and was scored LEAST or more; the same picture and question give the same mask.

Left out on purpose: what things are, lines thinner than a few pixels, soft edges.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from saccade.geometry import Box, Point

__all__ = ["LEAST", "Filled", "filled"]

Bits = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
Place = tuple[int, int]
"""Row and column."""

MOST_OF_PICTURE = 0.3
"""That reaches all its borders: paper, sky and tables are no things."""
LEAST = 0.3
"""Score below which nothing is plain."""
PLAIN = 0.8
"""Score from which no slower way is tried."""
MOST_PIXELS = 160_000
"""Looked at; larger pictures are reduced."""
MOST_CUT_PIXELS = 30_000
"""Looked at by GrabCut."""
REACHES_PX = (64, 200)
"""Around points, what is looked at before the whole picture is."""
AROUND_PX = 12
"""Around a box, at least: what the thing is compared with."""
AROUND_SHARE = 0.15
"""Around a box, of its sides."""
EVEN = 2
"""A window whose channels vary by no more holds nothing."""
LEAST_AREA = 16
"""Square pixels of a thing."""
TOLERANCES = (5.0, 9.0, 15.0, 24.0, 38.0)
"""Distances in CIELAB that a fill bridges: 2 is just visible, 100 is black from white."""
SHADED = (5.0, 12.0)
"""The same from an even shade."""
STEPS = (1.5, 3.0)
"""The same between neighbours."""
LINE_PX = 5
"""Hatches and outlines are thinner."""
HOLE_SHARE = 0.03
"""Of a fill: smaller holes in it belong to the thing, such as print."""
DOMINANT = 4
"""Colours of a box that are tried."""
CUT_TRUST = 0.8
"""Of the score of a thing that GrabCut found: it divides what is one thing, too."""


class Filled(NamedTuple):
    """The pixels of one thing."""

    mask: Bits
    """As large as the picture."""
    score: float
    """How plain it is, from LEAST to 1."""


class _Window(NamedTuple):
    """The part of a picture that is looked at, at its own scale."""

    pixels: Bytes
    left: int
    top: int
    width: int
    height: int
    """In pixels of the picture."""


class _Asked(NamedTuple):
    """A question, in pixels of a window."""

    inside: tuple[Place, ...]
    outside: tuple[Place, ...]
    box: tuple[int, int, int, int] | None
    """Rows and columns of the box: top, left, bottom, right, half open."""


class _Copy(NamedTuple):
    """A window in CIELAB."""

    colors: Floats
    """Without what is too fine to be a thing."""
    raw: Floats


class _Try(NamedTuple):
    mask: Bits
    score: float
    copy: _Copy


class _Seen(NamedTuple):
    found: _Try
    window: _Window
    asked: _Asked


def filled(
    picture: Image.Image,
    *,
    box: Box | None = None,
    points: Sequence[Point] = (),
    outside: Sequence[Point] = (),
) -> Filled | None:
    """The thing that fills the box, or that all `points` lie on and none of `outside` does; None
    where none is plain. Raises ValueError with neither.
    """
    if box is None and not points:
        raise ValueError("filled needs a box or a point.")
    pixels = np.asarray(picture.convert("RGB"))
    best: _Seen | None = None
    for part in _parts(*picture.size, box, points):
        window = _window(pixels, part)
        asked = None if window is None else _asked(window, box, points, outside)
        if window is None or asked is None:
            break
        found = _best(window.pixels, asked)
        if found is None or (best is not None and found.score <= best.found.score):
            continue
        # what the side of the window cuts off is seen in the next one
        if box is not None or _is_clear(found.mask, window, picture.size):
            best = _Seen(found, window, asked)
        if best is not None and best.found.score >= PLAIN:
            break
    if best is None or best.found.score < LEAST:
        return None
    mask = _on_picture(_finished(best.found, best.asked), best.window, picture.size, box)
    if box is None and _is_ground(mask):
        return None
    return Filled(mask, float(best.found.score)) if mask.any() else None


def _is_ground(mask: Bits) -> bool:
    """Whether it is what all else lies on: it reaches every border of the picture."""
    sides = (mask[0], mask[-1], mask[:, 0], mask[:, -1])
    return all(side.any() for side in sides) and bool(mask.mean() > MOST_OF_PICTURE)


# --- windows --------------------------------------------------------------------------------------


def _parts(width: int, height: int, box: Box | None, points: Sequence[Point]) -> Iterator[Box]:
    """Where to look, one after the other until something plain is seen that ends inside."""
    if box is not None:
        x, y = (max(AROUND_PX, AROUND_SHARE * side) for side in (box.width, box.height))
        yield box.expand(x, y)
        return
    across, down = [p.x for p in points], [p.y for p in points]
    for reach in REACHES_PX:
        seen = Box(min(across) - reach, min(down) - reach, max(across) + reach, max(down) + reach)
        if seen.area < width * height:
            yield seen
    yield Box(0, 0, width, height)


def _window(pixels: Bytes, part: Box) -> _Window | None:
    """A part of the picture, reduced where it is large; None where it lies outside."""
    import cv2

    height, width = pixels.shape[:2]
    seen = part.clip(width, height)
    if seen is None:
        return None
    left, top = math.floor(seen.x0), math.floor(seen.y0)
    right, bottom = math.ceil(seen.x1), math.ceil(seen.y1)
    shown = np.ascontiguousarray(pixels[top:bottom, left:right])
    shrink = math.sqrt(MOST_PIXELS / shown[..., 0].size)
    if shrink < 1:
        size = (max(1, round(shown.shape[1] * shrink)), max(1, round(shown.shape[0] * shrink)))
        shown = cv2.resize(shown, size, interpolation=cv2.INTER_AREA)
    return _Window(shown, left, top, right - left, bottom - top)


def _is_clear(mask: Bits, window: _Window, size: tuple[int, int]) -> bool:
    """Whether it keeps away from those sides of the window where the picture goes on."""
    near = LINE_PX + 1
    return not (
        (window.top > 0 and mask[:near].any())
        or (window.left > 0 and mask[:, :near].any())
        or (window.top + window.height < size[1] and mask[-near:].any())
        or (window.left + window.width < size[0] and mask[:, -near:].any())
    )


def _asked(
    window: _Window, box: Box | None, points: Sequence[Point], outside: Sequence[Point]
) -> _Asked | None:
    """The question in pixels of the window; None where it can have no answer: a point lies outside
    of the picture or of the box, or must be both inside and outside.
    """
    rows, columns = window.pixels.shape[:2]
    down, across = rows / window.height, columns / window.width
    limits = Box(window.left, window.top, window.left + window.width, window.top + window.height)
    if box is not None:
        clipped = box.intersection(limits)
        if clipped is None:
            return None
        limits = clipped

    def place(point: Point) -> Place:
        # the far border is a place on what it borders; whole pixels are mapped, as masks are
        y = math.floor(point.y) - (point.y == limits.y1 == math.floor(point.y))
        x = math.floor(point.x) - (point.x == limits.x1 == math.floor(point.x))
        return math.floor((y - window.top) * down), math.floor((x - window.left) * across)

    top = math.floor((limits.y0 - window.top) * down)
    left = math.floor((limits.x0 - window.left) * across)
    bottom = math.ceil((limits.y1 - window.top) * down)
    right = math.ceil((limits.x1 - window.left) * across)
    inside, kept_out = [place(p) for p in points], [place(p) for p in outside]
    if not all(top <= y < bottom and left <= x < right for y, x in inside):
        return None
    if set(inside) & set(kept_out):
        return None
    seen = tuple((y, x) for y, x in kept_out if 0 <= y < rows and 0 <= x < columns)
    return _Asked(tuple(inside), seen, None if box is None else (top, left, bottom, right))


def _on_picture(mask: Bits, window: _Window, size: tuple[int, int], box: Box | None) -> Bits:
    """The mask at the scale and the place of the picture."""
    import cv2

    bits = mask.astype(np.uint8)
    if mask.shape != (window.height, window.width):
        bits = cv2.resize(bits, (window.width, window.height), interpolation=cv2.INTER_NEAREST)
    whole = np.zeros((size[1], size[0]), dtype=bool)
    rows = slice(window.top, window.top + window.height)
    whole[rows, window.left : window.left + window.width] = bits > 0
    if box is not None:
        whole[: max(0, math.floor(box.y0))] = False
        whole[math.ceil(box.y1) :] = False
        whole[:, : max(0, math.floor(box.x0))] = False
        whole[:, math.ceil(box.x1) :] = False
    return whole


# --- what is tried --------------------------------------------------------------------------------


def _best(pixels: Bytes, asked: _Asked) -> _Try | None:
    """The plainest of all that is tried, quick ways first."""
    if (pixels.max(axis=(0, 1)) - pixels.min(axis=(0, 1))).max() <= EVEN:
        return None
    best: _Try | None = None
    copies: list[_Copy] = []
    for tries in (_even, _uneven):
        for copy in _copies(pixels, copies):
            for mask in tries(copy, asked):
                kept = _allowed(mask, asked)
                if kept is not None:
                    score = _score(kept, copy.colors, asked)
                    if best is None or score > best.score:
                        best = _Try(kept, score, copy)
            if best is not None and best.score >= PLAIN:
                return best
    cut = _cut(pixels, copies[0], asked)
    return cut if cut and (best is None or cut.score > best.score) else best


def _copies(pixels: Bytes, made: list[_Copy]) -> Iterator[_Copy]:
    """The window as it is, without specks, without thin dark and without thin light lines; each is
    made once.
    """
    import cv2

    element = np.ones((LINE_PX, LINE_PX), dtype=np.uint8)
    for number in range(4):
        if number == len(made):
            if number == 0:
                copy = pixels
            elif number == 1:
                copy = cv2.medianBlur(pixels, LINE_PX)
            else:
                way = cv2.MORPH_CLOSE if number == 2 else cv2.MORPH_OPEN
                copy = cv2.morphologyEx(pixels, way, element)
            colors = cv2.cvtColor(copy.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
            made.append(_Copy(colors, made[0].raw if made else colors))
        yield made[number]


def _even(copy: _Copy, asked: _Asked) -> Iterator[Bits]:
    """Fills of the colours at the seeds, that reach further and further."""
    for seeds in _seeds(copy.colors, asked):
        away = _away_from(copy.colors, seeds)
        closer = _closer_in(copy.colors, away, asked)
        area = 0
        for tolerance in TOLERANCES:
            mask = _connected((away <= tolerance) & closer, seeds)
            # an edge that is hardly blurred gives the same thing at several tolerances
            now = int(np.count_nonzero(mask))
            if now > 1.03 * area:
                area = now
                yield mask


def _uneven(copy: _Copy, asked: _Asked) -> Iterator[Bits]:
    """Fills of colours that change."""
    # rarer colours of a box are parts of what changes
    for seeds in _seeds(copy.colors, asked)[:2]:
        for tolerance in SHADED:
            yield from _shaded(copy.colors, seeds, tolerance)
        for step in STEPS:
            yield _stepwise(copy.colors, seeds, step)


def _seeds(colors: Floats, asked: _Asked) -> list[tuple[Place, ...]]:
    """Where fills begin: at the points, or at the commonest colours of the box."""
    if asked.inside or asked.box is None:
        return [asked.inside]
    top, left, bottom, right = asked.box
    bins = np.floor(colors[top:bottom, left:right] / 12).astype(np.int64) @ (1, 64, 4096)
    values, counts = np.unique(bins, return_counts=True)
    seeds: list[tuple[Place, ...]] = []
    for value in values[np.argsort(-counts, kind="stable")[:DOMINANT]]:
        places = np.argwhere(bins == value)
        # the one nearest to the middle of all: not at an edge
        row, column = places[np.abs(places - np.median(places, axis=0)).sum(axis=1).argmin()]
        seeds.append(((top + int(row), left + int(column)),))
    return seeds


def _away_from(colors: Floats, places: Sequence[Place]) -> Floats:
    """Of every pixel from the nearest of the colours at these places."""
    found: Floats = np.full(colors.shape[:2], np.inf, dtype=np.float32)
    for y, x in places:
        around = colors[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].reshape(-1, 3)
        np.minimum(
            found, _lengths(colors - np.median(around, axis=0).astype(np.float32)), out=found
        )
    return found


def _closer_in(colors: Floats, away: Floats, asked: _Asked) -> Bits:
    """Where a colour is no nearer to one that must stay outside."""
    if not asked.outside:
        return np.ones(away.shape, dtype=bool)
    # the same colour may be on both sides: then place decides, not colour
    other = [p for p in asked.outside if away[p] > TOLERANCES[0]]
    return away <= _away_from(colors, other) if other else np.ones(away.shape, dtype=bool)


def _lengths(vectors: NDArray[np.floating]) -> Floats:
    found: Floats = np.sqrt(np.einsum("ijk,ijk->ij", vectors, vectors)).astype(np.float32)
    return found


def _connected(allowed: Bits, seeds: Sequence[Place]) -> Bits:
    """The pieces of what is allowed that seeds lie on."""
    import cv2

    pieces = allowed.astype(np.uint8)
    for y, x in seeds:
        if pieces[y, x] == 1:
            cv2.floodFill(pieces, None, (x, y), 2)
    found: Bits = pieces == 2
    return found


def _shaded(colors: Floats, seeds: Sequence[Place], tolerance: float) -> Iterator[Bits]:
    """The fill of a colour that changes evenly along a direction, grown from a part of it."""
    mask = _connected(_away_from(colors, seeds) <= tolerance, seeds)
    for _ in range(5):
        area = np.count_nonzero(mask)
        if area < LEAST_AREA:
            return
        mask = _connected(_away_from_shade(colors, mask) <= tolerance, seeds)
        if abs(np.count_nonzero(mask) - area) <= 0.02 * area:
            break
    yield mask


def _stepwise(colors: Floats, seeds: Sequence[Place], step: float) -> Bits:
    """The fill that goes on wherever neighbours differ little."""
    import cv2

    held = np.zeros((colors.shape[0] + 2, colors.shape[1] + 2), dtype=np.uint8)
    limit = (step, step, step)
    for y, x in seeds:
        if not held[y + 1, x + 1]:
            flags = 4 | (1 << 8) | cv2.FLOODFILL_MASK_ONLY
            cv2.floodFill(colors, held, (x, y), 0, limit, limit, flags)
    return held[1:-1, 1:-1] > 0


def _away_from_shade(colors: Floats, mask: Bits) -> Floats:
    """Of every pixel from the even shade that fits the masked ones best."""
    places = np.flatnonzero(mask)
    rows, columns = np.divmod(places[:: max(1, len(places) // 2000)], mask.shape[1])
    height, width = mask.shape
    known = np.stack([np.ones(len(rows)), columns / width, rows / height], axis=1)
    # a little ridge: along a side of few pixels no slope can be known
    ridge = np.diag([0.0, 1e-3, 1e-3]) * len(rows)
    fit = np.linalg.lstsq(known.T @ known + ridge, known.T @ colors[rows, columns], rcond=None)[0]
    start, right, down = fit.astype(np.float32)
    across = start + np.arange(width, dtype=np.float32)[:, None] / width * right
    along = np.arange(height, dtype=np.float32)[:, None] / height * down
    return _lengths(colors - across[None] - along[:, None])


def _allowed(mask: Bits, asked: _Asked) -> Bits | None:
    """Cut to the box, small holes closed; None where it misses a point or holds a wrong one."""
    import cv2

    if asked.box is not None:
        top, left, bottom, right = asked.box
        inside = np.zeros_like(mask)
        inside[top:bottom, left:right] = mask[top:bottom, left:right]
        mask = inside
    area = np.count_nonzero(mask)
    if area < LEAST_AREA or not all(mask[p] for p in asked.inside):
        return None
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    part = np.pad(mask[y : y + height, x : x + width], 1)
    _, labels, stats, _ = cv2.connectedComponentsWithStats((~part).astype(np.uint8), connectivity=8)
    holes = stats[:, cv2.CC_STAT_AREA] <= HOLE_SHARE * area
    holes[[0, labels[0, 0]]] = False  # the thing, and what is around it
    mask = mask.copy()
    mask[y : y + height, x : x + width] |= holes[labels[1:-1, 1:-1]]
    if any(mask[p] for p in asked.outside):
        mask = _split(mask, asked)
    return mask


def _split(mask: Bits, asked: _Asked) -> Bits:
    """The part of a fill that is nearer to what must be inside, cut where it is narrow."""
    import cv2
    from skimage.segmentation import watershed

    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
    marks = np.zeros(mask.shape, dtype=np.int32)
    for value, places in ((1, asked.inside), (2, asked.outside)):
        for place in places:
            marks[place] = value
    found: Bits = watershed(-depth, marks, mask=mask) == 1
    return found


def _cut(pixels: Bytes, copy: _Copy, asked: _Asked) -> _Try | None:
    """The thing in a box that has other colours than what is around the box, by GrabCut."""
    import cv2

    if asked.box is None:
        return None
    height, width = pixels.shape[:2]
    shrink = min(1.0, math.sqrt(MOST_CUT_PIXELS / (height * width)))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    marks = np.full((height, width), cv2.GC_BGD, dtype=np.uint8)
    top, left, bottom, right = asked.box
    marks[top:bottom, left:right] = cv2.GC_PR_FGD
    for value, places in ((cv2.GC_FGD, asked.inside), (cv2.GC_BGD, asked.outside)):
        for y, x in places:
            marks[max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = value
    marks = cv2.resize(marks, size, interpolation=cv2.INTER_NEAREST)
    known = np.count_nonzero(marks == cv2.GC_BGD)
    if min(known, marks.size - known) < LEAST_AREA:  # of each it takes five colours
        return None
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    cv2.setRNGSeed(0)  # of this thread; it begins with k-means
    models = (np.zeros((1, 65)), np.zeros((1, 65)))
    cv2.grabCut(small, marks, None, *models, 3, cv2.GC_INIT_WITH_MASK)
    held = ((marks == cv2.GC_FGD) | (marks == cv2.GC_PR_FGD)).astype(np.uint8)
    held = cv2.resize(held, (width, height), interpolation=cv2.INTER_NEAREST)
    mask = _allowed(_largest(held, asked), asked)
    return None if mask is None else _Try(mask, _score_of_cut(mask, copy.raw, asked), copy)


def _largest(held: Bytes, asked: _Asked) -> Bits:
    """The pieces with points on them, or the largest one, without what hangs on by a thread."""
    import cv2

    held = cv2.morphologyEx(held, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    for y, x in asked.inside:
        held[y, x] = 1
    _, labels, stats, _ = cv2.connectedComponentsWithStats(held, connectivity=4)
    wanted = {int(labels[p]) for p in asked.inside}
    if not wanted and len(stats) > 1:
        wanted = {1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())}
    found: Bits = np.isin(labels, list(wanted))
    return found


# --- scores ---------------------------------------------------------------------------------------


def _score(mask: Bits, colors: Floats, asked: _Asked) -> float:
    """How plain a thing is, in 0..1."""
    import cv2

    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    pad = LINE_PX + 3
    rows, columns = (
        slice(max(0, y - pad), y + height + pad),
        slice(max(0, x - pad), x + width + pad),
    )
    part = mask[rows, columns].astype(np.uint8)
    core = cv2.erode(part, np.ones((3, 3), np.uint8)) > 0
    if np.count_nonzero(core) < LEAST_AREA // 2:
        return 0.0
    away = _away_from_shade(colors[rows, columns], core)
    if len(asked.inside) > 1:  # then all their colours are known to belong to it
        away = np.minimum(away, _away_from(colors, asked.inside)[rows, columns])
    spread = float(np.sqrt(np.mean(np.minimum(away[core], 40.0) ** 2)))
    close, far = (_apart(away, part, reach, spread) for reach in (2, LINE_PX + 1))
    return (0.65 * close + 0.35 * far) * 8 / (8 + spread) * _form(part) * _fit(part, asked)


def _fit(part: Bytes, asked: _Asked) -> float:
    """Overlap of the sides of a thing with those of the box, in which it lies; with points, the box
    is a bound and no more.
    """
    import cv2

    if asked.box is None or asked.inside:
        return 1.0
    top, left, bottom, right = asked.box
    _, _, width, height = cv2.boundingRect(part)
    return float(width * height / ((right - left) * (bottom - top)))


def _apart(away: Floats, part: Bytes, reach: int, spread: float) -> float:
    """How much of what lies that far outside is of another colour."""
    import cv2

    padded = cv2.copyMakeBorder(part, reach, reach, reach, reach, cv2.BORDER_CONSTANT, value=0)
    outer, inner = (
        cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * r + 1, 2 * r + 1))
        for r in (reach, reach - 1)
    )
    ring = (cv2.dilate(padded, outer) > 0) & (cv2.dilate(padded, inner) == 0)
    seen = ring[reach:-reach, reach:-reach]
    known = float(seen.sum()) / max(1.0, float(ring.sum()))
    if known == 0:
        return 0.0
    differs = _all_along(np.clip((away[seen] - spread) / (2 * spread + 10), 0, 1))
    # where most of the border can't be seen, little is known
    return differs * min(1.0, known / 0.4)


def _all_along(differs: Floats) -> float:
    """A mean along a border, in which a side that is missing counts more than its length: half of a
    thing has three good ones.
    """
    weakest = np.sort(differs)[: max(1, len(differs) // 5)]
    return 0.6 * float(differs.mean()) + 0.4 * float(weakest.mean())


def _form(part: Bytes) -> float:
    """How solid, smooth and thick it is."""
    import cv2

    padded = cv2.copyMakeBorder(part, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    outlines, _ = cv2.findContours(padded, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    hull = cv2.convexHull(np.concatenate(outlines))
    length = sum(cv2.arcLength(outline, True) for outline in outlines)
    area = float(part.sum())
    solid = area / max(1.0, float(cv2.contourArea(hull)))
    smooth = float(cv2.arcLength(hull, True)) / max(1.0, float(length))
    thick = 2 * float(cv2.distanceTransform(padded, cv2.DIST_L2, 3).max())
    shape = 0.4 + 0.6 * min(1.0, solid) * min(1.0, smooth)
    # specks are plain by chance
    return float(shape * thick / (thick + 2) * area / (area + 2 * LEAST_AREA))


def _score_of_cut(mask: Bits, raw: Floats, asked: _Asked) -> float:
    """How plain a thing of several colours is: how much both sides of its border differ, all
    along it, over how much each varies there.
    """
    import cv2

    part = mask.astype(np.uint8)
    element = np.ones((3, 3), np.uint8)
    rim = (cv2.dilate(part, element) > 0) & ~mask
    if not rim.any():
        return 0.0
    (inner, inner_spread), (outer, outer_spread) = (_near(raw, places) for places in (mask, ~mask))
    apart = _lengths(inner - outer)[rim]
    spread = np.hypot(inner_spread, outer_spread)[rim]
    plain = _all_along(np.clip(apart / (2 * spread + 10), 0, 1))
    return CUT_TRUST * plain * _form(part) * _fit(part, asked)


# --- the edge -------------------------------------------------------------------------------------


def _finished(found: _Try, asked: _Asked) -> Bits:
    """The mask with its edge where the picture has it: pixels near it go to the side whose colours
    they have. A drawn outline goes with what has lines of its colour.
    """
    import cv2

    x, y, width, height = cv2.boundingRect(found.mask.astype(np.uint8))
    pad = 2 * LINE_PX
    rows, columns = (
        slice(max(0, y - pad), y + height + pad),
        slice(max(0, x - pad), x + width + pad),
    )
    part = found.mask[rows, columns].astype(np.uint8)
    element = np.ones((LINE_PX, LINE_PX), dtype=np.uint8)
    core, reach = cv2.erode(part, element) > 0, cv2.dilate(part, element) > 0
    if np.count_nonzero(core) < LEAST_AREA:
        return found.mask
    raw, colors = found.copy.raw[rows, columns], found.copy.colors[rows, columns]
    inner = np.minimum(
        _lengths(raw - _near(colors, core).mean), _away_from_lines(raw, colors, core)
    )
    outer = _lengths(raw - _near(colors, ~reach).mean)
    edge = reach & ~core
    with np.errstate(invalid="ignore"):  # beside what is infinite on both sides there is no edge
        clear = edge & (np.abs(inner - outer) > 4) & np.isfinite(np.minimum(inner, outer))
    mask = np.where(clear, inner < outer, part > 0)
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, element)
    # an axis on which a thing stands goes on beside it: nothing thin is added
    thick = cv2.morphologyEx(closed, cv2.MORPH_OPEN, element)
    moved = found.mask.copy()
    moved[rows, columns] = (thick > 0) | ((closed & part) > 0)
    kept = _allowed(moved, asked)
    return found.mask if kept is None else kept


class _Near(NamedTuple):
    mean: Floats
    """Colour of those places that are near each pixel; infinite where none are."""
    spread: Floats


def _near(colors: Floats, places: Bits) -> _Near:
    import cv2

    side = 4 * LINE_PX + 1
    weights = places.astype(np.float32)
    known = cv2.blur(weights, (side, side))
    is_known = known > 1e-4
    known = np.where(is_known, known, 1)[..., None]
    mean = cv2.blur(colors * weights[..., None], (side, side)) / known
    square = cv2.blur(colors**2 * weights[..., None], (side, side)) / known
    spread = np.sqrt(np.maximum(square - mean**2, 0).sum(axis=2))
    return _Near(np.where(is_known[..., None], mean, np.float32(np.inf)), spread)


def _away_from_lines(raw: Floats, colors: Floats, core: Bits) -> Floats:
    """Of every pixel from the colour of thin lines inside; infinite where there are none."""
    thin = core & (_lengths(raw - colors) > 25)
    if np.count_nonzero(thin) < 0.05 * np.count_nonzero(core):
        return np.full(core.shape, np.inf, dtype=np.float32)
    return _lengths(raw - np.median(raw[thin], axis=0).astype(np.float32))
