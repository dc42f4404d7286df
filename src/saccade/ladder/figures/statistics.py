"""The statistics of a ladder: arms with several seeds on one split, and what they differ by.

Invariant: a figure is the mean over seeds of the seed's mean over samples (a sample's own value is
the mean over its rollouts), and its interval is made from draws of seeds and of charts
(`saccade.ladder.figures.draws`).

Left out on purpose: files, p-values, and corrections for the number of comparisons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import inf, sqrt
from typing import Any

import numpy as np

from saccade.evaluate import ALL, VALUES, Interval, Metric, SampleRow
from saccade.ladder.figures.draws import Drawn, Resampling, Term, draw_charts, drawn_interval
from saccade.ladder.figures.findings import (
    ArmFigures,
    Difference,
    Differences,
    GainAndHarm,
    SeedFigures,
)
from saccade.ladder.figures.rows import (
    ArmPair,
    ArmRows,
    Field,
    Mask,
    Numbers,
    RowTable,
    arm_pair,
    masks_of,
    row_table,
)

__all__ = [
    "LOOK_SHARES",
    "METRICS",
    "OF_BOXES",
    "arm_figures",
    "differences",
    "gain_and_harm",
    "majority_level",
    "own_item_figures",
]

EASY, LOOK = "easy", "look"
"""The strata that mixtures and adaptive use are about."""
LOOK_SHARES = (0.25, 0.5, 0.75)
METRICS: tuple[Metric, ...] = ("accuracy", "lenient", "calls", "completion_tokens", "coverage")
OF_BOXES: tuple[Metric, ...] = (
    *("f1", "mean_iou", "recall_iou", "union_iou", "union_iou_unscaled", "acc_at_0_5"),
    *("agreement", "agreement_random", "on_nothing", "boxes", "invalid", "redundant"),
    *("changed", "lost", "right_before", "right_after"),
)
"""Beside them, where boxes were asked for."""
_RANGE: dict[Metric, tuple[float, float]] = {
    "accuracy": (0.0, 1.0),
    "lenient": (0.0, 1.0),
    "coverage": (0.0, 1.0),
    "tightness": (0.0, 1.0),
    "calls": (0.0, inf),
    "completion_tokens": (0.0, inf),
    **dict.fromkeys(OF_BOXES, (0.0, 1.0)),
    "boxes": (0.0, inf),
}
"""What a mean of the metric can be; intervals end there."""


# --- one arm --------------------------------------------------------------------------------------


def arm_figures(
    arm: ArmRows,
    *,
    name: str = "arm",
    look_shares: Sequence[float] = LOOK_SHARES,
    resampling: Resampling | None = None,
) -> ArmFigures:
    """All figures of one arm on one split; `name` is for messages.

    Raises ValueError where the arm or a seed has no rows, a row stands twice, or seeds answer
    different samples.
    """
    resampling = resampling or Resampling()
    _check_shares(look_shares)
    table = row_table(arm, name)
    has_boxes = any(row.grounding for across in table.cells for rows in across for row in rows)
    metrics = METRICS + OF_BOXES if has_boxes else METRICS
    strata, kinds = table.masks(), masks_of(table.kinds)
    crossed = {
        (kind, stratum): kinds[kind] & strata[stratum]
        for kind in kinds
        for stratum in strata
        if stratum != ALL and (kinds[kind] & strata[stratum]).any()
    }
    masks = [*strata.values(), *kinds.values(), *crossed.values()]
    drawn = draw_charts([table.values(m) for m in metrics], masks, table, resampling)
    at_kind, at_crossed = len(strata), len(strata) + len(kinds)

    def found(metric: Metric, start: int, names: Iterable[Any]) -> dict[Any, Interval]:
        field = metrics.index(metric)
        each = {
            n: drawn_interval(drawn, [Term(1.0, field, start + i)], resampling, _RANGE[metric])
            for i, n in enumerate(names)
        }
        return {n: interval for n, interval in each.items() if interval}

    by_both: dict[Metric, dict[str, dict[str, Interval]]] = {}
    for metric in metrics:
        by_both[metric] = {}
        for (kind, stratum), interval in found(metric, at_crossed, crossed).items():
            by_both[metric].setdefault(kind, {})[stratum] = interval
    accuracy = [(1.0, METRICS.index("accuracy"))]
    mixtures = _mixtures(drawn, accuracy, list(strata), look_shares, resampling)
    return ArmFigures(
        samples={stratum: int(mask.sum()) for stratum, mask in strata.items()},
        samples_by_kind={kind: int(mask.sum()) for kind, mask in kinds.items()},
        clusters=len(set(table.clusters)),
        by_stratum={metric: found(metric, 0, strata) for metric in metrics},
        by_kind={metric: found(metric, at_kind, kinds) for metric in metrics},
        by_kind_and_stratum=by_both,
        mixtures={share: interval for share, interval in mixtures.items() if interval},
        adaptive_calls=_adaptive_calls(drawn, list(strata), resampling),
        seeds=tuple(
            _seed_figures(table, j, strata, drawn.means[METRICS.index("accuracy")])
            for j in range(len(table.seeds))
        ),
        resampling=resampling,
    )


def _check_shares(look_shares: Iterable[float]) -> None:
    for share in look_shares:
        if not 0 <= share <= 1:
            raise ValueError(f"A share of {LOOK!r} lies between 0 and 1, got {share}.")


def _mixtures(
    drawn: Drawn,
    of: Sequence[tuple[float, int]],
    strata: Sequence[str],
    look_shares: Iterable[float],
    resampling: Resampling,
    within: tuple[float, float] = (0.0, 1.0),
) -> dict[float, Interval | None]:
    """By share of `look`, of a sum of (sign, field): weights are applied inside each resample."""
    if not {EASY, LOOK} <= set(strata):
        return {}
    look, easy = strata.index(LOOK), strata.index(EASY)
    return {
        float(share): drawn_interval(
            drawn,
            [
                Term(sign * part, field, stratum)
                for part, stratum in ((share, look), (1 - share, easy))
                for sign, field in of  # innermost, so that an arm minus itself is 0 to the bit
            ],
            resampling,
            within,
        )
        for share in sorted(look_shares)
    }


def _adaptive_calls(drawn: Drawn, strata: Sequence[str], resampling: Resampling) -> Interval | None:
    if not {EASY, LOOK} <= set(strata):
        return None
    calls = METRICS.index("calls")
    terms = [Term(1.0, calls, strata.index(LOOK)), Term(-1.0, calls, strata.index(EASY))]
    return drawn_interval(drawn, terms, resampling, (-inf, inf))


def _seed_figures(
    table: RowTable, column: int, strata: Collection[str], accuracy: Numbers
) -> SeedFigures:
    """`accuracy` is (masks, seeds), strata first."""
    rows = [row for across in table.cells for row in across[column]]
    tools: Counter[str] = Counter()
    for row in rows:
        tools.update(row.calls)
    tokens = [row.completion_tokens for row in rows if row.completion_tokens is not None]
    failures = Counter(row.failure for row in rows)
    number = len(rows)
    return SeedFigures(
        seed=table.seeds[column],
        episodes=number,
        accuracy={name: float(accuracy[i, column]) for i, name in enumerate(strata)},
        calls=tools.total() / number,
        calls_by_tool={tool: count / number for tool, count in sorted(tools.items())},
        completion_tokens=sum(tokens) / len(tokens) if tokens else None,
        seconds=sum(row.seconds for row in rows) / number,
        truncated=failures["truncated"] / number,
        extraction_failed=failures["extraction_failed"] / number,
        unscored=failures["unscored"] / number,
    )


OF_OWN_ITEMS: tuple[Metric, ...] = ("accuracy", "f1", "mean_iou")


def own_item_figures(
    by_seed: Sequence[Sequence[SampleRow]],
) -> dict[Metric, dict[str, Interval]]:
    """Figures by stratum of an arm whose items are others at each seed: the mean of the seeds'
    means, with Student's t over them, which covers what differs by seed and by items alike. A lone
    seed has no interval; what does not apply has no key.
    """
    found: dict[Metric, dict[str, Interval]] = {}
    for metric in OF_OWN_ITEMS:
        value = VALUES[metric]
        for stratum in [ALL, *sorted({r.stratum for rows in by_seed for r in rows} - {""})]:
            each = [
                [v for r in rows if stratum in (ALL, r.stratum) if (v := value(r)) is not None]
                for rows in by_seed
            ]
            means = [sum(values) / len(values) for values in each if values]
            if means:
                found.setdefault(metric, {})[stratum] = _student(means, _RANGE[metric])
    return found


def _student(means: Sequence[float], within: tuple[float, float]) -> Interval:
    estimate = sum(means) / len(means)
    if len(means) < 2:
        return Interval(estimate, None, None)
    from scipy.stats import t

    half = float(t.ppf(0.975, len(means) - 1)) * float(np.std(means, ddof=1)) / sqrt(len(means))
    return Interval(estimate, max(within[0], estimate - half), min(within[1], estimate + half))


# --- two arms -------------------------------------------------------------------------------------


def differences(
    rows_a: ArmRows,
    rows_b: ArmRows,
    *,
    names: tuple[str, str] = ("a", "b"),
    metric: Metric = "accuracy",
    look_shares: Sequence[float] = LOOK_SHARES,
    resampling: Resampling | None = None,
) -> Differences:
    """Arm a minus arm b, paired by sample and by seed, over the samples that have the metric in
    both.

    Charts are drawn once for both arms, and so are seeds where both have the same; an arm with one
    seed is set against each seed of the other. There is a sentence and no figure where more than 1%
    of a seed's run, or of the arm in the stratum or kind, is unscored, or fewer than two charts
    have the metric. Raises ValueError where the arms answer different samples or have different
    seeds, several each.
    """
    resampling = resampling or Resampling()
    _check_shares(look_shares)
    pair = arm_pair(rows_a, rows_b, names)
    low, high = _RANGE[metric]
    within = (low - high, high - low)
    fields = _in_both(pair.a.values(metric), pair.b.values(metric))
    strata, kinds = pair.a.masks(), masks_of(pair.a.kinds)
    drawn = draw_charts(fields, [*strata.values(), *kinds.values()], pair.a, resampling)
    each = [
        drawn_interval(drawn, [Term(1.0, 0, i), Term(-1.0, 1, i)], resampling, within)
        for i in range(len(strata) + len(kinds))
    ]
    of = [(1.0, 0), (-1.0, 1)]
    mixtures = _mixtures(drawn, of, list(strata), look_shares, resampling, within)
    mixed = strata[EASY] | strata[LOOK] if mixtures else strata[ALL]
    whole = pair.unscored()
    return Differences(
        a=names[0],
        b=names[1],
        metric=metric,
        seeds=pair.seeds,
        by_stratum=_judged(pair, whole, strata, each[: len(strata)]),
        by_kind=_judged(pair, whole, kinds, each[len(strata) :]),
        mixtures={
            share: _judge(pair, whole or pair.unscored(mixed), interval)
            for share, interval in mixtures.items()
        },
        resampling=resampling,
    )


def _in_both(a: Field, b: Field) -> list[Field]:
    """The two where both have a value; a lone seed is spread over the other's."""
    values = np.broadcast_arrays(a.values, b.values)
    weights = np.broadcast_arrays(a.weights, b.weights)
    has = ~np.isnan(values[0] + values[1])
    return [Field(np.where(has, v, np.nan), w) for v, w in zip(values, weights, strict=True)]


def gain_and_harm(
    arm: ArmRows,
    reference: ArmRows,
    *,
    names: tuple[str, str] = ("arm", "reference"),
    resampling: Resampling | None = None,
) -> GainAndHarm:
    """What became right, and what wrong, against the reference; gain minus harm is the difference.

    With several rollouts of a sample: the share of all pairs of one rollout from each arm. Pairs,
    sentences and errors are those of `differences`.
    """
    resampling = resampling or Resampling()
    pair = arm_pair(arm, reference, names)
    right, right_before = pair.a.values("accuracy").values, pair.b.values("accuracy").values
    each = [right * (1 - right_before), (1 - right) * right_before]
    fields = [Field(values, np.ones_like(values)) for values in each]
    strata = pair.a.masks()
    drawn = draw_charts(fields, list(strata.values()), pair.a, resampling)
    gain, harm = (
        [
            drawn_interval(drawn, [Term(1.0, field, i)], resampling, (0.0, 1.0))
            for i in range(len(strata))
        ]
        for field in range(2)
    )
    return GainAndHarm(
        arm=names[0],
        reference=names[1],
        seeds=pair.seeds,
        gain=_judged(pair, pair.unscored(), strata, gain),
        harm=_judged(pair, pair.unscored(), strata, harm),
        resampling=resampling,
    )


def _judged(
    pair: ArmPair, whole: str, masks: Mapping[str, Mask], intervals: Sequence[Interval | None]
) -> dict[str, Difference]:
    """`whole`: why the arms can't be compared anywhere; empty if they can."""
    return {
        name: _judge(pair, whole or pair.unscored(mask), interval)
        for (name, mask), interval in zip(masks.items(), intervals, strict=True)
    }


def _judge(pair: ArmPair, unscored: str, interval: Interval | None) -> Difference:
    if unscored:
        return Difference(None, unscored)
    if interval is None or interval.low is None:
        many = "No chart has" if interval is None else "Only one chart has"
        return Difference(
            None, f"{many} this figure in both {pair.names[0]} and {pair.names[1]}; two must."
        )
    return Difference(interval)


# --- chance ---------------------------------------------------------------------------------------


def majority_level(answers: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Accuracy of the best constant answer, by kind: what seeing the kind alone can get.

    `answers` are the gold answers of the items by kind, equal where their strings are. The answer
    is chosen on the items that it is scored on, so the level is an upper one. Raises ValueError
    for a kind without items.
    """
    for kind, golds in answers.items():
        if not golds:
            raise ValueError(f"Kind {kind!r} has no answers; leave it out.")
    return {
        kind: Counter(answers[kind]).most_common(1)[0][1] / len(answers[kind])
        for kind in sorted(answers)
    }
