"""What every dialect shares: JSON calls found in a model's text, and results laid out as text.

Invariant: reading never raises and takes time linear in the text. One forward pass that knows
strings finds where an object ends; only what it covered goes to the standard library's decoder, and
reading goes on behind it, so that no character is looked at more than a fixed number of times.
Whatever is read can be encoded as UTF-8.

Left out on purpose: validation against a tool's schema, which is the tool box's, and everything
that tells one dialect from another.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from saccade.geometry import Box, Frame
from saccade.types import (
    Answer,
    BadCall,
    BoxFound,
    ImageRef,
    ImageShown,
    MaskFound,
    Parsed,
    Part,
    PointFound,
    Text,
    ToolCall,
    ToolResult,
    ToolSpec,
)

__all__ = [
    "ANSWER_KEYS",
    "ANSWER_NAME",
    "MAX_DEPTH",
    "MAX_DIGITS",
    "MAX_RAW",
    "FrameOf",
    "Item",
    "Read",
    "Style",
    "check_readable",
    "collect",
    "merge_texts",
    "part_lines",
    "read_object",
    "replace_surrogates",
    "signature",
    "write_json",
]

Style = Literal["schema", "signature", "silent"]
FrameOf = Callable[[ImageRef], Frame]

MAX_DEPTH = 64
"""Objects and lists inside each other; deeper calls are refused."""
MAX_DIGITS = 300
"""Characters of one number; longer ones are refused, because reading them takes quadratic time."""
MAX_RAW = 200
"""Characters of a bad call that are kept."""
ANSWER_NAME = "terminate"
"""The call that answers, in any case of letters."""
ANSWER_KEYS = ("ans", "answer")

_SURROGATE = re.compile("[\ud800-\udfff]")
_SURROGATE_ESCAPE = re.compile(r"\\u[dD]")
# A string that is never closed matches too, up to the line break or the end of the text: otherwise
# the pass would go on inside it and try each of its quotes again.
_LEXEME = re.compile(
    r'(?P<bracket>[\[\]{}])|(?P<string>"[^"\\\n]*+(?:\\.[^"\\\n]*+)*+(?P<closed>")?)'
    r"|[ \t\r\n,:]+|[-+.0-9eE]+|true|false|null|NaN|Infinity",
    re.DOTALL,
)


# --- reading --------------------------------------------------------------------------------------


class Read(NamedTuple):
    """What came of reading one object: its value, or None and the reason why there is none."""

    value: dict[str, Any] | None
    end: int
    """Where reading goes on: behind the object, or where it stopped being JSON."""
    reason: str = ""


class Item(NamedTuple):
    """One thing that a turn asked for: a JSON value, or a reason why it could not be read."""

    raw: str
    value: object
    reason: str = ""


class _Extent(NamedTuple):
    end: int
    closed: bool
    depth: int


def _extent(text: str, start: int) -> _Extent:
    """How far the bracket at `start` reaches and how deep it goes; brackets in strings are text."""
    at, depth, deepest = start, 0, 0
    while found := _LEXEME.match(text, at):
        at = found.end()
        if bracket := found["bracket"]:
            depth += 1 if bracket in "[{" else -1
            deepest = max(deepest, depth)
            if depth == 0:
                return _Extent(at, True, deepest)
        elif found["string"] and not found["closed"]:
            break
    return _Extent(at, False, deepest)


def _constant(literal: str) -> float:
    raise ValueError(f"The number {literal} is not JSON.")


def _integer(literal: str) -> int:
    if len(literal) > MAX_DIGITS:
        raise ValueError(f"A number of {len(literal)} digits is too long.")
    return int(literal)


def _fraction(literal: str) -> float:
    if len(literal) > MAX_DIGITS:
        raise ValueError(f"A number of {len(literal)} digits is too long.")
    value = float(literal)
    if not math.isfinite(value):
        raise ValueError(f"The number {literal} is too large.")
    return value


_DECODER = json.JSONDecoder(parse_constant=_constant, parse_int=_integer, parse_float=_fraction)


def read_object(text: str, start: int) -> Read:
    """The JSON object that opens at `text[start]`. Never raises; the last of equal keys wins."""
    extent = _extent(text, start)
    if extent.depth > MAX_DEPTH:
        return Read(None, extent.end, f"The JSON is nested deeper than {MAX_DEPTH} levels.")
    if not extent.closed and extent.end == len(text):
        return Read(None, extent.end, "The JSON is cut off.")
    # A slice, because the decoder's errors count the lines before them.
    raw = text[start : extent.end]
    try:
        value = _DECODER.decode(raw)
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        return Read(None, extent.end, f"This is not JSON: {what} at character {error.pos}.")
    except ValueError as error:
        return Read(None, extent.end, str(error))
    return Read(_scrub(value) if _SURROGATE_ESCAPE.search(raw) else value, extent.end)


def replace_surrogates(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which no UTF-8 file could hold."""
    return _SURROGATE.sub("\ufffd", text)


def _scrub(value: Any) -> Any:
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, list):
        return [_scrub(v) for v in value]
    if isinstance(value, dict):
        return {replace_surrogates(k): _scrub(v) for k, v in value.items()}
    return value


def collect(thought: str, items: Iterable[Item]) -> Parsed:
    """The turn that asked for these: its calls (call_0, call_1 ... in order) and its answer."""
    calls: list[ToolCall | BadCall] = []
    answer: Answer | None = None
    count = 0
    for item in items:
        read = _read_call(item, f"call_{count}")
        if isinstance(read, ToolCall):
            count += 1
            calls.append(read)
        elif isinstance(read, BadCall):
            calls.append(read)
        elif answer is None:
            answer = read
        else:
            calls.append(_bad(item, "This is a second answer; answer once."))
    return Parsed(thought, tuple(calls), answer)


def _bad(item: Item, reason: str) -> BadCall:
    return BadCall(item.raw[:MAX_RAW], reason)


def _read_call(item: Item, call_id: str) -> ToolCall | BadCall | Answer:
    value = item.value
    if item.reason:
        return _bad(item, item.reason)
    if not isinstance(value, dict):
        return _bad(item, 'A call is an object with "name" and "arguments".')
    name, arguments = value.get("name"), value.get("arguments")
    if not isinstance(name, str) or not name:
        return _bad(item, 'The call needs a "name".')
    if not isinstance(arguments, dict):
        return _bad(item, 'The call needs "arguments", an object.')
    if name.lower() != ANSWER_NAME:
        return ToolCall(call_id, name, arguments)
    given = next((arguments[key] for key in ANSWER_KEYS if key in arguments), None)
    if isinstance(given, str):
        return Answer(given)
    if isinstance(given, int | float) and not isinstance(given, bool):
        return Answer(json.dumps(given))
    return _bad(item, f'{ANSWER_NAME} needs "ans", a text or a number.')


# --- writing --------------------------------------------------------------------------------------


def write_json(value: object) -> str:
    """Canonical JSON: one line, any script as it is. Raises ValueError for what is not JSON."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"Calls hold JSON values only: {error}.") from error


def check_readable(parsed: Parsed, again: Parsed) -> None:
    """Raises ValueError, naming the field, where a rendered turn reads as something else."""
    for field in ("thought", "rethought", "calls", "answer"):
        wanted, got = getattr(parsed, field), getattr(again, field)
        if wanted != got:
            raise ValueError(
                f"The {field} would be read back differently, so it is not canonical: "
                f"{repr(wanted)[:MAX_RAW]} became {repr(got)[:MAX_RAW]}."
            )


def signature(spec: ToolSpec) -> str:
    """A tool in one line, `zoom(image, box): Enlarge a region.`; `?` marks what may be left out."""
    required = spec.schema.get("required", ())
    names = [n if n in required else f"{n}?" for n in spec.schema.get("properties", {})]
    first = spec.description.strip().split("\n", 1)[0].strip()
    return f"{spec.name}({', '.join(names)})" + (f": {first}" if first else "")


def part_lines(result: ToolResult, frame: FrameOf) -> Iterator[tuple[Part, ...]]:
    """A line for each part, boxes in the frame of their image; `Error: ` begins a failed result."""
    prefix = "Error: " if result.failed else ""
    for part in result.parts:
        if isinstance(part, Text):
            yield (Text(prefix + part.text),)
        elif isinstance(part, ImageShown):
            yield (Text(f"{prefix}{part.name}: "), part)
        else:
            yield (Text(prefix + _told(part, frame(part.image))),)
        prefix = ""


def _told(part: BoxFound | MaskFound | PointFound, frame: Frame) -> str:
    """What was found: its label, its place, how sure the tool is."""
    if isinstance(part, BoxFound):
        place = _box(part.box, frame)
    elif isinstance(part, PointFound):
        place = _listed(frame.encode((part.point.x, part.point.y)), frame)
    else:
        share = 100 * part.mask.area / (part.mask.width * part.mask.height)
        place = f"{share:.3g}% of the image, {_box(part.mask.bounds, frame)}"
    sure = "" if part.score is None else f" ({part.score:.2f})"
    return f"{part.label} {place}{sure}" if part.label else place + sure


def _box(box: Box, frame: Frame) -> str:
    return _listed(frame.encode_box(box), frame)


def _listed(values: Sequence[float], frame: Frame) -> str:
    return "[" + ", ".join(str(v if frame.is_integral else round(v, 3)) for v in values) + "]"


def merge_texts(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The same parts with neighbouring texts made one and empty ones left out."""
    merged: list[Part] = []
    for are_texts, run in itertools.groupby(parts, key=lambda part: isinstance(part, Text)):
        if not are_texts:
            merged += run
        elif text := "".join(part.text for part in run if isinstance(part, Text)):
            merged.append(Text(text))
    return tuple(merged)
