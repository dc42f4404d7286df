"""Episodes through JSON and back."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from saccade.episode_json import episode_from_json, episode_to_json
from saccade.errors import DataError
from saccade.geometry import Affine, Box, Mask
from saccade.types import (
    Answer,
    BadBox,
    BadCall,
    BoxFound,
    BoxNamed,
    Derivation,
    Episode,
    Evidence,
    ImagePart,
    ImageRef,
    ImageShown,
    MaskFound,
    Message,
    Parsed,
    Sample,
    Score,
    Segment,
    StopReason,
    Text,
    ToolCall,
    ToolResult,
    TurnRecord,
)

_texts = st.text(st.characters(), max_size=12)  # every code point, lone surrogates included
_finite = st.floats(-1e6, 1e6)
_sizes = st.integers(1, 4000)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _texts,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(_texts | st.sampled_from(["$float", "$text"]), inner, max_size=3)
    ),
    max_leaves=6,
)
_hashable_json = st.recursive(
    st.none() | st.booleans() | st.integers() | _finite | _texts,
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
_boxes = st.builds(
    lambda x, y, w, h: Box(x, y, x + w, y + h), _finite, _finite, st.floats(1, 99), _sizes
)
_affines = st.builds(
    Affine, st.floats(0.1, 9), st.just(0.0), _finite, st.just(-0.0), st.floats(0.1, 9), _finite
)
_roots = st.builds(ImageRef, _texts, _sizes, _sizes)
_images = st.recursive(
    _roots,
    lambda parents: st.builds(
        ImageRef,
        _texts,
        _sizes,
        _sizes,
        st.lists(st.builds(ImagePart, parents, _boxes, _affines), min_size=1, max_size=2).map(
            tuple
        ),
        st.builds(
            Derivation,
            _texts,
            st.lists(st.tuples(_texts, _hashable_json), max_size=2).map(tuple),
            st.integers(1, 3),
        ),
    ),
    max_leaves=4,
)
_masks = st.lists(st.booleans(), min_size=1, max_size=30).flatmap(
    lambda bits: st.just(Mask(len(bits) + 1, 1, _runs([*bits, True])))
)
_scores = st.none() | _finite
_parts = st.one_of(
    st.builds(Text, _texts),
    st.builds(ImageShown, _images, _texts),
    st.builds(BoxFound, _images, _boxes, _texts, _scores),
    st.builds(MaskFound, _images, _masks, _texts, _scores),
)
_calls = st.builds(BadCall, _texts, _texts) | st.builds(
    ToolCall, _texts, _texts, st.dictionaries(_texts, _json, max_size=3)
)
_named = st.lists(st.builds(BoxNamed, _images, _boxes, _texts), max_size=2).map(tuple)
_results = st.builds(
    ToolResult,
    _calls,
    st.lists(_parts, min_size=1, max_size=3).map(tuple),
    st.booleans(),
    _finite,
    _named,
)
_parsed = st.builds(
    Parsed,
    _texts,
    st.lists(_calls, max_size=2).map(tuple),
    st.none() | st.builds(Answer, _texts),
)
_turns = st.builds(TurnRecord, _parsed, st.lists(_results, max_size=2).map(tuple), _named)
_ids = st.lists(st.integers(0, 200_000), max_size=4).map(tuple)
_segments = st.one_of(
    st.builds(Segment, st.just("demonstrated"), _ids),
    st.builds(
        Segment,
        st.sampled_from(["prompt", "observation"]),
        _ids,
        images=st.lists(_images, max_size=2).map(tuple),
    ),
    _ids.flatmap(
        lambda ids: st.builds(
            Segment,
            st.just("sampled"),
            st.just(ids),
            st.tuples(*[_finite | st.just(-math.inf) for _ in ids]),
            policy_version=st.none() | st.integers(0, 9),
        )
    ),
)
_samples = st.builds(
    Sample,
    _texts,
    _texts,
    st.lists(_images, min_size=1, max_size=2).map(tuple),
    _texts,
    st.lists(st.builds(Evidence, _images, _boxes, _texts), max_size=2).map(tuple),
    _texts,
    _texts,
    st.lists(st.tuples(_texts, _texts), max_size=2).map(tuple),
)
_messages = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    st.lists(_parts, max_size=3).map(tuple),
)
_episodes = st.builds(
    Episode,
    _samples,
    st.integers(0, 9),
    st.lists(_messages, max_size=2).map(tuple),
    st.lists(_turns, max_size=2).map(tuple),
    st.lists(_segments, max_size=2).map(tuple),
    st.none() | st.sampled_from(StopReason),
    _texts,
    st.none()
    | st.builds(
        Score, _scores, _texts, _texts, st.none() | st.lists(_scores, max_size=2).map(tuple)
    ),
    _finite,
)


def _runs(bits: list[bool]) -> tuple[int, ...]:
    runs, value = [0], False
    for bit in bits:
        if bit != value:
            runs.append(0)
            value = bit
        runs[-1] += 1
    return tuple(runs)


@given(episode=_episodes)
@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
def test_every_episode_comes_back_equal_through_a_line_of_strict_json(episode: Episode) -> None:
    line = json.dumps(episode_to_json(episode), allow_nan=False)
    assert line.isascii()
    back = episode_from_json(json.loads(line))
    assert back == episode
    assert repr(back) == repr(episode)  # also tells 1 from 1.0 and 0.0 from -0.0


def _root(key: str = "a") -> ImageRef:
    return ImageRef(key, 100, 80)


def _crop(parent: ImageRef, key: str) -> ImageRef:
    part = ImagePart(parent, Box(0, 0, 10, 10), Affine.translate_scale(5, 5))
    return ImageRef(key, 10, 10, (part,), Derivation("crop", (("box", (5, 5, 15, 15)),)))


def test_an_image_stands_in_the_table_once_however_often_it_is_shown() -> None:
    shown = [ImageShown(_crop(_crop(_root(), "b"), "c"), f"img_{n}") for n in range(5)]
    sample = Sample("s", "?", (_root(),), "1")
    episode = Episode(sample, messages=(Message("tool", tuple(shown)),))
    value = episode_to_json(episode)
    assert [row["key"] for row in value["images"]] == ["a", "b", "c"]
    back = episode_from_json(value)
    assert back == episode
    assert back.sample.images[0] is back.messages[0].images[0].image.roots()[0]


def test_nan_among_the_arguments_survives_and_the_line_stays_json() -> None:
    like_a_mark = {"$float": "x"}
    call = ToolCall("1", "crop", {"box": [math.nan, math.inf, -0.0, 1e300], "by": like_a_mark})
    turn = TurnRecord(Parsed("", (call,)))
    line = json.dumps(episode_to_json(Episode(Sample("s", "?", (_root(),), "1"), turns=(turn,))))
    (back,) = episode_from_json(json.loads(line)).turns[0].parsed.calls
    assert isinstance(back, ToolCall)
    assert repr(back.arguments) == repr(call.arguments)


def test_two_surrogates_in_a_row_do_not_melt_into_one_character() -> None:
    halves = "\ud83d" + "\ude00"
    episode = Episode(Sample("s", halves, (_root(halves),), "1", meta=((halves, "😀"),)))
    back = episode_from_json(json.loads(json.dumps(episode_to_json(episode))))
    assert back == episode
    assert len(back.sample.question) == 2


def test_a_tuple_in_a_recipe_comes_back_as_a_tuple() -> None:
    episode = Episode(Sample("s", "?", (_crop(_root(), "b"),), "1"))
    back = episode_from_json(json.loads(json.dumps(episode_to_json(episode))))
    assert hash(back.sample.images[0]) == hash(episode.sample.images[0])


def test_boxes_in_thoughts_come_back_and_so_do_those_that_were_none() -> None:
    root = _root()
    turn = TurnRecord(
        Parsed("a [1, 2, 3, 4]", answer=Answer("7"), rethought="so"),
        named=(
            BoxNamed(root, Box(1, 2, 3, 4), "a", is_cut=True),
            BoxNamed(root, Box(0, 0, 2, 2), is_rethought=True),
        ),
        refused=(BadBox("[0, 0, 0, 0]", "no area"),),
    )
    episode = Episode(Sample("s", "?", (root,), "1"), turns=(turn,))
    assert episode_from_json(json.loads(json.dumps(episode_to_json(episode)))) == episode


def test_segments_may_be_left_out() -> None:
    episode = Episode(Sample("s", "?", (_root(),), "1"), segments=(Segment("prompt", (1, 2)),))
    value = episode_to_json(episode, segments=False)
    assert "segments" not in value
    assert episode_from_json(value).segments == ()
    assert episode_from_json(episode_to_json(episode)).segments == episode.segments


def test_what_is_no_episode_is_refused_with_a_sentence() -> None:
    good = episode_to_json(Episode(Sample("s", "?", (_root(),), "1")))
    with pytest.raises(DataError, match="schema 2, this version of saccade reads 1"):
        episode_from_json({**good, "schema": 2})
    with pytest.raises(DataError, match="schema None"):
        episode_from_json({})
    bad = {**good, "images": []}
    with pytest.raises(DataError, match="image 0 of 0"):
        episode_from_json(bad)
    for key in good.keys() - {"schema", "segments"}:
        with pytest.raises(DataError, match="can't be read"):
            episode_from_json({k: v for k, v in good.items() if k != key})
    with pytest.raises(DataError, match="can't be read"):
        episode_from_json({**good, "stop": "bored"})


def test_an_image_in_more_steps_than_may_be_is_no_episode() -> None:
    image = _root()
    for step in range(64):
        image = _crop(image, f"step {step}")
    value = episode_to_json(Episode(Sample("s", "?", (image,), "1")))
    assert episode_from_json(value).sample.images == (image,)
    beyond = {**value["images"][-1], "parts": [dict(value["images"][-1]["parts"][0], parent=64)]}
    with pytest.raises(DataError, match=r"LineageError: .* 64 steps .* would be 65"):
        episode_from_json({**value, "images": [*value["images"], beyond]})
