"""The rows of an arm on one split as a table, and two arms side by side.

Invariant: the order of rows is never seen; all seeds of an arm, and both arms of a pair, answer the
same samples. A sample's own value is the mean over its rollouts.

Left out on purpose: files, and means over samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from saccade.evaluate import ALL, MAX_UNSCORED, VALUES, Metric, SampleRow, weight_of

__all__ = [
    "ArmPair",
    "ArmRows",
    "Field",
    "Mask",
    "Numbers",
    "RowTable",
    "arm_pair",
    "masks_of",
    "row_table",
]

ArmRows = Mapping[int, Sequence[SampleRow]]
"""Rows of one split by seed; an arm that is not trained has one key."""

Numbers = NDArray[np.float64]
Mask = NDArray[np.bool_]


class Field(NamedTuple):
    """A figure of each sample at each seed, (samples, seeds), and what it counts in a mean."""

    values: Numbers
    """NaN where a sample has none."""
    weights: Numbers


@dataclass(frozen=True, slots=True)
class RowTable:
    """The rows of an arm: samples in the order of their ids down, seeds in theirs across."""

    ids: tuple[str, ...]
    strata: tuple[str, ...]
    kinds: tuple[str, ...]
    clusters: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[tuple[tuple[SampleRow, ...], ...], ...]
    """Rollouts, by sample and seed."""

    def values(self, metric: Metric) -> Field:
        """Means over the rollouts that have the metric, by their weights."""
        value, weight = VALUES[metric], weight_of(metric)
        values = np.full((len(self.ids), len(self.seeds)), np.nan)
        weights = np.ones_like(values)
        for i, across in enumerate(self.cells):
            for j, rollouts in enumerate(across):
                have = [(v, weight(r)) for r in rollouts if (v := value(r)) is not None]
                if have:
                    total = sum(w for _, w in have)
                    values[i, j] = sum(v * w for v, w in have) / total
                    weights[i, j] = total / len(have)
        return Field(values, weights)

    def masks(self) -> dict[str, Mask]:
        """(samples,) by stratum, `all` first."""
        every = np.ones(len(self.ids), dtype=bool)
        return {ALL: every} | masks_of(self.strata)

    def cluster_numbers(self) -> tuple[NDArray[np.intp], int]:
        """(samples,) number of each sample's chart, and how many charts there are."""
        names, numbers = np.unique(np.array(self.clusters), return_inverse=True)
        return numbers.reshape(-1), len(names)

    def too_many_unscored(self, name: str, mask: Mask | None = None) -> str:
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


def masks_of(names: Sequence[str]) -> dict[str, Mask]:
    """(samples,) by name, in sorted order; the empty name has none."""
    column = np.array(names)
    return {name: column == name for name in sorted(set(names) - {""})}


def row_table(arm: ArmRows, name: str) -> RowTable:
    """The rows of an arm in order; `name` is for messages.

    Raises ValueError where the arm or a seed has no rows, a row stands twice, seeds answer
    different samples, or rows of a sample differ in what they say of it.
    """
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
    return RowTable(tuple(first), strata, kinds, clusters, seeds, cells)


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


class ArmPair(NamedTuple):
    """Two arms side by side."""

    a: RowTable
    b: RowTable
    names: tuple[str, str]

    @property
    def seeds(self) -> tuple[int, int]:
        return len(self.a.seeds), len(self.b.seeds)

    def unscored(self, mask: Mask | None = None) -> str:
        """Why the arms can't be compared; empty if they can."""
        return self.a.too_many_unscored(self.names[0], mask) or self.b.too_many_unscored(
            self.names[1], mask
        )


def arm_pair(rows_a: ArmRows, rows_b: ArmRows, names: tuple[str, str]) -> ArmPair:
    """Two arms whose samples are the same, and whose seeds are unless one of them has a single one.

    Raises ValueError where they are not.
    """
    a, b = row_table(rows_a, names[0]), row_table(rows_b, names[1])
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
    return ArmPair(a, b, names)


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
