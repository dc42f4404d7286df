import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.evaluate import Interval, Metric, SampleRow, summarise
from saccade.ladder.figures.draws import Resampling
from saccade.ladder.figures.findings import Difference
from saccade.ladder.figures.statistics import (
    METRICS,
    arm_figures,
    differences,
    gain_and_harm,
    majority_level,
)
from saccade.types import StopReason

QUICK = Resampling(resamples=200)
STUDENT = Resampling(resamples=200, seeds_by="student")
BOTH = pytest.mark.parametrize("resampling", [QUICK, STUDENT], ids=["resampling", "student"])

Arm = dict[int, list[SampleRow]]


def row(number: int, right: bool | None = True, **changes: object) -> SampleRow:
    plain = SampleRow(
        id=f"s{number:04d}",
        rollout=0,
        kind="value",
        stratum="look" if number % 2 else "easy",
        cluster=f"chart{number:04d}",
        answer="12" if right is not None else None,
        strict=right,
        lenient=right,
        reward=None,
        stop=StopReason.ANSWERED if right is not None else StopReason.ENGINE_FAILED,
        scored=right is not None,
        calls={},
        completion_tokens=10,
        coverage=None,
        tightness=None,
        seconds=1.0,
    )
    return replace(plain, **changes)


def arm_of(verdicts: Mapping[int, Sequence[bool | None]], **changes: object) -> Arm:
    return {s: [row(n, v, **changes) for n, v in enumerate(vs)] for s, vs in verdicts.items()}


def width(interval: Interval | None) -> float:
    assert interval is not None
    assert interval.low is not None
    assert interval.high is not None
    return interval.high - interval.low


@st.composite
def arms(draw: st.DrawFn, count: int = 1, rollouts: int = 1, unscored: bool = True) -> list[Arm]:
    """Arms on the same samples, with the same one to three seeds."""
    number = draw(st.integers(2, 12))
    seeds = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))
    fixed = [
        {
            "kind": draw(st.sampled_from(["value", "count", ""])),
            "stratum": draw(st.sampled_from(["easy", "look"])),
            "cluster": draw(st.sampled_from(["a", "b", "c", "d"])),
        }
        for _ in range(number)
    ]
    verdicts = [True, False, None] if unscored else [True, False]
    return [
        {
            seed: [
                row(
                    n,
                    draw(st.sampled_from(verdicts)),
                    rollout=r,
                    calls={"crop": draw(st.integers(0, 3))},
                    completion_tokens=draw(st.sampled_from([None, 3, 10])),
                    coverage=draw(st.sampled_from([None, 0.1, 0.7])),
                    **fixed[n],
                )
                for n in range(number)
                for r in range(rollouts)
            ]
            for seed in seeds
        }
        for _ in range(count)
    ]


# --- one arm --------------------------------------------------------------------------------------


@BOTH
@settings(max_examples=25, deadline=None)
@given(made=arms(rollouts=2), shuffle=st.randoms(use_true_random=False))
def test_the_order_of_rows_and_of_seeds_is_not_seen(resampling, made, shuffle):
    [arm] = made
    seeds = list(arm)
    shuffle.shuffle(seeds)
    other = {seed: shuffle.sample(arm[seed], len(arm[seed])) for seed in seeds}
    assert arm_figures(other, resampling=resampling) == arm_figures(arm, resampling=resampling)
    pair = differences(arm, other, metric="coverage", resampling=resampling)
    assert pair == differences(arm, arm, metric="coverage", resampling=resampling)


@settings(max_examples=25, deadline=None)
@given(made=arms())
def test_estimates_are_those_of_evaluate_averaged_over_seeds(made):
    [arm] = made
    found = arm_figures(arm, resampling=QUICK)
    each = [summarise(rows, bootstrap=100) for rows in arm.values()]
    for metric in ("accuracy", "lenient"):
        for stratum, interval in found.by_stratum[metric].items():
            means = [getattr(s, metric)[stratum].estimate for s in each]
            assert interval.estimate == pytest.approx(np.mean(means))
    for kind, interval in found.by_kind["accuracy"].items():
        assert interval.estimate == pytest.approx(np.mean([s.kinds[kind].estimate for s in each]))
    assert found.by_stratum["calls"]["all"].estimate == pytest.approx(
        np.mean([s.calls for s in each])
    )
    assert set(found.by_kind["accuracy"]) == set(each[0].kinds)
    assert set(found.by_stratum["accuracy"]) == set(each[0].accuracy)


@settings(max_examples=25, deadline=None)
@given(made=arms())
def test_a_mixture_at_the_natural_share_is_the_figure_of_all(made):
    [arm] = made
    plain = arm_figures(arm, resampling=QUICK)
    if len(plain.samples) == 3:
        share = plain.samples["look"] / plain.samples["all"]
        found = arm_figures(arm, look_shares=[share], resampling=QUICK).mixtures[share]
        assert found.estimate == pytest.approx(plain.by_stratum["accuracy"]["all"].estimate)
    else:
        assert plain.mixtures == {}
        assert plain.adaptive_calls is None


@BOTH
@settings(max_examples=25, deadline=None)
@given(made=arms())
def test_a_mixture_of_one_stratum_alone_is_that_stratum(resampling, made):
    [arm] = made
    found = arm_figures(arm, look_shares=[0.0, 1.0], resampling=resampling)
    if found.mixtures and found.mixtures[0.0].low is not None:
        for share, stratum in ((0.0, "easy"), (1.0, "look")):
            of_stratum = found.by_stratum["accuracy"][stratum]
            assert found.mixtures[share].estimate == pytest.approx(of_stratum.estimate)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_beyond_the_whole_is_refused(share):
    arm = arm_of({0: [True, False]})
    with pytest.raises(ValueError, match=r"between 0 and 1, got"):
        arm_figures(arm, look_shares=[share])
    with pytest.raises(ValueError, match=r"between 0 and 1, got"):
        differences(arm, arm, look_shares=[share])


def opposed(seeds: int = 2) -> Arm:
    """40 charts with a question of each stratum; right (and one call more) in just one of them."""
    made: Arm = {}
    for seed in range(seeds):
        made[seed] = [
            row(n, (n // 2 + n) % 2 == 0, cluster=f"c{n // 2}", calls={"crop": (n // 2) % 3})
            for n in range(80)
        ]
    return made


def test_the_weights_of_a_mixture_are_applied_inside_each_resample():
    found = arm_figures(opposed(), resampling=QUICK)
    assert width(found.by_stratum["accuracy"]["look"]) > 0.2
    assert found.mixtures[0.5] == pytest.approx((0.5, 0.5, 0.5))
    assert width(found.mixtures[0.25]) == pytest.approx(
        0.5 * width(found.by_stratum["accuracy"]["look"])
    )


def test_adaptive_use_takes_both_strata_from_one_resample():
    found = arm_figures(opposed(), resampling=QUICK)
    assert width(found.by_stratum["calls"]["look"]) > 0.3
    assert found.adaptive_calls == pytest.approx((0.0, 0.0, 0.0))


def test_adaptive_use_is_calls_on_look_minus_calls_on_easy():
    calls = ({"crop": 1, "look": 1}, {"crop": 1}, {}, {"look": 2})
    rows = [row(n, True, calls=c) for n, c in enumerate(calls)]  # easy: 2, 0; look: 1, 2
    found = arm_figures({3: rows}, resampling=QUICK)
    assert found.adaptive_calls is not None
    assert found.adaptive_calls.estimate == 0.5
    assert found.calls_by_tool == {"crop": 0.5, "look": 0.75}


def test_the_strata_of_a_sample_and_its_kind_are_crossed():
    kinds = ["value", "value", "count", "count"]
    rows = [row(n, n == 1, kind=k) for n, k in enumerate(kinds * 3)]
    found = arm_figures({0: rows}, resampling=QUICK)
    both = found.by_kind_and_stratum["accuracy"]
    assert {k: sorted(v) for k, v in both.items()} == {
        "count": ["easy", "look"],
        "value": ["easy", "look"],
    }
    assert both["value"]["look"].estimate == pytest.approx(1 / 3)
    assert both["value"]["easy"].estimate == both["count"]["look"].estimate == 0.0
    assert found.samples_by_kind == {"count": 6, "value": 6}
    assert found.samples == {"all": 12, "easy": 6, "look": 6}


def test_a_sample_counts_once_however_many_rollouts_it_has():
    rows = [row(0, True), row(0, False, rollout=1), row(0, False, rollout=2), row(1, False)]
    rows += [row(0, True, rollout=3), row(1, True, rollout=1, calls={"crop": 2})]
    found = arm_figures({0: [*rows, row(2, True)]}, resampling=QUICK).by_stratum
    assert found["accuracy"]["all"].estimate == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert found["calls"]["look"].estimate == 1.0
    pair = gain_and_harm({0: [*rows[:2], row(1)]}, {0: [row(0), row(1, False)]}, resampling=QUICK)
    assert pair.gain["all"].interval.estimate == 0.5
    assert pair.harm["all"].interval.estimate == 0.25  # of two pairs of rollouts, one sample of two


def test_charts_are_drawn_whole():
    verdicts = [n % 3 == 0 for n in range(60)]
    alone = arm_of({0: verdicts})
    twice = {0: [row(n, verdicts[n // 2], cluster=f"chart{n // 2:04d}") for n in range(120)]}
    apart = {0: [row(n, verdicts[n // 2]) for n in range(120)]}
    first, second, third = (
        arm_figures(arm, resampling=QUICK).by_stratum["accuracy"]["all"]
        for arm in (alone, twice, apart)
    )
    assert second == first
    assert width(third) < 0.85 * width(first)


def test_a_chart_that_is_hard_is_hard_for_all_seeds():
    """Fresh charts inside each drawn seed would say that seeds that answer alike add something."""
    verdicts = [n % 3 == 0 for n in range(60)]
    one = arm_figures(arm_of({0: verdicts}), resampling=QUICK)
    four = arm_figures(arm_of(dict.fromkeys(range(4), verdicts)), resampling=QUICK)
    for stratum, interval in one.by_stratum["accuracy"].items():
        assert four.by_stratum["accuracy"][stratum] == pytest.approx(interval)


def test_a_lone_seed_leaves_an_interval_of_charts_and_says_so():
    found = arm_figures(arm_of({7: [True, False] * 20}), resampling=QUICK).to_json()
    assert (found["seeds"], found["interval_covers"]) == (1, "charts")
    assert found["by_stratum"]["accuracy"]["look"] == [0.0, 0.0, 0.0]
    assert found["by_stratum"]["accuracy"]["all"][1] > 0
    several = arm_figures(arm_of({7: [True] * 4, 8: [True] * 4}), resampling=QUICK).to_json()
    assert (several["seeds"], several["interval_covers"]) == (2, "seeds and charts")


@pytest.mark.parametrize("seeds_by", ["resampling", "student"])
def test_the_interval_is_that_of_a_loop_over_seeds_and_charts(seeds_by):
    source = np.random.default_rng(5)
    tokens = source.integers(5, 60, size=12) + np.array([[0], [9], [40]])  # (seeds, samples)
    charts = source.integers(0, 5, size=12)
    arm = {
        s: [row(n, completion_tokens=int(tokens[s, n]), cluster=f"c{charts[n]}") for n in range(12)]
        for s in range(3)
    }
    rng = np.random.default_rng(1)
    drawn = []
    for _ in range(20_000):
        of_charts = rng.choice(np.unique(charts), size=len(np.unique(charts)))
        samples = np.concatenate([np.flatnonzero(charts == c) for c in of_charts])
        means = tokens[:, samples].mean(axis=1)
        if seeds_by == "resampling":
            drawn.append(rng.choice(means, size=3).mean())
        else:
            error = np.std(tokens.mean(axis=1), ddof=1) / np.sqrt(3)
            drawn.append(means.mean() + rng.standard_t(2) * error)
    low, high = np.quantile(drawn, [0.025, 0.975])
    found = arm_figures(arm, resampling=Resampling(20_000, seeds_by=seeds_by))
    interval = found.by_stratum["completion_tokens"]["all"]
    assert interval.estimate == pytest.approx(tokens.mean())
    near = 0.6 if seeds_by == "resampling" else 5.0  # the tail of t with 2 degrees is long
    assert interval.low == pytest.approx(max(0, low), abs=near)
    assert interval.high == pytest.approx(high, abs=near)


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_draws_are_those_of_their_seed(seeds):
    arm = arm_of({s: [(n * n + s) % 7 < 3 for n in range(200)] for s in range(seeds)})
    first, again, other = (
        arm_figures(arm, resampling=Resampling(200, seed)).by_stratum["accuracy"]["all"]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_intervals_end_where_the_figure_can_end():
    arm = arm_of({0: [True] * 19 + [False], 1: [True] * 10 + [False] * 10})
    found = arm_figures(arm, resampling=STUDENT)
    assert found.by_stratum["accuracy"]["all"].high == 1.0
    assert found.by_stratum["accuracy"]["all"].low == 0.0
    assert width(found.by_stratum["calls"]["all"]) == 0.0
    other = arm_of({0: [False] * 20, 1: [False] * 10 + [True] * 10})
    [low, high] = differences(arm, other, resampling=STUDENT).by_stratum["all"].interval[1:]
    assert (low, high) == (-1.0, 1.0)


# --- figures that do not apply --------------------------------------------------------------------


def test_a_sample_without_the_figure_is_left_out_and_never_zero():
    rows = [row(n, coverage=0.5 if n < 6 else None, completion_tokens=None) for n in range(12)]
    found = arm_figures({0: rows, 1: rows}, resampling=QUICK)
    assert found.by_stratum["coverage"]["all"] == (0.5, 0.5, 0.5)
    assert found.by_stratum["completion_tokens"] == {}
    assert found.seeds[0].completion_tokens is None


def test_a_seed_without_the_figure_is_left_out_of_it():
    rows = [row(n, coverage=n / 10) for n in range(10)]
    without = [row(n) for n in range(10)]
    alone, beside = (
        arm_figures(arm, resampling=QUICK).by_stratum["coverage"]
        for arm in ({0: rows}, {0: rows, 1: without})
    )
    assert alone == beside


def test_one_chart_is_no_interval():
    rows = [row(n, n % 3 == 0, cluster="c") for n in range(6)]
    found = arm_figures({0: rows, 1: rows}, resampling=QUICK)
    assert found.by_stratum["accuracy"]["all"] == (pytest.approx(1 / 3), None, None)
    assert found.clusters == 1
    assert found.to_json()["mixtures"]["0.5"][1:] == [None, None]
    pair = differences({0: rows}, {0: rows}, names=("rl", "sft"))
    assert pair.by_stratum["all"] == Difference(
        None, "Only one chart has this figure in both rl and sft; two must."
    )
    absent = differences({0: rows}, {0: rows}, metric="coverage").by_stratum["all"]
    assert absent.reason == "No chart has this figure in both a and b; two must."


def test_a_seed_with_one_chart_of_a_figure_leaves_no_interval():
    many = [row(n, coverage=0.5) for n in range(10)]
    one = [row(n, coverage=1.0 if n == 0 else None) for n in range(10)]
    found = arm_figures({0: many, 1: one}, resampling=QUICK).by_stratum["coverage"]["all"]
    assert found == (0.75, None, None)


def test_a_resample_without_the_figure_is_left_out():
    rows = [row(n, coverage=0.2 if n < 2 else None) for n in range(40)]
    found = arm_figures({0: rows, 1: rows}, resampling=QUICK).by_stratum["coverage"]["all"]
    assert found == pytest.approx((0.2, 0.2, 0.2))


# --- seeds ----------------------------------------------------------------------------------------


def test_every_seed_stands_on_its_own():
    ended = [
        row(0, False, calls={"crop": 2}, completion_tokens=4, stop=StopReason.MAX_TOKENS),
        row(1, False, stop=StopReason.MAX_TURNS, answer=None, calls={"look": 1}, seconds=3.0),
        row(2, False, answer=None, completion_tokens=None),
        row(3, None),
        row(4, True),
    ]
    found = arm_figures({5: [row(n) for n in range(5)], 2: ended}, resampling=QUICK)
    first, second = found.seeds
    assert (first.seed, second.seed) == (2, 5)
    assert first.accuracy == {"all": 0.2, "easy": 1 / 3, "look": 0.0}
    assert second.accuracy == {"all": 1.0, "easy": 1.0, "look": 1.0}
    assert (first.calls, first.calls_by_tool) == (0.6, {"crop": 0.4, "look": 0.2})
    assert (first.completion_tokens, first.seconds) == (8.5, 1.4)
    assert (first.truncated, first.extraction_failed, first.unscored) == (0.4, 0.2, 0.2)
    assert (second.truncated, second.extraction_failed, second.unscored) == (0.0, 0.0, 0.0)
    assert found.calls_by_tool == {"crop": 0.2, "look": 0.1}
    form = found.to_json()
    assert (form["truncated"], form["extraction_failed"], form["unscored"]) == (0.2, 0.1, 0.1)


# --- two arms -------------------------------------------------------------------------------------


@BOTH
@settings(max_examples=25, deadline=None)
@given(made=arms(unscored=False))
def test_an_arm_against_itself_differs_by_exactly_nothing(resampling, made):
    [arm] = made
    for metric in METRICS:
        found = differences(arm, arm, metric=metric, resampling=resampling)
        each = [*found.by_stratum.values(), *found.by_kind.values(), *found.mixtures.values()]
        assert {tuple(d.interval) for d in each if d.interval} <= {(0.0, 0.0, 0.0)}
    both = gain_and_harm(arm, arm, resampling=resampling)
    for part in (both.gain, both.harm):
        assert {tuple(d.interval) for d in part.values() if d.interval} <= {(0.0, 0.0, 0.0)}


@settings(max_examples=40, deadline=None)
@given(made=arms(count=2, rollouts=2, unscored=False), lone=st.booleans())
def test_a_difference_is_that_of_the_arms(made, lone):
    a, b = made
    if lone:
        b = {0: next(iter(b.values()))}
    first, second = (arm_figures(arm, resampling=QUICK) for arm in (a, b))
    metrics: list[Metric] = ["accuracy", "lenient", "calls"]
    for metric in metrics:
        found = differences(a, b, metric=metric, resampling=QUICK)
        turned = differences(b, a, metric=metric, resampling=QUICK)
        for mine, of_a, of_b in (
            (found.by_stratum, first.by_stratum[metric], second.by_stratum[metric]),
            (found.by_kind, first.by_kind[metric], second.by_kind[metric]),
        ):
            for name, difference in mine.items():
                if difference.interval:
                    want = of_a[name].estimate - of_b[name].estimate
                    assert difference.interval.estimate == pytest.approx(want)
        for name, difference in found.by_stratum.items():
            if difference.interval:
                back = turned.by_stratum[name].interval
                want = (-back.estimate, -back.high, -back.low)
                assert difference.interval == pytest.approx(want, abs=1e-12)
    found = differences(a, b, resampling=QUICK)
    for share, difference in found.mixtures.items():
        if difference.interval:
            want = first.mixtures[share].estimate - second.mixtures[share].estimate
            assert difference.interval.estimate == pytest.approx(want)


@settings(max_examples=40, deadline=None)
@given(made=arms(count=2, rollouts=2, unscored=False))
def test_gain_minus_harm_is_the_difference(made):
    arm, reference = made
    found = gain_and_harm(arm, reference, resampling=QUICK)
    pair = differences(arm, reference, names=("arm", "reference"), resampling=QUICK)
    assert found.gain.keys() == found.harm.keys() == pair.by_stratum.keys()
    for stratum, difference in pair.by_stratum.items():
        gain, harm = found.gain[stratum], found.harm[stratum]
        assert (gain.reason, harm.reason) == (difference.reason, difference.reason)
        if difference.interval:
            net = gain.interval.estimate - harm.interval.estimate
            assert net == pytest.approx(difference.interval.estimate)


def test_gain_and_harm_count_what_became_right_and_wrong():
    before = arm_of({0: [True, True, True, False, False, False, False, False]})
    after = arm_of({0: [True, False, False, True, True, True, False, False]})
    found = gain_and_harm(after, before, names=("tools", "none"), resampling=QUICK)
    assert found.gain["all"].interval.estimate == 3 / 8
    assert found.harm["all"].interval.estimate == 2 / 8
    assert (found.gain["easy"].interval.estimate, found.harm["easy"].interval.estimate) == (
        1 / 4,
    ) * 2
    assert found.to_json()["seeds"] == [1, 1]


def test_the_luck_of_a_seed_that_both_arms_share_cancels():
    levels = {0: 10, 1: 30, 2: 50}
    a = arm_of({s: [n * 37 % 60 < level for n in range(60)] for s, level in levels.items()})
    b = {seed: [replace(r, strict=not r.strict) for r in rows] for seed, rows in a.items()}
    same = differences(a, {s: list(a[s]) for s in (2, 0, 1)}, resampling=QUICK)
    assert same.by_stratum["all"].interval == (0.0, 0.0, 0.0)
    assert width(arm_figures(a, resampling=QUICK).by_stratum["accuracy"]["all"]) > 0.4
    # the opposite of every seed: what is a's luck is b's misfortune
    apart = differences(a, b, resampling=QUICK).by_stratum["all"].interval
    assert width(apart) > 0.8


def test_a_lone_seed_is_set_against_each_of_the_others():
    levels = {0: 10, 1: 30, 2: 50}
    several = arm_of({s: [n * 37 % 60 < level for n in range(60)] for s, level in levels.items()})
    none_right = arm_of({9: [False] * 60})
    found = differences(several, none_right, resampling=QUICK)
    assert found.seeds == (3, 1)
    own = arm_figures(several, resampling=QUICK).by_stratum["accuracy"]
    for stratum, difference in found.by_stratum.items():
        assert difference.interval == pytest.approx(own[stratum])
    assert found.to_json()["interval_covers"] == "seeds and charts"
    alone = differences(none_right, none_right, resampling=QUICK)
    assert alone.to_json()["interval_covers"] == "charts"


def test_a_difference_takes_the_samples_that_have_the_figure_in_both():
    a = {0: [row(n, coverage=0.5 if n < 6 else None) for n in range(9)]}
    b = {0: [row(n, coverage=0.25 if n > 2 else None) for n in range(9)]}
    found = differences(a, b, metric="coverage", resampling=QUICK)
    assert found.by_stratum["all"].interval == (0.25, 0.25, 0.25)


def test_one_percent_unscored_is_compared_and_more_is_a_sentence():
    plain = arm_of({0: [True] * 200, 1: [True] * 200})
    few = arm_of({0: [True] * 198 + [None] * 2, 1: [True] * 200})
    found = differences(few, plain, resampling=QUICK)
    assert found.by_stratum["all"].interval is not None
    assert found.by_stratum["look"].reason == ""
    # one seed's run is above the limit, both together are not
    many = arm_of({0: [True] * 197 + [None] * 3, 1: [True] * 200})
    want = (
        "3 of 200 episodes of many (seed 0) are unscored, above 1%: repair and evaluate them again."
    )
    for names, pair in ((("many", "plain"), (many, plain)), (("plain", "many"), (plain, many))):
        found = differences(*pair, names=names, resampling=QUICK)
        each = [*found.by_stratum.values(), *found.by_kind.values(), *found.mixtures.values()]
        assert {d.to_json() for d in each} == {want}
        both = gain_and_harm(*pair, names=names, resampling=QUICK)
        assert {d.to_json() for d in [*both.gain.values(), *both.harm.values()]} == {want}


def test_a_stratum_or_kind_with_too_many_unscored_is_refused_alone():
    def made(unscored: bool) -> Arm:
        rows = [row(n, True, kind="count" if n < 50 else "value") for n in range(200)]
        if unscored:
            rows[1] = row(1, None, kind="count")
            rows[3] = row(3, None, kind="count")
        return {0: rows}

    found = differences(made(True), made(False), names=("rl", "sft"), resampling=QUICK)
    assert found.by_stratum["look"].reason == (
        "2 of 100 episodes of rl here are unscored, above 1%: repair and evaluate them again."
    )
    assert found.by_kind["count"].reason.startswith("2 of 50 episodes")
    assert not (found.by_stratum["all"].reason + found.by_stratum["easy"].reason)
    assert not found.by_kind["value"].reason
    assert not found.mixtures[0.5].reason


def test_a_mixture_is_refused_for_the_strata_that_enter_it():
    rows = [row(n, True, stratum="hard" if n >= 100 else row(n).stratum) for n in range(400)]
    bad = [row(1, None), row(2, None)]
    found = differences({0: [rows[0], *bad, *rows[3:]]}, {0: rows}, resampling=QUICK)
    assert found.by_stratum["all"].interval is not None
    assert found.mixtures[0.25].reason.startswith("2 of 100 episodes of a here are unscored")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ({}, r"Arm 'rl' has no rows"),
        ({0: [row(0)], 1: []}, r"Seed 1 of arm 'rl' has no rows"),
        ({0: [row(0), row(0)]}, r"Rollout 0 of sample 's0000' stands twice in seed 0 of arm 'rl'"),
        (
            {0: [row(0), row(1)], 4: [row(1), row(2)]},
            r"Seeds 0 and 4 of arm 'rl' answer different samples \(2 stand in one only, such as "
            r"'s0000'\)",
        ),
        (
            {0: [row(0)], 1: [row(0, cluster="x")]},
            r"Rows of sample 's0000' of arm 'rl' differ in kind, stratum or cluster",
        ),
    ],
)
def test_an_arm_whose_seeds_are_not_one_table_is_refused(arm, message):
    with pytest.raises(ValueError, match=message):
        arm_figures(arm, name="rl")
    with pytest.raises(ValueError, match=message):
        differences(arm, {0: [row(0)]}, names=("rl", "sft"))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({0: [row(0)], 1: [row(0)]}, r"'rl' and 'sft' answer different samples \(1 stand in"),
        (
            {0: [row(0), row(1, kind="count")]},
            r"Sample 's0001' is \('value', 'look', 'chart0001'\) in arm 'rl' and \('count'",
        ),
        (
            {0: [row(0), row(1)], 2: [row(0), row(1)]},
            r"Arm 'rl' has seeds 0, 1 and 'sft' has 0, 2; compare the seeds that both have",
        ),
    ],
)
@pytest.mark.parametrize("compare", [differences, gain_and_harm])
def test_arms_that_can_not_be_paired_are_refused(compare: Callable, other, message):
    arm = {seed: [row(0), row(1)] for seed in (0, 1)}
    with pytest.raises(ValueError, match=message):
        compare(arm, other, names=("rl", "sft"))


def test_a_few_resamples_are_no_interval():
    with pytest.raises(ValueError, match=r"100 resamples or more, got 99"):
        Resampling(99)
    assert Resampling(100).resamples == 100


def test_a_difference_is_an_interval_or_a_reason():
    for wrong in ((None, ""), (Interval(0.0, 0.0, 0.0), "because")):
        with pytest.raises(ValueError, match="an interval or a reason"):
            Difference(*wrong)


# --- JSON -----------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(made=arms(count=2))
def test_the_json_forms_are_finite_and_their_figures_sorted(made):
    a, b = made
    pair = differences(a, b, metric="calls", resampling=STUDENT).to_json()
    for form in (
        arm := arm_figures(a, resampling=STUDENT).to_json(),
        pair,
        both := gain_and_harm(a, b, resampling=STUDENT).to_json(),
    ):
        text = json.dumps(form, allow_nan=False)
        assert json.loads(text) == form
        assert "-0.0," not in text
    tables = [arm[k] for k in ("samples", "samples_by_kind", "by_kind", "mixtures", "by_stratum")]
    tables += [*arm["by_kind"].values(), *arm["by_stratum"].values(), arm["by_kind_and_stratum"]]
    tables += [pair["by_stratum"], pair["by_kind"], pair["mixtures"], both["gain"], both["harm"]]
    tables += [seed["accuracy"] for seed in arm["by_seed"]]
    for table in tables:
        assert list(table) == sorted(table)
    assert arm["resampling"] == {"resamples": 200, "seed": 0, "seeds_by": "student"}


# --- do the intervals hold? -----------------------------------------------------------------------


@cache
def cheap_row(number: int, right: bool, rollout: int = 0) -> SampleRow:
    """Made once for all simulations; without kind and stratum there is `all` alone to find."""
    return row(number, right, rollout=rollout, kind="", stratum="")


def simulated(number: int, seeds: int, spread: float, charts: int) -> list[list[bool]]:
    """Verdicts by seed: charts are hard or easy, seeds lucky or not; 3 in 5 are right."""
    rng = np.random.default_rng([number, seeds])
    chart = rng.uniform(0.4, 0.8, size=charts)
    luck = np.clip(rng.normal(0, spread, size=(seeds, 1)), -0.2, 0.2)
    return (rng.random((seeds, charts)) < chart + luck).tolist()


def as_seeds(verdicts: list[list[bool]]) -> Arm:
    return {s: [cheap_row(n, v) for n, v in enumerate(vs)] for s, vs in enumerate(verdicts)}


def as_rollouts(verdicts: list[list[bool]]) -> Arm:
    """The same rows as rollouts of one seed: charts alone are drawn."""
    return {0: [cheap_row(n, v, s) for s, vs in enumerate(verdicts) for n, v in enumerate(vs)]}


def share_that_covers(
    seeds: int,
    spread: float,
    *,
    charts: int = 80,
    resampling: Resampling = QUICK,
    form: Callable[[list[list[bool]]], Arm] = as_seeds,
) -> float:
    hits = 0
    for number in range(200):
        arm = form(simulated(number, seeds, spread, charts))
        found = arm_figures(arm, resampling=resampling).by_stratum["accuracy"]["all"]
        hits += found.low <= 0.6 <= found.high
    return hits / 200


def test_intervals_that_draw_seeds_and_charts_hold_and_those_of_charts_alone_do_not():
    assert share_that_covers(8, 0.1) >= 0.9
    assert share_that_covers(8, 0.1, form=as_rollouts) < 0.75


def test_without_luck_of_seeds_the_interval_holds_too():
    assert share_that_covers(3, 0.0) >= 0.95


def test_three_seeds_that_differ_much_need_student_to_hold():
    """The range of three seeds holds what they scatter about three times in four, no more."""
    assert share_that_covers(3, 0.1, charts=400) < 0.9
    assert share_that_covers(3, 0.1, charts=400, resampling=STUDENT) >= 0.92


# --- chance ---------------------------------------------------------------------------------------


def test_the_majority_level_is_the_best_constant_answer_of_a_kind():
    answers = {"value": ["1", "2", "2", "3"], "label": ["A", "B"], "count": ["5"]}
    found = majority_level(answers)
    assert found == {"count": 1.0, "label": 0.5, "value": 0.5}
    assert list(found) == sorted(found)
    with pytest.raises(ValueError, match=r"Kind 'sum' has no answers"):
        majority_level({"sum": []})


@given(st.lists(st.sampled_from("abc"), min_size=1))
def test_no_constant_answer_beats_the_majority_level(golds):
    level = majority_level({"kind": golds})["kind"]
    assert level == max(sum(g == constant for g in golds) / len(golds) for constant in "abc")
    shuffled = random.Random(0).sample(golds, len(golds))
    assert majority_level({"kind": shuffled})["kind"] == level
