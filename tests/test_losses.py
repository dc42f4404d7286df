"""The objectives against independent references, and where gradients may and may not go."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from saccade.losses import LossKind, PolicyLoss, group_advantages, kl_estimate, policy_loss

KINDS: tuple[LossKind, ...] = get_args(LossKind)
MIN_CLIPPED = ("grpo", "dr_grpo", "dapo")
"""Kinds whose tokens are clipped one by one."""
LOGPROBS = st.floats(-6, 0)


def reference(
    kind: LossKind,
    logprobs: np.ndarray,
    old: np.ndarray,
    advantages: np.ndarray,
    episode: np.ndarray,
    *,
    episodes: int,
    low: float,
    high: float,
    beta: float,
    reference_logprobs: np.ndarray,
    max_tokens: int,
) -> float:
    """The published formulas, token by token, in plain Python."""
    members = [[n for n in range(len(episode)) if episode[n] == e] for e in range(episodes)]
    sums, counts = [], []
    for tokens in members:
        total = 0.0
        if kind == "gspo" and tokens:
            mean = sum(logprobs[n] - old[n] for n in tokens) / len(tokens)
        for n in tokens:
            ratio = math.exp(mean if kind == "gspo" else logprobs[n] - old[n])
            bounded = min(max(ratio, 1 - low), 1 + high)
            if kind == "cispo":
                gain = bounded * advantages[n] * logprobs[n]
            else:
                gain = min(ratio * advantages[n], bounded * advantages[n])
            gap = reference_logprobs[n] - logprobs[n]
            total += gain - beta * (math.exp(gap) - gap - 1)
        sums.append(total)
        counts.append(len(tokens))
    if kind in ("grpo", "gspo"):
        return -sum(s / c for s, c in zip(sums, counts, strict=True) if c) / episodes
    if kind == "dr_grpo":
        return -sum(sums) / (episodes * max_tokens)
    return -sum(sums) / sum(counts)


def draw_batch(seed: int, episodes: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 7, episodes)
    lengths[rng.integers(episodes)] = 5  # never an empty batch
    episode = rng.permutation(np.repeat(np.arange(episodes), lengths))
    count = len(episode)
    old = rng.uniform(-4, -0.2, count)
    return {
        "logprobs": old + rng.normal(0, 0.4, count),
        "old": old,
        "advantages": rng.normal(0, 1, episodes)[episode],
        "episode": episode,
        "reference": old + rng.normal(0, 0.3, count),
    }


def tensors(drawn: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(values) for name, values in drawn.items()}


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10_000), episodes=st.integers(1, 6), beta=st.sampled_from([0.0, 0.3]))
@settings(deadline=None, max_examples=40)
def test_every_kind_equals_its_published_formula(
    kind: LossKind, seed: int, episodes: int, beta: float
) -> None:
    drawn = draw_batch(seed, episodes)
    t = tensors(drawn)
    found = policy_loss(
        t["logprobs"],
        t["old"],
        t["advantages"],
        t["episode"],
        episodes=episodes,
        kind=kind,
        clip_low=0.15,
        clip_high=0.35,
        kl_beta=beta,
        reference_N=t["reference"],
        max_tokens=9,
    )
    wanted = reference(
        kind,
        drawn["logprobs"],
        drawn["old"],
        drawn["advantages"],
        drawn["episode"],
        episodes=episodes,
        low=0.15,
        high=0.35,
        beta=beta,
        reference_logprobs=drawn["reference"],
        max_tokens=9,
    )
    assert found.loss.item() == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    gap = drawn["reference"] - drawn["logprobs"]
    assert found.kl.item() == pytest.approx((np.exp(gap) - gap - 1).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_before_the_first_update_the_gradient_is_the_plain_policy_gradient(kind: LossKind) -> None:
    t = tensors(draw_batch(3, 4))
    logprobs = t["old"].clone().requires_grad_()
    found = policy_loss(
        logprobs,
        t["old"],
        t["advantages"],
        t["episode"],
        episodes=4,
        kind=kind,
        max_tokens=9,
    )
    found.loss.backward()
    lengths = torch.bincount(t["episode"], minlength=4)[t["episode"]]
    share = {
        "grpo": 1 / (lengths * 4),
        "gspo": 1 / (lengths * 4),
        "dr_grpo": torch.full_like(t["old"], 1 / (4 * 9)),
        "dapo": torch.full_like(t["old"], 1 / len(lengths)),
        "cispo": torch.full_like(t["old"], 1 / len(lengths)),
    }[kind]
    torch.testing.assert_close(logprobs.grad, -t["advantages"] * share)
    assert found.ratio.item() == pytest.approx(1)
    assert found.clipped.item() == 0


class TwoUpdates:
    """A small linear policy after one large step on a batch that it is then trained on again."""

    def __init__(self) -> None:
        torch.manual_seed(5)
        self.policy = nn.Linear(6, 4).double()
        # pairs of the same state and action with different advantages, so that ratios also move
        # against the sign of the advantage
        self.states = torch.randn(40, 6, dtype=torch.double).repeat(2, 1)
        self.actions = torch.randint(0, 4, (40,)).repeat(2)
        self.advantages = torch.cat([torch.full((40,), 1.0), torch.full((40,), -0.4)]).double()
        flip = torch.arange(80) % 40 < 20
        self.advantages[flip] *= -1
        self.episode = torch.arange(80) // 8
        with torch.no_grad():
            self.old = self.logprobs()
        optimizer = torch.optim.SGD(self.policy.parameters(), lr=4.0)
        self.loss(self.logprobs(), kind="dapo").loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def logprobs(self) -> torch.Tensor:
        return self.policy(self.states).log_softmax(-1).gather(1, self.actions[:, None])[:, 0]

    def loss(self, logprobs: torch.Tensor, **options: object) -> PolicyLoss:
        return policy_loss(
            logprobs,
            self.old,
            self.advantages,
            self.episode,
            episodes=10,
            **options,
        )

    def gradient(self, **options: object) -> tuple[torch.Tensor, torch.Tensor, PolicyLoss]:
        """Gradient with respect to each token's logprob on the second update, ratios, the loss."""
        logprobs = self.logprobs()
        logprobs.retain_grad()
        found = self.loss(logprobs, **options)
        found.loss.backward()
        return logprobs.grad, (logprobs - self.old).exp().detach(), found


@pytest.mark.parametrize("kind", MIN_CLIPPED)
@pytest.mark.parametrize(("low", "high"), [(0.1, 0.1), (0.05, 0.3), (0.3, 0.05)])
def test_on_the_second_update_clipped_tokens_lose_their_gradient_on_the_right_side_only(
    kind: LossKind, low: float, high: float
) -> None:
    world = TwoUpdates()
    gradient, ratio, found = world.gradient(kind=kind, clip_low=low, clip_high=high, max_tokens=8)
    up, above, below = world.advantages > 0, ratio > 1 + high, ratio < 1 - low
    for corner in (up & above, up & below, ~up & above, ~up & below, ~above & ~below):
        assert corner.any()  # every side is met
    is_clipped = (up & above) | (~up & below)
    assert (gradient[is_clipped] == 0).all()
    # elsewhere it is the policy gradient times the ratio, pushing with the advantage
    torch.testing.assert_close(gradient[~is_clipped], (-world.advantages * ratio / 80)[~is_clipped])
    assert found.clipped.item() == pytest.approx(is_clipped.double().mean().item())
    assert found.ratio.item() == pytest.approx(ratio.mean().item())


def test_a_ratio_between_the_two_bounds_is_clipped_only_by_the_narrower_one() -> None:
    logprobs = torch.tensor([math.log(1.25)], requires_grad=True)
    zero, one, first = torch.zeros(1), torch.ones(1), torch.zeros(1, dtype=torch.long)
    narrow = policy_loss(logprobs, zero, one, first, episodes=1, kind="dapo", clip_high=0.2)
    wide = policy_loss(logprobs, zero, one, first, episodes=1, kind="dapo", clip_high=0.28)
    assert (narrow.clipped.item(), wide.clipped.item()) == (1, 0)
    assert narrow.loss.item() == pytest.approx(-1.2)
    assert wide.loss.item() == pytest.approx(-1.25)
    (gradient,) = torch.autograd.grad(wide.loss, logprobs)
    assert gradient.item() == pytest.approx(-1.25)


def test_gspo_clips_whole_episodes_by_the_geometric_mean_of_their_ratios() -> None:
    world = TwoUpdates()
    gradient, ratio, _ = world.gradient(kind="gspo", clip_low=0.02, clip_high=0.02)
    clipped_episodes = 0
    for e in range(10):
        mine = world.episode == e
        mean = ratio[mine].log().mean().exp()
        for advantage in world.advantages[mine].unique():
            tokens = mine & (world.advantages == advantage)
            is_clipped = mean > 1.02 if advantage > 0 else mean < 0.98
            clipped_episodes += bool(is_clipped)
            wanted = torch.zeros(1) if is_clipped else -advantage * mean / (8 * 10)
            torch.testing.assert_close(gradient[tokens], wanted.double().expand(int(tokens.sum())))
    assert 0 < clipped_episodes < 10


def test_cispo_never_silences_a_token() -> None:
    world = TwoUpdates()
    gradient, ratio, found = world.gradient(kind="cispo", clip_low=0.1, clip_high=0.1)
    assert 0 < found.clipped.item() < 1
    assert (gradient != 0).all()
    torch.testing.assert_close(gradient, -world.advantages * ratio.clamp(0.9, 1.1) / 80)


def test_dr_grpo_gives_a_token_the_same_weight_in_short_and_long_episodes() -> None:
    episode = torch.tensor([0, 1, 1, 1, 1])
    advantages = torch.ones(5)
    for kind, is_even in (("dr_grpo", True), ("dapo", True), ("grpo", False)):
        logprobs = torch.zeros(5, requires_grad=True)
        policy_loss(
            logprobs, torch.zeros(5), advantages, episode, episodes=2, kind=kind, max_tokens=4
        ).loss.backward()
        assert bool((logprobs.grad == logprobs.grad[0]).all()) is is_even
    # a constant scale: another batch length changes nothing for those who are in both
    alone = torch.zeros(1, requires_grad=True)
    policy_loss(
        alone,
        torch.zeros(1),
        torch.ones(1),
        torch.tensor([0]),
        episodes=2,
        kind="dr_grpo",
        max_tokens=4,
    ).loss.backward()
    assert alone.grad.item() == pytest.approx(-1 / 8)


def test_an_episode_without_tokens_counts_in_the_mean_and_breaks_nothing() -> None:
    logprobs = torch.zeros(2, requires_grad=True)
    found = policy_loss(
        logprobs, torch.zeros(2), torch.ones(2), torch.tensor([2, 2]), episodes=3, kind="grpo"
    )
    assert found.loss.item() == pytest.approx(-1 / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_no_trained_token_is_an_error(kind: LossKind) -> None:
    none = torch.zeros(0)
    with pytest.raises(ValueError, match="at least one trained token"):
        policy_loss(none, none, none, torch.zeros(0, dtype=torch.long), episodes=1, kind=kind)


def test_gspo_reports_the_share_of_episodes_that_were_clipped() -> None:
    found = policy_loss(
        torch.tensor([1.0, 1.0, 1.0, 0.0]),
        torch.zeros(4),
        torch.ones(4),
        torch.tensor([0, 0, 0, 1]),
        episodes=2,
        kind="gspo",
    )
    assert found.clipped.item() == pytest.approx(0.5)


# --- divergence -----------------------------------------------------------------------------------


@given(st.lists(st.tuples(LOGPROBS, LOGPROBS), min_size=1, max_size=20))
@settings(deadline=None)
def test_the_kl_estimate_is_never_negative_and_zero_only_where_both_agree(
    pairs: list[tuple[float, float]],
) -> None:
    ours, reference = (torch.tensor(v, dtype=torch.double) for v in zip(*pairs, strict=True))
    kl = kl_estimate(ours, reference)
    assert (kl >= -1e-12).all()
    assert (kl[(ours - reference).abs() > 1e-3] > 0).all()
    assert (kl_estimate(ours, ours) == 0).all()


def test_the_kl_estimate_is_unbiased_and_pulls_towards_the_reference() -> None:
    torch.manual_seed(0)
    ours, reference = torch.randn(2, 7, dtype=torch.double).log_softmax(-1)
    exact = (ours.exp() * (ours - reference)).sum()
    torch.testing.assert_close((ours.exp() * kl_estimate(ours, reference)).sum(), exact)
    free = ours.clone().requires_grad_()
    kl_estimate(free, reference).sum().backward()
    torch.testing.assert_close(free.grad, 1 - (reference - ours).exp())
    assert (torch.sign(free.grad) == torch.sign(ours - reference)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_kl_term_reaches_tokens_without_advantage(kind: LossKind) -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    reference_N = torch.tensor([-2.0, -1.0])
    found = policy_loss(
        logprobs,
        logprobs.detach(),
        torch.zeros(2),
        torch.tensor([0, 0]),
        episodes=1,
        kind=kind,
        kl_beta=0.5,
        reference_N=reference_N,
        max_tokens=2,
    )
    found.loss.backward()
    torch.testing.assert_close(
        logprobs.grad, 0.5 * (1 - (reference_N - logprobs.detach()).exp()) / 2
    )
    assert not found.kl.requires_grad


# --- advantages -----------------------------------------------------------------------------------


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=12))
@settings(deadline=None)
def test_advantages_of_a_group_have_mean_zero_and_unit_spread_where_scaled(
    rewards: list[float],
) -> None:
    given_G = torch.tensor(rewards, dtype=torch.double)
    plain = group_advantages(given_G, scale=False)
    scaled = group_advantages(given_G, scale=True)
    assert abs(plain.mean().item()) < 1e-9
    torch.testing.assert_close(plain, given_G - np.mean(rewards))
    spread = float(np.std(rewards, ddof=1))
    torch.testing.assert_close(scaled, plain / (spread + 1e-4))
    if spread > 0.1:
        assert scaled.std().item() == pytest.approx(1, rel=2e-3)


def test_a_group_of_equal_rewards_teaches_nothing() -> None:
    assert (group_advantages(torch.ones(8), scale=True) == 0).all()
    assert (group_advantages(torch.zeros(8), scale=False) == 0).all()


@pytest.mark.parametrize("count", [0, 1])
def test_a_group_needs_two_scored_rollouts(count: int) -> None:
    with pytest.raises(ValueError, match=f"2 scored rollouts to compare, got {count}"):
        group_advantages(torch.zeros(count), scale=True)
