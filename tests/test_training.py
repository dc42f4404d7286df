"""Pretraining, cold start, V-ToolRL and evaluation runs, end to end on a model without training."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from saccade import measure, pretrain, rl, sft
from saccade.assemble import load_policy
from saccade.config import Recipe
from saccade.dialects import dialect
from saccade.engines import TurnRequest
from saccade.errors import EngineError, RecipeError, SaccadeError, StorageError
from saccade.geometry import Frame
from saccade.losses import PolicyLoss
from saccade.models.checkpoint import load_state
from saccade.models.tiny import SETTINGS, build_model, build_tokenizer, save
from saccade.recipe_files import load_recipe
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.rewards import answer, per_turn, reward
from saccade.rollout import Setup
from saccade.run_folder import RunFolder
from saccade.synth.charts import demonstrations
from saccade.synth.replay import Demonstration, write_demonstrations
from saccade.tokens import pack
from saccade.types import Episode, Group, Parsed, Sample, Score, StopReason, Turn, TurnRecord
from saccade.worlds.shape_lessons import chain, whole
from saccade.worlds.shapes import item


@reward
def evenness(episode: Episode, sample: Sample) -> float | None:
    """Whether the model's text has an even length: differs within groups even without training."""
    return float(len("".join(m.text for m in episode.messages if m.role == "assistant")) % 2 == 0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with its initial weights."""
    folder = tmp_path_factory.mktemp("base")
    renderer = Qwen2VLRenderer(build_tokenizer(), SETTINGS)
    model = build_model(renderer.tokenizer, seed=0, hidden=64, layers=2, vision=32, vision_layers=1)
    save(model, renderer, folder, made_by={"recipe": "none", "seed": 0})
    return folder


@pytest.fixture(scope="module")
def cold(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after a few steps on demonstrations: it knows what a call looks like, no more."""
    folder = tmp_path_factory.mktemp("cold")
    written = demonstrations(32, seed=0, dialect=dialect("hermes"))
    write_demonstrations(folder / "d.jsonl", written)
    return sft.run(
        recipe(
            base,
            f"sft.demonstrations={folder / 'd.jsonl'}",
            "sft.epochs=12",
            "sft.batch_size=16",
            "sft.learning_rate=0.003",
            run=folder / "run",
        )
    )


def recipe(model: Path, *overrides: str, run: Path) -> Recipe:
    given = [
        f"model={model}",
        "threads=1",
        "tool_style=signature",
        "tools=[look]",
        "min_image_tokens=2",
        "max_image_tokens=16",
        "rollout.max_turns=3",
        "rollout.max_tokens_per_turn=32",
        "rollout.max_context_tokens=256",
        "rl.prompts_per_step=2",
        "rl.group_size=4",
        "rl.eval_every=0",
        "rl.checkpoint_every=1",
        "rl.learning_rate=0.001",
        "rl.reward=evenness",
        "eval.items=6",
        "eval.bootstrap=200",
    ]
    return load_recipe(None, [*given, *overrides]).model_copy(update={"run": run})


def metrics(file: Path, *, of_tools: bool = False) -> list[dict[str, Any]]:
    """Rows of the training itself, or also those of its tools."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [r for r in rows if of_tools or not str(r.get("stage")).startswith("tool: ")]


def weights(model: Path) -> dict[str, torch.Tensor]:
    """In float32, as the run's last checkpoint holds them; a base that no run made has 16 bit."""
    checkpoints = sorted((model.parent / "checkpoints").glob("step-*"))
    if not checkpoints:
        return load_policy(recipe(model, run=model)).model.state_dict()
    return torch.load(checkpoints[-1] / "state.pt", weights_only=True)["model"]


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return all(torch.equal(first[k], second[k]) for k in first)


def test_sft_learns_the_form_of_its_demonstrations(cold: Path) -> None:
    rows = metrics(cold.parent / "metrics.jsonl")
    assert [r["step"] for r in rows] == list(range(1, 25))
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]


def test_sft_goes_on_where_it_was_stopped(base: Path, cold: Path, tmp_path: Path) -> None:
    demos = cold.parent.parent / "d.jsonl"

    def part(epochs: int) -> Recipe:
        return recipe(
            base,
            f"sft.demonstrations={demos}",
            f"sft.epochs={epochs}",
            "sft.checkpoint_every=1",
            "sft.warmup_steps=1",
            run=tmp_path / "run",
        )

    sft.run(part(2))
    whole = sft.run(part(2).model_copy(update={"run": tmp_path / "whole"}))
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    newest = checkpoints[-1]
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()  # as if the process had died in the last step
    again = sft.run(part(2))
    assert same(whole, again)
    rows = metrics(tmp_path / "run" / "metrics.jsonl")
    assert [r["step"] for r in rows] == list(range(1, 5))


def test_rl_changes_weights_and_logs_what_a_reader_needs(cold: Path, tmp_path: Path) -> None:
    trained = rl.run(recipe(cold, "rl.steps=3", run=tmp_path / "rl"))
    rows = metrics(tmp_path / "rl" / "metrics.jsonl")
    assert [r["step"] for r in rows] == [1, 2, 3]
    wanted = {"reward", "calls", "completion_tokens", "kl", "entropy", "informative", "clipped"}
    assert wanted <= rows[0].keys()
    assert any(r["grad_norm"] > 0 for r in rows)
    assert not same(cold, trained)
    assert abs(rows[0]["ratio"] - 1) < 1e-3  # one update for a batch: nothing has moved yet


def test_rl_tells_how_each_tool_is_used_and_what_is_lost_without_it(
    cold: Path, tmp_path: Path
) -> None:
    several = ("tools=[look, crop]", "rl.steps=2", "rl.eval_every=2", "rl.eval_items=4")
    rl.run(recipe(cold, *several, run=tmp_path / "rl"))
    rows = metrics(tmp_path / "rl" / "metrics.jsonl", of_tools=True)
    look = [r for r in rows if r["stage"] == "tool: look"]
    assert [r["step"] for r in look] == [1, 2, 2]
    calls = {r["step"]: r["calls"] for r in rows if r["stage"] == "rl"}
    for row in look[:2]:
        crop = next(r for r in rows if (r["stage"], r["step"]) == ("tool: crop", row["step"]))
        assert row["tool_use"] + crop["tool_use"] == pytest.approx(calls[row["step"]])
        assert (row["tool_success"] is None) == (row["tool_use"] == 0)
    assert -1 <= look[2]["tool_dependence"] <= 1
    [validation] = [r for r in rows if r["stage"] == "validation"]
    assert validation["items"] == 4


def test_the_best_weights_on_validation_are_kept_where_that_is_asked(
    cold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {0: 0.25, 1: 0.5, 2: 0.5, 3: 0.25}  # of equal ones the first
    measured: list[int] = []

    async def validate(task: object, setup: Setup, recipe: Recipe) -> list[dict[str, Any]]:
        step = setup.engine.version
        measured.append(step)
        return [{"stage": "validation", "accuracy": right[step]}]

    monkeypatch.setattr(rl, "validate", validate)

    def part(steps: int, run: str, *overrides: str) -> Recipe:
        shared = (f"rl.steps={steps}", "rl.eval_every=1", "deterministic=true")
        return recipe(cold, *shared, *overrides, run=tmp_path / run)

    def model(folder: Path) -> dict[str, torch.Tensor]:
        return load_policy(recipe(folder, run=folder)).model.state_dict()

    def equal(a: Path, b: Path) -> bool:
        one, other = model(a), model(b)
        return all(torch.equal(one[k], other[k]) for k in one)

    whole = rl.run(part(3, "whole", "rl.keep=best"))
    assert measured == [0, 1, 2, 3]
    assert equal(whole, rl.run(part(1, "one")))
    last = rl.run(part(3, "last"))
    assert not equal(whole, last)
    measured.clear()
    rl.run(part(2, "parts", "rl.keep=best"))
    assert equal(whole, rl.run(part(3, "parts", "rl.keep=best")))
    assert measured == [0, 1, 2, 3]  # the start is not measured again
    right[0] = 0.75
    start = rl.run(part(2, "start", "rl.keep=best"))
    assert equal(start, cold)  # nothing was better than what it began with
    began = right.pop(1)
    with pytest.raises(KeyError):  # stopped before its first checkpoint
        rl.run(part(2, "stopped", "rl.keep=best"))
    right[1] = began
    rl.run(part(2, "stopped", "rl.keep=best"))
    rows = metrics(tmp_path / "stopped" / "metrics.jsonl")
    assert [r["step"] for r in rows if r["stage"] == "validation"] == [0, 1, 2]
    torch.use_deterministic_algorithms(False)


def test_keeping_the_best_needs_evaluations() -> None:
    with pytest.raises(RecipeError, match=r"rl\.keep best needs evaluations: set rl\.eval_every"):
        load_recipe(None, ["rl.keep=best", "rl.eval_every=0"])


def test_a_deterministic_run_that_was_stopped_ends_with_the_same_weights(
    cold: Path, tmp_path: Path
) -> None:
    def part(steps: int, run: str) -> Recipe:
        return recipe(cold, f"rl.steps={steps}", "deterministic=true", run=tmp_path / run)

    whole = rl.run(part(3, "whole"))
    rl.run(part(1, "parts"))
    parts = rl.run(part(3, "parts"))
    assert same(whole, parts)
    assert not same(whole, cold)
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kind", ["dr_grpo", "dapo", "gspo", "cispo"])
def test_every_kind_of_loss_runs_with_two_updates_for_a_batch(
    cold: Path, tmp_path: Path, kind: str
) -> None:
    rl.run(
        recipe(
            cold,
            "rl.steps=1",
            f"rl.loss={kind}",
            "rl.updates_per_batch=2",
            "rl.kl_beta=0",
            run=tmp_path / kind,
        )
    )
    [row] = metrics(tmp_path / kind / "metrics.jsonl")
    assert row["informative"] > 0
    assert abs(row["ratio"] - 1) > 1e-5  # the second update sees the policy that the first made


def test_dynamic_sampling_draws_on_until_groups_disagree(cold: Path, tmp_path: Path) -> None:
    """The first prompts all agree; what is trained is what was drawn after them."""
    asked: list[str] = []

    @reward
    def disagreeing_from_the_third_prompt_on(episode: Episode, sample: Sample) -> float | None:
        """By the number of the rollout alone."""
        asked.append(sample.id)
        return float(episode.rollout_index % 2 and int(sample.id.rpartition("/")[2]) >= 2)

    name = disagreeing_from_the_third_prompt_on.name
    for dynamic, prompts, agreeing in (("true", 4, 2), ("false", 2, 2)):
        asked.clear()
        rl.run(
            recipe(
                cold,
                "rl.steps=1",
                f"rl.reward={name}",
                f"rl.dynamic_sampling={dynamic}",
                "rl.kl_beta=0",
                run=tmp_path / dynamic,
            )
        )
        [row] = metrics(tmp_path / dynamic / "metrics.jsonl")
        assert (row["prompts"], row["agreeing_groups"]) == (prompts, agreeing)
        assert len(asked) == prompts * 4
        assert (row["grad_norm"] is not None and row["grad_norm"] > 0) == (dynamic == "true")


def test_rl_reads_a_small_file_again_and_draws_its_samples_anew(cold: Path, tmp_path: Path) -> None:
    """Two pictures, three prompts a step: a sample stands twice in one batch."""
    rows = []
    for number, colour in enumerate(("red", "blue")):
        Image.new("RGB", (300, 200), colour).save(tmp_path / f"{number}.png")
        row = {"image": f"{number}.png", "question": "Which is higher?", "answer": "bar 1"}
        rows.append(json.dumps({**row, "id": f"q{number}", "split": "train"}))
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    given = recipe(
        cold,
        "rl.steps=2",
        "rl.prompts_per_step=3",
        "task.name=files",
        f"task.path={tmp_path / 'rows.jsonl'}",
        run=tmp_path / "run",
    )
    drawn: list[tuple[str, int, str]] = []

    @reward
    def noted(episode: Episode, sample: Sample) -> float | None:
        """Whether the text is odd, and a note of what was drawn."""
        text = "".join(m.text for m in episode.messages if m.role == "assistant")
        drawn.append((sample.id, episode.rollout_index, text))
        return float(len(text) % 2)

    rl.run(given.model_copy(update={"rl": given.rl.model_copy(update={"reward": noted.name})}))
    assert len(drawn) == len({(i, k) for i, k, _ in drawn}) == 2 * 3 * 4
    of_first = [t for i, k, t in sorted(drawn) if i == "q0"]
    assert of_first[:4] != of_first[4:8]


def test_reasoning_with_boxes_is_trained_and_its_boxes_are_watched(tmp_path: Path) -> None:
    """Four chains learned by heart, then RL on their questions with the gated rubric."""
    shown = [item("vsr", "train", n) for n in range(4)]
    rows = []
    for scene in shown:
        frame = Frame.thousand(*scene.scene.image.size)
        text = whole(*chain(scene, frame), scene.answer)
        rows.append(Demonstration(scene.id, (text,)))
    write_demonstrations(tmp_path / "chains.jsonl", rows)
    grounded = [
        *("dialect=grounded", "notation=inline", "tools=[]", "task.name=shapes_vsr"),
        *("rollout.request=Think with boxes.", "rollout.max_turns=1", "rollout.temperature=0.3"),
        *("rollout.max_tokens_per_turn=120", "rollout.max_context_tokens=400"),
        *("min_image_tokens=2", "max_image_tokens=16", "threads=1", "tool_style=silent"),
        f"sft.demonstrations={tmp_path / 'chains.jsonl'}",
        *("sft.epochs=100", "sft.learning_rate=0.003", "sft.warmup_steps=2", "sft.batch_size=4"),
        *("rl.steps=1", "rl.prompts_per_step=2", "rl.group_size=2", "rl.eval_every=0"),
        "rl.reward={answer: 1.0, grounded_format: 0.2, grounded_count: 0.2}",
        *("rl.gate=answer", "rl.kl_beta=0.01"),
    ]
    first = load_recipe(None, ["model=saccade-tiny-base", *grounded])
    cold = sft.run(first.model_copy(update={"run": tmp_path / "sft"}))
    second = load_recipe(None, [f"model={cold}", *grounded])
    rl.run(second.model_copy(update={"run": tmp_path / "rl"}))
    [row] = metrics(tmp_path / "rl" / "metrics.jsonl")
    assert row["boxes"] == pytest.approx(2.0, abs=0.5)
    assert row["invalid_boxes"] <= 0.25
    assert row["redundant_boxes"] <= 0.25
    assert row["reward"] > 0.8  # the answer alone pays at most 1, and boxes 0.2 more


def test_credit_by_turn_centres_each_turn_over_the_members_that_reached_it() -> None:
    sample = Sample("s", "?", (), "1")
    two = (TurnRecord(Parsed()), TurnRecord(Parsed()))
    a = Episode(sample, turns=two, score=Score(1.5, turns=(0.5, None)))
    b = Episode(sample, turns=two, score=Score(0.0, turns=(0.0, None)))
    c = Episode(sample, turns=two[:1], score=Score(0.0, turns=(None,)))
    found = rl.advantages_by_turn((a, b, c), scale=False)
    assert found[0] == pytest.approx((1.5 - 0.5, 1.0 - 0.5))
    assert found[1] == pytest.approx((0.0 - 0.5, 0.0 - 0.5))
    assert found[2] == pytest.approx((0.0 - 0.5,))


def test_what_a_budget_cut_off_is_learned_from_unless_a_recipe_says_otherwise() -> None:
    """It is an answer that never came. GRIT's code trains it by accident, and has no choice."""
    sample, turns = Sample("s", "?", (), "1"), (TurnRecord(Parsed()),)
    whole, cut, full = (
        Episode(sample, turns=turns, score=Score(value), stop=stop)
        for value, stop in (
            (1.0, StopReason.ANSWERED),
            (0.0, StopReason.MAX_TOKENS),
            (0.0, StopReason.CONTEXT_FULL),
        )
    )
    config = load_recipe(None, ["rl.scale_advantages=false"]).rl
    masked = config.model_copy(update={"mask_truncated": True})
    group = Group((whole, cut, full))
    trained, left = rl._advantages(group, config), rl._advantages(group, masked)
    assert trained is not None
    assert [a for [a] in trained.advantages] == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    assert left is not None
    assert left.episodes == (whole,)
    assert left.advantages[0] == pytest.approx((2 / 3,))  # they count in the mean all the same
    assert rl._advantages(Group((cut, full)), masked) is None
    assert rl._advantages(Group((cut, full)), config) is not None


def test_the_rubric_of_turn_credit_holds_the_reward_and_the_turns() -> None:
    config = load_recipe(None, ["rl.credit=turn", "rl.reward=answer"]).rl
    assert [t for t, _ in rl.rubric_of(config).terms] == [answer, per_turn]


def test_an_evaluation_goes_on_with_the_samples_that_have_no_row(
    cold: Path, tmp_path: Path
) -> None:
    first = measure.run(recipe(cold, "eval.items=4", run=tmp_path / "e"), arm="a")
    lines = (tmp_path / "e" / "rows.jsonl").read_text().splitlines()
    (tmp_path / "e" / "rows.jsonl").write_text("\n".join(lines[:3]) + '\n{"id": "torn')
    second = measure.run(recipe(cold, "eval.items=4", run=tmp_path / "e"), arm="a")
    assert first.n == second.n == 4
    ids = [json.loads(x)["id"] for x in (tmp_path / "e" / "rows.jsonl").read_text().splitlines()]
    assert ids == [f"charts/test/{k}" for k in range(4)]


def test_what_ended_by_our_own_failure_is_asked_again(
    cold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"charts/test/1"}
    make = measure.answering

    def unsteady(given: Recipe, **options: Any) -> Setup:
        setup = make(given, **options)
        turn = setup.engine.turn

        async def turn_or_fail(request: TurnRequest) -> Turn:
            if request.seed[1] in broken:
                raise EngineError("The endpoint is down.")
            return await turn(request)

        monkeypatch.setattr(setup.engine, "turn", turn_or_fail)
        return setup

    monkeypatch.setattr(measure, "answering", unsteady)
    given = recipe(cold, "eval.items=4", run=tmp_path / "e")
    assert measure.run(given, arm="a").unscored == 1
    broken.clear()
    mended = measure.run(given, arm="a")
    whole = measure.run(recipe(cold, "eval.items=4", run=tmp_path / "whole"), arm="a")
    assert (mended.unscored, mended.n) == (0, 4)
    assert mended.accuracy == whole.accuracy
    assert len(metrics(tmp_path / "e" / "episodes.jsonl")) == 4
    fewer = measure.run(recipe(cold, "eval.items=2", run=tmp_path / "e"), arm="a")
    assert fewer.n == 2  # the two first of the split, whenever they were asked


def short_pretraining(folder: Path, *changes: str) -> Recipe:
    given = [
        "threads=1",
        "pretrain.steps=2",
        "pretrain.charts_per_step=1",
        "pretrain.warmup_steps=0",
        "pretrain.decay_steps=0",
        "pretrain.checkpoint_every=1",
        "min_image_tokens=2",
        "max_image_tokens=16",
    ]
    return load_recipe(None, [*given, *changes]).model_copy(update={"run": folder})


def test_pretraining_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    whole = pretrain.run(short_pretraining(tmp_path / "whole"))
    pretrain.run(short_pretraining(tmp_path / "parts", "pretrain.steps=1"))
    parts = pretrain.run(short_pretraining(tmp_path / "parts"))
    assert same(whole, parts)


def test_pretraining_that_ran_out_of_time_keeps_its_last_step_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each look at the clock takes a minute; nothing but the end would write a checkpoint."""
    clock = itertools.count(1)
    rare = "pretrain.checkpoint_every=100"
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "_since", lambda began: float(next(clock)))
        pretrain.run(short_pretraining(tmp_path / "a", rare, "pretrain.max_minutes=1.5"))
    assert "ended after step 1 of 2" in capsys.readouterr().err
    assert len(list((tmp_path / "a" / "checkpoints").iterdir())) == 1
    resumed = pretrain.run(short_pretraining(tmp_path / "a", rare))
    assert "ended after" not in capsys.readouterr().err
    assert same(resumed, pretrain.run(short_pretraining(tmp_path / "b", rare)))


def test_an_answer_counts_with_the_square_root_of_its_length() -> None:
    renderer = Qwen2VLRenderer(build_tokenizer(), SETTINGS)
    packs = [pretrain.lesson_tree(index, renderer, seed=0) for index in range(6)]
    packed = pack([p.flat for p in packs])
    sums: dict[tuple[int, int, int], float] = {}
    lengths: Counter[tuple[int, int, int]] = Counter()
    weights = pretrain.answer_weights(packed).tolist()
    for weight, *key in zip(
        weights, packed.tree.tolist(), packed.branch.tolist(), packed.turn.tolist(), strict=True
    ):
        sums[tuple(key)] = sums.get(tuple(key), 0.0) + weight
        lengths[tuple(key)] += 1
    taught = sum(len(lesson) for p in packs for lesson in p.topics)
    assert len(sums) == taught > 30  # the second turns of conversations too
    assert len(set(lengths.values())) > 4
    for key, total in sums.items():
        assert total == pytest.approx(lengths[key] ** 0.5, rel=1e-5)


def test_pretraining_uses_the_image_budget_of_its_recipe(tmp_path: Path) -> None:
    model = pretrain.run(
        short_pretraining(tmp_path / "a", "pretrain.steps=1", "max_image_tokens=6")
    )
    stored = json.loads((model / "preprocessor_config.json").read_text())
    assert stored["size"] == {"shortest_edge": 2 * 784, "longest_edge": 6 * 784}


def test_sft_takes_as_many_steps_as_it_is_told_to_whatever_it_has(
    base: Path, tmp_path: Path
) -> None:
    write_demonstrations(tmp_path / "d.jsonl", demonstrations(2, seed=0, dialect=dialect("hermes")))
    told = (f"sft.demonstrations={tmp_path / 'd.jsonl'}", "sft.epochs=1", "sft.steps=3")
    sft.run(recipe(base, *told, run=tmp_path / "run"))
    assert [r["step"] for r in RunFolder(tmp_path / "run").read("metrics")] == [1, 2, 3]


def test_training_leaves_the_settings_of_a_model_as_they_were(base: Path, tmp_path: Path) -> None:
    """A model that was shown pictures in full is not told to see 16 tokens from now on."""
    own = tmp_path / "own"
    shutil.copytree(base, own)
    settings = json.loads((own / "preprocessor_config.json").read_text())
    settings["max_pixels"] = settings["size"]["longest_edge"] = 5_000_000
    (own / "preprocessor_config.json").write_text(json.dumps(settings))
    (own / "chat_template.jinja").write_text("{{ messages }}")
    write_demonstrations(tmp_path / "d.jsonl", demonstrations(2, seed=0, dialect=dialect("hermes")))
    changes = (f"sft.demonstrations={tmp_path / 'd.jsonl'}", "sft.epochs=1")
    trained = sft.run(recipe(own, *changes, run=tmp_path / "run"))
    kept = ("preprocessor_config.json", "chat_template.jinja", "tokenizer.json")
    assert all((trained / name).read_bytes() == (own / name).read_bytes() for name in kept)
    assert json.loads((trained / "saccade.json").read_text())["stage"] == "sft"
    assert not same(own, trained)


def test_a_step_that_would_spoil_the_weights_is_not_taken(
    cold: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rl.policy_loss

    def spoilt(*arguments: Any, **options: Any) -> PolicyLoss:
        result = whole(*arguments, **options)
        return result._replace(loss=result.loss * float("nan"))

    given = recipe(cold, "rl.steps=2", run=tmp_path / "rl")
    rl.run(given.model_copy(update={"rl": given.rl.model_copy(update={"steps": 1})}))
    before = weights(tmp_path / "rl" / "model")
    monkeypatch.setattr(rl, "policy_loss", spoilt)
    with pytest.raises(SaccadeError, match="norm of the gradients is nan"):
        rl.run(given)
    after = weights(tmp_path / "rl" / "model")
    assert all(torch.equal(before[k], after[k]) for k in before)


def test_what_a_step_without_anything_to_learn_did_not_measure_is_none(
    cold: Path, tmp_path: Path
) -> None:
    @reward
    def sameness(episode: Episode, sample: Sample) -> float | None:
        """One for all."""
        return 1.0

    changes = ("rl.steps=1", "rl.reward=sameness", "rl.kl_beta=0")
    rl.run(recipe(cold, *changes, run=tmp_path / "rl"))
    [row] = metrics(tmp_path / "rl" / "metrics.jsonl")
    assert row["informative"] == 0
    assert [row[k] for k in ("loss", "kl", "entropy", "ratio", "grad_norm")] == [None] * 5


def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "step-000001").mkdir()
    (tmp_path / "step-000001" / "state.pt").write_bytes(b"torn")
    with pytest.raises(StorageError, match="step-000001 can't be read"):
        load_state(tmp_path / "step-000001")
