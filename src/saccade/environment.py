"""What the numbers of a run may depend on: versions, processor, threads.

Invariant: nothing in it tells who ran it or where: no host, no user, no path.
"""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["environment"]

_PACKAGES = (
    "saccade",
    "numpy",
    "pillow",
    "pydantic",
    "scipy",
    "matplotlib",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "peft",
    "trl",
)


def environment(*, threads: int | None = None, device: str = "cpu") -> dict[str, Any]:
    """What a run's numbers may depend on: versions, processor, threads. No hosts, users, paths."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": _cores(),
        "threads": threads,
        "device": device,
        "packages": versions,
    }


def _cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu() -> str:
    try:
        found = re.search(
            r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE
        )
    except OSError:
        found = None
    return found[1] if found else platform.processor() or "unknown"
