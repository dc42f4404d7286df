"""What a reward is, how rewards are found by name, and how a rubric weighs them into one score.

Invariant: None means "could not say" and never becomes 0; an episode that ended by our own doing
has no score, whatever its rewards would say.
Left out on purpose: group statistics and advantages (the training layer), and rewards that need a
second rollout (those are evaluations).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import overload

from saccade import plugins
from saccade.errors import RecipeError
from saccade.types import Episode, Outcome, Sample, Score

__all__ = ["Reward", "Rubric", "reward", "reward_named"]

Judge = Callable[[Episode, Sample], float | Score | None]
"""What `@reward` decorates. It returns a `Score` only to say something about single turns."""


@dataclass(frozen=True, slots=True)
class Reward:
    """One thing that is worth something, under a name; made by `@reward`."""

    name: str
    description: str
    judge: Judge
    required: bool = True
    """Whether None leaves the whole episode unscored; otherwise None means "does not apply"."""
    asks: bool = False
    """Whether it waits for somebody else's word, so that it should be called in a thread."""

    def __call__(self, episode: Episode, sample: Sample) -> float | None:
        """The value alone."""
        return self.score(episode, sample).value

    def score(self, episode: Episode, sample: Sample) -> Score:
        """Value, name and, from some rewards, values of single turns."""
        said = self.judge(episode, sample)
        if isinstance(said, Score):
            if said.turns is not None and len(said.turns) != len(episode.turns):
                raise ValueError(
                    f"Reward {self.name} needs one value for each of {len(episode.turns)} turns, "
                    f"got {len(said.turns)}."
                )
            return Score(said.value, self.name, said.detail, said.turns)
        return Score(None if said is None else float(said), self.name)


_REWARDS: dict[str, Reward] = {}


@overload
def reward(judge: Judge, /) -> Reward: ...
@overload
def reward(*, required: bool) -> Callable[[Judge], Reward]: ...
def reward(
    judge: Judge | None = None, /, *, required: bool = True
) -> Reward | Callable[[Judge], Reward]:
    """Make a function `(episode: Episode, sample: Sample) -> float | None` a reward of its name.

    With `@reward(required=False)` None means "does not apply to this episode"; without, an episode
    with None stays unscored. Raises TypeError for a function of another form or without a
    docstring, ValueError where the name is taken.
    """
    if judge is None:
        return lambda judge: _register(judge, required=required)
    return _register(judge, required=required)


def _register(judge: Judge, *, required: bool) -> Reward:
    name = judge.__name__
    parameters = inspect.signature(judge).parameters
    if tuple(parameters) != ("episode", "sample"):
        raise TypeError(
            f"Reward {name} needs the parameters (episode, sample), got ({', '.join(parameters)})."
        )
    for parameter in parameters.values():
        if parameter.annotation is parameter.empty:
            raise TypeError(f"Reward {name} needs an annotation for {parameter.name!r}.")
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            raise TypeError(f"Reward {name} needs {parameter.name!r} as a plain parameter.")
    description = inspect.getdoc(judge)
    if not description:
        raise TypeError(f"Reward {name} needs a docstring: it is shown where rewards are listed.")
    if name in _REWARDS:
        raise ValueError(f"A reward named {name!r} exists already; choose another name.")
    made = Reward(name, description.partition("\n")[0], judge, required)
    _REWARDS[name] = made
    return made


def reward_named(name: str) -> Reward:
    """The reward of that name, for recipes: ours, or one that an installed package offers.

    Raises RecipeError with the names there are.
    """
    if name not in _REWARDS:
        plugins.load("saccade.rewards", name)  # registers itself where it is decorated
    if name in _REWARDS:
        return _REWARDS[name]
    close = difflib.get_close_matches(name, _REWARDS, n=1)
    hint = f"Did you mean {close[0]!r}?" if close else f"Available: {', '.join(sorted(_REWARDS))}."
    raise RecipeError(f"No reward named {name!r}. {hint}")


@dataclass(frozen=True, slots=True)
class Rubric:
    """A weighted sum of rewards, optionally behind a gate.

    The values of `Score.turns` are that part of the value which belongs to single turns; what
    remains, value - sum(turns), belongs to the end of the episode.
    """

    terms: tuple[tuple[Reward, float], ...]
    """Rewards and their weights."""
    gate: Reward | None = None
    """Where it is not above 0, terms pay nothing; what they take away stays taken away."""

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("Rubric needs at least one term.")
        names = [term.name for term, _ in self.terms]
        if len(set(names)) != len(names):
            raise ValueError(f"Rubric terms need different names, got {', '.join(names)}.")

    @property
    def asks(self) -> bool:
        """Whether any of its rewards waits for somebody else's word."""
        return any(term.asks for term, _ in self.terms) or bool(self.gate and self.gate.asks)

    def score(self, episode: Episode) -> Score:
        """The episode's score; None as its value where it could not be had, `detail` says why."""
        if episode.stop is None:
            return Score(None, "rubric", "the episode has not ended")
        if episode.stop.outcome is Outcome.OURS:
            return Score(None, "rubric", f"not the model's doing: {episode.stop.value}")
        gate = self.gate.score(episode, episode.sample) if self.gate else None
        scores = [term.score(episode, episode.sample) for term, _ in self.terms]
        detail = "; ".join(self._lines(scores, gate))
        required = [s for s, (t, _) in zip(scores, self.terms, strict=True) if t.required]
        said = [s for s in scores if s.value is not None]
        if (gate and gate.value is None) or any(s.value is None for s in required) or not said:
            return Score(None, "rubric", detail)
        is_open = gate is None or (gate.value or 0.0) > 0
        value = 0.0
        turns: list[float | None] = [None] * len(episode.turns)
        for (_, weight), s in zip(self.terms, scores, strict=True):
            if s.value is None:
                continue
            paid = weight if is_open or weight * s.value <= 0 else 0.0
            value += paid * s.value
            for i, earned in enumerate(s.turns or ()):
                if earned is not None:
                    turns[i] = (turns[i] or 0.0) + paid * earned
        by_turn = tuple(turns) if any(s.turns for s in said) else None
        return Score(value, "rubric", detail, by_turn)

    def _lines(self, scores: list[Score], gate: Score | None) -> list[str]:
        lines = [
            f"{s.name} {_shown(s)} x {weight:g}" + (f" ({s.detail})" if s.detail else "")
            for s, (_, weight) in zip(scores, self.terms, strict=True)
        ]
        return lines if gate is None else [f"gate {gate.name} {_shown(gate)}", *lines]


def _shown(score: Score) -> str:
    return "none" if score.value is None else f"{score.value:+.4g}"
