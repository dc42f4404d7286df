"""Who answers: the `Engine` seam and what is said across it.

Left out on purpose: batching, caches and streaming are private to an engine. `api` and `scripted`
import no torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from saccade.types import Message, Segment, Turn

__all__ = ["Capabilities", "Engine", "PolicyEngine", "Sampling", "TurnRequest"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a turn is drawn."""

    temperature: float = 1.0
    """0 takes the most likely id; logprobs are then those of temperature 1."""
    max_tokens: int = 256
    """For one turn."""

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ValueError(f"temperature must be 0 or more, got {self.temperature}.")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}.")


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can promise."""

    ids: bool
    logprobs: bool
    images: bool
    reproducible: bool


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """Everything an engine needs to answer the next turn of one episode."""

    episode: str
    """Key of the running episode; engines key their caches by it."""
    messages: tuple[Message, ...]
    """The whole conversation so far."""
    segments: tuple[Segment, ...]
    """The same as tokens, for engines with ids; empty for others. Each request extends the last
    one.
    """
    seed: tuple[int, str, int]
    """(run seed, sample id, rollout index): draws depend on it and on the position alone."""
    sampling: Sampling


@runtime_checkable
class Engine(Protocol):
    """Answers turns. An episode calls `turn` until it ends, then `release` once."""

    @property
    def capabilities(self) -> Capabilities: ...

    async def turn(self, request: TurnRequest) -> Turn:
        """The next turn of the model. Raises EngineError where it can't be had."""
        ...

    def release(self, episode: str) -> None:
        """Forget the episode's private state."""
        ...


@runtime_checkable
class PolicyEngine(Engine, Protocol):
    """An engine whose weights a trainer replaces."""

    @property
    def barrier(self) -> bool:
        """Whether turns are admitted together, so that nothing depends on a clock."""
        ...

    def expect(self, episodes: Iterable[str]) -> None:
        """Announce episodes that start together, so that a barrier waits for all of them."""
        ...

    def load(self, weights: object, version: int, *, same_vision: bool = False) -> None:
        """Take new weights and drop every cache that depends on the old ones."""
        ...
