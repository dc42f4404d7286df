"""What is found of an arm and of a pair of arms, and its form in `ladder.json`.

Invariant: an interval is written as [estimate, low, high], a difference that can't be had as the
sentence why; strata, kinds and shares stand in sorted order.

Left out on purpose: computing what is found (`saccade.ladder.figures.statistics` does).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from saccade.evaluate import ALL, Interval, Metric
from saccade.ladder.figures.draws import Resampling

__all__ = ["ArmFigures", "Difference", "Differences", "GainAndHarm", "SeedFigures"]


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
