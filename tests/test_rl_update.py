"""The update on shared prompts and packed episodes against the plain one: every episode alone in
its row, stock modules, the whole log-softmax.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from PIL import Image

from saccade import rl
from saccade.assemble import Policy, image_features
from saccade.config import Recipe, RlConfig, RolloutConfig
from saccade.geometry import Box
from saccade.image_store import ImageStore
from saccade.images import ImageView, root_view
from saccade.losses import LossKind, policy_loss
from saccade.models import trees
from saccade.models.forward import hidden_states, sampling_logprobs, token_logits
from saccade.models.tiny import SETTINGS, build_model, build_tokenizer
from saccade.models.vision import with_linear_patches
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.tokens import batch, episode_tree, flatten
from saccade.types import Episode, ImageShown, Message, Part, Sample, Segment, Text

KINDS: tuple[LossKind, ...] = get_args(LossKind)
WORDS = "What is the value of red? Look at the blue bar. The green line is higher.\n" * 3
RENDERER = Qwen2VLRenderer(build_tokenizer(WORDS), SETTINGS)
TEMPERATURE = 0.9


def policy(seed: int) -> Policy:
    model = build_model(
        RENDERER.tokenizer, seed=seed, hidden=64, layers=3, vision=32, vision_layers=1
    )
    return Policy(with_linear_patches(model).eval(), RENDERER)


class World:
    """Groups whose prompts begin with a picture, hold one between words, and hold none; branches of
    one to three turns, with pictures between them.
    """

    def __init__(self) -> None:
        self.store = ImageStore()
        self.policy, self.reference = policy(4), policy(5)
        self.reference.model.requires_grad_(False)
        asked = Text("What is the value of red?")
        views = [self.view(n) for n in range(2)]
        prompts: list[tuple[Part, ...]] = [
            (ImageShown(views[0].ref, "img_0"), asked),
            (asked, ImageShown(views[1].ref, "img_0"), Text("Look at the blue bar.")),
            (Text("The green line is higher. Look at the blue bar."), asked),
        ]
        self.groups = [
            self.group(number, parts, views[number % 2]) for number, parts in enumerate(prompts)
        ]
        old = self.table(self.policy, self.episodes)[1]
        noise = torch.from_numpy(np.random.default_rng(3).normal(0, 0.3, len(old)))
        self.groups = self.with_logprobs((old + noise).tolist())

    def view(self, number: int) -> ImageView:
        noise = np.random.default_rng(number).integers(0, 255, (20, 25, 3), np.uint8)
        view = root_view(Image.fromarray(noise).resize((500 + 100 * number, 420)))
        self.store.add(view)
        return view

    def group(self, number: int, parts: Sequence[Part], view: ImageView) -> rl.TrainedGroup:
        rng = np.random.default_rng(number + 7)
        prompt = RENDERER.prompt((Message("user", tuple(parts)),))
        episodes, advantages = [], []
        for rollout in range(3 + number):
            turns = 1 + (rollout + number) % 3
            segments = [prompt]
            for turn in range(turns):
                if turn:
                    crop = view.crop(Box(10 * turn, 20 + rollout, 200 + 50 * rollout, 300))
                    told = (Text("Look: "), ImageShown(self.store.add(crop), f"img_{turn}"))
                    segments.append(RENDERER.observation(Message("tool", told)))
                ids = tuple(int(i) for i in rng.integers(0, 200, rng.integers(1, 9)))
                segments.append(Segment("sampled", ids, (0.0,) * len(ids)))
            images = tuple(i for i in prompt.images)
            sample = Sample(f"sample-{number}", "?", images, "1")
            episodes.append(Episode(sample, rollout, segments=tuple(segments)))
            advantages.append(tuple(rng.normal(0, 1, turns).tolist()))
        return rl.TrainedGroup(tuple(episodes), tuple(advantages))

    @property
    def episodes(self) -> list[Episode]:
        return [e for g in self.groups for e in g.episodes]

    def with_logprobs(self, values: list[float]) -> list[rl.TrainedGroup]:
        left = iter(values)
        groups = []
        for group in self.groups:
            episodes = []
            for episode in group.episodes:
                segments = tuple(
                    replace(s, logprobs=tuple(next(left) for _ in s.ids)) if s.is_trained else s
                    for s in episode.segments
                )
                episodes.append(replace(episode, segments=segments))
            groups.append(replace(group, episodes=tuple(episodes)))
        return groups

    def table(self, of: Policy, episodes: Sequence[Episode]) -> tuple[Any, torch.Tensor]:
        """All episodes, each alone in its padded row, through stock modules: (N,) logprobs."""
        packed = batch([flatten(episode_tree([e]), RENDERER) for e in episodes])
        features = image_features(of, packed.images, store=self.store)
        logits = token_logits(of.model, packed, hidden_states(of.model, packed, features))
        never = torch.tensor(RENDERER.never_sampled(logits.shape[-1]))
        table = sampling_logprobs(logits, temperature=TEMPERATURE, suppressed=never)
        return packed, table.gather(-1, packed.target[:, None])[:, 0]

    def plain(self, kind: LossKind, kl_beta: float) -> tuple[float, Mapping[str, torch.Tensor]]:
        """Loss and gradients of the plain update."""
        model = self.policy.model
        model.zero_grad(set_to_none=True)
        packed, logprobs = self.table(self.policy, self.episodes)
        with torch.no_grad():
            _, expected = self.table(self.reference, self.episodes)
        by_turn = [a for g in self.groups for a in g.advantages]
        advantages = torch.tensor(
            [by_turn[r][t] for r, t in zip(packed.row.tolist(), packed.turn.tolist(), strict=True)]
        )
        result = policy_loss(
            logprobs,
            packed.sampled_logprobs,
            advantages,
            packed.row,
            episodes=len(self.episodes),
            kind=kind,
            kl_beta=kl_beta,
            reference_N=expected if kl_beta else None,
            max_tokens=24,
        )
        result.loss.backward()
        found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        return result.loss.item(), found


class Recorder(torch.optim.SGD):
    """Keeps the gradients of a step, and takes none."""

    def step(self, closure: object = None) -> None:
        self.seen = [
            None if p.grad is None else p.grad.clone() for p in self.param_groups[0]["params"]
        ]


@pytest.fixture(scope="module")
def world() -> World:
    torch.set_num_threads(1)
    return World()


def update(
    world: World, kind: LossKind, kl_beta: float
) -> tuple[dict[str, float | None], dict[str, torch.Tensor]]:
    """Loss and gradients of `rl.update`."""
    recipe = Recipe(
        rollout=RolloutConfig(max_tokens_per_turn=8, max_turns=3, temperature=TEMPERATURE),
        rl=RlConfig(loss=kind, kl_beta=kl_beta, max_grad_norm=1e9, freeze_vision=False),
        max_image_tokens=16,
    )
    named = dict(world.policy.model.named_parameters())
    recorder = Recorder(named.values(), lr=1.0)
    sampled = rl.Rollouts(tuple(world.episodes), tuple(world.groups), 0, 0, len(world.groups))
    row = rl.update(
        world.policy,
        world.reference if kl_beta else None,
        sampled,
        world.store,
        recorder,
        recipe,
        rate=1.0,
        frozen=None,
    )
    seen = {n: g for n, g in zip(named, recorder.seen, strict=True) if g is not None}
    return row, seen


@pytest.mark.parametrize("kl_beta", [0.0, 0.05])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tokens", [1, 10_000])
def test_packed_updates_give_the_loss_and_the_gradients_of_the_plain_one(
    world: World, kind: LossKind, kl_beta: float, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl, "TOKENS_PER_PASS", tokens)  # one group to a pass, and all in one
    loss, gradients = world.plain(kind, kl_beta)
    row, found = update(world, kind, kl_beta)
    assert row["loss"] == pytest.approx(loss, abs=1e-5 * max(1.0, abs(loss)))
    assert found.keys() == gradients.keys()
    assert any("visual" in name for name in found)
    scale = max(float(g.abs().max()) for g in gradients.values())
    assert scale > 1e-3
    for name, gradient in gradients.items():
        gap = float((found[name] - gradient).abs().max())
        assert gap < 1e-5 * scale, (name, gap, scale)


def test_weights_of_attention_that_are_made_again_change_no_gradient(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = update(world, "grpo", 0.0)
    monkeypatch.setattr(trees, "KEPT_SCORES", 0)
    again = update(world, "grpo", 0.0)
    assert kept[0] == again[0]
    assert all(torch.equal(kept[1][name], g) for name, g in again[1].items())


def test_blocks_of_any_size_give_the_same_gradients(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = update(world, "grpo", 0.0)
    monkeypatch.setattr(trees, "BLOCK_ROWS", 1)
    monkeypatch.setattr(trees, "SCORES", 1)
    _, pieces = update(world, "grpo", 0.0)
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, atol=2e-6, rtol=1e-4)


def test_a_pass_holds_what_no_trained_token_is_predicted_from_no_more(world: World) -> None:
    [one] = rl._passes(world.groups, world.policy)
    assert len(one.packed.ids) == sum(
        len(s.ids)
        for g in world.groups
        for s in (g.episodes[0].segments[0], *(s for e in g.episodes for s in e.segments[1:]))
    ) - len(world.episodes)  # the last token of each episode
    assert one.packed.source.max() == len(one.packed.read) - 1
    assert one.episodes == len(world.episodes) == int(one.episode.max()) + 1
