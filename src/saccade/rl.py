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
from pathlib import Path
from typing import Any

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
from saccade.config import Recipe, RlConfig, check_same_run, dump_recipe
from saccade.engines import Sampling
from saccade.episode_json import episode_to_json
from saccade.errors import RecipeError, SaccadeError
from saccade.evaluate import row_of
from saccade.image_store import ImageStore
from saccade.losses import (
    SAME_REWARD,
    PolicyLoss,
    clip_gradients,
    group_advantages,
    policy_loss,
)
from saccade.models.qwen2vl import (
    hidden_states,
    sampling_logprobs,
    token_logits,
    token_logprobs,
)
from saccade.models.tiny import save
from saccade.progress import progress
from saccade.rewards import Rubric, per_turn, reward_named
from saccade.rollout import Failures, Setup, rollout
from saccade.run_folder import RunFolder
from saccade.sft import checkpoint, resume, trainable
from saccade.tasks import Task, stream
from saccade.tokens import Batch, batch, episode_tree, flatten
from saccade.types import Episode, Group, Sample

__all__ = ["Rollouts", "TrainedGroup", "advantages_by_turn", "rubric_of", "run"]

Features = Mapping[str, torch.Tensor]
"""Features (tokens, D) of images by key."""
BRANCHES_PER_TREE = 4
"""Rollouts packed behind one copy of their prompt: attention grows with the square of a tree's
length.
"""
TREES_PER_PASS = 4
"""Trees in one forward and backward pass."""
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
    """Groups with fewer than two scored episodes."""
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
        with progress("rl", total=config.steps, done=step) as bar:
            while step < config.steps:
                began = time.monotonic()
                _publish(setup.engine, policy, version=step, same_vision=config.freeze_vision)
                sampled = await _sample(task, setup, recipe, step=step)
                rolled = time.monotonic()
                rate = config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
                frozen = None
                if config.freeze_vision:
                    shown = [i for e in sampled.episodes for i in e.images.values()]
                    frozen = setup.engine.features(shown)  # as the rollout encoded them
                row = _update(
                    policy, reference, sampled, store, optimizer, recipe, rate=rate, frozen=frozen
                )
                step += 1
                row |= {
                    **_watched(sampled),
                    "seconds_rollout": rolled - began,
                    "seconds_update": time.monotonic() - rolled,
                }
                folder.append("metrics", {"stage": "rl", "step": step, **row})
                bar.advance(f"reward {row['reward']:+.2f} calls {row['calls']:.2f}")
                _keep_one(folder, sampled, store, step=step)
                if config.eval_every and step % config.eval_every == 0:
                    _publish(setup.engine, policy, version=step, same_vision=config.freeze_vision)
                    folder.append("metrics", await _validate(task, setup, recipe, step=step))
                for episode in sampled.episodes:
                    store.forget(episode.sample.images)
                if step % config.checkpoint_every == 0 or step == config.steps:
                    checkpoint(folder, step, policy.model, optimizer)
        told = made_by(recipe, stage="rl", start=recipe.model)
        save(
            policy.model,
            policy.renderer,
            folder.path / "model",
            made_by=told,
            source=model_folder(recipe.model),
        )
    return folder.path / "model"


def rubric_of(config: RlConfig) -> Rubric:
    """The recipe's reward, and what single turns earn where `credit: turn`."""
    terms = ((reward_named(config.reward), 1.0),)
    return Rubric((*terms, (per_turn, TURN_WEIGHT)) if config.credit == "turn" else terms)


def _publish(engine: Any, policy: Policy, *, version: int, same_vision: bool) -> None:
    """The weights that were just trained are the ones that sample next."""
    policy.model.eval()
    engine.load(policy.model, version, same_vision=same_vision)


async def _sample(task: Task, setup: Setup, recipe: Recipe, *, step: int) -> Rollouts:
    """Roll out the prompts of a step; under dynamic sampling go on until enough groups disagree."""
    config = recipe.rl
    sampling = Sampling(recipe.rollout.temperature, recipe.rollout.max_tokens_per_turn)
    episodes: list[Episode] = []
    groups: list[TrainedGroup] = []
    dropped = agreeing = drawn = 0
    tries = 4 if config.dynamic_sampling else 1
    for attempt in range(tries):
        # attempts read on in the stream, far from the prompts of other steps
        start = (step * tries + attempt) * config.prompts_per_step
        prompts = stream(
            task,
            "train",
            store=setup.store,
            start=start,
            count=config.prompts_per_step,
            seed=recipe.seed,
        )
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
    return await rollout(
        [sample for sample, _ in prompts],
        setup,
        past=[past for _, past in prompts],
        sampling=sampling,
        seed=recipe.seed,
        group_size=recipe.rl.group_size,
        concurrency=recipe.rollout.concurrency,
    )


def _grouped(episodes: Sequence[Episode], size: int) -> list[Group]:
    return [Group(tuple(episodes[i : i + size])) for i in range(0, len(episodes), size)]


def _advantages(group: Group, config: RlConfig) -> TrainedGroup | None:
    """Advantages of the scored members; None where fewer than two were scored."""
    scored = tuple(
        e for e in group.episodes if e.turns and e.score is not None and e.score.value is not None
    )
    if len(scored) < 2:
        return None
    if config.credit == "turn":
        return TrainedGroup(scored, advantages_by_turn(scored, scale=config.scale_advantages))
    values_G = torch.tensor([e.score.value for e in scored if e.score], dtype=torch.float64)
    advantages_G = group_advantages(values_G, scale=config.scale_advantages).tolist()
    return TrainedGroup(
        scored, tuple((a,) * len(e.turns) for a, e in zip(advantages_G, scored, strict=True))
    )


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


def _update(
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
        return dict.fromkeys(("loss", "grad_norm", "kl", "entropy", "clipped", "ratio"))
    packs = _packed(groups, policy)
    # groups that agree pull nowhere, but they count: else the rest would weigh more without them
    idle = [e for g in sampled.groups if g not in groups for e in g.episodes]
    all_episodes = len(idle) + sum(len(g.episodes) for g in groups)
    all_tokens = sum(e.completion_tokens for e in idle) + sum(len(p.target) for p, _ in packs)
    # a reference that is the start of this run has the same frozen vision tower
    shared = frozen if config.reference is None else None
    references = [_reference_logprobs(reference, p, store, recipe, shared) for p, _ in packs]
    for parameters in optimizer.param_groups:
        parameters["lr"] = rate
    total: dict[str, float] = {}
    for _ in range(config.updates_per_batch):
        total = {}
        tokens = sum(len(p.target) for p, _ in packs)
        for (packed, trees), expected in zip(packs, references, strict=True):
            result, entropy, share = _pass(
                policy,
                packed,
                trees,
                expected,
                store,
                recipe,
                all_episodes=all_episodes,
                all_tokens=all_tokens,
                frozen=frozen,
            )
            (result.loss * share).backward()
            weight = len(packed.target) / tokens
            _add(total, "loss", result.loss.item() * share)
            for name, value in (
                ("kl", result.kl),
                ("clipped", result.clipped),
                ("ratio", result.ratio),
                ("entropy", entropy),
            ):
                _add(total, name, value.item() * weight)
        total["grad_norm"] = clip_gradients(policy.model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return {**total, "kl": total["kl"] if reference is not None else None}


def _add(total: dict[str, float], name: str, value: float) -> None:
    total[name] = total.get(name, 0.0) + value


Advantages = tuple[tuple[float, ...], ...]
"""Of each turn of each branch of a tree."""


def _packed(
    groups: Sequence[TrainedGroup], policy: Policy
) -> list[tuple[Batch, tuple[Advantages, ...]]]:
    """Groups as batches of trees of similar length, with the advantages of their branches."""
    trees = []
    for group in groups:
        for at in range(0, len(group.episodes), BRANCHES_PER_TREE):
            part = slice(at, at + BRANCHES_PER_TREE)
            flat = flatten(episode_tree(group.episodes[part]), policy.renderer)
            trees.append((flat, group.advantages[part]))
    trees.sort(key=lambda t: len(t[0].ids))
    packs = []
    for at in range(0, len(trees), TREES_PER_PASS):
        chosen = trees[at : at + TREES_PER_PASS]
        packed = batch([f for f, _ in chosen]).to(device_of(policy))
        packs.append((packed, tuple(b for _, b in chosen)))
    return packs


def _logits(
    policy: Policy, packed: Batch, store: ImageStore, frozen: Features | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, V) of each trained token, and the ids that may not be drawn."""
    features = frozen or image_features(policy, packed.images, store=store)
    logits = token_logits(policy.model, packed, hidden_states(policy.model, packed, features))
    never = policy.renderer.never_sampled(logits.shape[-1])
    return logits, torch.tensor(never, dtype=torch.long, device=logits.device)


@torch.no_grad()
def _reference_logprobs(
    reference: Policy | None,
    packed: Batch,
    store: ImageStore,
    recipe: Recipe,
    frozen: Features | None,
) -> torch.Tensor | None:
    if reference is None:
        return None
    logits, never = _logits(reference, packed, store, frozen)
    temperature = recipe.rollout.temperature
    return token_logprobs(logits, packed.target, temperature=temperature, suppressed=never)


def _pass(
    policy: Policy,
    packed: Batch,
    trees: tuple[Advantages, ...],
    expected: torch.Tensor | None,
    store: ImageStore,
    recipe: Recipe,
    *,
    all_episodes: int,
    all_tokens: int,
    frozen: Features | None,
) -> tuple[PolicyLoss, torch.Tensor, float]:
    """The loss of one pass, its entropy, and the weight of the pass in the batch's loss."""
    config = recipe.rl
    logits, never = _logits(policy, packed, store, frozen)
    table = sampling_logprobs(
        logits, temperature=recipe.rollout.temperature, suppressed=never
    )  # (N, V)
    logprobs = table.gather(-1, packed.target[:, None])[:, 0]
    device = packed.row.device
    first = torch.tensor([0, *[len(t) for t in trees]], device=device).cumsum(0)  # before each tree
    episode = first[packed.row] + packed.branch
    advantages = torch.tensor(
        [
            trees[r][b][t]
            for r, b, t in zip(
                packed.row.tolist(), packed.branch.tolist(), packed.turn.tolist(), strict=True
            )
        ],
        device=device,
    )
    count = int(first[-1])
    result = policy_loss(
        logprobs,
        packed.sampled_logprobs,
        advantages,
        episode,
        episodes=count,
        kind=config.loss,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        kl_beta=config.kl_beta,
        reference_N=expected,
        max_tokens=recipe.rollout.max_tokens_per_turn * recipe.rollout.max_turns,
    )
    finite = table.detach().clamp(min=-100)  # suppressed ids have no probability and no entropy
    entropy = -(finite.exp() * finite).sum(-1).mean()
    by_token = config.loss in ("dapo", "cispo")
    share = len(packed.target) / all_tokens if by_token else count / all_episodes
    return result, entropy, share


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


async def _validate(task: Task, setup: Setup, recipe: Recipe, *, step: int) -> dict[str, Any]:
    """Greedy accuracy on the validation split, by stratum, as a row of the metrics."""
    samples = task.load("validation", store=setup.store, count=recipe.rl.eval_items)
    greedy = Sampling(0.0, recipe.rollout.max_tokens_per_turn)
    episodes = await rollout(
        samples,
        replace(setup, rubric=task.rubric),
        sampling=greedy,
        seed=recipe.seed,
        concurrency=recipe.rollout.concurrency,
    )
    rows = [row_of(e, task.rubric) for e in episodes]
    found: dict[str, Any] = {"stage": "validation", "step": step}
    for name in ("", *sorted({r.stratum for r in rows if r.stratum})):
        chosen = [r for r in rows if not name or r.stratum == name]
        key = f"accuracy_{name}" if name else "accuracy"
        found[key] = sum(bool(r.strict) for r in chosen) / len(chosen)
    found["calls"] = sum(len(e.calls) for e in episodes) / len(episodes)
    return found
