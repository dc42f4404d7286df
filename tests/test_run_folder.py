"""The run folder under kills, full disks and second writers."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saccade.atomic_files import write_atomic
from saccade.errors import DataError, StorageError
from saccade.run_folder import RunFolder

# --- rows -----------------------------------------------------------------------------------------


def test_rows_come_back_in_order_and_in_any_script(tmp_path: Path) -> None:
    rows = [{"step": 1, "text": "größer \u2028 日本"}, {"step": 2, "text": "\ud800 \x00 \n"}]
    with RunFolder(tmp_path / "run") as run:
        for row in rows:
            run.append("metrics", row)
        assert run.read("metrics") == rows
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes().isascii()


@given(cut=st.integers(0, 60), more=st.booleans())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_anywhere_keeps_its_whole_rows_and_goes_on(
    tmp_path: Path, cut: int, more: bool
) -> None:
    rows = [{"step": n, "text": "é" * n} for n in range(3)]
    data = b"".join(json.dumps(r).encode() + b"\n" for r in rows)
    cut = min(cut, len(data))
    folder = tmp_path / f"{cut}-{more}"
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_bytes(data[:cut])
    whole = [r for n, r in enumerate(rows) if len(b"\n".join(data.split(b"\n")[: n + 1])) <= cut]
    assert RunFolder(folder).read("metrics") == whole
    assert (folder / "metrics.jsonl").read_bytes() == data[:cut]  # a mere reader changes nothing
    with RunFolder(folder) as run:
        if more:
            run.append("metrics", {"step": 9})
            whole = [*whole, {"step": 9}]
        assert run.read("metrics") == whole
    text = (folder / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == whole


def test_a_broken_line_before_the_last_is_named(tmp_path: Path) -> None:
    (tmp_path / "episodes.jsonl").write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(DataError, match=r"episodes\.jsonl line 2 .*delete"):
        RunFolder(tmp_path).read("episodes")
    (tmp_path / "episodes.jsonl").write_text('{"a": 1}\n[2]\n')
    with pytest.raises(DataError, match="line 2"):
        RunFolder(tmp_path).read("episodes")
    (tmp_path / "episodes.jsonl").write_text('{"a": 1}\n{"a": ' + "[" * 200_000 + "\n")
    with pytest.raises(DataError, match="line 2"):
        RunFolder(tmp_path).read("episodes")
    (tmp_path / "start.json").write_text("[" * 200_000)
    with pytest.raises(DataError, match=r"start\.json is no JSON: .*nested"):
        RunFolder(tmp_path).read_json("start")


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.append("metrics", {"loss": math.nan, "more": (1.5, [math.inf])})
        assert run.read("metrics") == [{"loss": None, "more": [1.5, [None]]}]
        run.write_json("results", {"x": -math.inf})
        assert run.read_json("results") == {"x": None}


def test_truncate_drops_the_rows_of_the_interrupted_step_and_appends_go_on(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        for step in (1, 2, 3):
            run.append("metrics", {"step": step})
        run.append("metrics", {"note": "no step"})
        assert run.truncate("metrics", key="step", after=2) == 1
        run.append("metrics", {"step": 3, "again": True})
        assert run.read("metrics") == [
            {"step": 1},
            {"step": 2},
            {"note": "no step"},
            {"step": 3, "again": True},
        ]
        assert run.truncate("absent", key="step", after=0) == 0


def test_names_that_leave_the_folder_are_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    for name in ("../metrics", "a/b", "", ".lock"):
        with pytest.raises(ValueError, match="plain name"):
            run.read(name)


def test_a_kill_at_any_moment_leaves_whole_rows_and_a_whole_checkpoint(tmp_path: Path) -> None:
    script = (
        "import sys, itertools\n"
        "from pathlib import Path\n"
        "from saccade.run_folder import RunFolder\n"
        "run = RunFolder(Path(sys.argv[1]))\n"
        "run.lock()\n"
        "last = run.latest_checkpoint()\n"
        "for step in itertools.count(last[0] + 1 if last else 0):\n"
        "    run.append('metrics', {'step': step, 'pad': 'x' * 20000})\n"
        "    def write(folder):\n"
        "        for part in range(3):\n"
        "            (folder / str(part)).write_text(str(step) * 3000)\n"
        "    run.save_checkpoint(step, write)\n"
        "    print(step, flush=True)\n"
    )
    reported = -1
    for delay in (0.0, 0.01, 0.03):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "run")], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        first = int(process.stdout.readline())  # it runs
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        rest = [int(line) for line in process.stdout.read().split()]
        process.wait()
        process.stdout.close()
        assert first == reported + 1 or first == reported + 2
        reported = rest[-1] if rest else first
        with RunFolder(tmp_path / "run") as run:  # a dead process's lock is free
            latest = run.latest_checkpoint()
            assert latest is not None
            step, folder = latest
            assert step in (reported, reported + 1)
            reported = step
            for part in range(3):
                assert (folder / str(part)).read_text() == str(step) * 3000
            run.truncate("metrics", key="step", after=step)
            assert [r["step"] for r in run.read("metrics")] == list(range(step + 1))


# --- one writer -----------------------------------------------------------------------------------


def test_two_writers_of_one_run_are_told_apart_and_readers_are_free(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "demo"), RunFolder(tmp_path / "demo")
    first.append("metrics", {"step": 1})
    with pytest.raises(StorageError, match=f"Process {os.getpid()} is writing run 'demo'"):
        second.append("metrics", {"step": 2})
    assert second.read("metrics") == [{"step": 1}]
    first.close()
    second.append("metrics", {"step": 2})
    assert second.read("metrics") == [{"step": 1}, {"step": 2}]
    second.close()


def test_a_forked_worker_does_not_keep_the_run_locked(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.lock()
    awake, done = os.pipe(), os.pipe()
    worker = os.fork()
    if worker == 0:
        os.write(awake[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    os.read(awake[0], 1)
    run.close()
    try:
        with RunFolder(tmp_path) as again:
            again.append("metrics", {})
    finally:
        os.write(done[1], b"x")
        os.waitpid(worker, 0)
        for fd in (*awake, *done):
            os.close(fd)


# --- whole or not at all --------------------------------------------------------------------------


def test_json_is_replaced_whole_and_leaves_no_litter(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.write_json("results", {"arms": {}})
        with pytest.raises(TypeError):
            run.write_json("results", {"bad": object()})
        assert run.read_json("results") == {"arms": {}}
        assert run.read_json("results.json") == {"arms": {}}
        assert run.read_json("absent") is None
        run.write_recipe("seed: 1\n")
        assert run.recipe() == "seed: 1\n"
        assert {p.name for p in tmp_path.iterdir()} == {".lock", "results.json", "recipe.yaml"}
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(DataError, match=r"results\.json is no JSON"):
        RunFolder(tmp_path).read_json("results")


def _fill(folder: Path) -> None:
    (folder / "weights").write_bytes(b"w" * 10)


def test_checkpoints_rotate_and_partial_ones_are_not_seen(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        assert run.latest_checkpoint() is None
        for step in (0, 9, 10, 1_000_000):
            path = run.save_checkpoint(step, _fill)
        assert run.latest_checkpoint() == (1_000_000, path)
        assert path.name == "step-1000000"
        (tmp_path / "checkpoints" / ".tmp-step-2000000").mkdir()
        (tmp_path / "checkpoints" / "notes").mkdir()
        assert run.latest_checkpoint() == (1_000_000, path)
        run.save_checkpoint(1_000_001, _fill, keep=1)
        names = {p.name for p in (tmp_path / "checkpoints").iterdir()}
        assert names == {"step-1000001", "notes"}


def test_a_checkpoint_saved_again_replaces_the_first(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as run:
        run.save_checkpoint(3, _fill, keep=1)
        run.save_checkpoint(3, lambda f: (f / "weights").write_bytes(b"new") and None, keep=1)
        latest = run.latest_checkpoint()
        assert latest is not None
        assert (latest[1] / "weights").read_bytes() == b"new"
        # killed between the two moves of a replacement: the old one still counts
        latest[1].rename(latest[1].with_name(".old-step-000003"))
        latest = run.latest_checkpoint()
        assert latest is not None
        assert latest[0] == 3
        run.save_checkpoint(4, _fill, keep=1)
        assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-000004"]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "The disk is full.*free some space"),
        (errno.EDQUOT, "The disk is full"),
        (errno.EACCES, "No permission to write"),
        (errno.EROFS, "read-only"),
        (errno.EIO, "check it"),
    ],
)
def test_a_failed_checkpoint_is_one_sentence_and_leaves_the_last_whole(
    tmp_path: Path, code: int, words: str
) -> None:
    def fail(folder: Path) -> None:
        (folder / "weights").write_bytes(b"half")
        raise OSError(code, os.strerror(code), str(folder / "weights"))

    with RunFolder(tmp_path / "demo") as run:
        saved = run.save_checkpoint(1, _fill, keep=1)
        with pytest.raises(StorageError, match=words) as caught:
            run.save_checkpoint(2, fail, keep=1)
        assert "step-000002 of run 'demo'" in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert run.latest_checkpoint() == (1, saved)
        assert [p.name for p in saved.parent.iterdir()] == ["step-000001"]
        assert (saved / "weights").read_bytes() == b"w" * 10


def test_a_full_disk_is_known_through_the_errors_of_tensor_libraries(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    def bug(folder: Path) -> None:
        raise RuntimeError("shapes differ")

    with RunFolder(tmp_path) as run:
        with pytest.raises(StorageError, match="The disk is full"):
            run.save_checkpoint(1, fail)
        with pytest.raises(RuntimeError, match="shapes differ"):
            run.save_checkpoint(1, bug)
        assert run.latest_checkpoint() is None


def test_a_row_that_does_not_fit_the_disk_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    left = [25]

    def small_disk(fd: int, data: memoryview) -> int:
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = real(fd, data[: left[0]])
        left[0] -= written
        return written

    with RunFolder(tmp_path) as run:
        monkeypatch.setattr(os, "write", small_disk)
        run.append("metrics", {"step": 1})
        with pytest.raises(StorageError, match=r"The disk is full, metrics\.jsonl was not written"):
            run.append("metrics", {"step": 2, "pad": "xxxxxxxxxxxxxxxx"})
        monkeypatch.setattr(os, "write", real)
        assert (tmp_path / "metrics.jsonl").read_text() == '{"step":1}\n'
        run.append("metrics", {"step": 2})
        assert run.read("metrics") == [{"step": 1}, {"step": 2}]


def test_a_file_in_the_place_of_the_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StorageError, match="A file stands where the folder of run 'run' should be"):
        RunFolder(tmp_path / "run")
    with pytest.raises(StorageError, match="A file stands"):
        RunFolder(tmp_path / "run" / "deeper")
    with pytest.raises(StorageError):
        write_atomic(tmp_path / "absent" / "x", b"")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="No permission to write"):
            RunFolder(tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)
