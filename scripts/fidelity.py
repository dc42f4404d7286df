"""Do engine and training mean the same? Sampled episodes, measured against the invariants.

For several temperatures: logprobs of the engine against those of the training forward on the packed
episodes; every sampled id trained and no observation id; pads equal features; pictures of tools in
the sequence; with `--alone`, the same episodes one at a time: how many draw the same ids, and the
largest gaps of their logits and logprobs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from typing import NamedTuple

import torch

from saccade.assemble import Policy, image_features, load_policy, setup_for, task_of
from saccade.cli import recipe_path
from saccade.config import Recipe
from saccade.engines import Sampling
from saccade.image_store import ImageStore
from saccade.models.forward import hidden_states, sampling_logprobs, token_logits
from saccade.recipe_files import load_recipe
from saccade.rollout import Setup, rollout
from saccade.tokens import batch, episode_tree, flatten
from saccade.types import Episode

Logits = dict[tuple[str, int], torch.Tensor]
"""By episode and index of the token drawn from them."""


class Compared(NamedTuple):
    """Episodes played alone, against the same in company."""

    same_ids_alone: int
    turns_alone: int
    largest_logit_difference_alone: float
    largest_logprob_difference_alone: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="charts-tiny")
    parser.add_argument("--model", default="saccade-tiny")
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--alone", type=int, default=64, help="episodes repeated one at a time")
    given = parser.parse_args()
    recipe = load_recipe(recipe_path(given.recipe), [f"model={given.model}"])
    policy = load_policy(recipe)
    temperatures = (1.0, 0.7, 1.3)
    group = 4
    prompts = -(-given.episodes // (group * len(temperatures)))
    found = [
        measured(
            recipe,
            policy,
            t,
            prompts=prompts,
            group=group,
            alone=-(-given.alone // len(temperatures)),
        )
        for t in temperatures
    ]
    print(json.dumps({"temperatures": temperatures, **joined(found)}, indent=1))


def measured(
    recipe: Recipe, policy: Policy, temperature: float, *, prompts: int, group: int, alone: int
) -> dict[str, float]:
    store = ImageStore()
    logits_together: Logits = {}
    setup = watched(setup_for(recipe, policy, store=store), logits_together)
    task = task_of(recipe)
    samples = task.load("validation", store=store, count=prompts)
    sampling = Sampling(temperature, recipe.rollout.max_tokens_per_turn)
    episodes = asyncio.run(rollout(samples, setup, sampling=sampling, group_size=group))
    worst, sampled, trained, observed, pads, features, views = 0.0, 0, 0, 0, 0, 0, 0
    for at in range(0, len(episodes), group):
        members = episodes[at : at + group]
        flat = flatten(episode_tree(members), policy.renderer)
        packed = batch([flat])
        with torch.inference_mode():
            seen = image_features(policy, packed.images, store=store)
            logits = token_logits(policy.model, packed, hidden_states(policy.model, packed, seen))
            unused = range(policy.renderer.vocabulary, logits.shape[-1])
            suppressed = torch.tensor([*policy.renderer.suppressed_ids, *unused])
            table = sampling_logprobs(logits, temperature=temperature, suppressed=suppressed)
        again = table.gather(-1, packed.target[:, None])[:, 0]
        worst = max(worst, (again - packed.sampled_logprobs).abs().max().item())
        sampled += sum(len(s.ids) for e in members for s in e.segments if s.origin == "sampled")
        trained += len(packed.target)
        observed += int(flat.trained[flat.turn < 0].sum())
        pads += int(packed.is_pad.sum())
        features += sum(len(seen[i.key]) for i in packed.images)
        views += sum(len(s.images) for e in members for s in e.segments[1:])
    found = compared(recipe, policy, episodes[:alone], sampling, logits_together, store)
    return {
        "episodes": len(episodes),
        "largest_logprob_difference": worst,
        "sampled_ids": sampled,
        "trained_ids": trained,
        "trained_observation_ids": observed,
        "pads": pads,
        "features": features,
        "tool_images_in_sequence": views,
        "repeated_alone": len(episodes[:alone]),
        **found._asdict(),
    }


def watched(setup: Setup, logits: Logits) -> Setup:
    """The setup, whose engine leaves the logits of every draw in `logits`."""
    setup.engine.before_draw = lambda episode, index, values: logits.update(
        {(episode, index): values.clone()}
    )
    return setup


def compared(
    recipe: Recipe,
    policy: Policy,
    episodes: list[Episode],
    sampling: Sampling,
    logits: Logits,
    store: ImageStore,
) -> Compared:
    """The episodes again, each alone in an engine of its own."""
    same, turns, logit_gap, logprob_gap = 0, 0, 0.0, 0.0
    for together in episodes:
        again: Logits = {}
        setup = watched(setup_for(recipe, policy, store=store), again)
        [alone] = asyncio.run(
            rollout([together.sample], setup, sampling=sampling, past=[together.rollout_index])
        )
        turns += len(alone.turns)
        if [s.ids for s in alone.segments] != [s.ids for s in together.segments]:
            continue
        same += 1
        logit_gap = max(
            [logit_gap, *((v - logits[k]).abs().max().item() for k, v in again.items())]
        )
        for a, b in zip(alone.segments, together.segments, strict=True):
            gaps = (abs(x - y) for x, y in zip(a.logprobs, b.logprobs, strict=True))
            logprob_gap = max([logprob_gap, *gaps])
    return Compared(same, turns, logit_gap, logprob_gap)


def joined(found: list[dict[str, float]]) -> dict[str, float]:
    return {
        k: max(f[k] for f in found) if k.startswith("largest") else sum(f[k] for f in found)
        for k in found[0]
    }


if __name__ == "__main__":
    main()
