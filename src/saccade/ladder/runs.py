"""A whole ladder: all arms trained at several seeds, measured on the same items, and compared.

Invariant: every arm's learning rate is chosen on validation items before any test item is asked,
and the recipe of a ladder can't change once its folder exists. Every run is an ordinary one in a
folder of its own, so that a killed ladder goes on where it stopped; what a test split was read for
stands in `ledger.jsonl`.

Left out on purpose: figures (`saccade.ladder.figures`) and the page that shows them.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from saccade.assemble import task_of
from saccade.config import Recipe
from saccade.errors import RecipeError
from saccade.evaluate import Metric, SampleRow
from saccade.ladder.arms import Arm, Stage, arms_of, with_starts
from saccade.ladder.figures.draws import Resampling
from saccade.ladder.figures.statistics import (
    arm_figures,
    differences,
    gain_and_harm,
    majority_level,
    own_item_figures,
)
from saccade.ladder.foreign import episodes_file, read_episodes
from saccade.ladder.work import Action, Job, Work, workers
from saccade.recipe_files import changed, dump_recipe, recipe_from
from saccade.rewards.answers import SCORER_VERSION
from saccade.run_folder import RunFolder

__all__ = ["run", "trained_model"]

LEAST_RESAMPLES = 100
OWN_ITEMS = "training-items"
"""Folder of what an arm of few items answers to those."""


def run(recipe: Recipe) -> dict[str, Any]:
    """Train and measure all arms of the recipe in its run folder, or go on with them; returns the
    content of `ladder.json`.

    Raises RecipeError where the recipe has no arms, or the folder was begun with another recipe.
    """
    config = recipe.ladder
    if not config.arms:
        raise RecipeError("The recipe has no ladder.arms; recipe charts-tiny shows a whole ladder.")
    for key in ("tested", "reference"):
        if (name := getattr(config, key)) not in config.arms:
            known = ", ".join(config.arms)
            raise RecipeError(f"ladder.{key} must be one of {known}, got {name}.")
    if recipe.eval.bootstrap < LEAST_RESAMPLES:
        raise RecipeError(
            f"A ladder needs eval.bootstrap of at least {LEAST_RESAMPLES} for its intervals, "
            f"got {recipe.eval.bootstrap}."
        )
    recipe = recipe.model_copy(update={"run": _in_one_spelling(recipe.run or Path("runs/ladder"))})
    found = _Ladder(recipe, with_starts(arms_of(config), config.only))
    _check_drawn_alike(found)
    _check_arms(found)
    _check_foreign(found)
    with RunFolder(found.top) as folder:
        _check_same_ladder(folder, recipe)
        folder.write_recipe(dump_recipe(recipe))
        folder.write_env(threads=recipe.threads)
        found.rates |= folder.read_json("rates.json") or {}
        with workers(config.jobs, found.top) as work:
            _train(found, work, folder)
            asked = _measurements(found)
            work([job for _, arm, job in asked if arm.gaze_of is None], "measure")
            work([job for _, arm, job in asked if arm.gaze_of is not None], "measure masked")
            own = [job for arm in found.trained for job in _on_own_items(found, arm)]
            work(own, "measure on training items")
        results = _results(found)
        folder.write_json("ladder.json", results)
    return results


def trained_model(recipe: Recipe, name: str) -> str:
    """The model of an arm of a finished ladder, at its first seed."""
    assert recipe.run is not None
    rates = RunFolder(recipe.run).read_json("rates.json") or {}
    recipe = recipe.model_copy(update={"run": _in_one_spelling(recipe.run)})
    found = _Ladder(recipe, arms_of(recipe.ladder), rates)
    return found.model(name, recipe.ladder.seeds[0])


def _check_same_ladder(folder: RunFolder, recipe: Recipe) -> None:
    stored = folder.recipe()
    if stored is None:
        return

    def essential(text: str) -> dict[str, Any]:
        found = recipe_from(text).model_dump(mode="json", exclude={"run", "threads", "service"})
        found["ladder"].pop("jobs")
        return found

    if essential(stored) != essential(dump_recipe(recipe)):
        raise RecipeError(
            f"The ladder in {str(recipe.run)!r} was begun with another recipe, and its items may "
            "have been read: choose another folder with --run, or delete that one."
        )


def _in_one_spelling(run: Path) -> Path:
    """Runs inside name each other by paths: these must not depend on how the folder was named."""
    whole = Path(os.path.abspath(run))
    return whole.relative_to(Path.cwd()) if whole.is_relative_to(Path.cwd()) else whole


def _check_drawn_alike(found: _Ladder) -> None:
    """Raises RecipeError where arms should learn from the questions that RL sees and there is no
    saying which those are.
    """
    drawn = [arm.name for arm in found.trained if arm.data != "demonstrations"]
    if drawn and found.recipe.rl.dynamic_sampling:
        raise RecipeError(
            f"Arm {drawn[0]} learns from the questions that rl sees, and under rl.dynamic_sampling "
            "these depend on the model: leave out one of the two."
        )


def _check_arms(found: _Ladder) -> None:
    """Raises RecipeError or DataError where an arm's settings or a split can't be used: better now
    than when all models are trained and the recipe can't be changed any more.
    """
    config = found.recipe.ladder
    seed = config.seeds[0]
    for arm in found.arms.values():
        place = found.place(arm, seed)
        job = found.job("measure", arm, seed, run=place, model=found.recipe.model)
        task = task_of(job.recipe)
        has_choice = arm.is_trained and len(found.grid(arm)) > 1
        chosen = (config.validation,) if has_choice else ()
        for split in (*config.splits, *chosen):
            task.size(split)


def _check_foreign(found: _Ladder) -> None:
    """Raises DataError for episodes that can't be scored, before anything is trained."""
    for split, arm, job in _measurements(found, stages=("score",)):
        assert arm.episodes is not None
        read_episodes(episodes_file(arm.episodes, split), items=job.items)


@dataclass(slots=True)
class _Ladder:
    """What the arms of a recipe become, and where it lies."""

    recipe: Recipe
    arms: Mapping[str, Arm]
    rates: dict[str, float] = field(default_factory=dict)
    """Learning rates that were chosen so far."""

    @property
    def top(self) -> Path:
        assert self.recipe.run is not None
        return self.recipe.run

    @property
    def trained(self) -> list[Arm]:
        return [arm for arm in self.arms.values() if arm.is_trained]

    def seeds(self, arm: Arm) -> tuple[int, ...]:
        """Greedy answers of an untrained model are the same at every seed."""
        seeds = self.recipe.ladder.seeds
        return seeds if arm.varies else seeds[:1]

    def grid(self, arm: Arm) -> tuple[float, ...]:
        """Learning rates that an arm tries."""
        config = self.recipe.ladder
        if arm.stage == "sft":
            return config.sft_rates or (self.recipe.sft.learning_rate,)
        return config.rl_rates or (self.recipe.rl.learning_rate,)

    def place(self, arm: Arm, seed: int) -> Path:
        return self.top / "arms" / arm.name / f"seed-{seed}"

    def model(self, name: str | None, seed: int) -> str:
        """The model of an arm, as it was trained; of none, that of the recipe."""
        if name is None:
            return self.recipe.model
        arm = self.arms[name]
        if not arm.is_trained:
            return self.model(arm.start, seed)
        return str(self.place(arm, seed) / f"rate-{self.rates[name]:g}" / "model")

    def job(
        self,
        action: Action,
        arm: Arm,
        seed: int,
        *,
        run: Path,
        model: str,
        settings: Mapping[str, Any] | None = None,
    ) -> Job:
        """A run with an arm's settings and others; `model` unless the arm has one of its own."""
        own = {"model": model, **arm.settings, "seed": seed, "run": str(run), **(settings or {})}
        return Job(action, arm, changed(self.recipe, own))


# --- training -------------------------------------------------------------------------------------


def _train(found: _Ladder, work: Work, folder: RunFolder) -> None:
    """Train all arms, level by level; the learning rate of each, chosen at the first seed."""
    first, *others = found.recipe.ladder.seeds
    for depth in sorted({arm.depth for arm in found.trained}):
        level = [arm for arm in found.trained if arm.depth == depth]
        work(_data_jobs(found, level, [first]), "data")
        tried = [_training(found, arm, first, rate) for arm in level for rate in found.grid(arm)]
        work(tried, f"train at seed {first}")
        work([job for arm in level for job in _validations(found, arm)], "validate")
        for arm in level:
            found.rates[arm.name] = _best_rate(found, arm)
        folder.write_json("rates.json", found.rates)
        work(_data_jobs(found, level, others), "data")
        chosen = [
            _training(found, arm, seed, found.rates[arm.name]) for arm in level for seed in others
        ]
        work(chosen, "train at the other seeds")


def _training(found: _Ladder, arm: Arm, seed: int, rate: float) -> Job:
    """The training of an arm at a seed and a learning rate."""
    place = found.place(arm, seed)
    settings: dict[str, Any] = {f"{arm.stage}.learning_rate": rate}
    if arm.data != "demonstrations":
        settings["sft.demonstrations"] = str(place / "demonstrations.jsonl")
        settings["sft.count"] = None
    model = found.model(arm.start, seed)
    run = place / f"rate-{rate:g}"
    return found.job("train", arm, seed, run=run, model=model, settings=settings)


def _data_jobs(found: _Ladder, arms: Sequence[Arm], seeds: Sequence[int]) -> list[Job]:
    """What writes the data that arms learn from, where that is no file of the recipe's."""
    return [
        found.job(
            arm.data,
            arm,
            seed,
            run=found.place(arm, seed),
            # what points is the model that was taught to, not what came of it
            model=found.recipe.model if _is_self_made(arm) else found.model(arm.start, seed),
        )
        for arm in arms
        for seed in seeds
        if arm.data != "demonstrations"
    ]


def _is_self_made(arm: Arm) -> bool:
    return arm.data in ("self-made", "self-made-blank")


def _validations(found: _Ladder, arm: Arm) -> Iterator[Job]:
    """Measures each learning rate of an arm at the first seed; nothing where there is one."""
    grid, config = found.grid(arm), found.recipe.ladder
    for rate in grid if len(grid) > 1 else ():
        trained = _training(found, arm, config.seeds[0], rate).recipe
        assert trained.run is not None
        settings: dict[str, Any] = {
            "model": str(trained.run / "model"),
            "run": str(trained.run / "validation"),
            "eval.split": config.validation,
            "eval.items": config.validation_items,
        }
        yield Job("measure", arm, changed(trained, settings))


def _best_rate(found: _Ladder, arm: Arm) -> float:
    """The rate with most right answers on validation; of equal ones the lowest."""
    right = _validated(found, arm)
    return min(right, key=lambda rate: (-right[rate], rate)) if right else found.grid(arm)[0]


def _validated(found: _Ladder, arm: Arm) -> dict[float, float]:
    """Accuracy on validation by learning rate; empty where none was chosen."""
    jobs = list(_validations(found, arm))
    grid = found.grid(arm) if jobs else ()
    return {rate: _accuracy(job.rows) for rate, job in zip(grid, jobs, strict=True)}


def _accuracy(rows: Sequence[SampleRow]) -> float:
    return sum(bool(r.strict) for r in rows) / len(rows)


# --- measuring ------------------------------------------------------------------------------------


def _measurements(
    found: _Ladder, *, stages: Container[Stage] = get_args(Stage)
) -> list[tuple[str, Arm, Job]]:
    """All that is asked of a test split, by split and arm; seeds in their order."""
    asked = []
    for split in found.recipe.ladder.splits:
        for arm in found.arms.values():
            for seed in found.seeds(arm) if arm.stage in stages else ():
                model = found.model(arm.name if arm.is_trained else arm.start, seed)
                settings: dict[str, Any] = {"eval.split": split}
                if arm.gaze_of is not None:
                    other = found.arms[arm.gaze_of]
                    own = seed if seed in found.seeds(other) else found.seeds(other)[0]
                    settings["eval.gaze_of"] = str(found.place(other, own) / split)
                job = found.job(
                    "score" if arm.stage == "score" else "measure",
                    arm,
                    seed,
                    run=found.place(arm, seed) / split,
                    model=model,
                    settings=settings,
                )
                asked.append((split, arm, job))
    return asked


def _items_read(trained: Recipe, stage: Stage) -> int | None:
    """Distinct questions that a training reads; None where that depends on a file."""
    items = trained.task.train_items
    if stage == "rl":
        asked = trained.rl.steps * trained.rl.prompts_per_step
        return asked if items is None else min(items, asked)
    if items is None or trained.sft.steps is None:
        return items
    return min(items, trained.sft.steps * trained.sft.batch_size)


def _on_own_items(found: _Ladder, arm: Arm) -> Iterator[Job]:
    """What a trained arm of few items is asked of these, at each seed its own, where it read all of
    them.
    """
    for seed in found.seeds(arm):
        trained = _training(found, arm, seed, found.rates[arm.name]).recipe
        items = trained.task.train_items
        if items is None or _items_read(trained, arm.stage) != items:
            continue
        settings = {"eval.split": "train", "eval.items": min(items, found.recipe.eval.items)}
        yield found.job(
            "measure",
            arm,
            seed,
            run=found.place(arm, seed) / OWN_ITEMS,
            model=found.model(arm.name, seed),
            settings=settings,
        )


# --- results --------------------------------------------------------------------------------------


def _results(found: _Ladder) -> dict[str, Any]:
    """The content of `ladder.json`."""
    config = found.recipe.ladder
    told = {}
    for name, arm in found.arms.items():
        told[name] = {
            "differs": arm.differs,
            "stage": arm.stage,
            "start": arm.start,
            "data": arm.data,
            "settings": dict(arm.settings),
            "control_of": arm.control_of,
            "seeds": list(found.seeds(arm)),
            "rate": found.rates.get(name),
            "validation": {f"{k:g}": v for k, v in _validated(found, arm).items()}
            if arm.is_trained
            else {},
            "training": [_cost(found, arm, seed) for seed in found.seeds(arm)]
            if arm.is_trained
            else [],
            **(_what_it_read(found, arm) if arm.is_trained else {}),
            "checkpoints": [r for seed in found.seeds(arm) for r in _checkpoints(found, arm, seed)],
        }
    return {
        "scorer": SCORER_VERSION,
        "tested": config.tested,
        "reference": config.reference,
        "claims": [c.model_dump(mode="json") for c in config.claims],
        "validation_items": config.validation_items,
        "ledger": _ledger(found),
        "arms": told,
        "splits": {split: _split_results(found, split) for split in config.splits},
    }


def _what_it_read(found: _Ladder, arm: Arm) -> dict[str, Any]:
    """What a training read, what it is worth on that, and how many labelled items of validation its
    weights were picked on.
    """
    trained = _training(found, arm, found.seeds(arm)[0], found.rates[arm.name]).recipe
    picks = arm.stage == "rl" and trained.rl.keep == "best"
    own = [job.rows for job in _on_own_items(found, arm)]
    figures = own_item_figures(own)
    return {
        "items_read": _items_read(trained, arm.stage),
        "picked_on": trained.rl.eval_items if picks else None,
        "training_items": {
            metric: {stratum: list(value) for stratum, value in of.items()}
            for metric, of in figures.items()
        },
    }


def _ledger(found: _Ladder) -> list[dict[str, Any]]:
    """Every reading of a test split by an arm, as the runs noted them."""
    return [
        line
        for _, _, job in _measurements(found)
        for line in RunFolder(job.recipe.run or found.top).read("ledger")
    ]


def _checkpoints(found: _Ladder, arm: Arm, seed: int) -> list[dict[str, Any]]:
    """What the validations on the way of a training told; none of those that have none."""
    if arm.stage != "rl":
        return []
    trained = _training(found, arm, seed, found.rates[arm.name]).recipe
    assert trained.run is not None
    rows = RunFolder(trained.run).read("metrics")
    return [{"seed": seed, **r} for r in rows if r["stage"] == "validation"]


def _cost(found: _Ladder, arm: Arm, seed: int) -> dict[str, float]:
    """What a training took: optimiser steps, rollouts and the tokens written in them (those that
    made its data too), tokens with loss, seconds of all that; starting, saving and validating are
    not in them.
    """
    trained = _training(found, arm, seed, found.rates[arm.name]).recipe
    assert trained.run is not None
    cost: dict[str, float] = defaultdict(float)
    for row in RunFolder(trained.run).read("metrics"):
        if row["stage"] != arm.stage:
            continue
        if arm.stage == "sft":
            cost["steps"] += 1
            cost["tokens"] += row["tokens"]
            cost["seconds"] += row["seconds"]
        else:
            episodes = row["prompts"] * trained.rl.group_size
            # a batch of which nothing can be learnt is no step
            cost["steps"] += trained.rl.updates_per_batch * (row["grad_norm"] is not None)
            cost["episodes"] += episodes
            cost["written"] += row["completion_tokens"] * episodes
            cost["tokens"] += row["trained_tokens"]
            cost["seconds"] += row["seconds_rollout"] + row["seconds_update"]
    if arm.data != "demonstrations":
        drawn = RunFolder(found.place(arm, seed)).read_json("drawn") or {}
        for key in drawn.keys() & {"episodes", "written", "seconds"}:
            cost[key] += drawn[key]
    return dict(cost)


def _split_results(found: _Ladder, split: str) -> dict[str, Any]:
    """Figures of all arms on one split, and their differences."""
    config = found.recipe.ladder
    resampling = Resampling(found.recipe.eval.bootstrap, seeds_by=config.intervals)
    rows: dict[str, dict[int, list[SampleRow]]] = {name: {} for name in found.arms}
    for asked, arm, job in _measurements(found):
        if asked == split:
            rows[arm.name][job.recipe.seed] = job.rows
    pairs = [(config.tested, name) for name in found.arms if name != config.tested]
    asked_for = list(config.steps)
    asked_for += [(c.arm or config.tested, below) for c in config.claims for below in c.above]
    asked_for += [(a.control_of, name) for name, a in found.arms.items() if a.control_of]
    pairs += [pair for pair in dict.fromkeys(asked_for) if pair not in pairs]
    metrics: list[Metric] = ["accuracy"]
    metrics += [c.metric for c in config.claims if c.above]
    some = next(iter(next(iter(rows.values())).values()))
    return {
        "chance": _chance(some),
        "arms": {
            name: arm_figures(by_seed, name=name, resampling=resampling).to_json()
            | {"image_tokens": _mean([r.image_tokens for s in by_seed.values() for r in s])}
            for name, by_seed in rows.items()
        },
        "pairs": [
            differences(
                rows[a], rows[b], names=(a, b), metric=metric, resampling=resampling
            ).to_json()
            for metric in dict.fromkeys(metrics)
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
            for name in found.arms
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
