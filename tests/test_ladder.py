"""The ladder: what arms have from their neighbours, in which order things are done, and what is not
done twice. Training and asking are played here; `test_cli.py` runs a small ladder for real.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import saccade
from saccade.assemble import answering, check_same_start, made_by, task_of
from saccade.config import Recipe
from saccade.episode_json import episode_to_json
from saccade.errors import DataError, RecipeError
from saccade.evaluate import SampleRow
from saccade.image_store import ImageStore
from saccade.ladder import runs as ladder
from saccade.ladder import work as ladder_work
from saccade.ladder.arms import arms_of, with_starts
from saccade.ladder.figures.statistics import own_item_figures
from saccade.recipe_files import changed, check_same_run, dump_recipe, load_recipe
from saccade.rewards.answers import SCORER_VERSION
from saccade.rollout import check_room
from saccade.run_folder import RunFolder
from saccade.synth.chains import Made
from saccade.synth.replay import Demonstration
from saccade.tasks import BETWEEN_SEEDS
from saccade.tasks.charts import Charts
from saccade.tools import builtin_tools
from saccade.types import Answer, Episode, Message, Parsed, StopReason, Text, TurnRecord

SHIPPED = Path(saccade.__file__).parent / "recipes" / "charts-tiny.yaml"

ARMS: dict[str, Any] = {
    "base": {"stage": "eval", "set": {"dialect": "plain", "tools": []}},
    "sft": {"stage": "sft"},
    "rl": {"stage": "rl", "start": "sft"},
    "rl-text": {"like": "rl", "set": {"rollout.observation": "text"}},
    "rl-text-smooth": {"like": "rl-text", "set": {"rl.kl_beta": 0.5}},
    "rl-black": {"stage": "eval", "start": "rl", "set": {"rollout.observation": "black"}},
}


def recipe(run: Path, **settings: Any) -> Recipe:
    return changed(
        Recipe(),
        {
            "run": str(run),
            "eval.items": 8,
            "eval.bootstrap": 100,
            "ladder.arms": ARMS,
            "ladder.tested": "rl",
            "ladder.reference": "rl-text",
            "ladder.seeds": [3, 5],
            "ladder.validation_items": 4,
            "ladder.rl_rates": [1e-4, 1e-3],
            **settings,
        },
    )


class Played:
    """Stands for training and asking: `right` says how many of a measurement's answers are right,
    `done` what was done, in order.
    """

    def __init__(self) -> None:
        self.done: list[str] = []
        self.samples: set[Path] = set()
        self.right: Callable[[Recipe], int] = lambda recipe: 4

    def train(self, stage: str) -> Callable[[Recipe], Path]:
        def run(recipe: Recipe) -> Path:
            assert recipe.run is not None
            rate = getattr(recipe, stage).learning_rate
            self.done.append(f"{stage} {recipe.run.parts[-3]} seed {recipe.seed} rate {rate:g}")
            with RunFolder(recipe.run) as folder:
                check_same_run(folder.recipe(), recipe, stage=stage)  # type: ignore[arg-type]
                folder.write_recipe(dump_recipe(recipe))
                row = {"stage": stage, "step": 1, "tokens": 7, "seconds": 2.0, "prompts": 3}
                more = {
                    "trained_tokens": 90,
                    "completion_tokens": 5.0,
                    "seconds_rollout": 1.0,
                    "seconds_update": 0.5,
                    "grad_norm": 1.0,
                }
                folder.append("metrics", row | more)
                idle = {"step": 2, "trained_tokens": 0, "grad_norm": None, "prompts": 0}
                if stage == "rl":  # a batch of which nothing could be learnt
                    folder.append(
                        "metrics",
                        row | more | idle | {"seconds_rollout": 0.0, "seconds_update": 0.0},
                    )
            model = recipe.run / "model"
            model.mkdir(exist_ok=True)
            told = made_by(recipe, stage=stage, start=recipe.model)  # type: ignore[arg-type]
            (model / "saccade.json").write_text(json.dumps(told))
            (model / "model.safetensors").write_text(f"weights {len(self.done)}")
            return model

        return run

    def measure(self, recipe: Recipe, *, arm: str, samples: Path) -> None:
        assert recipe.run is not None
        self.samples.add(samples)
        self.done.append(f"{recipe.eval.split} {arm} seed {recipe.seed}")
        right = self.right(recipe)
        with RunFolder(recipe.run) as folder:
            check_same_start(folder, recipe, stage="eval")
            folder.write_recipe(dump_recipe(recipe))
            size = task_of(recipe).size(recipe.eval.split)
            for number in range(min(recipe.eval.items, size or 10**9)):
                folder.append("rows", {"number": number, **row(number, number < right).to_json()})


def row(number: int, right: bool) -> SampleRow:
    return SampleRow(
        id=f"q{number}",
        rollout=0,
        kind="value",
        stratum="look" if number % 2 else "easy",
        cluster=f"q{number}",
        answer="1",
        strict=right,
        lenient=right,
        reward=float(right),
        stop=StopReason.ANSWERED,
        scored=True,
        calls={"look": number % 2},
        completion_tokens=3,
        coverage=None,
        tightness=None,
        seconds=0.1,
        image_tokens=12,
        gold=str(number % 3),
        choices=4,
        scorer=SCORER_VERSION,
    )


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    found = Played()
    monkeypatch.setattr(ladder_work.sft, "run", found.train("sft"))
    monkeypatch.setattr(ladder_work.rl, "run", found.train("rl"))
    monkeypatch.setattr(ladder_work.measure, "run", found.measure)
    return found


# --- arms -----------------------------------------------------------------------------------------


def test_an_arm_has_what_its_neighbour_has_and_says_by_what_it_differs(tmp_path: Path) -> None:
    arms = arms_of(recipe(tmp_path).ladder)
    smooth = arms["rl-text-smooth"]
    assert (smooth.stage, smooth.start) == ("rl", "sft")
    assert smooth.settings == {"rollout.observation": "text", "rl.kl_beta": 0.5}
    assert smooth.differs == "rl-text, rl.kl_beta: 0.5"
    assert arms["rl-text"].differs == 'rl, rollout.observation: "text"'
    assert [a.depth for a in arms.values()] == [0, 1, 2, 2, 2, 2]
    assert [a.name for a in arms.values() if not a.varies] == ["base"]


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        ({"a": {"like": "b"}, "b": {}}, r"ladder\.arms\.a\.like must name an arm above it .*got b"),
        ({"a": {"start": "a"}}, r"ladder\.arms\.a\.start must name .*there is none.*got a"),
        ({"a": {"stage": "score"}}, "a: stage score and a file of episodes belong together"),
        ({"a": {"stage": "rl", "data": "kept"}}, "a: only stage sft learns from kept, got .* rl"),
    ],
)
def test_arms_that_contradict_themselves_are_refused(arms: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        arms_of(changed(Recipe(), {"ladder.arms": arms}).ladder)


@pytest.mark.parametrize("key", ["tested", "reference"])
def test_the_arms_that_others_are_compared_with_are_in_the_ladder(
    played: Played, tmp_path: Path, key: str
) -> None:
    made = recipe(tmp_path).model_dump(mode="json", exclude_unset=True)
    del made["ladder"][key]
    with pytest.raises(RecipeError, match=rf"ladder\.{key} must be one of base, sft, rl, .*got"):
        ladder.run(Recipe.model_validate(made))
    assert not played.done


def test_arms_can_not_learn_from_prompts_that_depend_on_the_model(
    played: Played, tmp_path: Path
) -> None:
    arms = {**ARMS, "answers": {"stage": "sft", "data": "answers"}}
    with pytest.raises(RecipeError, match=r"answers learns from .* rl\.dynamic_sampling"):
        ladder.run(recipe(tmp_path, **{"ladder.arms": arms, "rl.dynamic_sampling": True}))
    assert not played.done


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ladder.splits": ["test", "test_styel"]}, "test_styel"),
        ({"ladder.validation": "valid"}, "valid"),
        (
            {"ladder.arms": {**ARMS, "x": {"set": {"rollout.observaton": "black"}}}},
            r"rollout\.observaton.*observation",
        ),
        ({"ladder.arms": {**ARMS, "x": {"set": {"task.name": "chart"}}}}, "chart"),
    ],
)
def test_what_can_not_be_measured_is_found_before_anything_is_trained(
    played: Played, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        ladder.run(recipe(tmp_path, **settings))
    assert not played.done


@pytest.mark.parametrize(
    "key", ["eval.items", "eval.split", "rl.steps", "rl.group_size", "rl.prompts_per_step", "seed"]
)
def test_what_is_the_same_for_all_arms_is_no_arm_s_to_set(key: str) -> None:
    with pytest.raises(RecipeError, match=rf"ladder\.arms\.a\.set can't hold {key}: "):
        changed(Recipe(), {"ladder.arms": {"a": {"stage": "rl", "set": {key: 5}}}})


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "a b"])
def test_an_arm_s_name_is_that_of_a_folder(name: str) -> None:
    with pytest.raises(RecipeError, match=r"names of letters, digits.*got"):
        changed(Recipe(), {"ladder.arms": {name: {"stage": "eval"}}})


def test_null_takes_away_what_the_neighbour_has() -> None:
    arms = {
        "sft": {"stage": "sft"},
        "rl": {"stage": "rl", "start": "sft"},
        "rl-text": {"like": "rl", "set": {"rollout.observation": "text"}},
        "rl-zero": {"like": "rl", "start": None},
    }
    found = arms_of(changed(Recipe(), {"ladder.arms": arms}).ladder)
    assert {n: a.start for n, a in found.items()} == {
        "sft": None,
        "rl": "sft",
        "rl-text": "sft",
        "rl-zero": None,
    }


def test_a_model_behind_an_endpoint_is_an_arm(played: Played, tmp_path: Path) -> None:
    there = {"model": "qwen-vl", "api.base_url": "http://127.0.0.1:9/v1"}
    arms = {**ARMS, "elsewhere": {"stage": "eval", "set": there}}
    results = ladder.run(recipe(tmp_path, **{"ladder.arms": arms}))
    assert [d for d in played.done if "elsewhere" in d] == ["test elsewhere seed 3"]
    asked = load_recipe(tmp_path / "arms/elsewhere/seed-3/test/recipe.yaml")
    assert asked.api is not None
    assert (asked.model, asked.api.base_url) == ("qwen-vl", "http://127.0.0.1:9/v1")
    assert results["splits"]["test"]["arms"]["elsewhere"]["n"] == 8


def test_a_ladder_without_arms_says_where_there_is_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"has no ladder\.arms; recipe charts-tiny"):
        ladder.run(changed(Recipe(), {"run": str(tmp_path)}))


SEVERAL_KEYS = {"base", "sft-held-out"}
"""The untrained model speaks without tools; a tool by its schema needs words and room for it. Of
others `start` stands beside the key, where an arm is trained from another one's model.
"""


def test_an_arm_of_the_shipped_ladder_differs_from_its_neighbour_by_one_key() -> None:
    given = load_recipe(SHIPPED).ladder.arms
    for name, arm in given.items():
        own = {k for k in ("stage", "start", "data", "episodes") if getattr(arm, k) is not None}
        keys = [*own, *arm.set]
        if name in SEVERAL_KEYS:
            assert len(keys) > 1
        elif arm.like is None:  # the roots: how a model is made, and from which one
            assert own == set(keys) <= {"stage", "start"} or arm.stage == "eval", name
            assert len(arm.set) <= 1, name
        else:
            allowed = 2 if "start" in own and arm.stage != "eval" else 1
            assert 1 <= len(keys) <= allowed, name


@pytest.mark.parametrize("name", load_recipe(SHIPPED).ladder.arms)
def test_every_arm_of_the_shipped_ladder_has_room_for_a_turn(name: str) -> None:
    recipe = load_recipe(SHIPPED)
    made = changed(recipe, dict(arms_of(recipe.ladder)[name].settings))
    store = ImageStore()
    for sample in task_of(made).load("validation", store=store, count=5):
        check_room(sample, answering(made, store=store))


def test_the_shipped_ladder_has_the_arms_that_could_refute_it() -> None:
    arms = arms_of(load_recipe(SHIPPED).ladder)
    trained = {a.name: a for a in arms.values() if a.stage == "rl"}
    assert {a.start for a in trained.values()} == {"sft"}
    own = {name: a.settings for name, a in trained.items()}
    assert own["v-toolrl"] == {}
    modes = {s.get("rollout.observation") for s in own.values()}
    assert modes == {None, "text", "none", "swapped"}
    assert own["rl-no-tools"] == {"tools": []}


# --- episodes that were made elsewhere -----------------------------------------------------------


def foreign(folder: Path, *, count: int, **changes: Any) -> Path:
    """Episodes of the first items of validation, as another program would write them: the right
    answer to each even one, and a gold answer of its own that makes all of them right.
    """
    store, lines = ImageStore(), []
    for number, sample in enumerate(Charts().load("validation", store=store, count=count)):
        said = sample.answer if number % 2 == 0 else "nothing"
        told = Answer(said)
        episode = Episode(
            replace(sample, answer=said, stratum="easy"),
            messages=(Message("user", (Text(sample.question),)),),
            turns=(TurnRecord(Parsed(said, answer=told)),),
            stop=StopReason.ANSWERED,
        )
        lines.append(json.dumps({**episode_to_json(episode), **changes}))
    path = folder / "validation.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def with_foreign(run: Path, folder: Path) -> Recipe:
    arms = {**ARMS, "theirs": {"stage": "score", "episodes": str(folder / "{split}.jsonl")}}
    return recipe(
        run,
        **{
            "ladder.arms": arms,
            "ladder.splits": ["validation"],
            "ladder.validation": "train",
            "ladder.only": ["base", "theirs"],
        },
    )


def test_episodes_made_elsewhere_are_judged_by_our_answers_and_strata(
    played: Played, tmp_path: Path
) -> None:
    foreign(tmp_path, count=8)
    made = with_foreign(tmp_path / "run", tmp_path)
    results = ladder.run(made)
    figures = results["splits"]["validation"]["arms"]["theirs"]
    assert figures["by_stratum"]["accuracy"]["all"][0] == 0.5
    rows = RunFolder(tmp_path / "run/arms/theirs/seed-3/validation").read("rows")
    ours = Charts().load("validation", store=ImageStore(), count=8)
    assert [r["stratum"] for r in rows] == [s.stratum for s in ours]
    assert [r["gold"] for r in rows] == [s.answer for s in ours]
    [line] = RunFolder(tmp_path / "run/arms/theirs/seed-3/validation").read("ledger")
    assert (line["split"], line["items"], line["model"]) == ("validation", 8, None)
    done = len(played.done)
    assert ladder.run(made) == results
    assert len(played.done) == done


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda lines: lines[:-1], "holds 7 episodes, and the split has 8 items"),
        (
            lambda lines: [*lines[:3], "{", *lines[4:]],
            "Line 4 of .* is no episode",
        ),
        (lambda lines: [*lines[:3], "[]", *lines[4:]], "Line 4 of"),
        (lambda lines: [*lines, lines[2]], r"Line 9 .* another episode of sample 'charts/valid"),
    ],
)
def test_episodes_that_can_not_be_scored_are_refused_before_anything_is_done(
    played: Played, tmp_path: Path, spoil: Callable[[list[str]], list[str]], words: str
) -> None:
    path = foreign(tmp_path, count=8)
    path.write_text("\n".join(spoil(path.read_text().splitlines())) + "\n")
    with pytest.raises(DataError, match=words):
        ladder.run(with_foreign(tmp_path / "run", tmp_path))
    assert not played.done


def test_episodes_of_other_items_are_refused(played: Played, tmp_path: Path) -> None:
    path = foreign(tmp_path, count=9)
    with pytest.raises(DataError, match=r"not asked: 'charts/validation/8'\."):
        ladder.run(with_foreign(tmp_path / "run", tmp_path))
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[1:]) + "\n")
    with pytest.raises(DataError, match="no episode of sample 'charts/validation/0'"):
        ladder.run(with_foreign(tmp_path / "run", tmp_path))


# --- the order of things --------------------------------------------------------------------------


def test_rates_are_chosen_on_validation_before_any_test_item_is_asked(
    played: Played, tmp_path: Path
) -> None:
    played.right = lambda r: 3 if "rate-0.001" in str(r.run) else 1  # the higher rate is better
    results = ladder.run(recipe(tmp_path))
    first_test = next(i for i, d in enumerate(played.done) if d.startswith("test"))
    assert first_test > 0
    assert all(d.startswith("test") for d in played.done[first_test:])
    trained = [d for d in played.done if d.startswith("rl rl-text ")]
    assert trained == [
        "rl rl-text seed 3 rate 0.0001",
        "rl rl-text seed 3 rate 0.001",
        "rl rl-text seed 5 rate 0.001",
    ]
    assert results["arms"]["rl-text"]["rate"] == 1e-3
    assert results["arms"]["rl-text"]["validation"] == {"0.0001": 0.25, "0.001": 0.75}
    assert not [d for d in played.done if d.startswith("validation sft")]  # one rate: no choice


def test_of_rates_that_are_equally_good_the_lower_one_is_taken(
    played: Played, tmp_path: Path
) -> None:
    assert ladder.run(recipe(tmp_path))["arms"]["rl"]["rate"] == 1e-4


def test_every_arm_starts_from_the_model_of_its_own_seed(played: Played, tmp_path: Path) -> None:
    ladder.run(recipe(tmp_path))
    for seed in (3, 5):
        folder = RunFolder(tmp_path / "arms" / "rl" / f"seed-{seed}" / "rate-0.0001")
        told = json.loads((folder.path / "model" / "saccade.json").read_text())
        assert (told["seed"], told["from"]["stage"], told["from"]["seed"]) == (seed, "sft", seed)


def test_arms_share_drawn_samples_only_where_they_share_the_task(
    played: Played, tmp_path: Path
) -> None:
    other = {"task.options": {"max_image_tokens": 32}}
    arms = {
        "a": {"stage": "eval"},
        "b": {"like": "a"},
        "c": {"like": "a", "set": other},
        "d": {"like": "a", "set": {"max_image_tokens": 32}},
    }
    names = {"ladder.tested": "a", "ladder.reference": "b"}
    ladder.run(recipe(tmp_path, **{"ladder.arms": arms, **names}))
    assert len(played.samples) == 3
    assert {folder.parent for folder in played.samples} == {tmp_path / "samples"}


def test_what_does_not_depend_on_the_seed_is_asked_once(played: Played, tmp_path: Path) -> None:
    results = ladder.run(recipe(tmp_path))
    assert [d for d in played.done if "base" in d] == ["test base seed 3"]
    asked = [d for d in played.done if "rl-black" in d]
    assert asked == ["test rl-black seed 3", "test rl-black seed 5"]
    assert results["arms"]["base"]["seeds"] == [3]


def test_a_finished_ladder_does_nothing_again_and_a_broken_one_only_what_is_missing(
    played: Played, tmp_path: Path
) -> None:
    first = ladder.run(recipe(tmp_path))
    done = len(played.done)
    assert ladder.run(recipe(tmp_path)) == first
    assert len(played.done) == done
    rows = tmp_path / "arms" / "rl" / "seed-5" / "test" / "rows.jsonl"
    rows.unlink()
    assert ladder.run(recipe(tmp_path)) == first
    assert played.done[done:] == ["test rl seed 5"]


def test_what_failed_by_our_doing_is_asked_again(played: Played, tmp_path: Path) -> None:
    ladder.run(recipe(tmp_path))
    done = len(played.done)
    path = tmp_path / "arms" / "rl" / "seed-5" / "test" / "rows.jsonl"
    first, *rest = path.read_text().splitlines()
    failed = json.loads(first) | {"stop": StopReason.ENGINE_FAILED.value, "scored": False}
    failed |= {"strict": None, "lenient": None, "reward": None}
    path.write_text("\n".join([json.dumps(failed), *rest]) + "\n")
    ladder.run(recipe(tmp_path))
    assert played.done[done:] == ["test rl seed 5"]


def test_a_folder_is_the_same_however_it_is_named(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    first = ladder.run(recipe(Path("here")))
    done = len(played.done)
    for other in (Path("./x/../here"), tmp_path / "here"):
        assert ladder.run(recipe(other)) == first
        assert len(played.done) == done
    (tmp_path / "here/arms/rl-black/seed-5/test/rows.jsonl").unlink()
    (tmp_path / "here/arms/rl-text/seed-5/rate-0.0001/model/saccade.json").unlink()
    (tmp_path / "here/arms/rl-text/seed-5/test/start.json").unlink()
    ladder.run(recipe(Path("./x/../here")))  # goes on with runs that name models by paths
    assert played.done[done:] == ["rl rl-text seed 5 rate 0.0001", "test rl-black seed 5"]


def test_answers_of_other_weights_are_not_taken_for_those_of_an_arm(
    played: Played, tmp_path: Path
) -> None:
    ladder.run(recipe(tmp_path))
    weights = tmp_path / "arms/rl/seed-5/rate-0.0001/model/model.safetensors"
    weights.write_text("other weights")
    with pytest.raises(RecipeError, match=r"was made from other weights than .*seed-5.* has now"):
        ladder.run(recipe(tmp_path))


def test_a_split_with_fewer_items_than_asked_for_is_done_once(
    played: Played, tmp_path: Path
) -> None:
    path = tmp_path / "few.jsonl"
    Image.new("RGB", (60, 60)).save(tmp_path / "one.png")
    row = {"image": "one.png", "question": "?", "answer": "1"}
    rows = [{**row, "id": f"{s}{k}", "split": s} for k in range(3) for s in ("test", "validation")]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    made = recipe(tmp_path / "run", **{"task.name": "files", "task.path": str(path)})
    ladder.run(made)
    done = len(played.done)
    ladder.run(made)
    assert len(played.done) == done


def test_too_few_resamples_are_refused_before_anything_is_trained(
    played: Played, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"eval\.bootstrap of at least 100.*got 99"):
        ladder.run(recipe(tmp_path, **{"eval.bootstrap": 99}))
    assert not played.done


def test_a_ladder_that_was_begun_can_not_be_changed(played: Played, tmp_path: Path) -> None:
    ladder.run(recipe(tmp_path))
    ladder.run(recipe(tmp_path, threads=7, **{"ladder.jobs": 1}))
    with pytest.raises(RecipeError, match="begun with another recipe"):
        ladder.run(recipe(tmp_path, **{"ladder.seeds": [3, 5, 6]}))
    with pytest.raises(RecipeError, match="begun with another recipe"):
        ladder.run(recipe(tmp_path, **{"rl.steps": 7}))


def test_only_some_arms_run_with_those_that_they_start_from(played: Played, tmp_path: Path) -> None:
    results = ladder.run(recipe(tmp_path, **{"ladder.only": ["rl-black"]}))
    assert list(results["arms"]) == ["sft", "rl", "rl-black"]


# --- results --------------------------------------------------------------------------------------


def test_results_hold_figures_differences_costs_and_chance(played: Played, tmp_path: Path) -> None:
    played.right = lambda r: 8 if r.rollout.observation == "image" and r.dialect != "plain" else 2
    results = ladder.run(recipe(tmp_path))
    split = results["splits"]["test"]
    assert split["arms"]["rl"]["by_stratum"]["accuracy"]["look"][0] == 1.0
    pair = next(p for p in split["pairs"] if p["b"] == "rl-black")
    assert pair["by_stratum"]["all"] == [0.75, *pair["by_stratum"]["all"][1:]]
    assert split["arms"]["rl"]["image_tokens"] == 12
    assert split["chance"]["value"]["guess"] == 0.25
    assert split["chance"]["value"]["constant"] == pytest.approx(3 / 8)
    assert {g["arm"] for g in split["gain_and_harm"]} == set(ARMS) - {"rl-text"}
    costs = results["arms"]["rl"]["training"]
    cost = {"steps": 1, "episodes": 24, "written": 120.0, "tokens": 90, "seconds": 1.5}
    assert costs == [cost] * 2
    assert results["arms"]["sft"]["training"][0] == {"steps": 1, "tokens": 7, "seconds": 2.0}
    assert json.loads((tmp_path / "ladder.json").read_text()) == results
    assert results["scorer"] == SCORER_VERSION


def test_arms_of_few_items_are_asked_those_too_where_they_read_all_of_them(
    played: Played, tmp_path: Path
) -> None:
    few = {"stage": "rl", "set": {"task.train_items": 6}}
    arms = {
        **ARMS,
        "few": few,
        "more": {"like": "few", "set": {"task.train_items": 50}},
        "picked": {"like": "few", "set": {"rl.keep": "best"}},
    }
    played.right = lambda r: 4 + r.seed if "training-items" in str(r.run) else 2
    settings = {"rl.steps": 10, "rl.prompts_per_step": 4, "rl.eval_items": 20}
    results = ladder.run(recipe(tmp_path, **{"ladder.arms": arms, **settings}))
    own = [d for d in played.done if d.startswith("train ")]
    # of 50 items they read 40, each once, as of a stream
    assert own == [f"train {arm} seed {seed}" for arm in ("few", "picked") for seed in (3, 5)]
    assert played.done[-4:] == own
    told = {name: results["arms"][name] for name in arms}
    assert [told[a]["items_read"] for a in ("few", "more", "rl")] == [6, 40, 40]
    assert "items_read" not in told["base"]
    assert [told[a]["picked_on"] for a in ("few", "picked")] == [None, 20]
    assert told["more"]["training_items"] == {}
    assert told["few"]["training_items"]["accuracy"]["all"] == [1.0, 1.0, 1.0]
    [rows] = [(tmp_path / f"arms/few/seed-{s}/training-items/rows.jsonl") for s in (3,)]
    assert len(rows.read_text().splitlines()) == 6
    # the samples of a seed are not another's
    assert len(played.samples) == 3 + 2


def test_items_of_each_seed_have_the_interval_of_the_seeds() -> None:
    seeds = [[row(n, n < right) for n in range(4)] for right in (1, 2, 3)]
    found = own_item_figures(seeds)["accuracy"]
    assert found["all"] == pytest.approx((0.5, 0.0, 1.0))  # 0.5 -+ 4.30 * 0.25 / 1.73, cut
    narrow = [[row(n, n < right) for n in range(20)] for right in (9, 10, 11)]
    assert own_item_figures(narrow)["accuracy"]["all"] == pytest.approx(
        (0.5, 0.5 - 4.3027 * 0.05 / 3**0.5, 0.5 + 4.3027 * 0.05 / 3**0.5), abs=1e-4
    )
    assert own_item_figures(seeds[:1])["accuracy"]["easy"] == (0.5, None, None)
    assert "f1" not in own_item_figures(seeds)  # nobody asked for boxes
    assert own_item_figures([]) == {}


# --- processes ------------------------------------------------------------------------------------


def test_jobs_in_processes_do_the_same_and_tell_the_first_error(tmp_path: Path) -> None:
    arms = {"a": {"stage": "sft", "data": "answers"}}
    made = changed(
        Recipe(),
        {
            "run": str(tmp_path),
            "dialect": "plain",
            "rl.steps": 1,
            "rl.prompts_per_step": 2,
            "ladder.arms": arms,
        },
    )
    [arm] = arms_of(made.ladder).values()

    def job(seed: int, task: str) -> ladder_work.Job:
        settings = {"seed": seed, "run": str(tmp_path / str(seed)), "task.name": task}
        return ladder_work.Job("answers", arm, changed(made, settings))

    with ladder_work.workers(2, tmp_path) as work:
        work([job(0, "charts"), job(1, "charts")], "data")
        with pytest.raises(RecipeError, match="nonsense"):
            work([job(2, "nonsense")], "data")
    lines = [(tmp_path / str(k) / "demonstrations.jsonl").read_text() for k in (0, 1)]
    assert all(len(text.splitlines()) == 2 for text in lines)
    assert (tmp_path / "logs").is_dir()


def test_a_worker_that_is_killed_is_told_in_a_sentence(tmp_path: Path) -> None:
    script = tmp_path / "short.py"
    script.write_text(STARVED)
    ended = subprocess.run(
        [sys.executable, script, tmp_path], timeout=120, check=False, capture_output=True, text=True
    )
    assert ended.returncode == 3, ended.stderr
    assert re.search(r"A worker of the ladder was killed .*logs.*which goes on", ended.stdout)


STARVED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from saccade.errors import SaccadeError
from saccade.ladder import work

def killed(job, top):
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    work._is_done, work._do = lambda job: False, killed
    with work.workers(2, Path(sys.argv[1])) as done:
        try:
            done([SimpleNamespace()], "train")
        except SaccadeError as error:
            print(error)
            sys.exit(3)
"""
KILLED = """
import os, signal, sys, time
from pathlib import Path
from saccade.ladder import work

def job(folder, top):
    (top / f"{os.getpid()}.worker").touch()
    time.sleep(60)

if __name__ == "__main__":
    top = Path(sys.argv[1])
    with work.workers(2, top) as done:
        futures = [done._pool.submit(job, None, top) for _ in range(2)]
        while len(list(top.glob("*.worker"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_a_ladder_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    ended = subprocess.run([sys.executable, script, tmp_path], timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    workers = [int(path.stem) for path in tmp_path.glob("*.worker")]
    assert len(workers) == 2
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ladder.validation": "test"}, r"ladder\.validation must be none of ladder\.splits"),
        (
            {"ladder.arms": {"rl": {"stage": "rl", "set": {"rl.learning_rate": 1e-5}}}},
            r"can't hold rl\.learning_rate",
        ),
    ],
)
def test_rates_are_chosen_for_all_arms_alike_and_on_no_test_item(
    settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=said):
        recipe(tmp_path, **{"ladder.reference": "rl", **settings})


# --- data of arms ---------------------------------------------------------------------------------


def test_self_made_chains_are_the_base_s_and_of_questions_that_rl_does_not_read(
    played: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, int, range, bool]] = []

    def self_made(
        recipe: Recipe, *, split: str, start: int, count: int, tries: int, blank: bool
    ) -> Made:
        assert recipe.run is not None
        assert tries == 3
        questions = range(start, start + count)
        asked.append((recipe.run.parts[-2], recipe.model, recipe.seed, questions, blank))
        found = Demonstration("shapes_vsr/train/0", ("<answer> true </answer>",), "self-made")
        return Made((found,), count, 70)

    monkeypatch.setattr(ladder_work, "self_made", self_made)
    arms = {
        "warm": {"stage": "sft", "data": "self-made"},
        "blank": {"like": "warm", "data": "self-made-blank"},
        "more": {"like": "warm", "start": "warm"},
        "rl": {"stage": "rl", "start": "warm"},
    }
    settings = {
        "ladder.arms": arms,
        "ladder.reference": "warm",
        "ladder.self_made": 50,
        "ladder.self_made_tries": 3,
        "task.name": "shapes_vsr",
    }
    results = ladder.run(recipe(tmp_path, **settings))
    of = {(arm, seed): (model, questions, blank) for arm, model, seed, questions, blank in asked}
    assert set(of) == {(arm, seed) for arm in ("warm", "blank", "more") for seed in (3, 5)}
    assert {model for model, _, _ in of.values()} == {"saccade-tiny-base"}
    assert {arm for (arm, _), (_, _, blank) in of.items() if blank} == {"blank"}
    assert of["warm", 3][1] == of["blank", 3][1]  # the same questions, told in two ways
    stretches = [set(of[arm, seed][1]) for arm in ("warm", "more") for seed in (3, 5)]
    assert len(set().union(*stretches)) == 4 * 50
    for seed in (3, 5):
        read = range(seed * BETWEEN_SEEDS, seed * BETWEEN_SEEDS + 10**6)
        assert not any(set(read[:5000]) & stretch for stretch in stretches)
        assert all(
            seed * BETWEEN_SEEDS <= q < (seed + 1) * BETWEEN_SEEDS for q in of["more", seed][1]
        )
    assert results["arms"]["warm"]["training"][0]["written"] == 70


def test_masks_of_another_arm_s_gaze_are_asked_when_it_has_been_measured(
    played: Played, tmp_path: Path
) -> None:
    masks = {"eval.control": "gaze-masked", "eval.gaze_of": "rl"}
    arms = ARMS | {"base-masked": {"like": "base", "set": masks}}
    of: list[str] = []
    ask = played.measure

    def measure(recipe: Recipe, **options: Any) -> Any:
        if recipe.eval.gaze_of is not None:
            assert (recipe.eval.gaze_of / "rows.jsonl").is_file()
            of.append(str(recipe.eval.gaze_of.relative_to(tmp_path)))
        return ask(recipe, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder_work.measure, "run", measure)
        ladder.run(recipe(tmp_path, **{"ladder.arms": arms}))
    assert of == ["arms/rl/seed-3/test", "arms/rl/seed-5/test"]
    with pytest.raises(RecipeError, match="must name an arm above it"):
        ladder.run(recipe(tmp_path / "b", **{"ladder.arms": {"first": {"set": masks}, **ARMS}}))
    [*found] = with_starts(
        arms_of(recipe(tmp_path, **{"ladder.arms": arms}).ladder), ["base-masked"]
    )
    assert found == ["sft", "rl", "base-masked"]


def test_claims_ask_for_their_pairs_and_stand_in_the_results(
    played: Played, tmp_path: Path
) -> None:
    claims = [{"arm": "rl-text", "above": ["sft"], "metric": "lenient", "more_than": 0.0}]
    results = ladder.run(recipe(tmp_path, **{"ladder.claims": claims}))
    [claim] = results["claims"]
    assert (claim["arm"], claim["above"], claim["strata"]) == ("rl-text", ["sft"], ["all"])
    pairs = {(p["a"], p["b"], p["metric"]) for p in results["splits"]["test"]["pairs"]}
    assert {("rl-text", "sft", "lenient"), ("rl-text", "sft", "accuracy")} <= pairs


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ({"above": ["nobody"], "more_than": 0.0}, "must name arms"),
        ({"above": ["sft"]}, "just one of more_than, at_least, less_than"),
        ({"above": ["sft"], "more_than": 0.0, "less_than": 1.0}, "just one of"),
        ({"above": ["sft"], "more_than": 0.0, "kinds": ["a"]}, "is about one arm"),
        ({"less_than": 0.1, "at_checkpoints": True}, "invalid or redundant, got accuracy"),
        ({"not_below": -0.03}, "is about a difference: say above which arms"),
    ],
)
def test_a_claim_without_a_bound_or_an_arm_is_refused(
    claim: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=words):
        recipe(tmp_path, **{"ladder.claims": [claim]})


def test_the_shipped_ladder_of_boxes_has_the_arms_that_could_refute_it() -> None:
    shipped = load_recipe(SHIPPED.with_name("grounded-tiny.yaml"))
    arms = arms_of(shipped.ladder)
    assert arms["grpo-gr"].start == arms["grpo-gr-published"].start == "warm-up"
    assert arms["words"].start == "warm-up-blank"
    assert arms["grpo-gr-weak"].start is None
    above = {name for claim in shipped.ladder.claims for name in claim.above}
    assert {"direct", "cot", "one-shot", "few-shot", "stream-direct", "words", "warm-up"} <= above
    assert arms["stream-direct"].settings["task.train_items"] is None  # as many as rewards see
    assert {claim.metric for claim in shipped.ladder.claims} >= {"accuracy", "f1", "invalid"}
    continued, warm = arms["warm-up-continued"], arms["warm-up"]
    assert (continued.start, continued.data) == (warm.start, warm.data)  # the same chains
    told = {(c.arm, c.metric) for c in shipped.ladder.claims}
    assert {("exchanged", "changed"), ("jittered", "changed"), ("grpo-gr-weak", "invalid")} <= told


def test_the_shipped_suite_asks_of_each_tool_what_it_is_worth() -> None:
    shipped = load_recipe(SHIPPED.with_name("suite.yaml"))
    arms = arms_of(shipped.ladder)
    assert {*shipped.tools} == {*builtin_tools()} - {"terminate", "look", "zoom"}
    for stage, start in (("eval", "suite"), ("rl", None)):  # dependence, benefit
        without = [
            arm.settings["rollout.withheld"]
            for arm in arms.values()
            if (arm.stage, arm.start) == (stage, start) and "rollout.withheld" in arm.settings
        ]
        assert without == [[name] for name in shipped.tools]


def test_the_shipped_ladder_of_few_questions_has_as_many_for_rewards_as_for_fine_tuning() -> None:
    few = load_recipe(SHIPPED.with_name("few-tiny.yaml"))
    arms = arms_of(few.ladder).values()
    for stage in ("rl", "sft"):
        # no other question taught them anything
        learned = [
            a for a in arms if a.stage == stage and a.start is None and a.data != "self-made"
        ]
        of = {a.settings.get("task.train_items"): changed(few, a.settings) for a in learned}
        assert {20, 500, 7000} <= of.keys()
        read = {size: ladder._items_read(of[size], stage) for size in (20, 500, 7000)}
        assert read == {20: 20, 500: 500, 7000: 3200}
        # as many steps for all, or items and steps would be one
        assert len({(r.rl.steps if stage == "rl" else r.sft.steps) for r in of.values()}) == 1
    assert few.sft.steps is None  # the warm-up has passes
    assert len(few.ladder.seeds) == 3
    assert len(few.ladder.sft_rates) == len(few.ladder.rl_rates) == 2


def test_the_shipped_mixed_recipe_holds_both_ways_of_looking_against_each() -> None:
    shipped = load_recipe(SHIPPED.with_name("mixed-tiny.yaml"))
    arms = arms_of(shipped.ladder)
    trained_on = {
        name: arm.settings.get("task.options", {}).get("train") for name, arm in arms.items()
    }
    assert trained_on["rl-both"] is None
    assert trained_on["rl-charts"] == trained_on["sft-charts"] == ["charts"]
    assert trained_on["rl-shapes"] == trained_on["sft-shapes"] == ["shapes_vsr", "shapes_tally"]
    assert {arm.start for arm in arms.values() if arm.stage == "rl"} == {
        "sft-both", "sft-charts", "sft-shapes",
    }  # fmt: skip
    assert {c.not_below for c in shipped.ladder.claims} == {-0.03}
    assert len(shipped.ladder.seeds) == 3
    assert {c.above: c.strata for c in shipped.ladder.claims if c.metric == "accuracy"} == {
        ("rl-charts",): ("easy", "look"),
        ("rl-shapes",): ("relations", "counts"),
    }
