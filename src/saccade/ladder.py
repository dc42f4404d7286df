"""The ladder: arms that differ from a neighbour by one setting, trained from the same
demonstrations at several seeds, measured on the same items, and compared.

Invariant: every arm's learning rate is chosen on validation items before any test item is asked,
and the recipe of a ladder can't change once its folder exists. Every run is an ordinary one in a
folder of its own, so that a killed ladder goes on where it stopped; what a test split was read for
stands in `ledger.jsonl`.

Left out on purpose: figures (`saccade.ladder_figures`) and the page that shows them.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from saccade import measure, rl, sft
from saccade.assemble import made_by, task_of
from saccade.atomic_files import Reading
from saccade.config import LadderConfig, Recipe
from saccade.dialects import dialect
from saccade.episode_json import episode_from_json
from saccade.errors import DataError, RecipeError
from saccade.evaluate import SampleRow, row_of
from saccade.ladder_figures import (
    Resampling,
    arm_figures,
    differences,
    gain_and_harm,
    majority_level,
)
from saccade.progress import progress
from saccade.recipe_files import changed, dump_recipe, recipe_from
from saccade.run_folder import RunFolder
from saccade.synth import write_demonstrations
from saccade.synth_kept import answers_only, kept_rollouts
from saccade.types import Outcome

__all__ = ["Arm", "arms_of", "run", "trained_model"]

Stage = Literal["eval", "sft", "rl", "score"]
LEAST_RESAMPLES = 100


@dataclass(frozen=True, slots=True)
class Arm:
    """An arm with everything that it has from its neighbours."""

    name: str
    stage: Stage
    start: str | None
    data: Literal["demonstrations", "answers", "kept"]
    settings: Mapping[str, Any]
    episodes: Path | None
    differs: str
    """From its neighbour, in words."""
    varies: bool
    """Whether its model depends on the seed."""
    depth: int
    """Trained arms below it."""

    @property
    def is_trained(self) -> bool:
        return self.stage in ("sft", "rl")


class Job(NamedTuple):
    """One run in a process of its own."""

    action: Literal["train", "answers", "kept", "measure"]
    arm: Arm
    recipe: Recipe


def arms_of(config: LadderConfig) -> dict[str, Arm]:
    """The arms by name, each with what it has from its neighbours. Raises RecipeError for an arm
    whose settings contradict each other.
    """
    found: dict[str, Arm] = {}
    for name, given in config.arms.items():
        like = found.get(given.like or "")
        stage = given.stage or (like.stage if like else "eval")
        start = given.start or (like.start if like else None)
        data = given.data or (like.data if like else "demonstrations")
        episodes = given.episodes or (like.episodes if like else None)
        if (stage == "score") != (episodes is not None):
            raise RecipeError(
                f"ladder.arms.{name}: stage score and a file of episodes belong together, "
                f"got stage {stage} and episodes {episodes}."
            )
        if data != "demonstrations" and stage != "sft":
            raise RecipeError(
                f"ladder.arms.{name}: only stage sft learns from {data}, got stage {stage}."
            )
        below = found[start] if start else None
        is_trained = stage in ("sft", "rl")
        found[name] = Arm(
            name=name,
            stage=stage,
            start=start,
            data=data,
            settings={**(like.settings if like else {}), **given.set},
            episodes=episodes,
            differs=_difference(given.model_dump(exclude_unset=True), like=given.like),
            varies=is_trained or (below is not None and below.varies),
            depth=(below.depth if below else 0) + is_trained,
        )
    return found


def _chosen(arms: dict[str, Arm], only: Sequence[str]) -> dict[str, Arm]:
    """These arms, and those that they start from."""
    if not only:
        return arms
    wanted: set[str] = set()
    for name in only:
        below: str | None = name
        while below is not None:
            wanted.add(below)
            below = arms[below].start
    return {name: arm for name, arm in arms.items() if name in wanted}


def _difference(given: dict[str, Any], *, like: str | None) -> str:
    given.pop("like", None)
    settings = given.pop("set", {})
    told = [f"{k}: {json.dumps(v, default=str)}" for k, v in (given | settings).items()]
    return (f"{like}, " if like else "") + ", ".join(told)


def run(recipe: Recipe) -> dict[str, Any]:
    """Train and measure all arms of the recipe in its run folder, or go on with them; returns the
    content of `ladder.json`.

    Raises RecipeError where the recipe has no arms, or the folder was begun with another recipe.
    """
    config = recipe.ladder
    if not config.arms:
        raise RecipeError("The recipe has no ladder.arms; recipe charts-tiny shows a whole ladder.")
    if recipe.eval.bootstrap < LEAST_RESAMPLES:
        raise RecipeError(
            f"A ladder needs eval.bootstrap of at least {LEAST_RESAMPLES} for its intervals, "
            f"got {recipe.eval.bootstrap}."
        )
    arms = _chosen(arms_of(config), config.only)
    top = recipe.run or Path("runs/ladder")
    recipe = recipe.model_copy(update={"run": top})
    with RunFolder(top) as folder:
        _check_same_ladder(folder, recipe)
        folder.write_recipe(dump_recipe(recipe))
        folder.write_env(threads=recipe.threads)
        with _workers(config.jobs, top) as work:
            rates = _train(recipe, arms, work, folder)
            _measure(recipe, arms, rates, work)
        results = _results(recipe, arms, rates)
        folder.write_json("ladder.json", results)
    return results


def trained_model(recipe: Recipe, name: str) -> str:
    """The model of an arm of a finished ladder, at its first seed."""
    assert recipe.run is not None
    rates = RunFolder(recipe.run).read_json("rates.json") or {}
    return _model(recipe, arms_of(recipe.ladder), rates, name, recipe.ladder.seeds[0])


def _check_same_ladder(folder: RunFolder, recipe: Recipe) -> None:
    stored = folder.recipe()
    if stored is None:
        return

    def essential(text: str) -> dict[str, Any]:
        found = recipe_from(text).model_dump(mode="json", exclude={"run", "threads"})
        found["ladder"].pop("jobs")
        return found

    if essential(stored) != essential(dump_recipe(recipe)):
        raise RecipeError(
            f"The ladder in {str(recipe.run)!r} was begun with another recipe, and its items may "
            "have been read: choose another folder with --run, or delete that one."
        )


# --- training -------------------------------------------------------------------------------------


def _train(
    recipe: Recipe, arms: Mapping[str, Arm], work: _Work, folder: RunFolder
) -> dict[str, float]:
    """Train all arms, level by level; the learning rate of each, chosen at the first seed."""
    first, *others = recipe.ladder.seeds
    rates: dict[str, float] = dict(folder.read_json("rates.json") or {})
    trained = [a for a in arms.values() if a.is_trained]
    for depth in sorted({a.depth for a in trained}):
        level = [a for a in trained if a.depth == depth]
        work([j for a in level if (j := _data_job(recipe, arms, rates, a, first))], "data")
        tried = [
            _training(recipe, arms, rates, arm, first, rate)
            for arm in level
            for rate in _grid(recipe, arm)
        ]
        work(tried, f"train at seed {first}")
        work([j for arm in level for j in _validations(recipe, arms, rates, arm)], "validate")
        for arm in level:
            rates[arm.name] = _best_rate(recipe, arms, rates, arm)
        folder.write_json("rates.json", rates)
        seeds = [(arm, seed) for arm in level for seed in others]
        work([j for a, s in seeds if (j := _data_job(recipe, arms, rates, a, s))], "data")
        work(
            [_training(recipe, arms, rates, a, s, rates[a.name]) for a, s in seeds],
            "train at the other seeds",
        )
    return rates


def _grid(recipe: Recipe, arm: Arm) -> tuple[float, ...]:
    """Learning rates that an arm tries."""
    if arm.stage == "sft":
        return recipe.ladder.sft_rates or (recipe.sft.learning_rate,)
    return recipe.ladder.rl_rates or (recipe.rl.learning_rate,)


def _place(recipe: Recipe, arm: Arm, seed: int) -> Path:
    assert recipe.run is not None
    return recipe.run / "arms" / arm.name / f"seed-{seed}"


def _training(
    recipe: Recipe,
    arms: Mapping[str, Arm],
    rates: Mapping[str, float],
    arm: Arm,
    seed: int,
    rate: float,
) -> Job:
    """The training of an arm at a seed and a learning rate."""
    place = _place(recipe, arm, seed)
    settings = {
        **arm.settings,
        "seed": seed,
        "run": str(place / f"rate-{rate:g}"),
        "model": _model(recipe, arms, rates, arm.start, seed),
        f"{arm.stage}.learning_rate": rate,
    }
    if arm.data != "demonstrations":
        settings["sft.demonstrations"] = str(place / "demonstrations.jsonl")
        settings["sft.count"] = None
    return Job("train", arm, changed(recipe, settings))


def _model(
    recipe: Recipe,
    arms: Mapping[str, Arm],
    rates: Mapping[str, float],
    name: str | None,
    seed: int,
) -> str:
    """The model of an arm, as it was trained."""
    if name is None:
        return recipe.model
    arm = arms[name]
    if not arm.is_trained:
        return _model(recipe, arms, rates, arm.start, seed)
    return str(_place(recipe, arm, seed) / f"rate-{rates[name]:g}" / "model")


def _data_job(
    recipe: Recipe, arms: Mapping[str, Arm], rates: Mapping[str, float], arm: Arm, seed: int
) -> Job | None:
    """Writes what an arm learns from, where that is no file of the recipe's."""
    if arm.data == "demonstrations":
        return None
    settings: dict[str, Any] = {
        **arm.settings,
        "seed": seed,
        "run": str(_place(recipe, arm, seed)),
        "model": _model(recipe, arms, rates, arm.start, seed),
    }
    return Job(arm.data, arm, changed(recipe, settings))


def _validations(
    recipe: Recipe, arms: Mapping[str, Arm], rates: Mapping[str, float], arm: Arm
) -> Iterator[Job]:
    """Measures each learning rate of an arm at the first seed; nothing where there is one."""
    grid = _grid(recipe, arm)
    for rate in grid if len(grid) > 1 else ():
        trained = _training(recipe, arms, rates, arm, recipe.ladder.seeds[0], rate).recipe
        assert trained.run is not None
        settings: dict[str, Any] = {
            "model": str(trained.run / "model"),
            "run": str(trained.run / "validation"),
            "eval.split": recipe.ladder.validation,
            "eval.items": recipe.ladder.validation_items,
        }
        yield Job("measure", arm, changed(trained, settings))


def _best_rate(
    recipe: Recipe, arms: Mapping[str, Arm], rates: Mapping[str, float], arm: Arm
) -> float:
    """The rate with most right answers on validation; of equal ones the lowest."""
    found = _validated(recipe, arms, rates, arm)
    return min(found, key=lambda rate: (-found[rate], rate)) if found else _grid(recipe, arm)[0]


def _validated(
    recipe: Recipe, arms: Mapping[str, Arm], rates: Mapping[str, float], arm: Arm
) -> dict[float, float]:
    """Accuracy on validation by learning rate; empty where none was chosen."""
    grid = _grid(recipe, arm)
    jobs = list(_validations(recipe, arms, rates, arm))
    return {rate: _accuracy(_rows(job.recipe)) for rate, job in zip(grid, jobs, strict=bool(jobs))}


def _accuracy(rows: Sequence[SampleRow]) -> float:
    return sum(bool(r.strict) for r in rows) / len(rows)


def _rows(recipe: Recipe) -> list[SampleRow]:
    assert recipe.run is not None
    return measure.rows_of(RunFolder(recipe.run), items=recipe.eval.items)


# --- measuring ------------------------------------------------------------------------------------


def _measure(
    recipe: Recipe, arms: Mapping[str, Arm], rates: Mapping[str, float], work: _Work
) -> None:
    jobs = [
        _measurement(recipe, arms, rates, arm, seed, split)
        for split in recipe.ladder.splits
        for arm in arms.values()
        if arm.stage != "score"
        for seed in _seeds(recipe, arm)
    ]
    work(jobs, "measure")


def _seeds(recipe: Recipe, arm: Arm) -> tuple[int, ...]:
    """Greedy answers of an untrained model are the same at every seed."""
    return recipe.ladder.seeds if arm.varies else recipe.ladder.seeds[:1]


def _measurement(
    recipe: Recipe,
    arms: Mapping[str, Arm],
    rates: Mapping[str, float],
    arm: Arm,
    seed: int,
    split: str,
) -> Job:
    settings = {
        **arm.settings,
        "seed": seed,
        "run": str(_place(recipe, arm, seed) / split),
        "eval.split": split,
    }
    if "model" not in arm.settings:
        own = arm.name if arm.is_trained else arm.start
        settings["model"] = _model(recipe, arms, rates, own, seed)
    return Job("measure", arm, changed(recipe, settings))


def _scored(recipe: Recipe, arm: Arm, split: str) -> list[SampleRow]:
    """Rows of episodes that were made elsewhere."""
    path = Path(str(arm.episodes).replace("{split}", split))
    rubric = task_of(recipe).rubric
    with Reading(path.name):
        lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            episode = json.loads(line)
        except ValueError as error:
            raise DataError(f"Line {number} of {path.name!r} is no episode: {error}.") from None
        found.append(row_of(episode_from_json(episode), rubric))
    return found


# --- work -----------------------------------------------------------------------------------------


class _Work:
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
            for future in done:
                future.result()


@contextmanager
def _workers(jobs: int, top: Path) -> Iterator[_Work]:
    """One job at a time in this process, or several in processes whose words go to `logs/`."""
    if jobs == 1:
        yield _Work(None, top)
        return
    logs = top / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    pool = ProcessPoolExecutor(
        jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_log_to,
        initargs=(str(logs),),
    )
    try:
        yield _Work(pool, top)
    finally:
        pool.shutdown(cancel_futures=True)


def _log_to(folder: str) -> None:
    number = multiprocessing.current_process().name.rpartition("-")[2]
    path = Path(folder) / f"worker-{number}.log"
    sys.stderr = path.open("a", buffering=1, encoding="utf-8")


def _is_done(job: Job) -> bool:
    folder = job.recipe.run
    assert folder is not None
    if job.action == "train":
        assert job.arm.stage in ("sft", "rl")
        told = folder / "model" / "saccade.json"
        return told.is_file() and json.loads(told.read_text()) == made_by(
            job.recipe, stage=job.arm.stage, start=job.recipe.model
        )
    if job.action == "measure":
        rows = _rows(job.recipe) if folder.is_dir() else []
        ours = any(r.stop.outcome is Outcome.OURS for r in rows)  # to be asked again
        return len(rows) == job.recipe.eval.items and not ours
    return (folder / "demonstrations.jsonl").is_file()


def _do(job: Job, top: Path) -> None:
    recipe = job.recipe
    assert recipe.run is not None
    if job.action == "train":
        (sft.run if job.arm.stage == "sft" else rl.run)(recipe)
    elif job.action == "measure":
        task = json.dumps(recipe.task.model_dump(mode="json"), sort_keys=True)
        own = hashlib.sha256(task.encode()).hexdigest()[:12]  # arms may have tasks of their own
        measure.run(recipe, arm=job.arm.name, samples=top / "samples" / own)
    else:
        count = recipe.rl.steps * recipe.rl.prompts_per_step
        if job.action == "answers":
            found = answers_only(
                task_of(recipe),
                split="train",
                start=0,
                count=count,
                seed=recipe.seed,
                dialect=dialect(recipe.dialect, style=recipe.tool_style),
            )
        else:
            kept = kept_rollouts(
                recipe,
                split="train",
                count=count,
                rollouts=recipe.ladder.rollouts_kept,
                most_per_sample=1,
            )
            found = list(kept.demonstrations)
        recipe.run.mkdir(parents=True, exist_ok=True)
        write_demonstrations(recipe.run / "demonstrations.jsonl", found)


# --- results --------------------------------------------------------------------------------------


def _results(recipe: Recipe, arms: Mapping[str, Arm], rates: Mapping[str, float]) -> dict[str, Any]:
    """The content of `ladder.json`."""
    told = {}
    for name, arm in arms.items():
        costs = [_cost(recipe, arms, rates, arm, seed) for seed in _seeds(recipe, arm)]
        told[name] = {
            "differs": arm.differs,
            "stage": arm.stage,
            "start": arm.start,
            "settings": dict(arm.settings),
            "seeds": list(_seeds(recipe, arm)),
            "rate": rates.get(name),
            "validation": {f"{k:g}": v for k, v in _validated(recipe, arms, rates, arm).items()}
            if arm.is_trained
            else {},
            "training": costs if arm.is_trained else [],
        }
    return {
        "tested": recipe.ladder.tested,
        "reference": recipe.ladder.reference,
        "validation_items": recipe.ladder.validation_items,
        "arms": told,
        "splits": {
            split: _split_results(recipe, arms, rates, split) for split in recipe.ladder.splits
        },
    }


def _cost(
    recipe: Recipe, arms: Mapping[str, Arm], rates: Mapping[str, float], arm: Arm, seed: int
) -> dict[str, float]:
    """What a training took: optimiser steps, episodes, tokens with loss, seconds."""
    if not arm.is_trained:
        return {}
    trained = _training(recipe, arms, rates, arm, seed, rates[arm.name]).recipe
    assert trained.run is not None
    found: dict[str, float] = defaultdict(float)
    for row in RunFolder(trained.run).read("metrics"):
        if row["stage"] != arm.stage:
            continue
        found["steps"] += 1
        if arm.stage == "sft":
            found["tokens"] += row["tokens"]
            found["seconds"] += row["seconds"]
        else:
            episodes = row["prompts"] * trained.rl.group_size
            found["episodes"] += episodes
            found["tokens"] += row["completion_tokens"] * episodes
            found["seconds"] += row["seconds_rollout"] + row["seconds_update"]
    return dict(found)


def _split_results(
    recipe: Recipe, arms: Mapping[str, Arm], rates: Mapping[str, float], split: str
) -> dict[str, Any]:
    """Figures of all arms on one split, and their differences."""
    config = recipe.ladder
    resampling = Resampling(recipe.eval.bootstrap, seeds_by=config.intervals)
    rows = {
        name: {
            seed: _scored(recipe, arm, split)
            if arm.stage == "score"
            else _rows(_measurement(recipe, arms, rates, arm, seed, split).recipe)
            for seed in _seeds(recipe, arm)
        }
        for name, arm in arms.items()
    }
    pairs = [(config.tested, name) for name in arms if name != config.tested]
    pairs += [pair for pair in config.steps if pair not in pairs]
    some = next(iter(next(iter(rows.values())).values()))
    return {
        "chance": _chance(some),
        "arms": {
            name: arm_figures(found, name=name, resampling=resampling).to_json()
            | {"image_tokens": _mean([r.image_tokens for s in found.values() for r in s])}
            for name, found in rows.items()
        },
        "pairs": [
            differences(rows[a], rows[b], names=(a, b), resampling=resampling).to_json()
            for a, b in pairs
            if a in rows and b in rows
        ],
        "gain_and_harm": [
            gain_and_harm(
                rows[name],
                rows[config.reference],
                names=(name, config.reference),
                resampling=resampling,
            ).to_json()
            for name in arms
            if config.reference in rows and name != config.reference
        ],
    }


def _chance(rows: Sequence[SampleRow]) -> dict[str, dict[str, float | None]]:
    """By kind: what a guess among the possible answers gets, and the best constant answer."""
    kinds: dict[str, list[SampleRow]] = defaultdict(list)
    for row in rows:
        kinds[row.kind].append(row)
    constant = majority_level({kind: [r.gold for r in found] for kind, found in kinds.items()})
    return {
        kind: {
            "guess": _mean([1 / r.choices if r.choices else None for r in found]),
            "constant": constant[kind],
        }
        for kind, found in sorted(kinds.items())
    }


def _mean(values: Sequence[float | None]) -> float | None:
    """None unless every value is there."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
