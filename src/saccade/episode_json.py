"""Episodes as JSON: one line that holds all of an episode but the pixels.

Invariant: an episode comes back equal through strict JSON, also where its values are of the kinds
that JSON lacks (nan, tuples, two surrogates in a row); each image stands in one table, once.
Left out on purpose: pixels (`saccade.image_store` makes them again from an image's recipe), and
readers of other schemas than the present one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from saccade.errors import DataError
from saccade.geometry import Affine, Box, Mask, Point
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
    Part,
    PointFound,
    Sample,
    Score,
    Segment,
    StopReason,
    Text,
    ToolCall,
    ToolResult,
    TurnRecord,
)

__all__ = [
    "ImageTable",
    "episode_from_json",
    "episode_to_json",
    "images_from_rows",
    "part_from_json",
    "part_to_json",
]

SCHEMA = 1
"""Version of the JSON form of an episode; a reader refuses any other."""


# --- values that JSON lacks -----------------------------------------------------------------------

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def _pack(value: Any) -> Any:
    """JSON with marks, `{"$...": ...}`, for what it lacks: nan, tuples, two surrogates in a row."""
    if isinstance(value, str):
        return {"$text": [ord(c) for c in value]} if _PAIR.search(value) else value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(float(value))}
    if isinstance(value, dict):
        if all(isinstance(k, str) and not k.startswith("$") and not _PAIR.search(k) for k in value):
            return {k: _pack(v) for k, v in value.items()}
        return {"$dict": [[_pack(k), _pack(v)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"$tuple": [_pack(v) for v in value]}
    if isinstance(value, list):
        return [_pack(v) for v in value]
    return value


def _unpack(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpack(v) for v in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        ((mark, inner),) = value.items()
        if mark == "$text":
            return "".join(chr(c) for c in inner)
        if mark == "$float":
            return float(inner)
        if mark == "$tuple":
            return tuple(_unpack(v) for v in inner)
        if mark == "$dict":
            return {_unpack(k): _unpack(v) for k, v in inner}
    return {k: _unpack(v) for k, v in value.items()}


# --- episodes as JSON -----------------------------------------------------------------------------


class ImageTable:
    """Images as rows of plain JSON values, each once, parents before children."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        """`images_from_rows` reads them."""
        self._by_object: dict[int, int] = {}
        self._by_content: dict[str, int] = {}

    def index(self, image: ImageRef) -> int:
        """The number of its row, which is made where there is none."""
        known = self._by_object.get(id(image))
        if known is not None:
            return known
        row: dict[str, Any] = {"key": image.key, "width": image.width, "height": image.height}
        if image.derivation is not None:
            row["parts"] = [
                {
                    "parent": self.index(part.parent),
                    "area": list(part.area.as_tuple()),
                    "to_parent": _affine_numbers(part.to_parent),
                }
                for part in image.parts
            ]
            row["derivation"] = {
                "operation": image.derivation.operation,
                "arguments": [[name, value] for name, value in image.derivation.arguments],
                "version": image.derivation.version,
            }
        content = json.dumps(_pack(row))
        number = self._by_content.setdefault(content, len(self.rows))
        if number == len(self.rows):
            self.rows.append(row)
        self._by_object[id(image)] = number
        return number


def _affine_numbers(affine: Affine) -> list[float]:
    return [affine.a, affine.b, affine.c, affine.d, affine.e, affine.f]


def episode_to_json(episode: Episode, *, segments: bool = True) -> dict[str, Any]:
    """The episode as plain JSON values, from which `episode_from_json` makes an equal episode.

    Images stand as numbers of rows in the table `images`. `segments=False` leaves the tokens out.
    """
    images = ImageTable()
    value = {
        "sample": _sample_out(episode.sample, images),
        "rollout_index": episode.rollout_index,
        "messages": [
            {"role": m.role, "parts": [part_to_json(p, images) for p in m.parts]}
            for m in episode.messages
        ],
        "turns": [_turn_out(t, images) for t in episode.turns],
        "stop": episode.stop.value if episode.stop else None,
        "error": episode.error,
        "score": _score_out(episode.score),
        "seconds": episode.seconds,
    }
    if segments:
        value["segments"] = [
            {
                "origin": s.origin,
                "ids": list(s.ids),
                "logprobs": list(s.logprobs),
                "images": [images.index(i) for i in s.images],
                "policy_version": s.policy_version,
            }
            for s in episode.segments
        ]
    packed: dict[str, Any] = _pack({"schema": SCHEMA, "images": images.rows, **value})
    return packed


def episode_from_json(value: Mapping[str, Any]) -> Episode:
    """The episode that `episode_to_json` wrote. Raises DataError where the value is none."""
    if not isinstance(value, Mapping):
        raise DataError(f"Episode can't be read: it is a {type(value).__name__}, not an object.")
    schema = value.get("schema")
    if schema != SCHEMA:
        raise DataError(
            f"Episode has schema {schema!r}, this version of saccade reads {SCHEMA}: "
            "read it with the version that wrote it."
        )
    try:
        return _episode_in(_unpack(dict(value)))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"Episode can't be read: {type(error).__name__}: {error}.") from error


def _episode_in(value: dict[str, Any]) -> Episode:
    images = images_from_rows(value["images"])
    score, stop = value["score"], value["stop"]
    return Episode(
        sample=_sample_in(value["sample"], images),
        rollout_index=value["rollout_index"],
        messages=tuple(
            Message(m["role"], tuple(part_from_json(p, images) for p in m["parts"]))
            for m in value["messages"]
        ),
        turns=tuple(_turn_in(t, images) for t in value["turns"]),
        segments=tuple(
            Segment(
                s["origin"],
                tuple(s["ids"]),
                tuple(s["logprobs"]),
                tuple(_at(images, i) for i in s["images"]),
                s["policy_version"],
            )
            for s in value.get("segments", ())
        ),
        stop=None if stop is None else StopReason(stop),
        error=value["error"],
        score=None if score is None else _score_in(score),
        seconds=value["seconds"],
    )


def _at(images: Sequence[ImageRef], number: int) -> ImageRef:
    if not 0 <= number < len(images):
        raise IndexError(f"image {number} of {len(images)}")
    return images[number]


def images_from_rows(rows: Sequence[dict[str, Any]]) -> list[ImageRef]:
    """The images of a table. Raises KeyError, TypeError, ValueError or IndexError for rows that no
    table wrote.
    """
    images: list[ImageRef] = []
    for row in rows:
        images.append(_image_in(row, images))
    return images


def _image_in(row: dict[str, Any], images: Sequence[ImageRef]) -> ImageRef:
    made = row.get("derivation")
    if made is None:
        return ImageRef(row["key"], row["width"], row["height"])
    parts = tuple(
        ImagePart(_at(images, p["parent"]), Box(*p["area"]), Affine(*p["to_parent"]))
        for p in row["parts"]
    )
    arguments = tuple((name, argument) for name, argument in made["arguments"])
    derivation = Derivation(made["operation"], arguments, made["version"])
    return ImageRef(row["key"], row["width"], row["height"], parts, derivation)


def _sample_out(sample: Sample, images: ImageTable) -> dict[str, Any]:
    return {
        "id": sample.id,
        "question": sample.question,
        "images": [images.index(i) for i in sample.images],
        "answer": sample.answer,
        "evidence": [
            {"image": images.index(e.image), "box": list(e.box.as_tuple()), "phrase": e.phrase}
            for e in sample.evidence
        ],
        "kind": sample.kind,
        "stratum": sample.stratum,
        "meta": [[name, text] for name, text in sample.meta],
    }


def _sample_in(value: dict[str, Any], images: Sequence[ImageRef]) -> Sample:
    return Sample(
        id=value["id"],
        question=value["question"],
        images=tuple(_at(images, i) for i in value["images"]),
        answer=value["answer"],
        evidence=tuple(
            Evidence(_at(images, e["image"]), Box(*e["box"]), e["phrase"])
            for e in value["evidence"]
        ),
        kind=value["kind"],
        stratum=value["stratum"],
        meta=tuple((name, text) for name, text in value["meta"]),
    )


def part_to_json(part: Part, images: ImageTable) -> dict[str, Any]:
    """Plain JSON values; its image goes into the table."""
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    image = images.index(part.image)
    if isinstance(part, ImageShown):
        return {"type": "image", "image": image, "name": part.name}
    shared = {"image": image, "label": part.label, "score": part.score}
    if isinstance(part, BoxFound):
        return {"type": "box", "box": list(part.box.as_tuple()), **shared}
    if isinstance(part, PointFound):
        return {"type": "point", "point": [part.point.x, part.point.y], **shared}
    mask = part.mask
    return {
        "type": "mask",
        "mask": {"width": mask.width, "height": mask.height, "runs": list(mask.runs)},
        **shared,
    }


def part_from_json(value: dict[str, Any], images: Sequence[ImageRef]) -> Part:
    """Raises as `images_from_rows` does."""
    kind = value["type"]
    if kind == "text":
        return Text(value["text"])
    image = _at(images, value["image"])
    if kind == "image":
        return ImageShown(image, value["name"])
    if kind == "box":
        return BoxFound(image, Box(*value["box"]), value["label"], value["score"])
    if kind == "point":
        return PointFound(image, Point(*value["point"]), value["label"], value["score"])
    if kind == "mask":
        mask = value["mask"]
        found = Mask(mask["width"], mask["height"], tuple(mask["runs"]))
        return MaskFound(image, found, value["label"], value["score"])
    raise ValueError(f"unknown part {kind!r}")


def _call_out(call: ToolCall | BadCall) -> dict[str, Any]:
    if isinstance(call, BadCall):
        return {"raw": call.raw, "reason": call.reason}
    return {"id": call.id, "name": call.name, "arguments": call.arguments}


def _call_in(value: dict[str, Any]) -> ToolCall | BadCall:
    if "raw" in value:
        return BadCall(value["raw"], value["reason"])
    return ToolCall(value["id"], value["name"], value["arguments"])


def _named_out(named: Sequence[BoxNamed], images: ImageTable) -> list[dict[str, Any]]:
    return [
        {
            "image": images.index(n.image),
            "box": list(n.box.as_tuple()),
            "phrase": n.phrase,
            **({"is_cut": True} if n.is_cut else {}),
            **({"is_rethought": True} if n.is_rethought else {}),
        }
        for n in named
    ]


def _named_in(values: Sequence[dict[str, Any]], images: Sequence[ImageRef]) -> Iterator[BoxNamed]:
    for value in values:
        yield BoxNamed(
            _at(images, value["image"]),
            Box(*value["box"]),
            value["phrase"],
            is_cut=value.get("is_cut", False),
            is_rethought=value.get("is_rethought", False),
        )


def _turn_out(turn: TurnRecord, images: ImageTable) -> dict[str, Any]:
    answer = turn.parsed.answer
    return {
        "thought": turn.parsed.thought,
        **({"rethought": turn.parsed.rethought} if turn.parsed.rethought else {}),
        "calls": [_call_out(c) for c in turn.parsed.calls],
        "answer": None if answer is None else answer.text,
        "named": _named_out(turn.named, images),
        **({"refused": [[b.raw, b.reason] for b in turn.refused]} if turn.refused else {}),
        "results": [
            {
                "call": _call_out(r.call),
                "parts": [part_to_json(p, images) for p in r.parts],
                "failed": r.failed,
                "seconds": r.seconds,
                "named": _named_out(r.named, images),
            }
            for r in turn.results
        ],
    }


def _turn_in(value: dict[str, Any], images: Sequence[ImageRef]) -> TurnRecord:
    answer = value["answer"]
    return TurnRecord(
        Parsed(
            thought=value["thought"],
            calls=tuple(_call_in(c) for c in value["calls"]),
            answer=None if answer is None else Answer(answer),
            rethought=value.get("rethought", ""),
        ),
        tuple(
            ToolResult(
                call=_call_in(r["call"]),
                parts=tuple(part_from_json(p, images) for p in r["parts"]),
                failed=r["failed"],
                seconds=r["seconds"],
                named=tuple(_named_in(r["named"], images)),
            )
            for r in value["results"]
        ),
        tuple(_named_in(value["named"], images)),
        tuple(BadBox(raw, reason) for raw, reason in value.get("refused", ())),
    )


def _score_out(score: Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    turns = None if score.turns is None else list(score.turns)
    return {"value": score.value, "name": score.name, "detail": score.detail, "turns": turns}


def _score_in(value: dict[str, Any]) -> Score:
    turns = value["turns"]
    return Score(
        value["value"],
        value["name"],
        value["detail"],
        None if turns is None else tuple(turns),
    )
