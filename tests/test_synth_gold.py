"""Chains with the right boxes: as long as the evidence, and true."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from saccade.dialects import NOTATIONS
from saccade.dialects.grounded import Grounded
from saccade.engines.scripted import ScriptedEngine
from saccade.image_store import ImageStore
from saccade.models.tiny import SETTINGS, build_tokenizer
from saccade.recipe_files import load_recipe
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.rewards.grounded import grounded_count, grounded_format, grounded_iou
from saccade.rollout import Limits, Setup
from saccade.synth import chains, gold
from saccade.synth.gold import gold_chains
from saccade.synth.replay import replay
from saccade.tasks import task_named

RENDERER = Qwen2VLRenderer(build_tokenizer(), SETTINGS)
OPTIONS = {"parts": ["shapes_vsr", "shapes_tally"]}


@pytest.fixture(params=["inline", "json", "internvl"])
def setup(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Setup:
    notation = NOTATIONS[request.param]
    found = Setup(
        engine=ScriptedEngine([], ids=True),
        dialect=Grounded("silent", notation),
        store=ImageStore(),
        renderer=RENDERER,
        notation=notation,
        limits=Limits(1, 2000, 8000),
    )
    monkeypatch.setattr(chains, "answering", lambda recipe, store: found)
    return found


def recipe(**more: Any) -> Any:
    given = ["notation=inline", "task.name=mix", "task.options={parts: [shapes_vsr, shapes_tally]}"]
    return load_recipe(None, [*given, *(f"{k}={v}" for k, v in more.items())])


def test_chains_replay_to_the_right_answer_with_all_evidence(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gold, "CHUNK", 7)
    found = gold_chains(recipe(), split="train", count=24)
    assert len(found) == 24
    task = task_named("mix", OPTIONS)
    for episode in asyncio.run(replay(found, task, setup)):
        sample = episode.sample
        assert episode.answer == sample.answer
        assert grounded_format(episode, sample) == 1.0
        assert len(episode.turns[0].named) == len(sample.evidence)
        assert grounded_count(episode, sample) in (None, 1.0)
        closeness = grounded_iou(episode, sample)
        assert closeness is None or closeness > 0.75  # rounded outward to the grain


def test_items_that_come_again_make_one_demonstration(setup: Setup) -> None:
    found = gold_chains(recipe(**{"task.train_items": 5}), split="train", count=13)
    assert len({d.sample for d in found}) == len(found) == 5
