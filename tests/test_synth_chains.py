"""Self-made demonstrations: the model's own boxes, a rule's conclusion, no box label read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from saccade.config import Recipe
from saccade.dialects import NOTATIONS
from saccade.dialects.grounded import Grounded
from saccade.engines import TurnRequest
from saccade.engines.scripted import ScriptedEngine
from saccade.errors import RecipeError
from saccade.geometry import Box, Frame, iou
from saccade.image_store import ImageStore
from saccade.models.tiny import SETTINGS, build_tokenizer
from saccade.recipe_files import load_recipe
from saccade.renderers.qwen2vl import Qwen2VLRenderer
from saccade.rollout import Limits, Setup
from saccade.synth import chains
from saccade.synth.chains import asked_where, chain_of, self_made
from saccade.tasks import task_named
from saccade.types import BoxNamed, Sample

RENDERER = Qwen2VLRenderer(build_tokenizer(), SETTINGS)
INLINE = NOTATIONS["inline"]
TASKS = {name: task_named(name, {}) for name in ("shapes_vsr", "shapes_tally")}


def samples(name: str, count: int = 30) -> list[Sample]:
    return list(TASKS[name].load("train", store=ImageStore(), start=1_000_000, count=count))


def pointed(sample: Sample, *, off: float = 0.0) -> str:
    """What a model says that points right, or that much of the picture too far down and right."""
    image = sample.images[0]
    frame = Frame.thousand(image.width, image.height)
    boxes = [e.box.moved(off * image.width, off * image.height) for e in sample.evidence]
    if sample.kind == "count":
        listed = (f"{n} {INLINE.write(frame.encode_box(b), '')}" for n, b in enumerate(boxes, 1))
        return f"{sample.question.split()[2]} thing " + ", ".join(listed)
    return "\n".join(
        INLINE.write(frame.encode_box(b), e.phrase)
        for b, e in zip(boxes, sample.evidence, strict=True)
    )


def named(sample: Sample, *boxes: Box) -> list[BoxNamed]:
    image = sample.images[0]
    return [BoxNamed(image, b, e.phrase) for b, e in zip(boxes, sample.evidence, strict=False)]


def write(box: BoxNamed, phrase: str) -> str:
    frame = Frame.thousand(box.image.width, box.image.height)
    return INLINE.write(frame.encode_box(box.box), phrase)


def test_the_question_where_names_what_the_other_one_is_about() -> None:
    for sample in samples("shapes_vsr"):
        first, second = (e.phrase for e in sample.evidence)
        assert asked_where(sample) == f"Where are the {first}, the {second}?"
    sample = replace(samples("shapes_tally")[0], question="How many red stars are there?")
    assert asked_where(sample) == "Where are all red stars?"


def test_right_boxes_lead_to_a_turn_with_the_right_answer() -> None:
    for name in TASKS:
        for sample in samples(name):
            boxes = named(sample, *(e.box for e in sample.evidence))
            chain = chain_of(sample, boxes, write)
            assert chain is not None
            assert chain.answer is not None
            assert chain.answer.text == sample.answer
            assert len(INLINE.find(chain.thought)) == len(sample.evidence)
            assert (
                Grounded("silent", INLINE).parse(Grounded("silent", INLINE).render(chain)) == chain
            )
            if sample.kind not in ("count",):
                asked, held, verdict = chain.rethought.split(": ")
                assert (asked, verdict) == (sample.kind, sample.answer)
                assert (sample.kind in held.split(", ")) == (sample.answer == "true")


def test_boxes_that_contradict_the_answer_lead_nowhere() -> None:
    sided = [s for s in samples("shapes_vsr", 60) if s.kind in chains.SIDES]
    assert len(sided) > 10
    for sample in sided:
        a, b = (e.box for e in sample.evidence)
        assert chain_of(sample, named(sample, a, b), write) is not None
        assert (chain_of(sample, named(sample, b, a), write) is None) or (sample.answer == "false")
    tally = next(s for s in samples("shapes_tally") if int(s.answer) > 1)
    fewer = named(tally, *(e.box for e in tally.evidence[1:]))
    assert chain_of(tally, fewer, write) is None


def test_things_that_are_counted_are_numbered_from_the_left() -> None:
    tally = next(s for s in samples("shapes_tally") if int(s.answer) > 2)
    boxes = named(tally, *(e.box for e in tally.evidence))
    chain = chain_of(tally, boxes[::-1], write)
    assert chain is not None
    found = INLINE.find(chain.thought)
    name = tally.evidence[0].phrase
    count = int(tally.answer)
    assert [b.phrase for b in found] == [f"{name} 1", *(str(n) for n in range(2, count + 1))]
    assert [b.values[0] for b in found if b.values] == sorted(
        b.values[0] for b in found if b.values
    )
    none = replace(tally, answer="0")
    chain = chain_of(none, [], write)
    assert chain is not None
    assert chain.thought == f"no {name}"


def test_other_things_than_those_asked_for_lead_nowhere() -> None:
    sample = samples("shapes_vsr")[0]
    a, b = (e.box for e in sample.evidence)
    right = named(sample, a, b)
    assert chain_of(sample, right[:1], write) is None
    assert chain_of(sample, right[::-1], write) == chain_of(sample, right, write) is not None
    other = replace(right[0], phrase=f"pale {right[0].phrase}")
    assert chain_of(sample, [other, right[1]], write) is None
    assert chain_of(sample, [other, *right], write) == chain_of(sample, right, write)


def test_one_thing_told_twice_leads_nowhere() -> None:
    sample = next(s for s in samples("shapes_vsr") if s.kind == "touching")
    right = named(sample, *(e.box for e in sample.evidence))
    width = right[0].box.width
    twice = replace(right[1], box=right[0].box.moved(0.02 * width, 0.0))
    assert chain_of(sample, [right[0], twice], write) is None
    assert chain_of(sample, [right[0], twice, right[1]], write) is not None


def test_of_several_boxes_of_one_name_those_count_that_lead_to_the_answer() -> None:
    sided = [s for s in samples("shapes_vsr", 60) if s.kind == "left of" and s.answer == "true"]
    assert sided
    for sample in sided:
        right = named(sample, *(e.box for e in sample.evidence))
        far = sample.images[0].width - right[0].box.width
        wrong = replace(right[0], box=right[0].box.moved(far - right[0].box.x0, 0.0))
        assert chain_of(sample, [wrong, right[1]], write) is None
        assert chain_of(sample, [wrong, *right], write) == chain_of(sample, right, write)


# --- with a model ---------------------------------------------------------------------------------


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A model that points right unless it is told how far off, or how often beside at first, and
    names what lies where it is asked, or what it is told to say; what it was asked is kept.
    """
    told: dict[str, Any] = {"off": 0.0, "beside": 0, "called": None, "more": {}}
    told |= {"asked": [], "drawn": []}
    known = {s.id: s for name in TASKS for s in samples(name)}

    def script(request: TurnRequest) -> str:
        asked = request.messages[-1].text
        told["asked"].append(asked)
        if asked.startswith("What is at "):
            sample = known[request.seed[1].rpartition("/")[0]]
            return told["called"] or what_is_there(sample, asked)
        told["drawn"].append((request.seed, request.sampling.temperature))
        sample = known[request.seed[1]]
        is_off = len([s for s, _ in told["drawn"] if s[1] == sample.id]) <= told["beside"]
        said = pointed(sample, off=0.9 if is_off else told["off"])
        return said + told["more"].get(sample.id, "")

    def answering(recipe: Recipe, *, store: ImageStore) -> Setup:
        return Setup(
            engine=ScriptedEngine(script, ids=True),
            dialect=Grounded("silent", INLINE),
            store=store,
            renderer=RENDERER,
            notation=INLINE,
            limits=Limits(1, 800, 4000),
            request="Think with boxes.",
        )

    monkeypatch.setattr(chains, "answering", answering)
    return told


def what_is_there(sample: Sample, asked: str) -> str:
    """What is asked for, where its box is meant, else another thing."""
    image = sample.images[0]
    [written] = INLINE.find(asked)
    assert written.values is not None
    box = Frame.thousand(image.width, image.height).decode_box(written.values)
    there = [e.phrase for e in sample.evidence if iou(e.box, box) >= 0.5]
    return there[0] if there else "gray pebble"


def recipe(*overrides: str) -> Recipe:
    given = ["notation=inline", "dialect=grounded", "rollout.max_tokens_per_turn=800"]
    return load_recipe(
        None, [*given, "rollout.max_context_tokens=4000", "task.name=shapes_vsr", *overrides]
    )


@pytest.mark.parametrize("task", ["shapes_vsr", "shapes_tally"])
def test_a_model_that_points_makes_demonstrations(says: dict[str, Any], task: str) -> None:
    made = self_made(recipe(f"task.name={task}"), split="train", start=1_000_000, count=30)
    assert made.asked == 30
    assert len(made.demonstrations) >= 27  # whole numbers of the frame may blur a border
    for demonstration in made.demonstrations:
        parsed = Grounded("silent", INLINE).parse(demonstration.turns[0])
        assert parsed.answer is not None
    assert all("Think" not in text for text in says["asked"])
    assert all(text.startswith(("Where are", "What is at [")) for text in says["asked"])


def test_what_the_model_names_otherwise_is_struck(says: dict[str, Any]) -> None:
    counted = [s for s in samples("shapes_tally", 12) if 1 <= int(s.answer) < 6]
    assert len(counted) > 4
    for sample in counted:  # one thing too many, where nothing of the kind is
        says["more"][sample.id] = f", {int(sample.answer) + 1} [0, 0, 30, 30]"
    asked = {"split": "train", "start": 1_000_000, "count": 12}
    settings = recipe("task.name=shapes_tally")
    made = {d.sample: d.turns[0] for d in self_made(settings, **asked).demonstrations}
    for sample in counted:
        assert len(INLINE.find(made[sample.id])) == int(sample.answer)
        assert "[0, 0, 30, 30]" not in made[sample.id]
    says["called"] = "gray pebble"
    empty = {s.id for s in samples("shapes_tally", 12) if s.answer == "0"}
    assert {d.sample for d in self_made(settings, **asked).demonstrations} == empty


def test_a_model_that_points_beside_makes_few(says: dict[str, Any]) -> None:
    says["off"] = 0.9  # out of the picture for the most part
    made = self_made(recipe(), split="train", start=1_000_000, count=30)
    assert len(made.demonstrations) < 5


def test_what_later_tries_point_at_counts_too(says: dict[str, Any]) -> None:
    says["beside"] = 2  # greedily, and in the first draw
    settings = recipe("task.name=shapes_tally")
    asked = {"split": "train", "start": 1_000_000, "count": 12}
    empty = {s.id for s in samples("shapes_tally", 12) if s.answer == "0"}  # nothing to miss
    twice = self_made(settings, **asked, tries=2)
    assert {d.sample for d in twice.demonstrations} <= empty
    assert [t for _, t in says["drawn"]] == [0.0] * 12 + [1.0] * 12
    says["drawn"].clear()
    thrice = self_made(settings, **asked, tries=3)
    assert [d.sample for d in thrice.demonstrations] == [s.id for s in samples("shapes_tally", 12)]
    assert len({s for s, _ in says["drawn"]}) == len(says["drawn"])  # each draw is another one
    assert thrice.written > 0


def test_what_was_pointed_at_twice_stands_once(says: dict[str, Any]) -> None:
    asked = {"split": "train", "start": 1_000_000, "count": 12}
    once = self_made(recipe("task.name=shapes_tally"), **asked)
    thrice = self_made(recipe("task.name=shapes_tally"), **asked, tries=3)
    assert once.demonstrations == thrice.demonstrations
    assert len(once.demonstrations) > 9


def test_what_is_made_is_the_same_in_other_pieces(
    says: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = self_made(recipe(), split="train", start=1_000_000, count=10)
    monkeypatch.setattr(chains, "CHUNK", 3)
    assert self_made(recipe(), split="train", start=1_000_000, count=10) == whole


def test_a_recipe_must_say_how_boxes_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def answering(recipe: Recipe, *, store: ImageStore) -> Setup:
        return Setup(
            engine=ScriptedEngine({}),
            dialect=Grounded("silent", INLINE),
            store=store,
            frame=lambda image: Frame.thousand(image.width, image.height),
        )

    monkeypatch.setattr(chains, "answering", answering)
    with pytest.raises(RecipeError, match="how the model writes boxes"):
        self_made(recipe(), split="train", start=1_000_000, count=1)
