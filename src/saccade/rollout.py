"""One coroutine for an episode and one loop over many: synthesis, RL and evaluation all pass here.

Invariant: an episode only grows; what it shows the model next extends what it showed before. The
model's mistakes become observations; what is our doing ends the episode unscored and keeps its
traceback; anything else is a bug and crashes. Where other pixels are shown than a call returned,
gaze and rewards are of the true call; what was shown in no picture was not seen
(`saccade.observing`).

Left out on purpose: stepping and batching, which are the engine's, and retries, which are those of
tools and engines.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

from saccade.dialects import Dialect
from saccade.dialects.notations import Notation
from saccade.engines import Engine, PolicyEngine, Sampling, TurnRequest
from saccade.errors import (
    EngineError,
    RecipeError,
    SaccadeError,
    ToolCrashed,
    ToolError,
    ToolUnavailable,
)
from saccade.geometry import Frame
from saccade.grounding import boxes_named
from saccade.image_store import ImageStore
from saccade.observing import (
    Observation,
    acknowledged,
    blackened,
    in_words,
    pictures_of,
    recorded,
    swapped,
)
from saccade.rewards import Rubric
from saccade.tools.toolbox import ToolBox
from saccade.types import (
    Episode,
    ImageRef,
    ImageShown,
    Message,
    Outcome,
    Parsed,
    Part,
    Sample,
    Segment,
    StopReason,
    Text,
    ToolResult,
    Turn,
    TurnRecord,
)

__all__ = [
    "Failures",
    "Limits",
    "SegmentRenderer",
    "Setup",
    "check_room",
    "episode_key",
    "opening",
    "rollout",
    "run_episode",
]

NO_ACTION = "No tool call and no answer was found. Call a tool or give the final answer."
IGNORED_ANSWER = "The answer was ignored: it stood beside tool calls. Give it alone."
NO_TOOLS = "There are no tools here. Give the final answer."
LEAST_REPLY_TOKENS = 16
"""Room that must be left for the model after an observation."""


class SegmentRenderer(Protocol):
    """What a rollout needs of a renderer, for engines with ids."""

    @property
    def notation(self) -> Notation: ...

    def prompt(self, messages: Sequence[Message]) -> Segment: ...

    def observation(self, message: Message) -> Segment: ...

    def begun(self, text: str) -> Segment: ...

    def image_tokens(self, image: ImageRef) -> int: ...

    def frame(self, image: ImageRef) -> Frame: ...


@dataclass(frozen=True, slots=True)
class Limits:
    """Where an episode ends."""

    max_turns: int = 4
    max_tokens_per_turn: int = 128
    max_context_tokens: int = 2048


@dataclass(slots=True)
class Failures:
    """Episodes that ended by our doing, counted over all calls of `rollout` in a run."""

    limit: float = 0.01
    """Share of the run's episodes so far above which (and above two) it stops."""
    failed: int = 0
    of: int = 0

    def add(self, episode: Episode) -> None:
        """Raises SaccadeError, with the error of this episode, above the limit."""
        self.failed += 1
        if self.failed > max(2.0, self.limit * self.of):
            last = episode.error.strip().splitlines()[-1]
            raise SaccadeError(
                f"{self.failed} of {self.of} episodes ended by our own failure "
                f"(above {self.limit:.0%}); mend it and resume. The last one: {last}"
            )


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that episodes of a run share."""

    engine: Engine
    dialect: Dialect
    store: ImageStore
    toolbox: ToolBox | None = None
    """None: the model is told of no tools and can call none."""
    renderer: SegmentRenderer | None = None
    """Needed where the engine works with ids."""
    frame: Callable[[ImageRef], Frame] | None = None
    """The frame of the model's coordinates; the renderer's unless given."""
    notation: Notation | None = None
    """How the model writes boxes into its thoughts; the renderer's unless given. Without either
    none are read.
    """
    limits: Limits = Limits()
    observation: Observation = "image"
    """What is shown of a tool's pictures."""
    pictures: Literal["shown", "hidden"] = "shown"
    """`hidden`: the question stands without its pictures."""
    request: str = ""
    """Said behind each question."""
    example: str = ""
    """Said before each question."""
    rubric: Rubric | None = None
    failures: Failures | None = None
    """None: however many episodes fail, the run goes on."""

    def __post_init__(self) -> None:
        if self.engine.capabilities.ids and self.renderer is None:
            raise ValueError("An engine with ids needs a renderer.")
        if self.renderer is None and self.frame is None:
            raise ValueError(
                "Say in which frame the model writes coordinates: a renderer or `frame`."
            )

    def frame_of(self, image: ImageRef) -> Frame:
        if self.frame is not None:
            return self.frame(image)
        assert self.renderer is not None
        return self.renderer.frame(image)

    @property
    def boxes_as(self) -> Notation | None:
        """How the model writes boxes into its thoughts; None where nobody said it."""
        return self.notation or (self.renderer.notation if self.renderer else None)

    def record(self, parsed: Parsed, images: Mapping[str, ImageRef]) -> TurnRecord:
        """A turn, with the boxes that stand in its thoughts, before any of its calls is made."""
        notation = self.boxes_as
        if notation is None:
            return TurnRecord(parsed)
        named, refused = boxes_named(parsed, notation, images=images, frame=self.frame_of)
        return TurnRecord(parsed, named=named, refused=refused)


def opening(sample: Sample, setup: Setup) -> tuple[Message, ...]:
    """What the model is told at the start: the tools, the pictures with their names, the
    question.
    """
    messages: list[Message] = []
    told = setup.dialect.instructions(setup.toolbox.specs if setup.toolbox else ())
    if told:
        messages.append(Message("system", (Text(told),)))
    parts: list[Part] = []
    shown = sample.images if setup.pictures == "shown" else ()
    for number, image in enumerate(shown):
        name = f"img_{number}"
        if told or len(shown) > 1:
            parts.append(Text(f"{name}: "))
        parts.append(ImageShown(image, name))
    asked = " ".join(text for text in (sample.question, setup.request) if text)
    if setup.example:
        asked = f"{setup.example}\n{asked}"
    messages.append(Message("user", (*parts, Text(asked))))
    return tuple(messages)


def check_room(sample: Sample, setup: Setup) -> None:
    """Raises RecipeError where the opening of a run's first sample leaves the model no room for a
    turn: every episode would end before it began, and count as wrong.
    """
    if not setup.engine.capabilities.ids:
        return
    assert setup.renderer is not None
    taken = len(setup.renderer.prompt(opening(sample, setup)).ids)
    most = setup.limits.max_context_tokens
    if most - taken < LEAST_REPLY_TOKENS:
        raise RecipeError(
            f"The prompt of sample {sample.id!r} takes {taken} of {most} tokens, which leaves no "
            f"room for a turn of at least {LEAST_REPLY_TOKENS}: raise rollout.max_context_tokens."
        )


async def run_episode(
    sample: Sample,
    setup: Setup,
    *,
    sampling: Sampling,
    seed: int = 0,
    rollout_index: int = 0,
    partner: Sample | None = None,
    begun: str = "",
) -> Episode:
    """One attempt at one sample, scored where the setup has a rubric and the end was the model's
    doing.

    `begun` is how the model's first turn begins, whoever wrote that: the model goes on from there,
    and what it was given is neither sampled nor trained.

    Where the setup's observation is `swapped`, the model is shown what its calls return on the
    pictures of `partner`; a view that it was shown, and names in a later call, is the partner's
    there too, and its gaze lies on the partner's picture. Raises ValueError without a partner.
    """
    if setup.observation == "swapped" and partner is None:
        raise ValueError(f"Observation swapped needs a partner for sample {sample.id!r}.")
    began = time.monotonic()
    key = episode_key(seed, sample, rollout_index)
    episode = Episode(sample=sample, rollout_index=rollout_index, messages=opening(sample, setup))
    if setup.engine.capabilities.ids:
        assert setup.renderer is not None
        shown: tuple[Segment, ...] = (setup.renderer.prompt(episode.messages),)
        if begun:
            shown = (*shown, setup.renderer.begun(begun))
        episode = replace(episode, segments=shown)
    elif begun:
        raise ValueError("An engine without ids can't go on from the beginning of a turn.")
    told: dict[str, ImageRef] = {}  # pictures that the model knows by their names alone
    try:
        while episode.stop is None:
            given = "" if episode.turns else begun
            episode = await _say(episode, setup, key=key, sampling=sampling, seed=seed, begun=given)
            if episode.stop is None:  # said by now, so that a call that crashes can be seen
                episode = await _act(episode, setup, told=told, partner=partner)
    except (EngineError, ToolUnavailable, ToolCrashed) as error:
        episode = replace(episode, stop=_fault(error), error=traceback.format_exc())
    finally:
        setup.engine.release(key)
    episode = replace(episode, seconds=time.monotonic() - began)
    return await _scored(episode, setup.rubric)


async def _scored(episode: Episode, rubric: Rubric | None) -> Episode:
    if rubric is None:
        return episode
    if rubric.asks:  # others go on meanwhile
        return episode.with_score(await asyncio.to_thread(rubric.score, episode))
    return episode.with_score(rubric.score(episode))


def _fault(error: SaccadeError) -> StopReason:
    if isinstance(error, ToolUnavailable):
        return StopReason.TOOL_UNAVAILABLE
    return StopReason.TOOL_CRASHED if isinstance(error, ToolCrashed) else StopReason.ENGINE_FAILED


async def _say(
    episode: Episode, setup: Setup, *, key: str, sampling: Sampling, seed: int, begun: str
) -> Episode:
    """One turn of the model, its calls not yet made; sets `stop` where the episode ends with it."""
    room = setup.limits.max_context_tokens - _length(episode)
    if setup.engine.capabilities.ids and room < 1:
        return replace(episode, stop=StopReason.CONTEXT_FULL)
    most = min(sampling.max_tokens, setup.limits.max_tokens_per_turn)
    request = TurnRequest(
        episode=key,
        messages=episode.messages,
        segments=episode.segments,
        seed=(seed, episode.sample.id, episode.rollout_index),
        sampling=replace(sampling, max_tokens=min(most, room) if room > 0 else most),
    )
    turn = await setup.engine.turn(request)
    turn = replace(turn, text=begun + turn.text)
    parsed = setup.dialect.parse(turn.text)
    stop = _stop_after(parsed, turn, episode, setup.limits)
    record = setup.record(parsed, {**_originals(episode.sample), **episode.images})
    return replace(_with_turn(episode, turn, record), stop=stop)


async def _act(
    episode: Episode, setup: Setup, *, told: dict[str, ImageRef], partner: Sample | None
) -> Episode:
    """What the calls of the last turn bring back, as far as the model is shown it."""
    *before, last = episode.turns
    images = {**told, **episode.images}
    results = await _call(last.parsed, images, setup)
    shown = await _shown(results, last.parsed, images, episode.sample, setup, partner)
    episode = replace(episode, turns=(*before, last._replace(results=results)))
    episode = _observe(episode, setup, shown=shown, note=_note(last.parsed, setup))
    if setup.observation == "text" and episode.stop is None:
        told |= {p.name: p.image for r in results for p in r.parts if isinstance(p, ImageShown)}
    return episode


def _originals(sample: Sample) -> dict[str, ImageRef]:
    """The question's pictures by the names that they have where they are shown."""
    return {f"img_{n}": image for n, image in enumerate(sample.images)}


def _with_turn(episode: Episode, turn: Turn, record: TurnRecord) -> Episode:
    segments = episode.segments
    if turn.ids is not None:
        sampled = Segment(
            "sampled", turn.ids, turn.logprobs or (), policy_version=turn.policy_version
        )
        segments = (*segments, sampled)
    said = Message("assistant", (Text(turn.text),))
    return replace(
        episode,
        messages=(*episode.messages, said),
        segments=segments,
        turns=(*episode.turns, record),
    )


def _stop_after(parsed: Parsed, turn: Turn, episode: Episode, limits: Limits) -> StopReason | None:
    if turn.finish == "length":
        return StopReason.MAX_TOKENS
    if parsed.answer is not None and not parsed.calls:
        return StopReason.ANSWERED
    if len(episode.turns) + 1 >= limits.max_turns:
        return StopReason.MAX_TURNS
    return None


async def _call(
    parsed: Parsed, images: Mapping[str, ImageRef], setup: Setup
) -> tuple[ToolResult, ...]:
    if setup.toolbox is None or not parsed.calls:
        return ()
    return await setup.toolbox.call_all(parsed.calls, images=images, frame=setup.frame_of)


async def _shown(
    results: tuple[ToolResult, ...],
    parsed: Parsed,
    images: Mapping[str, ImageRef],
    sample: Sample,
    setup: Setup,
    partner: Sample | None,
) -> tuple[ToolResult, ...]:
    """The results as the setup's mode shows them, before anything is made to fit."""
    if setup.observation == "none":
        return tuple(acknowledged(r) for r in results)
    if setup.observation == "text":
        originals = _originals(sample)
        return tuple(in_words(r, originals=originals, frame=setup.frame_of) for r in results)
    if setup.observation == "black":
        return tuple(blackened(r, store=setup.store) for r in results)
    if setup.observation == "swapped":
        assert partner is not None
        others = await _call(parsed, {**images, **pictures_of(partner, sample)}, setup)
        pairs = zip(results, others, strict=True)
        return tuple(swapped(r, other, store=setup.store) for r, other in pairs)
    return results


def _note(parsed: Parsed, setup: Setup) -> str:
    if setup.toolbox is None:
        return NO_TOOLS
    if not parsed.calls:
        return NO_ACTION
    return IGNORED_ANSWER if parsed.answer is not None else ""


def _observe(episode: Episode, setup: Setup, *, shown: Sequence[ToolResult], note: str) -> Episode:
    """Append what is shown of the last turn's results, in a form that fits what is left of the
    context.
    """
    if not setup.engine.capabilities.ids:
        message = setup.dialect.observation(shown, frame=setup.frame_of, note=note)
        episode = _recorded(episode, setup, shown)
        return replace(episode, messages=(*episode.messages, message))
    assert setup.renderer is not None
    room = setup.limits.max_context_tokens - _length(episode) - LEAST_REPLY_TOKENS
    shaped = shown
    for shape in (_as_is, _halved, _quartered, _sentence):
        shaped = [replace(r, parts=tuple(shape(p, setup) for p in r.parts)) for r in shown]
        message = setup.dialect.observation(shaped, frame=setup.frame_of, note=note)
        segment = setup.renderer.observation(message)
        if len(segment.ids) <= room:
            return replace(
                _recorded(episode, setup, shaped),
                messages=(*episode.messages, message),
                segments=(*episode.segments, segment),
            )
    return replace(_recorded(episode, setup, shaped), stop=StopReason.CONTEXT_FULL)


def _recorded(episode: Episode, setup: Setup, shown: Sequence[ToolResult]) -> Episode:
    """The episode whose last turn remembers its calls as far as they were shown."""
    *before, last = episode.turns
    pairs = zip(last.results, shown, strict=True)
    results = tuple(recorded(r, s, mode=setup.observation) for r, s in pairs)
    return replace(episode, turns=(*before, last._replace(results=results)))


def _as_is(part: Part, setup: Setup) -> Part:
    return part


def _halved(part: Part, setup: Setup) -> Part:
    return _smaller(part, setup, 2)


def _quartered(part: Part, setup: Setup) -> Part:
    return _smaller(part, setup, 4)


def _smaller(part: Part, setup: Setup, times: int) -> Part:
    """The picture at a fraction of its size, where that costs fewer tokens."""
    if not isinstance(part, ImageShown):
        return part
    assert setup.renderer is not None
    image = part.image
    width, height = max(1, image.width // times), max(1, image.height // times)
    try:
        small = setup.store.view(image).resize(width, height)
    except ToolError:  # a strip that would become too thin to be shown
        return part
    if setup.renderer.image_tokens(small.ref) >= setup.renderer.image_tokens(image):
        return part
    return ImageShown(setup.store.add(small), part.name)


def _sentence(part: Part, setup: Setup) -> Part:
    """A sentence in the place of what does not fit."""
    if isinstance(part, ImageShown):
        return Text(f"{part.name} does not fit into what is left of the context.")
    if isinstance(part, Text) and len(part.text) > 200:
        return Text(f"{part.text[:200]} ... (cut: {len(part.text) - 200} more characters)")
    return part


def _length(episode: Episode) -> int:
    return sum(len(s.ids) for s in episode.segments)


class _Job(NamedTuple):
    sample: Sample
    partner: Sample | None
    number: int
    """Of the rollout."""
    begun: str


async def rollout(
    samples: Sequence[Sample],
    setup: Setup,
    *,
    sampling: Sampling,
    seed: int = 0,
    group_size: int = 1,
    past: Sequence[int] = (),
    partners: Sequence[Sample] = (),
    begun: Sequence[str] = (),
    concurrency: int = 128,
    on_done: Callable[[Episode], None] | None = None,
) -> list[Episode]:
    """`group_size` episodes for each sample, in the order of samples, then of rollouts.

    `past` says how many groups of each sample were drawn before: rollouts are numbered on from
    there, so that a sample that comes again is drawn anew. `partners`, one for each sample, are
    those whose pictures are shown where the setup's observation is `swapped`; `begun`, one for
    each sample, how first turns begin.

    Raises SaccadeError once there are more `failures` than the setup allows, ValueError where there
    are not as many partners as samples; `on_done` sees each episode as it ends.
    """
    if setup.observation == "swapped" and not partners and samples:
        raise ValueError("Observation swapped needs partners, one for each sample; got none.")
    slots = asyncio.Semaphore(concurrency)
    before = past or (0,) * len(samples)
    beside = partners or (None,) * len(samples)
    given = begun or ("",) * len(samples)
    jobs = [
        _Job(sample, partner, groups * group_size + index, start)
        for sample, groups, partner, start in zip(samples, before, beside, given, strict=True)
        for index in range(group_size)
    ]
    if setup.failures is not None:
        setup.failures.of += len(jobs)

    async def one(job: _Job) -> Episode:
        async with slots:
            episode = await run_episode(
                job.sample,
                setup,
                sampling=sampling,
                seed=seed,
                rollout_index=job.number,
                partner=job.partner,
                begun=job.begun,
            )
        assert episode.stop is not None
        if setup.failures is not None and episode.stop.outcome is Outcome.OURS:
            setup.failures.add(episode)
        if on_done is not None:
            on_done(episode)
        return episode

    episodes: list[Episode] = []
    for wave in _waves(jobs, setup.engine, size=concurrency):
        if isinstance(setup.engine, PolicyEngine):
            setup.engine.expect(episode_key(seed, job.sample, job.number) for job in wave)
        try:
            async with asyncio.TaskGroup() as tasks:
                running = [tasks.create_task(one(job)) for job in wave]
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        episodes += [task.result() for task in running]
    return episodes


def episode_key(seed: int, sample: Sample, rollout_index: int) -> str:
    """The name under which an engine knows an episode."""
    return f"{seed}/{sample.id}/{rollout_index}"


def _waves(jobs: Sequence[_Job], engine: Engine, *, size: int) -> list[Sequence[_Job]]:
    """All at once; behind a barrier, as many as may run together, so that waiting ends."""
    if not (isinstance(engine, PolicyEngine) and engine.barrier):
        return [jobs]
    return [jobs[i : i + size] for i in range(0, len(jobs), size)]
