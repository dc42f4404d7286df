"""Throws generated and mutated turns at every dialect's parser, and times it on hostile ones.

    python scripts/fuzz_parsers.py --count 1000000 --seed 0
    python scripts/fuzz_parsers.py --linear

The first ends with status 1, and prints the string, where a parser raises, returns something that
can't be stored as UTF-8, numbers calls out of order, or reads its own rendering differently. The
second prints the time of a byte at growing lengths and, last, over the first: about 1 is linear.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from saccade.dialects import DIALECTS, Dialect, dialect
from saccade.dialects.scan import MAX_RAW
from saccade.types import Answer, BadCall, Parsed, ToolCall

BATCH = 2000
LENGTHS = (1 << 10, 1 << 14, 1 << 17, 1 << 20)

PIECES = (
    *"{}[]\",:\\/'<>\n\t -+.eE0123456789aZ",
    *("\x00", "\x1f", "\x7f", "\u2028", "\ufeff", "\ud83d", "\ude00", "é", "日本", "😀", "ﷺ"),
    *("<tool_call>", "</tool_call>", "<tool_call", "\n</tool_call>", "<tool_response>"),
    *('{"name": ', '"arguments": {', '{"thought": "', '"actions": [', '"ans": ', '"answer": '),
    *("terminate", "Terminate", '"zoom"', "true", "false", "null", "NaN", "-Infinity", "1e999"),
    *('{"', '"}', '":', '\\"', "\\\\", "\\u0000", "\\ud800", "\\udc00", "\\u12", "```json\n"),
    *("{" * 70, "}" * 70, "[" * 70, "]" * 70, '{"a":' * 70, '"' * 9, "9" * 400, "0." + "3" * 400),
)
WORDS = (
    *("", "look at the bar", "a {brace} and [bracket]", "he said \\", 'a "quote"', "Terminate"),
    *("</tool_call>", "<tool_call>", '{"thought": "x", "actions": []}', "née 日本語 😀", "\x00\n"),
)
HOSTILE: dict[str, Callable[[int], str]] = {
    "open braces": lambda n: "{" * n,
    "open brackets": lambda n: "[" * n,
    "objects in lists": lambda n: '[{"a":' * (n // 6),
    "objects in objects": lambda n: '{"a":' * (n // 5),
    "objects with a break": lambda n: '{"a"x' * (n // 5),
    "balanced nesting": lambda n: '{"a":' * (n // 6) + "1" + "}" * (n // 6),
    "empty behind open ones": lambda n: '{"a" ' * 60 + "{}" * (n // 2),
    "quotes": lambda n: '"' * n,
    "escaped quotes": lambda n: '{"' + '\\"' * (n // 2),
    "backslashes": lambda n: "\\" * n,
    "backslashes in string": lambda n: '<tool_call>{"a": "' + "\\\\" * (n // 2),
    "tags": lambda n: "<tool_call>" * (n // 11),
    "tags and braces": lambda n: "<tool_call>{" * (n // 12),
    "tags and quotes": lambda n: '<tool_call>{"' * (n // 13),
    "tags and two quotes": lambda n: '<tool_call>{"a":"' * (n // 17),
    "tags and space": lambda n: ("<tool_call>" + " " * 50) * (n // 61),
    "closing tags": lambda n: "</tool_call>" * (n // 12),
    "unclosed string": lambda n: '<tool_call>\n{"name": "' + "a" * n,
    "unclosed string lines": lambda n: '{"name": "a\n' * (n // 12),
    "spaces": lambda n: " " * n,
    "braces and spaces": lambda n: ("{" + " " * 50) * (n // 51),
    "half surrogate pairs": lambda n: "\ud800" * n,
    "escaped half pairs": lambda n: '{"thought": "' + "\\ud800" * (n // 6) + '"}',
    "one long number": lambda n: '{"thought": ' + "9" * n + "}",
    "many numbers": lambda n: '{"thought": [' + "1," * (n // 2) + "1]}",
    "many actions": lambda n: '{"actions": [' + '{"name": 1},' * (n // 12) + "1]}",
    "valid calls": lambda n: '<tool_call>{"name": "a", "arguments": {}}</tool_call>' * (n // 53),
}


def random_json(rng: random.Random, depth: int = 0) -> Any:
    """A JSON value, mostly shallow."""
    kind = rng.randrange(9 if depth < 3 else 6)
    if kind >= 7:
        return {rng.choice(WORDS): random_json(rng, depth + 1) for _ in range(rng.randrange(4))}
    if kind == 6:
        return [random_json(rng, depth + 1) for _ in range(rng.randrange(5))]
    return (rng.choice(WORDS), rng.randrange(-9, 1001), rng.random() * 1e6, True, None, "img_0")[
        kind
    ]


def random_turn(rng: random.Random) -> Parsed:
    """A turn that a dialect can render, unless its thought holds a tag."""
    calls = tuple(
        ToolCall(f"call_{i}", rng.choice(("zoom", "crop", "日")), {"box": random_json(rng)})
        for i in range(rng.randrange(4))
    )
    answer = Answer(rng.choice(WORDS)) if rng.random() < 0.4 else None
    return Parsed(rng.choice(WORDS).strip(), calls, answer)


def generate(rng: random.Random, dialects: tuple[Dialect, ...]) -> str:
    """A string of pieces, or a rendered turn with some mutations (now and then none)."""
    if rng.random() < 0.4:
        return "".join(rng.choices(PIECES, k=rng.randrange(1, 40)))
    try:
        text = rng.choice(dialects).render(random_turn(rng))
    except ValueError:
        text = "<tool_call>".join(rng.choices(WORDS, k=3))
    for _ in range(rng.randrange(6)):
        a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        middle = rng.choice(("", text[a:b] * 2, rng.choice(PIECES), text[a:b][::-1]))
        text = rng.choice((text[:a] + middle + text[b:], text[:a] + middle + text[a:], text[:b]))
    return text


def check(reader: Dialect, text: str) -> None:
    """Raises AssertionError, or whatever the parser raised, where it breaks a promise."""
    parsed = reader.parse(text)
    repr(parsed).encode()
    json.dumps([c.arguments for c in parsed.calls if isinstance(c, ToolCall)], allow_nan=False)
    ids = [c.id for c in parsed.calls if isinstance(c, ToolCall)]
    assert ids == [f"call_{i}" for i in range(len(ids))], "ids out of order"
    bad = [c for c in parsed.calls if isinstance(c, BadCall)]
    assert all(c.reason and len(c.raw) <= MAX_RAW for c in bad), "a bad call without a reason"
    if not bad:
        assert reader.parse(reader.render(parsed)) == parsed, "its rendering reads differently"


def fuzz_batch(job: tuple[int, int, int]) -> str:
    """Empty, or the first string of the batch that broke a promise, with the traceback."""
    seed, number, count = job
    rng = random.Random(f"{seed}/{number}")
    dialects = tuple(dialect(name) for name in DIALECTS)
    for _ in range(count):
        text = generate(rng, dialects)
        for reader in dialects:
            try:
                check(reader, text)
            except Exception:  # the boundary of a fuzzer: whatever was raised is the finding
                return f"{reader.name} on {text!r}\n{traceback.format_exc()}"
    return ""


def fuzz(count: int, seed: int, processes: int, console: Console) -> int:
    """Exit status: 0 where `count` strings went through every dialect."""
    batches = range(0, count, BATCH)
    jobs = [(seed, i, min(BATCH, count - start)) for i, start in enumerate(batches)]
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    start = time.perf_counter()
    with (
        multiprocessing.get_context("spawn").Pool(processes) as pool,
        Progress(*columns, console=console) as progress,
    ):
        bar = progress.add_task("strings", total=count)
        for job, finding in zip(jobs, pool.imap(fuzz_batch, jobs), strict=True):
            if finding:
                console.print(finding, markup=False, highlight=False)
                return 1
            progress.advance(bar, job[2])
    seconds = time.perf_counter() - start
    names = " and ".join(DIALECTS)
    console.print(f"{count:,} strings through {names}: no exception, {seconds:.0f} s, seed {seed}.")
    return 0


def seconds_for(reader: Dialect, text: str) -> float:
    """The best of three, or of as many as fit half a second."""
    best, spent = float("inf"), 0.0
    for _ in range(3):
        start = time.process_time()
        reader.parse(text)
        spent += (took := time.process_time() - start)
        best = min(best, took)
        if spent > 0.5:
            break
    return best


def linear(console: Console) -> int:
    """Exit status: 0 where no time of a byte grows more than fourfold from 16 KB to 1 MB."""
    table = Table(title="ns per byte", box=SIMPLE, padding=0)
    for header in ("input", "dialect", *(f"{n >> 10}K" for n in LENGTHS), "growth"):
        table.add_column(header, no_wrap=True, justify="left" if header == "input" else "right")
    worst = 0.0
    with Progress(console=console) as progress:
        for what in progress.track(HOSTILE, description="hostile inputs"):
            for name in DIALECTS:
                reader = dialect(name)
                texts = [HOSTILE[what](n) for n in LENGTHS]
                each = [1e9 * seconds_for(reader, text) / len(text) for text in texts]
                ratio = each[-1] / each[1]
                worst = max(worst, ratio)
                table.add_row(what, name, *(f"{t:.0f}" for t in each), f"{ratio:.2f}")
    console.print(table)
    console.print(f"Largest growth of the time of a byte, 64 times the length: {worst:.2f}.")
    return 0 if worst < 4 else 1


def main() -> int:
    """Parses flags and runs one of the two."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="strings to try")
    parser.add_argument("--seed", type=int, default=0, help="of the strings")
    parser.add_argument("--processes", type=int, default=2, help="that share the work")
    parser.add_argument("--linear", action="store_true", help="time hostile inputs instead")
    flags = parser.parse_args()
    console = Console()
    return (
        linear(console) if flags.linear else fuzz(flags.count, flags.seed, flags.processes, console)
    )


if __name__ == "__main__":
    sys.exit(main())
