"""The `<tool_call>` JSON of Hermes and Qwen.

A turn is an optional thought and any number of calls:

    thought
    <tool_call>
    {"name": "zoom", "arguments": {"image": "img_0", "box": [1, 2, 3, 4]}}
    </tool_call>

The answer is the call `terminate` with {"ans": "..."}. Text between and behind calls belongs to the
thought.

Invariant: parse never raises, and parse(render(x)) == x for every x that render accepts. Accepted,
because canonical, is a turn whose thought has no white space at its ends and no `<tool_call>`,
whose calls have the ids call_0, call_1 ..., JSON arguments and names other than terminate, and
whose texts hold no half surrogate pairs. A bad call is accepted where its raw text reads as the
same bad call again.

Left out on purpose: the XML calls of later Qwen models, and think tags, which are the renderer's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
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
from saccade.types import BadCall, Message, Parsed, Part, Text, ToolResult, ToolSpec

__all__ = ["Hermes"]

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_START = re.compile(r"<tool_call>\s*")
_END = re.compile(r"\s*</tool_call>")
_TAG = re.compile(r"</?tool_call>")


@dataclass(frozen=True, slots=True)
class Hermes:
    """Reads and writes turns with `<tool_call>` JSON."""

    style: Style = "schema"
    """How tools are listed: a JSON schema for each, or a short signature."""
    name: ClassVar[str] = "hermes"
    can_call: ClassVar[bool] = True

    def parse(self, text: str) -> Parsed:
        """One turn of the model. Never raises; time linear in the length."""
        text = replace_surrogates(text)
        said: list[str] = []
        items: list[Item] = []
        at = 0
        while opened := _START.search(text, at):
            said.append(text[at : opened.start()])
            item, at = _read_block(text, opened.start(), opened.end())
            items.append(item)
        said.append(text[at:])
        stripped = (part.strip() for part in said)
        return collect("\n".join(part for part in stripped if part), items)

    def render(self, parsed: Parsed) -> str:
        """The canonical text of a turn. Raises ValueError where it would not parse to the same."""
        lines = [parsed.thought] if parsed.thought else []
        for call in parsed.calls:
            lines.append(
                call.raw if isinstance(call, BadCall) else _block(call.name, call.arguments)
            )
        if parsed.answer is not None:
            lines.append(_block(ANSWER_NAME, {"ans": parsed.answer.text}))
        text = "\n".join(lines)
        check_readable(parsed, self.parse(text))
        return text

    def instructions(self, specs: Sequence[ToolSpec]) -> str:
        """The system prompt: the tools and, in schema style, the format of a call."""
        if self.style == "silent" or not specs:
            return ""
        if self.style == "signature":
            return "\n".join(signature(spec) for spec in specs)
        tools = "\n".join(
            write_json(
                {
                    "type": "function",
                    "function": {
                        "name": spec.name,
                        "description": spec.description,
                        "parameters": spec.schema,
                    },
                }
            )
            for spec in specs
        )
        return (
            "# Tools\n\nYou may call tools to look again before you answer. "
            f"Their signatures are within <tools></tools>:\n<tools>\n{tools}\n</tools>\n\n"
            "Write each call as a JSON object with the name and the arguments, "
            f"within {_OPEN}{_CLOSE}:\n"
            f'{_OPEN}\n{{"name": <name>, "arguments": <arguments>}}\n{_CLOSE}\n\n'
            "Name images as the conversation does, like img_0. "
            "Give the final answer by a call too, alone in its turn:\n"
            f'{_OPEN}\n{{"name": "{ANSWER_NAME}", "arguments": {{"ans": <answer>}}}}\n{_CLOSE}'
        )

    def observation(
        self, results: Sequence[ToolResult], *, frame: FrameOf, note: str = ""
    ) -> Message:
        """What the calls returned, a `<tool_response>` for each, and the note on its own line."""
        parts: list[Part] = []
        for result in results:
            parts.append(Text("\n<tool_response>" if parts else "<tool_response>"))
            for line in part_lines(result, frame):
                parts += (Text("\n"), *line)
            parts.append(Text("\n</tool_response>"))
        if note:
            parts.append(Text(f"\n{note}" if parts else note))
        return Message("tool", merge_texts(parts))


def _block(name: str, arguments: dict[str, Any]) -> str:
    return f"{_OPEN}\n{write_json({'name': name, 'arguments': arguments})}\n{_CLOSE}"


def _read_block(text: str, start: int, body: int) -> tuple[Item, int]:
    """The call whose tag stands at `start` and whose JSON at `body`, and where reading goes on.

    Where that is no JSON object, the call reaches to the next tag behind what could be read.
    """
    if text.startswith("{", body):
        value, stop, reason = read_object(text, body)
    else:
        value, stop, reason = None, body, f"There is no JSON object after {_OPEN}."
    if value is not None:
        if closed := _END.match(text, stop):
            return Item(text[start : closed.end()], value), closed.end()
        reason = f"There is more than one JSON object before {_CLOSE}."
    tag = _TAG.search(text, stop)
    if tag is not None and tag[0] == _CLOSE:
        return Item(text[start : tag.end()], None, reason), tag.end()
    end = len(text) if tag is None else tag.start()
    return Item(text[start:end].rstrip(), None, f"{_OPEN} is not closed by {_CLOSE}."), end
