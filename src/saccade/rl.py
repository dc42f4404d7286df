"""V-ToolRL: group-relative policy optimisation on multi-turn image episodes.

Invariant: the ids we train on are the ids that were sampled, in the same order, never
re-tokenised; their old logprobs are those that the engine drew them with. Episodes that ended by
our own failure are neither scored nor trained. A step is a function of the weights, the recipe and
the step's number.

Left out on purpose: a value network, replay of old rollouts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from saccade.assemble import (
    Policy,
    check_same_start,
    device_of,
    image_features,
    load_policy,
    made_by,
    model_folder,
    setup_for,
    task_of,
)
from saccade.atomic_files import replacing
from saccade.config import Recipe, RlConfig
from saccade.engines import Sampling
from saccade.engines.torch import TorchEngine
from saccade.episode_json import episode_to_json
from saccade.errors import RecipeError, SaccadeError
from saccade.image_store import ImageStore
from saccade.losses import (
    SAME_REWARD,
    PolicyLoss,
    clip_gradients,
    group_advantages,
    policy_loss,
)
from saccade.models.checkpoint import load_state
from saccade.models.chosen import Chosen, chosen_logprobs
from saccade.models.forward import attention_over, predicting_states
from saccade.models.tiny import save
from saccade.models.trees import TreeAttention
from saccade.observing import partners_among
from saccade.progress import progress
from saccade.recipe_files import check_same_run, dump_recipe
from saccade.rewards import Reward, Rubric, judge_reward, per_turn, reward_named
from saccade.rewards.grounded import boxes_of
from saccade.rollout import Failures, Setup, check_room, rollout
from saccade.run_folder import RunFolder
from saccade.sft import checkpoint, resume, trainable
from saccade.tasks import Task, stream
from saccade.tokens import Flat, Pack, episode_tree, flatten, pack
from saccade.types import Episode, Group, Sample, StopReason
from saccade.validation import shares_of_boxes, tool_rows, validate

__all__ = [
    "Rollouts",
    "TrainedGroup",
    "advantages_by_turn",
    "publish",
    "rubric_of",
    "run",
    "sample_step",
    "update",
]

Features = Mapping[str, torch.Tensor]
"""Features (tokens, D) of images by key."""
Prompts = list[tuple[Sample, int]]
"""Samples, each with the number of times that it came before."""
TOKENS_PER_PASS = 2048
"""Of a forward and backward pass, at most, unless one group has more."""
BEST = "best"
"""Folder of the best weights so far, under `keep: best`."""
TURN_WEIGHT = 0.5
"""Of the tool outcomes beside the answer, where `credit: turn`."""


@dataclass(frozen=True, slots=True)
class TrainedGroup:
    """Scored episodes of one prompt with the advantage of each turn of each."""

    episodes: tuple[Episode, ...]
    advantages: tuple[tuple[float, ...], ...]
    """For each episode, one for each turn of the model."""

    @property
    def is_informative(self) -> bool:
        return any(a != 0.0 for turns in self.advantages for a in turns)


@dataclass(frozen=True, slots=True)
class Rollouts:
    """What one step sampled: everything that is counted, and the groups that can be trained."""

    episodes: tuple[Episode, ...]
    groups: tuple[TrainedGroup, ...]
    dropped: int
    """Groups with fewer than two scored episodes, or of which nothing is to be learned."""
    agreeing: int
    """Groups whose rewards are all equal: nothing to learn from, counted and not hidden."""
    prompts: int
    """Prompts that were drawn: more than asked for under dynamic sampling."""


def run(recipe: Recipe) -> Path:
    """Train the recipe's model with rewards, or go on with it; returns the folder of the result."""
    return asyncio.run(_run(recipe))


async def _run(recipe: Recipe) -> Path:
    config = recipe.rl
    if recipe.rollout.temperature == 0:
        raise RecipeError(
            "rl needs rollout.temperature above 0 to compare rollouts, got 0: set it to 1.0."
        )
    policy = load_policy(recipe)
    reference = None
    if config.kl_beta > 0:
        reference = load_policy(recipe, model=config.reference or recipe.model)
        reference.model.requires_grad_(False)
    store = ImageStore()
    setup = setup_for(recipe, policy, store=store, rubric=rubric_of(config))
    setup = replace(setup, failures=Failures())
    task = task_of(recipe)
    optimizer = torch.optim.AdamW(
        trainable(policy.model, freeze_vision=config.freeze_vision),
        lr=config.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=config.weight_decay,
    )
    with RunFolder(recipe.run or Path("runs/rl")) as folder:
        check_same_run(folder.recipe(), recipe, stage="rl")
        check_same_start(folder, recipe, stage="rl")
        folder.write_recipe(dump_recipe(recipe))
        folder.write_env(threads=recipe.threads)
        if config.eval_every:  # a missing split is found now and not after hours
            task.load("validation", store=store, count=1)
        step = resume(folder, policy.model, optimizer)
        prompts: Prompts = []
        if config.keep == "best" and step == 0:
            await _validate(task, setup, recipe, folder, policy, step=0)
        if step < config.steps:
            prompts = _prompts(task, setup, recipe, step=step)
            check_room(prompts[0][0], setup)
        with progress("rl", total=config.steps, done=step) as bar:
            while step < config.steps:
                began = time.monotonic()
                publish(setup.engine, policy, version=step, same_vision=config.freeze_vision)
                sampled = await sample_step(task, setup, recipe, step=step, prompts=prompts)
                rolled = time.monotonic()
                upcoming = _begin_prompts(task, setup, recipe, step=step + 1)
                rate = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
                frozen = None
                if config.freeze_vision:
                    shown = [i for e in sampled.episodes for i in e.images.values()]
                    frozen = setup.engine.features(shown)  # as the rollout encoded them
                row = update(
                    policy, reference, sampled, store, optimizer, recipe, rate=rate, frozen=frozen
                )
                step += 1
                row |= {
                    **_watched(sampled),
                    "seconds_rollout": rolled - began,
                    "seconds_update": time.monotonic() - rolled,
                }
                folder.append("metrics", {"stage": "rl", "step": step, **row})
                for used in tool_rows(sampled.episodes, setup):
                    folder.append("metrics", {"step": step, **used})
                bar.advance(f"reward {row['reward']:+.2f} calls {row['calls']:.2f}")
                _keep_one(folder, sampled, store, step=step)
                if config.eval_every and step % config.eval_every == 0:
                    await _validate(task, setup, recipe, folder, policy, step=step)
                prompts = await upcoming
                needed = {i.key for sample, _ in prompts for i in sample.images}
                for episode in sampled.episodes:
                    store.forget(i for i in episode.sample.images if i.key not in needed)
                if step % config.checkpoint_every == 0 or step == config.steps:
                    checkpoint(folder, step, policy.model, optimizer)
        if config.keep == "best":
            policy.model.load_state_dict(load_state(folder.path / BEST)["model"])
        told = made_by(recipe, stage="rl", start=recipe.model)
        save(
            policy.model,
            policy.renderer,
            folder.path / "model",
            made_by=told,
            source=model_folder(recipe.model),
        )
    return folder.path / "model"


async def _validate(
    task: Task, setup: Setup, recipe: Recipe, folder: RunFolder, policy: Policy, *, step: int
) -> None:
    """Measure the policy of a step; under `keep: best` also keep its weights if none before it were
    as good.
    """
    publish(setup.engine, policy, version=step, same_vision=recipe.rl.freeze_vision)
    rows = await validate(task, setup, recipe)
    if recipe.rl.keep == "best":
        stored = folder.read("metrics")
        before = [r["accuracy"] for r in stored if r["stage"] == "validation" and r["step"] < step]
        if rows[0]["accuracy"] > max(before, default=-1.0):
            with replacing(folder.path / BEST) as new:
                torch.save({"step": step, "model": policy.model.state_dict()}, new / "state.pt")
    for row in rows:
        folder.append("metrics", {"step": step, **row})


def rubric_of(config: RlConfig) -> Rubric:
    """The recipe's reward, and what single turns earn where `credit: turn`."""
    weights = {config.reward: 1.0} if isinstance(config.reward, str) else config.reward
    terms = [(_reward(name, config), weight) for name, weight in weights.items()]
    if config.credit == "turn":
        terms.append((per_turn, TURN_WEIGHT))
    return Rubric(tuple(terms), None if config.gate is None else _reward(config.gate, config))


def _reward(name: str, config: RlConfig) -> Reward:
    if name != "judge" or config.judge is None:
        return reward_named(name)
    judge = config.judge
    return judge_reward(
        judge.model,
        base_url=judge.base_url,
        cache=judge.cache,
        timeout_s=judge.timeout_s,
        retries=judge.retries,
    )


def publish(engine: Any, policy: Policy, *, version: int, same_vision: bool) -> None:
    """The weights that were just trained are the ones that sample next."""
    policy.model.eval()
    engine.load(policy.model, version, same_vision=same_vision)


def _prompts(task: Task, setup: Setup, recipe: Recipe, *, step: int, attempt: int = 0) -> Prompts:
    """The samples of a step, each with the number of times that it came before. Attempts read on in
    the stream, far from the prompts of other steps.
    """
    config = recipe.rl
    start = (step * _tries(config) + attempt) * config.prompts_per_step
    count = config.prompts_per_step
    return stream(task, "train", store=setup.store, start=start, count=count, seed=recipe.seed)


def _tries(config: RlConfig) -> int:
    return 4 if config.dynamic_sampling else 1


def _begin_prompts(
    task: Task, setup: Setup, recipe: Recipe, *, step: int
) -> asyncio.Future[Prompts]:
    """The samples of a step that comes, made in a thread while something else is computed. A vision
    tower that does not change encodes their pictures there too.
    """

    def make() -> Prompts:
        if step >= recipe.rl.steps:
            return []
        found = _prompts(task, setup, recipe, step=step)
        if recipe.rl.freeze_vision and isinstance(setup.engine, TorchEngine):
            setup.engine.features(i for sample, _ in found for i in sample.images)
        return found

    return asyncio.get_running_loop().run_in_executor(None, make)


async def sample_step(
    task: Task, setup: Setup, recipe: Recipe, *, step: int, prompts: Prompts | None = None
) -> Rollouts:
    """Roll out the prompts of a step (None: read them); under dynamic sampling go on until enough
    groups disagree.
    """
    config = recipe.rl
    sampling = Sampling(recipe.rollout.temperature, recipe.rollout.max_tokens_per_turn)
    episodes: list[Episode] = []
    groups: list[TrainedGroup] = []
    dropped = agreeing = drawn = 0
    for attempt in range(_tries(config)):
        if attempt or prompts is None:
            prompts = _prompts(task, setup, recipe, step=step, attempt=attempt)
        found = await _roll(prompts, setup, recipe, sampling)
        episodes += found
        drawn += len(prompts)
        for group in _grouped(found, config.group_size):
            trained = _advantages(group, config)
            if trained is None:
                dropped += 1
                continue
            agreeing += not trained.is_informative
            if trained.is_informative or not config.dynamic_sampling:
                groups.append(trained)
        if len(groups) >= config.prompts_per_step:
            break
    kept = tuple(groups[: config.prompts_per_step])
    return Rollouts(tuple(episodes), kept, dropped, agreeing, drawn)


async def _roll(
    prompts: Sequence[tuple[Sample, int]], setup: Setup, recipe: Recipe, sampling: Sampling
) -> list[Episode]:
    samples = [sample for sample, _ in prompts]
    return await rollout(
        samples,
        setup,
        partners=partners_among(samples, mode=setup.observation),
        past=[past for _, past in prompts],
        sampling=sampling,
        seed=recipe.seed,
        group_size=recipe.rl.group_size,
        concurrency=recipe.rollout.concurrency,
    )


def _grouped(episodes: Sequence[Episode], size: int) -> list[Group]:
    return [Group(tuple(episodes[i : i + size])) for i in range(0, len(episodes), size)]


CUT_OFF = (StopReason.MAX_TOKENS, StopReason.CONTEXT_FULL)
"""Ends that a budget set, in the middle of what the model would have written."""


def _advantages(group: Group, config: RlConfig) -> TrainedGroup | None:
    """Advantages of the scored members; None where fewer than two were scored, or all of them were
    cut off and those are not learned from.
    """
    scored = tuple(
        e for e in group.episodes if e.turns and e.score is not None and e.score.value is not None
    )
    if len(scored) < 2:
        return None
    if config.credit == "turn":
        found = advantages_by_turn(scored, scale=config.scale_advantages)
    else:
        values_G = torch.tensor([e.score.value for e in scored if e.score], dtype=torch.float64)
        advantages_G = group_advantages(values_G, scale=config.scale_advantages).tolist()
        found = tuple((a,) * len(e.turns) for a, e in zip(advantages_G, scored, strict=True))
    kept = [
        (e, own)
        for e, own in zip(scored, found, strict=True)
        if not (config.mask_truncated and e.stop in CUT_OFF)
    ]
    if not kept:
        return None
    return TrainedGroup(tuple(e for e, _ in kept), tuple(own for _, own in kept))


def advantages_by_turn(
    episodes: Sequence[Episode], *, scale: bool
) -> tuple[tuple[float, ...], ...]:
    """Advantages of single turns: what is still to be earned from a turn on, against the group at
    that turn.

    A turn's own reward is `Score.turns`; the rest of the value is earned at the end. Each turn
    index is centred over the members that reached it, and all are divided by the standard
    deviation of the group's values if `scale`.
    """
    to_go: list[list[float]] = []
    for episode in episodes:
        assert episode.score is not None
        assert episode.score.value is not None
        own = [v or 0.0 for v in episode.score.turns or (None,) * len(episode.turns)]
        end = episode.score.value - sum(own)
        to_go.append([end + sum(own[k:]) for k in range(len(own))])
    totals = [turns[0] for turns in to_go if turns]
    everything = torch.tensor([v for turns in to_go for v in turns], dtype=torch.float64)
    if len(everything) < 2 or (everything.max() - everything.min()).item() < SAME_REWARD:
        return tuple((0.0,) * len(turns) for turns in to_go)
    spread = everything.std().item() + 1e-4 if scale else 1.0
    found: list[tuple[float, ...]] = []
    for turns in to_go:
        centred = []
        for k, value in enumerate(turns):
            peers = [t[k] for t in to_go if len(t) > k]
            peers = peers if len(peers) > 1 else totals  # alone at this turn: against the group
            centred.append((value - sum(peers) / len(peers)) / spread)
        found.append(tuple(centred))
    return tuple(found)


def update(
    policy: Policy,
    reference: Policy | None,
    sampled: Rollouts,
    store: ImageStore,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    *,
    rate: float,
    frozen: Features | None,
) -> dict[str, float | None]:
    """The optimiser steps of one batch of rollouts: `updates_per_batch` passes over all of its
    groups. What was not measured is None.
    """
    config = recipe.rl
    groups = [g for g in sampled.groups if g.is_informative or reference is not None]
    if not groups:
        nothing = dict.fromkeys(("loss", "grad_norm", "kl", "entropy", "clipped", "ratio"))
        return {**nothing, "trained_tokens": 0}
    passes = _passes(groups, policy)
    # groups that agree pull nowhere, but they count: else the rest would weigh more without them
    trained = {id(g) for g in groups}
    idle = [e for g in sampled.groups if id(g) not in trained for e in g.episodes]
    tokens = sum(len(p.packed.target) for p in passes)
    all_episodes = len(idle) + sum(p.episodes for p in passes)
    all_tokens = sum(e.completion_tokens for e in idle) + tokens
    references: list[torch.Tensor | None] = [None] * len(passes)
    if reference is not None:
        # a reference that is the start of this run has the same frozen vision tower
        shared = frozen if config.reference is None else None
        with torch.no_grad():
            references = [_chosen(reference, p, store, recipe, shared).logprobs for p in passes]
    for parameters in optimizer.param_groups:
        parameters["lr"] = rate
    total: dict[str, float] = {}
    for _ in range(config.updates_per_batch):
        total = {}
        for one, expected in zip(passes, references, strict=True):
            chosen = _chosen(policy, one, store, recipe, frozen)
            result = _loss(one, chosen.logprobs, expected, recipe)
            weight = len(one.packed.target) / tokens
            by_token = config.loss in ("dapo", "cispo")
            share = len(one.packed.target) / all_tokens if by_token else one.episodes / all_episodes
            (result.loss * share).backward()
            _add(total, "loss", result.loss.item() * share)
            for name, value in (
                ("kl", result.kl),
                ("clipped", result.clipped),
                ("ratio", result.ratio),
                ("entropy", chosen.entropy.mean()),
            ):
                _add(total, name, value.item() * weight)
        total["grad_norm"] = clip_gradients(policy.model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {
        **total,
        "kl": total["kl"] if reference is not None else None,
        "trained_tokens": tokens * config.updates_per_batch,
    }


def _add(total: dict[str, float], name: str, value: float) -> None:
    total[name] = total.get(name, 0.0) + value


class _Pass(NamedTuple):
    """What one forward and backward pass trains on."""

    packed: Pack
    attention: TreeAttention
    advantages: torch.Tensor
    """(N,)"""
    episode: torch.Tensor
    """(N,) which episode of the pass a token belongs to."""
    episodes: int


def _passes(groups: Sequence[TrainedGroup], policy: Policy) -> list[_Pass]:
    """Groups packed end to end, as many to a pass as its tokens allow."""
    flats = [flatten(episode_tree(g.episodes), policy.renderer) for g in groups]
    cuts, tokens = [0], 0
    for at, flat in enumerate(flats):
        if tokens + len(flat.ids) > TOKENS_PER_PASS and at > cuts[-1]:
            cuts.append(at)
            tokens = 0
        tokens += len(flat.ids)
    return [
        _pass_of(groups[left:right], flats[left:right], policy)
        for left, right in pairwise([*cuts, len(groups)])
    ]


def _pass_of(groups: Sequence[TrainedGroup], flats: Sequence[Flat], policy: Policy) -> _Pass:
    packed = pack(flats)
    first = np.cumsum([0, *(len(g.episodes) for g in groups)])  # episodes before each group
    turns = [len(t) for g in groups for t in g.advantages]
    before = torch.from_numpy(np.cumsum([0, *turns])[:-1])  # turns before each episode
    by_turn = torch.tensor([a for g in groups for t in g.advantages for a in t])
    episode = torch.from_numpy(first)[packed.tree] + packed.branch
    advantages = by_turn[before[episode] + packed.turn]
    device = device_of(policy)
    packed = packed.to(device)
    attention = attention_over(policy.model, packed)
    return _Pass(packed, attention, advantages.to(device), episode.to(device), int(first[-1]))


def _chosen(
    policy: Policy, one: _Pass, store: ImageStore, recipe: Recipe, seen: Features | None
) -> Chosen:
    """Logprobs and entropy of the trained tokens of a pass under a policy."""
    features = seen or image_features(policy, one.packed.images, store=store)
    weight = policy.model.lm_head.weight
    never = policy.renderer.never_sampled(len(weight))
    return chosen_logprobs(
        predicting_states(policy.model, one.packed, features, attention=one.attention),
        weight,
        one.packed.target,
        temperature=recipe.rollout.temperature,
        suppressed=torch.tensor(never, dtype=torch.long, device=weight.device),
    )


def _loss(
    one: _Pass, logprobs: torch.Tensor, expected: torch.Tensor | None, recipe: Recipe
) -> PolicyLoss:
    config = recipe.rl
    return policy_loss(
        logprobs,
        one.packed.sampled_logprobs,
        one.advantages,
        one.episode,
        episodes=one.episodes,
        kind=config.loss,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        kl_beta=config.kl_beta,
        reference_N=expected,
        max_tokens=recipe.rollout.max_tokens_per_turn * recipe.rollout.max_turns,
    )


def _watched(sampled: Rollouts) -> dict[str, Any]:
    """What a reader wants to see of a step, agreeing groups counted and not hidden."""
    episodes = sampled.episodes
    values = [e.score.value for e in episodes if e.score and e.score.value is not None]
    if not values:
        details = [e.score.detail for e in episodes if e.score and e.score.detail]
        raise SaccadeError(f"No episode of this step could be scored. The first one: {details[0]}.")
    return {
        "reward": sum(values) / len(values),
        "calls": sum(len(e.calls) for e in episodes) / len(episodes),
        "completion_tokens": sum(e.completion_tokens for e in episodes) / len(episodes),
        "turns": sum(len(e.turns) for e in episodes) / len(episodes),
        "informative": 1 - (sampled.agreeing + sampled.dropped) / sampled.prompts,
        "agreeing_groups": sampled.agreeing,
        "prompts": sampled.prompts,
        "dropped_groups": sampled.dropped,
        "unscored": len(episodes) - len(values),
        "stops": _stops(episodes),
        **_boxes(episodes),
    }


def _boxes(episodes: Sequence[Episode]) -> dict[str, float]:
    """What came of the boxes in thoughts; nothing where none was written."""
    shares = shares_of_boxes(episodes)
    if not shares:
        return {}
    written = sum(boxes_of(e).written for e in episodes)
    return {
        "boxes": written / len(episodes),
        "invalid_boxes": shares["invalid"],
        "speck_boxes": shares["specks"],
        "whole_boxes": shares["wholes"],
        "redundant_boxes": shares["redundant"],
    }


def _stops(episodes: Sequence[Episode]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for episode in episodes:
        name = episode.stop.value if episode.stop else "running"
        counts[name] = counts.get(name, 0) + 1
    return counts


def _keep_one(folder: RunFolder, sampled: Rollouts, store: ImageStore, *, step: int) -> None:
    """One episode of every tenth step, for the report."""
    if step % 10 == 1:
        episode = sampled.episodes[0]
        store.save(episode.images.values(), folder.path)
        folder.append("episodes", {"step": step, "arm": "rl", **episode_to_json(episode)})
