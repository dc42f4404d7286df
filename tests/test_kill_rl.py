"""The script that kills `saccade rl`: it says so where it could not do what it was asked for."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

FILE = Path(__file__).parents[1] / "scripts" / "kill_rl.py"


def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kill_rl", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_folder(folder: Path, *, step: int) -> None:
    """A run of steps of two seconds with a checkpoint at `step`."""
    checkpoint = folder / "checkpoints" / f"step-{step:06d}"
    checkpoint.mkdir(parents=True)
    torch.save({"model": {"w": torch.zeros(1)}}, checkpoint / "state.pt")
    rows = (
        {"stage": "rl", "step": k, "seconds_rollout": 1.5, "seconds_update": 0.5}
        for k in range(1, 5)
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


class Launch:
    """A launch that ends before anyone can kill it, or one that waits to be killed."""

    ends = True
    waited: list[float | None] = []  # noqa: RUF012

    def __init__(self, command: list[str], **_: object) -> None:
        self.folder = Path(command[-1])

    def wait(self, timeout: float | None = None) -> int:
        self.waited.append(timeout)
        if timeout is not None and not self.ends:
            raise subprocess.TimeoutExpired("saccade", timeout)
        if not self.folder.exists():
            run_folder(self.folder, step=4)
        return 0

    def send_signal(self, number: int) -> None:
        pass


@pytest.mark.parametrize(("ends", "code"), [(True, 1), (False, 0)])
def test_fewer_kills_than_asked_for_are_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: bool, code: int
) -> None:
    def whole(command: list[str], **_: object) -> None:
        run_folder(Path(command[-1]), step=4)

    monkeypatch.setattr(subprocess, "run", whole)
    monkeypatch.setattr(subprocess, "Popen", Launch)
    monkeypatch.setattr(Launch, "ends", ends)
    monkeypatch.setattr(sys, "argv", ["kill_rl.py", "--folder", str(tmp_path), "--kills", "2"])
    with pytest.raises(SystemExit) as ended:
        script().main()
    assert ended.value.code == code


def test_a_launch_is_as_long_as_the_whole_run_without_the_steps_that_are_kept(
    tmp_path: Path,
) -> None:
    run_folder(tmp_path / "whole", step=4)
    launch_s = script().launch_s
    assert launch_s(11.0, whole=tmp_path / "whole", killed=tmp_path / "killed") == 11.0
    run_folder(tmp_path / "killed", step=3)
    assert launch_s(11.0, whole=tmp_path / "whole", killed=tmp_path / "killed") == 5.0
