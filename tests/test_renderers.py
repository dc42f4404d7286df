"""Renderers of Qwen3-VL and InternVL against transformers, and what all families have in common."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from saccade.dialects import dialect
from saccade.errors import RecipeError
from saccade.geometry import Box
from saccade.grounding import boxes_named
from saccade.renderers import Renderer, families, renderer_for
from saccade.renderers.internvl import InternVLRenderer, InternVLSettings, tile_grid
from saccade.renderers.qwen2vl import Qwen2VLRenderer, Qwen2VLSettings
from saccade.renderers.qwen3vl import Qwen3VLRenderer
from saccade.types import ImageRef, ImageShown, Message, Parsed, Segment, Text
from tiny_families import INTERNVL_MARKS, QWEN_MARKS, image_settings, model_of, tokenizer_of

INTERNVL = InternVLRenderer(tokenizer_of("internvl"))
QWEN3 = Qwen3VLRenderer(tokenizer_of("qwen3_vl"), Qwen3VLRenderer.usual("qwen3_vl"))
QWEN25 = Qwen2VLRenderer(tokenizer_of("qwen2_5_vl"), Qwen2VLRenderer.usual("qwen2_5_vl"))
QWEN2 = Qwen2VLRenderer(tokenizer_of("qwen2_vl"))
ALL: dict[str, Renderer] = {
    "qwen2_vl": QWEN2,
    "qwen2_5_vl": QWEN25,
    "qwen3_vl": QWEN3,
    "internvl": INTERNVL,
}
SIZES = st.tuples(st.integers(28, 1500), st.integers(28, 1500))
EVERY = pytest.mark.parametrize("name", ALL)


def ref(size: tuple[int, int], key: str = "a") -> ImageRef:
    return ImageRef(key, *size)


def noise(size: tuple[int, int]) -> Image.Image:
    values = np.random.default_rng(size).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


def text_of(renderer: Renderer, *segments: Segment) -> str:
    ids = [i for s in segments for i in s.ids]
    return renderer.tokenizer.decode(ids, skip_special_tokens=False)


# --- every family ---------------------------------------------------------------------------------


def test_families_are_those_that_there_are() -> None:
    known = families()
    assert set(known) == set(ALL)
    for name, renderer in ALL.items():
        assert known[name] is type(renderer)
        assert isinstance(renderer, Renderer)
        assert all(d.endswith(".") for d in renderer.deviations)


@pytest.mark.parametrize(
    ("name", "notation", "extent"),
    [
        ("qwen2_vl", "qwen2", (1000, 1000)),
        ("qwen2_5_vl", "json", (644, 476)),
        ("qwen3_vl", "json", (1000, 1000)),
        ("internvl", "internvl", (1000, 1000)),
    ],
)
def test_a_folder_says_which_family_it_is_and_that_declares_frame_and_notation(
    name: str, notation: str, extent: tuple[int, int], tmp_path: Path
) -> None:
    write_folder(name, tmp_path)
    found = renderer_for(tmp_path, max_image_tokens=1024)
    assert type(found) is type(ALL[name])
    assert found.notation.name == notation
    assert found.frame(ref((640, 480))).extent == extent
    assert renderer_for(tmp_path, notation="inline").notation.name == "inline"


def write_folder(name: str, folder: Path, **images: object) -> None:
    tokenizer_of(name).save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": name}))
    told = {} if name == "internvl" else image_settings(name)
    (folder / "preprocessor_config.json").write_text(json.dumps({**told, **images}))


@EVERY
def test_settings_of_pictures_may_stand_within_those_of_the_processor(
    name: str, tmp_path: Path
) -> None:
    write_folder(name, tmp_path)
    alone = renderer_for(tmp_path).settings  # type: ignore[attr-defined]
    file = tmp_path / "preprocessor_config.json"
    whole = {"image_processor": json.loads(file.read_text()) or {"do_resize": True}}
    (tmp_path / "processor_config.json").write_text(json.dumps(whole))
    file.unlink()
    assert renderer_for(tmp_path).settings == alone  # type: ignore[attr-defined]
    (tmp_path / "processor_config.json").unlink()
    with pytest.raises(RecipeError, match=r"has no preprocessor_config\.json"):
        renderer_for(tmp_path)


def test_one_familys_renderer_refuses_the_models_of_another(tmp_path: Path) -> None:
    write_folder("internvl", tmp_path)
    with pytest.raises(RecipeError, match="'internvl' is another family's"):
        Qwen2VLRenderer.from_pretrained(tmp_path)


@EVERY
def test_a_later_turn_never_changes_an_earlier_token(name: str) -> None:
    renderer = ALL[name]
    shown = ImageShown(ref((300, 200)), "img_0")
    segments = [renderer.prompt([Message("user", (shown, Text("What?")))])]
    for number in range(2):
        before = text_of(renderer, *segments)
        segments.append(renderer.demonstrated("Red."))
        view = ImageShown(ref((90 + number, 700)), "img_1")
        segments.append(renderer.observation(Message("tool", (Text("Look: "), view))))
        assert text_of(renderer, *segments).startswith(before)


@EVERY
def test_no_text_can_speak_in_special_tokens(name: str) -> None:
    renderer = ALL[name]
    added = renderer.tokenizer.get_added_tokens_decoder()
    special = {i for i, t in added.items() if t.special}
    said = " ".join(added[i].content for i in special)
    plain = renderer.prompt([Message("user", (Text("x"),))])
    loud = renderer.prompt([Message("user", (Text(said),))])
    assert [i for i in loud.ids if i in special] == [i for i in plain.ids if i in special]
    free = {renderer.tokenizer.token_to_id(t) for t in renderer.notation.specials}
    assert not (special - free) & set(renderer.demonstrated(said).ids[:-1])
    assert renderer.decode(renderer.demonstrated("a < b").ids) == "a < b"


@EVERY
def test_the_model_may_write_its_boxes_and_the_end_and_nothing_else_that_is_special(
    name: str,
) -> None:
    renderer = ALL[name]
    free = {
        added for added in (*QWEN_MARKS, *INTERNVL_MARKS) if added in renderer.notation.specials
    }
    kept = {renderer.tokenizer.token_to_id(t) for t in free} | {renderer.end_id}
    added = renderer.tokenizer.get_added_tokens_decoder()
    special = {i for i, t in added.items() if t.special}
    assert set(renderer.suppressed_ids) == special - kept
    assert renderer.pad_id in renderer.suppressed_ids
    written = renderer.notation.write((1, 2, 30, 40), "red bar")
    turn = renderer.demonstrated(written)
    assert renderer.decode(turn.ids) == written
    assert not set(turn.ids[:-1]) & set(renderer.suppressed_ids)


@EVERY
def test_instructions_show_boxes_as_the_model_writes_them(name: str) -> None:
    renderer = ALL[name]
    told = dialect("grounded", style="schema", tools=(), notation=renderer.notation)
    segment = renderer.prompt([Message("system", (Text(told.instructions(())),))])
    example = renderer.demonstrated(renderer.notation.example).ids[:-1]
    assert renderer.notation.example in text_of(renderer, segment)
    marks = {renderer.tokenizer.token_to_id(t) for t in renderer.notation.specials}
    assert [i for i in segment.ids if i in marks] == [i for i in example if i in marks]


@EVERY
@pytest.mark.parametrize("size", [(640, 480), (1333, 750), (7680, 4320), (4320, 7680)])
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_each_edge_of_a_box_returns_within_half_a_unit_of_the_familys_frame(
    name: str, size: tuple[int, int], data: st.DataObject
) -> None:
    renderer, (width, height) = ALL[name], size
    image = ref(size)
    frame = renderer.frame(image)
    unit = (width / frame.extent[0], height / frame.extent[1])
    # of a resized frame the last number is one short of the border
    short = frame.limit[0] < frame.extent[0]
    right, bottom = (s - u / 2 * short for s, u in zip(size, unit, strict=True))
    x = sorted(data.draw(st.tuples(*[st.floats(0, right)] * 2)))
    y = sorted(data.draw(st.tuples(*[st.floats(0, bottom)] * 2)))
    if x[1] - x[0] <= unit[0] or y[1] - y[0] <= unit[1]:
        return
    gold = Box(x[0], y[0], x[1], y[1])
    turn = renderer.demonstrated(f"I see {renderer.notation.write(frame.encode_box(gold), 'it')}.")
    thought = Parsed(renderer.decode(turn.ids))
    [back], bad = boxes_named(
        thought, renderer.notation, images={"img_0": image}, frame=renderer.frame
    )
    assert bad == ()
    for i, (was, now) in enumerate(zip(gold.as_tuple(), back.box.as_tuple(), strict=True)):
        assert abs(was - now) <= unit[i % 2] / 2 * (1 + 1e-9)


# --- InternVL -------------------------------------------------------------------------------------


def test_a_conversation_reads_as_internvls_template_writes_it() -> None:
    shown = ImageShown(ref((300, 200)), "img_0")
    segments = (
        INTERNVL.prompt([Message("system", (Text("Look."),)), Message("user", (shown, Text("?")))]),
        INTERNVL.demonstrated("Red."),
        INTERNVL.observation(Message("tool", (Text("Sure?"),))),
    )
    fake = SimpleNamespace(
        start_image_token="<img>",
        end_image_token="</img>",
        image_token="<IMG_CONTEXT>",
        image_seq_length=256,
    )
    told = {"num_patches": [INTERNVL.grid(shown.image)[0]]}
    picture = InternVLProcessor.replace_image_token(fake, told, 0)
    assert text_of(INTERNVL, *segments) == (
        "<|im_start|>system\nLook.<|im_end|>\n"
        f"<|im_start|>user\n{picture}\n?<|im_end|>\n<|im_start|>assistant\nRed.<|im_end|>\n"
        "<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )


def processor(settings: InternVLSettings) -> GotOcr2ImageProcessorPil:
    return GotOcr2ImageProcessorPil(
        size={"height": settings.tile, "width": settings.tile},
        crop_to_patches=True,
        min_patches=settings.least_tiles,
        max_patches=settings.most_tiles,
        image_mean=list(settings.mean),
        image_std=list(settings.std),
    )


@given(
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    least=st.integers(1, 3),
    more=st.integers(0, 20),
)
@settings(deadline=None)
def test_tiles_are_as_many_as_those_of_the_image_processor(
    size: tuple[int, int], least: int, more: int
) -> None:
    made = InternVLSettings(least_tiles=least, most_tiles=least + more)
    renderer = InternVLRenderer(INTERNVL.tokenizer, made)
    if made.most_tiles == 1:  # there the processor does not look for a grid
        assert renderer.grid(ref(size))[0] == 1
        return
    expected = processor(made).get_number_of_image_patches(size[1], size[0])
    assert renderer.grid(ref(size)) == (expected, 32, 32)
    assert renderer.image_tokens(ref(size)) == 256 * expected


def test_tiles_of_known_pictures() -> None:
    found = {s: tile_grid(*s, tile=448, least=1, most=12) for s in (
        (448, 448), (300, 300), (1000, 1000), (640, 480), (1333, 750), (7680, 4320), (100, 3000)
    )}  # fmt: skip
    assert found == {
        (448, 448): (1, 1),
        (300, 300): (1, 1),
        (1000, 1000): (3, 3),
        (640, 480): (4, 3),
        (1333, 750): (4, 2),
        (7680, 4320): (4, 2),
        (100, 3000): (1, 12),
    }


@given(st.tuples(st.integers(20, 400), st.integers(20, 400)))
@settings(deadline=None, max_examples=15)
def test_tiles_equal_those_of_the_pillow_image_processor(size: tuple[int, int]) -> None:
    made = InternVLSettings(tile=56, most_tiles=6)
    renderer = InternVLRenderer(INTERNVL.tokenizer, made)
    expected = processor(made)([noise(size)], return_tensors="np")["pixel_values"]
    found = renderer.patches(ref(size), noise(size))
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5


def test_tiles_are_those_of_the_real_size_too() -> None:
    size = (1333, 750)
    expected = processor(INTERNVL.settings)([noise(size)], return_tensors="np")["pixel_values"]
    assert np.abs(INTERNVL.patches(ref(size), noise(size)) - expected).max() < 1e-5


def test_internvls_positions_count_tokens() -> None:
    shown = ImageShown(ref((300, 200)), "img_0")
    segment = INTERNVL.prompt([Message("user", (shown, Text("?")))])
    placed = INTERNVL.positions(segment, 7)
    assert placed.next_start == 7 + len(segment.ids)
    assert (placed.ids == 7 + np.arange(len(segment.ids))).all()
    for ids in (segment.ids[:-20], (*segment.ids, INTERNVL.pad_id)):
        if ids.count(INTERNVL.pad_id) != segment.ids.count(INTERNVL.pad_id):
            with pytest.raises(ValueError, match="image pads, its images cost"):
                INTERNVL.positions(Segment("prompt", ids, images=segment.images), 0)


@pytest.mark.parametrize(
    ("least", "most", "tiles"),
    [
        (None, None, (1, 12)),
        (4, 256, (1, 1)),
        (4, 767, (1, 1)),
        (4, 768, (1, 2)),
        (4, 1280, (1, 4)),
        (256, 3328, (1, 12)),
        (257, 3328, (2, 12)),
        (1024, 3328, (3, 12)),
    ],
)
def test_a_budget_in_tokens_is_one_in_tiles(
    least: int | None, most: int | None, tiles: tuple[int, int], tmp_path: Path
) -> None:
    write_folder("internvl", tmp_path)
    made = InternVLRenderer.from_pretrained(tmp_path, min_image_tokens=least, max_image_tokens=most)
    assert (made.settings.least_tiles, made.settings.most_tiles) == tiles
    for size in ((448, 448), (3000, 200), (640, 480)):
        cost = made.image_tokens(ref(size))
        assert cost <= (most or 10**6)
        # one tile is what a square of few tiles is, whatever the least
        assert cost >= min(least or 0, 256)


def test_budgets_that_no_tiles_have_are_refused(tmp_path: Path) -> None:
    write_folder("internvl", tmp_path)
    with pytest.raises(RecipeError, match="at least 256 tokens, got max_image_tokens 64"):
        renderer_for(tmp_path, max_image_tokens=64)
    with pytest.raises(RecipeError, match="No tiles of 256 tokens cost 300 to 600"):
        renderer_for(tmp_path, min_image_tokens=300, max_image_tokens=600)
    write_folder("internvl", tmp_path, size={"height": 448, "width": 384})
    with pytest.raises(RecipeError, match=r"squares of one size.*\[384, 448\]"):
        renderer_for(tmp_path)


# --- Qwen3-VL -------------------------------------------------------------------------------------


@given(SIZES)
@settings(deadline=None, max_examples=15)
def test_qwen3s_patches_equal_those_of_the_pillow_image_processor(size: tuple[int, int]) -> None:
    made = Qwen2VLSettings(
        patch=16, mean=(0.5,) * 3, std=(0.5,) * 3, min_pixels=4 * 32**2, max_pixels=64 * 32**2
    )
    renderer = Qwen3VLRenderer(QWEN3.tokenizer, made)
    reference = Qwen2VLImageProcessorPil(
        patch_size=16,
        size={"shortest_edge": made.min_pixels, "longest_edge": made.max_pixels},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    expected = reference([noise(size)], return_tensors="np")
    assert tuple(expected["image_grid_thw"][0]) == renderer.grid(ref(size))
    found = renderer.patches(ref(size), noise(size))
    assert np.abs(found - expected["pixel_values"]).max() < 1e-5


def test_a_conversation_reads_as_qwen3s_template_writes_it() -> None:
    shown = ImageShown(ref((300, 200)), "img_0")
    segment = QWEN3.prompt([Message("user", (shown, Text("?")))])
    fake = SimpleNamespace(
        image_processor=SimpleNamespace(merge_size=2), image_token="<|image_pad|>"
    )
    told = {"image_grid_thw": [np.array(QWEN3.grid(shown.image))]}
    pads = Qwen3VLProcessor.replace_image_token(fake, told, 0)
    assert text_of(QWEN3, segment) == (
        f"<|im_start|>user\n<|vision_start|>{pads}<|vision_end|>?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@cache
def qwen3_model() -> torch.nn.Module:
    return model_of("qwen3_vl", QWEN3.tokenizer)


@given(data=st.data(), counts=st.lists(st.integers(0, 3), min_size=1, max_size=4))
@settings(deadline=None, max_examples=25)
def test_qwen3s_incremental_positions_equal_those_of_the_whole_sequence(
    data: st.DataObject, counts: list[int]
) -> None:
    segments, start, found = [], 0, []
    for number, count in enumerate(counts):
        parts = [Text("Look at the blue bar." * data.draw(st.integers(0, 3)))]
        for _ in range(count):
            parts += [ImageShown(ref(data.draw(SIZES)), "img_1"), Text("x")]
        message = Message("user", tuple(parts))
        made = QWEN3.prompt([message]) if number == 0 else QWEN3.observation(message)
        segments += [made, QWEN3.demonstrated("It is 42.")]
    for segment in segments:
        placed = QWEN3.positions(segment, start)
        found.append(placed.ids)
        start = placed.next_start
    ids = torch.tensor([[i for s in segments for i in s.ids]])
    grids = [QWEN3.grid(i) for s in segments for i in s.images]
    expected, delta = qwen3_model().model.get_rope_index(
        ids,
        (ids == QWEN3.pad_id).int(),
        image_grid_thw=torch.tensor(grids) if grids else None,
    )
    assert np.array_equal(np.concatenate(found, axis=1), expected[:, 0].numpy())
    assert start == ids.shape[1] + int(delta)
