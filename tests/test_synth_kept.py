"""Demonstrations from the questions that RL would see, made by gold answers or by the model."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from saccade.assemble import task_of
from saccade.config import Recipe
from saccade.dialects import dialect
from saccade.engines import TurnRequest
from saccade.engines.scripted import ScriptedEngine
from saccade.image_store import ImageStore
from saccade.models.tiny import SETTINGS, build_tokenizer
from saccade.recipe_files import load_recipe
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.rollout import Limits, Setup
from saccade.synth import kept
from saccade.synth.kept import answers_only, kept_rollouts
from saccade.synth.replay import Demonstration, read_demonstrations, replay, write_demonstrations
from saccade.tasks import stream
from saccade.tasks.charts import Charts
from saccade.tools import ToolBox, crop
from saccade.types import StopReason

HERMES = dialect("hermes", style="signature")
RENDERER = Qwen2VLRenderer(build_tokenizer(), SETTINGS)
LOOK = (
    '<tool_call>\n{"name": "crop", "arguments": {"image": "img_0", "box": [0, 0, 500, 500]}}\n'
    "</tool_call>"
)


def say(text: str) -> str:
    return f'<tool_call>\n{{"name": "terminate", "arguments": {{"ans": "{text}"}}}}\n</tool_call>'


@pytest.fixture
def given(tmp_path: Path) -> Recipe:
    """Five questions, whose answers are their numbers, about pictures of their own."""
    lines = []
    for number in range(5):
        Image.new("RGB", (200, 100 + 20 * number), "red").save(tmp_path / f"{number}.png")
        row = {"image": f"{number}.png", "question": "How many?", "answer": str(number)}
        lines.append(json.dumps({**row, "id": f"q{number}", "split": "train"}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    overrides = ("task.name=files", f"task.path={tmp_path / 'rows.jsonl'}", "seed=3")
    return load_recipe(None, [*overrides, "rl.prompts_per_step=2", "tool_style=signature"])


def setup(recipe: Recipe, script: Any, *, store: ImageStore) -> Setup:
    return Setup(
        engine=ScriptedEngine(script, ids=True),
        dialect=HERMES,
        store=store,
        toolbox=ToolBox([crop], store=store),
        renderer=RENDERER,
        limits=Limits(3, 200, 4000),
        observation=recipe.rollout.observation,
    )


def replayed(found: list[Demonstration], recipe: Recipe, tmp_path: Path) -> list[Any]:
    """As `sft` takes them: from their file, through the tools."""
    write_demonstrations(tmp_path / "d.jsonl", found)
    back = read_demonstrations(tmp_path / "d.jsonl")
    assert back == found
    store = ImageStore()
    return asyncio.run(replay(back, task_of(recipe), setup(recipe, {}, store=store)))


# --- gold answers ---------------------------------------------------------------------------------


def test_gold_answers_are_of_the_samples_that_rl_reads_each_once(
    given: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "CHUNK", 2)
    task = task_of(given)

    def answers(start: int, count: int, seed: int) -> list[Demonstration]:
        return answers_only(
            task, split="train", start=start, count=count, seed=seed, dialect=HERMES
        )

    def read(start: int, count: int, seed: int) -> list[str]:
        drawn = stream(task, "train", store=ImageStore(), start=start, count=count, seed=seed)
        return list(dict.fromkeys(s.id for s, _ in drawn))

    for start, count, seed in ((0, 3, 3), (0, 13, 3), (4, 4, 3), (0, 5, 4)):
        assert [d.sample for d in answers(start, count, seed)] == read(start, count, seed)
    found = answers(0, 13, 3)
    assert sorted(d.sample for d in found) == [f"q{n}" for n in range(5)]
    assert all(d.turns == (say(d.sample[1:]),) for d in found)
    assert [e.answer for e in replayed(found, given, tmp_path)] == [d.sample[1:] for d in found]


def test_gold_answers_of_charts_are_named_by_their_places_in_the_recipes_dialect() -> None:
    task = Charts()
    found = answers_only(task, split="train", start=3, count=2, seed=0, dialect=dialect("pointing"))
    samples = task.load("train", store=ImageStore(), start=3, count=2)
    assert [(d.sample, d.turns) for d in found] == [(s.id, (s.answer,)) for s in samples]
    assert {d.quality for d in found} == {"answer"}


# --- kept rollouts --------------------------------------------------------------------------------


def made(recipe: Recipe, monkeypatch: pytest.MonkeyPatch, script: Any, **options: Any) -> kept.Kept:
    def answering(given: Recipe, *, store: ImageStore) -> Setup:
        return setup(given, script, store=store)

    monkeypatch.setattr(kept, "answering", answering)
    wanted = {"split": "train", "count": 10, "rollouts": 4, "most_per_sample": 2}
    return kept_rollouts(recipe, **{**wanted, **options})


def looks_by_turns(request: TurnRequest) -> str:
    """Even samples are answered rightly; rollout 1 is as 0, 2 never answers, 3 looks first."""
    _, sample, rollout = request.seed
    has_looked = any(m.role == "tool" for m in request.messages)
    if rollout == 2 or (rollout == 3 and not has_looked):
        return LOOK
    number = int(sample[1:])
    return say(str(number if number % 2 == 0 else 99))


def test_right_answers_are_kept_the_different_ones_first(
    given: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(given, monkeypatch, looks_by_turns)
    assert (found.tried, found.right) == (5 * 4, 3 * 3)
    by_sample: dict[str, list[tuple[str, ...]]] = {}
    for d in found.demonstrations:
        assert d.quality == "kept"
        by_sample.setdefault(d.sample, []).append(d.turns)
    assert set(by_sample) == {"q0", "q2", "q4"}
    for name, turns in by_sample.items():
        right = say(name[1:])
        assert turns == [(right,), (LOOK, right)]  # not the rollout that repeats the first
    more = made(given, monkeypatch, looks_by_turns, most_per_sample=9)
    assert len(more.demonstrations) == more.right == 9
    again = replayed(list(found.demonstrations), given, tmp_path)
    assert all(e.stop is StopReason.ANSWERED for e in again)
    assert [len(e.calls) for e in again] == [0, 1] * 3


def test_an_answer_that_was_cut_off_or_is_lenient_only_is_not_kept(
    given: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nearly(request: TurnRequest) -> str:
        number = request.seed[1][1:]
        return say(f"{number} apples") if request.seed[2] % 2 else "so " * 200 + say(number)

    found = made(given, monkeypatch, nearly)
    assert found == kept.Kept((), tried=20, right=0, written=found.written)


def test_samples_come_in_the_order_of_rl_and_are_drawn_as_rl_draws_them(
    given: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[tuple[int, str, int]] = []
    temperatures: set[float] = set()

    def noted(request: TurnRequest) -> str:
        seeds.append(request.seed)
        temperatures.add(request.sampling.temperature)
        return say(request.seed[1][1:])

    warm = given.model_copy(
        update={"rollout": given.rollout.model_copy(update={"temperature": 0.7})}
    )
    found = made(warm, monkeypatch, noted, count=3, rollouts=2)
    drawn = stream(task_of(given), "train", store=ImageStore(), start=0, count=3, seed=3)
    names = [s.id for s, _ in drawn]
    assert [d.sample for d in found.demonstrations] == [n for n in names for _ in range(2)]
    assert sorted(seeds) == sorted((3, name, k) for name in names for k in range(2))
    assert temperatures == {0.7}


def test_swapped_rollouts_have_the_partners_of_their_step(
    given: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fifth question stands alone in its step but for one that came before."""
    changed = given.rollout.model_copy(update={"observation": "swapped"})
    found = made(
        given.model_copy(update={"rollout": changed}), monkeypatch, looks_by_turns, count=6
    )
    assert found.tried == 5 * 4
    assert found.right == 3 * 3
