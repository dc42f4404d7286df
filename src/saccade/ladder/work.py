"""The jobs of a ladder, each an ordinary run in a folder of its own: one after the other, or in
processes, several at a time.

Invariant: a job that is done is not done again, and whether it is done is read off its folder.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from saccade import measure, rl, sft
from saccade.assemble import is_same_start, lineage_of, made_by, task_of
from saccade.config import Recipe
from saccade.dialects import dialect
from saccade.errors import SaccadeError
from saccade.evaluate import SampleRow
from saccade.ladder import foreign
from saccade.ladder.arms import Arm, Data
from saccade.measure import rows_of
from saccade.progress import progress
from saccade.run_folder import RunFolder
from saccade.synth.chains import self_made
from saccade.synth.gold import gold_chains
from saccade.synth.kept import answers_only, kept_rollouts
from saccade.synth.replay import Demonstration, write_demonstrations
from saccade.tasks import BETWEEN_SEEDS
from saccade.tasks.stored import Stored
from saccade.types import Outcome

__all__ = ["Action", "Job", "Work", "workers"]

Action = Literal["train", "measure", "score"] | Data


APART = 5 * 10**6
"""Where the questions of self-made demonstrations begin in a seed's stretch: none of them is one
that `rl` reads."""


class Job(NamedTuple):
    """One run in a process of its own."""

    action: Action
    arm: Arm
    recipe: Recipe

    @property
    def rows(self) -> list[SampleRow]:
        """What a measurement has found so far."""
        assert self.recipe.run is not None
        return rows_of(RunFolder(self.recipe.run), items=self.recipe.eval.items)

    @property
    def items(self) -> int:
        """How many a measurement asks: all of a split that has fewer than it should."""
        items, size = self.recipe.eval.items, task_of(self.recipe).size(self.recipe.eval.split)
        return items if size is None else min(items, size)


class Work:
    """Does jobs, several at the same time, and shows how far they are."""

    def __init__(self, pool: ProcessPoolExecutor | None, top: Path) -> None:
        self._pool, self._top = pool, top

    def __call__(self, jobs: Sequence[Job], what: str) -> None:
        """Returns when all are done. Raises the first error once the jobs under way have ended."""
        missing = [job for job in jobs if not _is_done(job)]
        if not missing:
            return
        if self._pool is None:
            for job in missing:
                _do(job, self._top)
            return
        with progress(f"ladder: {what}", total=len(jobs), done=len(jobs) - len(missing)) as bar:
            futures: list[Future[None]] = [
                self._pool.submit(_do, job, self._top) for job in missing
            ]
            for future in futures:
                future.add_done_callback(lambda _: bar.advance())
            done, waiting = wait(futures, return_when=FIRST_EXCEPTION)
            for future in waiting:
                future.cancel()
            try:
                for future in done:
                    future.result()
            except BrokenProcessPool:
                raise SaccadeError(
                    f"A worker of the ladder was killed while it was to {what}, perhaps for want "
                    f"of memory: see {str(self._top / 'logs')!r}, and start the ladder again, "
                    "which goes on; ladder.jobs=1 needs least."
                ) from None


@contextmanager
def workers(jobs: int, top: Path) -> Iterator[Work]:
    """One job at a time in this process, or several in processes whose words go to `logs/`."""
    if jobs == 1:
        yield Work(None, top)
        return
    logs = top / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    pool = ProcessPoolExecutor(
        jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_worker,
        initargs=(str(logs),),
    )
    try:
        yield Work(pool, top)
    finally:
        pool.shutdown(cancel_futures=True)


def _begin_worker(folder: str) -> None:
    """Log to a file of its own, and end with the ladder: a worker that outlived it would hold the
    folders that the next start needs.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    number = multiprocessing.current_process().name.rpartition("-")[2]
    path = Path(folder) / f"worker-{number}.log"
    sys.stderr = path.open("a", buffering=1, encoding="utf-8")


def _is_done(job: Job) -> bool:
    folder = job.recipe.run
    assert folder is not None
    if job.action == "train":
        assert job.arm.stage in ("sft", "rl")
        model = folder / "model"
        wanted = made_by(job.recipe, stage=job.arm.stage, start=job.recipe.model)
        made = model.is_dir() and lineage_of(str(model)) == wanted
        return made and is_same_start(RunFolder(folder), job.recipe, stage=job.arm.stage)
    if job.action in ("measure", "score"):
        rows = job.rows if folder.is_dir() else []
        ours = any(r.stop.outcome is Outcome.OURS for r in rows)  # to be asked again
        if len(rows) < job.items or (ours and job.action == "measure"):
            return False
        # else it is begun again, which says what has changed
        return job.action == "score" or is_same_start(RunFolder(folder), job.recipe, stage="eval")
    return (folder / "demonstrations.jsonl").is_file()


def _do(job: Job, top: Path) -> None:
    recipe = job.recipe
    assert recipe.run is not None
    if job.action == "train":
        (sft.run if job.arm.stage == "sft" else rl.run)(recipe)
    elif job.action == "measure":
        measure.run(recipe, arm=job.arm.name, samples=_samples(recipe, top))
    elif job.action == "score":
        assert job.arm.episodes is not None
        task = Stored(task_of(recipe), _samples(recipe, top))
        path = foreign.episodes_file(job.arm.episodes, recipe.eval.split)
        foreign.score(recipe, task, path, arm=job.arm.name, items=job.items)
    else:
        began = time.monotonic()
        found, drawn = _demonstrations(job)
        with RunFolder(recipe.run) as folder:
            folder.write_json("drawn", {**drawn, "seconds": time.monotonic() - began})
            write_demonstrations(recipe.run / "demonstrations.jsonl", found)  # last: it is done


def _demonstrations(job: Job) -> tuple[list[Demonstration], dict[str, float]]:
    """What an arm learns from, and what it took to draw it."""
    recipe = job.recipe
    task = task_of(recipe)
    if job.action in ("self-made", "self-made-blank"):
        count = recipe.ladder.self_made
        made = self_made(
            recipe,
            split="train",
            start=recipe.seed * BETWEEN_SEEDS + APART + job.arm.depth * count,
            count=count,
            tries=recipe.ladder.self_made_tries,
            blank=job.action == "self-made-blank",
        )
        return list(made.demonstrations), {"episodes": made.asked, "written": made.written}
    count = task.size("train") or recipe.rl.steps * recipe.rl.prompts_per_step
    if job.action == "kept":
        kept = kept_rollouts(
            recipe,
            split="train",
            count=recipe.rl.steps * recipe.rl.prompts_per_step,
            rollouts=recipe.ladder.rollouts_kept,
            most_per_sample=1,
        )
        drawn: dict[str, float] = {"episodes": kept.tried, "written": kept.written}
        drawn["right"] = kept.right
        return list(kept.demonstrations), drawn
    if job.action == "chains":
        return gold_chains(recipe, split="train", count=count), {}
    found = answers_only(
        task,
        split="train",
        start=0,
        count=count,
        seed=recipe.seed,
        dialect=dialect(recipe.dialect, style=recipe.tool_style),
    )
    return found, {}


def _samples(recipe: Recipe, top: Path) -> Path:
    """Where samples that are slow to make are stored: arms may have tasks of their own."""
    drawn_by = [recipe.task.model_dump(mode="json"), recipe.max_image_tokens]
    if recipe.eval.split == "train":  # few items are others at each seed
        drawn_by.append(recipe.seed)
    task = json.dumps(drawn_by, sort_keys=True)
    return top / "samples" / hashlib.sha256(task.encode()).hexdigest()[:12]
