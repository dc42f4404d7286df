"""The learning curves of a ladder: each seed of each trained arm, and the mean of the seeds.

Invariant: an arm's curves are those of the learning rate that was chosen for it; a mean is over the
steps that all of its seeds logged.

Left out on purpose: smoothing and drawing (`saccade.report` does).
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saccade.ladder.page.results import (
    arm_names,
    at,
    figures_of,
    list_of,
    stored_rows,
    strata_of,
    tool_arms,
)
from saccade.report import (
    STROKES,
    Curve,
    Line,
    Points,
    curve_svg,
    interval_of,
    number_of,
    smoothed,
)
from saccade.run_folder import stage_of_tool

__all__ = ["CurveGroup", "curve_groups", "item_curves", "tool_curves"]


class CurveGroup(NamedTuple):
    """Curves of arms that log the same figures."""

    title: str
    curves: list[Curve]
    legend: list[tuple[str, str]]
    """(arm, colour)."""


class _Logged(NamedTuple):
    stage: str
    key: str
    title: str
    unit: str


_LOGGED = {
    "rl": (
        _Logged("rl", "reward", "Reward", "mean of an episode"),
        _Logged("rl", "calls", "Tool calls", "per episode"),
        _Logged("validation", "accuracy", "Validation accuracy", "share of right answers"),
        _Logged("validation", "accuracy_look", "Validation accuracy on look", ""),
        _Logged("rl", "completion_tokens", "Completion length", "tokens of an episode"),
        _Logged("rl", "boxes", "Boxes", "in an episode"),
        _Logged("rl", "invalid_boxes", "Invalid boxes", "share of the boxes"),
        _Logged("rl", "redundant_boxes", "Redundant boxes", "share of the boxes"),
        _Logged("rl", "informative", "Informative groups", "share whose rollouts differ"),
    ),
    "sft": (
        _Logged("sft", "loss", "Loss", "nats per token"),
        _Logged("sft", "right_tokens", "Right tokens", "share"),
    ),
}
_GROUPS = {"rl": "Arms trained by rewards", "sft": "Arms that were fine-tuned"}


def curve_groups(run: Path, results: Mapping[str, Any]) -> list[CurveGroup]:
    """Each seed of each trained arm at the rate that was chosen, and the mean of the seeds."""
    groups = []
    for stage, title in _GROUPS.items():
        arms = [a for a in arm_names(results) if at(results, "arms", a, "stage") == stage]
        logged = {arm: _logged(run, results, arm) for arm in arms}
        arms = [arm for arm in arms if any(logged[arm])]
        for start in range(0, len(arms), STROKES):  # more colours could not be told apart
            part = arms[start : start + STROKES]
            drawn = []
            for what in _LOGGED[stage]:
                lines: list[Line] = []
                for stroke, arm in enumerate(part):
                    lines += _lines([s[what] for s in logged[arm] if s.get(what)], stroke)
                if lines:
                    prefix = f"{stage}{start}-{what.stage}-{what.key}"
                    drawn.append(Curve(what.title, what.unit, curve_svg(lines, prefix=prefix)))
            legend = [(arm, f"var(--c{stroke})") for stroke, arm in enumerate(part)]
            if drawn:
                groups.append(CurveGroup(title, drawn, legend))
    return groups


ITEMS = "task.train_items"
_BY_ITEMS = {"accuracy": "Accuracy", "f1": "F1 of boxes", "mean_iou": "Mean IoU of boxes"}


def item_curves(results: Mapping[str, Any]) -> list[CurveGroup]:
    """Accuracy, F1 and IoU by the number of different items that training read, of arms that differ
    in nothing else (but the passes over them), with 95% intervals; what reads a stream stands at
    the right. On the test splits, and on the training items themselves.
    """
    families: dict[str, dict[float, str]] = defaultdict(dict)
    for name in arm_names(results):
        arm = results["arms"][name]
        settings = dict(at(arm, "settings") or {})
        items = number_of(settings.pop(ITEMS, None))
        for passes in ("sft.epochs", "sft.steps"):
            settings.pop(passes, None)
        read = items and (number_of(at(arm, "items_read")) or items)
        told = [at(arm, "stage"), at(arm, "start"), at(arm, "data"), settings]
        families[json.dumps(told, sort_keys=True)][read or math.inf] = name
    several = [of for of in families.values() if len(of) > 1][:STROKES]
    sizes = sorted({size for of in several for size in of if size < math.inf})
    if not sizes:
        return []
    stream = 3 * sizes[-1]
    ticks = {size: f"{size:,.0f}" for size in sizes}
    streams = [of[math.inf] for of in several if math.inf in of]
    if streams:
        asked = {number_of(at(results, "arms", arm, "items_read")) for arm in streams}
        told_of = ", ".join(f"{n:,.0f}" for n in sorted(n for n in asked if n is not None))
        ticks[stream] = f"stream: {told_of}" if told_of else "stream"
    legend = [
        (f"{min(of.values(), key=len)}{_steps_of(results, of.values())}", f"var(--c{n})")
        for n, of in enumerate(several)
    ]
    names = arm_names(results)
    own = {arm: at(results, "arms", arm, "training_items") for arm in names}
    groups = []
    for split in at(results, "splits") or {}:
        drawn = []
        figures = {arm: at(figures_of(results, split, arm), "by_stratum") for arm in names}
        for note, of_arms in (("", figures), (" on training items", own)):
            for metric, title in _BY_ITEMS.items():
                for stratum in strata_of(results, split):
                    lines: list[Line] = []
                    for stroke, of in enumerate(several):
                        lines += _with_bars(of_arms, of, metric, stratum, stroke, stream)
                    if lines:
                        prefix = f"items-{split}-{metric}-{stratum}{'-own' if note else ''}"
                        svg = curve_svg(lines, prefix=prefix, ticks=ticks)
                        drawn.append(Curve(f"{title}{note}", stratum, svg))
        if drawn:
            about = f"By the number of training items that were read, {split}"
            groups.append(CurveGroup(about, drawn, legend))
    return groups


def _steps_of(results: Mapping[str, Any], arms: Iterable[str]) -> str:
    """How many optimiser steps arms took; empty where nobody counted."""
    told = [
        steps
        for arm in arms
        for cost in list_of(at(results, "arms", arm, "training"))
        if (steps := number_of(at(cost, "steps"))) is not None
    ]
    if not told:
        return ""
    low, high = min(told), max(told)
    return f", {low:,.0f} steps" if low == high else f", {low:,.0f} to {high:,.0f} steps"


def _with_bars(
    figures: Mapping[str, Any],
    of: Mapping[float, str],
    metric: str,
    stratum: str,
    stroke: int,
    stream: float,
) -> list[Line]:
    """A line through the estimates and a faint one over each interval."""
    points: Points = []
    bars: list[Line] = []
    for size in sorted(of):
        estimate, low, high = interval_of(at(figures.get(of[size]), metric, stratum))
        if estimate is None:
            continue
        place = min(size, stream)
        points.append((place, estimate))
        if low is not None and high is not None:
            bars.append(Line([(place, low), (place, high)], stroke, is_faint=True))
    return [*bars, Line(points, stroke)] if points else []


_OF_TOOLS = (
    ("tool_use", "Use", "calls per episode"),
    ("tool_success", "Success", "share of calls that did not fail"),
    ("tool_dependence", "Dependence", "validation accuracy lost without it"),
)


def tool_curves(run: Path, results: Mapping[str, Any]) -> list[CurveGroup]:
    """Use, success and dependence of each tool of the tested arm through training, and its benefit:
    validation accuracy over that of the arm that was trained without it.
    """
    tested = str(at(results, "tested"))
    arms = tool_arms(results)
    drawn = []
    for key, title, unit in _OF_TOOLS:
        lines: list[Line] = []
        for stroke, of in enumerate(arms):
            seeds = _points(run, results, tested, stage_of_tool(of.tool), key)
            lines += _lines([s for s in seeds if s], stroke % STROKES)
        if lines:
            drawn.append(Curve(title, unit, curve_svg(lines, prefix=key)))
    benefits: list[Line] = []
    own = _points(run, results, tested, "validation", "accuracy")
    for stroke, of in enumerate(arms):
        never = _points(run, results, of.never, "validation", "accuracy") if of.never else []
        more = [_over(a, b) for a, b in zip(own, never, strict=False)]
        benefits += _lines([m for m in more if m], stroke % STROKES)
    if benefits:
        unit = "validation accuracy over training without it"
        drawn.append(Curve("Benefit", unit, curve_svg(benefits, prefix="tool_benefit")))
    legend = [(of.tool, f"var(--c{stroke % STROKES})") for stroke, of in enumerate(arms)]
    return [CurveGroup(f"Tools of {tested}", drawn, legend)] if drawn else []


def _over(above: Points, below: Points) -> Points:
    """The difference at the steps that both have."""
    other = dict(below)
    return [(step, value - other[step]) for step, value in above if step in other]


def _points(run: Path, results: Mapping[str, Any], arm: str, stage: str, key: str) -> list[Points]:
    """One figure that the training of each seed logged."""
    rate = number_of(at(results, "arms", arm, "rate"))
    if rate is None:
        return []
    found = []
    for seed in list_of(at(results, "arms", arm, "seeds")):
        rows = stored_rows(run / "arms" / arm / f"seed-{seed}" / f"rate-{rate:g}", "metrics")
        pairs = [
            (number_of(r.get("step")), number_of(r.get(key)))
            for r in rows
            if r.get("stage") == stage
        ]
        found.append([(step, v) for step, v in pairs if step is not None and v is not None])
    return found


def _logged(run: Path, results: Mapping[str, Any], arm: str) -> list[dict[_Logged, Points]]:
    """What the training of each seed logged."""
    rate = number_of(at(results, "arms", arm, "rate"))
    stage = str(at(results, "arms", arm, "stage"))
    if rate is None:
        return []
    found = []
    for seed in list_of(at(results, "arms", arm, "seeds")):
        points: dict[_Logged, Points] = defaultdict(list)
        for row in stored_rows(run / "arms" / arm / f"seed-{seed}" / f"rate-{rate:g}", "metrics"):
            step = number_of(row.get("step"))
            for what in _LOGGED[stage] if step is not None else ():
                value = number_of(row.get(what.key))
                if row.get("stage") == what.stage and value is not None:
                    assert step is not None
                    points[what].append((step, value))
        found.append(dict(points))
    return found


def _lines(seeds: Sequence[Points], stroke: int) -> list[Line]:
    """A faint line for each seed and a strong one for their mean, over the steps that all have."""
    if len(seeds) < 2:
        return [line for points in seeds for line in smoothed(points, stroke)]
    faint = [smoothed(points, stroke)[-1]._replace(is_faint=True) for points in seeds]
    values = [dict(points) for points in seeds]
    shared = sorted(set.intersection(*(set(of) for of in values)))
    mean = [(step, sum(of[step] for of in values) / len(values)) for step in shared]
    return [*faint, *(smoothed(mean, stroke)[-1:] if mean else ())]
