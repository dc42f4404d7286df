"""How far our rules agree with labels made by upstream code: `saccade score FILE.json`.

Invariant: every row of a file is scored or the file is refused with a sentence; a row is never
skipped in silence. Reads the forms of `answer_vectors.json` and `box_coord_vectors.json`.
Left out on purpose: printing, and judged rules.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from saccade.errors import DataError
from saccade.geometry import Frame
from saccade.rewards.answers import lenient, strict
from saccade.rewards.boxes import (
    acc_at_0_5,
    center_acc,
    iou_xyxy,
    treebench_miou,
    union_mask_iou,
)
from saccade.rewards.published_rules import RULES

__all__ = ["Disagreement", "RuleAgreement", "score_file"]

TOLERANCE = 1e-6
"""Of floats; the vector files round to six digits."""
FINE_TUNING_LIMITS = {"min_pixels": 3136, "max_pixels": 1_003_520}
"""Qwen's fine-tuning defaults, which the group `coordinate_conversions` uses."""

OURS = ("strict, against human_correct", "lenient, against human_correct")
"""Our own two rules, as entries of their own."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A row on which we differ from its label."""

    id: str
    expected: object
    got: object
    note: str = ""


@dataclass(frozen=True, slots=True)
class RuleAgreement:
    """One rule, or one measure of a group, over the rows of a file."""

    rule: str
    n: int
    disagreements: tuple[Disagreement, ...] = ()

    @property
    def agree(self) -> int:
        return self.n - len(self.disagreements)


@dataclass(slots=True)
class _Tally:
    """Counts of one file, by rule in the order of first appearance."""

    n: dict[str, int] = field(default_factory=dict)
    differing: dict[str, list[Disagreement]] = field(default_factory=dict)

    def add(self, rule: str, row: str, *, expected: object, got: object, note: str = "") -> None:
        self.n[rule] = self.n.get(rule, 0) + 1
        if not _same(expected, got):
            self.differing.setdefault(rule, []).append(Disagreement(row, expected, got, note))

    def result(self) -> list[RuleAgreement]:
        rules = sorted(self.n, key=OURS.__contains__)  # stable: ours come last
        return [RuleAgreement(r, self.n[r], tuple(self.differing.get(r, ()))) for r in rules]


def _same(expected: object, got: object) -> bool:
    if isinstance(expected, list | tuple) and isinstance(got, list | tuple):
        return len(expected) == len(got) and all(map(_same, expected, got))
    if isinstance(expected, int | float) and isinstance(got, int | float):
        return abs(float(expected) - float(got)) <= TOLERANCE
    return expected == got


def score_file(path: Path) -> list[RuleAgreement]:
    """Agreement for each rule or measure of a vector file, with the rows that differ.

    Answer vectors give one entry for each rule (against `expected`), then our own `strict` and
    `lenient` against `human_correct` where it says anything. Box vectors give one entry for each
    measure of each group. Raises DataError for a file that is not of either form.
    """
    data = _read(Path(path))
    if "vectors" in data:
        return _score_all(path, data, {"vectors": _answer_row})
    groups = {name: score for name, score in _GROUPS.items() if name in data}
    if not groups:
        raise DataError(
            f"{path} has neither answer vectors (key 'vectors') nor box vectors "
            f"(keys {', '.join(_GROUPS)})."
        )
    return _score_all(path, data, groups)


_RowScorer = Callable[[_Tally, str, Mapping[str, Any]], None]


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} can't be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a JSON file: {error}.") from error
    if not isinstance(data, dict):
        raise DataError(f"{path} needs a JSON object at the top, got {type(data).__name__}.")
    return data


def _score_all(
    path: Path, data: Mapping[str, Any], groups: Mapping[str, _RowScorer]
) -> list[RuleAgreement]:
    tally = _Tally()
    bad: list[str] = []
    for group, score in groups.items():
        rows = data[group]
        if not isinstance(rows, list):
            raise DataError(f"{path} needs a list under {group!r}, got {type(rows).__name__}.")
        for number, row in enumerate(rows, start=1):
            name = f"{group}[{number}]"
            if not isinstance(row, dict):
                bad.append(f"{name} is no object")
                continue
            try:
                score(tally, str(row.get("id", name)), row)
            except KeyError as error:
                bad.append(f"{name} lacks {error}")
            except (TypeError, ValueError) as error:
                bad.append(f"{name}: {error}")
    if bad:
        more = f"; and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise DataError(f"{path} has {len(bad)} bad rows: {'; '.join(bad[:5])}{more}.")
    return tally.result()


# --- answers --------------------------------------------------------------------------------------


def _answer_row(tally: _Tally, row_id: str, row: Mapping[str, Any]) -> None:
    rule, gold, prediction = (_text(row, key) for key in ("rule", "gold", "prediction"))
    if rule not in RULES:
        raise ValueError(f"there is no rule {rule!r} (known: {', '.join(RULES)})")
    params = row.get("params") or {}
    if not isinstance(params, dict):
        raise TypeError(f"'params' must be an object, got {params!r}")
    year, qt = _flags(params.get("year", [])), str(params.get("qt", ""))
    got = RULES[rule](gold, prediction, year=year, qt=qt)
    note = str(row.get("note", ""))
    tally.add(rule, row_id, expected=row["expected"], got=got, note=note)
    human = row.get("human_correct")
    if human is None:
        return
    is_year = any(flag.upper() == "YES" for flag in year)
    ours = (strict(gold, prediction), lenient(gold, prediction, year=is_year))
    for name, said in zip(OURS, ours, strict=True):
        tally.add(name, row_id, expected=human, got=said, note=note)


def _flags(value: object) -> list[str]:
    flags = [value] if isinstance(value, str) else value
    if not isinstance(flags, list) or not all(isinstance(flag, str) for flag in flags):
        raise TypeError(f"'year' must be text or a list of text, got {value!r}")
    return flags


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row[key]
    if not isinstance(value, str):
        raise TypeError(f"{key!r} must be text, got {type(value).__name__}")
    return value


# --- boxes and coordinates ------------------------------------------------------------------------


def _iou_row(tally: _Tally, row_id: str, row: Mapping[str, Any]) -> None:
    gold, prediction, note = _box(row, "gt"), _box(row, "pred"), str(row.get("note", ""))
    # upstream divides by zero where neither box has an area; our value there is 0
    expected = 0.0 if isinstance(row["iou"], str) else row["iou"]
    got = iou_xyxy(gold, prediction)
    tally.add("iou: iou", row_id, expected=expected, got=got, note=note)
    for name, measure in (("acc_at_0_5", acc_at_0_5), ("center_acc", center_acc)):
        if row[name] is not None:
            hit = measure(gold, prediction)
            tally.add(f"iou: {name}", row_id, expected=row[name], got=hit, note=note)


def _box_set_row(tally: _Tally, row_id: str, row: Mapping[str, Any]) -> None:
    targets, predictions = _boxes(row, "targets"), _boxes(row, "preds")
    for name, measure in (("treebench_miou", treebench_miou), ("union_mask_iou", union_mask_iou)):
        got = measure(targets, predictions)
        note = str(row.get("note", ""))
        tally.add(f"box_sets: {name}", row_id, expected=row[name], got=got, note=note)


def _resize_row(tally: _Tally, row_id: str, row: Mapping[str, Any]) -> None:
    got = _resized(row)
    tally.add("smart_resize", row_id, expected=row["expected_resized_hw"], got=got)


def _resize_edge_row(tally: _Tally, row_id: str, row: Mapping[str, Any]) -> None:
    note = str(row.get("note", ""))
    tally.add("smart_resize_edges", row_id, expected=row["expected"], got=_resized(row), note=note)


def _resized(row: Mapping[str, Any]) -> tuple[int, int] | str:
    from saccade.renderers.resize import smart_resize

    height, width, factor = (_whole(row[key], key) for key in ("height", "width", "factor"))
    limits = {
        key: None if row.get(key) is None else _whole(row[key], key)
        for key in ("min_pixels", "max_pixels")
    }
    try:
        return smart_resize(height, width, factor=factor, **limits)
    except ValueError:
        return "ValueError"


def _conversion_row(tally: _Tally, row_id: str, row: Mapping[str, Any]) -> None:
    from saccade.renderers.resize import smart_resize

    box = _box(row, "box_xyxy_px")
    if not isinstance(row["orig_hw"], list) or len(row["orig_hw"]) != 2:
        raise TypeError(f"'orig_hw' must be [height, width], got {row['orig_hw']!r}")
    height, width = (_whole(side, "orig_hw") for side in row["orig_hw"])
    resized = smart_resize(height, width, factor=28, **FINE_TUNING_LIMITS)
    frame = Frame.resized(width, height, resized_height=resized[0], resized_width=resized[1])
    got = {
        "qwen2vl_qwen3vl_0_1000": Frame.thousand(width, height).encode(box),
        "qwen25vl_resized_abs": frame.encode(box),
        "qwen25vl_resized_hw": resized,
    }
    for name, value in got.items():
        tally.add(f"coordinate_conversions: {name}", row_id, expected=row[name], got=value)


def _whole(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name!r} must be a whole number, got {value!r}")
    return value


def _box(row: Mapping[str, Any], key: str) -> list[float]:
    return _four(row[key], key)


def _boxes(row: Mapping[str, Any], key: str) -> list[list[float]]:
    if not isinstance(row[key], list):
        raise TypeError(f"{key!r} must be a list of boxes, got {row[key]!r}")
    return [_four(value, key) for value in row[key]]


def _four(value: object, key: str) -> list[float]:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 4 or not all(isinstance(v, int | float) for v in numbers):
        raise TypeError(f"{key!r} must hold boxes of four numbers, got {value!r}")
    return [float(v) for v in numbers]


_GROUPS: Mapping[str, _RowScorer] = {
    "iou": _iou_row,
    "box_sets": _box_set_row,
    "smart_resize": _resize_row,
    "smart_resize_edges": _resize_edge_row,
    "coordinate_conversions": _conversion_row,
}
