"""What comes with the package: weights that the shipped recipes made, small enough to commit, and
loaded by plain `from_pretrained`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import Qwen2VLForConditionalGeneration

from saccade.assemble import BUILT_IN, data_file, model_folder
from saccade.dialects.notations import NOTATIONS
from saccade.geometry import Frame
from saccade.grounding import boxes_named
from saccade.image_store import ImageStore
from saccade.recipe_files import load_recipe, recipe_hash
from saccade.rewards.boxes import matched_f1
from saccade.synth.replay import read_demonstrations
from saccade.tasks import task_named
from saccade.types import Parsed


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
    made = told("saccade-tiny-base")
    for part in ("tiny-grounded-start.yaml", "tiny-grounded-base.yaml"):
        grounded = load_recipe(data_file(Path(part)))
        made = {
            "stage": "pretrain",
            "recipe": recipe_hash(grounded, stage="pretrain"),
            "seed": grounded.seed,
            "from": made,
        }
    assert told("saccade-tiny-grounded-base") == made
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


@pytest.mark.parametrize("world", ["shapes_vsr", "shapes_tally"])
@pytest.mark.parametrize("name", ["shapes-demonstrations.jsonl", "mixed-demonstrations.jsonl"])
def test_demonstrations_with_boxes_are_of_the_pictures_that_are_drawn_now(
    name: str, world: str
) -> None:
    made = [d for d in read_demonstrations(data_file(Path(name))) if d.sample.startswith(world)]
    assert len(made) >= 100
    task, store = task_named(world, {}), ImageStore()
    first = min(int(d.sample.rpartition("/")[2]) for d in made)
    last = max(int(d.sample.rpartition("/")[2]) for d in made[:60])
    samples = task.load("train", store=store, start=first, count=last + 1 - first)
    by_id = {s.id: s for s in samples}
    found = []
    for demonstration in made[:60]:
        sample = by_id[demonstration.sample]
        [image], [text] = sample.images, demonstration.turns
        named, bad = boxes_named(
            Parsed(text),
            NOTATIONS["inline"],
            images={"img_0": image},
            frame=lambda image: Frame.thousand(image.width, image.height),
        )
        assert not bad
        assert f"<answer> {sample.answer} </answer>" in text
        if sample.evidence:
            found.append(matched_f1([e.box for e in sample.evidence], [n.box for n in named]))
    assert sum(f or 0.0 for f in found) / len(found) >= 0.6
