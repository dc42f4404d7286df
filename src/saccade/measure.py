"""Evaluation runs: a model, a split, a row for each sample, a summary.

Invariant: each sample is asked once, and again where the episode ended by our own failure; a
killed evaluation goes on with the samples that have no row. The rows hold what every figure is
made of, so that they can be scored again without asking again. `ledger.jsonl` has a line for each
time that items of the split were read, also by an evaluation that was killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from saccade.assemble import answering, check_same_start, task_of
from saccade.config import Recipe
from saccade.controls import MASKS, Counterfactual, counterfactual, masked
from saccade.dialects import Grounded, Mixed
from saccade.engines import Sampling
from saccade.episode_json import episode_to_json
from saccade.errors import DataError, RecipeError
from saccade.evaluate import (
    SampleRow,
    Summary,
    results_json,
    row_of,
    summarise,
)
from saccade.geometry import Box
from saccade.image_store import ImageStore
from saccade.ledger import note_reading
from saccade.observing import partner_of
from saccade.progress import Bar, progress
from saccade.recipe_files import check_same_run, dump_recipe
from saccade.rewards.answers import SCORER_VERSION
from saccade.rollout import Failures, Setup, check_room, rollout
from saccade.run_folder import RunFolder
from saccade.tasks import Task
from saccade.tasks.stored import Stored
from saccade.types import Episode, Outcome, Sample, StopReason

__all__ = ["CHUNK", "rows_of", "run"]

CHUNK = 100
"""Samples between two writes."""
KEPT_EPISODES = 24
"""Whole episodes kept for the report."""


def run(recipe: Recipe, *, arm: str, samples: Path | None = None) -> Summary:
    """Ask the recipe's model the items of its split, or those still missing, and sum up all of
    them. Samples that are slow to make are stored in the folder `samples` for other arms.
    """
    return asyncio.run(_run(recipe, arm=arm, samples=samples))


async def _run(recipe: Recipe, *, arm: str, samples: Path | None) -> Summary:
    config = recipe.eval
    task = task_of(recipe)
    if samples is not None:
        task = Stored(task, samples)
    with RunFolder(recipe.run or Path("runs/eval")) as folder:
        check_same_run(folder.recipe(), recipe, stage="eval")
        check_same_start(folder, recipe, stage="eval")
        folder.write_recipe(dump_recipe(recipe))
        folder.write_env(threads=recipe.threads)
        rows_of(folder, items=config.items)  # rows of something else are left as they are
        folder.drop("rows", lambda row: StopReason(row["stop"]).outcome is Outcome.OURS)
        asked = {row["id"] for row in folder.read("rows")}
        folder.drop("episodes", lambda episode: episode["sample"]["id"] not in asked)
        size = task.size(config.split)
        items = config.items if size is None else min(config.items, size)
        done = {row.id for row in rows_of(folder, items=items)}
        with progress(f"eval {arm}", total=items, done=len(done)) as bar:
            if len(done) < items:
                store = ImageStore()
                setup = answering(recipe, store=store, rubric=task.rubric)
                setup = replace(setup, failures=Failures())
                note_reading(folder, recipe, arm=arm, split=config.split, items=items)
                [first] = task.load(config.split, store=store, count=1)
                check_room(first, setup)
                for start in range(0, items, CHUNK):
                    count = min(CHUNK, items - start)
                    found = task.load(config.split, store=store, start=start, count=count)
                    loaded = dict(enumerate(found, start))
                    missing = {n: s for n, s in loaded.items() if s.id not in done}
                    partners: Sequence[Sample] = ()
                    if setup.observation == "swapped":
                        partners = [
                            _partner(number, loaded, task, recipe, store=store, items=items)
                            for number in missing
                        ]
                    # whose boxes are shuffled must not depend on where a run was broken off
                    beside = loaded if missing and config.control == "shuffled" else missing
                    await _ask(
                        missing, beside, partners, setup, recipe, folder, task, arm=arm, bar=bar
                    )
                    store.forget(i for s in loaded.values() for i in s.images)
        rows = rows_of(folder, items=items)
        summary = summarise(rows, bootstrap=config.bootstrap, seed=recipe.seed)
        folder.write_json("results.json", results_json({arm: summary}, ()))
    return summary


def _partner(
    number: int,
    loaded: dict[int, Sample],
    task: Task,
    recipe: Recipe,
    *,
    store: ImageStore,
    items: int,
) -> Sample:
    """The next item with other pictures, from the first again after the last: a function of the
    item's number and of how many there are. What had to be loaded for it is put into `loaded`.
    """

    def at(place: int) -> Sample:
        if place not in loaded:
            [loaded[place]] = task.load(recipe.eval.split, store=store, start=place, count=1)
        return loaded[place]

    later = ((number + step) % items for step in range(1, items))
    return partner_of(loaded[number], (at(place) for place in later))


async def _ask(
    missing: Mapping[int, Sample],
    beside: Mapping[int, Sample],
    partners: Sequence[Sample],
    setup: Setup,
    recipe: Recipe,
    folder: RunFolder,
    task: Task,
    *,
    arm: str,
    bar: Bar,
) -> None:
    """Ask samples, by their number in the split, and keep what came of them, also where too many
    failed. `beside`: the same, and those of which a control takes boxes.
    """
    ended: dict[str, Episode] = {}

    def on_done(episode: Episode) -> None:
        ended[episode.sample.id] = episode
        bar.advance()

    before: dict[str, Episode] = {}
    sampling = Sampling(recipe.eval.temperature, recipe.rollout.max_tokens_per_turn)

    async def ask(
        samples: Sequence[Sample], partners: Sequence[Sample], begun: Sequence[str] = ()
    ) -> list[Episode]:
        return await rollout(
            samples,
            setup,
            partners=partners,
            begun=begun,
            sampling=sampling,
            seed=recipe.seed,
            concurrency=recipe.rollout.concurrency,
            on_done=None if recipe.eval.control and not begun else on_done,
        )

    try:
        first = await ask(list(beside.values()), partners)
        if recipe.eval.control is not None:
            wanted = {sample.id for sample in missing.values()}
            before = {e.sample.id: e for e in first if e.sample.id in wanted}
            again = _counterfactuals(first, recipe, setup)
            again = {name: changed for name, changed in again.items() if name in wanted}
            unchanged = [e for e in before.values() if e.sample.id not in again]
            changed = list(again.values())
            await ask([c.sample for c in changed], (), [c.begun for c in changed])
            for episode in unchanged:
                del before[episode.sample.id]
                on_done(episode)
    finally:
        for number, sample in missing.items():
            if sample.id not in ended:
                continue
            episode = ended[sample.id]
            if number < KEPT_EPISODES:
                setup.store.save(episode.images.values(), folder.path)
                folder.append("episodes", {"arm": arm, **episode_to_json(episode)})
            tokens_of = setup.renderer.image_tokens if setup.renderer else None
            row = row_of(
                episode,
                task.rubric,
                tokens_of=tokens_of,
                grounded_in=setup.frame_of if _tells_boxes(recipe, setup) else None,
                before=before.get(sample.id),
            ).to_json()
            folder.append("rows", {"number": number, **row})  # last: its sample is done


def _tells_boxes(recipe: Recipe, setup: Setup) -> bool:
    """Whether rows have figures of boxes: the dialect asks for them, or the recipe says how they
    are written.
    """
    asks = isinstance(setup.dialect, Grounded | Mixed) and setup.boxes_as is not None
    return asks or recipe.notation is not None


def _counterfactuals(
    episodes: Sequence[Episode], recipe: Recipe, setup: Setup
) -> dict[str, Counterfactual]:
    """What to ask in the place of each sample, by its id; those with nothing to change are left
    out. A partner is the next episode of the same stratum among those of the same CHUNK, from the
    first again after the last.
    """
    control, notation = recipe.eval.control, setup.boxes_as
    assert control is not None
    if recipe.eval.gaze_of is not None:
        return _masked_as(episodes, recipe, setup)
    if notation is None:
        raise RecipeError(f"eval.control {control} needs to know how boxes are written: notation.")
    if control not in MASKS and not setup.engine.capabilities.ids:
        raise RecipeError(f"eval.control {control} needs a model that is loaded here, not an api.")
    found = {}
    for place, episode in enumerate(episodes):
        others = (*episodes[place + 1 :], *episodes[:place])
        partner = next((e for e in others if e.sample.stratum == episode.sample.stratum), None)
        changed = counterfactual(
            control,
            episode,
            notation=notation,
            frame=setup.frame_of,
            store=setup.store,
            partner=partner,
            seed=recipe.seed,
        )
        if changed is not None and episode.stop is not None:
            found[episode.sample.id] = changed
    return found


def _masked_as(
    episodes: Sequence[Episode], recipe: Recipe, setup: Setup
) -> dict[str, Counterfactual]:
    """The samples with parts of their pictures gray by the boxes of another evaluation."""
    config = recipe.eval
    assert config.control is not None
    assert config.gaze_of is not None
    if not config.gaze_of.is_dir():
        raise RecipeError(f"eval.gaze_of {str(config.gaze_of)!r} is no folder of an evaluation.")
    rows = {row.id: row for row in rows_of(RunFolder(config.gaze_of), items=config.items)}
    found = {}
    for episode in episodes:
        sample = episode.sample
        if sample.id not in rows or rows[sample.id].named is None:
            raise DataError(
                f"eval.gaze_of {str(config.gaze_of)!r} has no boxes for sample {sample.id!r}; "
                "evaluate it on the same items, with notation set."
            )
        gaze = [(sample.images[n], Box(*box)) for n, *box in rows[sample.id].named or ()]
        changed = masked(config.control, sample, gaze, setup.store, seed=recipe.seed)
        if changed is not None and episode.stop is not None:
            found[sample.id] = changed
    return found


def rows_of(folder: RunFolder, *, items: int) -> list[SampleRow]:
    """The rows of the first `items` samples of an evaluation so far, in the order of the split.

    Raises DataError for rows that no evaluation wrote, or another version of the scoring rules.
    """
    found: dict[int, SampleRow] = {}
    for row in folder.read("rows"):
        number = row.pop("number", None)
        if not isinstance(number, int):
            raise DataError(
                f"rows.jsonl of {str(folder.path)!r} has a row whose number is {number!r}, so it "
                "was written by something else; choose another folder with --run."
            )
        sample = SampleRow.from_json(row)
        if sample.scorer != SCORER_VERSION:
            raise DataError(
                f"rows.jsonl of {str(folder.path)!r} was judged by version {sample.scorer} of the "
                f"scoring rules, and this is version {SCORER_VERSION}; choose another folder with "
                "--run."
            )
        if number < items:
            found[number] = sample
    return [found[number] for number in sorted(found)]
