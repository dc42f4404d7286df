"""Few items of a split for training, and tasks within tasks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from saccade.assemble import data_file, task_of
from saccade.config import TaskConfig
from saccade.errors import RecipeError
from saccade.image_store import ImageStore
from saccade.recipe_files import load_recipe, recipe_hash
from saccade.tasks import Task, find, stream, task_named
from saccade.tasks.few import Few
from saccade.tasks.moved import LEAST
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


def test_each_of_few_items_comes_in_several_ways_whose_boxes_lie_on_the_same_things() -> None:
    task, store = Few(task_named("mix", PARTS), items=4, seed=1, ways=3), ImageStore()
    assert task.size("train") == 12
    samples = task.load("train", store=store)
    plain = samples[:4]
    assert [s.id for s in plain] == ids(mixed(4, 1), "train", 4)
    for number, sample in enumerate(samples):
        way, at = divmod(number, 4)
        first = plain[at]
        assert (sample.question, sample.answer) == (first.question, first.answer)
        assert sample.id == (f"{first.id}~{way}" if way else first.id)
        again = find(task, sample.id, store=store)
        assert again == sample
        if not way:
            continue
        assert sample.images != first.images
        assert (sample.images[0].width, sample.images[0].height) == (
            first.images[0].width,
            first.images[0].height,
        )
        was, now = (store.view(s.images[0]).pixels for s in (first, sample))
        for a, b in zip(first.evidence, sample.evidence, strict=True):
            assert b.image == sample.images[0]
            scale = b.box.width / a.box.width
            assert scale == pytest.approx(b.box.height / a.box.height, rel=0.02)
            assert LEAST - 0.01 <= scale <= 1
            colours = [
                np.asarray(p.crop(tuple(round(v) for v in box.as_tuple()))).mean(axis=(0, 1))
                for p, box in ((was, a.box), (now, b.box))
            ]
            assert np.abs(colours[0] - colours[1]).max() < 12
    assert len({s.images for s in samples}) == 12
    assert task.load("test", store=store, count=2)[0].id.endswith("/test/0")


def test_ways_without_few_items_are_refused() -> None:
    with pytest.raises(ValueError, match=r"task\.train_items is not set"):
        TaskConfig(train_ways=2)
    overrides = ["task.train_items=2", "task.train_ways=3"]
    recipe = load_recipe(data_file(Path("grounded-tiny.yaml")), overrides)
    assert task_of(recipe).size("train") == 6


def test_an_id_that_looks_like_a_way_but_is_one_of_the_task_is_found_as_it_is() -> None:
    class Odd(Few):
        def find(self, sample: str, *, store: ImageStore) -> Sample | None:
            plain = find(self.task, "shapes_vsr/train/0", store=store)
            return replace(plain, id=sample) if plain and sample == "a~2" else None

    few = Few(Odd(task_named("shapes_vsr", {}), items=2, seed=0), items=2, seed=0, ways=3)
    store = ImageStore()
    found, plain = (find(t, i, store=store) for t, i in ((few, "a~2"), (few.task, "a~2")))
    assert found == plain
    assert find(few, "b~2", store=store) is None
