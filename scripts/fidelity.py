"""Do engine and training mean the same? Sampled episodes, measured against the invariants.

For several temperatures: logprobs of the engine against those of the training forward on the packed
episodes; every sampled id trained and no observation id; pads equal features; pictures of tools in
the sequence; the same episodes one at a time draw the same ids.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import replace

import torch

from saccade.assemble import Policy, image_features, load_policy, setup_for, task_of
from saccade.cli import recipe_path
from saccade.config import Recipe, load_recipe
from saccade.engines import Sampling
from saccade.image_store import ImageStore
from saccade.models.qwen2vl import hidden_states, sampling_logprobs, token_logits
from saccade.rollout import rollout
from saccade.tokens import batch, episode_tree, flatten
from saccade.types import Episode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="charts-tiny")
    parser.add_argument("--model", default="saccade-tiny")
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--alone", type=int, default=50, help="episodes repeated one at a time")
    given = parser.parse_args()
    recipe = load_recipe(recipe_path(given.recipe), [f"model={given.model}"])
    policy = load_policy(recipe)
    temperatures = (1.0, 0.7, 1.3)
    group = 4
    prompts = -(-given.episodes // (group * len(temperatures)))
    found = [
        measured(recipe, policy, t, prompts=prompts, group=group, alone=given.alone // 3)
        for t in temperatures
    ]
    print(json.dumps({"temperatures": temperatures, **joined(found)}, indent=1))


def measured(
    recipe: Recipe, policy: Policy, temperature: float, *, prompts: int, group: int, alone: int
) -> dict[str, float]:
    store = ImageStore()
    setup = setup_for(recipe, policy, store=store)
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
    same, gap = compared(recipe, policy, samples[: max(1, alone)], sampling, episodes, group, store)
    return {
        "episodes": len(episodes),
        "largest_logprob_difference": worst,
        "sampled_ids": sampled,
        "trained_ids": trained,
        "trained_observation_ids": observed,
        "pads": pads,
        "features": features,
        "tool_images_in_sequence": views,
        "repeated_alone": same[1],
        "same_ids_alone": same[0],
        "largest_logprob_difference_alone": gap,
    }


def compared(
    recipe: Recipe,
    policy: Policy,
    samples: list,
    sampling: Sampling,
    together: list[Episode],
    group: int,
    store: ImageStore,
) -> tuple[tuple[int, int], float]:
    """The first rollout of each sample again, alone in its batch: how many drew the same ids."""
    setup = setup_for(recipe, policy, store=store)
    same, gap = 0, 0.0
    for k, sample in enumerate(samples):
        [alone] = asyncio.run(rollout([sample], replace(setup), sampling=sampling))
        first = together[k * group]
        if [s.ids for s in alone.segments] != [s.ids for s in first.segments]:
            continue
        same += 1
        for a, b in zip(alone.segments, first.segments, strict=True):
            gap = max([gap, *(abs(x - y) for x, y in zip(a.logprobs, b.logprobs, strict=True))])
    return (same, len(samples)), gap


def joined(found: list[dict[str, float]]) -> dict[str, float]:
    return {
        k: max(f[k] for f in found) if k.startswith("largest") else sum(f[k] for f in found)
        for k in found[0]
    }


if __name__ == "__main__":
    main()
