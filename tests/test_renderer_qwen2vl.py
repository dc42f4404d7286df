"""The Qwen2-VL renderer: append-only, byte for byte, and equal to what transformers computes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tokenizers import Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.modeling_qwen2_vl import PatchEmbed

from saccade.models.tiny import SETTINGS, build_model, build_tokenizer
from saccade.models.vision import LinearPatchEmbed
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.types import ImageRef, ImageShown, Message, Segment, Text

WORDS = "What is the value of red? Look at the blue bar. The green line is higher.\n" * 3
TOKENIZER = build_tokenizer(WORDS)
RENDERER = Qwen2VLRenderer(TOKENIZER, SETTINGS)
SIZES = st.tuples(st.integers(28, 1100), st.integers(28, 1100))
SCRIPTS = (
    "العربية עברית ภาษาไทย हिन्दी 日本語 한국어 "
    "ελληνικά кириллица 👩‍👩‍👧 ﷽ \u0301\u200d\u202e\x00\x7f\t\r\n"
)
SPECIAL = tuple(t.content for t in TOKENIZER.get_added_tokens_decoder().values() if t.special)
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.text(SCRIPTS),
    st.lists(st.sampled_from([*SPECIAL, "<|", "|>", " ", "12", "<tool_call>\n"])).map("".join),
)


def image(size: tuple[int, int], key: str = "a") -> ImageRef:
    return ImageRef(key, *size)


def joined(*segments: Segment) -> list[int]:
    return [i for s in segments for i in s.ids]


@given(TEXTS)
@settings(deadline=None)
def test_text_in_any_script_comes_back_unharmed(text: str) -> None:
    ids = TOKENIZER.encode(text.replace("<|", "<"), add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text.replace("<|", "<")
    turn = RENDERER.demonstrated(text)
    assert turn.ids[-1] == RENDERER.end_id
    decoded = RENDERER.decode(turn.ids)
    assert decoded.replace("\u200b", "") == text.replace("\u200b", "")
    if not any(s in text for s in SPECIAL):
        assert decoded == text


@given(TEXTS)
@settings(deadline=None)
def test_no_text_can_speak_in_special_tokens(text: str) -> None:
    special = {TOKENIZER.token_to_id(t) for t in SPECIAL}
    assert not special & set(RENDERER.demonstrated(text).ids[:-1])
    plain = RENDERER.prompt([Message("user", (Text(""),))])
    with_text = RENDERER.prompt([Message("user", (Text(text),))])
    assert [i for i in with_text.ids if i in special] == [i for i in plain.ids if i in special]


def test_lone_surrogates_become_replacement_characters() -> None:
    assert RENDERER.decode(RENDERER.demonstrated("a\ud800b").ids) in ("a\ufffdb", "a?b")


def test_every_byte_is_a_token() -> None:
    for byte in range(256):
        text = bytes([byte]).decode("latin-1")
        assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False).ids) == text


def test_numbers_up_to_a_thousand_are_one_token_each() -> None:
    for number in (0, 7, 10, 99, 100, 512, 999, 1000):
        assert len(TOKENIZER.encode(str(number), add_special_tokens=False).ids) == 1


@given(st.lists(st.tuples(TEXTS, SIZES, TEXTS), min_size=1, max_size=3))
@settings(deadline=None, max_examples=30)
def test_a_later_turn_never_changes_an_earlier_token(
    turns: list[tuple[str, tuple[int, int], str]],
) -> None:
    messages = [Message("user", (ImageShown(image((300, 200)), "img_1"), Text("What?")))]
    segments = [RENDERER.prompt(messages)]
    text = "".join(TOKENIZER.decode(list(segments[0].ids), skip_special_tokens=False))
    for said, size, seen in turns:
        before = joined(*segments)
        segments.append(RENDERER.demonstrated(said))
        shown = Message("tool", (Text(seen), ImageShown(image(size), "img_2")))
        segments.append(RENDERER.observation(shown))
        assert joined(*segments)[: len(before)] == before
        whole = TOKENIZER.decode(joined(*segments), skip_special_tokens=False)
        assert whole.startswith(text)
        text = whole


def test_a_conversation_reads_as_the_familys_template_writes_it() -> None:
    messages = [Message("system", (Text("Look."),)), Message("user", (Text("What?"),))]
    segments = (
        RENDERER.prompt(messages),
        RENDERER.demonstrated("Red."),
        RENDERER.observation(Message("tool", (Text("Sure?"),))),
        RENDERER.demonstrated("Yes."),
    )
    assert TOKENIZER.decode(joined(*segments), skip_special_tokens=False) == (
        "<|im_start|>system\nLook.<|im_end|>\n<|im_start|>user\nWhat?<|im_end|>\n"
        "<|im_start|>assistant\nRed.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>"
    )


@given(st.lists(SIZES, min_size=1, max_size=4))
@settings(deadline=None, max_examples=50)
def test_pads_equal_features_under_the_budget(sizes: list[tuple[int, int]]) -> None:
    shown = tuple(ImageShown(image(s, str(n)), f"img_{n}") for n, s in enumerate(sizes))
    segment = RENDERER.prompt([Message("user", shown)])
    tokens = [RENDERER.image_tokens(i) for i in segment.images]
    assert segment.ids.count(RENDERER.pad_id) == sum(tokens)
    # a side below one patch is rounded up to it, so that a strip may cost a little more
    thin = any(min(s) < 28 for s in sizes) or any(max(s) > 16 * min(s) for s in sizes)
    assert thin or max(tokens) <= SETTINGS.max_pixels // 28**2


def test_the_model_may_end_its_turn_and_emit_nothing_else_that_is_special() -> None:
    assert RENDERER.end_id not in RENDERER.suppressed_ids
    assert RENDERER.pad_id in RENDERER.suppressed_ids
    assert {RENDERER.end_id, *RENDERER.suppressed_ids} == {
        TOKENIZER.token_to_id(t) for t in SPECIAL
    }


# --- against transformers -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return build_model(TOKENIZER, seed=0, hidden=64, layers=1, vision=32, vision_layers=1)


@given(data=st.data(), counts=st.lists(st.integers(0, 3), min_size=1, max_size=4))
@settings(deadline=None, max_examples=40)
def test_incremental_positions_equal_those_of_the_whole_sequence(model, data, counts) -> None:
    segments, start, found = [], 0, []
    for number, count in enumerate(counts):
        parts = [Text("Look at the blue bar." * data.draw(st.integers(0, 3)))]
        for _ in range(count):
            parts += [ImageShown(image(data.draw(SIZES)), "img_1"), Text("x")]
        message = Message("user", tuple(parts))
        made = RENDERER.prompt([message]) if number == 0 else RENDERER.observation(message)
        segments += [made, RENDERER.demonstrated("It is 42.")]
    for segment in segments:
        placed = RENDERER.positions(segment, start)
        found.append(placed.ids)
        start = placed.next_start
    ids = torch.tensor([joined(*segments)])
    grids = [RENDERER.grid(i) for s in segments for i in s.images]
    expected, delta = model.model.get_rope_index(
        ids,
        (ids == RENDERER.pad_id).int(),
        image_grid_thw=torch.tensor(grids) if grids else None,
    )
    assert np.array_equal(np.concatenate(found, axis=1), expected[:, 0].numpy())
    assert start == ids.shape[1] + int(delta)


def test_pads_that_do_not_match_their_images_are_refused() -> None:
    good = RENDERER.prompt([Message("user", (ImageShown(image((300, 200)), "img_1"),))])
    first = good.ids.index(RENDERER.pad_id)
    fewer = Segment("prompt", good.ids[:first] + good.ids[first + 1 :], images=good.images)
    more = Segment("prompt", (*good.ids, RENDERER.pad_id), images=good.images)
    with pytest.raises(ValueError, match="pads are fewer"):
        RENDERER.positions(fewer, 0)
    with pytest.raises(ValueError, match="more image pads"):
        RENDERER.positions(more, 0)


@given(SIZES)
@settings(deadline=None, max_examples=15)
def test_patches_equal_those_of_the_pillow_image_processor(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(size).integers(0, 255, (size[1], size[0], 3), np.uint8)
    pixels = Image.fromarray(noise)
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": SETTINGS.min_pixels, "longest_edge": SETTINGS.max_pixels}
    )
    expected = processor([pixels], return_tensors="np")
    found = RENDERER.patches(image(size), pixels)
    assert tuple(expected["image_grid_thw"][0]) == RENDERER.grid(image(size))
    assert found.dtype == np.float32
    assert np.abs(found - expected["pixel_values"]).max() < 1e-5


def test_the_linear_patch_embedding_equals_the_stock_convolution() -> None:
    torch.manual_seed(0)
    stock = PatchEmbed(patch_size=14, temporal_patch_size=2, in_channels=3, embed_dim=96)
    patches = torch.randn(192, 3 * 2 * 14 * 14)
    with torch.no_grad():
        assert (LinearPatchEmbed(stock)(patches) - stock(patches)).abs().max() < 1e-5


# --- boxes in prose -------------------------------------------------------------------------------


def test_a_family_writes_boxes_as_it_was_taught_unless_told_otherwise(tmp_path: Path) -> None:
    TOKENIZER.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "preprocessor_config.json").write_text("{}")
    for model_type, taught in (("qwen2_vl", "qwen2"), ("qwen2_5_vl", "json")):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        assert Qwen2VLRenderer.from_pretrained(tmp_path).notation.name == taught
        told = Qwen2VLRenderer.from_pretrained(tmp_path, notation="inline")
        assert told.notation.name == "inline"


def test_box_tokens_may_be_written_where_boxes_are_written_with_them() -> None:
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.add_special_tokens(["<|box_start|>", "<|box_end|>"])
    ids = {tokenizer.token_to_id("<|box_start|>"), tokenizer.token_to_id("<|box_end|>")}
    between = Qwen2VLRenderer(tokenizer, SETTINGS)
    as_json = Qwen2VLRenderer(tokenizer, replace(SETTINGS, notation="json"))
    assert not ids & set(between.suppressed_ids)
    assert ids <= set(as_json.suppressed_ids)
    text = "a dog<|box_start|>(1,2),(3,4)<|box_end|>"
    assert ids <= set(between.demonstrated(text).ids)
    assert between.decode(between.demonstrated(text).ids) == text
    assert not ids & set(as_json.demonstrated(text).ids)
    asked = between.prompt([Message("user", (Text(text),))])
    assert not ids & set(asked.ids)  # a question can't speak in them
