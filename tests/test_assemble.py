"""From a recipe to the parts of a run; a folder is taken up only where what it began from is the
same.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from saccade.ask import ask
from saccade.assemble import check_same_start, setup_for
from saccade.config import Recipe
from saccade.errors import RecipeError
from saccade.image_store import ImageStore
from saccade.recipe_files import Stage, load_recipe
from saccade.run_folder import RunFolder
from saccade.toolserver.controller import Controller


@pytest.fixture
def given(tmp_path: Path) -> Recipe:
    """A recipe whose model, reference, demonstrations and rows are small files."""
    for name in ("start", "reference"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
    (tmp_path / "d.jsonl").write_text("demonstrations")
    (tmp_path / "rows.jsonl").write_text("rows")
    overrides = (
        f"model={tmp_path / 'start'}",
        f"rl.reference={tmp_path / 'reference'}",
        f"sft.demonstrations={tmp_path / 'd.jsonl'}",
        "task.name=files",
        f"task.path={tmp_path / 'rows.jsonl'}",
    )
    return load_recipe(None, overrides)


@pytest.mark.parametrize(
    ("file", "key", "stages"),
    [
        ("start/model.safetensors", "weights than .*start", {"sft", "rl", "eval"}),
        ("reference/model.safetensors", "rl.reference than .*reference", {"rl"}),
        ("d.jsonl", "sft.demonstrations than .*d.jsonl", {"sft"}),
        ("rows.jsonl", "task.path than .*rows.jsonl", {"sft", "rl", "eval"}),
    ],
)
def test_a_run_does_not_go_on_from_files_that_have_changed(
    given: Recipe, tmp_path: Path, file: str, key: str, stages: set[Stage]
) -> None:
    every: tuple[Stage, ...] = ("sft", "rl", "eval")
    for stage in every:
        with RunFolder(tmp_path / f"run-{stage}") as folder:
            check_same_start(folder, given, stage=stage)
    (tmp_path / file).write_text("changed")
    for stage in every:
        with RunFolder(tmp_path / f"run-{stage}") as folder:
            if stage not in stages:
                check_same_start(folder, given, stage=stage)
                continue
            with pytest.raises(RecipeError, match=f"made from other {key}.* has now"):
                check_same_start(folder, given, stage=stage)


def test_a_model_behind_an_endpoint_has_no_weights_here_but_its_rows_count(
    given: Recipe, tmp_path: Path
) -> None:
    served = load_recipe(
        None, ["api.timeout_s=1", "model=far", "task.name=files", f"task.path={given.task.path}"]
    )
    with RunFolder(tmp_path / "run") as folder:
        check_same_start(folder, served, stage="eval")
        (tmp_path / "rows.jsonl").write_text("changed")
        with pytest.raises(RecipeError, match=r"task\.path"):
            check_same_start(folder, served, stage="eval")


def test_a_folder_of_an_older_version_goes_on_and_is_guarded_from_then_on(
    given: Recipe, tmp_path: Path
) -> None:
    """It holds the digest of the weights alone."""
    with RunFolder(tmp_path / "run") as folder:
        check_same_start(folder, given, stage="sft")
        folder.write_json("start", {"sha256": folder.read_json("start")["sha256"]})
        check_same_start(folder, given, stage="sft")
        (tmp_path / "d.jsonl").write_text("changed")
        with pytest.raises(RecipeError, match=r"sft\.demonstrations"):
            check_same_start(folder, given, stage="sft")


# --- tools and what is shown of them --------------------------------------------------------------


def served(*overrides: str) -> Recipe:
    return load_recipe(None, ["api.timeout_s=1", "model=far", *overrides])


@pytest.mark.parametrize("mode", ["image", "text", "none", "swapped", "black"])
def test_every_mode_of_observation_leaves_the_tools_in_place(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    setup = setup_for(served(f"rollout.observation={mode}"), None, store=ImageStore())
    assert setup.observation == mode
    assert setup.toolbox is not None
    assert [t.name for t in setup.toolbox.tools] == ["zoom", "crop", "terminate"]


@pytest.mark.parametrize("change", ["tools=[]", "dialect=plain"])
def test_without_tools_in_the_recipe_or_its_dialect_there_is_no_toolbox(
    change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    assert setup_for(served(change), None, store=ImageStore()).toolbox is None


def test_a_withheld_tool_is_not_given_and_its_words_still_mean_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    several = ("dialect=pointing", "tools=[look, crop]")
    setup = setup_for(served(*several, "rollout.withheld=[look]"), None, store=ImageStore())
    assert setup.toolbox is not None
    assert [t.name for t in setup.toolbox.tools] == ["crop", "terminate"]
    assert [c.name for c in setup.dialect.parse("a [0, 0, 9, 9]").calls] == ["look"]
    none = setup_for(served(*several, "rollout.withheld=[look, crop]"), None, store=ImageStore())
    assert none.toolbox is None
    with pytest.raises(RecipeError, match=r"rollout.withheld must name tools .*look, crop.* zoom"):
        served(*several, "rollout.withheld=[zoom]")


def test_one_question_can_not_be_asked_with_swapped_pictures(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"rollout\.observation=image"):
        ask(served("rollout.observation=swapped"), tmp_path / "a.png", "What?")


def test_a_run_is_refused_none_of_the_calls_that_its_own_episodes_make() -> None:
    """They bound themselves: so many episodes, and so many calls in a turn of each."""
    recipe = load_recipe(
        None, ["tools=[measure]", "rollout.concurrency=300", "api.base_url=http://127.0.0.1:9/v1"]
    )
    setup = setup_for(recipe, None, store=ImageStore())
    assert setup.toolbox is not None
    controller = setup.toolbox.runner
    assert isinstance(controller, Controller)
    assert controller._waiting == 300 * setup.toolbox.max_calls
    fewer = load_recipe(
        None, ["tools=[measure]", "rollout.concurrency=2", "api.base_url=http://127.0.0.1:9/v1"]
    )
    setup = setup_for(fewer, None, store=ImageStore())
    assert setup.toolbox is not None
    assert setup.toolbox.runner is controller
    assert controller._waiting == 300 * setup.toolbox.max_calls
