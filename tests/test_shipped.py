"""What comes with the package: weights that the shipped recipes made, small enough to commit, and
loaded by plain `from_pretrained`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import Qwen2VLForConditionalGeneration

from saccade.assemble import BUILT_IN, data_file, model_folder
from saccade.recipe_files import load_recipe, recipe_hash


def told(model: str) -> dict[str, object]:
    return json.loads((model_folder(model) / "saccade.json").read_text())


def test_the_weights_say_which_recipes_made_them_and_these_are_the_shipped_ones() -> None:
    base = load_recipe(data_file(Path("tiny-base.yaml")))
    assert told("saccade-tiny-base") == {
        "stage": "pretrain",
        "recipe": recipe_hash(base, stage="pretrain"),
        "seed": base.seed,
        "from": None,
    }
    grounded = load_recipe(data_file(Path("tiny-grounded-base.yaml")))
    assert told("saccade-tiny-grounded-base") == {
        "stage": "pretrain",
        "recipe": recipe_hash(grounded, stage="pretrain"),
        "seed": grounded.seed,
        "from": told("saccade-tiny-base"),
    }
    cold = load_recipe(data_file(Path("charts-tiny.yaml")))
    assert told("saccade-tiny") == {
        "stage": "rl",
        "recipe": recipe_hash(cold, stage="rl"),
        "seed": cold.seed,
        "from": {
            "stage": "sft",
            "recipe": recipe_hash(cold, stage="sft"),
            "seed": cold.seed,
            "from": told("saccade-tiny-base"),
        },
    }


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_weights_are_small_and_of_a_stock_class(name: str) -> None:
    folder = model_folder(name)
    assert (folder / "model.safetensors").stat().st_size <= 8_000_000
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder)
    assert 500_000 <= sum(p.numel() for p in model.parameters()) <= 3_000_000
