"""Back ends that ask a learned model: each is loaded from a folder as a real one would be, with
random weights, and asked as a tool asks it. What random weights find means nothing; what goes in,
what comes out and what is refused does.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertTokenizer,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoProcessor,
    MMGroundingDinoConfig,
    MMGroundingDinoForObjectDetection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SamConfig,
    SamHQConfig,
    SamHQModel,
    SamModel,
    SwinConfig,
)
from transformers.models.grounding_dino.image_processing_pil_grounding_dino import (
    GroundingDinoImageProcessorPil,
)
from transformers.models.sam.image_processing_pil_sam import SamImageProcessorPil

from saccade.backends.grounding_dino import THRESHOLD, GroundingDinoDetector
from saccade.backends.kinds import Backend, Detected
from saccade.backends.models_known import KNOWN, explained, fetch, folder_of
from saccade.backends.pointing_vlm import FAMILIES, VlmPointer
from saccade.backends.sam import SamSegmenter
from saccade.config import BackendChoice
from saccade.errors import RecipeError, ToolError
from saccade.geometry import Box, Point
from saccade.images import root_view
from saccade.models.tiny import (
    SETTINGS,
    SPECIAL,
    build_model,
    build_tokenizer,
    save,
    save_processor,
)
from saccade.recipe_files import load_recipe
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.toolserver.serving import served
from saccade.types import BoxFound, ImageShown, Message, Text

WORDS = ("red", "cat", "dog", "remote", "control", "blue", "1", "5", "litre", "bottle", ",")
TOKENIZER = build_tokenizer()


def picture(width: int = 120, height: int = 80, *, seed: int = 0) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(colours)


def choice(folder: Path, **more: Any) -> BackendChoice:
    return BackendChoice(model=str(folder), **more)


def in_one_pass(
    backend: Any, calls: Sequence[Callable[[], Any]], *, forward: str = "forward"
) -> tuple[list[Any], list[int]]:
    """What calls give that come while the model works at the first of them, and how many the model
    answered in each pass; errors as they are.
    """
    stock = getattr(backend._model, forward)
    sizes: list[int] = []

    def passed(**inputs: Any) -> Any:
        sizes.append(len(inputs.get("input_ids", inputs["pixel_values"])))
        deadline = time.monotonic() + 30
        while len(sizes) == 1 and len(backend._batched._waiting) < len(calls) - 1:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return stock(**inputs)

    setattr(backend._model, forward, passed)
    with ThreadPoolExecutor(len(calls)) as threads:
        told = []
        for call in calls:
            told.append(threads.submit(call))
            # the second pass takes all that wait, perhaps before this thread saw them wait
            while len(sizes) < 2 and len(sizes) + len(backend._batched._waiting) < len(told):
                time.sleep(0.001)
        answers = [t.exception() or t.result() for t in told]
    setattr(backend._model, forward, stock)
    return answers, sizes


def heard(backend: Any) -> dict[bytes, list[Any]]:
    """Whatever the model will answer, by what it is asked."""
    told: dict[bytes, list[Any]] = {}
    ask = backend._batched.ask

    def asked(given: dict[str, torch.Tensor]) -> Any:
        answer = ask(given)
        key = b"".join(value.numpy().tobytes() for value in given.values())
        told.setdefault(key, []).append(answer)
        return answer

    backend._batched.ask = asked
    return told


def same_answers(told: dict[bytes, list[Any]]) -> None:
    """Each was asked twice, and answered in the same way."""
    for alone, in_company in told.values():
        for a, b in zip(alone, in_company, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4 * float(b.abs().max()), rtol=1e-4)


# --- Grounding DINO -------------------------------------------------------------------------------


def bert_tokenizer(folder: Path) -> BertTokenizer:
    """A WordPiece with the delimiters at the ids that the model takes for granted."""
    fixed = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    fixed |= {1012: ".", 1029: "?"}
    fixed |= {2000 + n: word for n, word in enumerate(WORDS)}
    vocabulary = {fixed.get(n, f"[unused{n}]"): n for n in range(2100)}
    stock = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    stock.normalizer = normalizers.BertNormalizer(lowercase=True)
    stock.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    stock.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    stock.save(str(folder / "stock.json"))
    return BertTokenizer(tokenizer_object=stock, tokenizer_file=str(folder / "stock.json"))


def grounding_dino(folder: Path, config_class: Any, model_class: Any) -> Path:
    config = config_class(
        backbone_config=SwinConfig(
            image_size=64,
            embed_dim=16,
            depths=[1, 1, 1, 1],
            num_heads=[1, 1, 2, 2],
            window_size=2,
            out_features=["stage2", "stage3", "stage4"],
        ),
        text_config=BertConfig(
            vocab_size=2100,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=64,
        ),
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=12,
        max_text_len=48,
    )
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    pictures = GroundingDinoImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(pictures, bert_tokenizer(folder)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    return grounding_dino(folder, GroundingDinoConfig, GroundingDinoForObjectDetection)


@pytest.fixture
def dino(dino_folder: Path) -> GroundingDinoDetector:
    return GroundingDinoDetector(choice(dino_folder))


def say(
    detector: GroundingDinoDetector, fits: dict[int, dict[str, float]], boxes: Any
) -> list[Any]:
    """Let the model answer: of each query how sure it is of each word, and its box. Returns what
    it is given.
    """
    given: list[Any] = []
    stock = detector._model.forward

    def forward(**inputs: Any) -> Any:
        given.append(inputs)
        found = stock(**inputs)
        vocabulary = detector._processor.tokenizer.get_vocab()
        found.logits[:] = float("-inf")
        for query, words in fits.items():
            for word, probability in words.items():
                at = (inputs["input_ids"][0] == vocabulary[word]).nonzero()[:, 0]
                assert len(at), f"{word!r} was not asked for"
                found.logits[0, query, at] = torch.tensor(probability).logit()
        for query, box in enumerate(boxes):
            found.pred_boxes[0, query] = torch.tensor(box)
        return found

    detector._model.forward = forward
    return given


def test_a_detector_tells_boxes_inside_the_picture_surest_first(
    dino: GroundingDinoDetector,
) -> None:
    found = dino.detect(picture(), "cat, dog")
    assert found, "random weights are sure of something"
    assert {d.label for d in found} <= {"cat", "dog"}
    for d in found:
        assert d.box.clip(120, 80) == d.box
        assert d.score is not None
        assert THRESHOLD < d.score <= 1
    scores = [d.score for d in found]
    assert scores == sorted(scores, reverse=True)
    assert found == dino.detect(picture(), "cat, dog")
    assert found != dino.detect(picture(seed=1), "cat, dog")


def test_a_box_bears_the_label_whose_words_fit_it_best(dino: GroundingDinoDetector) -> None:
    middle = (0.5, 0.5, 0.5, 0.5)
    given = say(
        dino,
        {
            0: {"cat": 0.6, "control": 0.3},
            1: {"cat": 0.3, "control": 0.9},
            2: {".": 0.99, "dog": 0.2},
            3: {"dog": 0.26},
        },
        [middle] * 4,
    )
    found = dino.detect(picture(), "Red  Cat. remote CONTROL,dog\n red cat")
    text = dino._processor.tokenizer.decode(given[0]["input_ids"][0], skip_special_tokens=True)
    assert text.replace(" .", ".") == "red cat. remote control. dog."
    assert [(d.label, round(d.score or 0, 4)) for d in found] == [
        ("remote CONTROL", 0.9),
        ("red cat", 0.6),
        ("dog", 0.26),
    ]


def test_words_of_two_things_that_are_alike_are_told_apart(dino: GroundingDinoDetector) -> None:
    stock = dino._model.forward

    def forward(**inputs: Any) -> Any:
        found = stock(**inputs)
        found.logits[:] = -9.0
        # [CLS] red cat . red dog . [SEP]
        found.logits[0, 0, 4] = 2.0
        return found

    dino._model.forward = forward
    assert [d.label for d in dino.detect(picture(), "red cat, red dog")] == ["red dog"]


def test_boxes_are_clipped_and_those_without_a_pixel_are_dropped(
    dino: GroundingDinoDetector,
) -> None:
    boxes = [
        (0.5, 0.5, 0.5, 0.25),
        (0.0, 1.0, 0.5, 0.5),
        (0.5, 0.5, 0.0, 0.5),
        (1.5, 0.5, 0.5, 0.5),
        (float("nan"), 0.5, 0.5, 0.5),
    ]
    say(dino, {n: {"cat": 0.9 - 0.1 * n} for n in range(5)}, boxes)
    assert [d.box for d in dino.detect(picture(), "cat")] == [
        Box(30, 30, 90, 50),
        Box(0, 60, 30, 80),
    ]


def test_numbers_keep_their_points_and_commas(dino: GroundingDinoDetector) -> None:
    say(dino, {0: {"5": 0.9}}, [(0.5, 0.5, 0.5, 0.5)])
    assert [d.label for d in dino.detect(picture(), "cat, 1.5 litre bottle")] == [
        "1.5 litre bottle"
    ]


@pytest.mark.parametrize("query", ["", " . , ", "кот", "cat, кот", "cat, " + "dog cat " * 40])
def test_a_query_that_can_t_be_read_is_refused_in_a_sentence(
    dino: GroundingDinoDetector, query: str
) -> None:
    with pytest.raises(ToolError, match=r"^(Say what|The detector can't read 'кот'|That is too)"):
        dino.detect(picture(), query)


def test_an_mm_grounding_dino_is_asked_in_the_same_way(tmp_path: Path) -> None:
    folder = grounding_dino(tmp_path, MMGroundingDinoConfig, MMGroundingDinoForObjectDetection)
    detector = GroundingDinoDetector(choice(folder))
    assert type(detector._model) is MMGroundingDinoForObjectDetection
    say(detector, {0: {"dog": 0.7}}, [(0.5, 0.5, 0.5, 0.5)])
    found = detector.detect(picture(), "cat, dog")
    assert [(d.label, d.box) for d in found] == [("dog", Box(30, 20, 90, 60))]


def same_things(found: list[Detected], wanted: list[Detected]) -> None:
    assert [d.label for d in found] == [d.label for d in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert a.score == pytest.approx(b.score, abs=1e-4)
        assert a.box.as_tuple() == pytest.approx(b.box.as_tuple(), abs=1e-2)


@pytest.mark.parametrize("kind", ["grounding-dino", "mm-grounding-dino"])
def test_a_detector_finds_in_one_pass_what_it_finds_alone(
    kind: str, dino_folder: Path, tmp_path: Path
) -> None:
    folder = (
        dino_folder
        if kind == "grounding-dino"
        else grounding_dino(tmp_path, MMGroundingDinoConfig, MMGroundingDinoForObjectDetection)
    )
    detector = GroundingDinoDetector(choice(folder, batch=8))
    queries = ("dog", "cat", "red cat, blue dog, remote control", "1.5 litre bottle", "dog, cat")
    calls = [partial(detector.detect, picture(seed=n), q) for n, q in enumerate(queries)]
    told = heard(detector)
    wanted = [call() for call in calls]
    found, sizes = in_one_pass(detector, calls)
    assert sizes == [1, 4]
    assert len(told) == 5
    same_answers(told)
    for a, b in zip(found, wanted, strict=True):
        same_things(a, b)


def test_pictures_that_a_detector_sees_in_other_sizes_have_a_pass_of_their_own(
    dino_folder: Path,
) -> None:
    detector = GroundingDinoDetector(choice(dino_folder, batch=8))
    shapes = [(120, 80), (120, 80), (80, 120), (240, 160), (80, 120)]
    calls = [partial(detector.detect, picture(*shape), "cat, dog") for shape in shapes]
    wanted = [call() for call in calls]
    found, sizes = in_one_pass(detector, calls)
    assert sizes == [1, 2, 2], "240 x 160 is seen as 120 x 80 is"
    for a, b in zip(found, wanted, strict=True):
        same_things(a, b)


def test_words_that_can_t_be_read_are_told_to_their_caller_alone(dino_folder: Path) -> None:
    detector = GroundingDinoDetector(choice(dino_folder, batch=8))

    def mistaken() -> list[Detected]:
        with pytest.raises(ToolError, match="can't read 'кот'"):
            detector.detect(picture(), "кот")
        return detector.detect(picture(), "cat")

    calls = [lambda: detector.detect(picture(), "dog"), mistaken, mistaken]
    found, sizes = in_one_pass(detector, calls)
    assert sizes == [1, 2]
    same_things(found[1], detector.detect(picture(), "cat"))


def test_a_batch_of_one_and_a_processor_left_alone_answer_one_call_in_a_pass(
    dino_folder: Path,
) -> None:
    for more in ({"batch": 1}, {}):
        detector = GroundingDinoDetector(choice(dino_folder, **more))
        calls = [partial(detector.detect, picture(seed=n), "cat") for n in range(3)]
        assert in_one_pass(detector, calls)[1] == [1, 1, 1]


def test_calls_of_a_run_share_passes_in_process(
    dino_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    stock = GroundingDinoForObjectDetection.forward

    def forward(self: Any, **inputs: Any) -> Any:
        sizes.append(len(inputs["input_ids"]))
        time.sleep(0.2)
        return stock(self, **inputs)

    monkeypatch.setattr(GroundingDinoForObjectDetection, "forward", forward)
    chosen = ("name=grounding-dino", f"model={dino_folder}", "batch=4")
    recipe = load_recipe(None, ["tools=[detect]", *(f"backends.detector.{c}" for c in chosen)])
    [detect], controller = served(recipe)
    view = root_view(picture())
    queries = [f"{colour} {thing}" for colour in ("red", "blue", "1") for thing in WORDS[1:5]]

    async def all_of_them() -> list[list[Any]]:
        asked = ({"image": view, "query": query} for query in queries)
        return await asyncio.gather(*(controller.run(detect, a, deadline_s=60) for a in asked))

    found = asyncio.run(all_of_them())
    assert sum(sizes) == 12
    assert max(sizes) == 4
    assert len(sizes) <= 5
    for query, parts in zip(queries, found, strict=True):
        assert {p.label for p in parts if isinstance(p, BoxFound)} == {query}


# --- SAM ------------------------------------------------------------------------------------------


def sam(folder: Path, config_class: Any, model_class: Any, **vision: Any) -> Path:
    config = config_class(
        vision_config={
            "hidden_size": 16,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 64,
            "patch_size": 8,
            "window_size": 4,
            "global_attn_indexes": [1],
            "num_pos_feats": 8,
            "mlp_dim": 32,
            **vision,
        },
        prompt_encoder_config={
            "hidden_size": 16,
            "image_size": 64,
            "patch_size": 8,
            "mask_input_channels": 4,
        },
        mask_decoder_config={
            "hidden_size": 16,
            "mlp_dim": 32,
            "num_attention_heads": 2,
            "iou_head_hidden_dim": 16,
            **({"vit_dim": 16} if vision else {}),
        },
    )
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    SamImageProcessorPil(
        size={"longest_edge": 64}, pad_size={"height": 64, "width": 64}
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sam(tmp_path_factory.mktemp("sam"), SamConfig, SamModel)


@pytest.fixture
def segmenter(sam_folder: Path) -> SamSegmenter:
    return SamSegmenter(choice(sam_folder))


def draw(segmenter: SamSegmenter, masks: list[Any], scores: list[float]) -> list[Any]:
    """Let the model answer with masks of 64 x 64, given as functions of the place, in pixels of
    the picture as the model sees it. Returns what it is given.
    """
    given: list[Any] = []
    stock = segmenter._model.forward
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")

    def forward(**inputs: Any) -> Any:
        given.append(inputs)
        found = stock(**inputs)
        drawn = torch.stack([torch.where(m(x, y), 9.0, -9.0) for m in masks])
        found.pred_masks = drawn[None, None]
        found.iou_scores = torch.tensor(scores)[None, None]
        return found

    segmenter._model.forward = forward
    return given


def left(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x < 32


def right(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x > 32


def everything(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x > -1


def nothing(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x < -1


def test_a_mask_has_the_picture_s_size_and_a_score(segmenter: SamSegmenter) -> None:
    found = [segmenter.segment(picture(seed=n), box=Box(10, 10, 110, 70)) for n in range(4)]
    masks = [f for f in found if f is not None]
    assert masks, "random weights fill something of four pictures"
    for one in masks:
        assert (one.mask.width, one.mask.height) == (120, 80)
        assert one.score is not None
        assert 0 <= one.score <= 1


def test_box_and_points_reach_the_model_in_its_own_pixels(segmenter: SamSegmenter) -> None:
    given = draw(segmenter, [everything], [0.5])
    segmenter.segment(picture(), box=Box(30, 15, 90, 60), points=[Point(60, 45)], outside=[])
    # 120 x 80 is seen as 64 x 43
    grown = (64 / 120, 43 / 80)
    want = torch.tensor([30 * grown[0], 15 * grown[1], 90 * grown[0], 60 * grown[1]])
    torch.testing.assert_close(given[0]["input_boxes"], want[None, None])
    place = torch.tensor([60 * grown[0], 45 * grown[1]])
    torch.testing.assert_close(given[0]["input_points"], place[None, None, None])
    assert given[0]["input_labels"].tolist() == [[[1]]]


def test_points_outside_are_told_to_be_so(segmenter: SamSegmenter) -> None:
    given = draw(segmenter, [left], [0.5])
    found = segmenter.segment(
        picture(), points=[Point(5, 5), Point(20, 70)], outside=[Point(90, 9)]
    )
    assert given[0]["input_labels"].tolist() == [[[1, 1, 0]]]
    assert given[0]["input_points"].shape == (1, 1, 3, 2)
    assert "input_boxes" not in given[0]
    assert found is not None
    assert found.mask.bounds == Box(0, 0, 60, 80)


def test_the_mask_that_the_model_trusts_most_is_taken(segmenter: SamSegmenter) -> None:
    draw(segmenter, [right, left, everything], [0.4, 1.3, 0.6])
    found = segmenter.segment(picture(), box=Box(0, 0, 120, 80))
    assert found is not None
    assert (found.mask.bounds, found.score) == (Box(0, 0, 60, 80), 1.0)


def test_a_mask_that_misses_a_point_or_holds_one_outside_is_not_taken(
    segmenter: SamSegmenter,
) -> None:
    draw(segmenter, [left, everything, right], [0.9, 0.8, 0.25])
    found = segmenter.segment(picture(), points=[Point(100, 40)], outside=[Point(10, 40)])
    assert found is not None
    assert found.mask.bounds == Box(60, 0, 120, 80)
    assert found.score == pytest.approx(0.25)
    far = segmenter.segment(picture(), points=[Point(100, 40)], outside=[Point(110, 40)])
    assert far is None
    assert segmenter.segment(picture(), points=[Point(130, 40)]) is None


def test_the_box_bounds_the_mask_and_an_empty_one_is_none(segmenter: SamSegmenter) -> None:
    draw(segmenter, [everything], [0.5])
    found = segmenter.segment(picture(), box=Box(20.5, 10, 70, 30.2), points=[Point(30, 20)])
    assert found is not None
    assert found.mask.bounds == Box(20, 10, 70, 31)
    draw(segmenter, [nothing], [0.5])
    assert segmenter.segment(picture(), box=Box(20, 10, 70, 30)) is None


def test_segmenting_needs_a_box_or_a_point(segmenter: SamSegmenter) -> None:
    with pytest.raises(ValueError, match="needs a box or a point"):
        segmenter.segment(picture(), outside=[Point(1, 1)])


def test_a_sam_hq_is_asked_in_the_same_way(tmp_path: Path) -> None:
    folder = sam(tmp_path, SamHQConfig, SamHQModel, image_size=64)
    segmenter = SamSegmenter(choice(folder))
    assert type(segmenter._model) is SamHQModel
    draw(segmenter, [left], [0.5])
    found = segmenter.segment(picture(), box=Box(0, 0, 120, 80))
    assert found is not None
    assert found.mask.bounds == Box(0, 0, 60, 80)


@pytest.mark.parametrize("kind", ["sam", "sam_hq"])
def test_a_segmenter_gives_in_one_pass_what_it_gives_alone(
    kind: str, sam_folder: Path, tmp_path: Path
) -> None:
    folder = sam_folder if kind == "sam" else sam(tmp_path, SamHQConfig, SamHQModel, image_size=64)
    segmenter = SamSegmenter(choice(folder, batch=8))
    shapes = [(120, 80), (80, 120), (64, 64), (200, 50)]
    prompts: list[dict[str, Any]] = [
        {"box": Box(2, 2, 60, 48)},
        {"points": [Point(30, 20)]},
        {"points": [Point(30, 20)], "outside": [Point(60, 40)]},
        {"box": Box(0, 0, 64, 50), "points": [Point(30, 20)]},
    ]
    calls = [
        partial(segmenter.segment, picture(*shape, seed=n), **prompt)
        for prompt in prompts
        for n, shape in enumerate(shapes)
    ]
    told = heard(segmenter)
    wanted = [call() for call in calls]
    found, sizes = in_one_pass(segmenter, calls)
    assert sizes == [1, 3, 4, 4, 4], "prompts of other shapes have passes of their own"
    assert len(told) == 16
    same_answers(told)
    assert sum(w is not None for w in wanted) >= 4
    assert [f and f.mask for f in found] == [w and w.mask for w in wanted]


@pytest.mark.parametrize("kind", ["sam2", "sam2_video", "sam3_tracker", "sam3_video", "edgetam"])
def test_a_later_sam_without_torchvision_is_refused_with_the_remedy(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec("torchvision") is not None:
        monkeypatch.setattr("saccade.backends.sam.find_spec", lambda name: None)
    folder = only_config(tmp_path, kind)
    with pytest.raises(RecipeError) as refused:
        SamSegmenter(choice(folder))
    assert str(refused.value) == (
        f"Model {str(folder)!r} is of type {kind}, whose pictures transformers prepares with "
        "torchvision, which is not installed: pip install torchvision, or choose a SAM 1 model "
        "such as facebook/sam-vit-base, or the segmenter 'fills'."
    )


# --- models that point ----------------------------------------------------------------------------


def tiny_qwen(folder: Path, kind: str) -> Path:
    """Of each type, as its own class and its own image settings."""
    renderer = Qwen2VLRenderer(TOKENIZER, SETTINGS)
    if kind == "qwen2_vl":
        model = build_model(TOKENIZER, seed=0, hidden=64, layers=1, vision=32, vision_layers=1)
        save(model, renderer, folder, made_by={})
        return folder
    size = TOKENIZER.get_vocab_size(with_added_tokens=True)
    ids = {t: TOKENIZER.token_to_id(t) for t in SPECIAL}
    text = {
        "vocab_size": size,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [2, 3, 3],
        },
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
    }
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    shared = {
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
    }
    torch.manual_seed(0)
    folder.mkdir(exist_ok=True)
    save_processor(renderer, folder)
    if kind == "qwen2_5_vl":
        config = Qwen2_5_VLConfig(
            text_config=text,
            vision_config={**vision, "out_hidden_size": 32, "fullatt_block_indexes": [0]},
            **shared,
        )
        Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder)
        return folder
    config = Qwen3VLConfig(
        text_config={**text, "head_dim": 16},
        vision_config={
            **vision,
            "out_hidden_size": 32,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
        **shared,
    )
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder)
    stored = json.loads((folder / "preprocessor_config.json").read_text())
    stored |= {"patch_size": 16, "size": {"shortest_edge": 2 * 32**2, "longest_edge": 16 * 32**2}}
    del stored["min_pixels"], stored["max_pixels"]
    (folder / "preprocessor_config.json").write_text(json.dumps(stored))
    return folder


QWENS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@pytest.fixture(scope="module")
def qwen_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {k: tiny_qwen(tmp_path_factory.mktemp("qwen") / k, k) for k in QWENS}


@pytest.fixture
def pointer_of(qwen_folders: dict[str, Path]) -> Callable[[str], VlmPointer]:
    return lambda kind: VlmPointer(choice(qwen_folders[kind]))


def write(pointer: VlmPointer, text: str) -> list[dict[str, Any]]:
    """Let the model write this. Returns what it is given."""
    given: list[dict[str, Any]] = []

    def generate(**inputs: Any) -> torch.Tensor:
        given.append(inputs)
        ids = pointer._inputs.tokenizer(text + "<|im_end|>", return_tensors="pt")["input_ids"]
        return torch.cat([inputs["input_ids"], ids], dim=1)

    pointer._model.generate = generate
    return given


@pytest.mark.parametrize("kind", QWENS)
def test_a_model_is_shown_the_picture_and_writes_a_bounded_answer(
    kind: str, pointer_of: Callable[[str], VlmPointer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade.backends.pointing_vlm.MOST_TOKENS", 6)
    pointer = pointer_of(kind)
    first = pointer._answer(picture(), "Point to it.")
    assert first == pointer._answer(picture(), "Point to it.")
    ids = pointer._inputs.tokenizer(first.text)["input_ids"]
    assert len(ids) <= 8, "six tokens may be split otherwise when they are read back"
    shown = write(pointer, "")
    pointer._answer(picture(), "Point to it.")
    pointer._answer(picture(seed=1), "Point to it.")
    assert not torch.equal(shown[0]["pixel_values"], shown[1]["pixel_values"])
    assert len(shown[0]["pixel_values"]) == int(shown[0]["image_grid_thw"].prod())


@pytest.mark.parametrize("kind", QWENS)
def test_a_model_writes_in_one_pass_what_it_writes_alone(
    kind: str, qwen_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade.backends.pointing_vlm.MOST_TOKENS", 24)
    pointer = VlmPointer(choice(qwen_folders[kind], batch=8))
    asked = [
        (picture(), "Point to it."),
        (picture(300, 60, seed=1), "Point to the tallest bar in the image, left of the legend."),
        (picture(56, 56, seed=2), "?"),
        (picture(120, 80, seed=3), "Point to it."),
        (picture(90, 200, seed=4), "Where is the red one?"),
    ]
    calls = [partial(pointer._answer, *a) for a in asked]
    wanted = [call() for call in calls]
    assert len({w.text for w in wanted}) > 1
    found, sizes = in_one_pass(pointer, calls, forward="generate")
    assert sizes == [1, 4]
    assert found == wanted


def test_an_answer_that_ends_before_others_do_is_read_as_it_was_alone(
    qwen_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pointer = VlmPointer(choice(qwen_folders["qwen2_vl"], batch=8))
    texts = ['[{"point_2d": [500, 250]}]', "[]", '[{"point_2d": [100, 900], "label": "a bar"}]']

    def generate(**inputs: Any) -> torch.Tensor:
        ids = [TOKENIZER.encode(text + "<|im_end|>").ids for text in texts]
        ids = ids[:1] if len(inputs["input_ids"]) == 1 else ids[1:]
        longest = max(map(len, ids))
        filled = [row + [pointer._inputs.stops[0]] * (longest - len(row)) for row in ids]
        return torch.cat([inputs["input_ids"], torch.tensor(filled)], dim=1)

    pointer._model.generate = generate
    calls = [partial(pointer.point, picture(60 + 60 * n, 80), "a bar" * (n + 1)) for n in range(3)]
    found, sizes = in_one_pass(pointer, calls, forward="generate")
    assert sizes == [1, 2]
    assert [[p.point for p in f] for f in found] == [[Point(30, 20)], [], [Point(18, 72)]]


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl"])
def test_a_model_reads_what_the_renderer_of_its_family_writes(
    kind: str, qwen_folders: dict[str, Path], pointer_of: Callable[[str], VlmPointer]
) -> None:
    pointer = pointer_of(kind)
    given = write(pointer, "")
    pointer._answer(picture(), "Point to it.")
    renderer = Qwen2VLRenderer.from_pretrained(qwen_folders[kind])
    image = root_view(picture())
    asked = renderer.prompt(
        [
            Message("system", (Text("You are a helpful assistant."),)),
            Message("user", (ImageShown(image.ref, "img_0"), Text("Point to it."))),
        ]
    )
    assert given[0]["input_ids"][0].tolist() == list(asked.ids)
    patches = renderer.patches(image.ref, picture())
    np.testing.assert_allclose(given[0]["pixel_values"].numpy(), patches, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "seen", "want"),
    [
        # 0 to 1000 of 120 x 80
        ("qwen2_vl", (112, 84), [(60.0, 20.0), (12.0, 79.92)]),
        # pixels of 112 x 84: x 120 / 112, y 80 / 84
        ("qwen2_5_vl", (112, 84), [(500 * 120 / 112, 250 * 80 / 84), (107.142857, 951.428571)]),
        # sides are multiples of 32, a half rounds to even
        ("qwen3_vl", (128, 64), [(60.0, 20.0), (12.0, 79.92)]),
    ],
)
def test_points_are_read_in_the_frame_of_the_family(
    kind: str,
    seen: tuple[int, int],
    want: list[tuple[float, float]],
    pointer_of: Callable[[str], VlmPointer],
) -> None:
    pointer = pointer_of(kind)
    write(
        pointer,
        '```json\n[{"point_2d": [500, 250], "label": "a"},\n'
        '{"point_2d": [100, 999], "label": "b"}, {"point_2d": [1000, 250]}]\n```',
    )
    assert pointer._answer(picture(), "?").seen == seen
    found = [(p.point.x, p.point.y) for p in pointer.point(picture(), "a bar")]
    inside = [(x, y) for x, y in want if 0 <= x < 120 and 0 <= y < 80]
    assert found == [pytest.approx(p) for p in inside]


def test_pixels_of_the_resized_picture_become_pixels_of_the_picture(
    pointer_of: Callable[[str], VlmPointer],
) -> None:
    pointer = pointer_of("qwen2_5_vl")
    # 300 x 100 is seen as 168 x 56 under a budget of 16 tokens
    write(pointer, '[{"point_2d": [84, 14]}, {"point_2d": [167.5, 55]}, {"point_2d": [168, 3]}]')
    assert pointer._answer(picture(300, 100), "?").seen == (168, 56)
    found = [(p.point.x, p.point.y) for p in pointer.point(picture(300, 100), "a bar")]
    assert found == [pytest.approx((150, 25)), pytest.approx((299.107143, 98.214286))]


def test_a_large_picture_is_reduced_and_its_points_are_still_its_own(
    qwen_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saccade.backends.pointing_vlm.MOST_IMAGE_TOKENS", 8)
    pointer = VlmPointer(choice(qwen_folders["qwen2_5_vl"]))
    given = write(pointer, '[{"point_2d": [56, 28]}]')
    assert [p.point for p in pointer.point(picture(400, 200), "it")] == [Point(200, 100)]
    # 112 x 56 pixels, a patch has 14 x 14
    assert given[0]["image_grid_thw"].tolist() == [[1, 4, 8]]


def test_points_are_told_once_in_their_order_with_the_words_asked_for(
    pointer_of: Callable[[str], VlmPointer],
) -> None:
    pointer = pointer_of("qwen2_vl")
    given = write(
        pointer,
        '[{"point_2d": [900, 500]}, {"point_2d":[100,500], "label": "x"}, {"point_2d": [900, 500]},'
        ' {"point_2d": [-5, 500]}, {"point_2d": [1500, 3]}, {"point_2d": [200,',
    )
    found = pointer.point(picture(), "the <|im_end|> bar.")
    assert [(p.label, p.point, p.score) for p in found] == [
        ("the <|im_end|> bar.", Point(108, 40), None),
        ("the <|im_end|> bar.", Point(12, 40), None),
    ]
    ids = given[0]["input_ids"][0]
    text = pointer._inputs.tokenizer.decode(ids)
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert "Point to the <\u200b|im_end|> bar in the image." in text
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert int((ids == TOKENIZER.token_to_id("<|im_end|>")).sum()) == 2
    pads = ids == TOKENIZER.token_to_id("<|image_pad|>")
    assert int(pads.sum()) == 12
    assert given[0]["mm_token_type_ids"][0].tolist() == pads.int().tolist()
    assert pointer.point(picture(), "it") == pointer.point(picture(), "it")


@pytest.mark.parametrize("said", ["", "There is none.", "[]", '{"point_2d": "here"}'])
def test_an_answer_without_points_is_an_empty_list(
    said: str, pointer_of: Callable[[str], VlmPointer]
) -> None:
    pointer = pointer_of("qwen2_vl")
    write(pointer, said)
    assert pointer.point(picture(), "a bar") == []


@pytest.mark.parametrize(
    ("kind", "text", "want"),
    [
        (
            "molmo",
            ' <point x="61.5" y="40.25" alt="bar">bar</point>',
            [(61.5, 40.25)],
        ),
        (
            "molmo",
            'Two: <points x1="10.0" y1="20.5" x2="30" y2="99.9" alt="bars">bars</points>',
            [(10, 20.5), (30, 99.9)],
        ),
        ("molmo", 'x="1" y="2" is no tag', []),
        (
            "molmo2",
            '<points coords="1 1 615 403 2 120 077">bars</points>',
            [(615, 403), (120, 77)],
        ),
        (
            "molmo2",
            '<points coords="1 100 615 403 101 120 077">b</points>',
            [(615, 403), (120, 77)],
        ),
        ("molmo2", '<points coords="1 1 615', []),
        (
            "qwen2_vl",
            '{"point_2d": [12, 34.5]}, {"point_2d": [1',
            [(12, 34.5)],
        ),
    ],
)
def test_each_family_is_read_in_its_own_notation(
    kind: str, text: str, want: list[tuple[float, float]]
) -> None:
    assert FAMILIES[kind].read(text) == want


def test_the_frame_of_each_family_is_that_of_the_reference() -> None:
    assert {kind: family.frame for kind, family in FAMILIES.items()} == {
        "qwen2_vl": "thousand",
        "qwen2_5_vl": "resized",
        "qwen3_vl": "thousand",
        "qwen3_vl_moe": "thousand",
        "molmo": "percent",
        "molmo2": "thousand",
    }


def test_a_percent_is_a_hundredth_of_the_picture(
    pointer_of: Callable[[str], VlmPointer], monkeypatch: pytest.MonkeyPatch
) -> None:
    pointer = pointer_of("qwen2_vl")
    monkeypatch.setattr(pointer, "_family", FAMILIES["molmo"])
    write(pointer, '<points x1="50" y1="25" x2="100.5" y2="3" alt="bar">bar</points>')
    assert [p.point for p in pointer.point(picture(), "bar")] == [Point(60, 20)]


def test_an_unknown_type_and_a_picture_that_is_too_thin_are_refused(
    tmp_path: Path, pointer_of: Callable[[str], VlmPointer]
) -> None:
    folder = only_config(tmp_path, "llava")
    with pytest.raises(RecipeError, match=r"of type llava, whose way of pointing is not known"):
        VlmPointer(choice(folder))
    pointer = pointer_of("qwen2_vl")
    with pytest.raises(ToolError, match=r"at most 200 times as long as wide, this is 402 x 2"):
        pointer.point(picture(402, 2), "a bar")
    with pytest.raises(ToolError, match="Say what to point at"):
        pointer.point(picture(), " . ")


def test_a_molmo_that_can_t_be_loaded_here_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RecipeError, match="of type molmo, which this transformers has not"):
        VlmPointer(choice(only_config(tmp_path, "molmo")))
    monkeypatch.setattr("saccade.backends.pointing_vlm.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"of type molmo2, whose pictures .* torchvision"):
        VlmPointer(choice(only_config(tmp_path, "molmo2")))


# --- all of them ----------------------------------------------------------------------------------


def only_config(folder: Path, kind: str) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return folder


ALL: tuple[type[Backend], ...] = (GroundingDinoDetector, SamSegmenter, VlmPointer)


@pytest.mark.parametrize("backend", ALL)
def test_a_folder_without_a_usable_model_is_refused_in_one_sentence(
    backend: type[Backend], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"^There is no model folder '.*nowhere': give one"):
        backend(choice(tmp_path / "nowhere"))
    with pytest.raises(RecipeError, match=r"^No model in folder '.*': config\.json is missing\.$"):
        backend(choice(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match="names no model_type"):
        backend(choice(tmp_path))
    only_config(tmp_path, "bert")
    with pytest.raises(RecipeError, match=r"is of type bert, which is no|is of type bert, whose"):
        backend(choice(tmp_path))


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        (GroundingDinoDetector, "grounding-dino"),
        (SamSegmenter, "sam"),
        (VlmPointer, "qwen2_vl"),
    ],
)
def test_a_folder_that_holds_no_weights_is_refused(
    backend: type[Backend], kind: str, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"^Model '.*' can't be loaded: .*[^.]\.$"):
        backend(choice(only_config(tmp_path, kind)))


def test_what_goes_wrong_while_loading_is_told_in_one_sentence() -> None:
    with (
        pytest.raises(RecipeError, match=r"^Model 'm' can't be loaded: It broke\.$"),
        explained("m"),
    ):
        raise OSError("It broke.\nHere is much more.")


def test_weights_that_are_no_safetensors_are_refused(sam_folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_text((sam_folder / name).read_text())
    model = SamModel.from_pretrained(sam_folder)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(RecipeError, match="can't be loaded"):
        SamSegmenter(choice(tmp_path))


@pytest.mark.parametrize("backend", ALL)
def test_an_id_that_was_not_fetched_is_refused_and_nothing_is_fetched(
    backend: type[Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def snapshot_download(name: str, **more: Any) -> str:
        asked.append((name, more["revision"], more["local_files_only"]))
        raise LocalEntryNotFoundError("Cannot find an appropriate cached snapshot folder.")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(RecipeError, match=r"was not fetched: run `saccade tools fetch o/m@v1`"):
        backend(BackendChoice(model="o/m@v1"))
    with pytest.raises(RecipeError, match=r"was not fetched"):
        backend(BackendChoice())
    default = next(k for k in KNOWN if k.backend == backend.name)
    assert asked == [("o/m", "v1", True), (default.model, default.revision, True)]
    assert default.model in backend.needs


def test_a_device_that_is_not_there_is_refused(sam_folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"^There is no device 'abacus' here: choose cpu"):
        SamSegmenter(choice(sam_folder, device="abacus"))
    with pytest.raises(RecipeError, match=r"^There is no device 'cuda:99' here: choose cpu"):
        SamSegmenter(choice(sam_folder, device="cuda:99"))


def test_two_threads_at_once_get_what_one_gets(
    dino: GroundingDinoDetector,
    segmenter: SamSegmenter,
    pointer_of: Callable[[str], VlmPointer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("saccade.backends.pointing_vlm.MOST_TOKENS", 4)
    pointer = pointer_of("qwen2_vl")
    box = Box(10, 10, 110, 70)
    calls: tuple[tuple[Any, Callable[[int], Any]], ...] = (
        (dino, lambda n: dino.detect(picture(seed=n), ("cat", "dog, red cat")[n % 2])),
        (segmenter, lambda n: segmenter.segment(picture(seed=n), box=box)),
        (pointer, lambda n: pointer._answer(picture(100 + 40 * n, 80), "?" * (n + 1))),
    )
    for backend, call in calls:
        inside: list[int] = []
        most: list[int] = []
        name = "generate" if backend is pointer else "forward"
        stock = getattr(backend._model, name)

        def forward(
            *args: Any, _stock: Any = stock, _in: Any = inside, _m: Any = most, **more: Any
        ) -> Any:
            _in.append(1)
            _m.append(len(_in))
            try:
                return _stock(*args, **more)
            finally:
                _in.pop()

        want = [call(n) for n in range(6)]
        setattr(backend._model, name, forward)
        with ThreadPoolExecutor(3) as threads:
            assert list(threads.map(call, range(6))) == want
        assert most == [1] * 6, "calls of a model overlap"


# --- fetching -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        OfflineModeIsEnabled("offline mode is enabled"),
        LocalEntryNotFoundError("An error happened while trying to locate the files on the Hub."),
    ],
)
def test_fetching_offline_says_what_to_do_instead(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot_download(name: str, **more: Any) -> str:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(RecipeError) as refused:
        fetch("facebook/sam-vit-base", None)
    assert str(refused.value) == (
        "Model 'facebook/sam-vit-base' can't be fetched, since the hub can't be reached from here: "
        "download it on another machine, copy it over and give its folder as model."
    )


def test_fetching_takes_the_pinned_commit_and_nothing_that_could_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **more: Any) -> str:
        asked.update(more, name=name)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert fetch("facebook/sam-vit-base", tmp_path) == tmp_path
    known = {k.model: k for k in KNOWN}
    assert asked["name"] == "facebook/sam-vit-base"
    assert asked["revision"] == known["facebook/sam-vit-base"].revision
    assert asked["local_dir"] == tmp_path
    from huggingface_hub.utils import filter_repo_objects

    files = [
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "vocab.txt",
        "pytorch_model.bin",
        "modeling_molmo.py",
        "model.pt",
        "onnx/config.json",
        "README.md",
    ]
    kept = filter_repo_objects(
        files, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]
    )
    assert list(kept) == files[:5]
    fetch("facebook/sam-vit-base@main")
    assert (asked["revision"], asked["local_dir"]) == ("main", None)
    with pytest.raises(RecipeError, match="is no id of the hub's"):
        fetch("https://example.com/model")


def test_known_models_are_plain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert len({k.model for k in KNOWN}) == len(KNOWN)
    assert {k.backend for k in KNOWN} == {b.name for b in ALL}
    for known in KNOWN:
        assert known.revision is None or len(known.revision) == 40
        assert known.size_mb > 0
        assert known.licence
    only_config(tmp_path, "sam")
    assert folder_of(str(tmp_path)) == tmp_path
