"""The one road from segments to tensors: who is trained, who sees whom, and where everybody
stands.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from saccade.geometry import Box
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.models.forward import encode_images, hidden_states, sampling_logprobs, token_logits
from saccade.models.tiny import SETTINGS, build_model, build_tokenizer
from saccade.models.vision import with_linear_patches
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.tokens import Batch, Flat, Tree, batch, episode_tree, flatten, pack, tokenize
from saccade.types import (
    Episode,
    ImageShown,
    Message,
    Sample,
    Segment,
    Text,
)

WORDS = "What is the value of red? Look at the blue bar. The green line is higher.\n" * 3
RENDERER = Qwen2VLRenderer(build_tokenizer(WORDS), SETTINGS)


class World:
    """A tiny random model and multi-turn episodes whose observations hold pictures."""

    def __init__(self) -> None:
        model = build_model(
            RENDERER.tokenizer, seed=4, hidden=64, layers=2, vision=32, vision_layers=1
        )
        self.model = with_linear_patches(model).eval()
        self.store = ImageStore()
        self.roots = []
        for number, size in enumerate(((500, 420), (640, 448))):
            noise = np.random.default_rng(number).integers(0, 255, (20, 25, 3), np.uint8)
            view = root_view(Image.fromarray(noise).resize(size))
            self.store.add(view)
            self.roots.append(view)

    def episode(self, root: int, rollout: int, *, turns: int = 3) -> Episode:
        """As a rollout would leave it, with random ids for what was sampled."""
        rng = np.random.default_rng([root, rollout])
        view = self.roots[root]
        sample = Sample(f"sample-{root}", "What is the value of red?", (view.ref,), "1")
        asked = Message("user", (ImageShown(view.ref, "img_0"), Text(sample.question)))
        segments = [RENDERER.prompt((asked,))]
        for turn in range(turns):
            ids = tuple(int(i) for i in rng.integers(0, 200, rng.integers(1, 9)))
            segments.append(Segment("sampled", ids, tuple(rng.uniform(-5, 0, len(ids)).tolist())))
            if turn + 1 < turns:
                crop = view.crop(Box(10 * turn, 20 + rollout, 200 + 50 * rollout, 300))
                self.store.add(crop)
                told = (Text("Look: "), ImageShown(crop.ref, f"img_{turn + 1}"))
                segments.append(RENDERER.observation(Message("tool", told)))
        return Episode(sample, rollout, segments=tuple(segments))

    @torch.no_grad()
    def logprobs(self, packed: Batch) -> torch.Tensor:
        features = encode_images(
            self.model,
            [RENDERER.patches(i, self.store.view(i).pixels) for i in packed.images],
            [RENDERER.grid(i) for i in packed.images],
        )
        logits = token_logits(self.model, packed, hidden_states(self.model, packed, features))
        every = sampling_logprobs(logits, temperature=1.0, suppressed=None)
        return every.gather(-1, packed.target[:, None])[:, 0]


@pytest.fixture(scope="module")
def world() -> World:
    torch.set_num_threads(1)
    return World()


def flat_of(*episodes: Episode) -> Flat:
    return flatten(episode_tree(episodes), RENDERER)


def own_sequence(flat: Flat, last: int) -> list[int]:
    """Indices of everything that stands before a token in its own sequence, and of itself."""
    found = [last]
    while flat.previous[found[-1]] >= 0:
        found.append(int(flat.previous[found[-1]]))
    return found[::-1]


def sampled_ids(episode: Episode) -> list[int]:
    return [i for s in episode.segments if s.origin == "sampled" for i in s.ids]


# --- what is trained ------------------------------------------------------------------------------


def test_every_sampled_token_is_trained_and_no_other(world: World) -> None:
    episodes = [world.episode(0, g, turns=1 + g) for g in range(4)]
    packed = batch([flat_of(*episodes)])
    for number, episode in enumerate(episodes):
        mine = packed.branch == number
        assert packed.target[mine].tolist() == sampled_ids(episode)
        wanted = [p for s in episode.segments for p in s.logprobs]
        np.testing.assert_allclose(packed.sampled_logprobs[mine], wanted, rtol=1e-6)
    assert len(packed.target) == sum(len(sampled_ids(e)) for e in episodes)
    assert set(packed.branch.tolist()) == {0, 1, 2, 3}
    assert not (packed.target == RENDERER.pad_id).any()
    assert len(packed.images) == 1 + 0 + 1 + 2 + 3


def test_each_trained_token_is_predicted_from_the_token_before_it(world: World) -> None:
    episodes = [world.episode(0, g) for g in range(3)]
    flat = flat_of(*episodes)
    packed = batch([flat])
    for branch, source, target in zip(packed.branch, packed.source, packed.target, strict=True):
        whole = [i for s in episodes[branch].segments for i in s.ids]
        before = flat.ids[own_sequence(flat, int(source))].tolist()
        assert whole[: len(before)] == before
        assert whole[len(before)] == target


def test_turns_are_counted_from_zero_in_every_episode(world: World) -> None:
    episodes = [world.episode(0, g, turns=1 + g) for g in range(3)]
    flat = flat_of(*episodes)
    packed = batch([flat])
    for number, episode in enumerate(episodes):
        lengths = [len(s.ids) for s in episode.segments if s.origin == "sampled"]
        wanted = [turn for turn, length in enumerate(lengths) for _ in range(length)]
        assert packed.turn[packed.branch == number].tolist() == wanted
    assert (flat.turn[~flat.trained] == -1).all()
    assert (flat.turn[flat.trained] >= 0).all()


def test_logprobs_stand_where_somebody_sampled_and_nowhere_else(world: World) -> None:
    flat = flat_of(world.episode(0, 0))
    assert (np.isnan(flat.logprobs) == ~flat.trained).all()
    shown = RENDERER.demonstrated("red is 1")
    taught = flatten(Tree(world.episode(0, 0).segments[:1], ((shown,),)), RENDERER)
    assert taught.trained.sum() == len(shown.ids)
    assert np.isnan(taught.logprobs).all()


def test_a_trained_first_token_has_nothing_to_be_predicted_from() -> None:
    flat = flatten(Tree((Segment("demonstrated", (5, 6, 7)),), ()), RENDERER)
    packed = batch([flat])
    assert packed.target.tolist() == [6, 7]
    assert packed.source.tolist() == [0, 1]
    assert packed.branch.tolist() == [-1, -1]


# --- pads -----------------------------------------------------------------------------------------


def test_pads_are_as_many_as_features_and_in_the_order_of_the_images(world: World) -> None:
    episodes = [world.episode(1, g) for g in range(2)]
    packed = batch([flat_of(*episodes)])
    assert packed.is_pad.sum() == sum(RENDERER.image_tokens(i) for i in packed.images)
    assert packed.images == tuple(
        i
        for s in (episodes[0].segments[0], *episodes[0].segments[1:], *episodes[1].segments[1:])
        for i in s.images
    )
    assert (packed.ids[packed.is_pad] == RENDERER.pad_id).all()


@pytest.mark.parametrize("change", [-1, +1])
def test_a_segment_with_too_few_or_too_many_pads_is_refused(world: World, change: int) -> None:
    prompt = world.episode(0, 0).segments[0]
    at = prompt.ids.index(RENDERER.pad_id)
    pads = (RENDERER.pad_id,) * (change == 1)
    broken = (*prompt.ids[:at], *pads, *prompt.ids[at + (change == -1) :])
    with pytest.raises(ValueError, match="pads"):
        flatten(Tree((replace(prompt, ids=broken),), ()), RENDERER)


def test_features_of_another_number_than_the_pads_are_refused(world: World) -> None:
    packed = batch([flat_of(world.episode(0, 0, turns=1))])
    count = int(packed.is_pad.sum())
    with pytest.raises(ValueError, match=f"{count} image pads but {count - 1} image features"):
        hidden_states(world.model, packed, [torch.zeros(count - 1, 64)])


# --- packing --------------------------------------------------------------------------------------


def test_a_packed_tree_reads_as_each_of_its_episodes_alone(world: World) -> None:
    episodes = [world.episode(0, g, turns=1 + g) for g in range(4)]
    packed = batch([flat_of(*episodes)])
    together = world.logprobs(packed)
    for number, episode in enumerate(episodes):
        alone = world.logprobs(batch([flat_of(episode)]))
        torch.testing.assert_close(together[packed.branch == number], alone, atol=1e-4, rtol=0)


def test_a_tree_reads_as_one_sequence_without_any_tree(world: World) -> None:
    """Against causal attention over the plain concatenation: neither trunk nor mask is ours."""
    episode = world.episode(1, 2)
    packed = batch([flat_of(episode)])
    plain = replace(packed, sees=torch.ones_like(packed.sees).tril())
    ids = [i for s in episode.segments for i in s.ids]
    assert packed.ids[0].tolist() == ids
    torch.testing.assert_close(world.logprobs(packed), world.logprobs(plain), atol=1e-5, rtol=0)


def test_company_and_padding_change_nothing(world: World) -> None:
    one = flat_of(*[world.episode(0, g) for g in range(2)])
    other = flat_of(*[world.episode(1, g, turns=1) for g in range(3)])
    assert len(one.ids) > len(other.ids)
    packed = batch([other, one], length=len(one.ids) + 37)
    together = world.logprobs(packed)
    for row, flat in enumerate((other, one)):
        alone = world.logprobs(batch([flat]))
        torch.testing.assert_close(together[packed.row == row], alone, atol=1e-4, rtol=0)
    assert packed.ids.shape == (2, len(one.ids) + 37)
    size = len(other.ids)
    assert not packed.is_pad[0, size:].any()
    assert not packed.sees[0, 0, :size, size:].any()
    assert packed.sees[0, 0].any(-1).all()  # a row that sees nothing would be nan


def test_a_tree_that_does_not_fit_the_length_is_refused(world: World) -> None:
    flat = flat_of(world.episode(0, 0))
    size = len(flat.ids)
    assert batch([flat], length=size).ids.shape == (1, size)
    refusal = f"{size} tokens does not fit a batch of length {size - 1}"
    with pytest.raises(ValueError, match=refusal):
        batch([flat], length=size - 1)


def test_positions_of_a_branch_start_where_the_trunk_ends(world: World) -> None:
    episodes = [world.episode(0, g) for g in range(3)]
    flat = flat_of(*episodes)
    trunk = RENDERER.positions(episodes[0].segments[0], 0)
    np.testing.assert_array_equal(flat.positions[:, flat.owner == 0], trunk.ids)
    for number, episode in enumerate(episodes, start=1):
        mine = flat.positions[:, flat.owner == number]
        assert (mine[:, 0] == trunk.next_start).all()
        whole = Segment(
            "prompt",
            tuple(i for s in episode.segments for i in s.ids),
            images=tuple(i for s in episode.segments for i in s.images),
        )
        alone = RENDERER.positions(whole, 0).ids[:, len(episode.segments[0].ids) :]
        np.testing.assert_array_equal(mine, alone)


LENGTHS = st.lists(st.integers(0, 4), max_size=3)


@given(LENGTHS.map(lambda x: [2, *x]), st.lists(LENGTHS, max_size=4), st.integers(0, 3))
@settings(deadline=None, max_examples=80)
def test_a_token_sees_its_own_sequence_up_to_itself_and_nothing_else(
    trunk: list[int], branches: list[list[int]], more: int
) -> None:
    def segments(lengths: list[int]) -> tuple[Segment, ...]:
        return tuple(Segment("demonstrated", tuple(range(n))) for n in lengths)

    flat = flatten(Tree(segments(trunk), tuple(segments(b) for b in branches)), RENDERER)
    size = len(flat.ids)
    sees = batch([flat], length=size + more).sees[0, 0]
    for token in range(size):
        assert sees[token].nonzero()[:, 0].tolist() == own_sequence(flat, token)


def test_episodes_of_different_prompts_are_no_tree(world: World) -> None:
    with pytest.raises(ValueError, match="do not share their prompt"):
        episode_tree([world.episode(0, 0), world.episode(1, 0)])
    with pytest.raises(ValueError, match="'sample-0' has no tokens"):
        episode_tree([world.episode(0, 0), replace(world.episode(0, 1), segments=())])


def test_prompts_of_equal_ids_and_different_pictures_are_no_tree(world: World) -> None:
    episode = world.episode(0, 0)
    prompt = episode.segments[0]
    other = root_view(Image.new("RGB", (500, 420), "blue")).ref
    twin = replace(prompt, images=(other,))
    assert twin.ids == prompt.ids
    with pytest.raises(ValueError, match="do not share their prompt"):
        episode_tree([episode, replace(episode, segments=(twin, *episode.segments[1:]))])


# --- tokenize -------------------------------------------------------------------------------------


def conversation(world: World) -> Episode:
    view = world.roots[0]
    crop = view.crop(Box(10, 10, 220, 180))
    world.store.add(crop)
    messages = (
        Message("system", (Text("Look closely."),)),
        Message("user", (ImageShown(view.ref, "img_0"), Text("What is the value of red?"))),
        Message("assistant", (Text("Look at the red bar."),)),
        Message("tool", (Text("img_1: "), ImageShown(crop.ref, "img_1"))),
        Message("assistant", (Text("Look again."),)),
        Message("tool", (Text("Error: no."),)),
        Message("assistant", (Text("red is 1"),)),
    )
    sample = Sample("s", "What is the value of red?", (view.ref,), "1")
    return Episode(sample, messages=messages)


def test_tokenizing_keeps_every_turn_of_the_model_as_demonstrated(world: World) -> None:
    episode = tokenize(conversation(world), RENDERER)
    origins = [s.origin for s in episode.segments]
    assert origins == ["prompt", *["demonstrated", "observation"] * 2, "demonstrated"]
    said = [RENDERER.decode(s.ids) for s in episode.segments if s.is_trained]
    assert said == ["Look at the red bar.", "Look again.", "red is 1"]
    packed = batch([flat_of(episode)])
    for turn, text in enumerate(said):
        ids = packed.target[packed.turn == turn].tolist()
        assert RENDERER.decode(ids) == text
        assert ids[-1] == RENDERER.end_id  # the model learns to stop
    assert torch.isnan(packed.sampled_logprobs).all()
    assert [i.key for i in packed.images] == [
        p.image.key for m in episode.messages for p in m.images
    ]


def test_tokenizing_only_adds_segments(world: World) -> None:
    episode = conversation(world)
    again = tokenize(tokenize(episode, RENDERER), RENDERER)
    assert again == tokenize(episode, RENDERER)
    assert replace(again, segments=()) == episode
    start = tokenize(replace(episode, messages=episode.messages[:5]), RENDERER)
    assert again.segments[: len(start.segments)] == start.segments
    asked = tokenize(replace(episode, messages=episode.messages[:2]), RENDERER)
    assert asked.segments == again.segments[:1]


# --- packs ----------------------------------------------------------------------------------------


def test_a_pack_holds_every_token_that_is_needed_once_and_no_padding(world: World) -> None:
    flats = [flat_of(*[world.episode(r, g, turns=1 + g) for g in range(2 + r)]) for r in range(2)]
    packed = pack(flats)
    assert sum(s.stop - s.start for s in packed.spans) == len(packed.ids)
    # the last token of each episode predicts nothing
    assert len(packed.ids) == sum(len(f.ids) for f in flats) - 5
    assert len(packed.target) == sum(f.trained.sum() for f in flats)
    assert packed.images == (*flats[0].images, *flats[1].images)
    assert len(packed.pads) == sum((f.ids == f.pad_id).sum() for f in flats)
    assert (packed.ids[packed.pads] == RENDERER.pad_id).all()
    trunks = [s for s in packed.spans if s.trunk_start == s.trunk_stop]
    assert [len(f.ids[f.owner == 0]) for f in flats] == [s.stop - s.start for s in trunks]


def test_tokens_of_a_pack_see_what_they_see_in_their_own_tree(world: World) -> None:
    flats = [flat_of(*[world.episode(r, g) for g in range(2)]) for r in range(2)]
    packed = pack(flats)
    for number, flat in enumerate(flats):
        chosen = packed.tree == number
        at = np.flatnonzero(flat.trained)
        assert packed.target[chosen].tolist() == flat.ids[at].tolist()
        for last, before in zip(packed.source[chosen].tolist(), flat.previous[at], strict=True):
            token = int(packed.read[last])
            [span] = [s for s in packed.spans if s.start <= token < s.stop]
            seen = [*range(span.trunk_start, span.trunk_stop), *range(span.start, token + 1)]
            own = own_sequence(flat, int(before))
            assert packed.ids[seen].tolist() == flat.ids[own].tolist()
            assert torch.equal(packed.positions[:, seen], torch.from_numpy(flat.positions[:, own]))


def test_a_branch_that_ends_with_a_picture_is_not_cut(world: World) -> None:
    whole = world.episode(0, 1, turns=2)
    ends = replace(whole, segments=whole.segments[:-1])
    packed = pack([flat_of(whole, ends)])
    assert len(packed.pads) == sum(RENDERER.image_tokens(i) for i in packed.images)
    last = packed.spans[-1]
    assert (
        packed.ids[last.stop - 1] == RENDERER.pad_id
    )  # what follows the picture is read by nobody


def test_a_pack_without_a_trained_token_is_refused(world: World) -> None:
    episode = world.episode(0, 0)
    with pytest.raises(ValueError, match=r"None of the .* tokens of 1 trees is trained"):
        pack([flatten(Tree(episode.segments[:1], ()), RENDERER)])
