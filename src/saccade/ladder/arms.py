"""The arms of a recipe: what each has from its neighbour, and by which keys it differs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from saccade.config import LadderConfig
from saccade.errors import RecipeError

__all__ = ["Arm", "Data", "Stage", "arms_of", "with_starts"]

Stage = Literal["eval", "sft", "rl", "score"]
Data = Literal["demonstrations", "answers", "kept", "chains", "self-made", "self-made-blank"]


@dataclass(frozen=True, slots=True)
class Arm:
    """An arm with everything that it has from its neighbours."""

    name: str
    stage: Stage
    start: str | None
    data: Data
    settings: Mapping[str, Any]
    episodes: Path | None
    differs: str
    """From its neighbour, in words."""
    varies: bool
    """Whether its model depends on the seed."""
    depth: int
    """Trained arms below it."""
    control_of: str | None = None
    """Where it is a control: the arm that is asked the same without."""

    @property
    def gaze_of(self) -> str | None:
        """The arm whose boxes are masked where this one is asked; None: its own, if any."""
        return self.settings.get("eval.gaze_of")

    @property
    def is_trained(self) -> bool:
        return self.stage in ("sft", "rl")


def arms_of(config: LadderConfig) -> dict[str, Arm]:
    """The arms by name, each with what it has from its neighbours. Raises RecipeError for an arm
    whose settings contradict each other.
    """
    found: dict[str, Arm] = {}
    for name, given in config.arms.items():
        like = found.get(given.like or "")
        own = given.model_fields_set
        stage = given.stage or (like.stage if like else "eval")
        data = given.data or (like.data if like else "demonstrations")
        # null takes away what the neighbour has
        start = given.start if like is None or "start" in own else like.start
        episodes = given.episodes if like is None or "episodes" in own else like.episodes
        if (stage == "score") != (episodes is not None):
            raise RecipeError(
                f"ladder.arms.{name}: stage score and a file of episodes belong together, "
                f"got stage {stage} and episodes {episodes}."
            )
        if data != "demonstrations" and stage != "sft":
            raise RecipeError(
                f"ladder.arms.{name}: only stage sft learns from {data}, got stage {stage}."
            )
        below = found[start] if start else None
        is_trained = stage in ("sft", "rl")
        settings = {**(like.settings if like else {}), **given.set}
        masks = settings.get("eval.gaze_of")
        if masks is not None and masks not in found:
            raise RecipeError(
                f"ladder.arms.{name}: eval.gaze_of must name an arm above it "
                f"({', '.join(found) or 'there is none'}), got {masks}."
            )
        found[name] = Arm(
            name=name,
            stage=stage,
            start=start,
            data=data,
            settings=settings,
            episodes=episodes,
            differs=_difference(given.model_dump(exclude_unset=True), like=given.like),
            varies=is_trained
            or (below is not None and below.varies)
            or (masks is not None and found[masks].varies),
            depth=(below.depth if below else 0) + is_trained,
            control_of=_control_of(start, like) if settings.get("eval.control") else None,
        )
    return found


def _control_of(start: str | None, like: Arm | None) -> str | None:
    """The arm whose model a control asks again."""
    if start is not None:
        return start
    if like is None:
        return None
    return like.control_of if like.settings.get("eval.control") else like.name


def with_starts(arms: dict[str, Arm], only: Sequence[str]) -> dict[str, Arm]:
    """These arms (none named: all), and those that they start from."""
    if not only:
        return arms
    wanted: set[str] = set()
    asked = list(only)
    while asked:
        name = asked.pop()
        if name not in wanted:
            wanted.add(name)
            asked += [n for n in (arms[name].start, arms[name].gaze_of) if n is not None]
    return {name: arm for name, arm in arms.items() if name in wanted}


def _difference(given: dict[str, Any], *, like: str | None) -> str:
    given.pop("like", None)
    settings = given.pop("set", {})
    told = [f"{k}: {json.dumps(v, default=str)}" for k, v in (given | settings).items()]
    return (f"{like}, " if like else "") + ", ".join(told)
