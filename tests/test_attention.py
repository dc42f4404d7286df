"""Attention to the picture: the model's own, of the right tokens, behind chains of one length."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from saccade.assemble import Policy, image_features
from saccade.attention import forms_of, look, under
from saccade.cli import app
from saccade.controls import chain_and_rethink
from saccade.dialects import NOTATIONS
from saccade.evaluate import mean_interval
from saccade.geometry import Box
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.models.forward import load_model
from saccade.renderers import renderer_for
from saccade.tokens import Tree, batch, flatten
from saccade.types import Episode, ImageRef, ImageShown, Message, Sample, Segment, Text
from tiny_families import KINDS, save_family

INLINE = NOTATIONS["inline"]
CHAIN = "<think> the red [100, 200, 300, 400] </think> <rethink>"


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Policy]:
    made = {}
    for kind in KINDS:
        folder = save_family(kind, tmp_path_factory.mktemp("families") / kind)
        made[kind] = Policy(load_model(folder), renderer_for(folder))
    return made


def shown(policy: Policy) -> tuple[Segment, dict[str, torch.Tensor]]:
    """A prompt with a picture of noise, and its features."""
    store = ImageStore()
    noise = np.random.default_rng(0).integers(0, 255, (112, 168, 3), np.uint8)
    image = store.add(root_view(Image.fromarray(noise)))
    prompt = policy.renderer.prompt(
        [Message("user", (ImageShown(image, "img_0"), Text("What is the value of red?")))]
    )
    with torch.no_grad():
        return prompt, image_features(policy, [image], store=store)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_that_is_even_is_on_images_by_their_share_of_what_is_seen(
    kind: str, policies: dict[str, Policy]
) -> None:
    policy = Policy(copy.deepcopy(policies[kind].model), policies[kind].renderer)
    prompt, features = shown(policy)
    for layer in policy.model.model.language_model.layers:
        torch.nn.init.zeros_(layer.self_attn.k_proj.weight)
        if layer.self_attn.k_proj.bias is not None:
            torch.nn.init.zeros_(layer.self_attn.k_proj.bias)
    found = look(policy, prompt, CHAIN, " the bar", features)
    before = len(prompt.ids) + len(policy.renderer.begun(CHAIN).ids)
    written = len(policy.renderer.begun(" the bar").ids)
    # the first written token is drawn behind all before it, the next ones see one token more each
    even = np.mean([1 / (before + k) for k in range(written)])
    pads = sum(len(f) for f in features.values())
    assert found.shape == (4, pads)
    np.testing.assert_allclose(found, even, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_what_the_stock_forward_says(kind: str, policies: dict[str, Policy]) -> None:
    policy = Policy(copy.deepcopy(policies[kind].model), policies[kind].renderer)
    model = policy.model
    prompt, features = shown(policy)
    found = look(policy, prompt, CHAIN, " the bar", features)
    assert model.model.language_model.config._attn_implementation == "sdpa"  # as it was
    renderer = policy.renderer
    whole = (prompt, renderer.begun(CHAIN), renderer.begun(" the bar"))
    flat = batch([flatten(Tree(whole[:1], (whole[1:],)), renderer)])
    embedded = model.get_input_embeddings()(flat.ids)
    first, *levels = torch.cat(list(features.values())).split(embedded.shape[-1], dim=-1)
    deep = {"visual_pos_masks": flat.is_pad, "deepstack_visual_embeds": levels} if levels else {}
    model.set_attn_implementation("eager")
    positions = flat.positions if kind.startswith("qwen") else flat.positions[0]
    with torch.no_grad():
        told = model.model.language_model(
            inputs_embeds=embedded.masked_scatter(flat.is_pad[..., None], first),
            position_ids=positions,
            use_cache=False,
            output_attentions=True,
            **deep,
        ).attentions
    written = len(renderer.begun(" the bar").ids)
    last = flat.ids.shape[1] - 1
    for layer, weights in enumerate(told):
        rows = weights[0, :, last - written : last]  # (heads, written, T)
        expected = rows[:, :, flat.is_pad[0]].mean(dim=(0, 1))
        np.testing.assert_allclose(found[layer], expected.numpy(), rtol=1e-4, atol=1e-6)


def test_what_lies_under_boxes_is_measured_in_parts_of_tokens() -> None:
    image = ImageRef("a", 400, 200)
    left = under([Box(0, 0, 100, 200)], image, 2, 4)
    np.testing.assert_allclose(left, [1, 0, 0, 0, 1, 0, 0, 0])
    half = under([Box(50, 0, 150, 50), Box(60, 0, 140, 50)], image, 2, 4)
    np.testing.assert_allclose(half, [0.25, 0.25, 0, 0, 0, 0, 0, 0])  # twice covered counts once
    assert under([], image, 2, 4).sum() == 0


@pytest.mark.parametrize("notation", NOTATIONS.values(), ids=lambda n: n.name)
def test_dots_are_as_long_as_boxes_and_say_nothing(
    notation: Any, policies: dict[str, Policy]
) -> None:
    renderer = policies["qwen2_vl"].renderer
    box = notation.write((100, 200, 300, 400), "red circle")
    forms = forms_of(f"<think> the {box} </think> <rethink>", notation, renderer)
    assert forms is not None
    tokens = {form: len(renderer.begun(text).ids) for form, text in forms.items()}
    assert tokens["stripped"] + 5 < tokens["boxes"]
    assert abs(tokens["dots"] - tokens["boxes"]) <= 2
    for form in ("dots", "stripped"):
        assert "red circle" in forms[form]
        assert not any(c.isdigit() for c in forms[form])
        assert not notation.find(forms[form])
    assert forms_of("<think> no box </think> <rethink>", notation, renderer) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (
            "<think> a </think> <rethink> left </rethink> <answer> true </answer>",
            ("<think> a </think> <rethink>", " left "),
        ),
        ("<think> a </think> <answer> true </answer>", None),
        ("<think> a </think> <rethink> left", None),
        ("<rethink> left </rethink> <think> a </think>", None),
        ("<think> a", None),
        ("", None),
    ],
)
def test_a_second_thought_stands_whole_behind_the_first(text: str, found: object) -> None:
    sample = Sample("s", "Q?", (), "true")
    episode = Episode(sample, messages=(Message("assistant", (Text(text),)),))
    assert chain_and_rethink(episode) == found


def test_there_is_no_mean_of_nothing() -> None:
    assert mean_interval([1.0, 1.0], resamples=100, seed=0) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="no values"):
        mean_interval([], resamples=100, seed=0)


def test_the_command_compares_three_forms_of_what_a_model_wrote(tmp_path: Path) -> None:
    shared = ["attention", "grounded-tiny", "eval.split=validation", "eval.items=24"]
    asked = [*shared, "eval.temperature=1.0", "eval.bootstrap=100"]
    told = CliRunner().invoke(app, [*asked, "--run", str(tmp_path / "a"), "--json"])
    assert told.exit_code == 0, (told.output, told.exception)
    found = json.loads(told.stdout)
    assert found == json.loads((tmp_path / "a" / "attention.json").read_text())
    assert 0 < found["compared"] <= found["items"] == 24
    image = found["image"]
    assert set(image) == {"boxes", "dots", "stripped"}
    for form in image.values():
        assert len(form["layers"]) == 4
        assert all(0 < layer[0] < 1 for layer in form["layers"])
        assert form["all"][0] == pytest.approx(np.mean([layer[0] for layer in form["layers"]]))
    for form in ("dots", "stripped"):
        less = found["image_differences"][f"boxes - {form}"]["all"][0]
        assert less == pytest.approx(image["boxes"]["all"][0] - image[form]["all"][0])
    assert 0 < found["gazed_by_chance"][0] < 1


def test_answers_without_boxes_are_refused_in_a_sentence(tmp_path: Path) -> None:
    asked = ["attention", "grounded-tiny", "eval.split=validation", "eval.items=3"]
    plain = ["dialect=plain", "rollout.request=Answer."]
    told = CliRunner().invoke(app, [*asked, *plain, "--run", str(tmp_path / "a")])
    assert told.exit_code == 1
    assert "None of 3 answers has boxes in <think>" in told.stderr
