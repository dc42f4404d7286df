"""Models of every family with few weights, drawn at random, saved as they would be downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from saccade.models.tiny import build_tokenizer

WORDS = "What is the value of red? Look at the blue bar. The green line is higher.\n" * 3
QWEN_MARKS = ("<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>")
INTERNVL_MARKS = (
    *("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>"),
    *("<ref>", "</ref>", "<box>", "</box>", "<video>"),
)
KINDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "internvl_qwen3")
"""The last one: InternVL on a language model of another build, as 3.5 is."""
TILE = 56
"""Side of InternVL's tiles here: four tokens each."""


def tokenizer_of(kind: str, words: str | None = WORDS) -> Tokenizer:
    """One that has the special tokens of the family."""
    found = Tokenizer.from_str(build_tokenizer(words).to_str())
    found.add_special_tokens([*QWEN_MARKS, *(INTERNVL_MARKS if kind.startswith("intern") else ())])
    return found


def model_of(kind: str, tokenizer: Tokenizer, *, seed: int = 0) -> nn.Module:
    """Random weights, none of them at a value that could hide a mistake (0 or 1)."""
    torch.manual_seed(seed)
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    ids = {t: tokenizer.token_to_id(t) for t in ("<|endoftext|>", "<|im_end|>")}
    text: dict[str, Any] = {
        "vocab_size": size + (-size) % 16 + 16,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "pad_token_id": None,
    }
    marks = {
        "image_token_id": tokenizer.token_to_id("<|image_pad|>"),
        "video_token_id": tokenizer.token_to_id("<|video_pad|>"),
        "vision_start_token_id": tokenizer.token_to_id("<|vision_start|>"),
        "vision_end_token_id": tokenizer.token_to_id("<|vision_end|>"),
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    model: nn.Module
    if kind == "qwen2_vl":
        text["rope_parameters"] = rope | {"mrope_section": [2, 3, 3]}
        vision = {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2}
        config = Qwen2VLConfig(text_config=text, vision_config=vision, **marks)
        model = Qwen2VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    elif kind == "qwen2_5_vl":
        text["rope_parameters"] = rope | {"mrope_section": [2, 3, 3]}
        vision = {
            "depth": 3,
            "hidden_size": 32,
            "out_hidden_size": 64,
            "num_heads": 2,
            "intermediate_size": 48,
            "fullatt_block_indexes": [1],
        }
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **marks)
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    elif kind == "qwen3_vl":
        # heads of another size than the hidden states would give, as in the real 2B and 4B
        text["head_dim"] = 24
        text["rope_parameters"] = rope | {"mrope_section": [4, 4, 4], "mrope_interleaved": True}
        vision = {
            "depth": 4,
            "hidden_size": 32,
            "out_hidden_size": 64,
            "num_heads": 2,
            "intermediate_size": 48,
            "num_position_embeddings": 144,
            "deepstack_visual_indexes": [0, 1, 2],
        }
        config = Qwen3VLConfig(text_config=text, vision_config=vision, **marks)
        model = Qwen3VLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    else:
        text["rope_parameters"] = rope | {"rope_type": "dynamic", "factor": 2.0}
        text["model_type"] = "qwen3" if kind.endswith("qwen3") else "qwen2"
        if text["model_type"] == "qwen3":
            text["head_dim"] = 24
        vision = {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "image_size": [TILE, TILE],
            "attention_bias": True,
        }
        config = InternVLConfig(
            text_config=text,
            vision_config=vision,
            image_token_id=tokenizer.token_to_id("<IMG_CONTEXT>"),
            image_seq_length=(TILE // 28) ** 2,
            tie_word_embeddings=False,
        )
        model = InternVLForConditionalGeneration._from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model.eval()


def save_family(kind: str, folder: Path, *, words: str | None = WORDS, seed: int = 0) -> Path:
    """A model folder with what a download has: weights, tokenizer, settings of pictures."""
    tokenizer = tokenizer_of(kind, words)
    model_of(kind, tokenizer, seed=seed).save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "preprocessor_config.json").write_text(json.dumps(image_settings(kind)))
    return folder


def image_settings(kind: str) -> dict[str, Any]:
    """As the real `preprocessor_config.json` has them, but for sizes."""
    if kind.startswith("intern"):
        return {
            "crop_to_patches": False,
            "min_patches": 1,
            "max_patches": 12,
            "size": {"height": TILE, "width": TILE},
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
        }
    if kind == "qwen3_vl":
        return {
            "patch_size": 16,
            "merge_size": 2,
            "temporal_patch_size": 2,
            "size": {"shortest_edge": 4 * 32**2, "longest_edge": 16 * 32**2},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        }
    return {"min_pixels": 4 * 28**2, "max_pixels": 16 * 28**2}
