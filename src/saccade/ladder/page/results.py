"""`ladder.json` and the rows below it, as they are read for the page and the terminal.

Invariant: what is missing, or is not of the kind that it should be, reads as None or as empty, and
never as a number.

Left out on purpose: wording, and writing them (`saccade.ladder` does).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from saccade.errors import DataError
from saccade.run_folder import RunFolder

__all__ = [
    "ALL",
    "EASY",
    "LOOK",
    "OBSERVATION",
    "ToolArms",
    "accuracy_pairs",
    "arm_names",
    "at",
    "estimate_of",
    "figures_of",
    "is_about_looking",
    "is_trained",
    "list_of",
    "pairs_of",
    "published_accuracies",
    "published_steps",
    "read_results",
    "size_of",
    "stored_rows",
    "strata_of",
    "tool_arms",
]

ALL = "all"
EASY = "easy"
LOOK = "look"
OBSERVATION = "rollout.observation"
"""The setting that says what a model is shown of a tool's result."""

PUBLISHED = {"base": 29.6, "sft": 45.7, "text": 51.6, "tested": 59.4}
"""Accuracy by role in the published ladder: one seed, no intervals."""
PUBLISHED_STEPS = {("sft", "base"): 16.1, ("text", "sft"): 6.0, ("tested", "text"): 7.8}
"""As published, so that one of them is not the difference of the rounded accuracies."""


def read_results(run: Path) -> dict[str, Any]:
    """The content of `ladder.json`. Raises DataError where there is none, or none with arms."""
    found = RunFolder(run).read_json("ladder") if run.is_dir() else None
    if found is None:
        raise DataError(
            f"Folder {run.name!r} holds no ladder.json: run `saccade ladder` there to its end."
        )
    if not isinstance(found, dict) or not isinstance(found.get("arms"), dict):
        raise DataError(f"ladder.json of {run.name!r} has no arms: run `saccade ladder` again.")
    return found


def stored_rows(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Rows of a run, none where there is no such folder."""
    if folder.is_dir():
        yield from RunFolder(folder).rows(name)


# --- what stands where ----------------------------------------------------------------------------


def at(value: Any, *keys: str) -> Any:
    """What stands under nested keys, None where one of them is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def list_of(value: Any) -> list[Any]:
    """The value if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def estimate_of(value: Any) -> Any:
    """The estimate of an interval, None where there is no interval."""
    return value[0] if isinstance(value, list) and value else None


def arm_names(results: Mapping[str, Any]) -> list[str]:
    """In the order of `ladder.json`."""
    return list(at(results, "arms") or {})


def is_trained(results: Mapping[str, Any], arm: str) -> bool:
    """Whether the arm has a training of its own."""
    return at(results, "arms", arm, "stage") in ("sft", "rl")


class ToolArms(NamedTuple):
    """The arms that tell what a tool is worth to the tested one."""

    tool: str
    without: str | None
    """The tested model, asked without it: what is lost is its dependence."""
    never: str | None
    """Trained like the tested one, without it: what is lacking is its benefit."""


def tool_arms(results: Mapping[str, Any]) -> list[ToolArms]:
    """For each tool that an arm goes without; see `rollout.withheld`."""
    tested = at(results, "tested")
    stage, start = (at(results, "arms", tested, key) for key in ("stage", "start"))
    found: dict[str, ToolArms] = {}
    for name in arm_names(results):
        arm = results["arms"][name]
        withheld = list_of(at(arm, "settings", "rollout.withheld"))
        if len(withheld) != 1:
            continue
        tool = str(withheld[0])
        arms = found.get(tool, ToolArms(tool, None, None))
        if at(arm, "stage") == "eval" and at(arm, "start") == tested:
            found[tool] = arms._replace(without=name)
        elif (at(arm, "stage"), at(arm, "start")) == (stage, start):
            found[tool] = arms._replace(never=name)
    return list(found.values())


def figures_of(results: Mapping[str, Any], split: str, arm: str) -> Any:
    """All figures of an arm on a split, None where it was not measured there."""
    return at(results, "splits", split, "arms", arm)


def size_of(results: Mapping[str, Any], split: str, *keys: str) -> int | None:
    """How many items the arms have there; the first arm that says it."""
    for name in arm_names(results):
        found = at(figures_of(results, split, name), *keys)
        if isinstance(found, int):
            return found
    return None


def accuracy_pairs(
    results: Mapping[str, Any], split: str
) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Paired differences of accuracy by (above, below)."""
    return pairs_of(results, split, "accuracy")


def pairs_of(
    results: Mapping[str, Any], split: str, metric: str
) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Paired differences of a figure by (above, below)."""
    found = list_of(at(results, "splits", split, "pairs"))
    return {
        (str(at(p, "a")), str(at(p, "b"))): p
        for p in found
        if (at(p, "metric") or "accuracy") == metric
    }


def strata_of(results: Mapping[str, Any], split: str) -> tuple[str, ...]:
    """The strata of a split in the order in which they are told, `all` last."""
    found: dict[str, None] = {}
    for name in arm_names(results):
        found |= dict.fromkeys(at(figures_of(results, split, name), "samples") or {})
    return (*sorted(found.keys() - {ALL}), ALL)


def is_about_looking(results: Mapping[str, Any], split: str) -> bool:
    """Whether items are told apart by whether they need a look."""
    return {EASY, LOOK} <= set(strata_of(results, split))


# --- the published ladder -------------------------------------------------------------------------


def published_accuracies(results: Mapping[str, Any]) -> dict[str, float]:
    """The published accuracies, in per cent, by the arm that stands for each."""
    return {name: PUBLISHED[role] for role, name in _roles(results).items()}


def published_steps(results: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """The published steps, in points, by the pair of arms that stands for each."""
    roles = _roles(results)
    return {
        (roles[a], roles[b]): points
        for (a, b), points in PUBLISHED_STEPS.items()
        if a in roles and b in roles
    }


def _roles(results: Mapping[str, Any]) -> dict[str, str]:
    """The arms that stand where those of the published ladder stood: the first that fits each."""
    found: dict[str, str] = {}
    for name in arm_names(results):
        arm = results["arms"][name]
        stage, start = at(arm, "stage"), at(arm, "start")
        if name == results.get("tested"):
            role = "tested"
        elif stage == "rl" and at(arm, "settings", OBSERVATION) == "text":
            role = "text"
        elif stage == "sft" and start is None:
            role = "sft"
        elif stage == "eval" and start is None:
            role = "" if at(arm, "settings", "rollout.pictures") == "hidden" else "base"
        else:
            role = ""
        if role:
            found.setdefault(role, name)
    return found
