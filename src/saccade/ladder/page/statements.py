"""The things that a ladder must show, and which of them it shows.

Invariant: a statement without its figure is never met; one that no arm can decide does not apply.

Left out on purpose: corrections for the number of comparisons.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from saccade.ladder.page.results import (
    OBSERVATION,
    accuracy_pairs,
    arm_names,
    at,
    figures_of,
    is_about_looking,
    is_trained,
    list_of,
    pairs_of,
)
from saccade.report import interval_of, number_of, signed

__all__ = ["Statement", "interval_text", "statements"]

SWAPPED_POINTS = 30.0
BLACK_POINTS = 20.0
EASY_POINTS = -3.0
MORE_CALLS = 0.5
LOOK_PER_CENT = 80.0

_NO_FIGURE = "the ladder holds no such figure"

Verdict = (
    Literal["met", "met by the estimate alone", "missed", "not decided"]
    | Literal["not known", "does not apply"]
)


class Statement(NamedTuple):
    """One of the things that a ladder must show, and what it found."""

    claim: str
    found: str
    """The estimate with its interval, or why there is none; empty where it does not apply."""
    verdict: Verdict
    whole: bool | None = None
    """Whether all of the 95% interval is on the right side; None without an interval."""


def statements(results: Mapping[str, Any], split: str) -> tuple[Statement, ...]:
    """What the ladder of this content of `ladder.json` must show, on one split: the claims of its
    recipe, or, without any, what a ladder of items that need a look and items that don't must.

    A claim is met where the whole interval is on its side of the bound; one that loses nothing
    (`not_below`) is missed where the whole interval is on the other side, and else not decided. The
    largest of all checkpoints is a plain number, which decides by itself.
    """
    if claims := list_of(results.get("claims")):
        return tuple(s for claim in claims for s in _claimed(results, split, claim))
    if not is_about_looking(results, split):
        return ()
    return _of_looking(results, split)


def _claimed(
    results: Mapping[str, Any], split: str, claim: Mapping[str, Any]
) -> Iterator[Statement]:
    """A claim of the recipe, for each arm that it compares with and each stratum or kind."""
    arm, metric = str(at(claim, "arm") or results.get("tested")), str(at(claim, "metric"))
    if at(claim, "at_checkpoints"):
        yield _at_checkpoints(list_of(at(results, "arms", arm, "checkpoints")), arm, metric, claim)
        return
    if kinds := list_of(at(claim, "kinds")):
        for kind in map(str, kinds):
            value = at(figures_of(results, split, arm), "by_kind", metric, kind)
            yield _claim(f"{metric} of {arm}, of {kind}", value, claim, is_difference=False)
        return
    for below in list_of(at(claim, "above")) or [""]:
        for stratum in map(str, list_of(at(claim, "strata"))):
            if below:
                pair = pairs_of(results, split, metric).get((arm, below))
                value = at(pair, "by_stratum", stratum)
                told = f"{metric} of {arm} above {below}"
            else:
                value = at(figures_of(results, split, arm), "by_stratum", metric, stratum)
                told = f"{metric} of {arm}"
            yield _claim(f"{told}, on {stratum}", value, claim, is_difference=bool(below))


def _at_checkpoints(rows: list[Any], arm: str, metric: str, claim: Mapping[str, Any]) -> Statement:
    """Of the largest share of all validations. One without a box has none: what it would have been
    is not known, unless another one is beyond the bound already.
    """
    with_boxes = [row for row in rows if number_of(at(row, metric)) is not None]
    shares = [v for row in with_boxes if (v := number_of(at(row, metric))) is not None]
    told = f"{metric} of {arm}, the largest of {len(rows)} validations while it was trained"
    items = [n for row in rows if (n := number_of(at(row, "items"))) is not None]
    if items and len(items) == len(rows):
        told += f" ({sum(items):,.0f} answers to {max(items):,.0f} items)"
    if without := len(rows) - len(with_boxes):
        told += f", {without} of which have no box"
    key, bound, told = _bounded_by(claim, told, is_difference=False)
    if not shares:
        return Statement(told, _NO_FIGURE, "not known")
    found = interval_text([max(shares), None, None], is_difference=False)
    if not _BOUNDS[key].holds(max(shares), bound):
        return Statement(told, found, "missed")
    return Statement(told, found, "not known" if without else "met")


def _claim(told: str, value: Any, claim: Mapping[str, Any], *, is_difference: bool) -> Statement:
    key, bound, told = _bounded_by(claim, told, is_difference=is_difference)
    estimate, low, high = interval_of(value)
    if estimate is None:
        return Statement(told, _reason(value), "not known")
    found = interval_text(value, is_difference=is_difference)
    kind = _BOUNDS[key]
    last, other = (low, high) if kind.end == "low" else (high, low)
    whole = None if last is None else kind.holds(last, bound)
    if whole:
        return Statement(told, found, "met", True)
    if key == "not_below":
        undecided = other is None or kind.holds(other, bound)
        return Statement(told, found, "not decided" if undecided else "missed", whole)
    if kind.holds(estimate, bound):
        return Statement(told, found, "met by the estimate alone", whole)
    return Statement(told, found, "missed", whole)


def _bounded_by(
    claim: Mapping[str, Any], told: str, *, is_difference: bool
) -> tuple[str, float, str]:
    """The bound of a claim, and the claim in words with it."""
    key, bound = next((k, b) for k in _BOUNDS if (b := number_of(at(claim, k))) is not None)
    unit = "points" if is_difference else "%"
    return key, bound, f"{told}: {_BOUNDS[key].words} {100 * bound:g} {unit}"


class _Bound(NamedTuple):
    words: str
    end: Literal["low", "high"]
    """Which end of the interval must hold it."""
    holds: Callable[[float, float], bool]


_BOUNDS: dict[str, _Bound] = {
    "more_than": _Bound("more than", "low", lambda share, bound: share > bound),
    "at_least": _Bound("at least", "low", lambda share, bound: share >= bound - 1e-9),
    "less_than": _Bound("less than", "high", lambda share, bound: share < bound),
    "not_below": _Bound("surely above", "low", lambda share, bound: share > bound),
}


def _of_looking(results: Mapping[str, Any], split: str) -> tuple[Statement, ...]:
    """The first one is met where the lower end of every paired interval is above 0, the others
    where the whole interval reaches the bound.
    """
    tested, reference = str(results.get("tested")), str(results.get("reference"))
    arms = arm_names(results) if tested in arm_names(results) else []
    pairs = accuracy_pairs(results, split)
    figures = figures_of(results, split, tested)

    def against(arm: str, stratum: str) -> Any:
        return at(pairs.get((tested, arm)), "by_stratum", stratum)

    def observing(kind: str) -> list[str]:
        return [a for a in arms if at(results, "arms", a, "settings", OBSERVATION) == kind]

    swapped = [arm for arm in observing("swapped") if arm != tested]
    black = [
        arm
        for arm in observing("black")
        if at(results, "arms", arm, "start") == tested and not is_trained(results, arm)
    ]
    return (
        _above_all(results, split),
        *(
            _bounded(
                f"{tested} at least {SWAPPED_POINTS:g} points above {arm or 'swapped views'}, "
                "on look",
                against(arm, "look"),
                least=SWAPPED_POINTS,
                applies=bool(arm),
            )
            for arm in swapped or [""]
        ),
        _bounded(
            f"{tested} within {-EASY_POINTS:g} points of {reference} or better, on easy",
            against(reference, "easy"),
            least=EASY_POINTS,
            applies=reference in arms and reference != tested,
        ),
        _bounded(
            f"at least {MORE_CALLS:g} more calls of {tested} for a sample of look than of easy",
            at(figures, "adaptive_calls"),
            least=MORE_CALLS,
            scale=1.0,
            digits=2,
            applies=bool(arms),
        ),
        *(
            _bounded(
                f"blacking out the views costs at least {BLACK_POINTS:g} points, on look"
                + (f" ({arm})" if arm else ""),
                against(arm, "look"),
                least=BLACK_POINTS,
                applies=bool(arm),
            )
            for arm in black or [""]
        ),
        _bounded(
            f"{tested} right in at least {LOOK_PER_CENT:g}% of look",
            at(figures, "by_stratum", "accuracy", "look"),
            least=LOOK_PER_CENT,
            is_difference=False,
            applies=bool(arms),
        ),
    )


def _above_all(results: Mapping[str, Any], split: str) -> Statement:
    """Whether the tested arm is above every other one trained from its demonstrations, on look."""
    tested = str(results.get("tested"))
    claim = f"{tested} above every other arm that starts from the same demonstrations, on look"

    def lowest(arm: str) -> str | None:
        trained = [a for a in _started_from(results, arm) if is_trained(results, a)]
        return trained[-1] if trained else None

    first = lowest(tested)
    others = [
        arm
        for arm in arm_names(results)
        if arm != tested and is_trained(results, arm) and lowest(arm) == first
    ]
    if not others:
        return Statement(claim, "", "does not apply")
    pairs = accuracy_pairs(results, split)
    found = {a: at(pairs.get((tested, a)), "by_stratum", "look") for a in others}
    intervals = {a: interval_of(value) for a, value in found.items()}
    lows = {a: low for a, (_, low, _) in intervals.items() if low is not None}
    unknown = [a for a in others if a not in lows]
    missed = [a for a in lows if lows[a] <= 0]
    told = ""
    if lows:
        closest = min(lows, key=lambda a: lows[a])
        told = f"closest of {len(others)}: {closest}, {interval_text(found[closest])}"
    if missed:
        names = ", ".join(missed)
        return Statement(claim, f"{told}; not told apart or below: {names}", "missed", False)
    if unknown:
        reason = _reason(found[unknown[0]])
        told = f"{told}; " if told else ""
        return Statement(claim, f"{told}{', '.join(unknown)}: {reason}", "not known")
    return Statement(claim, told, "met", True)


def _started_from(results: Mapping[str, Any], arm: str) -> list[str]:
    """The arm and those below it, itself first."""
    found: list[str] = []
    below: Any = arm
    while isinstance(below, str) and below not in found:
        found.append(below)
        below = at(results, "arms", below, "start")
    return found


def _bounded(
    claim: str,
    value: Any,
    *,
    least: float,
    applies: bool,
    scale: float = 100.0,
    digits: int = 1,
    is_difference: bool = True,
) -> Statement:
    """Met where the whole interval, times `scale`, is at least `least`."""
    if not applies:
        return Statement(claim, "", "does not apply")
    estimate, low, _ = interval_of(value)
    if estimate is None:
        return Statement(claim, _reason(value), "not known")
    found = interval_text(value, scale=scale, digits=digits, is_difference=is_difference)
    # a difference of shares is a little off in its last bit: 0.8 - 0.5 is not 0.3
    reaches = scale * estimate >= least - 1e-9
    whole = None if low is None else scale * low >= least - 1e-9
    if not reaches:
        return Statement(claim, found, "missed", whole)
    return Statement(claim, found, "met" if whole else "met by the estimate alone", whole)


def _reason(value: Any) -> str:
    return value if isinstance(value, str) and value else _NO_FIGURE


def interval_text(
    value: Any, *, scale: float = 100.0, digits: int = 1, is_difference: bool = True
) -> str:
    """An estimate with its interval in square brackets; empty where there is none."""
    estimate, low, high = interval_of(value)

    def number(share: float) -> str:
        if is_difference:
            return signed(scale * share, digits=digits)
        return f"{scale * share:.{digits}f}"

    if estimate is None:
        return ""
    if low is None or high is None:
        return number(estimate)
    return f"{number(estimate)} [{number(low)}, {number(high)}]"
