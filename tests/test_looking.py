"""What a look is worth to the shipped `saccade-tiny`: everything at the evidence, nothing where the
whole picture is shown again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from saccade.assemble import data_file, load_policy, setup_for, task_of
from saccade.engines import Engine, Sampling, TurnRequest
from saccade.image_store import ImageStore
from saccade.recipe_files import load_recipe
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.rollout import rollout
from saccade.types import Sample, Turn
from saccade.worlds.lessons import box_text, label_region

ITEMS = 200


@dataclass
class FirstTurnGiven:
    """An engine whose first turns are told to it; the model answers from what it is then shown."""

    engine: Engine
    renderer: Qwen2VLRenderer
    said: dict[str, str]

    @property
    def capabilities(self):
        return self.engine.capabilities

    async def turn(self, request: TurnRequest) -> Turn:
        if len(request.segments) > 1:
            return await self.engine.turn(request)
        text = self.said[str(request.seed[1])]
        ids = self.renderer.demonstrated(text).ids
        return Turn(text, "stop", ids, (0.0,) * len(ids))

    def release(self, episode: str) -> None:
        self.engine.release(episode)


def region_text(sample: Sample, renderer: Qwen2VLRenderer) -> str:
    """A look at the evidence of a question for one value, as demonstrations write it."""
    [evidence] = sample.evidence
    image = evidence.image
    region = label_region(evidence.box, width=image.width, height=image.height)
    place = sample.question.removeprefix("What is the value of ").rstrip("?")
    return f"{place} {box_text(renderer.frame(image), region)}"


@cache
def accuracy_when(looked: str) -> np.ndarray:
    """Right or wrong on the same `look` questions for one value, by what the model is shown."""
    # two turns: what is shown first must do, or the model looks again and gets it right
    changes = ["model=saccade-tiny", "threads=1", "rollout.max_turns=2"]
    if looked == "no tools":
        changes.append("tools=[]")
    recipe = load_recipe(data_file(Path("charts-tiny.yaml")), changes)
    store, policy = ImageStore(), load_policy(recipe)
    task = task_of(recipe)
    setup = setup_for(recipe, policy, store=store, rubric=task.rubric)
    samples = [
        s
        for s in task.load("validation", store=store, start=2_000, count=ITEMS)
        if s.stratum == "look" and s.kind == "value"
    ]
    if looked != "no tools":
        place = "[0, 0, 1000, 1000]"
        texts = {
            s.id: region_text(s, policy.renderer)
            if looked == "evidence"
            else f"{s.question.removeprefix('What is the value of ').rstrip('?')} {place}"
            for s in samples
        }
        given = FirstTurnGiven(setup.engine, policy.renderer, texts)
        setup = replace(setup, engine=given)
    episodes = asyncio.run(rollout(samples, setup, sampling=Sampling(0.0, 32)))
    return np.array([e.score is not None and e.score.value == 1.0 for e in episodes])


def test_a_look_at_everything_answers_no_better_than_no_look() -> None:
    everything, nothing = accuracy_when("everything"), accuracy_when("no tools")
    assert len(everything) > 30
    gain = everything.astype(float) - nothing
    assert gain.mean() < 0.05 + 2 * gain.std() / np.sqrt(len(gain))
    assert everything.mean() < 0.2


def test_a_look_at_the_evidence_does() -> None:
    """The same measure, so the test above could have failed."""
    assert accuracy_when("evidence").mean() > accuracy_when("everything").mean() + 0.3
