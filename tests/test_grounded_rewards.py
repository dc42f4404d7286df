"""What reasoning with boxes earns: strings that break the published rewards, and honest ones."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from saccade.config import RlConfig
from saccade.dialects import NOTATIONS
from saccade.dialects.grounded import Grounded
from saccade.errors import RecipeError
from saccade.geometry import Box, Frame, iou
from saccade.grounding import boxes_named
from saccade.images import beside, root_view
from saccade.rewards import (
    Rubric,
    answer,
    grounded_count,
    grounded_format,
    grounded_iou,
    grpo_gr_paper,
    grpo_gr_released,
    judge_reward,
)
from saccade.rewards.grounded import boxes_of, counted, things_in
from saccade.rl import rubric_of
from saccade.types import (
    BoxNamed,
    Episode,
    Evidence,
    ImageRef,
    Message,
    Sample,
    StopReason,
    Text,
    TurnRecord,
)

IMAGE = ImageRef("a" * 64, 1000, 1000)
OURS = Rubric(((answer, 1.0), (grounded_format, 0.2), (grounded_count, 0.2)), gate=answer)

RELATION = Sample("r", "Is the cup left of the can?", (IMAGE,), "yes", kind="relation")
COUNT = Sample("c", "How many cups are there?", (IMAGE,), "3", kind="count")
NONE = Sample("n", "How many cups are there?", (IMAGE,), "0", kind="count")


def episode(text: str, sample: Sample, *, image: ImageRef = IMAGE) -> Episode:
    parsed = Grounded().parse(text)
    named, refused = boxes_named(
        parsed,
        NOTATIONS["inline"],
        images={"img_0": image},
        frame=lambda image: Frame.thousand(image.width, image.height),
    )
    return Episode(
        sample,
        messages=(Message("assistant", (Text(text),)),),
        turns=(TurnRecord(parsed, named=named, refused=refused),),
        stop=StopReason.ANSWERED if parsed.answer else StopReason.MAX_TURNS,
    )


def turn(think: str, said: str, rethink: str = "so it is") -> str:
    return f"<think> {think} </think> <rethink> {rethink} </rethink> <answer> {said} </answer>"


def ours(text: str, sample: Sample) -> float:
    value = OURS.score(episode(text, sample)).value
    assert value is not None
    return value


CUPS = ["[100, 100, 200, 200]", "[300, 100, 400, 200]", "[500, 100, 600, 200]"]
HONEST_RELATION = turn("a cup [100, 100, 200, 200] left of a can [500, 500, 600, 600]", "yes")
HONEST_COUNT = turn(" and ".join(f"a cup {box}" for box in CUPS), "3")
HONEST_NONE = turn("no cup is there", "0")


def test_honest_right_answers_earn_most() -> None:
    assert ours(HONEST_RELATION, RELATION) == pytest.approx(1.2)
    assert ours(HONEST_COUNT, COUNT) == pytest.approx(1.4)
    assert ours(HONEST_NONE, NONE) == pytest.approx(1.4)


def test_one_place_on_several_views_is_one_place() -> None:
    """Three views of one square passed for three things."""
    whole = root_view(Image.new("RGB", (1000, 1000)))
    views = [
        whole,
        whole.crop(Box(80, 80, 480, 480)),
        whole.crop(Box(81, 81, 481, 481)).rotate(180),
        beside(whole.crop(Box(60, 60, 260, 260)), whole),
    ]
    square = Box(100, 100, 140, 140)
    on = [square, square.moved(-80, -80), Box(341, 341, 381, 381), Box(40, 40, 80, 80)]
    for view, box in zip(views, on, strict=True):
        [(root, place)] = view.ref.on_roots(box)
        assert root == whole.ref
        assert iou(place, square) > 0.9
    text = turn("cups cups cups", "3")
    sample = Sample("c", "How many cups are there?", (whole.ref,), "3", kind="count")
    named = tuple(BoxNamed(v.ref, b, "cup") for v, b in zip(views, on, strict=True))
    cheat = replace(episode(text, sample), turns=(TurnRecord(Grounded().parse(text), named=named),))
    found = boxes_of(cheat)
    assert (len(found.good), found.redundant, things_in(found.good)) == (1, 3, 1)
    assert things_in(named) == 1
    assert grounded_count(cheat, sample) == 0
    corner = whole.rotate(45).ref  # white, and of no original
    on_white = cheat.turns[0]._replace(named=(BoxNamed(corner, Box(0, 0, 50, 50), "cup"),))
    nowhere = replace(cheat, turns=(on_white,))
    assert (boxes_of(nowhere).good, boxes_of(nowhere).specks) == ((), 1)


# --- strings that break the published rewards -----------------------------------------------------

HACKS: dict[str, tuple[str, Sample, float, float]] = {
    # the released sum is at most 3.1, and 4.1 where something is counted; the paper's 2.6 and 3.1
    "wrong, four zeros": (
        "<think> a b 0, 0, 0, 0 </think><rethink></rethink><answer> banana", RELATION, 2.0, 1.5,
    ),
    "wrong, three boxes without area": (
        "<think> a 5, 5, 5, 5 and 5, 5, 5, 5 or 5, 5, 5, 5 </think><rethink></rethink><answer> 7",
        COUNT, 3.0, 2.0,
    ),
    "wrong, four zeros in our form": (turn("a b [0, 0, 0, 0]", "no"), RELATION, 2.0, 1.5),
    "wrong, a listing": (turn(" ".join(CUPS), "9"), COUNT, 3.0, 2.0),
    "wrong, the whole picture": (
        turn("a cup [0, 0, 1000, 1000]", "no"), RELATION, 2.0, 1.5,
    ),
    "right, specks": (
        turn("cups cups [1, 1, 2, 2] [5, 5, 6, 6] [9, 9, 10, 10]", "3"), COUNT, 4.05, 3.05,
    ),
    "right, one box three times": (
        turn(f"cups cups {CUPS[0]} {CUPS[0]} {CUPS[0]}", "3"), COUNT, 4.0, 3.05,
    ),
    "right, a listing": (turn(" ".join(CUPS), "3"), COUNT, 4.05, 3.05),
    "right, the whole picture": (
        turn("a cup is there [0, 0, 1000, 1000]", "yes"), RELATION, 3.05, 2.55,
    ),
    "right, never closed": (
        HONEST_RELATION.removesuffix(" </answer>"), RELATION, 3.1, 2.6,
    ),
    "right, answered twice": (
        HONEST_RELATION + " <answer> no </answer>", RELATION, 2.75, 2.5333,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HACKS)
def test_what_breaks_the_published_rewards_earns_less_than_honesty_here(name: str) -> None:
    text, sample, released, paper = HACKS[name]
    played = episode(text, sample)
    assert grpo_gr_released(played, sample) == pytest.approx(released, abs=0.03)
    assert grpo_gr_paper(played, sample) == pytest.approx(paper, abs=0.03)
    honest = HONEST_COUNT if sample is COUNT else HONEST_RELATION
    assert ours(text, sample) < ours(honest, sample) - 0.15
    if answer(played, sample) != 1.0:
        assert ours(text, sample) == 0.0  # no credit for boxes


def test_a_wrong_answer_earns_nothing_however_it_is_grounded() -> None:
    for sample in (RELATION, COUNT, NONE):
        assert ours(turn(" and ".join(f"a cup {b}" for b in CUPS), "maybe"), sample) == 0.0


@given(
    st.lists(st.tuples(*[st.integers(-50, 1100)] * 4), max_size=6),
    st.sampled_from(["yes", "no", "3", "0", "banana", ""]),
    st.sampled_from([RELATION, COUNT, NONE]),
)
def test_whatever_is_written_pays_at_most_what_honesty_pays(
    boxes: list[tuple[int, ...]], said: str, sample: Sample
) -> None:
    text = turn("I see a cup " + " ".join(f"a cup {list(b)}" for b in boxes), said)
    value = ours(text, sample)
    assert 0.0 <= value <= (1.2 if sample is RELATION else 1.4)
    if things_in(boxes_of(episode(text, sample)).good) != counted(said):
        assert value <= 1.2
    assert value == 0.0 or answer(episode(text, sample), sample) == 1.0


# --- boxes ----------------------------------------------------------------------------------------


def test_boxes_are_told_apart_by_what_they_are_worth() -> None:
    text = turn(
        "cups [100, 100, 200, 200] [101, 100, 201, 200] [300, 300, 301, 301] [0, 0, 1000, 999] "
        "[9, 9, 1, 1] [900, 900, 1200, 1000]",
        "3",
    )
    found = boxes_of(episode(text, COUNT))
    assert [b.box for b in found.good] == [Box(100, 100, 200, 200), Box(900, 900, 1000, 1000)]
    assert (found.redundant, found.invalid, found.cut, found.written) == (1, 1, 1, 6)
    assert (found.specks, found.wholes) == (1, 1)


@pytest.mark.parametrize("size", [(640, 480), (1333, 750), (7680, 4320), (4320, 7680)])
@pytest.mark.parametrize("side", [20, 60])
def test_a_small_thing_of_a_large_picture_is_a_thing(size: tuple[int, int], side: int) -> None:
    image = ImageRef("b" * 64, *size)
    made = replace(RELATION, images=(image,))
    for x, y in ((100, 100), (311, 207), (size[0] - 90, size[1] - 77)):
        gold = Box(x, y, x + side, y + side)
        values = [*Frame.thousand(*size).encode_box(gold)]
        found = boxes_of(episode(turn(f"a cup {values} stands", "yes"), made, image=image))
        assert (len(found.good), found.specks, found.invalid) == (1, 0, 0)


@pytest.mark.parametrize(
    ("box", "worth"),
    [
        ("[500, 500, 503, 900]", "specks"),
        ("[500, 500, 504, 900]", "good"),
        ("[0, 0, 899, 1000]", "good"),  # what no reward without labels can price
        ("[0, 0, 901, 1000]", "wholes"),
        ("[5, 5, 5, 9]", "invalid"),
        ("[9, 9, 1, 1]", "invalid"),
        ("[1001, 2, 1100, 9]", "invalid"),
        ("[1, 2, 3]", "invalid"),
    ],
)
def test_each_box_is_of_one_kind_around_the_thresholds(box: str, worth: str) -> None:
    found = boxes_of(episode(turn(f"a cup {box} is there", "yes"), RELATION))
    kinds = ("invalid", "specks", "wholes", "redundant")
    told = {kind: getattr(found, kind) for kind in kinds} | {"good": len(found.good)}
    assert {kind for kind, count in told.items() if count} == {worth}


@pytest.mark.parametrize(
    ("boxes", "things"),
    [
        # shifted by this much of 100: IoU is (100 - s) / (100 + s)
        (["[100, 100, 200, 200]", "[118, 100, 218, 200]"], 1),  # 0.69
        (["[100, 100, 200, 200]", "[133, 100, 233, 200]"], 1),  # 0.504
        (["[100, 100, 200, 200]", "[134, 100, 234, 200]"], 2),  # 0.493
        (["[100, 100, 400, 400]", "[200, 200, 300, 300]", "[230, 230, 270, 270]"], 1),
        (["[200, 200, 300, 300]", "[200, 220, 500, 300]"], 1),  # 80 of 100 rows
        (["[200, 200, 300, 300]", "[200, 221, 500, 320]"], 2),
        (["[100, 100, 900, 400]", *CUPS], 3),  # one around them is none of them
        ([*CUPS, "[100, 100, 900, 400]"], 3),
    ],
)
def test_what_holds_or_half_covers_another_box_is_no_other_counted_thing(
    boxes: list[str], things: int
) -> None:
    text = turn("cups " + " and one ".join(boxes), str(things))
    sample = replace(COUNT, answer=str(things))
    made = episode(text, sample)
    assert things_in(boxes_of(made).good) == things
    assert grounded_count(made, sample) == 1.0
    more = turn("cups " + " and one ".join(boxes), str(things + 1))
    assert grounded_count(episode(more, sample), sample) == 0.0


def test_a_thing_inside_of_another_keeps_the_reward_of_form() -> None:
    text = turn("a cup [300, 300, 400, 400] inside of a box [100, 100, 600, 600]", "yes")
    assert grounded_format(episode(text, RELATION), RELATION) == 1.0


@pytest.mark.parametrize(
    ("rethink", "redundant", "good"),
    [
        ("so the cup [100, 100, 200, 200] it is", 0, 1),
        ("a cup [102, 100, 200, 200]", 0, 1),
        ("[100, 100, 200, 200] it is", 0, 1),
        ("a cup [100, 100, 200, 200], cup [100, 100, 200, 200]", 1, 1),  # once is free
        ("a can [100, 100, 200, 200]", 1, 1),
        ("a cup [500, 500, 600, 600]", 0, 2),
        ("a can [500, 500, 600, 600], a can [500, 500, 600, 600]", 1, 2),
    ],
)
def test_what_a_second_thought_says_again_is_neither_a_repetition_nor_another_thing(
    rethink: str, redundant: int, good: int
) -> None:
    made = episode(turn("I see a cup [100, 100, 200, 200]", "1", rethink), COUNT)
    found = boxes_of(made)
    assert (found.redundant, len(found.good), found.invalid) == (redundant, good, 0)
    assert found.written == good + redundant
    one = replace(COUNT, answer="1")
    assert grounded_count(made, one) == float(good == 1)
    assert grounded_format(made, one) == pytest.approx(good / (good + redundant))


@pytest.mark.parametrize(
    ("think", "rethink", "value"),
    [
        ("a cup [100, 100, 200, 200] stands", "yes", 1.0),
        ("a cup [100, 100, 200, 200] stands, [0, 0, 0, 0]", "yes", 0.5),
        ("a cup [100, 100, 200, 200] stands [100, 100, 200, 200]", "yes", 0.5),
        ("a cup [100, 100, 200, 200] stands", "", 0.0),
        ("a cup stands", "yes", 0.0),
        ("[100, 100, 200, 200]", "yes", 0.0),
        ("cup [100, 100, 200, 200]", "yes", 0.0),
    ],
)
def test_form_needs_words_and_good_boxes(think: str, rethink: str, value: float) -> None:
    text = turn(think, "yes", rethink)
    assert grounded_format(episode(text, RELATION), RELATION) == value


def test_form_needs_all_sections_in_order_and_nothing_else() -> None:
    for text in (
        f"Well. {HONEST_RELATION}",
        HONEST_RELATION.replace("<rethink> so it is </rethink>", ""),
        "<rethink> a </rethink> <think> a cup [1, 1, 90, 90] </think> <answer> yes </answer>",
        HONEST_RELATION.replace("</think>", ""),
    ):
        assert grounded_format(episode(text, RELATION), RELATION) == 0.0


def test_a_count_of_nothing_needs_no_box_and_any_other_does() -> None:
    assert grounded_format(episode(HONEST_NONE, NONE), NONE) == 1.0
    assert grounded_count(episode(HONEST_NONE, NONE), NONE) == 1.0
    boxed = turn(f"a cup {CUPS[0]} is no cup", "0")
    assert grounded_count(episode(boxed, NONE), NONE) == 0.0
    assert grounded_format(episode(turn("no cup is there", "3"), COUNT), COUNT) == 0.0


@pytest.mark.parametrize(
    ("count", "said", "value"), [(3, "3", 1.0), (2, "3", 0.0), (3, "three", 1.0), (3, "a few", 0.0)]
)
def test_boxes_are_as_many_as_the_answer_says(count: int, said: str, value: float) -> None:
    text = turn(" and ".join(f"a cup {b}" for b in CUPS[:count]), said)
    assert grounded_count(episode(text, COUNT), COUNT) == value
    assert grounded_count(episode(text, RELATION), RELATION) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("three", 3), ("3 cups", 3), ("0", 0), ("2.5", None), ("-1", None), ("x", None)],
)
def test_a_count_is_a_whole_number(text: str, value: int | None) -> None:
    assert counted(text) == value


# --- where the data has boxes ---------------------------------------------------------------------


def labelled(*boxes: Box) -> Sample:
    return Sample("g", "?", (IMAGE,), "3", tuple(Evidence(IMAGE, b) for b in boxes), kind="count")


TWO = labelled(Box(100, 100, 200, 200), Box(300, 100, 400, 200))


@pytest.mark.parametrize(
    ("boxes", "value"),
    [
        (CUPS[:2], 1.0),
        (CUPS[:1], 0.75),
        (CUPS, 0.8333),
        ([], 0.0),
        ([CUPS[0], CUPS[0]], 0.5),  # what is told twice costs as what is nothing
        ([*CUPS[:2], "[0, 0, 1000, 1000]", "[5, 5, 5, 5]"], 0.75),
        (["[0, 0, 850, 1000]"], 0.0),
        (["[100, 100, 200, 150]"], 0.3737),
    ],
)
def test_dual_iou_prices_missing_and_extra_boxes(boxes: list[str], value: float) -> None:
    text = turn("cups " + " ".join(boxes), "3")
    got = grounded_iou(episode(text, TWO), TWO)
    assert got == pytest.approx(value, abs=0.01)


def test_large_things_are_worth_no_more_than_small_ones() -> None:
    for size in (20, 900):
        gold = labelled(Box(0, 0, size, size))
        assert grounded_iou(episode(turn(f"x [0, 0, {size}, {size}]", "3"), gold), gold) == 1.0
    large = labelled(Box(0, 0, 900, 900))
    lazy = turn("x [0, 0, 945, 950]", "3")  # nearly the whole picture: an IoU of 0.9
    value = grounded_iou(episode(lazy, large), large)
    assert value is not None
    assert 0.3 < value < 0.6
    assert grounded_iou(episode(HONEST_RELATION, RELATION), RELATION) is None


# --- recipes --------------------------------------------------------------------------------------


def test_a_recipe_weighs_rewards_and_gates_them() -> None:
    weights = {"answer": 1.0, "grounded_format": 0.2, "grounded_count": 0.2}
    made = rubric_of(RlConfig(reward=weights, gate="answer"))
    for text, sample in ((HONEST_COUNT, COUNT), (turn("a [0, 0, 0, 0]", "no"), RELATION)):
        assert made.score(episode(text, sample)).value == OURS.score(episode(text, sample)).value
    assert rubric_of(RlConfig(reward="answer")).score(episode(HONEST_COUNT, COUNT)).value == 1.0
    with pytest.raises(RecipeError, match="No reward named 'judge'"):
        rubric_of(RlConfig(reward="judge"))


@pytest.mark.parametrize("order", [(RELATION, COUNT, NONE), (COUNT, NONE, RELATION)])
def test_in_a_mixed_batch_each_sample_has_its_own_count_reward(order: tuple[Sample, ...]) -> None:
    """The released trainer asks the first item of the data whether anything is counted."""
    honest = {"r": HONEST_RELATION, "c": HONEST_COUNT, "n": HONEST_NONE}
    scores = {s.id: OURS.score(episode(honest[s.id], s)) for s in order}
    assert {i: s.value for i, s in scores.items()} == pytest.approx({"r": 1.2, "c": 1.4, "n": 1.4})
    counts = {i: "grounded_count none" not in s.detail for i, s in scores.items()}
    assert counts == {"r": False, "c": True, "n": True}


def test_a_closing_tag_costs_where_it_is_read_as_a_word_and_never_here() -> None:
    """BLEU of the released code counts `</answer>` as a word: "yes" earned 0.05 and not 0.10."""
    closed = episode(HONEST_RELATION, RELATION)
    cut = episode(HONEST_RELATION.removesuffix(" </answer>"), RELATION)
    for published in (grpo_gr_released, grpo_gr_paper):
        lost = published.score(cut, RELATION).value - published.score(closed, RELATION).value
        assert lost == pytest.approx(0.05)
    assert (
        ours(HONEST_RELATION, RELATION)
        == 1.2
        > ours(HONEST_RELATION.removesuffix(" </answer>"), RELATION)
    )


# --- the judge ------------------------------------------------------------------------------------

LOOSE = turn(f"a cup {CUPS[0]} stands there", "they are three in number, all told")


def judge(
    reply: str | Exception, cache: Path | None = None
) -> tuple[Callable[[], object], list[str]]:
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        if isinstance(reply, Exception):
            raise reply
        return reply

    reward = judge_reward("m", base_url="http://127.0.0.1:9/v1", cache=cache, ask=ask)
    return (lambda: reward(episode(LOOSE, COUNT), COUNT)), asked


@pytest.mark.parametrize(
    ("reply", "value"),
    [("yes", 1.0), ("Yes.", 1.0), ("No, it is not.", 0.0), ("perhaps", None), ("", None),
     ("yes and no", None), ("The answer is yes", None), ("<think> hmm no </think> Yes", 1.0),
     ("<think> yes? </think>\n\nNo.", 0.0), ("<think> yes", None), ("<think> yes </think>", None)],
)  # fmt: skip
def test_a_judge_says_yes_or_no_and_anything_else_is_no_score(
    reply: str, value: float | None
) -> None:
    score, asked = judge(reply)
    assert score() == value
    assert "three in number" in asked[0]
    assert "cup [" not in asked[0]  # never the reasoning


def test_a_judge_that_is_out_of_reach_leaves_the_episode_unscored() -> None:
    score, asked = judge(OSError("down"))
    assert score() is None
    assert score() is None
    assert len(asked) == 2  # an outage is not remembered
    reward = judge_reward("m", base_url="http://127.0.0.1:9/v1", timeout_s=1, retries=0)
    with_judge = Rubric(((reward, 1.0), (grounded_format, 0.2)))
    made = with_judge.score(episode(LOOSE, COUNT))
    assert made.value is None
    assert "judge not reached" in made.detail


def test_what_a_judge_said_is_not_asked_again(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "judge.sqlite"
    first, asked = judge("yes", file)
    assert (first(), first(), len(asked)) == (1.0, 1.0, 1)
    second, asked = judge("no", file)
    assert (second(), len(asked)) == (1.0, 0)
    (tmp_path / "other").write_text("this is no cache of anything" * 100)
    with pytest.raises(RecipeError, match="is no cache of a judge"):
        judge("yes", tmp_path / "other")
    assert sqlite3.connect(file).execute("SELECT count(*) FROM said").fetchone() == (1,)


def test_equal_and_missing_answers_are_not_asked_about() -> None:
    reward = judge_reward("m", base_url="http://127.0.0.1:9/v1", ask=lambda prompt: 1 / 0)  # type: ignore[arg-type,return-value]
    assert reward(episode(HONEST_COUNT, COUNT), COUNT) == 1.0
    assert reward(episode("<answer> 3", COUNT), COUNT) == 0.0


@contextmanager
def endpoint(
    body: bytes, content_type: str = "application/json"
) -> Iterator[tuple[str, list[bytes]]]:
    """A server that sends this body, whatever it is asked: its address, and what it was asked."""
    asked: list[bytes] = []

    class Endpoint(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Endpoint)
    thread = threading.Thread(target=lambda: server.serve_forever(0.02), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()


def completion(*choices: object) -> bytes:
    head = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
    return json.dumps({**head, "choices": choices}).encode()


def test_a_real_endpoint_is_asked_with_the_official_client() -> None:
    message = {"role": "assistant", "content": "yes"}
    body = completion({"index": 0, "finish_reason": "stop", "message": message})
    with endpoint(body) as (url, asked):
        assert judge_reward("m", base_url=url)(episode(LOOSE, COUNT), COUNT) == 1.0
    assert b"three in number" in asked[0]


@pytest.mark.parametrize("content_type", ["application/json", "text/html"])
@pytest.mark.parametrize(
    "body",
    [
        b"", b"<html>busy", b'{"choices": [{"ind', b"\xff\xfe{", b"null", b"[1]", b'"yes"',
        b"[" * 200_000, b'{"id": "1"}', b'{"choices": null}', b'{"choices": {"a": 1}}',
        b'{"choices": "yes"}', completion(), completion(None), completion("yes"),
        completion({"index": 0}), completion({"message": "yes"}),
        completion({"message": {"content": None}}), completion({"message": {"content": ["yes"]}}),
    ],
)  # fmt: skip
def test_a_judge_that_sends_what_is_no_reply_gives_no_score(body: bytes, content_type: str) -> None:
    """Each of these came with status 200 from some server; each once ended the training."""
    with endpoint(body, content_type) as (url, asked):
        reward = judge_reward("m", base_url=url, timeout_s=5, retries=0)
        score = reward.score(episode(LOOSE, COUNT), COUNT)
    assert len(asked) == 1
    assert score.value is None
    assert score.detail.startswith("judge not reached: ")


def test_where_the_form_is_free_it_earns_nothing_and_costs_nothing() -> None:
    """In a mix, charts are answered by tools: boxes around bars must not pay more than a look."""
    chart = replace(COUNT, meta=(*COUNT.meta, ("form", "free")))
    text = turn(f"cups {' '.join(CUPS)}", COUNT.answer)
    assert grounded_format(episode(text, chart), chart) is None
    assert grounded_count(episode(text, chart), chart) is None
    assert ours(text, chart) == ours(f"<answer> {COUNT.answer} </answer>", chart) == 1.0


def test_what_is_no_count_has_no_boxes_to_count() -> None:
    """MME asks of counts whether they are so."""
    asked = replace(COUNT, answer="yes")
    assert grounded_count(episode(turn("a b " + " ".join(CUPS), "yes"), asked), asked) is None
