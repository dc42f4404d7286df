"""Runs the tool calls of one turn: checked, converted, in parallel, each under its own deadline.

Invariant: one result for each call, in call order, and one more for all calls beyond `max_calls`;
new images get names that depend on that order alone and never on which call ended first. The
model's mistakes (`ToolError`) come back as failed
results; what is our fault leaves as `ToolUnavailable` or `ToolCrashed`.
Left out on purpose: how a checked call is run, which is its `Runner`'s to say (`tools.running`).
"""

from __future__ import annotations

import asyncio
import difflib
import itertools
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

from jsonschema import Draft202012Validator

from saccade.errors import ToolError
from saccade.geometry import Box, Frame, Point
from saccade.image_store import ImageStore
from saccade.images import ImageView
from saccade.tools.running import InThreads, Runner
from saccade.tools.spec import PLACES, Parameter, Tool
from saccade.tools.terminate import terminate
from saccade.types import (
    MAX_ANCESTORS,
    MAX_STEPS,
    BadCall,
    BoxNamed,
    ImageRef,
    ImageShown,
    Part,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
)

__all__ = ["ToolBox"]

MAX_DEPTH = 8
"""Lists and objects inside the arguments of one call."""
MAX_VALUES = 1_000
"""Values inside the arguments of one call."""
MAX_CHARACTERS = 20_000
"""Characters of all text inside the arguments of one call."""
LARGEST_INTEGER = 2**53
"""Beyond it JSON numbers are not the same everywhere."""
SHOWN_IN = 4
"""Steps that are left to those who show a result smaller, or black."""
LEAST_SIDE = 1 - 1e-6
"""Of a box, in pixels of its image: one pixel, give or take float noise of the frame."""

T = TypeVar("T")


class _Bound(NamedTuple):
    """Arguments that may be run: images as references, everything else as the function takes it."""

    arguments: dict[str, Any]
    images: dict[str, ImageRef]
    """Image of each single image parameter."""
    named: tuple[BoxNamed, ...]


class _Outcome(NamedTuple):
    """A finished call before its new images have names."""

    parts: tuple[ImageRef | Part, ...]
    """New images are in the store already."""
    failed: bool = False
    seconds: float = 0.0
    named: tuple[BoxNamed, ...] = ()


class ToolBox:
    """The tools of a run, callable by what a model wrote. One box serves all episodes at once.

    Without a runner of its own it is the one caller of threads here: at most `workers` calls run at
    a time in an event loop, others wait, and their deadline counts from their own start. A runner
    that is given knows what it takes of each tool, and no limit over all tools stands before it: a
    slow one would hold up the others.
    """

    def __init__(
        self,
        tools: Sequence[Tool],
        *,
        store: ImageStore,
        deadline_s: float = 10.0,
        workers: int = 64,
        max_calls: int = 8,
        runner: Runner | None = None,
    ) -> None:
        """Raises ValueError where two tools share a name or alias, or a limit is not positive.

        The answer action is added to `specs` where `tools` does not hold one. Without a `runner`,
        calls run in threads of this process.
        """
        for name, limit in (
            ("deadline_s", deadline_s),
            ("workers", workers),
            ("max_calls", max_calls),
        ):
            if not limit > 0:
                raise ValueError(f"{name} must be positive, got {limit}.")
        self.store = store
        self._given = runner
        self.runner: Runner = InThreads() if runner is None else runner
        self.tools = tuple(tools)
        if not any(t.is_answer for t in self.tools):
            self.tools += (terminate,)
        for tool in self.tools:
            if tool.needs and runner is None:
                kinds = ", ".join(kind for _, kind in tool.needs)
                raise ValueError(f"Tool {tool.name} has no {kinds} yet: take it by `tools_named`.")
        self.deadline_s = deadline_s
        self.workers = workers
        self.max_calls = max_calls
        self._by_name: dict[str, Tool] = {}
        for tool in self.tools:
            for name in (tool.name, *tool.aliases):
                if name in self._by_name:
                    raise ValueError(
                        f"Two tools are named {name!r}: give one of them another name."
                    )
                self._by_name[name] = tool
        self._validators = {t.name: Draft202012Validator(t.spec.schema) for t in self.tools}
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore]
        self._slots = WeakKeyDictionary()

    @property
    def specs(self) -> tuple[ToolSpec, ...]:
        """What the model is told, the answer action included."""
        return tuple(t.spec for t in self.tools)

    def without(self, name: str) -> ToolBox | None:
        """The same box less one tool; None where no other is left but the answer."""
        left = [t for t in self.tools if t.name != name]
        if all(t.is_answer for t in left):
            return None
        return ToolBox(
            left,
            store=self.store,
            deadline_s=self.deadline_s,
            workers=self.workers,
            max_calls=self.max_calls,
            runner=self._given,
        )

    async def call_all(
        self,
        calls: Sequence[ToolCall | BadCall],
        *,
        images: Mapping[str, ImageRef],
        frame: Callable[[ImageRef], Frame],
        deadline_s: float | None = None,
    ) -> tuple[ToolResult, ...]:
        """Runs the calls of one turn side by side: one result for each, in the order of `calls`.

        Calls beyond `max_calls` are not run: they come back as one failed result, which holds the
        first of them and says how many they are, so that no turn makes its observation long.

        `images` are the episode's images by name, `frame` gives the frame in which the model writes
        about one of them. New images are put into the store and named img_K, K going on from
        `len(images)`. Without a `deadline_s` the box's own holds. Raises ToolUnavailable (deadline,
        back end) or ToolCrashed; of several, the one of the earliest call, after all have ended.
        """
        run, left_out = calls[: self.max_calls], calls[self.max_calls :]
        outcomes = await asyncio.gather(
            *(self._call(call, images=images, frame=frame, deadline_s=deadline_s) for call in run),
            return_exceptions=True,
        )
        finished = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            finished.append(outcome)
        names = _new_names(images)
        results = tuple(
            ToolResult(
                call=call,
                parts=tuple(
                    ImageShown(p, next(names)) if isinstance(p, ImageRef) else p
                    for p in outcome.parts
                ),
                failed=outcome.failed,
                seconds=outcome.seconds,
                named=outcome.named,
            )
            for call, outcome in zip(run, finished, strict=True)
        )
        if not left_out:
            return results
        were, them = ("1 was", "it") if len(left_out) == 1 else (f"{len(left_out)} were", "them")
        sentence = (
            f"Only the first {self.max_calls} calls of a turn are run; {were} left out: "
            f"make {them} again in a later turn."
        )
        return (*results, ToolResult(left_out[0], (Text(sentence),), failed=True))

    async def _call(
        self,
        call: ToolCall | BadCall,
        *,
        images: Mapping[str, ImageRef],
        frame: Callable[[ImageRef], Frame],
        deadline_s: float | None,
    ) -> _Outcome:
        """One call to its end; the model's mistakes become a failed outcome."""
        named: tuple[BoxNamed, ...] = ()
        started = time.perf_counter()
        try:
            if isinstance(call, BadCall):
                raise ToolError(call.reason)
            tool = self._find(call.name)
            bound = self._bind(tool, call.arguments, images=images, frame=frame)
            named = bound.named
            async with self._slot():
                started = time.perf_counter()
                parts = await self._run(tool, bound, deadline_s=deadline_s or self.deadline_s)
        except ToolError as mistake:
            seconds = time.perf_counter() - started
            return _Outcome((Text(str(mistake)),), failed=True, seconds=seconds, named=named)
        return _Outcome(parts, seconds=time.perf_counter() - started, named=named)

    def _slot(self) -> AbstractAsyncContextManager[None]:
        if self._given is not None:
            return nullcontext()
        # a semaphore belongs to one event loop, a box may live longer
        loop = asyncio.get_running_loop()
        return self._slots.setdefault(loop, asyncio.Semaphore(self.workers))

    async def _run(
        self, tool: Tool, bound: _Bound, *, deadline_s: float
    ) -> tuple[ImageRef | Part, ...]:
        """What a checked call gives; images that it made are in the store."""
        arguments = {name: self._seen(value) for name, value in bound.arguments.items()}
        parts = await self.runner.run(tool, arguments, deadline_s=deadline_s)
        for part in parts:
            if isinstance(part, ImageView):
                _check_lineage(tool, part.ref)
        return tuple(self.store.add(p) if isinstance(p, ImageView) else p for p in parts)

    def _seen(self, value: Any) -> Any:
        """Images as views, everything else as it is."""
        if isinstance(value, ImageRef):
            return self.store.view(value)
        if isinstance(value, list):
            return [self._seen(v) for v in value]
        return value

    # --- what the model wrote ---------------------------------------------------------------------

    def _find(self, name: str) -> Tool:
        tool = self._by_name.get(name)
        if tool is None:
            names = {alias: t.name for alias, t in self._by_name.items()}
            available = sorted(set(names.values()))
            raise ToolError(
                f"No tool named {_shown(name)}. Available: {', '.join(available)}."
                + _did_you_mean(name, names)
            )
        return tool

    def _bind(
        self,
        tool: Tool,
        arguments: dict[str, Any],
        *,
        images: Mapping[str, ImageRef],
        frame: Callable[[ImageRef], Frame],
    ) -> _Bound:
        """The arguments as the function takes them. Raises ToolError with the first mistake."""
        _check_size(tool, arguments)
        _check_schema(tool, arguments, self._validators[tool.name])
        if tool.is_answer:
            raise ToolError(
                f"{tool.name} ends the episode; call it alone, once, when you know the answer."
            )
        given = [p for p in tool.parameters if arguments.get(p.name) is not None]
        # images first: they have the frames in which everything else is written
        bound: dict[str, Any] = {}
        on: dict[str, tuple[str, ImageRef]] = {}
        for p in given:
            if p.kind == "image":
                names = arguments[p.name] if p.many else [arguments[p.name]]
                found = [_image(name, images) for name in names]
                bound[p.name] = found if p.many else found[0]
                if not p.many:
                    on[p.name] = (names[0], found[0])
        named: list[BoxNamed] = []
        for p in given:
            if p.kind == "image":
                continue
            written = arguments[p.name] if p.many else [arguments[p.name]]
            if p.kind in PLACES and p.on is not None:
                name, ref = on[p.on]
                values = [_place(tool, p, w, name=name, frame=frame(ref)) for w in written]
                named += [BoxNamed(ref, v) for v in values if isinstance(v, Box)]
            else:
                values = [_plain(p, w) for w in written]
            bound[p.name] = values if p.many else values[0]
        for p in tool.parameters:
            if p.name not in bound:
                bound[p.name] = None if p.name in arguments else p.default
        return _Bound(bound, {parameter: ref for parameter, (_, ref) in on.items()}, tuple(named))


def _check_size(tool: Tool, arguments: dict[str, Any]) -> None:
    """Raises ToolError for arguments too large or too deep to look at; never recurses."""
    values = characters = 0
    level: list[Any] = [arguments]
    for depth in itertools.count(1):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += itertools.islice(value, MAX_VALUES)
                inner += itertools.islice(value.values(), MAX_VALUES)
                values += len(value)
            elif isinstance(value, list):
                inner += itertools.islice(value, MAX_VALUES)
                values += len(value)
            elif isinstance(value, str):
                characters += len(value)
            if values > MAX_VALUES or characters > MAX_CHARACTERS:
                raise ToolError(
                    f"The arguments of {tool.name} are too long: at most {MAX_VALUES} values and "
                    f"{MAX_CHARACTERS} characters; {_takes(tool)}"
                )
        if not inner:
            return
        if depth > MAX_DEPTH:
            raise ToolError(
                f"The arguments of {tool.name} are over {MAX_DEPTH} levels deep; {_takes(tool)}"
            )
        level = inner


def _check_schema(tool: Tool, arguments: dict[str, Any], validator: Draft202012Validator) -> None:
    """Raises ToolError with the first mistake, in the order: no object, unknown, missing, wrong."""
    if not isinstance(arguments, dict):
        raise ToolError(f"The arguments of {tool.name} must be a JSON object; {_takes(tool)}")
    parameters = {p.name: p for p in tool.parameters}
    wrong = {
        error.absolute_path[0] for error in validator.iter_errors(arguments) if error.absolute_path
    }
    missing = [p for p in tool.parameters if p.required and p.name not in arguments]
    unknown = [name for name in arguments if name not in parameters]
    if unknown:
        raise ToolError(
            f"{tool.name} has no argument {_shown(unknown[0])}; {_takes(tool)}"
            + _did_you_mean(unknown[0], {p.name: p.name for p in missing or tool.parameters})
        )
    if missing:
        raise ToolError(
            f"{tool.name} needs the argument {missing[0].name!r}: it must be {missing[0].expected}."
        )
    for p in tool.parameters:
        if p.name in wrong or (p.name in arguments and not _is_sound(arguments[p.name])):
            raise ToolError(
                f"{p.name} of {tool.name} must be {p.expected}, got {_shown(arguments[p.name])}."
            )


def _takes(tool: Tool) -> str:
    names = ", ".join(p.name for p in tool.parameters)
    return f"it takes {names}." if names else "it takes no arguments."


def _is_sound(value: Any) -> bool:
    """Whether every number is finite and no larger than JSON promises to keep."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) <= LARGEST_INTEGER
    return all(_is_sound(v) for v in value) if isinstance(value, list) else True


def _image(name: str, images: Mapping[str, ImageRef]) -> ImageRef:
    ref = images.get(name)
    if ref is None:
        known = list(images)
        more = f" and {len(known) - 20} more" if len(known) > 20 else ""
        raise ToolError(
            f"No image named {_shown(name)}. Available: {', '.join(known[-20:]) or 'none'}{more}."
            + _did_you_mean(name, {known: known for known in images})
        )
    return ref


def _place(
    tool: Tool, p: Parameter, written: Any, *, name: str, frame: Frame
) -> Box | Point | float:
    """A box, point or coordinate in pixels of the image `name`; a box is clipped to it."""
    where = f"{p.name} of {tool.name}"
    across, down = frame.extent
    spans = f"which runs from 0 to {across:g} across and from 0 to {down:g} down"
    if p.kind == "box":
        x0, y0, x1, y1 = written
        sides = (((x0, x1), across), ((y0, y1), down))
        if not (x0 < x1 and y0 < y1):
            raise ToolError(
                f"{where} must be [x0, y0, x1, y1] with x0 < x1 and y0 < y1, "
                f"got {_shown(written)}; write the top left corner first."
            )
        # clipped before it is decoded: huge numbers would overflow to infinity
        (x0, x1), (y0, y1) = ([min(max(v, 0), end) for v in pair] for pair, end in sides)
        x0, y0, x1, y1 = frame.decode((x0, y0, x1, y1))
        if x1 - x0 < LEAST_SIDE or y1 - y0 < LEAST_SIDE:
            raise ToolError(
                f"{where} must cover at least one pixel of {name}, {spans}, got {_shown(written)}."
            )
        return Box(x0, y0, x1, y1)
    x = written[0] if p.kind == "point" else written if p.kind == "x" else 0
    y = written[1] if p.kind == "point" else written if p.kind == "y" else 0
    if not (0 <= x <= across and 0 <= y <= down):
        raise ToolError(f"{where} must lie in {name}, {spans}, got {_shown(written)}.")
    pixel_x, pixel_y = frame.decode((x, y))
    if p.kind == "point":
        return Point(pixel_x, pixel_y)
    return pixel_x if p.kind == "x" else pixel_y


def _plain(p: Parameter, written: Any) -> Any:
    """A JSON value as the type that the function declares: JSON does not tell 3 from 3.0."""
    if p.kind == "number":
        return float(written)
    return int(written) if p.kind == "integer" else written


def _check_lineage(tool: Tool, ref: ImageRef) -> None:
    """Raises ToolError for a result that is almost as far from its originals as any may be."""
    steps, others = MAX_STEPS - SHOWN_IN, MAX_ANCESTORS - SHOWN_IN
    if ref.steps > steps or ref.ancestors > others:
        raise ToolError(
            f"{tool.name} would make an image that is {ref.steps} steps from its originals and "
            f"made of {ref.ancestors} others; at most {steps} and {others} are allowed: call it on "
            "an earlier image."
        )


# --- names and threads ----------------------------------------------------------------------------


def _new_names(images: Mapping[str, ImageRef]) -> Iterator[str]:
    """img_K, K from the number of images on; names that are taken are left out."""
    names = (f"img_{k}" for k in itertools.count(len(images)))
    return (name for name in names if name not in images)


# --- sentences ------------------------------------------------------------------------------------


def _shown(value: Any, *, depth: int = 0) -> str:
    """A value as JSON-like text of bounded length that any encoder takes."""
    if isinstance(value, str):
        # repr also escapes lone surrogates, which no tokenizer takes
        return repr(value) if len(value) <= 40 else repr(value[:40]) + "..."
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int):
        return str(value) if abs(value) <= LARGEST_INTEGER else "a number beyond all limits"
    if isinstance(value, float):
        return f"{value:g}" if math.isfinite(value) else json.dumps(value)
    if isinstance(value, list) and depth < 2:
        inner = [_shown(v, depth=depth + 1) for v in value[:6]]
        return "[" + ", ".join(inner + ["..."] * (len(value) > 6)) + "]"
    if isinstance(value, list):
        return "[...]"
    return "an object" if isinstance(value, dict) else type(value).__name__


def _did_you_mean(name: str, known: Mapping[str, str]) -> str:
    """A question with what the nearest of the known names stands for, or nothing."""
    close = difflib.get_close_matches(name[:40], list(known), n=1)
    return f" Did you mean {known[close[0]]}?" if close else ""
