"""Wedges: areas that share a disc, some of them pulled out of it.

Invariant: a wedge has company that makes up most of a disc with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade.geometry import Box
from saccade.vision.part import Part, is_gray
from saccade.vision.scene import Area, Bits, Scene

__all__ = ["find_wedges"]


class _Circle(NamedTuple):
    x: float
    y: float
    radius: float


LEAST_RADIUS_PX = 10
LEAST_GRAY_RADIUS_PX = 40
"""Of a disc without colours: large letters are round too."""
LEAST_VISIBLE = 0.25
"""Of a wedge between 0.3 and 0.95 of the radius: rings show less than whole discs."""
DIRECTIONS = 720
"""Around a disc, looked at one by one."""


def find_wedges(scene: Scene, areas: Sequence[Area]) -> tuple[list[Part], list[Box]]:
    """Wedges of discs that at least two areas make up, and the boxes of those discs."""
    import cv2

    large = [a for a in areas if a.mask.sum() >= 60 and min(a.mask.shape) >= 6]
    canvas = np.zeros(scene.drawn.shape, np.int32)
    for number, area in enumerate(large, start=1):
        height, width = area.mask.shape
        canvas[area.y0 : area.y0 + height, area.x0 : area.x0 + width][area.mask] = number
    joined = cv2.morphologyEx((canvas > 0).astype(np.uint8), cv2.MORPH_CLOSE, np.ones((7, 7)))
    outlines, _ = cv2.findContours(joined, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    wedges: list[Part] = []
    pies: list[Box] = []
    for outline in outlines:
        circle = _circle_of(outline[:, 0].astype(np.float64))
        if circle is None or _has_corners(outline[:, 0] + 0.5, circle):
            continue
        found = _sectors(canvas, large, circle, group=len(pies))
        is_print = circle.radius < LEAST_GRAY_RADIUS_PX and all(
            p.color is not None and is_gray(p.color) for p in found
        )
        if len(found) >= 2 and not is_print:
            wedges += found
            x, y, r = circle
            pies.append(Box(x - r, y - r, x + r, y + r))
    return wedges, pies


def _circle_of(outline: NDArray[np.float64]) -> _Circle | None:
    """The circle that most of an outline lies on, all around; None where there is none."""
    step = max(1, len(outline) // 400)
    points = outline[::step] + 0.5
    if len(points) < 24:
        return None
    rng = np.random.default_rng(0)
    triples = points[rng.integers(0, len(points), size=(200, 3))]
    centers, radii = _through(triples)
    off = np.abs(np.linalg.norm(points[None] - centers[:, None], axis=2) - radii[:, None])
    near = off < np.maximum(1.5, 0.02 * radii)[:, None]
    fits = np.where((radii >= LEAST_RADIUS_PX) & (radii < len(outline)), near.mean(axis=1), 0.0)
    best = int(np.argmax(fits))
    if fits[best] < 0.5:
        return None
    on = points[near[best]]
    system = np.column_stack([2 * on, np.ones(len(on))])
    (x, y, c), *_ = np.linalg.lstsq(system, (on**2).sum(axis=1), rcond=None)
    turns = np.degrees(np.arctan2(on[:, 1] - y, on[:, 0] - x)) % 360
    all_around = len(np.unique(turns // 10)) / 36
    if all_around < 0.6:
        return None
    return _Circle(float(x), float(y), math.sqrt(max(c + x * x + y * y, 0.0)))


def _has_corners(outline: NDArray[np.float64], circle: _Circle) -> bool:
    """Whether much of an outline lies outside of a small circle, as the corners of a square do."""
    away = np.hypot(outline[:, 0] - circle.x, outline[:, 1] - circle.y)
    is_small = circle.radius < LEAST_GRAY_RADIUS_PX
    return bool(is_small and (away > circle.radius + 2.5).mean() > 0.12)


def _through(triples: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centres and radii of circles through three points each; radius 0 where they form a line."""
    a, b, c = triples[:, 0], triples[:, 1], triples[:, 2]
    ab, ac = b - a, c - a
    cross = 2 * (ab[:, 0] * ac[:, 1] - ab[:, 1] * ac[:, 0])
    safe = np.where(np.abs(cross) < 1e-6, 1.0, cross)
    bb, cc = (ab**2).sum(axis=1), (ac**2).sum(axis=1)
    x = (ac[:, 1] * bb - ab[:, 1] * cc) / safe
    y = (ab[:, 0] * cc - ac[:, 0] * bb) / safe
    radii = np.where(np.abs(cross) < 1e-6, 0.0, np.hypot(x, y))
    return a + np.stack([x, y], axis=1), radii


def _sectors(
    canvas: NDArray[np.int32], areas: Sequence[Area], circle: _Circle, *, group: int
) -> list[Part]:
    """What each direction from the centre shows, made into wedges."""
    turn = (np.arange(DIRECTIONS) + 0.5) * 360 / DIRECTIONS
    reach = np.linspace(0.3, 0.95, 14) * circle.radius
    x = circle.x + np.outer(np.cos(np.radians(turn)), reach)
    y = circle.y + np.outer(np.sin(np.radians(turn)), reach)
    height, width = canvas.shape
    columns = np.clip(x.astype(int), 0, width - 1)
    rows = np.clip(y.astype(int), 0, height - 1)
    seen = canvas[rows, columns]
    members = [
        n
        for n in np.unique(seen)
        if n and (_is_within(areas[n - 1], circle) or _is_pulled_out(areas[n - 1], circle))
    ]
    votes = np.stack([(seen == n).sum(axis=1) for n in members], axis=1) if members else None
    if votes is None or len(members) < 2:
        return []
    owner = np.where(votes.max(axis=1) >= 2, votes.argmax(axis=1), -1)
    owner = _closed_up(owner)
    found = []
    for place, number in enumerate(members):
        span = _longest_run(owner == place)
        if span is None or span[1] < 4:
            continue
        part = _wedge(areas[number - 1], circle, span, votes[:, place], len(reach))
        if part is not None:
            found.append(part._replace(group=group))
    return found


def _is_within(area: Area, circle: _Circle) -> bool:
    y, x = np.nonzero(area.mask)
    away = np.hypot(x + area.x0 + 0.5 - circle.x, y + area.y0 + 0.5 - circle.y)
    return bool((away <= 1.03 * circle.radius + 1).mean() > 0.95)


MOST_PULLED = 0.4
"""Radii that a wedge stands away from the middle, at most."""


def _is_pulled_out(area: Area, circle: _Circle) -> bool:
    """Whether it lies within the disc moved towards it."""
    y, x = np.nonzero(area.mask)
    away = np.array([x.mean() + area.x0 + 0.5 - circle.x, y.mean() + area.y0 + 0.5 - circle.y])
    towards = away / max(float(np.hypot(*away)), 1.0)
    moves = np.linspace(0.05, MOST_PULLED, 8)[:, None] * circle.radius * towards
    return any(
        _is_within(area, _Circle(circle.x + dx, circle.y + dy, circle.radius)) for dx, dy in moves
    )


def _closed_up(owner: NDArray[np.intp], most: int = 20) -> NDArray[np.intp]:
    """Directions along an edge show no wedge: each side of it takes half, of narrow ones."""
    known = np.flatnonzero(owner >= 0)
    if not len(known):
        return owner
    at = np.arange(len(owner))
    around = np.concatenate([known - len(owner), known, known + len(owner)])
    places = np.searchsorted(around, at)
    before = around[np.maximum(places - 1, 0)]
    after = around[np.minimum(places, len(around) - 1)]
    nearest = np.where(at - before < after - at, before, after)
    is_narrow = after - before <= most
    return np.where((owner < 0) & is_narrow, owner[nearest % len(owner)], owner)


def _longest_run(on: Bits) -> tuple[int, int] | None:
    """Start and length on a ring."""
    if not on.any() or on.all():
        return None
    first_off = int(np.flatnonzero(~on)[0])
    turned = np.roll(on, -first_off)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], turned, [False]]).astype(np.int8)))
    starts, stops = edges[::2], edges[1::2]
    best = int(np.argmax(stops - starts))
    return (int(starts[best]) + first_off) % len(on), int(stops[best] - starts[best])


def _wedge(
    area: Area, circle: _Circle, span: tuple[int, int], votes: NDArray[np.intp], samples: int
) -> Part | None:
    start, length = span
    inside = (start + np.arange(length)) % DIRECTIONS
    visible = float(votes[inside].sum() / (length * samples))
    if visible < LEAST_VISIBLE:
        return None
    degrees = length * 360 / DIRECTIONS
    edges = np.radians(np.linspace(start, start + length, 64) * 360 / DIRECTIONS)
    xs = np.append(circle.x + circle.radius * np.cos(edges), circle.x)
    ys = np.append(circle.y + circle.radius * np.sin(edges), circle.y)
    box = Box(float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max()))
    if not _is_within(area, circle):
        box = area.box
    middle = (start + length / 2) * 360 / DIRECTIONS
    score = min(0.97, 0.5 + 0.5 * visible) * (0.9 if area.is_hatched else 1.0)
    return Part("wedge", box, area.point, area.color, score, degrees, place=(middle + 90) % 360)
