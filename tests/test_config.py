"""What a recipe holds: values that can be run together, each key with its help."""

from typing import get_args

import pytest

from saccade.config import Recipe, RolloutConfig
from saccade.errors import RecipeError
from saccade.observing import Observation
from saccade.recipe_files import load_recipe


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["tools=[zoom,zoom]"], "tools must name each tool once, but zoom stands twice"),
        (["task.name=files"], "task.path is not set, but task files reads one"),
        (
            ["min_image_tokens=99"],
            "min_image_tokens must be at most max_image_tokens (64), got 99.",
        ),
        (
            ["rollout.max_tokens_per_turn=4000"],
            "rollout.max_tokens_per_turn must be less than rollout.max_context_tokens (2048), got",
        ),
        (
            ["max_image_tokens=2000"],
            "rollout.max_context_tokens must hold one picture and one turn (2128 tokens), got 2048",
        ),
        (
            ["pretrain.steps=10"],
            "pretrain.warmup_steps + pretrain.decay_steps must be at most pretrain.steps (10), got",
        ),
    ],
)
def test_values_that_contradict_each_other_are_refused(overrides: list[str], sentence: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(None, overrides)
    assert str(caught.value).startswith(sentence)


def test_the_modes_of_observation_are_those_of_the_rollout() -> None:
    field = RolloutConfig.model_fields["observation"]
    assert get_args(field.annotation) == get_args(Observation)


def test_a_recipe_does_not_change_after_it_was_made() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(Recipe(), "seed", 3)  # noqa: B010


def test_every_field_has_its_help_and_a_default() -> None:
    schema = Recipe.model_json_schema()
    for section in [schema, *schema["$defs"].values()]:
        for name, field in section.get("properties", {}).items():
            assert "default" in field, name
            assert field.get("description") or "$ref" in field, name
            if "$ref" in field:
                assert schema["$defs"][field["$ref"].rpartition("/")[2]]["description"], name
