"""Evaluation runs: whose pictures are shown, what a reading leaves behind. A script answers."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from saccade import measure
from saccade.assemble import model_folder
from saccade.config import Recipe
from saccade.dialects import dialect
from saccade.engines import TurnRequest
from saccade.engines.scripted import ScriptedEngine
from saccade.episode_json import episode_from_json
from saccade.errors import DataError, EngineError, SaccadeError
from saccade.models.tiny import SETTINGS, build_tokenizer
from saccade.recipe_files import load_recipe, recipe_hash
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.rollout import Limits, Setup
from saccade.run_folder import RunFolder
from saccade.tools import ToolBox, crop
from saccade.types import Episode

RENDERER = Qwen2VLRenderer(build_tokenizer(), SETTINGS)
LOOK = (
    '<tool_call>\n{"name": "crop", "arguments": {"image": "img_0", "box": [0, 0, 500, 500]}}\n'
    "</tool_call>"
)
ANSWER = '<tool_call>\n{"name": "terminate", "arguments": {"ans": "7"}}\n</tool_call>'


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """Six questions about five pictures: the second and third share one."""
    lines = []
    for number, picture in enumerate((0, 1, 1, 2, 3, 4)):
        file = tmp_path / f"{picture}.png"
        Image.new("RGB", (300 + 20 * picture, 200), (50 * picture, 0, 0)).save(file)
        row = {"image": file.name, "question": f"How many {number}?", "answer": "7"}
        lines.append(json.dumps({**row, "id": f"q{number}"}))
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of the samples that the script was asked, one for each turn; it looks, then answers."""
    found: list[str] = []

    def script(request: TurnRequest) -> str:
        found.append(request.seed[1])
        return ANSWER if any(m.role == "tool" for m in request.messages) else LOOK

    def answering(recipe: Recipe, **options: Any) -> Setup:
        return Setup(
            engine=ScriptedEngine(script, ids=True),
            dialect=dialect("hermes", style="signature"),
            toolbox=ToolBox([crop], store=options["store"]),
            renderer=RENDERER,
            limits=Limits(3, 200, 4000),
            observation=recipe.rollout.observation,
            **options,
        )

    monkeypatch.setattr(measure, "answering", answering)
    return found


def recipe(rows: Path, run: Path, *overrides: str) -> Recipe:
    given = ["task.name=files", f"task.path={rows}", "eval.items=6", "eval.bootstrap=50"]
    swapped = "rollout.observation=swapped"
    return load_recipe(None, [*given, swapped, *overrides]).model_copy(update={"run": run})


def episodes(run: Path) -> dict[str, Episode]:
    found = [episode_from_json(row) for row in RunFolder(run).rows("episodes")]
    return {e.sample.id: e for e in found}


def shown(run: Path) -> dict[str, int]:
    """Which picture, told by its width, each sample was shown a part of."""
    return {k: (e.images["img_1"].roots()[0].width - 300) // 20 for k, e in episodes(run).items()}


# --- partners -------------------------------------------------------------------------------------


def test_the_partner_of_an_item_is_the_next_one_with_another_picture(
    rows: Path, tmp_path: Path, asked: list[str]
) -> None:
    summary = measure.run(recipe(rows, tmp_path / "run"), arm="swapped")
    assert summary.accuracy["all"].estimate == 1.0
    assert shown(tmp_path / "run") == {"q0": 1, "q1": 2, "q2": 2, "q3": 3, "q4": 4, "q5": 0}
    for episode in episodes(tmp_path / "run").values():
        assert {r.image for r in episode.gaze} == set(episode.sample.images)


@pytest.mark.parametrize("chunk", [1, 2, 4])
def test_partners_do_not_depend_on_chunks_or_on_what_is_missing(
    rows: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(measure, "CHUNK", chunk)
    given = recipe(rows, tmp_path / "run")
    measure.run(given, arm="a")
    whole = shown(tmp_path / "run")
    with RunFolder(tmp_path / "run") as folder:
        folder.drop("rows", lambda row: row["number"] in (1, 5))
    asked.clear()
    measure.run(given, arm="a")
    assert sorted(set(asked)) == ["q1", "q5"]
    assert shown(tmp_path / "run") == whole
    assert whole == {"q0": 1, "q1": 2, "q2": 2, "q3": 3, "q4": 4, "q5": 0}


def test_a_single_picture_can_not_be_swapped(rows: Path, tmp_path: Path, asked: list[str]) -> None:
    with pytest.raises(DataError, match="'q0'"):
        measure.run(recipe(rows, tmp_path / "run", "eval.items=1"), arm="a")
    given = recipe(rows, tmp_path / "image", "eval.items=1", "rollout.observation=image")
    assert measure.run(given, arm="a").n == 1


def test_rows_hold_the_tokens_of_what_was_in_the_sequence(
    rows: Path, tmp_path: Path, asked: list[str]
) -> None:
    summary = measure.run(recipe(rows, tmp_path / "run"), arm="a")
    kept = episodes(tmp_path / "run")
    counted = {r.id: r.image_tokens for r in measure.rows_of(RunFolder(tmp_path / "run"), items=6)}
    pads = {
        k: sum(i == RENDERER.pad_id for s in e.segments for i in s.ids) for k, e in kept.items()
    }
    assert counted == pads
    assert summary.image_tokens == sum(pads.values()) / 6
    blind = recipe(rows, tmp_path / "text", "rollout.observation=text")
    least = measure.run(blind, arm="a").image_tokens
    assert least is not None
    assert 0 < least < summary.image_tokens


# --- the ledger -----------------------------------------------------------------------------------


def ledger(run: Path) -> list[dict[str, Any]]:
    return list(RunFolder(run).rows("ledger"))


def test_every_reading_of_the_split_leaves_a_line(
    rows: Path, tmp_path: Path, asked: list[str]
) -> None:
    run = tmp_path / "run"
    first = recipe(rows, run, "eval.items=4")
    measure.run(first, arm="rl")
    [line] = ledger(run)
    assert (line["split"], line["items"], line["first"], line["arm"]) == ("test", 4, 0, "rl")
    assert line["recipe"] == recipe_hash(first, stage="eval")
    told = json.loads((model_folder(first.model) / "saccade.json").read_text())
    canonical = json.dumps(told, sort_keys=True, separators=(",", ":")).encode()
    assert line["model"] == hashlib.sha256(canonical).hexdigest()
    when = datetime.fromisoformat(line["when"])
    assert when.tzinfo == UTC
    assert abs((datetime.now(UTC) - when).total_seconds()) < 600

    measure.run(first, arm="rl")  # nothing is asked, nothing is read
    assert len(ledger(run)) == 1
    measure.run(recipe(rows, run), arm="rl")
    assert [(x["items"], x["first"]) for x in ledger(run)] == [(4, 0), (2, 4)]


def test_a_reading_that_was_stopped_stands_in_the_ledger_and_so_does_its_resumption(
    rows: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "CHUNK", 3)
    whole = measure.rollout

    async def dying(samples: Any, *arguments: Any, **options: Any) -> list[Episode]:
        if samples[0].id == "q3":
            raise SaccadeError("The power went off.")
        return await whole(samples, *arguments, **options)

    given = recipe(rows, tmp_path / "run")
    monkeypatch.setattr(measure, "rollout", dying)
    with pytest.raises(SaccadeError, match="power"):
        measure.run(given, arm="a")
    monkeypatch.setattr(measure, "rollout", whole)
    assert measure.run(given, arm="a").n == 6
    assert [(x["items"], x["first"]) for x in ledger(tmp_path / "run")] == [(6, 0), (3, 3)]


def test_what_failed_by_our_doing_is_read_again_and_stands_there_too(
    rows: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = measure.answering

    def unsteady(given: Recipe, **options: Any) -> Setup:
        setup = make(given, **options)
        turn = setup.engine.turn

        async def turn_or_fail(request: TurnRequest) -> Any:
            if request.seed[1] == "q2":
                raise EngineError("The endpoint is down.")
            return await turn(request)

        monkeypatch.setattr(setup.engine, "turn", turn_or_fail)
        return setup

    given = recipe(rows, tmp_path / "run")
    monkeypatch.setattr(measure, "answering", unsteady)
    assert measure.run(given, arm="a").unscored == 1
    monkeypatch.setattr(measure, "answering", make)
    assert measure.run(given, arm="a").unscored == 0
    assert [(x["items"], x["first"]) for x in ledger(tmp_path / "run")] == [(6, 0), (1, 2)]
