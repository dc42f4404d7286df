"""What is stored of the machine, and what is not."""

from __future__ import annotations

import json
import os
from pathlib import Path

from saccade.environment import environment
from saccade.run_folder import RunFolder


def test_the_environment_names_versions_and_threads_and_no_one(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.write_env(threads=2)
        env = run.read_json("env")
    assert env == environment(threads=2)
    assert env["threads"] == 2
    assert env["packages"]["numpy"]
    text = json.dumps(env)
    assert os.uname().nodename not in text
    assert str(Path.home()) not in text
