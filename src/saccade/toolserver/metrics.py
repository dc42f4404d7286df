"""What became of calls, for Prometheus and for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from saccade.toolserver.controller import Controller, Health

__all__ = ["as_prometheus", "as_row", "as_rows"]

_OUTCOMES = ("mistakes", "unavailable", "crashed", "refused")


def as_prometheus(controller: Controller) -> bytes:
    """The text format that Prometheus reads."""
    from prometheus_client import CollectorRegistry, generate_latest

    registry = CollectorRegistry()
    registry.register(_Collector(controller))
    return generate_latest(registry)


class _Collector:
    """Asked at every scrape, so that nothing is counted twice."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            SummaryMetricFamily,
        )

        counts = self._controller.counts
        calls = CounterMetricFamily("saccade_tool_calls", "Calls that ended.", labels=["tool"])
        shared = CounterMetricFamily(
            "saccade_tool_calls_shared", "Answered by a call for somebody else.", labels=["tool"]
        )
        failed = CounterMetricFamily(
            "saccade_tool_failures", "Calls without a result.", labels=["tool", "kind"]
        )
        now = GaugeMetricFamily(
            "saccade_tool_calls_now", "Calls that wait or run.", labels=["tool", "state"]
        )
        seconds = SummaryMetricFamily(
            "saccade_tool_seconds", "Time in the queue and in the tool.", labels=["tool", "part"]
        )
        for name, count in counts.items():
            calls.add_metric([name], count.calls)
            shared.add_metric([name], count.shared)
            for kind in _OUTCOMES:
                failed.add_metric([name, kind], getattr(count, kind))
            now.add_metric([name, "waiting"], count.waiting)
            now.add_metric([name, "running"], count.running)
            seconds.add_metric([name, "queue"], count.ended, count.queue_sum_s)
            seconds.add_metric([name, "run"], count.ended, count.run_sum_s)
        yield from (calls, shared, failed, now, seconds)
        yield from self._workers()

    def _workers(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        answer = GaugeMetricFamily(
            "saccade_workers_answer", "Whether they did the last time.", labels=["group"]
        )
        restarts = CounterMetricFamily(
            "saccade_worker_restarts", "Workers that were replaced.", labels=["group", "why"]
        )
        failures = CounterMetricFamily(
            "saccade_worker_failures",
            "Calls that replicas or services did not answer, or not in time.",
            labels=["group", "why"],
        )
        for group in self._controller.health():
            of = restarts if group.replaces else failures
            of.add_metric([group.group, "died"], group.died)
            of.add_metric([group.group, "killed" if group.replaces else "late"], group.killed)
            if group.answers is not None:
                answer.add_metric([group.group], float(group.answers))
        yield from (restarts, failures, answer)


def as_rows(controller: Controller) -> list[dict[str, Any]]:
    """One row for each tool: counts, and milliseconds of the newest calls."""
    rows = []
    for name, count in sorted(controller.counts.items()):
        row: dict[str, Any] = {"tool": name, "calls": count.calls, "shared": count.shared}
        row |= {kind: getattr(count, kind) for kind in _OUTCOMES}
        row |= {"waiting": count.waiting, "running": count.running}
        for part, seconds in (("queue", count.queue_s), ("run", count.run_s)):
            for q in (50, 95):
                row[f"{part}_p{q}_ms"] = _percentile(seconds, q)
        rows.append(row)
    return rows


def as_row(group: Health) -> dict[str, Any]:
    """What is known of a group of workers."""
    names = ("group", "processes", "answers", "running", "answered", "died", "killed")
    return {name: getattr(group, name) for name in (*names, "last_answer")}


def _percentile(seconds: Sequence[float], q: int) -> float | None:
    return round(1000 * float(np.percentile(seconds, q)), 3) if seconds else None
