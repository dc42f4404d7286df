"""What a base is taught about scenes: true by their geometry, readable by the grounded dialect."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from saccade import pretrain
from saccade.assemble import model_folder
from saccade.config import Recipe
from saccade.dialects import NOTATIONS
from saccade.dialects.grounded import Grounded
from saccade.geometry import Box, Frame, iou
from saccade.models.forward import load_model
from saccade.models.tiny import SCENE_PIECES, SETTINGS, grown, open_to_hue, with_pieces
from saccade.pretrain import lesson_tree, run
from saccade.recipe_files import load_recipe
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.worlds.lessons import Exchange
from saccade.worlds.shape_lessons import (
    WITH_BOXES,
    WORDS,
    chain,
    in_words,
    one_shot,
    shape_lessons,
    whole,
)
from saccade.worlds.shapes import SHAPE_COLORS, SceneItem, item, sparse_item

GROUNDED = Grounded()
INLINE = NOTATIONS["inline"]
SCENES = [item(w, "pretrain", i) for i in range(60) for w in ("vsr", "tally")]


def frame(scene: SceneItem) -> Frame:
    return Frame.thousand(*scene.scene.image.size)


def exchanges() -> list[tuple[SceneItem, Exchange]]:
    return [
        (scene, exchange)
        for n, scene in enumerate(SCENES)
        for lesson in shape_lessons(scene, np.random.default_rng(n), frame=frame(scene))
        for exchange in lesson
    ]


TAUGHT = exchanges()


def boxes_in(text: str, scene: SceneItem) -> list[tuple[str, Box]]:
    return [
        (b.phrase, frame(scene).decode_box(b.values))
        for b in INLINE.find(text)
        if b.values is not None
    ]


def test_every_box_that_is_told_lies_on_a_thing_of_its_name() -> None:
    checked = 0
    for scene, exchange in TAUGHT:
        if exchange.topic not in ("caption", "pointing"):
            continue
        for phrase, box in boxes_in(exchange.answer, scene):
            best = max(scene.scene.things, key=lambda t: iou(t.box, box))
            assert iou(best.box, box) > 0.6
            named = re.sub(r" ?\d+$", "", phrase)
            assert not named or best.name == named
            checked += 1
    assert checked > 400


def test_a_chain_leads_to_the_answer() -> None:
    for scene in SCENES:
        think, rethink = chain(scene, frame(scene))
        boxes = boxes_in(think, scene)
        assert len(boxes) == len(scene.evidence)
        for thing, (_, box) in zip(scene.evidence, boxes, strict=True):
            assert iou(thing.box, box) > 0.6
        if scene.kind == "count":
            assert rethink == scene.answer
            assert [p.rpartition(" ")[2] for p, _ in boxes] == [
                str(n + 1) for n in range(len(boxes))
            ]
        else:
            told = rethink.split(", ")
            assert (scene.kind in told) == (scene.answer == "true")


def test_a_chain_in_words_has_no_box() -> None:
    for scene in SCENES:
        words, _ = chain(scene, frame(scene), boxes=False)
        assert INLINE.find(words) == ()
        parsed = GROUNDED.parse(in_words(words, scene.answer))
        assert parsed.answer is not None
        assert (parsed.thought, parsed.answer.text) == (words, scene.answer)


def test_whole_turns_are_what_the_dialect_writes() -> None:
    for scene in SCENES:
        think, rethink = chain(scene, frame(scene))
        text = whole(think, rethink, scene.answer)
        assert GROUNDED.render(GROUNDED.parse(text)) == text
        assert one_shot(scene, frame(scene)) == f"{scene.question} {text}"


def test_asked_for_boxes_the_base_is_shown_the_whole_form_in_two_of_five() -> None:
    """So that it starts weak in the form: what RL makes of it can then be seen."""
    asked = [e.answer for _, e in TAUGHT if str(e.asked[0]).endswith(WITH_BOXES)]
    for n in range(200):
        scene = SCENES[n % len(SCENES)]
        for [e] in shape_lessons(scene, np.random.default_rng([n, 1]), frame=frame(scene)):
            asked += [e.answer] if str(e.asked[0]).endswith(WITH_BOXES) else []
    kinds = Counter(
        ("<rethink>" in text, bool(INLINE.find(text)) or "no " in text) for text in asked
    )
    assert 0.25 < kinds[True, True] / len(asked) < 0.55
    assert len(kinds) == 4


def test_all_topics_are_taught_and_plain_questions_most_of_those_asked() -> None:
    topics = Counter(e.topic for _, e in TAUGHT)
    assert set(topics) == {"caption", "pointing", "naming", "question", "arithmetic"}
    questions = [str(e.asked[0]) for _, e in TAUGHT if e.topic == "question"]
    plain = sum(not q.endswith((WORDS, WITH_BOXES)) for q in questions)
    assert 0.4 < plain / len(questions) < 0.75


def test_lessons_in_text_alone_are_answered_from_the_boxes_told() -> None:
    seen = 0
    for scene, exchange in TAUGHT:
        if exchange.topic != "arithmetic" or scene.kind == "count":
            continue
        (_, a), (_, b) = boxes_in(str(exchange.asked[0]), scene)
        told, _, holds = exchange.answer.rpartition(": ")
        if "left of" in told:
            assert a.center.x < b.center.x
        if "below" in told:
            assert a.center.y > b.center.y
        relation = re.search(r"(left of|right of|above|below) the", str(exchange.asked[0]))
        assert relation is not None
        assert (relation[1] in told.split(", ")) == (holds == "true")
        seen += 1
    assert seen > 20


# --- a base that goes on --------------------------------------------------------------------------


def base() -> tuple[Path, Tokenizer]:
    folder = model_folder("saccade-tiny-base")
    return folder, Tokenizer.from_file(str(folder / "tokenizer.json"))


def test_pieces_come_behind_the_tokens_that_were_there() -> None:
    _, before = base()
    after = with_pieces(before, SCENE_PIECES)
    assert (
        before.get_vocab_size()
        < after.get_vocab_size()
        <= before.get_vocab_size() + len(SCENE_PIECES)
    )
    for text in ("What is the value of bar 4?", "bar 4 [810, 200, 870, 260]", "How many bars?"):
        assert after.encode(text).ids == before.encode(text).ids
    told = (
        " red triangle [1, 2, 3, 4] </think> <rethink> left of </rethink> <answer> true </answer>"
    )
    assert after.decode(after.encode(told).ids) == told
    assert len(after.encode(told).ids) < 0.7 * len(before.encode(told).ids)


def test_a_model_that_grew_reads_what_it_knew_as_before() -> None:
    folder, before = base()
    after = with_pieces(before, SCENE_PIECES)
    old, new = load_model(folder), grown(load_model(folder), before, after, seed=3)
    asked = before.encode("What is the value of bar 4? bar 4 [810, 200, 870, 260]").ids
    ids = torch.tensor([asked])
    with torch.no_grad():
        was, now = old(input_ids=ids).logits, new(input_ids=ids).logits
    assert torch.allclose(was[..., asked], now[..., asked], atol=1e-5)
    table = new.get_input_embeddings().weight
    assert new.lm_head.weight.data_ptr() == table.data_ptr()


def test_a_model_that_grew_can_tell_apart_what_it_was_never_shown() -> None:
    folder, before = base()
    after = with_pieces(before, SCENE_PIECES)
    old, new = load_model(folder), grown(load_model(folder), before, after, seed=3)
    names = [after.token_to_id(f"Ġ{color}") for color in SHAPE_COLORS]
    names += [after.token_to_id(shape) for shape in (" circle", " moon", "<think>")]

    def most_alike(rows: torch.Tensor) -> float:
        cosines = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=2)
        return cosines.detach().fill_diagonal_(-1).max().item()

    assert most_alike(old.get_input_embeddings().weight[names[: len(SHAPE_COLORS)]]) > 0.99
    assert most_alike(new.get_input_embeddings().weight[names]) < 0.5


def test_scenes_and_charts_are_mixed_by_their_share() -> None:
    _, before = base()
    renderer = Qwen2VLRenderer(with_pieces(before, SCENE_PIECES), SETTINGS)

    def ids(index: int, scenes: float) -> list[int]:
        return list(lesson_tree(index, renderer, seed=0, scenes=scenes).flat.ids)

    assert ids(5, 0.5) == ids(5, 0.5)
    of_scenes = sum(ids(index, 0.5) != ids(index, 0.0) for index in range(40))
    assert 10 < of_scenes < 30


def test_pretraining_goes_on_from_a_model_and_resumes(tmp_path: Path) -> None:
    def recipe(steps: int) -> Recipe:
        return load_recipe(
            None,
            overrides=[
                f"run={tmp_path / 'run'}", "threads=1", "min_image_tokens=2", "max_image_tokens=16",
                "pretrain.start=saccade-tiny-base", "pretrain.scenes=0.8",
                f"pretrain.steps={steps}",
                "pretrain.charts_per_step=2", "pretrain.warmup_steps=1", "pretrain.decay_steps=1",
                "pretrain.checkpoint_every=1",
            ],
        )  # fmt: skip

    folder = run(recipe(2))
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 2
    assert load_model(folder).get_input_embeddings().weight.shape[0] % 16 == 0
    run(recipe(3))
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 3
    assert '"from"' in (folder / "saccade.json").read_text()
    pieces = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert pieces.token_to_id("<think>") is not None


def test_a_base_of_scenes_that_goes_on_sees_other_pictures_and_keeps_its_eye(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    whole = pretrain.lesson_tree

    def noted(index: int, *given: Any, **more: Any) -> pretrain.Packed:
        drawn.append(index)
        return whole(index, *given, **more)

    monkeypatch.setattr(pretrain, "lesson_tree", noted)
    start = "saccade-tiny-grounded-base"
    recipe = load_recipe(
        None,
        [
            f"run={tmp_path / 'run'}", "min_image_tokens=2", "max_image_tokens=25",
            f"pretrain.start={start}", "pretrain.scenes=1.0", "pretrain.first=40",
            "pretrain.steps=3", "pretrain.charts_per_step=2",
            "pretrain.warmup_steps=0", "pretrain.decay_steps=0",
        ],
    )  # fmt: skip
    renderer, model = pretrain._begun(recipe, SETTINGS)
    kept = load_model(model_folder(start))
    for name, weight in model.named_parameters():
        assert torch.equal(weight, kept.get_parameter(name)), name
    data = pretrain._data(renderer, recipe, first=1)
    assert [len(data[k].flat.ids) > 0 for k in range(len(data))] == [True] * 4
    assert drawn == [42, 43, 44, 45]


@pytest.mark.parametrize("world", ["vsr", "tally"])
def test_every_scene_has_lessons_whatever_is_drawn(world: str) -> None:
    for index in range(40):
        scene = item(world, "pretrain", 1000 + index)  # type: ignore[arg-type]
        lessons = shape_lessons(scene, np.random.default_rng(index), frame=frame(scene))
        assert 4 <= len(lessons) <= 6
        assert all(e.answer and e.asked for lesson in lessons for e in lesson)


def test_an_eye_that_is_opened_to_hue_sees_gray_as_before_and_colours_stronger() -> None:
    folder, _ = base()
    old, new = load_model(folder), load_model(folder)
    open_to_hue(new)
    proj, opened = (m.model.visual.patch_embed.proj.weight.flatten(1) for m in (old, new))
    level = torch.rand(4, 1, proj.shape[1] // 3)
    gray = level.expand(4, 3, -1).flatten(1)
    with torch.no_grad():
        assert torch.allclose(gray @ proj.T, gray @ opened.T, atol=1e-4)
        hued = gray + torch.randn(4, 3, 1).repeat(1, 1, level.shape[-1]).flatten(1)
        gain = ((hued - gray) @ opened.T).norm() / ((hued - gray) @ proj.T).norm()
    assert gain > 2


def test_scenes_to_begin_with_have_few_large_things() -> None:
    scenes = [sparse_item("pretrain", index) for index in range(60)]
    counts = [len(s.scene.things) for s in scenes]
    assert counts.count(1) > 20
    assert max(counts) <= 4
    for scene in scenes:
        assert scene.answer == str(len(scene.evidence))
        assert set(scene.evidence) <= set(scene.scene.things)
        assert len({t.name for t in scene.evidence}) <= 1
        if len(scene.scene.things) == 1:
            [thing] = scene.scene.things
            assert max(thing.box.width, thing.box.height) > 0.2 * scene.scene.image.width
