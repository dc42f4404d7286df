"""An engine that says what a script tells it: the fake behind every offline test of the loop.

Invariant: a turn depends on the request alone (which turn it is follows from the conversation), so
the order in which episodes run changes nothing. Left out on purpose: a model, chance, and state
between turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from saccade.engines import Capabilities, TurnRequest
from saccade.types import Turn

__all__ = ["END_OF_TURN_ID", "Line", "ScriptedEngine"]

Line = str | Turn | Exception
"""A text to say, a whole turn to return, or an error to raise."""

END_OF_TURN_ID = 256
"""With `ids=True` a turn is its UTF-8 bytes, 0 to 255, and this id where it was not cut short."""


class ScriptedEngine:
    """Answers from a function of the request, or from a list of lines for each sample id.

    Args:
        script: called with each request, or a mapping from sample id to the lines of its turns. A
            line that is an exception is raised.
        delay_s: seconds that every turn takes.
        ids: give texts made-up ids (their UTF-8 bytes, then `END_OF_TURN_ID`) with log-probability
            0.0, cut at `max_tokens`; a `Turn` is returned as the script wrote it.
    """

    def __init__(
        self,
        script: Callable[[TurnRequest], Line] | Mapping[str, Sequence[Line]],
        *,
        delay_s: float = 0.0,
        ids: bool = False,
    ) -> None:
        self._script = script
        self._delay_s = delay_s
        self._ids = ids
        self.requests: list[TurnRequest] = []
        """Every request, in the order of arrival."""
        self.released: list[str] = []
        """Keys of the episodes that were released, in order."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(ids=self._ids, logprobs=self._ids, images=True, reproducible=True)

    async def turn(self, request: TurnRequest) -> Turn:
        """The scripted turn. Raises LookupError where the script has none: the script is wrong."""
        self.requests.append(request)
        line = self._script(request) if callable(self._script) else _line(self._script, request)
        await asyncio.sleep(self._delay_s)
        if isinstance(line, Exception):
            raise line
        if isinstance(line, Turn):
            return line
        prompt_tokens = sum(len(s.ids) for s in request.segments)
        if not self._ids:
            return Turn(line, "stop", prompt_tokens=prompt_tokens, seconds=self._delay_s)
        return _with_ids(line, request.sampling.max_tokens, prompt_tokens, self._delay_s)

    def release(self, episode: str) -> None:
        """Only recorded: there is nothing to forget."""
        self.released.append(episode)


def _line(script: Mapping[str, Sequence[Line]], request: TurnRequest) -> Line:
    _, sample, _ = request.seed
    number = sum(message.role == "assistant" for message in request.messages)
    lines = script.get(sample, ())
    if number >= len(lines):
        raise LookupError(
            f"The script has {len(lines)} lines for sample {sample!r}, but turn {number + 1} was "
            "asked for; add a line."
        )
    return lines[number]


def _with_ids(text: str, max_tokens: int, prompt_tokens: int, seconds: float) -> Turn:
    ids = (*text.encode("utf-8", "surrogatepass"), END_OF_TURN_ID)
    is_cut = len(ids) > max_tokens
    if is_cut:
        ids = ids[:max_tokens]
        text = bytes(ids).decode("utf-8", "replace")
    return Turn(
        text,
        "length" if is_cut else "stop",
        ids=ids,
        logprobs=(0.0,) * len(ids),
        policy_version=0,
        prompt_tokens=prompt_tokens,
        seconds=seconds,
    )
