"""The engine against the training forward, against itself one at a time, and against its own
promises.
"""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import saccade.engines.decoding.forward as forward_module
import saccade.engines.decoding.rows as rows_module
import saccade.engines.torch as engine_module
from saccade.benches.engine import bench_engine
from saccade.engines import PolicyEngine, Sampling, TurnRequest
from saccade.engines.decoding.draws import choose, seed_keys, uniforms
from saccade.engines.decoding.rows import Slab
from saccade.engines.torch import TorchEngine
from saccade.errors import EngineError
from saccade.geometry import Box
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.models.forward import encode_images, hidden_states, sampling_logprobs, token_logits
from saccade.models.tiny import SETTINGS, build_model, build_tokenizer
from saccade.models.vision import with_linear_patches
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.tokens import Tree, batch, flatten
from saccade.types import ImageShown, Message, Segment, Text

WORDS = "What is the value of red? Look at the blue bar. The green line is higher.\n" * 3
SIZES = ((500, 420), (448, 700), (640, 448))
LOUDER = 8


class World:
    """A tiny random model, three pictures, and episodes that look at crops of them."""

    def __init__(self) -> None:
        self.renderer = Qwen2VLRenderer(build_tokenizer(WORDS), SETTINGS)
        model = build_model(
            self.renderer.tokenizer, seed=3, hidden=64, layers=2, vision=32, vision_layers=1
        )
        self.model = with_linear_patches(model).eval()
        self.store = ImageStore()
        self.views = []
        for number, (width, height) in enumerate(SIZES):
            noise = np.random.default_rng(number).integers(
                0, 255, (height // 20, width // 20, 3), np.uint8
            )
            view = root_view(Image.fromarray(noise).resize((width, height)))
            self.store.add(view)
            self.views.append(view)

    def engine(self, **options: object) -> TorchEngine:
        return TorchEngine(self.model, self.renderer, store=self.store, **options)

    def request(self, item: int, rollout: int = 0, **sampling: object) -> TurnRequest:
        view = self.views[item % 3]
        question = "What is the value of red?" + " Look." * (item // 3)
        messages = (
            Message("system", (Text("Look at it."),)),
            Message("user", (ImageShown(view.ref, "img_1"), Text(question))),
        )
        return TurnRequest(
            episode=f"{item}/{rollout}",
            messages=messages,
            segments=(self.renderer.prompt(messages),),
            seed=(7, f"item-{item}", rollout),
            sampling=Sampling(**{"max_tokens": 12, **sampling}),
        )

    def looked(self, request: TurnRequest, turn: int) -> Segment:
        """What a tool returns: a crop, other in every episode and turn, and some text."""
        view = self.views[int(request.episode[0]) % 3]
        rollout = int(request.episode.split("/")[1])
        crop = view.crop(Box(10 + 20 * turn, 20 + 10 * rollout, 200 + 40 * rollout, 300))
        self.store.add(crop)
        parts = (
            Text("Look: " + "bar " * (turn + rollout)),
            ImageShown(crop.ref, f"img_{turn + 2}"),
        )
        return self.renderer.observation(Message("tool", parts))

    async def play(
        self, engine: TorchEngine, request: TurnRequest, turns: int = 3
    ) -> tuple[Segment, ...]:
        segments = request.segments
        for number in range(turns):
            turn = await engine.turn(replace(request, segments=segments))
            sampled = Segment(
                "sampled", turn.ids, turn.logprobs, policy_version=turn.policy_version
            )
            segments = (*segments, sampled)
            if number + 1 < turns:
                segments = (*segments, self.looked(request, number))
        engine.release(request.episode)
        return segments

    def play_all(
        self, engine: TorchEngine, requests: list[TurnRequest], turns: int = 3
    ) -> list[tuple[Segment, ...]]:
        async def together() -> list[tuple[Segment, ...]]:
            engine.expect(r.episode for r in requests)
            return list(await asyncio.gather(*(self.play(engine, r, turns) for r in requests)))

        return asyncio.run(together())

    def trained_logprobs(
        self, segments: tuple[Segment, ...], temperature: float, suppressed: torch.Tensor
    ):
        packed = batch([flatten(Tree((segments[0],), (segments[1:],)), self.renderer)])
        with torch.no_grad():
            features = encode_images(
                self.model,
                [self.renderer.patches(i, self.store.view(i).pixels) for i in packed.images],
                [self.renderer.grid(i) for i in packed.images],
            )
            logits = token_logits(self.model, packed, hidden_states(self.model, packed, features))
            return (
                sampling_logprobs(logits, temperature=temperature, suppressed=suppressed).gather(
                    -1, packed.target[:, None]
                )[:, 0],
                packed.sampled_logprobs,
            )


@pytest.fixture(scope="module")
def world() -> World:
    torch.set_num_threads(1)
    return World()


def ids_of(episode: tuple[Segment, ...]) -> list[tuple[int, ...]]:
    return [s.ids for s in episode]


def logprobs_of(episode: tuple[Segment, ...]) -> np.ndarray:
    return np.array([p for s in episode for p in s.logprobs])


def suppressed(world: World) -> torch.Tensor:
    rows = world.model.get_input_embeddings().weight.shape[0]
    unused = range(world.renderer.vocabulary, rows)
    return torch.tensor([*world.renderer.suppressed_ids, *unused])


def test_it_is_a_policy_engine(world: World) -> None:
    engine = world.engine()
    assert isinstance(engine, PolicyEngine)
    assert engine.capabilities.ids
    assert engine.capabilities.reproducible


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_logprobs_are_those_of_the_training_forward(world: World, temperature: float) -> None:
    requests = [world.request(i, g, temperature=temperature) for i in range(3) for g in range(2)]
    for episode in world.play_all(world.engine(max_batch=5), requests):
        trained, sampled = world.trained_logprobs(episode, temperature, suppressed(world))
        assert len(sampled) == sum(len(s.ids) for s in episode if s.is_trained) > 12
        assert (trained - sampled).abs().max() < 1e-4


def test_temperature_zero_takes_the_most_likely_id_and_scores_it_at_temperature_one(
    world: World,
) -> None:
    (episode,) = world.play_all(world.engine(), [world.request(0, temperature=0)])
    trained, sampled = world.trained_logprobs(episode, 1.0, suppressed(world))
    assert (trained - sampled).abs().max() < 1e-4
    (again,) = world.play_all(
        world.engine(), [replace(world.request(0, temperature=0), seed=(1, "b", 2))]
    )
    assert ids_of(again) == ids_of(episode)


def test_rows_of_different_temperatures_share_a_batch(world: World) -> None:
    warmth = (0, 0.5, 1.5)
    requests = [world.request(i, temperature=t) for i, t in enumerate(warmth)]
    for temperature, episode in zip(warmth, world.play_all(world.engine(), requests), strict=True):
        trained, sampled = world.trained_logprobs(episode, temperature, suppressed(world))
        assert (trained - sampled).abs().max() < 1e-4


@pytest.mark.parametrize("barrier", [False, True])
def test_together_and_one_at_a_time_give_the_same_draws_and_logprobs(
    world: World, barrier: bool
) -> None:
    requests = [world.request(i, g) for i in range(4) for g in range(3)]
    together = world.play_all(world.engine(barrier=barrier), requests)
    alone = [world.play_all(world.engine(), [r])[0] for r in requests]
    for a, b in zip(together, alone, strict=True):
        assert ids_of(a) == ids_of(b)
        assert np.abs(logprobs_of(a) - logprobs_of(b)).max() < 1e-5


@pytest.mark.parametrize("barrier", [False, True])
def test_logits_do_not_depend_on_company(world: World, barrier: bool) -> None:
    # As loud as a trained model, whose logits reach 20: there the last bit alone is 2e-6, and the
    # gap was 1.8e-5 as long as few rows went through other kernels than many, and attention added
    # up its exponentials in lanes that hidden columns shift.
    loud = World()
    with torch.no_grad():
        loud.model.model.language_model.norm.weight.mul_(LOUDER)
    requests = [loud.request(i, g) for i in range(5) for g in range(4)]
    together: dict[tuple[str, int], torch.Tensor] = {}
    engine = loud.engine(barrier=barrier)
    engine.before_draw = lambda episode, index, logits: together.update(
        {(episode, index): logits.clone()}
    )
    episodes = loud.play_all(engine, requests)
    assert engine.stats.rows_per_step > 10
    gaps: list[float] = []

    def compare(episode: str, index: int, logits: torch.Tensor) -> None:
        gaps.append(float((together[episode, index] - logits).abs().max()))

    for request, episode in zip(requests, episodes, strict=True):
        engine = loud.engine()
        engine.before_draw = compare
        assert ids_of(loud.play_all(engine, [request])[0]) == ids_of(episode)
    assert len(gaps) == len(together) == sum(len(logprobs_of(e)) for e in episodes) > 400
    assert 15 < max(float(v.abs().max()) for v in together.values()) < 40
    assert max(gaps) < 1e-5


def test_kept_keys_and_values_equal_a_prefill_from_scratch(world: World) -> None:
    request = world.request(0)
    engine = world.engine()

    async def play() -> tuple[tuple[Segment, ...], list[Segment]]:
        segments, kept = request.segments, []
        for number in range(3):
            turn = await engine.turn(replace(request, segments=segments))
            kept.append(Segment("sampled", turn.ids, turn.logprobs))
            fresh = replace(request, segments=segments, episode=f"fresh-{number}")
            again = await engine.turn(fresh)
            assert again.ids == turn.ids
            assert np.abs(np.subtract(again.logprobs, turn.logprobs)).max() < 1e-5
            segments = (*segments, kept[-1], world.looked(request, number))
        return segments, kept

    asyncio.run(play())


def test_nothing_is_prefilled_twice_and_each_image_is_encoded_once(world: World) -> None:
    requests = [world.request(i, g) for i in range(2) for g in range(8)]
    engine = world.engine()
    episodes = world.play_all(engine, requests)
    prompts = sum(len(r.segments[0].ids) for r in requests[::8])
    looks = [s for e in episodes for s in e if s.origin == "observation"]
    assert engine.stats.prefill_tokens == prompts + sum(len(s.ids) + 1 for s in looks)
    assert engine.stats.images_encoded == 2 + len({i.key for s in looks for i in s.images})


def test_a_group_that_queues_still_shares_its_prompt(world: World) -> None:
    requests = [world.request(0, g) for g in range(8)]
    engine = world.engine(max_batch=3)
    world.play_all(engine, requests, turns=1)
    assert engine.stats.prefill_tokens == len(requests[0].segments[0].ids)
    assert engine.stats.images_encoded == 1


def test_suppressed_and_unused_ids_are_never_sampled(world: World) -> None:
    forbidden = set(suppressed(world).tolist())
    requests = [
        world.request(i, g, temperature=5, max_tokens=200) for i in range(3) for g in range(8)
    ]
    episodes = world.play_all(world.engine(), requests, turns=1)
    drawn = [i for e in episodes for i in e[1].ids]
    assert len(drawn) > 1000
    assert len(set(drawn)) > 300
    assert not forbidden & set(drawn)


def test_a_turn_ends_with_a_stop_id_or_at_its_limit(world: World) -> None:
    renderer = Qwen2VLRenderer(world.renderer.tokenizer, SETTINGS)
    renderer.stop_ids = frozenset(range(0, renderer.vocabulary, 8))
    engine = TorchEngine(world.model, renderer, store=world.store)

    async def turns():
        return await asyncio.gather(*(engine.turn(world.request(0, g)) for g in range(16)))

    found = {t.finish: t for t in asyncio.run(turns())}
    assert found["stop"].ids[-1] in renderer.stop_ids
    assert not set(found["stop"].ids[:-1]) & renderer.stop_ids
    assert not set(found["length"].ids) & renderer.stop_ids
    assert len(found["length"].ids) == 12
    assert found["stop"].text == renderer.decode(found["stop"].ids)


@pytest.mark.parametrize("barrier", [False, True])
def test_more_episodes_than_rows_queue_and_all_end(world: World, barrier: bool) -> None:
    requests = [world.request(i, g) for i in range(3) for g in range(3)]
    few = world.play_all(world.engine(max_batch=2, barrier=barrier), requests)
    many = world.play_all(world.engine(), requests)
    assert [ids_of(e) for e in few] == [ids_of(e) for e in many]


def test_a_barrier_gives_bit_identical_logprobs_whatever_the_timing(world: World) -> None:
    requests = [world.request(i, g) for i in range(3) for g in range(3)]

    async def play(engine: TorchEngine, delays: list[float]) -> list[tuple[Segment, ...]]:
        async def late(request: TurnRequest, delay: float) -> tuple[Segment, ...]:
            await asyncio.sleep(delay)
            return await world.play(engine, request)

        engine.expect(r.episode for r in requests)
        return await asyncio.gather(*map(late, requests, delays))

    rng = np.random.default_rng(0)
    first, second = (
        asyncio.run(play(world.engine(barrier=True, max_batch=4), list(rng.uniform(0, 0.05, 9))))
        for _ in range(2)
    )
    assert [ids_of(e) for e in first] == [ids_of(e) for e in second]
    assert all((logprobs_of(a) == logprobs_of(b)).all() for a, b in zip(first, second, strict=True))


def test_episodes_join_while_others_decode(world: World) -> None:
    engine = world.engine()
    long, short = world.request(0, max_tokens=150), world.request(1, max_tokens=5)

    async def overlap() -> None:
        first = asyncio.create_task(engine.turn(long))
        while engine.stats.decode_steps < 5:
            await asyncio.sleep(0.001)
        await engine.turn(short)
        assert not first.done()
        await first

    asyncio.run(overlap())
    assert engine.stats.decode_steps < 150 + 4


def test_release_forgets_the_episode_and_stops_a_running_turn(world: World) -> None:
    engine = world.engine()

    async def run() -> None:
        await engine.turn(world.request(0))
        assert engine.live == ("0/0",)
        held = engine.kept_bytes
        engine.release("0/0")
        assert engine.live == ()
        assert 0 < engine.kept_bytes < held
        running = asyncio.create_task(engine.turn(world.request(0, max_tokens=100_000)))
        while engine.stats.decode_steps < 20:
            await asyncio.sleep(0.001)
        engine.release("0/0")
        with pytest.raises(EngineError, match="released"):
            await running

    asyncio.run(run())
    assert engine._rows.jobs == []


def test_a_cancelled_turn_leaves_the_batch(world: World) -> None:
    engine = world.engine()

    async def run() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(engine.turn(world.request(0, max_tokens=100_000)), 0.05)
        await engine.turn(world.request(1))

    asyncio.run(run())
    assert engine.live == ("0/0", "1/0")
    assert engine._rows.jobs == []


def test_new_weights_drop_every_cache(world: World) -> None:
    engine = TorchEngine(World().model, world.renderer, store=world.store)
    other = build_model(
        world.renderer.tokenizer, seed=4, hidden=64, layers=2, vision=32, vision_layers=1
    )
    request = world.request(0)
    (before,) = world.play_all(engine, [request], turns=1)
    engine.load(other.state_dict(), 1)
    engine.stats.reset()
    (after,) = world.play_all(engine, [request], turns=1)
    assert after[1].policy_version == 1
    assert engine.stats.images_encoded == 1
    assert engine.stats.prefill_tokens == len(request.segments[0].ids)
    fresh = TorchEngine(with_linear_patches(other), world.renderer, store=world.store)
    (expected,) = world.play_all(fresh, [request], turns=1)
    assert after[1].ids == expected[1].ids != before[1].ids
    engine.load(engine.model, 2, same_vision=True)
    engine.stats.reset()
    world.play_all(engine, [request], turns=1)
    assert engine.stats.images_encoded == 0


def test_an_episode_that_outlives_its_cache_is_prefilled_again(world: World) -> None:
    request = world.request(0)
    engine = world.engine()

    async def play() -> list[Segment]:
        first = await engine.turn(request)
        sampled = Segment("sampled", first.ids, first.logprobs)
        longer = replace(request, segments=(*request.segments, sampled, world.looked(request, 0)))
        kept = await engine.turn(longer)
        engine.load(engine.model, 0)
        again = await engine.turn(longer)
        assert again.ids == kept.ids
        assert np.abs(np.subtract(again.logprobs, kept.logprobs)).max() < 1e-5
        return []

    asyncio.run(play())


def test_weights_of_another_model_are_refused(world: World) -> None:
    engine = world.engine()
    with pytest.raises(EngineError, match="another model"):
        engine.load({"nothing": torch.zeros(1)}, 1)


def test_weights_can_not_change_under_a_running_turn(world: World) -> None:
    engine = world.engine()

    async def run() -> None:
        # many, of which some go on for long: one alone may end before it is looked at
        requests = [world.request(0, g, max_tokens=100_000) for g in range(12)]
        running = [asyncio.create_task(engine.turn(request)) for request in requests]
        while engine.stats.decode_steps < 2:
            await asyncio.sleep(0.001)
        with pytest.raises(EngineError, match="await them first"):
            engine.load(engine.model, 1)
        for turn in running:
            turn.cancel()

    asyncio.run(run())


def test_a_failure_reaches_everyone_who_waits_and_the_engine_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = world.engine(max_batch=2)
    requests = [world.request(0, g) for g in range(4)]

    def broken(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    async def run() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(engine_module, "sampling_logprobs", broken)
            found = await asyncio.gather(*map(engine.turn, requests), return_exceptions=True)
            assert all(isinstance(f, EngineError) for f in found)
            assert all(isinstance(f.__cause__, RuntimeError) for f in found)
        assert (await engine.turn(requests[0])).ids

    asyncio.run(run())


def test_features_are_shared_with_decoding_and_may_be_trained_on(world: World) -> None:
    engine = world.engine()
    request = world.request(0)
    (image,) = request.segments[0].images
    found = engine.features([image, image])
    assert found[image.key].shape == (world.renderer.image_tokens(image), 64)
    world.play_all(engine, [request], turns=1)
    assert engine.stats.images_encoded == 1
    layer = torch.nn.Linear(64, 1)
    layer(found[image.key]).sum().backward()
    assert layer.weight.grad is not None


def test_a_slab_that_runs_out_of_columns_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [world.request(i, g, max_tokens=40) for i in range(4) for g in range(2)]
    roomy = world.play_all(world.engine(), requests)
    monkeypatch.setattr(rows_module, "SLACK", 3)
    monkeypatch.setattr(forward_module, "PREFILL_TOKENS", 50)
    tight = world.play_all(world.engine(max_batch=3), requests)
    for a, b in zip(roomy, tight, strict=True):
        assert ids_of(a) == ids_of(b)
        assert np.abs(logprobs_of(a) - logprobs_of(b)).max() < 1e-5


@pytest.mark.parametrize(("tokens", "rows"), [(7, 8), (8192, 1), (3, 1)])
def test_passes_and_blocks_of_any_size_prefill_the_same(
    world: World, tokens: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [world.request(i, g) for i in range(3) for g in range(3)]
    before = world.play_all(world.engine(), requests)
    monkeypatch.setattr(forward_module, "PREFILL_TOKENS", tokens)
    monkeypatch.setattr(forward_module, "BLOCK_ROWS", rows)
    engine = world.engine()
    after = world.play_all(engine, requests)
    assert (engine.stats.prefill_passes > 20) == (tokens < 10)  # also in the middle of a picture
    for one, other in zip(before, after, strict=True):
        assert ids_of(one) == ids_of(other)
        np.testing.assert_allclose(logprobs_of(one), logprobs_of(other), atol=1e-5)


@pytest.mark.parametrize("target", [0, 3, 4, 6, 20])
def test_columns_of_a_slab_move_whole_over_themselves(world: World, target: int) -> None:
    slab = Slab(
        world.model.config.get_text_config(), dtype=torch.float32, device=torch.device("cpu")
    )
    slab.fit(3, 40, used_rows=0, source=slice(0, 0), target=0)
    slab.data.copy_(torch.arange(slab.data.numel()).view_as(slab.data))
    held, before = slab.data[:, :, :2, :, 4:34].clone(), slab.data
    slab.fit(3, 40 if target < 10 else 60, used_rows=2, source=slice(4, 34), target=target)
    assert torch.equal(slab.data[:, :, :2, :, target : target + 30], held)
    assert (slab.data is before) == (target < 10)


def test_new_weights_take_the_slab_over_and_nothing_that_is_in_it(world: World) -> None:
    requests = [world.request(0, 0)]  # several join as time allows, and may need a larger slab
    engine = world.engine()
    first = world.play_all(engine, requests)
    held = engine._rows.slab.data
    with torch.inference_mode():
        held.fill_(1e3)  # what other weights might have left
    engine.load(engine.model, 1)
    again = world.play_all(engine, requests)
    assert engine._rows.slab.data.data_ptr() == held.data_ptr()
    for one, other in zip(first, again, strict=True):
        assert ids_of(one) == ids_of(other)
        assert np.array_equal(logprobs_of(one), logprobs_of(other))


def test_draws_are_uniform_and_depend_on_seed_and_index_alone() -> None:
    keys = np.array([seed_keys((s, "x", 0)) for s in range(200)], dtype=np.uint64)
    draws = np.stack([uniforms(keys[:, 0], keys[:, 1], np.full(200, i)) for i in range(200)])
    assert (draws >= 0).all()
    assert (draws < 1).all()
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 45  # chi square, 19 degrees of freedom
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]) < 0.02
    one = uniforms(keys[5:6, 0], keys[5:6, 1], np.array([17]))
    assert one[0] == draws[17, 5]


def test_choosing_follows_the_distribution_and_never_takes_what_has_no_probability() -> None:
    logprobs = torch.tensor([[float("-inf"), 0.5, 0.0, float("-inf"), 0.5, float("-inf")]])
    logprobs = torch.log_softmax(torch.where(logprobs == 0, float("-inf"), logprobs), dim=-1)
    draws = torch.cat(
        [torch.linspace(0, 1, 1001, dtype=torch.float64), torch.tensor([1 - 2.0**-53])]
    )
    picked = choose(logprobs.expand(len(draws), -1), draws)
    assert set(picked.tolist()) == {1, 4}
    assert abs(int((picked == 1).sum()) - 501) <= 2


def test_choosing_equals_a_search_in_the_whole_distribution() -> None:
    torch.manual_seed(0)
    logprobs = torch.log_softmax(3 * torch.randn(4000, 77), dim=-1)
    draws = torch.rand(4000, dtype=torch.float64)
    cdf = logprobs.double().exp().cumsum(-1)
    expected = torch.searchsorted(cdf, (draws * cdf[:, -1])[:, None], right=True)[:, 0]
    assert (choose(logprobs, draws) == expected).float().mean() > 0.999


def test_the_bench_finds_no_needless_prefill_and_no_image_encoded_twice(world: World) -> None:
    found = bench_engine(
        world.model, world.renderer, prompts=2, group=2, max_tokens=4, max_batch=3, show=False
    )
    assert found["prefill_ratio"] == 1.0
    assert found["image_ratio"] == 1.0
    assert found["step_ratio"] > 1
