"""Few items of a split for training, and tasks within tasks."""

from __future__ import annotations

import pytest

from saccade.assemble import task_of
from saccade.errors import RecipeError
from saccade.image_store import ImageStore
from saccade.recipe_files import load_recipe, recipe_hash
from saccade.tasks import Task, find, stream, task_named
from saccade.tasks.few import Few
from saccade.types import Sample

PARTS = {"parts": ["shapes_vsr", "shapes_tally"]}


def mixed(items: int, seed: int) -> Few:
    return Few(task_named("mix", PARTS), items=items, seed=seed)


def ids(task: Task, split: str, count: int) -> list[str]:
    return [s.id for s in task.load(split, store=ImageStore(), count=count)]


def drawn(task: Task, count: int, seed: int) -> list[tuple[Sample, int]]:
    return stream(task, "train", store=ImageStore(), start=0, count=count, seed=seed)


def test_training_reads_the_same_few_items_round_after_round() -> None:
    few = mixed(6, seed=1)
    assert few.size("train") == 6
    prompts = drawn(few, 14, seed=1)
    assert len({s.id for s, _ in prompts}) == 6
    assert [past for _, past in prompts] == [0] * 6 + [1] * 6 + [2] * 2
    kinds = [s.id.partition("/")[0] for s, _ in prompts[:6]]
    assert kinds.count("shapes_vsr") == kinds.count("shapes_tally") == 3


def test_each_seed_has_other_items_and_other_splits_are_as_they_are() -> None:
    whole = task_named("mix", PARTS)
    assert not set(ids(mixed(6, 0), "train", 6)) & set(ids(mixed(6, 1), "train", 6))
    assert ids(mixed(6, 0), "train", 6) == ids(mixed(6, 0), "train", 6)
    assert ids(mixed(6, 1), "test", 4) == ids(whole, "test", 4)
    assert mixed(6, 1).size("test") is None


def test_of_a_split_that_ends_items_are_drawn_without_repeating_one() -> None:
    inner = Few(task_named("shapes_vsr", {}), items=9, seed=0)  # a split of nine
    few = Few(inner, items=4, seed=3)
    chosen = ids(few, "train", 4)
    assert len(set(chosen)) == 4
    assert set(chosen) <= set(ids(inner, "train", 9))
    assert set(chosen) != set(ids(Few(inner, items=4, seed=4), "train", 4))
    assert Few(inner, items=100, seed=0).size("train") == 9


@pytest.mark.parametrize("seed", range(4))
def test_parts_of_a_mix_that_ends_have_as_many_each(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """As 10 questions of VSR and 10 of TallyQA, whose files end."""
    monkeypatch.setattr("saccade.tasks.shapes._Shapes.size", lambda *_: 50)
    few = mixed(7, seed)
    assert few.size("train") == 7
    parts = [i.partition("/")[0] for i in ids(few, "train", 7)]
    assert (parts.count("shapes_vsr"), parts.count("shapes_tally")) == (4, 3)
    assert len(set(ids(few, "train", 7))) == 7
    assert mixed(1000, seed).size("train") == 100


def test_the_few_are_named_and_scored_as_in_the_whole_task() -> None:
    few = mixed(4, seed=2)
    for sample in few.load("train", store=ImageStore()):
        again = find(few, sample.id, store=ImageStore())
        assert again is not None
        assert (again.id, again.question) == (sample.id, sample.question)
        assert few.gold(sample) == sample.answer != few.wrong(sample)


def test_an_id_of_no_part_is_refused() -> None:
    with pytest.raises(RecipeError, match="is of no part of task mix"):
        find(mixed(4, seed=2), "charts/train/0", store=ImageStore())


def test_a_mix_may_train_on_some_of_its_parts() -> None:
    some = task_named("mix", {**PARTS, "train": ["shapes_tally"]})
    assert {i.partition("/")[0] for i in ids(some, "train", 6)} == {"shapes_tally"}
    assert ids(some, "test", 4) == ids(task_named("mix", PARTS), "test", 4)
    with pytest.raises(RecipeError, match="can't train on 'charts'"):
        task_named("mix", {**PARTS, "train": ["charts"]})


def test_a_part_of_a_mix_may_ask_in_words_of_its_own() -> None:
    parts = [{"name": "shapes_vsr", "request": "Think with boxes."}, "shapes_tally"]
    mix = task_named("mix", {"parts": parts})
    first, second = mix.load("test", store=ImageStore(), count=2)
    assert first.question.endswith("? Think with boxes.")
    assert second.question.endswith("there?")
    again = find(mix, first.id, store=ImageStore())
    assert again is not None
    assert again.question == first.question
    assert find(mix, "shapes_vsr/test/x", store=ImageStore()) is None


def test_a_recipe_says_how_many() -> None:
    overrides = ["task.name=mix", "task.options={parts: [shapes_vsr, shapes_tally]}"]
    whole = load_recipe(None, overrides)
    few = load_recipe(None, [*overrides, "task.train_items=20", "seed=5"])
    assert task_of(whole).size("train") is None
    assert task_of(few).size("train") == 20
    assert recipe_hash(whole, stage="rl") != recipe_hash(few, stage="rl")
