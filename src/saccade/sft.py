"""Supervised fine-tuning on episodes: the cold start of a policy.

Invariant: loss on every turn of the model and on nothing else, by the token road that RL uses. The
order of batches is a function of seed and epoch, so that a killed run goes on where it stopped.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from saccade.assemble import (
    Policy,
    check_same_start,
    data_file,
    device_of,
    image_features,
    load_policy,
    made_by,
    model_folder,
    setup_for,
    task_of,
)
from saccade.config import Recipe
from saccade.errors import RecipeError
from saccade.image_store import ImageStore
from saccade.losses import clip_gradients
from saccade.models.checkpoint import load_state
from saccade.models.chosen import chosen_logprobs
from saccade.models.forward import predicting_states, vision_parts
from saccade.models.tiny import save
from saccade.progress import progress
from saccade.recipe_files import check_same_run, dump_recipe
from saccade.run_folder import RunFolder
from saccade.synth.replay import Demonstration, read_demonstrations, replay
from saccade.tokens import Pack, Tree, flatten, pack, tokenize

__all__ = ["run", "trainable"]

PICTURES_PER_PASS = 64
"""Pictures in one forward pass of a frozen vision tower."""


def run(recipe: Recipe) -> Path:
    """Fine-tune the recipe's model on its demonstrations and return the folder of the result."""
    config = recipe.sft
    policy = load_policy(recipe)
    store = ImageStore()
    setup = setup_for(recipe, policy, store=store)
    demonstrations = _drawn(
        read_demonstrations(data_file(config.demonstrations)), config.count, seed=recipe.seed
    )
    episodes = asyncio.run(replay(demonstrations, task_of(recipe), setup))
    tokenized = [tokenize(e, policy.renderer) for e in episodes]
    flats = [flatten(Tree(e.segments[:1], (e.segments[1:],)), policy.renderer) for e in tokenized]
    optimizer = torch.optim.AdamW(
        trainable(policy.model, freeze_vision=config.freeze_vision),
        lr=config.learning_rate,
        betas=(0.9, 0.98),
        weight_decay=config.weight_decay,
    )
    frozen = None
    if config.freeze_vision:
        frozen = {}
        pictures = list({i.key: i for f in flats for i in f.images}.values())
        with torch.no_grad(), progress("sft: pictures", total=len(pictures)) as bar:
            for at in range(0, len(pictures), PICTURES_PER_PASS):
                part = pictures[at : at + PICTURES_PER_PASS]
                frozen |= image_features(policy, part, store=store)
                bar.advance(by=len(part))
    per_epoch = math.ceil(len(flats) / config.batch_size)
    steps = config.steps or per_epoch * config.epochs
    with RunFolder(recipe.run or Path("runs/sft")) as folder:
        check_same_run(folder.recipe(), recipe, stage="sft")
        check_same_start(folder, recipe, stage="sft")
        folder.write_recipe(dump_recipe(recipe))
        folder.write_env(threads=recipe.threads)
        step = resume(folder, policy.model, optimizer)
        with progress("sft", total=steps, done=step) as bar:
            while step < steps:
                began = time.monotonic()
                chosen = _batch_of(step, len(flats), config.batch_size, seed=recipe.seed)
                rate = config.learning_rate * _rate_factor(step, steps, config.warmup_steps)
                packed = pack([flats[i] for i in chosen]).to(device_of(policy))
                features = frozen or image_features(policy, packed.images, store=store)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                row = _step(policy, packed, features, optimizer, config.max_grad_norm)
                step += 1
                row |= {
                    "tokens": len(packed.target),
                    "epoch": step / per_epoch,
                    "seconds": time.monotonic() - began,
                }
                folder.append("metrics", {"stage": "sft", "step": step, **row})
                bar.advance(f"loss {row['loss']:.3f}")
                if step % config.checkpoint_every == 0 or step == steps:
                    checkpoint(folder, step, policy.model, optimizer)
        told = made_by(recipe, stage="sft", start=recipe.model)
        save(
            policy.model,
            policy.renderer,
            folder.path / "model",
            made_by=told,
            source=model_folder(recipe.model),
        )
    return folder.path / "model"


def _drawn(
    demonstrations: list[Demonstration], count: int | None, *, seed: int
) -> list[Demonstration]:
    """As many of them as asked for, drawn by the seed, in the order of the file."""
    if count is None:
        return demonstrations
    if count > len(demonstrations):
        raise RecipeError(
            f"sft.count must be at most the {len(demonstrations)} demonstrations of the file, "
            f"got {count}."
        )
    chosen = np.random.default_rng([seed, 17]).permutation(len(demonstrations))[:count]
    return [demonstrations[i] for i in sorted(chosen)]


def trainable(model: nn.Module, *, freeze_vision: bool) -> list[nn.Parameter]:
    """The parameters to train; a frozen vision tower stops asking for gradients."""
    model.requires_grad_(True)
    if freeze_vision:
        for part in vision_parts(model):
            part.requires_grad_(False)
    return [p for p in model.parameters() if p.requires_grad]


def _step(
    policy: Policy,
    packed: Pack,
    features: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
    max_grad_norm: float,
) -> dict[str, float]:
    """One optimiser step on the mean loss of all taught tokens."""
    chosen = chosen_logprobs(
        predicting_states(policy.model, packed, features),
        policy.model.lm_head.weight,
        packed.target,
        temperature=1.0,
        suppressed=None,
    )
    loss = -chosen.logprobs.mean()
    loss.backward()
    norm = clip_gradients(policy.model.parameters(), max_grad_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    right = (chosen.likeliest == packed.target).float().mean()
    return {"loss": loss.item(), "grad_norm": norm, "right_tokens": right.item()}


def _batch_of(step: int, count: int, size: int, *, seed: int) -> list[int]:
    """Indices of batch `step`: each epoch is its own permutation, and all of it is used."""
    per_epoch = math.ceil(count / size)
    epoch, at = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch, 11]).permutation(count)
    return [int(i) for i in order[at * size : (at + 1) * size]]


def _rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a half cosine to a tenth."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * done))


def checkpoint(
    folder: RunFolder, step: int, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Weights and optimiser of a step, whole or not at all."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    folder.save_checkpoint(step, lambda path: torch.save(state, path / "state.pt"))


def resume(folder: RunFolder, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Take up the last whole checkpoint, if any, and forget what was logged after it; the step to
    go on from.
    """
    latest = folder.latest_checkpoint()
    step = 0
    if latest is not None:
        step, path = latest
        state = load_state(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    for name in ("metrics", "episodes"):
        # without a checkpoint all is done again, what was measured before the first step too
        folder.truncate(name, key="step", after=-1 if latest is None else step)
    return step
