"""From finished episodes to figures: accuracy, tool use and gaze, each with a 95% interval.

Invariant: every episode counts. What could not be read, was cut off or failed by our doing is wrong
in the accuracy and counted by its cause; a figure that does not apply is None or missing, never 0;
runs of which more than 1% is unscored are not compared. Intervals are percentile bootstraps that
draw whole clusters: a sample with all its rollouts, or the samples that share a picture, where the
task says so in their `meta`.
Left out on purpose: running episodes, reading and writing files.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError

from saccade.coverage import overlap
from saccade.errors import DataError
from saccade.geometry import Frame
from saccade.grounding_figures import Grounding, grounding_of
from saccade.rewards import Rubric
from saccade.rewards.answers import SCORER_VERSION, judged, lenient, strict
from saccade.tasks import CLUSTER
from saccade.types import Episode, ImageRef, Outcome, StopReason

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "ALL",
    "MAX_UNSCORED",
    "VALUES",
    "WEIGHTS",
    "Comparison",
    "Interval",
    "Metric",
    "SampleRow",
    "Summary",
    "format_table",
    "mean_interval",
    "paired",
    "results_json",
    "row_of",
    "summarise",
    "weight_of",
]

ALL = "all"
MAX_UNSCORED = 0.01
"""Share of unscored episodes above which runs are not compared."""

Failure = Literal["", "unscored", "truncated", "extraction_failed"]
GroundingMetric = Literal[
    "f1",
    "mean_iou",
    "recall_iou",
    "union_iou",
    "union_iou_unscaled",
    "agreement",
    "agreement_random",
    "on_nothing",
    "acc_at_0_5",
    "boxes",
    "invalid",
    "specks",
    "wholes",
    "redundant",
    "cut",
    "changed",
    "lost",
    "right_before",
    "right_after",
]
Metric = (
    Literal["accuracy", "lenient", "coverage", "tightness", "calls", "completion_tokens"]
    | GroundingMetric
)


class Interval(NamedTuple):
    """An estimate with its 95% interval; None at both ends where one cluster is all there is."""

    estimate: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class SampleRow:
    """What one episode of an evaluation came to; one line of the per-sample file."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False
    )

    id: str
    rollout: int
    kind: str
    stratum: str
    cluster: str
    """Samples of one cluster are drawn together; the sample's id where the task names none."""
    answer: str | None
    """As extracted for scoring; None where there was none."""
    strict: bool | None
    """Right by the strict rule; None where the episode is unscored."""
    lenient: bool | None
    reward: float | None
    """Of the task's rubric."""
    stop: StopReason
    scored: bool
    """False where the end was our doing, or the rubric could not say."""
    calls: dict[str, int]
    """Well-formed calls by tool."""
    completion_tokens: int | None
    """None from engines without ids."""
    coverage: float | None
    tightness: float | None
    seconds: float
    image_tokens: int | None = None
    """Of all pictures in the sequence, the question's included; None from engines without ids, and
    in rows from before it was counted.
    """
    gold: str = ""
    """The right answer."""
    choices: int | None = None
    """Answers that a guess would draw from, where the task says it."""
    scorer: int = 1
    """Version of the rules that judged; the first one where a row does not say it."""
    before: str | None = None
    """The answer to the same question before a control changed something; None where none did."""
    grounding: Grounding | None = None
    """What the boxes in its thoughts came to; None where nobody asked for any."""
    named: tuple[tuple[int, float, float, float, float], ...] | None = None
    """These boxes: number of the question's picture, corners in its pixels; None as above."""

    def __post_init__(self) -> None:
        if self.stratum == ALL:
            raise ValueError(f"Stratum {ALL!r} of sample {self.id!r} is taken; name it otherwise.")
        if (self.strict is None) == self.scored or (self.lenient is None) == self.scored:
            raise ValueError(f"Row {self.id!r} needs verdicts if it is scored, and none if not.")

    @property
    def failure(self) -> Failure:
        """Why there is no answer to judge; exactly one cause, or none."""
        if not self.scored:
            return "unscored"
        if self.stop is not StopReason.ANSWERED:
            return "truncated"
        return "extraction_failed" if self.answer is None else ""

    def to_json(self) -> dict[str, Any]:
        """As JSON values; `from_json` reads it back."""
        found = {**asdict(self), "stop": self.stop.value}
        later = ("before", "grounding", "named")  # rows of earlier versions are without
        return {k: v for k, v in found.items() if k not in later or v is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SampleRow:
        """Raises DataError, naming the field, for what `to_json` did not write."""
        try:
            return _row_adapter().validate_json(json.dumps(dict(data)))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(p) for p in first["loc"]) or "row"
            raise DataError(
                f"A line of per-sample results can't be read ({where}: {first['msg']}); "
                "remove it and evaluate again."
            ) from None


@lru_cache(maxsize=1)
def _row_adapter() -> TypeAdapter[SampleRow]:
    return TypeAdapter(SampleRow)


def row_of(
    episode: Episode,
    rubric: Rubric,
    *,
    tokens_of: Callable[[ImageRef], int] | None = None,
    grounded_in: Callable[[ImageRef], Frame] | None = None,
    before: Episode | None = None,
) -> SampleRow:
    """The row of a finished episode; `tokens_of` says what a picture costs in the sequence,
    `grounded_in` in which frame the model writes the boxes of its thoughts, where they count,
    `before` is the episode that a control changed.

    Raises ValueError where it has not ended.
    """
    if episode.stop is None:
        raise ValueError(f"Episode of sample {episode.sample.id!r} has not ended.")
    sample = episode.sample
    is_ours = episode.stop.outcome is Outcome.OURS
    reward = None if is_ours else rubric.score(episode).value
    # The model's own failure to finish is wrong, whatever the rubric says of it.
    scored = not is_ours and (reward is not None or episode.stop is not StopReason.ANSWERED)
    answer = judged(sample.answer, episode.answer)
    gaze = None if is_ours else overlap(sample.evidence, episode.gaze)
    image_tokens = None
    if episode.segments and tokens_of is not None:
        image_tokens = sum(tokens_of(i) for s in episode.segments for i in s.images)
    told = dict(sample.meta)
    return SampleRow(
        id=sample.id,
        rollout=episode.rollout_index,
        kind=sample.kind,
        stratum=sample.stratum,
        cluster=told.get(CLUSTER, sample.id),
        answer=answer,
        strict=(answer is not None and strict(sample.answer, answer)) if scored else None,
        lenient=(answer is not None and lenient(sample.answer, answer)) if scored else None,
        reward=reward,
        stop=episode.stop,
        scored=scored,
        calls=dict(Counter(call.name for call in episode.calls)),
        completion_tokens=episode.completion_tokens if episode.segments else None,
        coverage=gaze.coverage if gaze else None,
        tightness=gaze.tightness if gaze else None,
        seconds=episode.seconds,
        image_tokens=image_tokens,
        gold=sample.answer,
        choices=int(told["choices"]) if told.get("choices", "").isdecimal() else None,
        scorer=SCORER_VERSION,
        before=None if before is None else judged(sample.answer, before.answer) or "",
        grounding=None
        if grounded_in is None or is_ours
        else grounding_of(episode, frame=grounded_in),
        named=None if grounded_in is None or is_ours else _named(episode),
    )


def _named(episode: Episode) -> tuple[tuple[int, float, float, float, float], ...]:
    """The boxes of its thoughts on the question's pictures."""
    images = episode.sample.images
    return tuple(
        (images.index(n.image), n.box.x0, n.box.y0, n.box.x1, n.box.y1)
        for turn in episode.turns
        for n in turn.named
        if n.image in images
    )


# --- figures --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Summary:
    """One arm of an evaluation.

    Figures by stratum also have the key `all`; where a figure does not apply, its key is missing.
    """

    n: int
    """Episodes."""
    accuracy: dict[str, Interval]
    """Strict, over all episodes: what could not be scored is wrong."""
    accuracy_scored: dict[str, Interval]
    """Strict, over the scored episodes alone; to be read beside `accuracy`, never instead of it."""
    lenient: dict[str, Interval]
    kinds: dict[str, Interval]
    """Strict accuracy by kind of question."""
    calls: float
    """Well-formed tool calls for each episode."""
    calls_by_tool: dict[str, float]
    """The same by tool; they sum to `calls`."""
    completion_tokens: float | None
    """For each episode whose engine has ids; None without any."""
    coverage: dict[str, Interval]
    """Share of the evidence that was looked at, over the samples with evidence."""
    tightness: dict[str, Interval]
    """Share of what was looked at that is evidence, over the episodes that looked."""
    unscored: int
    extraction_failed: int
    truncated: int
    seconds: float
    """Mean over episodes; those that ran side by side overlap."""
    image_tokens: float | None = None
    """For each episode of which it is known; None without any."""
    grounding: dict[GroundingMetric, dict[str, Interval]] = field(default_factory=dict)
    """What boxes in thoughts came to, by figure and stratum; empty where nobody asked for any."""
    changed_kinds: dict[str, Interval] = field(default_factory=dict)
    """Share of answers that a control changed, by kind; empty without a control."""

    def to_json(self) -> dict[str, Any]:
        """An arm of `results.json`: intervals as [estimate, low, high]."""
        return {
            "n": self.n,
            "accuracy": _lists(self.accuracy),
            "accuracy_scored": _lists(self.accuracy_scored),
            "lenient": _lists(self.lenient),
            "kinds": _lists(self.kinds),
            "calls": self.calls,
            "calls_by_tool": self.calls_by_tool,
            "completion_tokens": self.completion_tokens,
            "image_tokens": self.image_tokens,
            "coverage": _lists(self.coverage),
            "tightness": _lists(self.tightness),
            "unscored": self.unscored,
            "extraction_failed": self.extraction_failed,
            "truncated": self.truncated,
            "seconds": self.seconds,
            **({"grounding": _by_name(self.grounding)} if self.grounding else {}),
            **({"changed_kinds": _lists(self.changed_kinds)} if self.changed_kinds else {}),
        }


def _by_name(
    figures: Mapping[GroundingMetric, Mapping[str, Interval]],
) -> dict[str, dict[str, list[float | None]]]:
    return {metric: _lists(intervals) for metric, intervals in figures.items()}


def _lists(intervals: Mapping[str, Interval]) -> dict[str, list[float | None]]:
    return {name: list(interval) for name, interval in intervals.items()}


def summarise(rows: Sequence[SampleRow], *, bootstrap: int = 10_000, seed: int = 0) -> Summary:
    """All figures of one arm. The same rows in another order give the same figures.

    Raises ValueError without rows, or where an episode stands twice.
    """
    _refuse_twice(rows)
    if not rows:
        raise ValueError("There are no rows to summarise; evaluate at least one sample.")

    # One order for all sums: floating point must not see in which order episodes ended.
    rows = sorted(rows, key=lambda r: (r.id, r.rollout))

    def by_stratum(metric: Metric, among: Sequence[SampleRow] = rows) -> dict[str, Interval]:
        named = {name: _of(among, name) for name in _strata(among)}
        found = {s: _interval(r, metric, bootstrap, seed) for s, r in named.items()}
        return {name: interval for name, interval in found.items() if interval}

    kinds = {k: [r for r in rows if r.kind == k] for k in sorted({r.kind for r in rows} - {""})}
    by_kind, changed = (
        {k: _interval(r, metric, bootstrap, seed) for k, r in kinds.items()} for metric in _BY_KIND
    )
    tools: Counter[str] = Counter()
    for row in rows:
        tools.update(row.calls)
    tokens = [r.completion_tokens for r in rows if r.completion_tokens is not None]
    pictures = [r.image_tokens for r in rows if r.image_tokens is not None]
    failures = Counter(row.failure for row in rows)
    return Summary(
        n=len(rows),
        accuracy=by_stratum("accuracy"),
        accuracy_scored=by_stratum("accuracy", [r for r in rows if r.scored]),
        lenient=by_stratum("lenient"),
        kinds={kind: interval for kind, interval in by_kind.items() if interval},
        calls=tools.total() / len(rows),
        calls_by_tool={name: count / len(rows) for name, count in sorted(tools.items())},
        completion_tokens=sum(tokens) / len(tokens) if tokens else None,
        coverage=by_stratum("coverage"),
        tightness=by_stratum("tightness"),
        unscored=failures["unscored"],
        extraction_failed=failures["extraction_failed"],
        truncated=failures["truncated"],
        seconds=sum(r.seconds for r in rows) / len(rows),
        image_tokens=sum(pictures) / len(pictures) if pictures else None,
        grounding={m: found for m in get_args(GroundingMetric) if (found := by_stratum(m))},
        changed_kinds={kind: interval for kind, interval in changed.items() if interval},
    )


_BY_KIND: tuple[Metric, Metric] = ("accuracy", "changed")


def _of_grounding(name: str) -> Callable[[SampleRow], float | None]:
    """A figure of its boxes; None where there is none."""

    def value(row: SampleRow) -> float | None:
        found = None if row.grounding is None else getattr(row.grounding, name)
        return None if found is None else float(found)

    return value


VALUES: dict[Metric, Callable[[SampleRow], float | None]] = {
    "accuracy": lambda row: float(row.strict or False),
    "lenient": lambda row: float(row.lenient or False),
    "coverage": lambda row: row.coverage,
    "tightness": lambda row: row.tightness,
    "calls": lambda row: float(sum(row.calls.values())),
    "completion_tokens": lambda row: row.completion_tokens,
    "f1": _of_grounding("f1"),
    "mean_iou": _of_grounding("mean_iou"),
    "recall_iou": _of_grounding("recall_iou"),
    "union_iou": _of_grounding("union_iou"),
    "union_iou_unscaled": _of_grounding("union_iou_unscaled"),
    "agreement": _of_grounding("agreement"),
    "agreement_random": _of_grounding("agreement_random"),
    "on_nothing": _of_grounding("on_nothing"),
    "acc_at_0_5": lambda row: _right_and_found(row),
    "boxes": _of_grounding("boxes"),
    "invalid": lambda row: _share_of_boxes(row, "invalid"),
    "specks": lambda row: _share_of_boxes(row, "specks"),
    "wholes": lambda row: _share_of_boxes(row, "wholes"),
    "redundant": lambda row: _share_of_boxes(row, "redundant"),
    "cut": lambda row: _share_of_boxes(row, "cut"),
    "changed": lambda row: _changed(row),
    "lost": lambda row: _lost(row),
    "right_before": lambda row: _right_before(row),
    "right_after": lambda row: None if row.before is None else float(row.strict or False),
}


WEIGHTS: dict[Metric, Callable[[SampleRow], float]] = dict.fromkeys(
    ("invalid", "specks", "wholes", "redundant", "cut"),
    lambda row: float(row.grounding.boxes if row.grounding else 0),
)
"""What an episode counts in a mean, where that is not 1: shares of boxes are over all boxes, as
they are while a model is trained, and not means of the shares of episodes."""


def weight_of(metric: Metric) -> Callable[[SampleRow], float]:
    """What an episode that has the metric counts in its mean."""
    return WEIGHTS.get(metric, lambda row: 1.0)


def _changed(row: SampleRow) -> float | None:
    """Whether a control changed the answer to another one; None where it had nothing to change, or
    where there was no answer before or after.
    """
    if not row.before or not row.answer:
        return None
    return float(not strict(row.before, row.answer))


def _lost(row: SampleRow) -> float | None:
    """Whether a control left no answer where there was one; None where it had nothing to change."""
    return None if not row.before else float(not row.answer)


def _right_before(row: SampleRow) -> float | None:
    """Whether the answer was right before a control changed something; None where it had nothing to
    change. Beside `right_after`, over the same items: in `accuracy` those with nothing to change
    stand as they were, and make a drop look smaller than it is.
    """
    return None if row.before is None else float(strict(row.gold, row.before))


def _right_and_found(row: SampleRow) -> float | None:
    """Right, with a mean IoU of at least 0.5; None without evidence."""
    if row.grounding is None or row.grounding.mean_iou is None:
        return None
    return float(bool(row.strict) and row.grounding.mean_iou >= 0.5)


def _share_of_boxes(
    row: SampleRow, what: Literal["invalid", "specks", "wholes", "redundant", "cut"]
) -> float | None:
    """Of the boxes of an episode; None where it wrote none."""
    if row.grounding is None or not row.grounding.boxes:
        return None
    return float(getattr(row.grounding, what)) / row.grounding.boxes


def _strata(rows: Iterable[SampleRow]) -> list[str]:
    return [ALL, *sorted({r.stratum for r in rows} - {""})]


def _of(rows: Sequence[SampleRow], stratum: str) -> list[SampleRow]:
    return [r for r in rows if stratum in (ALL, r.stratum)]


def _refuse_twice(rows: Iterable[SampleRow]) -> None:
    for (sample_id, rollout), count in Counter((r.id, r.rollout) for r in rows).items():
        if count > 1:
            raise ValueError(f"Rollout {rollout} of sample {sample_id!r} stands in {count} rows.")


def _interval(
    rows: Iterable[SampleRow], metric: Metric, bootstrap: int, seed: int
) -> Interval | None:
    """Mean over the rows that have the metric, by their weight; None where no row has it."""
    value, weight = VALUES[metric], weight_of(metric)
    clusters: dict[str, tuple[float, float]] = {}
    for row in rows:
        if (v := value(row)) is not None:
            total, count = clusters.get(row.cluster, (0.0, 0.0))
            clusters[row.cluster] = (total + weight(row) * v, count + weight(row))
    return _bootstrap(list(clusters.values()), bootstrap, seed) if clusters else None


def mean_interval(values: Sequence[float], *, resamples: int, seed: int) -> Interval:
    """Mean of values that do not depend on each other, with its 95% bootstrap interval. Raises
    ValueError without any.
    """
    if not values:
        raise ValueError("There is no mean of no values.")
    return _bootstrap([(v, 1) for v in values], resamples, seed)


_ALIKE = 64
"""With so few different clusters it is faster to draw how often each of them comes."""


def _bootstrap(clusters: Sequence[tuple[float, ...]], resamples: int, seed: int) -> Interval:
    """Ratio of the sums of (total, count) pairs, or the difference of two such ratios, with its
    interval when whole clusters are drawn.

    Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    table = np.array(sorted(clusters), dtype=float)  # (clusters, 2 or 4); order must not matter
    estimate = float(_ratio(table.sum(axis=0)))
    number = len(table)
    if number < 2:
        return Interval(estimate, None, None)
    rng = np.random.default_rng(seed)
    kinds, times = np.unique(table, axis=0, return_counts=True)
    if len(kinds) <= _ALIKE:
        drawn = (
            rng.multinomial(number, times / number, size=resamples) @ kinds
        )  # (resamples, 2 or 4)
    else:
        drawn = np.empty((resamples, table.shape[1]))
        chunk = max(1, 2_000_000 // number)  # some 16 MB of indices at a time
        for start in range(0, resamples, chunk):
            size = (min(chunk, resamples - start), number)
            drawn[start : start + chunk] = table[rng.integers(number, size=size)].sum(axis=1)
    low, high = np.quantile(_ratio(drawn), [0.025, 0.975])
    return Interval(estimate, float(low), float(high))


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each row of sums (..., 2): total over count; of (..., 4): the difference of two."""
    ratios = sums[..., 0::2] / sums[..., 1::2]
    found: NDArray[np.float64] = ratios[..., 0] - ratios[..., 1:].sum(axis=-1)
    return found


# --- comparisons ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arm a minus arm b on the samples that both have."""

    a: str
    b: str
    stratum: str
    metric: Metric
    difference: Interval | None
    reason: str = ""
    """Why there is no difference to print; empty where there is one."""

    def __post_init__(self) -> None:
        if (self.difference is None) != bool(self.reason):
            raise ValueError("Comparison needs a difference or a reason why there is none.")

    def to_json(self) -> dict[str, Any]:
        difference = None if self.difference is None else list(self.difference)
        return {**asdict(self), "difference": difference}


def paired(
    rows_a: Sequence[SampleRow],
    rows_b: Sequence[SampleRow],
    *,
    stratum: str = ALL,
    metric: Metric = "accuracy",
    names: tuple[str, str] = ("a", "b"),
    bootstrap: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """Mean difference over shared sample ids, with the interval of the paired bootstrap.

    A sample's figure is the mean over its rollouts, and what it counts in a share of boxes is their
    number. There is a sentence and no difference where
    more than 1% of either run (whole or in the stratum) is unscored, or fewer than two clusters are
    shared. Raises ValueError where an episode stands twice.
    """
    means: list[dict[str, tuple[str, float, float]]] = []
    for name, rows in zip(names, (rows_a, rows_b), strict=True):
        _refuse_twice(rows)
        for part in (rows, _of(rows, stratum)):
            unscored = sum(not r.scored for r in part)
            if unscored > MAX_UNSCORED * len(part):
                share = f"{unscored} of {len(part)} episodes of {name} are unscored"
                reason = f"{share}, above {MAX_UNSCORED:.0%}: repair and evaluate them again."
                return Comparison(*names, stratum, metric, None, reason)
        means.append(_sample_means(_of(rows, stratum), metric))
    first, second = means
    clusters: dict[str, tuple[float, ...]] = {}
    for sample_id in sorted(first.keys() & second.keys()):
        cluster, *a = first[sample_id]
        _, *b = second[sample_id]
        sums = clusters.get(cluster, (0.0,) * 4)
        clusters[cluster] = tuple(old + new for old, new in zip(sums, (*a, *b), strict=True))
    if len(clusters) < 2:
        reason = f"{len(clusters)} independent samples have this figure in both; at least 2 must."
        return Comparison(*names, stratum, metric, None, reason)
    difference = _bootstrap(list(clusters.values()), bootstrap, seed)
    return Comparison(*names, stratum, metric, difference)


def _sample_means(rows: Iterable[SampleRow], metric: Metric) -> dict[str, tuple[str, float, float]]:
    """(cluster, weighted mean over rollouts times weight, weight) by sample id, for the samples
    that have the metric. The weight is that of a rollout, in the mean.
    """
    value, weight = VALUES[metric], weight_of(metric)
    found: dict[str, tuple[str, list[tuple[float, float]]]] = {}
    for row in sorted(rows, key=lambda r: r.rollout):
        if (v := value(row)) is not None:
            found.setdefault(row.id, (row.cluster, []))[1].append((v * weight(row), weight(row)))
    return {
        key: (cluster, *(sum(column) / len(each) for column in zip(*each, strict=True)))
        for key, (cluster, each) in found.items()
    }


# --- output ---------------------------------------------------------------------------------------


def results_json(arms: Mapping[str, Summary], pairs: Iterable[Comparison]) -> dict[str, Any]:
    """The content of `results.json`: figures by arm and comparisons between arms."""
    return {
        "scorer": SCORER_VERSION,
        "arms": {name: summary.to_json() for name, summary in arms.items()},
        "pairs": [pair.to_json() for pair in pairs],
    }


def format_table(results: Mapping[str, Any]) -> Table:
    """The table of `results_json`, one column for each arm; comparisons stand below it."""
    from rich.table import Table
    from rich.text import Text

    arms: Mapping[str, Mapping[str, Any]] = results["arms"]
    table = Table(title="Accuracy is strict, with 95% intervals; unscored counts as wrong")
    table.add_column("")
    for name in arms:
        table.add_column(Text(name), justify="right")

    def line(head: str, cells: Iterable[str]) -> None:
        table.add_row(Text(head), *(Text(cell) for cell in cells))

    def by_stratum(key: str) -> None:
        for stratum in dict.fromkeys(s for arm in arms.values() for s in arm[key]):
            line(f"{key} {stratum}", (_cell(arm[key].get(stratum)) for arm in arms.values()))

    line("episodes", (str(arm["n"]) for arm in arms.values()))
    by_stratum("accuracy")
    line("all without unscored", (_cell(arm["accuracy_scored"].get(ALL)) for arm in arms.values()))
    for key in ("lenient", "coverage", "tightness"):
        by_stratum(key)
    for metric in dict.fromkeys(m for arm in arms.values() for m in arm.get("grounding", {})):
        of_arms = [arm.get("grounding", {}).get(metric, {}) for arm in arms.values()]
        for stratum in dict.fromkeys(s for found in of_arms for s in found):
            line(f"{metric} {stratum}", (_cell(found.get(stratum)) for found in of_arms))
    for kind in dict.fromkeys(k for arm in arms.values() for k in arm.get("changed_kinds", {})):
        cells = (_cell(arm.get("changed_kinds", {}).get(kind)) for arm in arms.values())
        line(f"changed, {kind}", cells)
    each = (("calls", 2), ("completion_tokens", 1), ("image_tokens", 1), ("seconds", 2))
    for key, digits in each:
        cells = (_number(arm.get(key), digits) for arm in arms.values())
        line(f"{key.replace('_', ' ')} each", cells)
    for key in ("extraction_failed", "truncated", "unscored"):
        line(key.replace("_", " "), (str(arm[key]) for arm in arms.values()))
    pairs = [_line(pair) for pair in results["pairs"]]
    table.caption = Text("\n".join(pairs)) if pairs else None
    return table


def _line(pair: Mapping[str, Any]) -> str:
    what = f"{pair['a']} - {pair['b']}, {pair['metric']} on {pair['stratum']}: "
    if pair["difference"] is None:
        return what + f"no comparison: {pair['reason']}"
    estimate, low, high = pair["difference"]
    return what + f"{estimate:+.3f} [{low:+.3f}, {high:+.3f}]"


def _cell(interval: Sequence[float | None] | None) -> str:
    if interval is None:
        return "-"
    estimate, low, high = interval
    return _number(estimate, 3) + ("" if low is None else f" [{low:.3f}, {high:.3f}]")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
