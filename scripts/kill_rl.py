"""Kill `saccade rl` at random moments with SIGKILL, start it again, compare the final weights.

Runs a deterministic recipe once undisturbed and once killed `--kills` times, each time at a moment
drawn from the whole launch; prints the sha256 of both final checkpoints' weights. Fails where they
differ, and where a launch ended before it could be killed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="charts-tiny")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    command = [
        str(Path(sys.executable).parent / "saccade"),
        "rl",
        given.recipe,
        "deterministic=true",
        *given.overrides,
        "--run",
    ]
    began = time.monotonic()
    subprocess.run([*command, str(given.folder / "whole")], check=True, stderr=subprocess.DEVNULL)
    whole_s = time.monotonic() - began
    draw = random.Random(given.seed)
    killed = 0
    while True:
        running = subprocess.Popen(
            [*command, str(given.folder / "killed")],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        if killed == given.kills:
            assert running.wait() == 0
            break
        expected_s = launch_s(whole_s, whole=given.folder / "whole", killed=given.folder / "killed")
        try:
            running.wait(timeout=draw.uniform(0, expected_s))
            print(f"ended before kill {killed + 1}; fewer kills than asked for")
            break
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            running.wait()
            killed += 1
            done = sorted(p.name for p in (given.folder / "killed" / "checkpoints").glob("step-*"))
            print(f"kill {killed}: last checkpoint {done[-1] if done else 'none'}", flush=True)
    hashes = [digest(given.folder / name) for name in ("whole", "killed")]
    print(f"kills {killed}\nwhole  {hashes[0]}\nkilled {hashes[1]}\nequal {hashes[0] == hashes[1]}")
    raise SystemExit(int(hashes[0] != hashes[1] or killed < given.kills))


def launch_s(whole_s: float, *, whole: Path, killed: Path) -> float:
    """How long the next launch will take: the whole run without the steps that are kept."""
    kept = [int(p.name.removeprefix("step-")) for p in (killed / "checkpoints").glob("step-*")]
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    return whole_s - sum(
        row["seconds_rollout"] + row["seconds_update"]
        for row in rows
        if row["stage"] == "rl" and row["step"] <= max(kept, default=0)
    )


def digest(run: Path) -> str:
    """Of the weights in float32 in the newest checkpoint."""
    newest = max((run / "checkpoints").glob("step-*"))
    state = torch.load(newest / "state.pt", weights_only=True)["model"]
    found = hashlib.sha256()
    for name in sorted(state):
        found.update(name.encode() + state[name].numpy().tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()
