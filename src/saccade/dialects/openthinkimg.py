"""The action JSON of OpenThinkIMG.

A turn is one object, whatever text stands around it:

    {"thought": "...", "actions": [{"name": "Crop", "arguments": {"image": "img_0"}}]}

The answer is the action `Terminate` with {"ans": "..."} (or {"answer": "..."}). Every action is
read, in order, and so is every such object. Text around objects is dropped, except that what stands
before the first one is the thought where no object has one. Text without an object is a thought.

Invariant: parse never raises, and parse(render(x)) == x for every x that render accepts. Accepted,
because canonical, is a turn whose calls have the ids call_0, call_1 ..., JSON arguments and names
other than terminate, and whose texts hold no half surrogate pairs. A bad call is accepted where its
raw text, as an action, reads as the same bad call again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from saccade.dialects.scan import (
    ANSWER_NAME,
    FrameOf,
    Item,
    Style,
    check_readable,
    collect,
    merge_texts,
    part_lines,
    read_object,
    replace_surrogates,
    signature,
    write_json,
)
from saccade.types import BadCall, ImageShown, Message, Parsed, Part, Text, ToolResult, ToolSpec

__all__ = ["OpenThinkIMG"]

_TERMINATE = "Terminate"
_START = re.compile(r'\{(?=\s*")')
_FORM = '{"thought": "...", "actions": [{"name": "...", "arguments": {...}}]}'
_REQUEST = f"Go on with the next JSON object; {_TERMINATE} answers."


@dataclass(frozen=True, slots=True)
class OpenThinkIMG:
    """Reads and writes turns that are one JSON object of thought and actions."""

    style: Style = "schema"
    """How tools are listed: a JSON schema for each, or a short signature."""
    name: ClassVar[str] = "openthinkimg"
    can_call: ClassVar[bool] = True

    def parse(self, text: str) -> Parsed:
        """One turn of the model. Never raises; time linear in the length."""
        text = replace_surrogates(text)
        thoughts: list[str] = []
        items: list[Item] = []
        stray: list[Item] = []
        before = text
        at = 0
        while opened := _START.search(text, at):
            start = opened.start()
            value, at, reason = read_object(text, start)
            if not items and not stray and not thoughts:
                before = text[:start]
            if value is None:
                items.append(Item(text[start:at], None, reason))
            elif "thought" in value or "actions" in value:
                thought = value.get("thought")
                thoughts.append(thought if isinstance(thought, str) else "")
                items += _actions(value.get("actions", []))
            else:
                stray.append(Item(text[start:at], None, f"The object is not of the form {_FORM}."))
        # An object of another form is only text, unless the turn has nothing else to offer.
        thought = "\n".join(filter(None, thoughts)) or before.strip()
        return collect(thought, items if items or thoughts else stray)

    def render(self, parsed: Parsed) -> str:
        """The canonical text of a turn. Raises ValueError where it would not parse to the same."""
        actions = [
            call.raw if isinstance(call, BadCall) else _action(call.name, call.arguments)
            for call in parsed.calls
        ]
        if parsed.answer is not None:
            actions.append(_action(_TERMINATE, {"ans": parsed.answer.text}))
        thought = write_json(parsed.thought)
        text = f'{{"thought": {thought}, "actions": [{", ".join(actions)}]}}'
        check_readable(parsed, self.parse(text))
        return text

    def instructions(self, specs: Sequence[ToolSpec]) -> str:
        """The system prompt: the tools and, in schema style, the format of a turn."""
        specs = [replace(s, name=_TERMINATE) if s.name.lower() == ANSWER_NAME else s for s in specs]
        if self.style == "silent" or not specs:
            return ""
        if self.style == "signature":
            return "\n".join(signature(spec) for spec in specs)
        tools = "\n".join(
            write_json({"name": s.name, "description": s.description, "parameters": s.schema})
            for s in specs
        )
        return (
            "You may call tools to look again before you answer. "
            "Name images as the conversation does, like img_0.\n"
            f"Tools, with the JSON schema of their arguments:\n{tools}\n\n"
            f"Write each turn as one JSON object:\n{_FORM}\n"
            "Give the final answer by the action "
            f'{{"name": "{_TERMINATE}", "arguments": {{"ans": "..."}}}}, alone in its turn.'
        )

    def observation(
        self, results: Sequence[ToolResult], *, frame: FrameOf, note: str = ""
    ) -> Message:
        """For each call its tool's name, texts, then images; the note and a request to go on."""
        parts: list[Part] = [Text("OBSERVATION:")]
        for result in results:
            call = result.call
            parts.append(Text(f"\n{'action' if isinstance(call, BadCall) else call.name}"))
            lines = list(part_lines(result, frame))
            # A stable sort: texts keep their order, and so do images.
            for line in sorted(lines, key=lambda line: isinstance(line[-1], ImageShown)):
                parts += (Text("\n"), *line)
        parts.append(Text(f"\n{note}\n{_REQUEST}" if note else f"\n{_REQUEST}"))
        return Message("tool", merge_texts(parts))


def _action(name: str, arguments: dict[str, Any]) -> str:
    return write_json({"name": name, "arguments": arguments})


def _actions(value: object) -> list[Item]:
    if not isinstance(value, list):
        return [Item(write_json(value), None, '"actions" must be a list.')]
    return [Item(write_json(action), action) for action in value]
