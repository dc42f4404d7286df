"""`saccade bench rl`: that both sides do the same work, and that the work is counted rightly."""

from __future__ import annotations

import asyncio
import json
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from saccade import rl
from saccade.assemble import Policy, load_policy
from saccade.benches.play import Counts, Glances, counts_of, picture, recipe_for, setup_of, teach
from saccade.benches.products import Product, Work, _decode, _prefill, _Products, _update
from saccade.benches.rl import _check_same_work, _same_counts, _Step, bench_rl
from saccade.cli import app
from saccade.config import Recipe
from saccade.errors import SaccadeError
from saccade.image_store import ImageStore
from saccade.rl import Rollouts
from saccade.rollout import Setup, opening
from saccade.types import Episode, ImageShown, Message, Sample, Text

needs_trl = pytest.mark.skipif(
    find_spec("trl") is None, reason="TRL is not installed: pip install 'saccade[trl]'"
)
STYLE = "signature"
"""A system message with the tools in it, in few tokens."""


class Played(NamedTuple):
    """A step's rollouts by the model that was taught the form."""

    folder: Path
    recipe: Recipe
    policy: Policy
    setup: Setup
    samples: tuple[Sample, ...]
    rollouts: Rollouts

    @property
    def episode(self) -> Episode:
        return self.rollouts.episodes[0]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Played:
    folder = tmp_path_factory.mktemp("bench") / "model"
    teach(folder, seed=0, threads=1, tool_style=STYLE, image_tokens=16)
    recipe = recipe_for(
        folder,
        prompts=2,
        group=4,
        threads=1,
        tool_style=STYLE,
        freeze_vision=False,
        image_tokens=16,
    )
    policy, store = load_policy(recipe), ImageStore()
    task = Glances(tuple(picture(n) for n in range(2)))
    setup = setup_of(recipe, policy, task, store=store)
    samples = tuple(task.load("train", store=store))
    rollouts = asyncio.run(rl.sample_step(task, setup, recipe, step=0))
    return Played(folder, recipe, policy, setup, samples, rollouts)


# --- what is played -------------------------------------------------------------------------------


def test_every_episode_looks_once_and_answers_in_equally_many_tokens(played: Played) -> None:
    episodes = played.rollouts.episodes
    assert len({counts_of(e) for e in episodes}) == 1
    assert all([len(t.results) for t in e.turns] == [1, 0] for e in episodes)
    assert all(not t.failed for e in episodes for r in e.turns for t in r.results)
    assert all(e.answer is not None and e.answer.isdecimal() for e in episodes)


def test_the_numbers_are_drawn_so_that_every_group_can_be_trained(played: Played) -> None:
    assert played.rollouts.agreeing == 0
    assert len({e.answer for e in played.rollouts.episodes}) > 4
    assert len({e.messages[2].text for e in played.rollouts.episodes}) == 8


def test_wherever_a_glance_goes_its_picture_costs_the_same(played: Played) -> None:
    found = {
        (image.width, image.height)
        for e in played.rollouts.episodes
        for image in e.images.values()
        if not image.is_root
    }
    assert found == {(224, 224)}


def test_a_model_that_does_not_keep_the_form_is_refused(played: Played) -> None:
    short = SimpleNamespace(segments=played.episode.segments[:2])
    with pytest.raises(SaccadeError, match="prompt, sampled instead of two turns"):
        counts_of(short)
    one = played.episode
    longer = SimpleNamespace(segments=(*one.segments[:3], one.segments[1]), messages=one.messages)
    with pytest.raises(SaccadeError, match="2 different lengths"):
        _same_counts([one, longer])


# --- the same work on both sides ------------------------------------------------------------------

COUNTS = Counts(prompt=30, first_turn=37, observation=34, second_turn=16)
SAME = {"prompt_tokens": 30, "completion_tokens": 87, "generated_tokens": 53, "pictures": 2}


@pytest.mark.parametrize("name", ["", *SAME])
def test_a_step_of_trl_that_did_other_work_is_refused(name: str) -> None:
    mine = _Step(0.1, 0.2, 0.2, COUNTS, pictures=10)
    other = SimpleNamespace(**(SAME | ({name: SAME[name] - 1} if name else {})))
    if not name:
        _check_same_work([mine], [other])
        return
    with pytest.raises(SaccadeError, match="different work"):
        _check_same_work([mine], [other])


@needs_trl
def test_trl_tells_its_model_the_very_tokens_that_ours_is_told(played: Played) -> None:
    from saccade.benches import trl

    processor = trl._processor(played.folder)
    for number, sample in enumerate(played.samples):
        told = trl._conversation(opening(sample, played.setup))
        for part in told[-1]["content"]:
            if part["type"] == "image":
                part["image"] = picture(number)
        found = processor.apply_chat_template(
            [told], add_generation_prompt=True, tokenize=True, return_dict=True
        )
        ours = next(e for e in played.rollouts.episodes if e.sample.question == sample.question)
        assert tuple(found["input_ids"][0]) == ours.segments[0].ids


@needs_trl
def test_trl_is_shown_the_very_tokens_and_pixels_that_our_tool_returns(played: Played) -> None:
    import trl as library

    from saccade.benches import trl

    processor = trl._processor(played.folder)
    trainer = SimpleNamespace(
        processing_class=processor,
        chat_template=None,
        chat_template_kwargs={},
        _is_vlm=True,
        _tokenizer=processor.tokenizer,
    )
    pictures = {s.images[0].key: picture(n) for n, s in enumerate(played.samples)}
    for episode in played.rollouts.episodes:
        environment = trl._Environment()
        environment.reset(images=[pictures[episode.sample.images[0].key]])
        content = environment.glance(**episode.turns[0].parsed.calls[0].arguments)
        message = {"role": "tool", "name": "glance", "content": content}
        found = library.GRPOTrainer._get_tool_suffix_ids(trainer, [message])
        assert tuple(found) == episode.segments[2].ids
        [seen] = episode.segments[2].images
        ours = np.asarray(played.setup.store.view(seen).pixels)
        assert np.array_equal(np.asarray(content[1]["image"]), ours)


@needs_trl
def test_messages_keep_their_parts_and_order_on_the_way_to_trl() -> None:
    from saccade.benches import trl

    shown = ImageShown(None, "img_0")
    told = trl._conversation([Message("user", (Text("a"), shown, Text("b")))])
    assert told == [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image"},
                {"type": "text", "text": "b"},
            ],
        }
    ]


@needs_trl
def test_steps_of_both_sides_are_measured_side_by_side(played: Played) -> None:
    found = bench_rl(
        "trl",
        steps=2,
        warmup=1,
        prompts=2,
        group=4,
        tool_style=STYLE,
        micro_batch=4,
        image_tokens=16,
        model=played.folder,
        show=False,
    )
    mine, other = found["saccade"], found["trl"]
    assert found["episodes"] == 8
    assert len(mine["every_step"]) == len(other["every_step"]) == 2
    for side in (mine, other):
        assert 0 < side["rollout_seconds"] < side["seconds"]
        assert side["rollouts_per_s"] == pytest.approx(8 / side["seconds"])
    assert found["ratio"] == pytest.approx(other["seconds"] / mine["seconds"])
    assert 0 < other["picture_seconds"] < other["seconds"]
    settings = found["configuration"]
    assert settings["saccade"]["rl"]["loss"] == settings["trl"]["loss_type"] == "grpo"
    assert settings["trl"]["gradient_checkpointing"] is False
    assert settings["trl"]["vision_trained"] is True
    assert settings["common"]["threads"] == 1
    json.dumps(found)


def test_ours_can_be_measured_alone_and_with_a_frozen_vision_tower(
    played: Played, capsys: pytest.CaptureFixture[str]
) -> None:
    found = bench_rl(
        "none",
        steps=1,
        warmup=0,
        prompts=2,
        group=4,
        tool_style=STYLE,
        freeze_vision=True,
        micro_batch=4,
        image_tokens=16,
        model=played.folder,
    )
    assert found["trl"] is found["ratio"] is None
    assert found["saccade"]["seconds"] > 0
    assert found["configuration"]["saccade"]["rl"]["freeze_vision"] is True
    printed = capsys.readouterr().out
    assert "bare products" in printed
    assert "rl.kl_beta 0.0" in printed


@pytest.mark.parametrize(
    ("settings", "said", "code"),
    [
        (["--against", "moon"], "'trl'", 2),
        (["--tool-style", "loud"], "'signature'", 2),
        (["--micro-batch", "7"], "must divide the 128 episodes of a step, got 7", 1),
    ],
)
def test_settings_that_cannot_be_are_said(settings: list[str], said: str, code: int) -> None:
    found = CliRunner().invoke(app, ["bench", "rl", *settings])
    assert found.exit_code == code
    assert said in found.stderr
    assert code == 2 or found.stderr.count("\n") == 1


# --- the bare products ----------------------------------------------------------------------------


def flops(products: list[Product]) -> int:
    with FlopCounterMode(display=False) as counter:
        for product in products:
            product()
    return counter.get_total_flops()


def work(*, is_vision_trained: bool = True) -> Work:
    return Work(2, 4, COUNTS, pictures=5, patches=64, is_vision_trained=is_vision_trained)


def test_the_distinct_tokens_of_a_step_hold_each_prompt_once() -> None:
    assert work().distinct_tokens == 2 * 30 + 8 * 87
    assert work().trained_tokens == 8 * 53


def test_the_bare_products_are_those_of_the_distinct_tokens_and_no_more(played: Played) -> None:
    """Two multiply-adds for each weight and token, three times that with gradients, and attention
    over the keys that there are: counted by torch, computed here by hand.
    """
    model = played.policy.model
    products = _Products(model)
    config = model.config.get_text_config()
    width, layers, head = config.hidden_size, config.num_hidden_layers, model.lm_head.weight.numel()
    linear = sum(
        p.numel() for n, p in model.model.language_model.named_parameters() if "proj.weight" in n
    )

    def attention(queries: int, keys: int) -> int:
        return 2 * 2 * layers * queries * keys * width  # q k and p v

    with_tool = 30 + 37 + 34
    prefill = 2 * linear * (2 * 30 + 8 * 35) + 2 * head * (2 + 8)
    prefill += 2 * attention(30, 30) + 8 * attention(35, with_tool)
    assert flops(list(_prefill(model, products, work()))) == prefill

    keys = [*range(31, 30 + 37), *range(with_tool + 1, with_tool + 16)]
    decode = sum(8 * (2 * linear + 2 * head + attention(1, k)) for k in keys)
    assert flops(list(_decode(model, products, work()))) == decode

    tokens = 2 * 30 + 8 * 87
    update = 3 * (2 * linear * tokens + 2 * head * 8 * 53)
    update += 3 * (2 * attention(30, 30) + 8 * attention(87, 30) + 8 * attention(87, 87))
    frozen = flops(list(_update(model, products, work(is_vision_trained=False))))
    trained = flops(list(_update(model, products, work())))
    vision = (trained - frozen) // 2  # forward is in both, backward is twice as much
    assert frozen == update + vision
