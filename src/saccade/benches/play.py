"""What both sides of `saccade bench rl` play: pictures, a question, one tool, and a small model
that was taught the form of its two turns.

Invariant: the form is certain and the numbers in it are free. So every episode has the same number
of tokens in each turn, makes one call that returns a picture, and still samples; no side needs to
force anything while it decodes.

Left out on purpose: a task that can be learned. What is measured is the time of steps.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from saccade.assemble import Policy, device_of, image_features, load_policy, setup_for
from saccade.config import Recipe, RlConfig, RolloutConfig
from saccade.dialects import dialect
from saccade.errors import SaccadeError
from saccade.geometry import Box
from saccade.image_store import ImageStore
from saccade.images import ImageView, root_view
from saccade.models.forward import hidden_states, sampling_logprobs, token_logits
from saccade.models.tiny import SETTINGS, build_model, build_tokenizer, number_ids, save
from saccade.progress import progress
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.rewards import Reward, Rubric
from saccade.rollout import Setup
from saccade.synth.replay import Demonstration, replay
from saccade.tokens import Batch, batch, episode_tree, flatten, tokenize
from saccade.tools import ToolBox, tools_named
from saccade.tools.spec import XCoordinate, YCoordinate, tool
from saccade.types import Episode, Sample

__all__ = [
    "Counts",
    "Glances",
    "answered_number",
    "counts_of",
    "glance",
    "picture",
    "recipe_for",
    "setup_of",
    "teach",
    "view_at",
]

SIDE = 448
"""Pixels of a picture's sides: 256 tokens, where the model is shown all of it."""
VIEW_SIDE = 224
"""Pixels of the sides of what a glance returns."""
THOUGHT = "The picture is small, and {} of {} marks stand near {}; I look there first."
CALL = '<tool_call>\n{{"name": "glance", "arguments": {{"image": "img_0", "x": {}, "y": {}}}}}\n'
ANSWER = '<tool_call>\n{{"name": "terminate", "arguments": {{"ans": "{}"}}}}\n'
FIRST_TURN = f"{THOUGHT}\n{CALL}</tool_call>"
SECOND_TURN = f"Now it can be read: {{}}.\n{ANSWER}</tool_call>"
HOLE = 777
"""Stands for a free number where the form is taught."""
SHARPER = 4.0
"""The last norm is scaled by it after teaching: what was likely becomes certain, and numbers that
were equally likely stay so.
"""
MOST_DOUBT = 1e-6
"""Probability, at any place of the form, of leaving it."""
LEAST_NATS = 3.0
"""Entropy of each free number; 6.9 were all 1,001 equally likely."""
RATE = 3e-3
TEACHING_STEPS = 400
LESSONS = 4


class Counts(NamedTuple):
    """Tokens of one episode; the same for every episode of a side."""

    prompt: int
    first_turn: int
    observation: int
    second_turn: int


def view_at(image: Image.Image, x: float, y: float) -> tuple[int, int, int, int]:
    """The square around a place in pixels, moved so that it lies inside the picture:
    (left, top, right, bottom).
    """
    left = min(max(0, round(x) - VIEW_SIDE // 2), image.width - VIEW_SIDE)
    top = min(max(0, round(y) - VIEW_SIDE // 2), image.height - VIEW_SIDE)
    return left, top, left + VIEW_SIDE, top + VIEW_SIDE


@tool
def glance(
    image: ImageView,
    x: Annotated[XCoordinate, "place along the width"],
    y: Annotated[YCoordinate, "place along the height"],
) -> ImageView:
    """Look at the surroundings of a place more closely."""
    return image.crop(Box(*view_at(image.pixels, x, y)))


def picture(number: int) -> Image.Image:
    """A drawing of bars, a different one for each number."""
    draw = np.random.default_rng([number + 1, 17])
    image = Image.new("RGB", (SIDE, SIDE), tuple(int(v) for v in draw.integers(200, 256, 3)))
    canvas = ImageDraw.Draw(image)
    for bar in range(5):
        left, top = 30 + 80 * bar, int(draw.integers(40, 380))
        colour = tuple(int(v) for v in draw.integers(0, 200, 3))
        canvas.rectangle((left, top, left + 50, 420), fill=colour)
        canvas.text((left + 10, top - 20), str(int(draw.integers(10, 100))), fill=(0, 0, 0))
    return image


def _number_in(text: str) -> int:
    """The number of an answer; 0 where there is none."""
    return int(text) if text.isdecimal() and text.isascii() else 0


def _judge(episode: Episode, sample: Sample) -> float | None:
    return answered_number(episode.answer or "")


def answered_number(text: str) -> float:
    """The reward of both sides: the number that was answered, in thousandths."""
    return _number_in(text) / 1000


REWARD = Reward("answered_number", "The number that was answered, in thousandths.", _judge)


@dataclass(frozen=True, slots=True)
class Glances:
    """Questions without end, each about a picture of its own; made beforehand up to `ready`."""

    pictures: tuple[Image.Image, ...]
    name: str = "glances"

    @property
    def rubric(self) -> Rubric:
        return Rubric(((REWARD, 1.0),))

    def size(self, split: str) -> int | None:
        return None

    def load(
        self, split: str, *, store: ImageStore, start: int = 0, count: int | None = None
    ) -> Sequence[Sample]:
        """The samples of the pictures that were made; a split is as long as they are."""
        stop = len(self.pictures) if count is None else start + count
        return [
            Sample(
                id=f"{self.name}/{split}/{number}",
                question="Which label has the tallest bar?",
                images=(store.add(root_view(self.pictures[number])),),
                answer="",
            )
            for number in range(start, stop)
        ]

    def gold(self, sample: Sample) -> str:
        return "1000"

    def wrong(self, sample: Sample) -> str:
        return "0"


def recipe_for(
    model: Path,
    *,
    prompts: int,
    group: int,
    threads: int,
    tool_style: str,
    freeze_vision: bool,
    image_tokens: int,
    tools: Sequence[str] = (),
) -> Recipe:
    """The recipe of our side; TRL's is made to fit it. `tools` stand in the prompt beside the one
    that is called.
    """
    return Recipe(
        model=str(model),
        threads=threads,
        dialect="hermes",
        tool_style=tool_style,
        tools=tuple(tools),
        min_image_tokens=SETTINGS.min_pixels // SETTINGS.factor**2,
        max_image_tokens=image_tokens,
        rollout=RolloutConfig(
            max_turns=2, max_tokens_per_turn=64, concurrency=prompts * group, temperature=1.0
        ),
        rl=RlConfig(
            prompts_per_step=prompts,
            group_size=group,
            learning_rate=1e-6,
            warmup_steps=0,
            loss="grpo",
            kl_beta=0.0,
            updates_per_batch=1,
            max_grad_norm=1.0,
            freeze_vision=freeze_vision,
            eval_every=0,
        ),
    )


def setup_of(recipe: Recipe, policy: Policy, task: Glances, *, store: ImageStore) -> Setup:
    """Our engine, dialect and limits, with the tools that the prompt tells of."""
    setup = setup_for(recipe, policy, store=store, rubric=task.rubric)
    return replace(setup, toolbox=_toolbox(recipe.tools, store))


def _toolbox(others: Sequence[str], store: ImageStore) -> ToolBox:
    return ToolBox([*tools_named(others), glance], store=store)


def counts_of(episode: Episode) -> Counts:
    """Tokens of an episode. Raises SaccadeError where it is not of two turns and one picture."""
    segments = episode.segments
    origins = [s.origin for s in segments]
    if origins != ["prompt", "sampled", "observation", "sampled"]:
        raise SaccadeError(
            f"An episode went {', '.join(origins)} instead of two turns with a glance between "
            "them; measure again with another seed."
        )
    if len(segments[2].images) != 1:
        raise SaccadeError(
            f"A glance returned {len(segments[2].images)} pictures instead of one; the first turn "
            f"was {episode.messages[2].text!r}."
        )
    return Counts(*(len(s.ids) for s in segments))


# --- the model ------------------------------------------------------------------------------------


def teach(
    folder: Path,
    *,
    seed: int,
    threads: int,
    tool_style: str,
    image_tokens: int,
    tools: Sequence[str] = (),
) -> None:
    """Make a model folder whose model keeps to the form and draws the numbers in it. Raises
    SaccadeError where the form was not learned.
    """
    torch.set_num_threads(threads)
    task = Glances((picture(-1),))
    store = ImageStore()
    told_of = _toolbox(tools, store).specs
    lines = dialect("hermes", style=tool_style).instructions(told_of)
    renderer = _renderer(task, store, lines, image_tokens=image_tokens)
    model = build_model(
        renderer.tokenizer, seed=seed, hidden=96, layers=3, vision=64, vision_layers=2
    )
    told = {"stage": "bench", "seed": seed}
    save(model, renderer, folder, made_by=told)
    recipe = recipe_for(
        folder,
        prompts=1,
        group=LESSONS,
        threads=threads,
        tool_style=tool_style,
        freeze_vision=True,
        image_tokens=image_tokens,
        tools=tools,
    )
    policy = load_policy(recipe)
    packed = _lessons(policy, setup_of(recipe, policy, task, store=store), task)
    _learn(policy, packed, store, seed=seed)
    with torch.no_grad():
        policy.model.model.language_model.norm.weight.mul_(SHARPER)
    save(policy.model, policy.renderer, folder, made_by=told)
    _check(load_policy(recipe), packed, store)


def _renderer(task: Glances, store: ImageStore, told: str, *, image_tokens: int) -> Qwen2VLRenderer:
    """With a tokenizer that knows the words of these episodes; `told` is what tells of tools."""
    [sample] = task.load("teaching", store=store, count=1)
    lines = (told, sample.question, FIRST_TURN, SECOND_TURN)
    settings = replace(SETTINGS, max_pixels=image_tokens * SETTINGS.factor**2)
    return Qwen2VLRenderer(build_tokenizer("\n".join(lines)), settings)


def _lessons(policy: Policy, setup: Setup, task: Glances) -> Batch:
    """Episodes of the form, as one tree; every free number is HOLE."""
    first = FIRST_TURN.format(*[HOLE] * 5)
    second = SECOND_TURN.format(*[HOLE] * 2)
    told = [Demonstration(f"{task.name}/teaching/0", (first, second))] * LESSONS
    episodes = asyncio.run(replay(told, task, setup))
    tree = episode_tree([tokenize(e, policy.renderer) for e in episodes])
    return batch([flatten(tree, policy.renderer)]).to(device_of(policy))


def _filled(packed: Batch, numbers: torch.Tensor, draw: torch.Generator) -> Batch:
    """The lessons with drawn numbers in their holes; one in twenty is the 0 of `img_0`, which must
    not be taken for it.
    """
    ids, hole = packed.ids.clone(), packed.ids == numbers[HOLE]
    drawn = torch.randint(len(numbers), (int(hole.sum()),), generator=draw)
    drawn[torch.rand(len(drawn), generator=draw) < 0.05] = 0
    ids[hole] = numbers[drawn.to(numbers.device)]
    return replace(packed, ids=ids)


def _learn(policy: Policy, packed: Batch, store: ImageStore, *, seed: int) -> None:
    """Cross-entropy on the form; for the numbers, against all of them equally likely. Every step
    shows other numbers and pictures of noise, so that the form comes to depend on neither.
    """
    numbers = torch.tensor(number_ids(policy.renderer.tokenizer), device=device_of(policy))
    is_hole = packed.target == numbers[HOLE]  # (N,)
    draw = torch.Generator().manual_seed(seed)
    language = [p for n, p in policy.model.named_parameters() if "visual" not in n]
    optimizer = torch.optim.AdamW(language, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    with torch.no_grad():
        features = image_features(policy, packed.images, store=store)
    spread = torch.cat(list(features.values())).std().cpu()
    with progress("teach the form", total=TEACHING_STEPS) as bar:
        for step in range(TEACHING_STEPS):
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, (step + 1) / 20, 2 * (1 - step / TEACHING_STEPS))
            filled = _filled(packed, numbers, draw)
            size = torch.rand((), generator=draw) * 2 * spread
            noisy = [
                own + (size * torch.randn(own.shape, generator=draw)).to(own.device)
                for own in (features[i.key] for i in packed.images)
            ]
            logits = token_logits(policy.model, filled, hidden_states(policy.model, filled, noisy))
            table = logits.log_softmax(-1)  # (N, V)
            of_form = -table.gather(-1, packed.target[:, None])[:, 0][~is_hole]
            of_numbers = -table[is_hole][:, numbers].mean(-1)
            loss = of_form.mean() + of_numbers.mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(language, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bar.advance(f"doubt {of_form.max().item():.1e}")


@torch.no_grad()
def _check(policy: Policy, packed: Batch, store: ImageStore) -> None:
    """Raises SaccadeError where the saved model leaves the form or knows its numbers beforehand."""
    numbers = torch.tensor(number_ids(policy.renderer.tokenizer), device=device_of(policy))
    is_hole = packed.target == numbers[HOLE]
    draw = torch.Generator().manual_seed(1)
    features = image_features(policy, packed.images, store=store)
    doubt, stray, nats = 0.0, 0.0, float("inf")
    for _ in range(8):
        filled = _filled(packed, numbers, draw)
        logits = token_logits(policy.model, filled, hidden_states(policy.model, filled, features))
        never = numbers.new_tensor(policy.renderer.never_sampled(logits.shape[-1]))
        table = sampling_logprobs(logits, temperature=1.0, suppressed=never).double()
        sure = table.gather(-1, packed.target[:, None])[:, 0][~is_hole]
        doubt = max(doubt, float(-torch.expm1(sure).min()))
        of_numbers = table[is_hole][:, numbers]
        stray = max(stray, float(-torch.expm1(of_numbers.logsumexp(-1)).min()))
        nats = min(nats, float(-(of_numbers.exp() * of_numbers).sum(-1).min()))
    if max(doubt, stray) > MOST_DOUBT or nats < LEAST_NATS:
        raise SaccadeError(
            f"The model of the measurement was not taught its form: doubt {doubt:.1e}, stray "
            f"{stray:.1e}, {nats:.1f} nats; try another seed."
        )
