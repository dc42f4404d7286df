"""The statistics of a ladder: arms with several seeds on one split, and what they differ by.

Invariant: a figure is the mean over seeds of the seed's mean over samples (a sample's own value is
the mean over its rollouts), and its interval is made from draws of seeds and of charts. The same
`Resampling` gives every arm of a split the same draws; the order of rows is never seen.

The design is crossed: all seeds of an arm answer the same charts. So seeds are drawn with
replacement, whole charts (`SampleRow.cluster`) are drawn with replacement, each independently of
the other, and a resample is the mean over the drawn seeds of their means on the drawn charts: the
pigeonhole bootstrap of Owen (2007), Annals of Applied Statistics 1(2), 386-411. Drawing fresh
charts inside each drawn seed, as nested data would have it, forgets that a hard chart is hard for
all seeds, and is too narrow. The crossed draws are a little too wide: what belongs to one seed on
one chart alone (of 0/1 answers, their luck) enters the variance up to three times. With few seeds
something else weighs more, see `Resampling.seeds_by`.

Left out on purpose: files, p-values, and corrections for the number of comparisons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade.evaluate import ALL, MAX_UNSCORED, VALUES, Interval, Metric, SampleRow

__all__ = [
    "LOOK_SHARES",
    "METRICS",
    "ArmFigures",
    "ArmRows",
    "Difference",
    "Differences",
    "GainAndHarm",
    "Resampling",
    "SeedFigures",
    "arm_figures",
    "differences",
    "gain_and_harm",
    "majority_level",
]

EASY, LOOK = "easy", "look"
"""The strata that mixtures and adaptive use are about."""
LOOK_SHARES = (0.25, 0.5, 0.75)
METRICS: tuple[Metric, ...] = ("accuracy", "lenient", "calls", "completion_tokens", "coverage")

ArmRows = Mapping[int, Sequence[SampleRow]]
"""Rows of one split by seed; an arm that is not trained has one key."""

_Numbers = NDArray[np.float64]
_Mask = NDArray[np.bool_]
_RANGE: dict[Metric, tuple[float, float]] = {
    "accuracy": (0.0, 1.0),
    "lenient": (0.0, 1.0),
    "coverage": (0.0, 1.0),
    "tightness": (0.0, 1.0),
    "calls": (0.0, inf),
    "completion_tokens": (0.0, inf),
}
"""What a mean of the metric can be; intervals end there."""


@dataclass(frozen=True, slots=True)
class Resampling:
    """How intervals are made; written beside them."""

    resamples: int = 10_000
    seed: int = 0
    """Of the draws; has nothing to do with the seeds of an arm."""
    seeds_by: Literal["resampling", "student"] = "resampling"
    """What stands for other seeds than those at hand.

    `resampling` draws seeds with replacement. Of S seeds it can't see more than their range, and
    sees (S - 1) / S of their variance: where seeds differ much and are few, too narrow. `student`
    draws charts alone and adds Student's t with S - 1 degrees of freedom times the standard error
    of the seeds' means: wide, and right for normal seeds. Share of intervals with the truth in
    them (500 simulated arms, 500 charts, 0/1 answers; charts alone stand in the first column):

    | seeds | their standard deviation | charts alone | resampling | student |
    |---|---|---|---|---|
    | 3 | 0.02 | 0.86 | 0.95 | 0.97 |
    | 3 | 0.05 | 0.60 | 0.84 | 0.94 |
    | 3 | 0.10 | 0.39 | 0.78 | 0.93 |
    | 5 | 0.02 | 0.87 | 0.97 | 0.97 |
    | 5 | 0.05 | 0.70 | 0.93 | 0.96 |
    | 5 | 0.10 | 0.41 | 0.90 | 0.97 |
    """

    def __post_init__(self) -> None:
        if self.resamples < 100:
            raise ValueError(f"A 95% interval needs 100 resamples or more, got {self.resamples}.")

    def to_json(self) -> dict[str, Any]:
        return {"resamples": self.resamples, "seed": self.seed, "seeds_by": self.seeds_by}


# --- what is found --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SeedFigures:
    """One seed of an arm on its own; means over its episodes, without intervals."""

    seed: int
    episodes: int
    accuracy: Mapping[str, float]
    """Strict, by stratum; unscored is wrong."""
    calls: float
    calls_by_tool: Mapping[str, float]
    completion_tokens: float | None
    """None from engines without ids."""
    seconds: float
    """For an episode; those that ran side by side overlap."""
    truncated: float
    """Share of the episodes that ended without an answer because a limit was reached."""
    extraction_failed: float
    """Share that ended by themselves with no answer that could be read."""
    unscored: float
    """Share that our side failed."""

    def to_json(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "episodes": self.episodes,
            "accuracy": _sorted(self.accuracy),
            "calls": self.calls,
            "calls_by_tool": _sorted(self.calls_by_tool),
            "completion_tokens": self.completion_tokens,
            "seconds": self.seconds,
            "truncated": self.truncated,
            "extraction_failed": self.extraction_failed,
            "unscored": self.unscored,
        }


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """One arm on one split. A figure that does not apply has no key; strata include `all`."""

    samples: Mapping[str, int]
    """Number of questions by stratum."""
    samples_by_kind: Mapping[str, int]
    clusters: int
    """Number of charts, over all strata."""
    by_stratum: Mapping[Metric, Mapping[str, Interval]]
    by_kind: Mapping[Metric, Mapping[str, Interval]]
    by_kind_and_stratum: Mapping[Metric, Mapping[str, Mapping[str, Interval]]]
    """Metric, then kind, then stratum; without `all`, which is `by_kind`."""
    mixtures: Mapping[float, Interval]
    """Accuracy by the share of `look`, the rest being `easy`; empty without both strata."""
    adaptive_calls: Interval | None
    """Calls for a sample of `look` minus calls for a sample of `easy`; None without both."""
    seeds: tuple[SeedFigures, ...]
    """In the order of their numbers. A lone seed leaves intervals that cover charts only."""
    resampling: Resampling

    def mean(self, value: Callable[[SeedFigures], float]) -> float:
        """Mean over seeds, such as `arm.mean(lambda seed: seed.truncated)`."""
        return sum(map(value, self.seeds)) / len(self.seeds)

    @property
    def calls_by_tool(self) -> dict[str, float]:
        """For each episode, mean over seeds; a tool that a seed never called counts 0 there."""
        tools = sorted({tool for seed in self.seeds for tool in seed.calls_by_tool})
        totals = {tool: sum(s.calls_by_tool.get(tool, 0.0) for s in self.seeds) for tool in tools}
        return {tool: total / len(self.seeds) for tool, total in totals.items()}

    def to_json(self) -> dict[str, Any]:
        """An arm of `ladder.json`: intervals as [estimate, low, high], keys sorted."""
        return {
            "n": self.samples[ALL],
            "seeds": len(self.seeds),
            "interval_covers": _covers(len(self.seeds)),
            "resampling": self.resampling.to_json(),
            "clusters": self.clusters,
            "samples": _sorted(self.samples),
            "samples_by_kind": _sorted(self.samples_by_kind),
            "by_stratum": _json(self.by_stratum),
            "by_kind": _json(self.by_kind),
            "by_kind_and_stratum": _json(self.by_kind_and_stratum),
            "mixtures": _json(self.mixtures),
            "adaptive_calls": None if self.adaptive_calls is None else list(self.adaptive_calls),
            "calls_by_tool": self.calls_by_tool,
            "truncated": self.mean(lambda seed: seed.truncated),
            "extraction_failed": self.mean(lambda seed: seed.extraction_failed),
            "unscored": self.mean(lambda seed: seed.unscored),
            "by_seed": [seed.to_json() for seed in self.seeds],
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of two arms, or a sentence why there is none."""

    interval: Interval | None
    reason: str = ""
    """Empty where there is an interval."""

    def __post_init__(self) -> None:
        if (self.interval is None) != bool(self.reason):
            raise ValueError("A difference needs an interval or a reason why there is none.")

    def to_json(self) -> list[float | None] | str:
        """[estimate, low, high], or the sentence."""
        return self.reason if self.interval is None else list(self.interval)


@dataclass(frozen=True, slots=True)
class Differences:
    """Arm a minus arm b on the same samples."""

    a: str
    b: str
    metric: Metric
    seeds: tuple[int, int]
    """How many each has. Equal seeds are paired; a lone one is set against each of the other's."""
    by_stratum: Mapping[str, Difference]
    by_kind: Mapping[str, Difference]
    mixtures: Mapping[float, Difference]
    """By the share of `look`; empty without both strata."""
    resampling: Resampling

    def to_json(self) -> dict[str, Any]:
        return {
            "a": self.a,
            "b": self.b,
            "metric": self.metric,
            "seeds": list(self.seeds),
            "interval_covers": _covers(max(self.seeds)),
            "resampling": self.resampling.to_json(),
            "by_stratum": _json(self.by_stratum),
            "by_kind": _json(self.by_kind),
            "mixtures": _json(self.mixtures),
        }


@dataclass(frozen=True, slots=True)
class GainAndHarm:
    """What became right and what became wrong against a reference arm, by stratum."""

    arm: str
    reference: str
    seeds: tuple[int, int]
    gain: Mapping[str, Difference]
    """Share of samples wrong in the reference and right in the arm."""
    harm: Mapping[str, Difference]
    """Share of samples right in the reference and wrong in the arm."""
    resampling: Resampling

    def to_json(self) -> dict[str, Any]:
        return {
            "arm": self.arm,
            "reference": self.reference,
            "seeds": list(self.seeds),
            "interval_covers": _covers(max(self.seeds)),
            "resampling": self.resampling.to_json(),
            "gain": _json(self.gain),
            "harm": _json(self.harm),
        }


def _covers(seeds: int) -> str:
    return "seeds and charts" if seeds > 1 else "charts"


def _sorted(mapping: Mapping[str, Any]) -> dict[str, Any]:
    return {key: mapping[key] for key in sorted(mapping)}


def _json(found: Mapping[Any, Any]) -> dict[str, Any]:
    """Keys sorted, at every depth; intervals as lists."""
    named = {f"{key:g}" if isinstance(key, float) else str(key): v for key, v in found.items()}
    return {key: _value_json(named[key]) for key in sorted(named)}


def _value_json(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _json(value)
    return value.to_json() if isinstance(value, Difference) else list(value)


# --- rows as tables -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Table:
    """The rows of an arm: samples in the order of their ids down, seeds in theirs across."""

    ids: tuple[str, ...]
    strata: tuple[str, ...]
    kinds: tuple[str, ...]
    clusters: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[tuple[tuple[SampleRow, ...], ...], ...]
    """Rollouts, by sample and seed."""

    def values(self, metric: Metric) -> _Numbers:
        """(samples, seeds): mean over the rollouts that have the metric; NaN where none has."""
        value = VALUES[metric]
        found = np.full((len(self.ids), len(self.seeds)), np.nan)
        for i, across in enumerate(self.cells):
            for j, rollouts in enumerate(across):
                have = [v for v in map(value, rollouts) if v is not None]
                if have:
                    found[i, j] = sum(have) / len(have)
        return found

    def masks(self) -> dict[str, _Mask]:
        """(samples,) by stratum, `all` first."""
        every = np.ones(len(self.ids), dtype=bool)
        return {ALL: every} | _masks(self.strata)

    def cluster_numbers(self) -> tuple[NDArray[np.intp], int]:
        """(samples,) number of each sample's chart, and how many charts there are."""
        names, numbers = np.unique(np.array(self.clusters), return_inverse=True)
        return numbers.reshape(-1), len(names)

    def too_many_unscored(self, name: str, mask: _Mask | None = None) -> str:
        """A sentence where a whole run, or the arm among the samples of `mask`, has too many."""
        if mask is None:
            columns = zip(self.seeds, zip(*self.cells, strict=True), strict=True)
            parts = [(f"{name} (seed {seed})", list(column)) for seed, column in columns]
        else:
            chosen = [across for across, is_in in zip(self.cells, mask, strict=True) if is_in]
            parts = [(f"{name} here", [rollouts for across in chosen for rollouts in across])]
        for where, cells in parts:
            rows = [row for rollouts in cells for row in rollouts]
            unscored = sum(not row.scored for row in rows)
            if unscored > MAX_UNSCORED * len(rows):
                share = f"{unscored} of {len(rows)} episodes of {where} are unscored"
                return f"{share}, above {MAX_UNSCORED:.0%}: repair and evaluate them again."
        return ""


def _masks(names: Sequence[str]) -> dict[str, _Mask]:
    column = np.array(names)
    return {name: column == name for name in sorted(set(names) - {""})}


def _table(arm: ArmRows, name: str) -> _Table:
    if not arm or not all(arm.values()):
        missing = f"Seed {next(s for s in sorted(arm) if not arm[s])} of arm" if arm else "Arm"
        raise ValueError(f"{missing} {name!r} has no rows; evaluate it on at least one sample.")
    seeds = tuple(sorted(arm))
    by_seed: list[dict[str, list[SampleRow]]] = []
    for seed in seeds:
        rows: dict[str, list[SampleRow]] = {}
        for row in sorted(arm[seed], key=lambda row: (row.id, row.rollout)):
            rollouts = rows.setdefault(row.id, [])
            if rollouts and rollouts[-1].rollout == row.rollout:
                raise ValueError(
                    f"Rollout {row.rollout} of sample {row.id!r} stands twice in seed {seed} of "
                    f"arm {name!r}; remove one."
                )
            rollouts.append(row)
        by_seed.append(rows)
    first = by_seed[0]
    for seed, rows in zip(seeds, by_seed, strict=True):
        if other := first.keys() ^ rows.keys():
            raise ValueError(
                f"Seeds {seeds[0]} and {seed} of arm {name!r} answer different samples "
                f"({len(other)} stand in one only, such as {min(other)!r}); evaluate both on all."
            )
    described = [_described(sample, by_seed, name) for sample in first]
    kinds, strata, clusters = zip(*described, strict=True)
    cells = tuple(tuple(tuple(rows[sample]) for rows in by_seed) for sample in first)
    return _Table(tuple(first), strata, kinds, clusters, seeds, cells)


def _described(
    sample: str, by_seed: Iterable[Mapping[str, Iterable[SampleRow]]], name: str
) -> tuple[str, str, str]:
    """Kind, stratum and cluster of a sample, which all its rows must share."""
    found = {(r.kind, r.stratum, r.cluster) for rows in by_seed for r in rows[sample]}
    if len(found) > 1:
        raise ValueError(
            f"Rows of sample {sample!r} of arm {name!r} differ in kind, stratum or cluster "
            f"({', '.join(map(str, sorted(found)))}); evaluate them on the same split."
        )
    [described] = found
    return described


class _Pair(NamedTuple):
    """Two arms side by side."""

    a: _Table
    b: _Table
    names: tuple[str, str]

    @property
    def seeds(self) -> tuple[int, int]:
        return len(self.a.seeds), len(self.b.seeds)

    def unscored(self, mask: _Mask | None = None) -> str:
        """Why the arms can't be compared; empty if they can."""
        return self.a.too_many_unscored(self.names[0], mask) or self.b.too_many_unscored(
            self.names[1], mask
        )


def _pair(rows_a: ArmRows, rows_b: ArmRows, names: tuple[str, str]) -> _Pair:
    a, b = _table(rows_a, names[0]), _table(rows_b, names[1])
    if other := set(a.ids) ^ set(b.ids):
        raise ValueError(
            f"Arms {names[0]!r} and {names[1]!r} answer different samples ({len(other)} stand in "
            f"one only, such as {min(other)!r}); evaluate both on the same split."
        )
    for i, sample in enumerate(a.ids):
        first, second = ((t.kinds[i], t.strata[i], t.clusters[i]) for t in (a, b))
        if first != second:
            raise ValueError(
                f"Sample {sample!r} is {first} in arm {names[0]!r} and {second} in {names[1]!r}; "
                "evaluate both on the same split."
            )
    if a.seeds != b.seeds and 1 not in (len(a.seeds), len(b.seeds)):
        raise ValueError(
            f"Arm {names[0]!r} has seeds {_listed(a.seeds)} and {names[1]!r} has "
            f"{_listed(b.seeds)}; compare the seeds that both have, or one seed with several."
        )
    return _Pair(a, b, names)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


# --- draws ----------------------------------------------------------------------------------------


class _Drawn(NamedTuple):
    """Means of fields over masks, as they are and in every resample of charts."""

    means: _Numbers  # (fields, masks, seeds); NaN where a seed has no value
    resampled: _Numbers  # (fields, masks, resamples, seeds); NaN where no value was drawn
    clusters: NDArray[np.intp]  # (fields, masks, seeds): charts with a value


def _draw_charts(
    fields: Sequence[_Numbers], masks: Sequence[_Mask], table: _Table, resampling: Resampling
) -> _Drawn:
    """All charts of the split are drawn at once, so that every figure sees the same ones."""
    numbers, charts = table.cluster_numbers()
    shape = (len(fields), len(masks), fields[0].shape[1])
    sums = np.zeros((charts, *shape, 2))  # the last axis: totals, counts
    for f, field in enumerate(fields):
        has = ~np.isnan(field)
        both = np.stack([np.where(has, field, 0.0), has], axis=-1)  # (samples, seeds, 2)
        for m, mask in enumerate(masks):
            np.add.at(sums[:, f, m], numbers[mask], both[mask])
    means = _ratio(sums.sum(axis=0))
    clusters = (sums[..., 1] > 0).sum(axis=0)

    # Fields share most of their counts: each different column is multiplied once.
    columns, back = np.unique(sums.reshape(charts, -1), axis=1, return_inverse=True)
    products = np.empty((resampling.resamples, columns.shape[1]))
    rng = np.random.default_rng([resampling.seed, 0])
    chunk = max(1, 2_000_000 // charts)  # some 16 MB of indices at a time
    for start in range(0, resampling.resamples, chunk):
        size = min(chunk, resampling.resamples - start)
        chosen = rng.integers(charts, size=(size, charts)) + charts * np.arange(size)[:, None]
        times = np.bincount(chosen.reshape(-1), minlength=size * charts).reshape(size, charts)
        products[start : start + size] = times.astype(float) @ columns
    drawn = _ratio(products[:, back.reshape(-1)].reshape(-1, *shape, 2))
    return _Drawn(means, np.moveaxis(drawn, 0, 2), clusters)


def _ratio(sums: _Numbers) -> _Numbers:
    totals, counts = sums[..., 0], sums[..., 1]
    found = np.full(totals.shape, np.nan)
    np.divide(totals, counts, out=found, where=counts > 0)
    return found


class _Term(NamedTuple):
    """A mean that enters a figure with a weight."""

    weight: float
    field: int
    mask: int


def _interval(
    drawn: _Drawn, terms: Sequence[_Term], resampling: Resampling, within: tuple[float, float]
) -> Interval | None:
    """The weighted sum of means, averaged over seeds; None where a mean has no value at all.

    Seeds without the value are left out. A resample in which a seed has no value is left out too;
    that is rare with ten charts and more.
    """
    means: _Numbers = sum((t.weight * drawn.means[t.field, t.mask] for t in terms), np.zeros(1))
    has = ~np.isnan(means)
    if not has.any():
        return None
    means = means[has]
    seeds = len(means)
    estimate = float(means.mean())
    if min(drawn.clusters[t.field, t.mask, has].min() for t in terms) < 2:
        return Interval(estimate, None, None)
    charts: _Numbers = sum(
        (t.weight * drawn.resampled[t.field, t.mask][:, has] for t in terms), np.zeros(1)
    )  # (resamples, seeds)
    rng = np.random.default_rng([resampling.seed, 1, seeds])
    if seeds == 1:
        found = charts[:, 0]
    elif resampling.seeds_by == "resampling":
        times = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resampling.resamples)
        found = (times * charts).sum(axis=1) / seeds
    else:
        error = means.std(ddof=1) / sqrt(seeds)
        found = charts.mean(axis=1) + error * rng.standard_t(seeds - 1, size=resampling.resamples)
    low, high = np.clip(np.quantile(found[~np.isnan(found)], [0.025, 0.975]), *within)
    return Interval(estimate, float(low), float(high))


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
    table = _table(arm, name)
    strata, kinds = table.masks(), _masks(table.kinds)
    crossed = {
        (kind, stratum): kinds[kind] & strata[stratum]
        for kind in kinds
        for stratum in strata
        if stratum != ALL and (kinds[kind] & strata[stratum]).any()
    }
    masks = [*strata.values(), *kinds.values(), *crossed.values()]
    drawn = _draw_charts([table.values(m) for m in METRICS], masks, table, resampling)
    at_kind, at_crossed = len(strata), len(strata) + len(kinds)

    def found(metric: Metric, start: int, names: Iterable[Any]) -> dict[Any, Interval]:
        field = METRICS.index(metric)
        each = {
            n: _interval(drawn, [_Term(1.0, field, start + i)], resampling, _RANGE[metric])
            for i, n in enumerate(names)
        }
        return {n: interval for n, interval in each.items() if interval}

    by_both: dict[Metric, dict[str, dict[str, Interval]]] = {}
    for metric in METRICS:
        by_both[metric] = {}
        for (kind, stratum), interval in found(metric, at_crossed, crossed).items():
            by_both[metric].setdefault(kind, {})[stratum] = interval
    mixtures = _mixtures(drawn, METRICS.index("accuracy"), list(strata), look_shares, resampling)
    return ArmFigures(
        samples={stratum: int(mask.sum()) for stratum, mask in strata.items()},
        samples_by_kind={kind: int(mask.sum()) for kind, mask in kinds.items()},
        clusters=len(set(table.clusters)),
        by_stratum={metric: found(metric, 0, strata) for metric in METRICS},
        by_kind={metric: found(metric, at_kind, kinds) for metric in METRICS},
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
    drawn: _Drawn,
    field: int,
    strata: Sequence[str],
    look_shares: Iterable[float],
    resampling: Resampling,
    within: tuple[float, float] = (0.0, 1.0),
) -> dict[float, Interval | None]:
    """By share of `look`: the weights are applied inside each resample."""
    if not {EASY, LOOK} <= set(strata):
        return {}
    look, easy = strata.index(LOOK), strata.index(EASY)
    return {
        float(share): _interval(
            drawn,
            [_Term(share, field, look), _Term(1 - share, field, easy)],
            resampling,
            within,
        )
        for share in sorted(look_shares)
    }


def _adaptive_calls(
    drawn: _Drawn, strata: Sequence[str], resampling: Resampling
) -> Interval | None:
    if not {EASY, LOOK} <= set(strata):
        return None
    calls = METRICS.index("calls")
    terms = [_Term(1.0, calls, strata.index(LOOK)), _Term(-1.0, calls, strata.index(EASY))]
    return _interval(drawn, terms, resampling, (-inf, inf))


def _seed_figures(
    table: _Table, column: int, strata: Collection[str], accuracy: _Numbers
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
    pair = _pair(rows_a, rows_b, names)
    low, high = _RANGE[metric]
    within = (low - high, high - low)
    field = pair.a.values(metric) - pair.b.values(metric)  # a lone seed is spread over the other's
    strata, kinds = pair.a.masks(), _masks(pair.a.kinds)
    drawn = _draw_charts([field], [*strata.values(), *kinds.values()], pair.a, resampling)
    each = [
        _interval(drawn, [_Term(1.0, 0, i)], resampling, within)
        for i in range(len(strata) + len(kinds))
    ]
    mixtures = _mixtures(drawn, 0, list(strata), look_shares, resampling, within)
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
    pair = _pair(arm, reference, names)
    right, right_before = pair.a.values("accuracy"), pair.b.values("accuracy")
    fields = [right * (1 - right_before), (1 - right) * right_before]
    strata = pair.a.masks()
    drawn = _draw_charts(fields, list(strata.values()), pair.a, resampling)
    gain, harm = (
        [
            _interval(drawn, [_Term(1.0, field, i)], resampling, (0.0, 1.0))
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
    pair: _Pair, whole: str, masks: Mapping[str, _Mask], intervals: Sequence[Interval | None]
) -> dict[str, Difference]:
    """`whole`: why the arms can't be compared anywhere; empty if they can."""
    return {
        name: _judge(pair, whole or pair.unscored(mask), interval)
        for (name, mask), interval in zip(masks.items(), intervals, strict=True)
    }


def _judge(pair: _Pair, unscored: str, interval: Interval | None) -> Difference:
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
