"""Recipes as files and flags: what is read, what is refused and how, what is the same run."""

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saccade.config import Recipe
from saccade.errors import RecipeError
from saccade.recipe_files import (
    Stage,
    check_same_run,
    dump_recipe,
    load_recipe,
    recipe_from,
    recipe_hash,
)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(path: Path | None, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_no_file_and_an_empty_file_are_all_defaults(tmp_path: Path) -> None:
    assert load_recipe(None) == Recipe()
    assert load_recipe(written(tmp_path, "")) == Recipe()
    assert load_recipe(written(tmp_path, "rl:\n  # steps: 3\nsft:\n")) == Recipe()


def test_values_of_a_file_are_read_and_overrides_win_in_order(tmp_path: Path) -> None:
    path = written(tmp_path, "seed: 3\nrl:\n  steps: 5\n  learning_rate: 1e-4\ntools: [zoom]\n")
    recipe = load_recipe(path, ["rl.steps=7", "rl.steps=9", "sft.demonstrations=a/b.jsonl"])
    assert (recipe.seed, recipe.rl.steps, recipe.rl.learning_rate) == (3, 9, 1e-4)
    assert recipe.tools == ("zoom",)
    assert recipe.sft.demonstrations == Path("a/b.jsonl")


def test_overrides_hold_lists_nulls_and_options_of_a_task() -> None:
    recipe = load_recipe(
        None, ["tools=[]", "run=null", "task.options.kinds=[value]", "rl.loss=gspo"]
    )
    assert (recipe.tools, recipe.run, recipe.rl.loss) == ((), None, "gspo")
    assert recipe.task.options == {"kinds": ["value"]}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rl.goup_size=4", "Unknown key rl.goup_size. Did you mean rl.group_size?"),
        ("group_size=4", "Unknown key group_size. Did you mean rl.group_size?"),
        ("sft.group_size=4", "Unknown key sft.group_size. Did you mean rl.group_size?"),
        ("maximagetokens=4", "Unknown key maximagetokens. Did you mean max_image_tokens?"),
        ("evl.items=4", "Unknown key evl. Did you mean eval?"),
        ("seed.x=4", "Unknown key seed.x. Did you mean seed?"),
        (
            "task.kinds=4",
            "Unknown key task.kinds. Section task has name, path, options, train_items, "
            "train_ways.",
        ),
    ],
)
def test_an_unknown_key_names_the_likely_one(override: str, sentence: str) -> None:
    assert complaint(None, override) == sentence


def test_a_key_that_fits_several_sections_names_them_all() -> None:
    assert complaint(None, "learning_rate=1").endswith(
        "Did you mean pretrain.learning_rate or sft.learning_rate or rl.learning_rate?"
    )


def test_unknown_keys_of_a_file_are_named_like_those_of_overrides(tmp_path: Path) -> None:
    path = written(tmp_path, "rl:\n  goup_size: 4\n3: x\n")
    first, second = complaint(path).split("\n")
    assert first == "Unknown key rl.goup_size. Did you mean rl.group_size?"
    assert second.startswith("Unknown key 3. There are run, seed,")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rl.group_size=1", "rl.group_size must be at least 2, got 1."),
        ("rl.clip_low=1.5", "rl.clip_low must be at most 1, got 1.5."),
        ("rl.learning_rate=0", "rl.learning_rate must be more than 0, got 0."),
        ("rl.learning_rate=.inf", "rl.learning_rate must be a finite number, got Infinity."),
        ("rl.kl_beta=.nan", "rl.kl_beta must be a finite number, got NaN."),
        ("rl.steps=many", 'rl.steps must be a whole number, got "many".'),
        ("rl.steps=2.5", "rl.steps must be a whole number, got 2.5."),
        ("rl.steps=yes", "rl.steps must not be true or false, got true."),
        ("deterministic=maybe", 'deterministic must be true or false, got "maybe".'),
        ("tools=zoom", 'tools must be a list, got "zoom".'),
        ("model=12", "model must be text (in quotes if it looks like a number), got 12."),
        ("rl=3", "rl is a section; set one of its keys, as in rl.steps=200."),
        ("rl.steps", "An override looks like rl.group_size=8, got 'rl.steps'."),
        ("rl..steps=3", "An override looks like rl.group_size=8, got 'rl..steps=3'."),
    ],
)
def test_a_bad_value_gives_one_sentence_with_the_value(override: str, sentence: str) -> None:
    assert complaint(None, override) == sentence


def test_a_misspelt_choice_names_the_near_one() -> None:
    assert complaint(None, "rl.loss=GRPO") == (
        "rl.loss must be one of 'grpo', 'dr_grpo', 'dapo', 'gspo' or 'cispo', "
        'got "GRPO". Did you mean grpo?'
    )


def test_every_mistake_gets_its_own_sentence() -> None:
    assert complaint(None, "rl.steps=0", "seed=-1").split("\n") == [
        "seed must be at least 0, got -1.",
        "rl.steps must be at least 1, got 0.",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a", 'must hold `key: value` lines, got ["a"].'),
        ("a: [", "is not valid YAML: expected the node content"),
        ("rl:\n  steps: 1\n  steps: 2", "is not valid YAML: steps stands twice, again in line 3."),
        ("a: !!python/name:os.system x", "is not valid YAML: could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_recipe_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = written(tmp_path, text)
    assert complaint(path).startswith(f"Recipe {path} {sentence}")


def test_a_missing_folder_or_foreign_file_is_one_sentence(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    assert complaint(missing) == f"There is no recipe {missing}; give the path of a YAML file."
    assert complaint(tmp_path).startswith(f"Recipe {tmp_path} can't be read: ")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"model: \xff")
    assert complaint(binary) == f"Recipe {binary} is not UTF-8 text; save it as such."


def test_a_name_that_looks_like_a_date_stays_a_name(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, "model: 2024-01-31")).model == "2024-01-31"
    assert load_recipe(None, ["model=2024-01-31"]).model == "2024-01-31"


def test_the_hash_is_of_the_values_and_not_of_how_they_were_written(tmp_path: Path) -> None:
    path = written(tmp_path, "rl: {steps: 200, learning_rate: 3.0e-5}\nseed: 0\nrun: elsewhere\n")
    plain = recipe_hash(Recipe(), stage="rl")
    assert recipe_hash(load_recipe(path), stage="rl") == plain
    assert recipe_hash(load_recipe(None, ["seed=1"]), stage="rl") != plain
    assert len(plain) == 64


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ("threads=7", set()),
        ("dialect=openthinkimg", {"sft", "rl", "eval"}),
        ("max_image_tokens=32", {"pretrain", "sft", "rl", "eval"}),
        ("ladder.jobs=2", set()),
        ("rl.kl_beta=0.3", {"rl"}),
        ("sft.epochs=9", {"sft"}),
        ("pretrain.steps=7000", {"pretrain"}),
    ],
)
def test_the_hash_of_a_stage_is_of_what_it_depends_on(change: str, stages: set[Stage]) -> None:
    changed = load_recipe(None, [change])
    every: tuple[Stage, ...] = ("pretrain", "sft", "rl", "eval")
    assert stages == {
        s for s in every if recipe_hash(changed, stage=s) != recipe_hash(Recipe(), stage=s)
    }


def test_threads_count_only_where_results_must_repeat() -> None:
    """Sums over more threads are added in another order."""
    for stage in ("pretrain", "sft", "rl", "eval"):
        stored = dump_recipe(load_recipe(None, ["threads=1", "deterministic=true"]))
        with pytest.raises(RecipeError, match="a run with threads: 1, now it is 2"):
            check_same_run(
                stored, load_recipe(None, ["threads=2", "deterministic=true"]), stage=stage
            )
        stored = dump_recipe(load_recipe(None, ["threads=1"]))
        check_same_run(stored, load_recipe(None, ["threads=2"]), stage=stage)


@pytest.mark.parametrize(
    "stored",
    ["rl: [", "just text", "", "seed: 2024-13-45", "[" * 5000, "rl: {a: 1, a: 2}", "rl: much"],
)
def test_a_damaged_recipe_of_a_run_is_one_sentence(stored: str) -> None:
    given = load_recipe(None, ["run=runs/x"])
    with pytest.raises(RecipeError, match=r"runs/x.*(no recipe|holds a run with).*another folder"):
        check_same_run(stored, given, stage="rl")


def test_a_section_that_may_be_left_out_is_set_key_by_key() -> None:
    assert Recipe().api is None
    made = load_recipe(None, ["api.timeout_s=1"]).api
    assert made is not None
    assert made.timeout_s == 1
    with pytest.raises(RecipeError, match=r"Did you mean api\.timeout_s\?"):
        load_recipe(None, ["api.timeout=1"])


names = st.text(min_size=1, max_size=20)
numbers = st.floats(min_value=1e-12, max_value=1e6)


@settings(deadline=None)
@given(names, numbers, st.integers(min_value=2, max_value=10**9), st.lists(names, unique=True))
def test_what_is_dumped_is_read_back_equal(
    name: str, rate: float, size: int, tools: list[str]
) -> None:
    data = {"model": name, "rl": {"learning_rate": rate, "group_size": size}, "tools": tools}
    recipe = Recipe.model_validate(data)
    with tempfile.TemporaryDirectory() as folder:
        back = load_recipe(written(Path(folder), dump_recipe(recipe)))
    assert back == recipe
    assert recipe_hash(back, stage="sft") == recipe_hash(recipe, stage="sft")


keys = st.sampled_from(
    [
        "seed",
        "model",
        "run",
        "tools",
        "task.options",
        "task.options.a",
        "rl",
        "rl.loss",
        "rl.clip_low",
        "",
    ]
)
values = st.text(alphabet="abz_.= \n:[]{}'\"#&*!|>-0123é😀", max_size=20)


@settings(deadline=None)
@given(keys, values)
def test_every_override_gives_a_recipe_that_can_be_kept_or_a_sentence(key: str, value: str) -> None:
    with contextlib.suppress(RecipeError):
        recipe = load_recipe(None, [f"{key}={value}"])
        assert len(recipe_hash(recipe, stage="rl")) == 64
        assert dump_recipe(recipe).startswith("run:")


def test_a_dumped_recipe_is_readable_text(tmp_path: Path) -> None:
    recipe = load_recipe(None, ["model=модель-😀", f"run={json.dumps('läufe/一')}"])
    text = dump_recipe(recipe)
    assert "model: модель-" in text
    assert load_recipe(written(tmp_path, text)) == recipe


def test_a_stored_recipe_that_is_no_yaml_is_refused() -> None:
    with pytest.raises(RecipeError, match="recipe of a run can't be read"):
        recipe_from("seed: [1,\n  'x")


def test_a_key_that_recipes_got_later_changes_no_hash_until_it_is_set() -> None:
    plain = load_recipe(None)
    chosen = load_recipe(None, overrides=["backends.reader=rapidocr"])
    stages: tuple[Stage, ...] = ("sft", "rl", "eval")
    for stage in stages:
        assert recipe_hash(chosen, stage=stage) != recipe_hash(plain, stage=stage)
        elsewhere = load_recipe(None, overrides=["service.way=workers"])
        assert recipe_hash(elsewhere, stage=stage) == recipe_hash(plain, stage=stage)
    older = dump_recipe(plain).replace("backends: {}\n", "")
    assert older != dump_recipe(plain)
    check_same_run(older, plain, stage="rl")
    with pytest.raises(RecipeError, match="holds a run with backends"):
        check_same_run(older, chosen, stage="rl")


def test_a_key_inside_a_section_that_recipes_got_later_leaves_earlier_runs_valid(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = load_recipe(None, ["backends.reader=rapidocr"])
    hashed: list[dict[str, Any]] = []
    stock = json.dumps

    def dumps(data: dict[str, Any], **how: Any) -> str:
        hashed.append(data)
        return stock(data, **how)

    monkeypatch.setattr(json, "dumps", dumps)
    recipe_hash(recipe, stage="rl")
    monkeypatch.undo()
    # what was hashed before there were batches
    reader = {"name": "rapidocr", "model": None, "device": "cpu", "threads": 1}
    assert hashed[0]["backends"] == {"reader": reader}
    older = dump_recipe(recipe).replace("    batch: null\n", "").replace("  train_ways: 1\n", "")
    assert len(older.splitlines()) == len(dump_recipe(recipe).splitlines()) - 2
    check_same_run(older, recipe, stage="rl")
    batches = load_recipe(None, ["backends.reader.name=rapidocr", "backends.reader.batch=4"])
    assert recipe_hash(batches, stage="rl") != recipe_hash(recipe, stage="rl")
    with pytest.raises(RecipeError, match="holds a run with backends"):
        check_same_run(older, batches, stage="rl")
