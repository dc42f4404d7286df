"""Every command end to end on a model without training: what it leaves and prints, its exit codes,
and the one sentence for what is the user's to mend.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner, Result

from saccade.assemble import answering, data_file
from saccade.backends import builtin_backends
from saccade.benches.engine import bench_engine
from saccade.benches.found import SOURCES
from saccade.cli import app, recipe_path
from saccade.config import Recipe
from saccade.dialects import dialect
from saccade.engines.scripted import ScriptedEngine
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.models.tiny import SETTINGS, build_model, build_tokenizer, save
from saccade.picture_files import load_image
from saccade.recipe_files import load_recipe
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.rewards.answers import SCORER_VERSION
from saccade.rollout import Setup
from saccade.synth.replay import read_demonstrations
from saccade.worlds.charts import item

ROOT = Path(__file__).parent.parent
TOP = (
    "demo",
    "ask",
    "attention",
    "pretrain",
    "sft",
    "rl",
    "eval",
    "ladder",
    "rollout",
    "report",
    "score",
    "check",
    "synth",
    "synth-chains",
)
COMMANDS = {
    *TOP,
    *("tools list", "tools call", "tools fetch", "tools status", "serve tools", "serve mcp"),
    *("bench engine", "bench found", "bench rl", "bench tools", "bench chaos"),
}
CHINESE_ARABIC_EMOJI = "柱子 2 的值是多少？ ما قيمة العمود؟ 🙂👩‍🔬"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def ok(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def refused(*arguments: object) -> str:
    """The one sentence of a command that can't go on."""
    result = run(*arguments)
    assert result.exit_code == 1, (result.output, result.exception)
    assert isinstance(result.exception, SystemExit), result.exception  # nothing else got out
    said = [x for x in result.stderr.splitlines() if not re.search(r"\d/\d+ .* min left", x)]
    assert len(said) == 1, result.stderr
    assert said[0].startswith("saccade: ")
    assert said[0].endswith((".", "?"))
    return said[0]


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def contents(folder: Path, pattern: str) -> dict[str, tuple[int, int]]:
    """Size and time of change of the files of a folder that the pattern names."""
    found = {
        str(p.relative_to(folder)): (p.stat().st_size, p.stat().st_mtime_ns)
        for p in folder.glob(pattern)
    }
    assert found
    return found


# --- what the commands work on --------------------------------------------------------------------


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its initial weights, a recipe at smoke scale, demonstrations, a chart, and a
    data file of a user.
    """
    folder = tmp_path_factory.mktemp("shelf")
    renderer = Qwen2VLRenderer(build_tokenizer(), SETTINGS)
    model = build_model(renderer.tokenizer, seed=0, hidden=64, layers=2, vision=32, vision_layers=1)
    save(model, renderer, folder / "base", made_by={"recipe": "none", "seed": 0})
    ok("synth", folder / "d.jsonl", "--count", 6)
    recipe = {
        "model": str(folder / "base"),
        "threads": 1,
        "dialect": "pointing",
        "tool_style": "silent",
        "tools": ["look"],
        "min_image_tokens": 2,
        "max_image_tokens": 8,
        "rollout": {"max_turns": 3, "max_tokens_per_turn": 8, "max_context_tokens": 256},
        "sft": {"demonstrations": str(folder / "d.jsonl"), "epochs": 1, "batch_size": 3},
        "rl": {"steps": 1, "prompts_per_step": 1, "group_size": 2, "eval_every": 0},
        "eval": {"items": 4, "bootstrap": 100},
        "ladder": {
            "arms": {
                "base": {"stage": "eval", "set": {"dialect": "plain", "tools": []}},
                "sft": {"stage": "sft"},
                "v-toolrl": {"stage": "rl", "start": "sft"},
                "rl-no-tools": {"like": "v-toolrl", "set": {"tools": []}},
                "rl-text": {"like": "v-toolrl", "set": {"rollout.observation": "text"}},
            }
        },
    }
    (folder / "smoke.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    item("test", 3).drawing.image.save(folder / "chart.png")
    row = {
        "image": "chart.png",
        "question": CHINESE_ARABIC_EMOJI,
        "answer": "4",
        "evidence": [{"box": [10, 10, 60, 40]}],
    }
    text = "".join(json.dumps(row | {"id": f"q{n}"}) + "\n" for n in range(3))
    (folder / "data.jsonl").write_text(text)
    return folder


@pytest.fixture
def smoke(shelf: Path) -> Path:
    return shelf / "smoke.yaml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults such as `runs/demo` and `gaze.png` lie in the working directory."""
    monkeypatch.chdir(tmp_path)


# --- training, evaluation, report -----------------------------------------------------------------


def test_the_commands_are_those_that_were_promised() -> None:
    assert {" ".join(path) for path, _ in leaves(get_command(app))} == COMMANDS


def leaves(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from leaves(command, (*path, name))
        else:
            yield (*path, name), command


def test_pretrain_leaves_a_base_that_can_be_asked_and_does_nothing_twice(tmp_path: Path) -> None:
    changes = [
        *("threads=1", "pretrain.steps=1", "pretrain.charts_per_step=1"),
        *("pretrain.warmup_steps=0", "pretrain.decay_steps=0", "pretrain.checkpoint_every=1"),
    ]
    told = ok("pretrain", "tiny-base", *changes, "--run", tmp_path / "base")
    model = Path(told.stdout.strip())
    assert model == tmp_path / "base" / "model"
    assert (model / "model.safetensors").is_file()
    assert "pretrain 1/1" in told.stderr
    ok("pretrain", "tiny-base", *changes, "--run", tmp_path / "base")
    assert [r["step"] for r in rows(tmp_path / "base" / "metrics.jsonl")] == [1]


def test_sft_rl_eval_and_report_go_from_demonstrations_to_a_page(
    smoke: Path, tmp_path: Path
) -> None:
    cold = ok("sft", smoke, "--run", tmp_path / "all" / "sft")
    model = Path(cold.stdout.strip())
    assert [r["step"] for r in rows(tmp_path / "all" / "sft" / "metrics.jsonl")] == [1, 2]
    for shown in ("demonstrations: pictures 6/6", "demonstrations: replay 6/6", "sft 2/2"):
        assert re.search(rf"{shown} [\d.]+/s .*left", cold.stderr)

    trained = ok("rl", smoke, f"model={model}", "--run", tmp_path / "all" / "rl")
    model = Path(trained.stdout.strip())
    assert model.parent == tmp_path / "all" / "rl"
    assert (model / "model.safetensors").is_file()

    evaluated = tmp_path / "all" / "eval-rl"
    said = ok("eval", smoke, f"model={model}", "--run", evaluated, "--arm", "rl", "--json")
    results = json.loads(said.stdout)
    assert results == json.loads((evaluated / "results.json").read_text())
    arm = results["arms"]["rl"]
    assert arm["n"] == 4
    wanted = {"accuracy", "lenient", "coverage", "tightness", "calls", "unscored", "truncated"}
    assert wanted <= arm.keys()
    assert [r["id"] for r in rows(evaluated / "rows.jsonl")] == [
        f"charts/test/{k}" for k in range(4)
    ]

    page = Path(ok("report", tmp_path / "all").stdout.strip())
    assert page == tmp_path / "all" / "report.html"
    text = page.read_text(encoding="utf-8")
    assert "Learning curves" in text
    assert "Evaluated on 4 items: rl." in text


def test_eval_prints_a_table_for_people_and_asks_the_files_of_a_user(
    shelf: Path, smoke: Path, tmp_path: Path
) -> None:
    own = ("task.name=files", f"task.path={shelf / 'data.jsonl'}")
    table = ok("eval", smoke, *own, "--run", tmp_path / "e", "--arm", "mine").stdout
    assert "mine" in table
    assert "accuracy" in table
    assert [r["id"] for r in rows(tmp_path / "e" / "rows.jsonl")] == ["q0", "q1", "q2"]


def test_rows_that_were_rewritten_are_not_added_to_an_evaluation(
    shelf: Path, smoke: Path, tmp_path: Path
) -> None:
    """Items asked before and after the change would have been summed up as one file's."""
    file = tmp_path / "own.jsonl"
    shutil.copy(shelf / "chart.png", tmp_path)
    shutil.copy(shelf / "data.jsonl", file)
    told = ("eval", smoke, "task.name=files", f"task.path={file}", "--run", tmp_path / "e")
    ok(*told, "eval.items=1")
    file.write_text(file.read_text().replace('"answer": "4"', '"answer": "5"'))
    assert re.search(r"other task.path than '.*own.jsonl' has now", refused(*told, "eval.items=3"))


def test_rows_of_something_else_are_one_sentence(smoke: Path, tmp_path: Path) -> None:
    folder = tmp_path / "e"
    ok("eval", smoke, "eval.items=1", "--run", folder)
    for row in ({"id": "q0"}, {"number": "one"}):
        (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
        assert "written by something else" in refused("eval", smoke, "--run", folder)


def test_answers_judged_by_other_rules_are_not_mixed_in(smoke: Path, tmp_path: Path) -> None:
    folder = tmp_path / "e"
    ok("eval", smoke, "eval.items=1", "--run", folder)
    [row] = rows(folder / "rows.jsonl")
    assert row["scorer"] == SCORER_VERSION
    (folder / "rows.jsonl").write_text(json.dumps({**row, "scorer": SCORER_VERSION + 1}) + "\n")
    told = refused("eval", smoke, "eval.items=2", "--run", folder)
    assert f"judged by version {SCORER_VERSION + 1} of the scoring rules" in told


@pytest.mark.parametrize("torn", ["", '{"id": "charts/test/2", "rollo'])
def test_an_evaluation_that_was_cut_off_ends_with_the_same_results(
    smoke: Path, tmp_path: Path, torn: str
) -> None:
    whole = measured(smoke, tmp_path / "whole")
    measured(smoke, tmp_path / "cut")
    file = tmp_path / "cut" / "rows.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2]) + torn)
    (tmp_path / "cut" / "results.json").unlink()
    assert measured(smoke, tmp_path / "cut") == whole
    again = file.read_text().splitlines(keepends=True)
    assert again[:2] == lines[:2]
    assert [json.loads(x)["id"] for x in again] == [json.loads(x)["id"] for x in lines]


def measured(recipe: Path, folder: Path) -> dict[str, Any]:
    """`results.json` without its times, which no two runs share."""
    ok("eval", recipe, "--run", folder)
    results = json.loads((folder / "results.json").read_text())
    for arm in results["arms"].values():
        del arm["seconds"]
    return results


def test_rollout_shows_episodes_and_keeps_them_where_a_folder_is_given(
    smoke: Path, tmp_path: Path
) -> None:
    told = ok("rollout", smoke, "--count", 2, "--run", tmp_path / "r", "--json")
    episodes = [json.loads(line) for line in told.stdout.splitlines()]
    assert [e["sample"]["id"] for e in episodes] == ["charts/validation/0", "charts/validation/1"]
    assert "rollout validation 2/2" in told.stderr
    assert rows(tmp_path / "r" / "episodes.jsonl") == episodes
    contents(tmp_path / "r", "images/*")
    [read] = rows(tmp_path / "r" / "ledger.jsonl")
    assert (read["split"], read["items"], read["arm"]) == ("validation", 2, "rollout")
    people = ok("rollout", smoke, "--count", 1, "--split", "train").stdout
    assert people.startswith("Question: ")
    assert re.search(r"^(Answer|No answer): ", people, re.MULTILINE)


# --- the demo -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(shelf: Path) -> Result:
    """The demo, run once."""
    return demo(shelf)


def demo(shelf: Path, *overrides: str) -> Result:
    return ok("demo", *overrides, "--recipe", shelf / "smoke.yaml", "--run", shelf / "demo")


def test_a_run_folder_in_the_recipe_or_among_its_changes_is_the_ladder_s(
    smoke: Path, tmp_path: Path
) -> None:
    told = ok("ladder", smoke, f"run={tmp_path / 'mine'}", "ladder.only=[base]")
    assert f"Report: {tmp_path / 'mine' / 'report.html'}" in told.stdout.replace("\n", "")
    assert (tmp_path / "mine" / "ladder.json").is_file()
    assert not (tmp_path / "runs").exists()


ARMS = ["base", "sft", "v-toolrl", "rl-no-tools"]


def test_the_demo_trains_evaluates_asks_and_reports(shelf: Path, shown: Result) -> None:
    top = shelf / "demo"
    results = json.loads((top / "ladder.json").read_text())
    assert list(results["arms"]) == ARMS  # the long ladder's other arm is not run
    figures = results["splits"]["test"]
    assert {arm["n"] for arm in figures["arms"].values()} == {4}
    assert {(p["a"], p["b"]) for p in figures["pairs"]} == {
        ("v-toolrl", other) for other in ARMS if other != "v-toolrl"
    }
    assert "rl-no-tools" in (top / "report.html").read_text(encoding="utf-8")
    for picture in ("question.png", "gaze.png"):
        assert load_image(top / picture).width > 100
    asked = item("validation", first_look(), max_pixels=8 * 784).question
    assert shown.stdout.startswith(f"Question: {asked}\n")
    assert f"Report: {top / 'report.html'}" in shown.stdout
    arms = top / "arms"
    assert load_recipe(arms / "base/seed-0/test/recipe.yaml").dialect == "plain"
    assert load_recipe(arms / "v-toolrl/seed-0/test/recipe.yaml").dialect == "pointing"
    assert load_recipe(arms / "rl-no-tools/seed-0/test/recipe.yaml").tools == ()


def first_look() -> int:
    return next(
        (n for n in range(4) if item("validation", n, max_pixels=8 * 784).stratum == "look"), 0
    )


def trained(shelf: Path, arm: str) -> Path:
    [found] = (shelf / "demo" / "arms" / arm / "seed-0").glob("rate-*")
    return found


def test_the_demo_does_nothing_twice(shelf: Path, shown: Result) -> None:
    def work() -> list[dict[str, tuple[int, int]]]:
        patterns = ("**/model/*.safetensors", "**/*.jsonl", "**/checkpoints/*/state.pt")
        return [contents(shelf / "demo", p) for p in patterns]

    before = work()
    assert all(before)
    again = demo(shelf)
    assert work() == before
    assert again.stdout == shown.stdout


def test_a_demo_that_was_killed_before_rl_goes_on_with_rl(shelf: Path, shown: Result) -> None:
    top = shelf / "demo"
    cold = contents(top, "arms/sft/**/model/*")
    assert cold
    shutil.rmtree(top / "arms" / "v-toolrl")
    (top / "ladder.json").unlink()
    demo(shelf)
    assert contents(top, "arms/sft/**/model/*") == cold
    stages = [row["stage"] for row in rows(trained(shelf, "v-toolrl") / "metrics.jsonl")]
    assert stages.count("rl") == 1
    figures = json.loads((top / "ladder.json").read_text())["splits"]["test"]["arms"]
    assert figures["v-toolrl"]["n"] == 4


def test_a_demo_that_was_killed_at_the_end_of_rl_saves_what_its_last_checkpoint_holds(
    shelf: Path, shown: Result
) -> None:
    model = trained(shelf, "v-toolrl") / "model"
    weights = (model / "model.safetensors").read_bytes()
    kept = contents(shelf / "demo", "arms/**/*.jsonl")
    shutil.rmtree(model)
    demo(shelf)
    assert (model / "model.safetensors").read_bytes() == weights
    assert contents(shelf / "demo", "arms/**/*.jsonl") == kept


def test_a_demo_that_was_begun_is_not_changed(shelf: Path, shown: Result) -> None:
    told = ("--recipe", shelf / "smoke.yaml", "--run", shelf / "demo")
    assert "was begun with another recipe" in refused("demo", *told, "eval.items=3")


def test_answers_of_other_weights_are_not_taken_for_those_of_a_model(
    shelf: Path, tmp_path: Path, shown: Result
) -> None:
    """An evaluation was once kept when its model was trained on: the path was the same."""
    model = tmp_path / "model"
    shutil.copytree(shelf / "base", model)
    told = (shelf / "smoke.yaml", f"model={model}", "eval.items=1", "--run", tmp_path / "e")
    ok("eval", *told)
    shutil.copy(trained(shelf, "sft") / "model" / "model.safetensors", model)
    assert "e' was made from other weights" in refused("eval", *told)


# --- asking ---------------------------------------------------------------------------------------


def test_ask_passes_text_in_any_script_and_draws_the_gaze(
    shelf: Path, smoke: Path, tmp_path: Path
) -> None:
    told = ("--model", shelf / "base", "--recipe", smoke)
    said = ok("ask", shelf / "chart.png", CHINESE_ARABIC_EMOJI, *told).stdout
    assert said.startswith(f"Question: {CHINESE_ARABIC_EMOJI}\n")
    assert "Gaze: gaze.png" in said
    assert load_image(tmp_path / "gaze.png").width > 100
    as_json = ("--out", tmp_path / "other.png", "--json")
    episode = json.loads(
        ok("ask", shelf / "chart.png", CHINESE_ARABIC_EMOJI, *told, *as_json).stdout
    )
    assert episode["sample"]["question"] == CHINESE_ARABIC_EMOJI
    assert load_image(tmp_path / "other.png").width > 100


def test_ask_prints_thoughts_calls_and_answer_and_marks_where_it_looked(
    shelf: Path, smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = root_view(load_image(shelf / "chart.png")).ref.key
    looks = ["柱子 2 [100, 100, 400, 400]", "ثمانية\n8"]

    def scripted(recipe: Recipe, *, store: ImageStore, turns: list[str]) -> Setup:
        setup = answering(recipe, store=store)
        engine = ScriptedEngine({f"ask/{key[:12]}": turns})
        return replace(setup, engine=engine, frame=setup.frame_of)

    monkeypatch.setattr("saccade.ask.answering", partial(scripted, turns=looks))
    said = ok("ask", shelf / "chart.png", "?", "--model", shelf / "base", "--recipe", smoke).stdout
    assert said.splitlines() == [
        "Question: ?",
        "[0] 柱子 2",
        '[0] -> look {"image": "img_0", "box": [100, 100, 400, 400]}',
        "[1] ثمانية",
        "Answer: 8",
        "Gaze: gaze.png",
    ]
    with_gaze = (tmp_path / "gaze.png").read_bytes()
    monkeypatch.setattr("saccade.ask.answering", partial(scripted, turns=["8"]))
    ok("ask", shelf / "chart.png", "?", "--model", shelf / "base", "--recipe", smoke)
    assert (tmp_path / "gaze.png").read_bytes() != with_gaze


def test_ask_says_what_the_small_model_knows_only_where_it_is_the_one_asked(
    shelf: Path, smoke: Path
) -> None:
    assert "saccade-tiny knows" in ok("ask", shelf / "chart.png", "Which is the highest?").stderr
    told = ("--model", shelf / "base", "--recipe", smoke)
    assert "saccade-tiny knows" not in ok("ask", shelf / "chart.png", "?", *told).stderr


def test_an_answer_is_said_even_where_its_picture_can_not_be_written(
    shelf: Path, smoke: Path, tmp_path: Path
) -> None:
    told = ("--model", shelf / "base", "--recipe", smoke, "--out", tmp_path / "none" / "g.png")
    result = run("ask", shelf / "chart.png", "How many?", *told)
    assert result.exit_code == 1
    assert "Question: How many?" in result.stdout
    assert re.fullmatch(r"saccade: The picture can't be written to .*\n", result.stderr)


# --- small commands -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["answer_vectors.json", "box_coord_vectors.json"])
def test_score_gives_the_agreement_of_each_rule(name: str) -> None:
    file = Path(__file__).parent / "data" / name
    found = json.loads(ok("score", file, "--json").stdout)
    assert found
    for row in found:
        assert row.keys() == {"rule", "n", "agree"}
        assert 0 <= row["agree"] <= row["n"]
    assert "agree" in ok("score", file).stdout


def test_check_tells_a_task_that_keeps_its_promises_from_one_that_does_not(
    shelf: Path, smoke: Path, tmp_path: Path
) -> None:
    said = ok("check", "charts", "--count", 3, "--json")
    found = json.loads(said.stdout)
    assert found["ok"] is True
    assert (found["task"], found["split"], found["samples"]) == ("charts", "test", 3)
    assert (found["gold_accuracy"], found["wrong_accuracy"], found["problems"]) == (1.0, 0.0, [])
    assert "check charts 9/9" in said.stderr  # of three splits
    own = ok("check", "files", "--path", shelf / "data.jsonl")
    assert own.stdout == "files/test: 3 samples, gold accuracy 1.000, wrong accuracy 0.000\n"
    assert "check files 3/3" in own.stderr
    ok("check", smoke, "--count", 1)

    shutil.copy(shelf / "chart.png", tmp_path)
    width, height = load_image(shelf / "chart.png").size
    row = json.loads((shelf / "data.jsonl").read_text().splitlines()[0])
    row["evidence"] = [{"box": [0, 0, width, height]}]
    (tmp_path / "bad.jsonl").write_text(json.dumps(row))
    result = run("check", "files", "--path", tmp_path / "bad.jsonl")
    assert result.exit_code == 1
    assert "\n- Sample 'q0': evidence 0 is a whole image" in result.stdout


@pytest.mark.parametrize("name", ["hermes", "openthinkimg", "pointing"])
def test_synth_writes_demonstrations_that_sft_reads(tmp_path: Path, name: str) -> None:
    said = ok("synth", "d.jsonl", "--count", 4, "--seed", 1, "--dialect", name)
    assert said.stdout == "d.jsonl\n"
    assert "demonstrations 4/4" in said.stderr
    found = read_demonstrations(tmp_path / "d.jsonl")
    assert len(found) == 4
    assert all(dialect(name).parse(d.turns[-1]).answer is not None for d in found)


def test_tools_list_names_each_tool_with_its_arguments() -> None:
    said = json.loads(ok("tools", "list", "--json").stdout)
    found = {t["name"]: t for t in said["tools"]}
    [reader] = [b for b in said["backends"] if b["name"] == "rapidocr"]
    assert (reader["kind"], reader["is_default"], reader["missing"]) == ("reader", True, [])
    assert found["ocr"]["needs"] == ["reader"]
    assert found["crop"]["needs"] == []
    assert {"crop", "zoom", "look", "terminate"} <= found.keys()
    assert all(t["description"] and t["schema"]["properties"] for t in found.values())
    table = ok("tools", "list").stdout
    assert all(name in table for name in found)


def test_tools_call_takes_pixels_and_writes_the_picture_that_came_back(
    shelf: Path, tmp_path: Path
) -> None:
    arguments = '{"box": [100, 50, 300, 150]}'
    told = ("--image", shelf / "chart.png", "--out", tmp_path / "part.png")
    said = ok("tools", "call", "crop", arguments, *told).stdout
    assert said == f"img_1: 200 x 100 pixels, in {tmp_path / 'part.png'}\n"
    chart, part = load_image(shelf / "chart.png"), load_image(tmp_path / "part.png")
    assert part.tobytes() == chart.crop((100, 50, 300, 150)).tobytes()


def test_models_of_back_ends_are_told_with_size_and_licence() -> None:
    told = json.loads(ok("tools", "fetch", "--json").stdout)
    names = {b.name for b in builtin_backends().values() if b.extra == "train"}
    assert {k["backend"] for k in told} == names
    assert all(k["size_mb"] > 0 and k["licence"] for k in told)
    shown = ok("tools", "fetch").stdout
    assert "Apache-2.0" in shown
    assert "commercial" in shown


def test_a_model_is_fetched_into_a_folder_or_its_lack_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def fetched(name: str, **how: object) -> str:
        asked.append((name, how["revision"], how["local_dir"]))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetched)
    said = ok("tools", "fetch", "some/model@abc", "--into", tmp_path).stdout
    assert asked == [("some/model", "abc", tmp_path)]
    assert str(tmp_path) in said.replace("\n", "")
    wrong = run("tools", "fetch", "no-id")
    assert wrong.exit_code == 1
    assert "'no-id' is no id of the hub's" in wrong.output


def test_bench_found_tells_what_is_found_in_each_variety() -> None:
    told = json.loads(ok("bench", "found", "frames,segment-box", "--count", 1, "--json").stdout)
    assert [row["variety"] for row in told] == list(SOURCES) * 2
    assert {row["what"] for row in told} == {"frames", "segment-box"}
    assert all(row["figures"] == 1 for row in told)
    wrong = run("bench", "found", "frames,unicorns", "--count", 1)
    assert wrong.exit_code == 1
    assert "Nobody looks for 'unicorns', only for frames, print" in wrong.output


def test_bench_found_looks_through_the_back_ends_that_are_named() -> None:
    chosen = ("--varieties", "plain", "--count", 1)
    wrong = run("bench", "found", "print", *chosen, "--backend", "reader=nobody")
    assert wrong.exit_code == 1
    assert "No reader named 'nobody'" in wrong.output
    for typed in ("nose=tesseract", "reader", "reader="):
        wrong = run("bench", "found", "print", *chosen, "--backend", typed)
        assert wrong.exit_code == 1
        assert f"{typed!r} names no back end" in wrong.output


def test_bench_engine_prints_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    small = partial(bench_engine, prompts=1, group=2, max_tokens=4)
    monkeypatch.setattr("saccade.benches.engine.bench_engine", small)
    found = json.loads(ok("bench", "engine", "--json").stdout)
    assert {"prefill_ratio", "image_ratio", "step_ratio"} <= found.keys()
    assert found["prefill_ratio"] <= 1.0
    assert "decode step" in ok("bench", "engine").stdout


# --- what is the user's to mend -------------------------------------------------------------------


@pytest.fixture
def bad(shelf: Path, tmp_path: Path) -> Path:
    """A folder of things that can't be used."""
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "half.png").write_bytes((shelf / "chart.png").read_bytes()[:2000])
    (folder / "text.png").write_text("no picture")
    (folder / "model").mkdir()
    shutil.copytree(shelf / "base", folder / "torn")
    (folder / "torn" / "model.safetensors").write_bytes(b"torn")
    (folder / "file").write_text("")
    (folder / "two.yaml").write_text("seed: 1\nseed: 2\n")
    return folder


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (
            "eval nope",
            "No recipe 'nope': .* built in are charts-tiny, few-tiny, grounded-.*, suite, .*tiny-",
        ),
        ("sft {smoke} sft.epoch=2", "Unknown key sft.epoch. Did you mean sft.epochs?"),
        ("eval {smoke} evil.items=2", "Unknown key evil. Did you mean eval?"),
        ("rl {smoke} rl.group_size=1", "rl.group_size must be at least 2, got 1"),
        ("eval {smoke} eval.items=many", "eval.items must be a whole number, got .many"),
        ("eval {smoke} eval.items", "An override looks like rl.group_size=8, got 'eval.items'"),
        ("eval {bad}/two.yaml", "seed stands twice"),
        ("eval {smoke} task.name=chart", "Unknown task 'chart'. Did you mean 'charts'?"),
        ("eval {smoke} eval.split=none", "no split 'none'"),
        ("eval {smoke} tools=[lok]", "No tool named 'lok'"),
        ("rollout {smoke} --split none", "no split 'none'"),
        ("rl {smoke} rl.reward=none", "No reward named 'none'"),
        ("rl {smoke} rollout.temperature=0", "rollout.temperature above 0"),
        ("sft {smoke} sft.demonstrations=no.jsonl", "no.jsonl' can't be read"),
        ("sft {smoke} model={bad}/none", "No model '.*none': there is no such folder"),
        ("ask {chart} hi --recipe {smoke} --model {bad}/none", "No model '.*none'"),
        ("ask {chart} hi --recipe {smoke} --model {bad}/model", "'model' has no config.json"),
        ("ask {chart} hi --recipe {smoke} --model {bad}/torn", "'torn' can't be loaded"),
        ("ask {bad}/none.png hi", "none.png is not there or is no file"),
        ("ask {bad}/half.png hi", "half.png is a broken .* PNG file"),
        ("ask {bad}/text.png hi", "text.png is not of an accepted format"),
        ("ask {bad} hi", "is not there or is no file"),
        ("tools call crop {{}} --image {chart}", "needs the argument 'box'"),
        ("tools call crop {{ --image {chart}", "Arguments are no JSON"),
        ("tools call crop [] --image {chart}", "must be a JSON object"),
        ("tools call crap {{}}", "No tool named 'crap'"),
        ("tools call crop {{}} --image {bad}/none.png", "none.png is not there"),
        ("score {bad}/none.json", "none.json can't be read"),
        ("score {bad}/half.png", "is not a JSON file"),
        ("check chart", "Unknown task 'chart'. Did you mean 'charts'?"),
        ("check files", "needs the option 'path'"),
        ("check files --path {bad}/none.jsonl", "none.jsonl can't be read"),
        ("check charts --split none", "no split 'none'"),
        ("report {bad}/none", "There is no run folder 'none'"),
        ("report {bad}", "holds no run"),
        ("synth {bad}/file/d.jsonl --count 1", "file stands where the folder of d.jsonl should be"),
        ("synth d.jsonl --count 1 --dialect none", "No dialect named 'none'"),
        ("synth d.jsonl --count 1 --dialect plain", "The dialect plain can't write a look"),
        ("eval {smoke} --run {bad}/file", "A file stands where the folder"),
        ("sft {smoke} --run {bad}/file/run", "A file stands where the folder"),
        ("rl {smoke} --run {bad}/file/run", "A file stands where the folder"),
        ("pretrain tiny-base --run {bad}/file/run", "A file stands where the folder"),
        ("demo --recipe {smoke} --run {bad}/file/run", "A file stands where the folder"),
        ("rollout {smoke} --run {bad}/file/run", "A file stands where the folder"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(
    shelf: Path, bad: Path, command: str, sentence: str
) -> None:
    chart, smoke = shelf / "chart.png", shelf / "smoke.yaml"
    said = refused(*command.format(bad=bad, chart=chart, smoke=smoke).split())
    assert re.search(sentence.replace("?", r"\?"), said), said


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_sentence(smoke: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "No permission" in refused("eval", smoke, "--run", tmp_path / "locked" / "run")


def test_a_run_folder_of_another_recipe_is_refused_and_left_as_it_was(
    smoke: Path, tmp_path: Path
) -> None:
    ok("eval", smoke, "eval.items=1", "--run", tmp_path / "e")
    before = contents(tmp_path / "e", "[!.]*")
    sentence = refused("eval", smoke, "eval.items=1", "seed=7", "--run", tmp_path / "e")
    assert "holds a run with seed: 0, now it is 7; choose another folder with --run" in sentence
    assert contents(tmp_path / "e", "[!.]*") == before


def test_a_mistyped_option_is_told_with_exit_code_2() -> None:
    result = run("eval", "charts-tiny", "--runs", "x")
    assert result.exit_code == 2
    assert "--runs" in result.stderr
    assert "Traceback" not in result.output
    assert run("evil").exit_code == 2


def test_ctrl_c_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """typer takes a KeyboardInterrupt before `main` could see it, and ended without a word."""

    def interrupted(run: Path, *, episodes: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("saccade.report.write_report", interrupted)
    result = run("report", "x")
    assert result.exit_code == 130
    assert result.stderr == "saccade: stopped; the same command goes on.\n"


def test_the_installed_command_speaks_any_script_whatever_the_terminal_does(
    tmp_path: Path,
) -> None:
    command = Path(sys.executable).with_name("saccade")
    plain = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "latin-1"}

    def started(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([command, *arguments], capture_output=True, env=plain, check=False)

    (tmp_path / "图.json").write_text('{"x": 1}')
    wrong = started("score", "图.json")
    assert wrong.returncode == 1
    assert wrong.stdout == b""
    assert wrong.stderr.decode("utf-8").startswith("saccade: 图.json has neither answer vectors")
    assert wrong.stderr.count(b"\n") == 1
    listed = started("tools", "list", "--json")
    assert (listed.returncode, listed.stderr) == (0, b"")
    assert "crop" in [t["name"] for t in json.loads(listed.stdout)["tools"]]


# --- what is shipped ------------------------------------------------------------------------------


def shipped() -> list[str]:
    folder = Path(str(resources.files("saccade.recipes")))
    return sorted(p.stem for p in folder.glob("*.yaml"))


@pytest.mark.parametrize("name", shipped())
def test_each_recipe_that_is_shipped_loads_and_its_demonstrations_parse(name: str) -> None:
    path = recipe_path(name)
    assert recipe_path(f"recipes/{name}.yaml") == path
    recipe = load_recipe(path)
    if "demonstrations" not in yaml.safe_load(path.read_text(encoding="utf-8")).get("sft", {}):
        return  # none, or arms that make their own
    found = read_demonstrations(data_file(recipe.sft.demonstrations))
    speaks = dialect(recipe.dialect, style=recipe.tool_style)
    assert len(found) >= 2 * (recipe.sft.count or 1)  # seeds draw different ones
    for demonstration in found:
        *looks, last = (speaks.parse(turn) for turn in demonstration.turns)
        assert last.answer is not None
        assert not last.calls
        assert all(look.calls for look in looks)


def test_the_demo_of_the_readme_is_there() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    asked = re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {"demo", "test"} <= set(asked) <= set(targets)


PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]


def shown_commands() -> list[str]:
    """Lines of the pages' code blocks that start `saccade`, continued ones joined."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [m[1] for x in lines if (m := re.match(r"(?:\$ )?(?:\S*/)?saccade ((?!-> ).+)", x))]


def test_the_pages_show_commands() -> None:
    shown = {line.split()[0] for line in shown_commands()}
    assert {"ask", "check", "eval", "ladder", "serve", "tools"} <= shown


@pytest.mark.parametrize("line", shown_commands())
def test_a_command_of_the_pages_is_one_that_is_taken(line: str) -> None:
    parse(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page: Path) -> None:
    linked = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in linked if not (page.parent / link).is_file()] == []
    assert linked or page.name != "README.md"


@pytest.mark.parametrize(
    "line", ["evil x", "eval charts-tiny --runs x", "eval charts-tiny evil.items=3", "ask x.png"]
)
def test_a_command_that_is_not_taken_is_found(line: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such|unknown key|missing"):
        parse(line)


def parse(line: str) -> None:
    """Raises where the command line is not taken: its command, options, values, recipe keys."""
    name, *arguments = shlex.split(line, comments=True)
    command: Any = get_command(app)
    with command.make_context("saccade", [name, *arguments]) as context:
        while isinstance(command, TyperGroup):
            name, command, arguments = command.resolve_command(context, [name, *arguments])
            if isinstance(command, TyperGroup):
                name, *arguments = arguments
    with command.make_context(name, arguments) as given:
        told = given.params
    if "recipe" in told:
        known = told["recipe"] in shipped()
        load_recipe(recipe_path(told["recipe"]) if known else None, told.get("overrides") or [])
