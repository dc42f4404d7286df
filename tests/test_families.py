"""Models of every family: our forward passes, decoding and training against the stock modules."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText

import saccade.renderers
from saccade import rl, sft
from saccade.assemble import Policy, image_features, load_policy, setup_for
from saccade.cli import recipe_path
from saccade.config import Recipe
from saccade.dialects import dialect
from saccade.dialects.notations import notation_named
from saccade.engines import Sampling, TurnRequest
from saccade.engines.torch import TorchEngine
from saccade.errors import RecipeError
from saccade.geometry import Box
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.ladder import runs as ladder
from saccade.models.chosen import chosen_logprobs
from saccade.models.forward import (
    encode_images,
    hidden_states,
    load_model,
    predicting_states,
    token_logits,
    vision_parts,
)
from saccade.recipe_files import load_recipe
from saccade.renderers import families, renderer_for
from saccade.rewards import reward
from saccade.run_folder import RunFolder
from saccade.synth.charts import demonstrations
from saccade.synth.replay import write_demonstrations
from saccade.tokens import Tree, batch, flatten, pack
from saccade.types import Episode, ImageShown, Message, Sample, Segment, Text
from tiny_families import KINDS, save_family

SIZES = ((300, 200), (90, 170), (140, 140))


@reward
def family_evenness(episode: Episode, sample: Sample) -> float | None:
    """Whether the model's text has an even length: differs within groups even without training."""
    return float(len("".join(m.text for m in episode.messages if m.role == "assistant")) % 2 == 0)


class World:
    """A model of a family behind its folder, and pictures to ask about."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.folder = kind, save_family(kind, folder)
        self.renderer = renderer_for(folder, max_image_tokens=16)
        self.model = load_model(folder)
        self.policy = Policy(self.model, self.renderer)
        self.store = ImageStore()
        self.views = []
        for number, size in enumerate(SIZES):
            noise = np.random.default_rng(number).integers(0, 255, (9, 7, 3), np.uint8)
            self.views.append(root_view(Image.fromarray(noise).resize(size)))
            self.store.add(self.views[-1])

    def messages(self, item: int) -> tuple[Message, ...]:
        shown = ImageShown(self.views[item % 3].ref, "img_0")
        asked = "What is the value of red?" + " Look." * item
        return (
            Message("system", (Text("Look at the blue bar."),)),
            Message("user", (Text("img_0: "), shown, Text(asked))),
        )

    def looked(self, item: int) -> Segment:
        crop = self.views[item % 3].crop(Box(10 + item, 20, 80 + item, 110))
        shown = ImageShown(self.store.add(crop), "img_1")
        return self.renderer.observation(Message("tool", (Text("Look: "), shown, Text("Well?"))))

    def request(self, item: int, rollout: int = 0, **sampling: Any) -> TurnRequest:
        return TurnRequest(
            episode=f"{item}/{rollout}",
            messages=self.messages(item),
            segments=(self.renderer.prompt(self.messages(item)),),
            seed=(7, f"item-{item}", rollout),
            sampling=Sampling(**{"max_tokens": 12, **sampling}),
        )

    def play(self, engine: TorchEngine, requests: list[TurnRequest], turns: int = 2) -> list[Any]:
        async def one(request: TurnRequest) -> tuple[Segment, ...]:
            segments = request.segments
            for number in range(turns):
                turn = await engine.turn(replace(request, segments=segments))
                segments = (*segments, Segment("sampled", turn.ids, turn.logprobs))
                if number + 1 < turns:
                    segments = (*segments, self.looked(int(request.episode[0])))
            engine.release(request.episode)
            return segments

        async def together() -> list[tuple[Segment, ...]]:
            engine.expect(r.episode for r in requests)
            return list(await asyncio.gather(*map(one, requests)))

        return asyncio.run(together())

    def sequence(self, item: int) -> tuple[Segment, ...]:
        """A conversation with two pictures."""
        return (
            self.renderer.prompt(self.messages(item)),
            self.renderer.demonstrated("Look at the red bar."),
            self.looked(item),
            self.renderer.demonstrated("The value is 42."),
        )

    def stock_inputs(self, segments: tuple[Segment, ...]) -> dict[str, torch.Tensor]:
        """What the processor of transformers would hand to the stock model."""
        ids = torch.tensor([[i for s in segments for i in s.ids]])
        images = [i for s in segments for i in s.images]
        patches = [self.renderer.patches(i, self.store.view(i).pixels) for i in images]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        inputs["pixel_values"] = torch.from_numpy(np.concatenate(patches))
        if not self.kind.startswith("intern"):
            inputs["image_grid_thw"] = torch.tensor([self.renderer.grid(i) for i in images])
            inputs["mm_token_type_ids"] = (ids == self.renderer.pad_id).int()
        return inputs


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    torch.set_num_threads(1)
    return World(request.param, tmp_path_factory.mktemp(request.param))


def stock(world: World) -> torch.nn.Module:
    return AutoModelForImageTextToText.from_pretrained(
        world.folder, attn_implementation="sdpa", local_files_only=True
    ).eval()


# --- one model, three roads -----------------------------------------------------------------------


def test_pads_are_as_many_as_the_tower_makes_features(world: World) -> None:
    refs = [v.ref for v in world.views]
    patches = [world.renderer.patches(r, world.store.view(r).pixels) for r in refs]
    with torch.no_grad():
        found = encode_images(world.model, patches, [world.renderer.grid(r) for r in refs])
        alone = [
            encode_images(world.model, [p], [world.renderer.grid(r)])[0]
            for p, r in zip(patches, refs, strict=True)
        ]
    for ref, features, one in zip(refs, found, alone, strict=True):
        segment = world.renderer.prompt([Message("user", (ImageShown(ref, "img_0"),))])
        assert segment.ids.count(world.renderer.pad_id) == world.renderer.image_tokens(ref)
        assert world.renderer.image_tokens(ref) == len(features)
        assert (features - one).abs().max() < 1e-5


def test_a_packed_episode_has_the_logits_of_the_stock_model(world: World) -> None:
    trees = [world.sequence(item) for item in range(3)]
    flats = [flatten(Tree(s[:1], (s[1:],)), world.renderer) for s in trees]
    packed, padded = pack(flats), batch(flats)
    reference = stock(world)
    with torch.no_grad():
        features = image_features(world.policy, packed.images, store=world.store)
        found = world.model.lm_head(predicting_states(world.model, packed, features))
        plain = token_logits(world.model, padded, hidden_states(world.model, padded, features))
        wanted = []
        for segments, flat in zip(trees, flats, strict=True):
            logits = reference(**world.stock_inputs(segments)).logits[0]
            wanted.append(logits[flat.previous[np.flatnonzero(flat.trained)]])
    assert (found - plain).abs().max() < 1e-4
    assert (found - torch.cat(wanted)).abs().max() < 1e-4
    assert torch.cat(wanted).std() > 0.1


def test_what_pictures_show_and_where_they_stand_matters(world: World) -> None:
    segments = world.sequence(0)
    packed = pack([flatten(Tree(segments[:1], (segments[1:],)), world.renderer)])
    with torch.no_grad():
        features = image_features(world.policy, packed.images, store=world.store)
        found = predicting_states(world.model, packed, features)
        width = world.model.get_input_embeddings().weight.shape[1]
        levels = next(iter(features.values())).shape[1] // width
        assert levels == (4 if world.kind == "qwen3_vl" else 1)
        for level in range(levels):
            moved = {key: f.clone() for key, f in features.items()}
            for f in moved.values():
                f[:, level * width : (level + 1) * width] += torch.randn(len(f), width)
            assert (predicting_states(world.model, packed, moved) - found).abs().max() > 1e-3


def test_the_engine_decodes_what_the_stock_model_generates(world: World) -> None:
    reference = stock(world)
    never = world.renderer.never_sampled(len(world.model.lm_head.weight))
    requests = [world.request(item, temperature=0) for item in range(3)]
    engine = TorchEngine(world.model, world.renderer, store=world.store)
    for request, episode in zip(requests, world.play(engine, requests), strict=True):
        before: tuple[Segment, ...] = ()
        for segment in episode:
            if segment.origin == "sampled":
                inputs = world.stock_inputs(before)
                length = inputs["input_ids"].shape[1]
                wanted = reference.generate(
                    **inputs,
                    max_new_tokens=request.sampling.max_tokens,
                    do_sample=False,
                    suppress_tokens=never,
                    eos_token_id=world.renderer.end_id,
                    pad_token_id=0,
                )[0, length:]
                assert tuple(wanted.tolist()) == segment.ids
            before = (*before, segment)


def test_rollouts_have_the_logprobs_of_training(world: World) -> None:
    requests = [world.request(i, g, temperature=0.9) for i in range(3) for g in range(2)]
    engine = TorchEngine(world.model, world.renderer, store=world.store, max_batch=4)
    episodes = world.play(engine, requests, turns=3)
    flats = [flatten(Tree(e[:1], (e[1:],)), world.renderer) for e in episodes]
    packed = pack(flats)
    weight = world.model.lm_head.weight
    with torch.no_grad():
        features = image_features(world.policy, packed.images, store=world.store)
        chosen = chosen_logprobs(
            predicting_states(world.model, packed, features),
            weight,
            packed.target,
            temperature=0.9,
            suppressed=torch.tensor(world.renderer.never_sampled(len(weight))),
        )
    assert len(packed.target) > 60
    assert (chosen.logprobs - packed.sampled_logprobs).abs().max() < 1e-4


def test_a_long_prompt_in_pieces_is_the_prompt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def first(tokens: int) -> list[Any]:
        monkeypatch.setattr("saccade.engines.decoding.forward.PREFILL_TOKENS", tokens)
        engine = TorchEngine(world.model, world.renderer, store=world.store)
        return world.play(engine, [world.request(i, temperature=0) for i in range(2)])

    for whole, pieces in zip(first(8192), first(9), strict=True):
        assert [s.ids for s in whole] == [s.ids for s in pieces]


# --- runs -----------------------------------------------------------------------------------------


def recipe(model: Path, *overrides: str, run: Path) -> Recipe:
    given = [
        f"model={model}",
        "threads=1",
        "tool_style=signature",
        "tools=[look]",
        "min_image_tokens=4",
        "max_image_tokens=16",
        "rollout.max_turns=3",
        "rollout.max_tokens_per_turn=24",
        "rollout.max_context_tokens=512",
        "rl.steps=1",
        "rl.prompts_per_step=2",
        "rl.group_size=4",
        "rl.eval_every=0",
        "rl.warmup_steps=0",
        "rl.learning_rate=0.001",
        "rl.reward=family_evenness",
    ]
    return load_recipe(None, [*given, *overrides]).model_copy(update={"run": run})


def changed(model: Path, run: Path) -> set[str]:
    """Names of the weights that a run changed."""
    before = load_model(model).state_dict()
    after = torch.load(
        sorted((run / "checkpoints").glob("step-*"))[-1] / "state.pt", weights_only=True
    )["model"]
    return {name for name, weight in before.items() if not torch.equal(weight, after[name])}


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl", "internvl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the words of charts."""
    torch.set_num_threads(1)
    return save_family(request.param, tmp_path_factory.mktemp(request.param), words=None)


def test_one_step_of_rl_changes_every_part_and_is_saved(folder: Path, tmp_path: Path) -> None:
    made = rl.run(recipe(folder, run=tmp_path / "rl"))
    names = changed(folder, tmp_path / "rl")
    model = load_policy(recipe(made, run=tmp_path)).model  # what is saved can be loaded again
    vision = {id(p) for part in vision_parts(model) for p in part.parameters()}
    moved = [id(p) in vision for n, p in model.named_parameters() if n in names]
    assert any(moved)
    assert not all(moved)


def test_one_step_of_sft_changes_weights_and_a_frozen_tower_stays(
    folder: Path, tmp_path: Path
) -> None:
    write_demonstrations(tmp_path / "d.jsonl", demonstrations(4, seed=0, dialect=dialect("hermes")))
    made = sft.run(
        recipe(
            folder,
            f"sft.demonstrations={tmp_path / 'd.jsonl'}",
            "sft.epochs=1",
            "sft.batch_size=4",
            "sft.warmup_steps=0",
            "sft.freeze_vision=true",
            run=tmp_path / "sft",
        )
    )
    names = changed(folder, tmp_path / "sft")
    model = load_policy(recipe(made, run=tmp_path)).model
    vision = {id(p) for part in vision_parts(model) for p in part.parameters()}
    moved = [id(p) in vision for n, p in model.named_parameters() if n in names]
    assert moved
    assert not any(moved)


# --- what is known --------------------------------------------------------------------------------


def test_other_families_are_refused_with_those_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    for load in (load_model, renderer_for):
        with pytest.raises(RecipeError, match=r"'llava' has no renderer.*internvl.*qwen3_vl"):
            load(tmp_path)


def test_a_language_model_of_another_build_is_refused(tmp_path: Path) -> None:
    folder = save_family("internvl", tmp_path)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"qwen2"', '"llama"'))
    with pytest.raises(RecipeError, match=r"type 'llama' are not computed here"):
        load_model(folder)


def test_a_new_family_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "newvl.py").write_text(
        "from saccade.renderers.qwen2vl import Qwen2VLRenderer\n"
        "class NewVLRenderer(Qwen2VLRenderer):\n"
        "    model_types = ('new_vl',)\n"
    )
    monkeypatch.setattr(saccade.renderers, "__path__", [*saccade.renderers.__path__, str(tmp_path)])
    try:
        assert families()["new_vl"].__name__ == "NewVLRenderer"
    finally:
        sys.modules.pop("saccade.renderers.newvl", None)
    assert isinstance(saccade.renderers, ModuleType)


# --- recipes --------------------------------------------------------------------------------------


OF_REAL_MODELS = [
    ("grounded-qwen2.5-vl-3b", "qwen2_5_vl", "json"),
    ("grounded-internvl3-2b", "internvl", "internvl"),
]


def small(name: str, kind: str, folder: Path, *overrides: str) -> Recipe:
    """A recipe of a real model with a small one of its family, scenes of shapes and short turns."""
    return load_recipe(
        recipe_path(name),
        (
            f"model={save_family(kind, folder / 'model', words=None)}",
            "threads=1",
            "task.options={parts: [shapes_vsr, shapes_tally]}",
            "task.train_items=2",
            "max_image_tokens=64",
            "min_image_tokens=4",
            "rollout.max_tokens_per_turn=16",
            "rl.steps=1",
            "rl.prompts_per_step=2",
            "rl.group_size=2",
            "rl.warmup_steps=0",
            *overrides,
        ),
    ).model_copy(update={"run": folder / "run"})


@pytest.mark.parametrize(("name", "kind", "notation"), OF_REAL_MODELS)
def test_recipes_of_families_run_on_small_models_of_theirs(
    name: str, kind: str, notation: str, tmp_path: Path
) -> None:
    recipe = small(name, kind, tmp_path, "rl.reward=family_evenness", "rl.gate=null")
    policy = load_policy(recipe)
    setup = setup_for(recipe, policy, store=ImageStore())
    assert setup.boxes_as is policy.renderer.notation
    assert policy.renderer.notation.name == notation
    assert policy.renderer.notation.example in setup.dialect.instructions(())
    rl.run(recipe)
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.parametrize(("name", "kind", "notation"), OF_REAL_MODELS)
def test_ladders_of_families_run_on_small_models_of_theirs(
    name: str, kind: str, notation: str, tmp_path: Path
) -> None:
    recipe = small(name, kind, tmp_path, "sft.steps=1", "eval.items=4", "eval.bootstrap=100")
    results = ladder.run(recipe)
    measured = set(results["splits"]["test"]["arms"])
    assert measured == set(recipe.ladder.arms) >= {"direct", "cot", "one-shot", "few-shot-direct"}
    # the worked example has two boxes, written as the family writes them
    shown = recipe.ladder.arms["one-shot"].set["rollout.example"]
    assert isinstance(shown, str)
    parsed = dialect("grounded").parse(shown.partition("sofa.")[2].strip())
    assert parsed.answer is not None
    assert parsed.answer.text == "true"
    written = notation_named(notation).find(parsed.thought)
    assert [(w.phrase, w.values is not None) for w in written] == [("cat", True), ("sofa", True)]


def test_the_full_suite_of_tools_trains_a_small_model(tmp_path: Path) -> None:
    recipe = load_recipe(
        recipe_path("suite"),
        (
            f"model={save_family('qwen2_5_vl', tmp_path / 'model', words=None)}",
            "threads=1",
            "task.options={max_image_tokens: 64}",
            "max_image_tokens=64",
            "service.way=inprocess",
            "rollout.max_turns=2",
            "rollout.max_tokens_per_turn=16",
            "rl.steps=1",
            "rl.prompts_per_step=2",
            "rl.group_size=2",
            "rl.warmup_steps=0",
            "rl.reward=family_evenness",
            "rl.eval_every=0",
            "eval.items=2",
            "eval.bootstrap=100",
            "ladder.only=[suite, suite-without-ocr]",
        ),
    ).model_copy(update={"run": tmp_path / "run"})
    setup = setup_for(recipe, load_policy(recipe), store=ImageStore())
    assert {tool.name for tool in setup.toolbox.tools} >= set(recipe.tools)
    assert len(recipe.tools) == 14
    results = ladder.run(recipe)
    assert set(results["splits"]["test"]["arms"]) == {"suite", "suite-without-ocr"}
    place = tmp_path / "run" / "arms" / "suite" / "seed-0" / "rate-1e-06"
    stages = [row["stage"] for row in RunFolder(place).rows("metrics")]
    assert "rl" in stages
