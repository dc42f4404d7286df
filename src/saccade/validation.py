"""How a model does while it is trained: on the validation split, and with each of its tools.

Invariant: nothing here changes what is trained; rows go to the metrics of the run.

Left out on purpose: the benefit of a tool, its accuracy over training without it, which another run
measures (`ladder`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from saccade.config import Recipe
from saccade.engines import Sampling
from saccade.evaluate import row_of
from saccade.observing import partners_among
from saccade.rewards.grounded import boxes_of
from saccade.rollout import Setup, rollout
from saccade.run_folder import stage_of_tool
from saccade.tasks import Task
from saccade.tools import Tool
from saccade.types import Episode, Sample, ToolCall

__all__ = ["shares_of_boxes", "tool_rows", "validate"]


def tool_rows(episodes: Sequence[Episode], setup: Setup) -> list[dict[str, Any]]:
    """How each tool was used: calls per episode, and the share of them that did not fail, None
    without calls.
    """
    results = [r for e in episodes for r in e.results]
    rows = []
    for tool in _tools_of(setup):
        own = [
            r
            for r in results
            if isinstance(r.call, ToolCall) and r.call.name in (tool.name, *tool.aliases)
        ]
        rows.append(
            {
                "stage": stage_of_tool(tool.name),
                "tool_use": len(own) / len(episodes),
                "tool_success": sum(not r.failed for r in own) / len(own) if own else None,
            }
        )
    return rows


async def validate(task: Task, setup: Setup, recipe: Recipe) -> list[dict[str, Any]]:
    """Greedy accuracy on the validation split, by stratum; and for each tool its dependence: the
    accuracy that is lost where the model does without it.
    """
    samples = task.load("validation", store=setup.store, count=recipe.rl.eval_items)
    setup = replace(setup, rubric=task.rubric)
    found = await _accuracies(samples, setup, recipe)
    rows: list[dict[str, Any]] = [{"stage": "validation", **found}]
    for tool in _tools_of(setup):
        assert setup.toolbox is not None
        less = replace(setup, toolbox=setup.toolbox.without(tool.name))
        without = await _accuracies(samples, less, recipe)
        lost = found["accuracy"] - without["accuracy"]
        rows.append({"stage": stage_of_tool(tool.name), "tool_dependence": lost})
    return rows


def shares_of_boxes(episodes: Sequence[Episode]) -> dict[str, float]:
    """Of the boxes in thoughts, those that are invalid, too small, as large as the picture, and
    those that repeat another; nothing where none was written.
    """
    found = [boxes_of(e) for e in episodes]
    written = sum(b.written for b in found)
    if not written:
        return {}
    return {
        "invalid": sum(b.invalid for b in found) / written,
        "specks": sum(b.specks for b in found) / written,
        "wholes": sum(b.wholes for b in found) / written,
        "redundant": sum(b.redundant for b in found) / written,
    }


def _tools_of(setup: Setup) -> list[Tool]:
    return [] if setup.toolbox is None else [t for t in setup.toolbox.tools if not t.is_answer]


async def _accuracies(samples: Sequence[Sample], setup: Setup, recipe: Recipe) -> dict[str, float]:
    episodes = await rollout(
        samples,
        setup,
        partners=partners_among(samples, mode=setup.observation),
        sampling=Sampling(0.0, recipe.rollout.max_tokens_per_turn),
        seed=recipe.seed,
        concurrency=recipe.rollout.concurrency,
    )
    assert setup.rubric is not None
    rows = [row_of(e, setup.rubric) for e in episodes]
    found: dict[str, float] = {"items": len(rows)}
    for name in ("", *sorted({r.stratum for r in rows if r.stratum})):
        chosen = [r for r in rows if not name or r.stratum == name]
        key = f"accuracy_{name}" if name else "accuracy"
        found[key] = sum(bool(r.strict) for r in chosen) / len(chosen)
    found["calls"] = sum(len(e.calls) for e in episodes) / len(episodes)
    return found | shares_of_boxes(episodes)
