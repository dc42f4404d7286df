"""The tiny model: a tokenizer that loses nothing, a stock architecture, a plain folder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoTokenizer, Qwen2VLForConditionalGeneration

from saccade.errors import RecipeError
from saccade.images import root_view
from saccade.models.forward import (
    encode_images,
    hidden_states,
    load_model,
    sampling_logprobs,
    token_logits,
)
from saccade.models.tiny import (
    CALL_PIECES,
    SETTINGS,
    SPECIAL,
    build_model,
    build_tokenizer,
    number_ids,
    save,
)
from saccade.models.vision import LinearPatchEmbed, with_linear_patches
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.tokens import Batch, Tree, batch, flatten
from saccade.types import ImageShown, Message, Text

TOKENIZER = build_tokenizer()
RENDERER = Qwen2VLRenderer(TOKENIZER, SETTINGS)
PIECES = st.sampled_from(
    [*CALL_PIECES, *SPECIAL, " ", "\n", "1000", "0", "ing", '"', "👩‍👧", "é", "e\u0301"]
)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.one_of(PIECES, st.text(st.characters(exclude_categories=["Cs"])))).map("".join),
)


def encode(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False).ids


# --- tokenizer ------------------------------------------------------------------------------------


@given(TEXTS)
@settings(deadline=None, max_examples=300)
def test_any_text_passes_through_the_tokenizer(text: str) -> None:
    assert TOKENIZER.decode(encode(text), skip_special_tokens=False) == text


def test_every_code_point_passes_through_the_tokenizer() -> None:
    for start in range(0, 0x110000, 0x1000):
        points = range(start, start + 0x1000)
        text = "".join(chr(c) for c in points if not 0xD800 <= c <= 0xDFFF)
        assert TOKENIZER.decode(encode(text), skip_special_tokens=False) == text


def test_numbers_up_to_a_thousand_are_one_token_each_wherever_they_stand() -> None:
    ids = number_ids(TOKENIZER)
    assert len(set(ids)) == 1001
    for number, token in enumerate(ids):
        assert encode(str(number)) == [token]
        in_list = encode(f"[{number}, {number}]")
        assert in_list.count(token) == 2
        assert token in encode(f"red is {number}.")
        assert token in encode(f'", "box": [{number}]')


def test_longer_numbers_are_read_from_the_left_in_threes() -> None:
    for text, parts in (("1001", ["100", "1"]), ("10005", ["1000", "5"]), ("98765", ["987", "65"])):
        assert [TOKENIZER.decode([i]) for i in encode(text)] == parts


def test_a_call_is_short() -> None:
    arguments = '{"image": "img_0", "box": [1, 20, 300, 1000]}'
    text = f'<tool_call>\n{{"name": "crop", "arguments": {arguments}}}\n</tool_call>'
    ids = encode(text)
    assert TOKENIZER.decode(ids) == text
    assert len(ids) <= 14
    for piece in CALL_PIECES:
        assert len(encode(piece)) == 1


def test_the_tokenizer_is_the_same_whenever_it_is_built() -> None:
    assert build_tokenizer().to_str() == TOKENIZER.to_str()


def test_special_tokens_are_special_and_pieces_of_calls_are_not() -> None:
    added = TOKENIZER.get_added_tokens_decoder().values()
    assert {t.content for t in added if t.special} == set(SPECIAL)
    assert {t.content for t in added if not t.special} == set(CALL_PIECES)


def test_a_tokenizer_without_some_number_is_refused() -> None:
    from tokenizers import Tokenizer, models

    with pytest.raises(ValueError, match="no token for 2"):
        number_ids(Tokenizer(models.BPE(vocab={"0": 0, "1": 1}, merges=[])))


# --- model ----------------------------------------------------------------------------------------


def small(seed: int = 1) -> Qwen2VLForConditionalGeneration:
    return build_model(TOKENIZER, seed=seed, hidden=64, layers=2, vision=32, vision_layers=1).eval()


@pytest.fixture(scope="module")
def model() -> Qwen2VLForConditionalGeneration:
    torch.set_num_threads(1)
    return small()


def picture() -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    return Image.fromarray(noise).resize((400, 300))


def looked() -> tuple[Batch, list[np.ndarray], list[tuple[int, int, int]]]:
    """One question with one picture, packed."""
    view = root_view(picture())
    asked = Message("user", (ImageShown(view.ref, "img_0"), Text("What is the value of red?")))
    tree = Tree((RENDERER.prompt((asked,)),), ((RENDERER.demonstrated("red is 42"),),))
    patches = [RENDERER.patches(view.ref, view.pixels)]
    return batch([flatten(tree, RENDERER)]), patches, [RENDERER.grid(view.ref)]


@torch.no_grad()
def logits_of(model: torch.nn.Module) -> torch.Tensor:
    packed, patches, grids = looked()
    features = encode_images(model, patches, grids)
    return token_logits(model, packed, hidden_states(model, packed, features))


@torch.no_grad()
def stock_logits(model: torch.nn.Module) -> torch.Tensor:
    """The same by the model's own forward, positions and masks included."""
    packed, patches, grids = looked()
    found = model(
        input_ids=packed.ids,
        pixel_values=torch.from_numpy(patches[0]),
        image_grid_thw=torch.tensor(grids),
        mm_token_type_ids=packed.is_pad.int(),
        attention_mask=torch.ones_like(packed.ids),
    )
    return found.logits[0, packed.source]


def test_our_forward_is_that_of_transformers(model: Qwen2VLForConditionalGeneration) -> None:
    torch.testing.assert_close(logits_of(model), stock_logits(model), atol=1e-4, rtol=0)


def test_the_shipped_size_is_about_two_million_parameters() -> None:
    assert 1_500_000 < sum(p.numel() for p in build_model(TOKENIZER, seed=0).parameters()) < 3e6


def test_initial_weights_follow_from_the_seed() -> None:
    one, again, other = (small(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[k], again[k]) for k in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


def test_near_numbers_start_alike(model: Qwen2VLForConditionalGeneration) -> None:
    table = model.get_input_embeddings().weight[number_ids(TOKENIZER)].detach()
    alike = torch.nn.functional.normalize(table, dim=-1)
    near = (alike[:-1] * alike[1:]).sum(-1).mean()
    far = (alike[:500] * alike[313:813]).sum(-1).mean()
    assert near > 0.5 > far
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_the_linear_patch_embedding_is_exact_and_keeps_every_name() -> None:
    stock, swapped = small(), with_linear_patches(small())
    assert list(stock.state_dict()) == list(swapped.state_dict())
    assert isinstance(swapped.model.visual.patch_embed, LinearPatchEmbed)
    assert with_linear_patches(swapped).model.visual.patch_embed.proj is not None
    torch.testing.assert_close(logits_of(stock), logits_of(swapped), atol=1e-5, rtol=0)
    stock.load_state_dict(swapped.state_dict())
    swapped.load_state_dict(stock.state_dict())


def test_gradients_of_the_linear_patch_embedding_are_those_of_the_stock_one() -> None:
    gradients = []
    for model in (small(), with_linear_patches(small())):
        _, patches, grids = looked()
        (features,) = encode_images(model, patches, grids)
        features.square().sum().backward()
        gradients.append(model.model.visual.patch_embed.proj.weight.grad)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_images_encoded_together_and_apart_have_the_same_features(
    model: Qwen2VLForConditionalGeneration,
) -> None:
    views = [root_view(picture()), root_view(picture().resize((640, 300)))]
    patches = [RENDERER.patches(v.ref, v.pixels) for v in views]
    grids = [RENDERER.grid(v.ref) for v in views]
    with torch.no_grad():
        together = encode_images(model, patches, grids)
        for view, p, g, found in zip(views, patches, grids, together, strict=True):
            assert len(found) == RENDERER.image_tokens(view.ref)
            torch.testing.assert_close(found, encode_images(model, [p], [g])[0])
    assert encode_images(model, [], []) == []


# --- the folder -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(model: Qwen2VLForConditionalGeneration, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("models") / "deep" / "tiny"
    save(model, RENDERER, made, made_by={"recipe": "abc", "seed": 1})
    return made


def test_a_saved_model_loads_by_plain_from_pretrained(
    model: Qwen2VLForConditionalGeneration, folder: Path
) -> None:
    loaded = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    assert type(loaded) is Qwen2VLForConditionalGeneration
    assert loaded.lm_head.weight is loaded.get_input_embeddings().weight
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert torch.equal(weight.to(torch.bfloat16).float(), after[name]), name
    assert (logits_of(model) - logits_of(loaded)).abs().max() < 0.05 * logits_of(model).std()
    ours = load_model(folder)
    assert not ours.training
    torch.testing.assert_close(logits_of(loaded), logits_of(ours), atol=1e-5, rtol=0)


def test_a_model_trained_with_linear_patches_saves_under_the_stock_names(tmp_path: Path) -> None:
    swapped = with_linear_patches(small(7))
    save(swapped, RENDERER, tmp_path, made_by={})
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert (logits_of(swapped) - logits_of(loaded)).abs().max() < 0.05 * logits_of(swapped).std()


def test_saving_twice_gives_the_same_weights(
    model: Qwen2VLForConditionalGeneration, folder: Path, tmp_path: Path
) -> None:
    save(load_model(folder), RENDERER, tmp_path, made_by={"recipe": "abc", "seed": 1})
    for name in ("model.safetensors", "tokenizer.json", "saccade.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_weights_are_stored_in_16_bit_and_once(
    model: Qwen2VLForConditionalGeneration, folder: Path
) -> None:
    count = sum(p.numel() for p in model.parameters())
    assert abs((folder / "model.safetensors").stat().st_size - 2 * count) < 20_000
    assert json.loads((folder / "saccade.json").read_text()) == {"recipe": "abc", "seed": 1}


def test_the_tokenizer_and_renderer_come_back_from_the_folder(folder: Path) -> None:
    renderer = Qwen2VLRenderer.from_pretrained(folder)
    assert renderer.settings == SETTINGS
    assert renderer.tokenizer.to_str() == TOKENIZER.to_str()
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in ("What is the value of red?", '", "box": [1, 22, 333, 1000]', "é 👩‍👧\n"):
        assert theirs.encode(text, add_special_tokens=False) == encode(text)
        assert theirs.decode(encode(text)) == text
    assert theirs.eos_token_id == renderer.end_id


def test_a_folder_without_a_model_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"'empty'.*config\.json is missing"):
        load_model(tmp_path / "empty")


# --- distributions --------------------------------------------------------------------------------


@given(st.floats(0.1, 3), st.sets(st.integers(0, 8), max_size=5))
@settings(deadline=None, max_examples=50)
def test_sampling_logprobs_are_a_distribution_over_what_may_be_said(
    temperature: float, suppressed: set[int]
) -> None:
    logits = torch.linspace(-2, 3, 20).reshape(2, 10)
    banned = torch.tensor(sorted(suppressed), dtype=torch.long)
    found = sampling_logprobs(logits, temperature=temperature, suppressed=banned)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(2))
    assert torch.isneginf(found[:, banned]).all()
    kept = [i for i in range(10) if i not in suppressed]
    wanted = (logits / temperature)[:, kept].log_softmax(-1)
    torch.testing.assert_close(found[:, kept], wanted, atol=1e-5, rtol=1e-5)


def test_temperature_zero_is_scored_as_one() -> None:
    logits = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    found = sampling_logprobs(logits, temperature=0, suppressed=None)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, logits.float().log_softmax(-1))
