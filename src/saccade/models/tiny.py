"""A Qwen2-VL of about two million parameters, from scratch: its tokenizer, configuration and
initial weights.

Invariant: nothing here is a new architecture. The classes are those of transformers and the folder
that `save` writes loads by plain `from_pretrained`.

The tokenizer is byte-complete (every text passes through), holds the numbers 0 to 1000 as one
token each and the fixed parts of a tool call as one token each, so that an episode of the tiny
model is short.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from saccade.atomic_files import replacing
from saccade.renderers.qwen2vl import Qwen2VLRenderer, Qwen2VLSettings

__all__ = [
    "SCENE_PIECES",
    "build_model",
    "build_tokenizer",
    "grown",
    "number_ids",
    "save",
    "with_pieces",
]

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CALL_PIECES = (
    '<tool_call>\n{"name": "',
    '", "arguments": {"image": "img_',
    '", "box": [',
    '", "y": ',
    '", "x": ',
    "]}}\n</tool_call>",
    "}}\n</tool_call>",
    '", "arguments": {"ans": "',
    '"}}\n</tool_call>',
    "<tool_response>\n",
    "\n</tool_response>",
    '{"thought": "',
    '", "actions": [{"name": "',
    "]}}]}",
    '"}}]}',
)
SCENE_PIECES = (
    *("<think>", " </think>", " <rethink>", " </rethink>", " <answer>", " </answer>"),
    *(" circle", " square", " triangle", " star", " diamond", " cross"),
    *(" heart", " pentagon", " moon", " arrow"),
    *("left of", " left of", "right of", " right of", "above", " above", "below", " below"),
    *("inside", " inside", "touching", " touching", "behind", " behind", "near"),
    *("Is the", "Where are all", "Describe the scene."),
    *("Think with boxes.", "Think in words.", "true", "false", " true", " false"),
)
"""What the worlds of shapes and the grounded dialect say; models of charts alone lack them."""
SPLIT = r"1000|\d{1,3}| ?\p{L}+| ?[^\p{L}\d\s]+(?: (?=\d))?|\s+"
INTERLEAVED = (1, 2, 2, 1, 2, 2, 1, 2, 3)
"""Frequencies of time, row and column in turn. In the stock order (4, 6, 6) columns would get the
lowest ones alone: 8 columns would turn a query by 0.03 rad, too little for a model of this size to
tell where a thing stands."""
PERIODS = (2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
HUE = 8.0
"""How much more differences of colour count."""
FRESH = 0.1
"""Standard deviation of new rows: their norm is then that of rows that were trained."""
ALIKE = 0.95
"""Cosine above which rows were pushed the same way."""
SETTINGS = Qwen2VLSettings(min_pixels=2 * 28 * 28, max_pixels=16 * 28 * 28)


def build_tokenizer(words: str | None = None) -> Tokenizer:
    """A byte-level BPE whose merges come from `words` and whose numbers 0 to 1000 are single
    tokens.

    `words` defaults to the list that is shipped: what the chart world and the tools say.
    """
    if words is None:
        words = (resources.files("saccade.models") / "tiny_words.txt").read_text(encoding="utf-8")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = _pre_tokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=1800, min_frequency=1, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator([w for w in words.splitlines() if w], trainer)
    state = json.loads(trained.to_str())["model"]
    vocab: dict[str, int] = dict(state["vocab"])
    merges = [tuple(m) for m in state["merges"]]
    known = set(merges)
    for number in range(10, 1001):
        text = str(number)
        vocab.setdefault(text, len(vocab))
        for cut in range(1, len(text)):
            pair = (text[:cut], text[cut:])
            if pair[1] in vocab and pair not in known:
                merges.append(pair)
                known.add(pair)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = _pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in CALL_PIECES])
    return tokenizer


def with_pieces(tokenizer: Tokenizer, pieces: Sequence[str]) -> Tokenizer:
    """A tokenizer with further fixed pieces of text, as tokens behind all that it has."""
    found = Tokenizer.from_str(tokenizer.to_str())
    found.add_tokens([AddedToken(t, normalized=False, special=False) for t in pieces])
    return found


def grown(
    model: Qwen2VLForConditionalGeneration, before: Tokenizer, after: Tokenizer, *, seed: int
) -> Qwen2VLForConditionalGeneration:
    """The model with new rows for the tokens that it did not know, and for those that it knew and
    was never shown.

    What is never shown is only ever pushed away from what is right, each such row in the same
    direction: at the end of the first base the names of eight colours had a cosine of 0.999. No
    training told them apart again within 1,500 steps.
    """
    size = after.get_vocab_size(with_added_tokens=True)
    old = before.get_vocab_size(with_added_tokens=True)
    model.resize_token_embeddings(size + (-size) % 16, mean_resizing=False)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        new = torch.ones(len(table), dtype=torch.bool)
        new[:old] = _pushed_alike(table[:old])
        fresh = torch.randn(
            len(table), table.shape[1], generator=torch.Generator().manual_seed(seed)
        )
        table[new] = FRESH * fresh[new]
    return model


def _pushed_alike(rows: torch.Tensor) -> torch.Tensor:
    """Which rows have the direction of the median row, as those of tokens that were never shown
    have; none where that is not one direction.
    """
    middle = rows.median(dim=0).values
    return F.cosine_similarity(rows, middle[None], dim=1) > ALIKE


def _pre_tokenizer() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def number_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids of the numbers 0 to 1000, in order."""
    ids = [tokenizer.token_to_id(str(n)) for n in range(1001)]
    if None in ids:
        raise ValueError(f"The tokenizer has no token for {ids.index(None)}.")
    return ids


def build_model(
    tokenizer: Tokenizer,
    *,
    seed: int,
    hidden: int = 128,
    layers: int = 4,
    vision: int = 96,
    vision_layers: int = 3,
) -> Qwen2VLForConditionalGeneration:
    """Initial weights. Numbers start smooth: cosines of several periods, so that near ones are
    alike.
    """
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    special = {t: tokenizer.token_to_id(t) for t in SPECIAL}
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": size + (-size) % 16,
            "hidden_size": hidden,
            "intermediate_size": 3 * hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": hidden // 32,
            "num_key_value_heads": hidden // 64,
            "max_position_embeddings": 4096,
            "initializer_range": 0.06,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": list(INTERLEAVED),
            },
            "bos_token_id": special["<|endoftext|>"],
            "eos_token_id": special["<|im_end|>"],
            "pad_token_id": None,
        },
        vision_config={
            "depth": vision_layers,
            "embed_dim": vision,
            "hidden_size": hidden,
            "num_heads": vision // 32,
            "mlp_ratio": 3,
            "patch_size": SETTINGS.patch,
            "spatial_merge_size": SETTINGS.merge,
            "temporal_patch_size": SETTINGS.temporal_patch,
            "initializer_range": 0.06,
        },
        image_token_id=special["<|image_pad|>"],
        video_token_id=special["<|video_pad|>"],
        vision_start_token_id=special["<|vision_start|>"],
        vision_end_token_id=special["<|vision_end|>"],
        tie_word_embeddings=True,
        initializer_range=0.06,
    )
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    _even_scales(model)
    _smooth_numbers(model, tokenizer)
    return model


@torch.no_grad()
def _even_scales(model: Qwen2VLForConditionalGeneration) -> None:
    """Bring patches and image features to the size of what is added to them later.

    At the common range a white patch starts some 60 times, and an image feature some 15 times, as
    large as a token's embedding; what the layers add about place and content drowns in that.
    """
    visual = model.model.visual
    visual.patch_embed.proj.weight.mul_(1 / 3)
    visual.merger.mlp[2].weight.mul_(1 / 10)


@torch.no_grad()
def open_to_hue(model: Qwen2VLForConditionalGeneration) -> None:
    """Let differences between the colours of a patch count `HUE` times as much; what is gray is
    seen as before.

    An eye that learned on charts alone, where no question is about hue, passes it by: a linear
    reader tells 23 of 100 shapes' colours (of eight) from its features, where it tells 78 inside.
    """
    weight = model.model.visual.patch_embed.proj.weight  # (D, 3, time, patch, patch)
    gray = weight.mean(dim=1, keepdim=True)
    weight.copy_(gray + HUE * (weight - gray))


@torch.no_grad()
def _smooth_numbers(model: Qwen2VLForConditionalGeneration, tokenizer: Tokenizer) -> None:
    table = model.get_input_embeddings().weight  # (V, D)
    numbers = torch.arange(1001, dtype=torch.float32)[:, None]
    angles = 2 * math.pi * numbers / torch.tensor(PERIODS, dtype=torch.float32)
    waves = torch.cat([angles.cos(), angles.sin()], dim=1)  # (1001, 2 * periods)
    mix = torch.randn(waves.shape[1], table.shape[1]) * (0.06 / math.sqrt(waves.shape[1] / 2))
    table[number_ids(tokenizer)] = waves @ mix


def save(
    model: Qwen2VLForConditionalGeneration,
    renderer: Qwen2VLRenderer,
    folder: Path,
    *,
    made_by: Mapping[str, object],
    source: Path | None = None,
) -> None:
    """A folder that plain `from_pretrained` loads: weights in 16 bit, tokenizer and image settings
    beside them: those of the folder `source`, untouched, or else the renderer's.

    `made_by` (recipe hash, seed) is stored as `saccade.json`.
    """
    disable_progress_bar()  # ours are the only bars
    state = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    with replacing(folder) as new:
        model.save_pretrained(new, state_dict=state)
        if source is None:
            save_processor(renderer, new)
        else:
            _copy_processor(source, new)
        text = json.dumps(dict(made_by), indent=1) + "\n"
        (new / "saccade.json").write_text(text, encoding="utf-8")


def _copy_processor(source: Path, folder: Path) -> None:
    """Tokenizer, templates and settings of a model, which training does not change."""
    for file in source.iterdir():
        ours = file.name in ("config.json", "saccade.json") or file.name.endswith(".index.json")
        if file.is_file() and file.suffix in (".json", ".jinja", ".txt", ".model") and not ours:
            shutil.copyfile(file, folder / file.name)


def save_processor(renderer: Qwen2VLRenderer, folder: Path) -> None:
    """Tokenizer and image settings, in the files that transformers reads."""
    s = renderer.settings
    renderer.tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    processor_config = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": s.patch,
        "merge_size": s.merge,
        "temporal_patch_size": s.temporal_patch,
        "size": {"shortest_edge": s.min_pixels, "longest_edge": s.max_pixels},
        "min_pixels": s.min_pixels,
        "max_pixels": s.max_pixels,
        "image_mean": list(s.mean),
        "image_std": list(s.std),
    }
    for name, content in (
        ("tokenizer_config.json", tokenizer_config),
        ("preprocessor_config.json", processor_config),
    ):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
