"""Processes of this machine, as /proc tells them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

__all__ = ["children", "command", "cpu_s", "descendants"]

_TICKS = os.sysconf("SC_CLK_TCK")
_GONE = (FileNotFoundError, ProcessLookupError)


def children(pid: int) -> list[int]:
    """Those that it started and that it has not buried yet."""
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(p) for p in (task / "children").read_text().split()]
    except _GONE:
        pass
    return found


def descendants(pid: int) -> list[int]:
    """Its children, theirs, and so on."""
    own = children(pid)
    return own + [p for child in own for p in descendants(child)]


def command(pid: int) -> bytes:
    """Empty where it is gone or dead."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except _GONE:
        return b""


def cpu_s(pids: Sequence[int]) -> float:
    """Processor time of processes so far, in steps of a hundredth of a second."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except _GONE:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS
