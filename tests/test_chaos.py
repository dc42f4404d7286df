"""Episodes under trouble, few of them: `saccade bench chaos` plays a thousand."""

from __future__ import annotations

import dataclasses
import sys

import pytest

from saccade.benches.chaos import GROUPS, Chaos, _essence, _played, bench_chaos
from saccade.types import Score


@pytest.mark.skipif(sys.platform != "linux", reason="finds its victims in /proc")
def test_every_episode_ends_and_is_the_same_or_cut() -> None:
    found = bench_chaos(episodes=60, seed=3, show=False)
    assert isinstance(found, Chaos)
    assert found.ended == found.same + found.cut + found.given_up == 60
    assert found.same >= 40  # a busy machine cuts more of them
    assert (found.lost, found.twice, found.scored_0) == (0, 0, 0)
    assert found.calls >= 6 * found.same
    assert found.killed + found.stopped + found.slowed + found.starved > 0
    assert found.recovery_p50_s < 1.0


def test_the_comparison_sees_a_change() -> None:
    import asyncio

    from saccade.tools.running import InThreads

    [episode] = asyncio.run(_played(InThreads(), 1, deadline_s=5))
    [again] = asyncio.run(_played(InThreads(), 1, deadline_s=5))
    assert _essence(episode) == _essence(again)
    assert len(episode.calls) == 6
    assert {c.name for c in episode.calls} <= {name for group in GROUPS.values() for name in group}
    for other in (
        dataclasses.replace(episode, messages=episode.messages[:-1]),
        dataclasses.replace(episode, score=Score(0.0)),
        dataclasses.replace(episode, turns=episode.turns[:1]),
    ):
        assert _essence(other) != _essence(episode)
