"""The tables on the page of a ladder: those of each split, the learning rates, the ledger.

Invariant: a figure that is missing leaves its cell empty, which the page shows as a dash, never 0.

Left out on purpose: computing figures (`saccade.ladder.figures` does), and tables for the
terminal.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from saccade.ladder.page.results import (
    ALL,
    EASY,
    LOOK,
    accuracy_pairs,
    arm_names,
    at,
    estimate_of,
    figures_of,
    is_about_looking,
    is_trained,
    list_of,
    pairs_of,
    published_accuracies,
    published_steps,
    size_of,
    stored_rows,
    strata_of,
    tool_arms,
)
from saccade.ladder.page.statements import Statement, statements
from saccade.report import Cell, Row, Table, interval_of, number_of, share_cell, signed

__all__ = ["SplitTables", "ledger_table", "rates_table", "split_tables", "with_sizes"]

LOOK_SHARES = ("0.25", "0.5", "0.75")
"""As `saccade.ladder.figures` writes them; a page is made without it."""


class SplitTables(NamedTuple):
    """A split on the page."""

    link: str
    """Where the page can be jumped to."""
    name: str
    statements: tuple[Statement, ...]
    reached: Table
    conduct: Table
    boxes: Table
    boxes_pairs: Table
    controls: Table
    drops: Table
    pairs: Table
    tools: Table
    changed: Table
    mixtures: Table
    kinds: Table


def split_tables(results: Mapping[str, Any], split: str, *, link: str) -> SplitTables:
    """Everything that the page says of one split."""
    return SplitTables(
        link,
        split,
        statements(results, split),
        _reached(results, split),
        _conduct(results, split),
        _boxes(results, split),
        _boxes_differences(results, split),
        _controls(results, split),
        _drops(results, split),
        _differences(results, split),
        _tools(results, split),
        _gain_and_harm(results, split),
        _mixtures(results, split),
        _kinds(results, split),
    )


def with_sizes(names: Sequence[str], sizes: Sequence[int | None]) -> list[str]:
    """Names, each with its number of items where that is known."""
    return [
        name if size is None else f"{name} ({size:,})"
        for name, size in zip(names, sizes, strict=True)
    ]


# --- how arms did ---------------------------------------------------------------------------------


def _reached(results: Mapping[str, Any], split: str) -> Table:
    """Learning rate, accuracy by stratum with the value of each seed, and the published one."""
    published = published_accuracies(results)
    strata = strata_of(results, split)
    sizes = [size_of(results, split, "samples", stratum) for stratum in strata]
    heads = ("learning rate", "seeds", *with_sizes(strata, sizes), "published")
    rows = []
    for name in arm_names(results):
        arm = results["arms"][name]
        figures = figures_of(results, split, name)
        by_seed = list_of(at(figures, "by_seed"))
        rate = number_of(at(arm, "rate"))
        seeds = list_of(at(arm, "seeds"))
        cells = [
            Cell("" if rate is None else f"{rate:g}"),
            Cell(", ".join(map(str, seeds))),
        ]
        for stratum in strata:
            values = [number_of(at(s, "accuracy", stratum)) for s in by_seed]
            note = " · ".join("–" if v is None else f"{100 * v:.1f}" for v in values)
            cells.append(
                share_cell(
                    at(figures, "by_stratum", "accuracy", stratum),
                    note=note if len(values) > 1 else "",
                )
            )
        cells.append(Cell(f"{published[name]:.1f}" if name in published else ""))
        rows.append(Row(name, tuple(cells), _about(arm)))
    return Table(heads, tuple(rows))


def _about(arm: Any) -> str:
    """What an arm differs in, and what it is told beside its training items."""
    told = [str(at(arm, "differs") or "")]
    if (picked_on := number_of(at(arm, "picked_on"))) is not None:
        told.append(f"weights picked on {picked_on:,.0f} labelled items of validation")
    return "; ".join(t for t in told if t)


def _conduct(results: Mapping[str, Any], split: str) -> Table:
    """What an arm does for an answer, and what its training took."""
    looking = is_about_looking(results, split)
    heads = (
        *(("calls, easy", "calls, look", "more on look") if looking else ("calls",)),
        "calls by tool, all",
        "tokens written",
        "image tokens",
        "tokens written in training",
        "trained tokens",
        "seconds of training",
        "unanswered",
    )
    rows = []
    for name in arm_names(results):
        figures = figures_of(results, split, name)
        calls = at(figures, "by_stratum", "calls")
        costs = list_of(at(results, "arms", name, "training"))
        tools = at(figures, "calls_by_tool")
        used = [
            f"{tool} {value:.2f}"
            for tool, count in (tools.items() if isinstance(tools, Mapping) else ())
            if (value := number_of(count)) is not None
        ]
        made = (
            (
                _count_cell(at(calls, EASY)),
                _count_cell(at(calls, LOOK)),
                _count_cell(at(figures, "adaptive_calls"), is_difference=True),
            )
            if looking
            else (_count_cell(at(calls, ALL)),)
        )
        cells = (
            *made,
            Cell(", ".join(used)),
            _count_cell(at(figures, "by_stratum", "completion_tokens", "all"), digits=1),
            _count_cell(at(figures, "image_tokens"), digits=1),
            _cost_cell(costs, "written"),
            _cost_cell(costs, "tokens", note=_steps_told(costs)),
            _cost_cell(costs, "seconds"),
            _unanswered(figures),
        )
        rows.append(Row(name, cells))
    return Table(heads, tuple(rows))


def _count_cell(value: Any, *, digits: int = 2, is_difference: bool = False) -> Cell:
    estimate, low, high = interval_of(value)

    def number(count: float) -> str:
        return signed(count, digits=digits) if is_difference else f"{count:,.{digits}f}"

    if estimate is None:
        return Cell("")
    interval = "" if low is None or high is None else f"{number(low)} to {number(high)}"
    return Cell(number(estimate), interval)


def _cost_cell(costs: Sequence[Any], key: str, *, note: str = "") -> Cell:
    """The mean over seeds, and each seed's."""
    values = [v for cost in costs if (v := number_of(at(cost, key))) is not None]
    if not values:
        return Cell("")
    each = " · ".join(f"{v:,.0f}" for v in values) if len(values) > 1 else ""
    return Cell(f"{sum(values) / len(values):,.0f}", each, note=note)


def _steps_told(costs: Sequence[Any]) -> str:
    told = []
    for key in ("steps", "episodes"):
        found = [v for cost in costs if (v := number_of(at(cost, key))) is not None]
        if found:
            told.append(f"{sum(found) / len(found):,.0f} {key}")
    return ", ".join(told)


def _unanswered(figures: Any) -> Cell:
    heads = {"truncated": "cut off", "extraction_failed": "not read", "unscored": "unscored"}
    shares = {head: number_of(at(figures, key)) for key, head in heads.items()}
    known = {head: share for head, share in shares.items() if share is not None}
    if not known:
        return Cell("")
    note = ", ".join(f"{head} {100 * share:.1f}" for head, share in known.items() if share)
    return Cell(f"{100 * sum(known.values()):.1f}", note=note)


def _boxes(results: Mapping[str, Any], split: str) -> Table:
    """What the boxes in thoughts came to; no rows where nobody asked for any."""
    strata = strata_of(results, split)
    rows = []
    for name in arm_names(results):
        found = at(figures_of(results, split, name), "by_stratum")
        if at(found, "boxes", ALL) is None:
            continue
        cells = (
            *(share_cell(at(found, "f1", stratum)) for stratum in strata),
            *(share_cell(at(found, key, ALL))._replace(range=None) for key in _OF_BOXES),
            _count_cell(at(found, "boxes", ALL)),
        )
        rows.append(Row(name, cells))
    heads = (*(f"F1, {stratum}" for stratum in strata), *_OF_BOXES.values(), "boxes")
    return Table(heads, tuple(rows))


_OF_BOXES = {
    "mean_iou": "mean IoU",
    "recall_iou": "best IoU",
    "union_iou": "union IoU",
    "union_iou_unscaled": "union IoU, frame error",
    "acc_at_0_5": "right and IoU 0.5",
    "agreement": "on what is named",
    "agreement_random": "random boxes on it",
    "on_nothing": "boxes where nothing is",
    "invalid": "invalid",
    "redundant": "redundant",
    "changed": "changed by the control",
    "lost": "without an answer after it",
}


def _controls(results: Mapping[str, Any], split: str) -> Table:
    """How many answers each control changed, by kind; no rows where nothing was changed."""
    found = {
        name: at(figures_of(results, split, name), "by_kind", "changed") or {}
        for name in arm_names(results)
    }
    kinds = dict.fromkeys(kind for by_kind in found.values() for kind in by_kind)
    rows = [
        Row(name, tuple(share_cell(at(by_kind, kind)) for kind in kinds))
        for name, by_kind in found.items()
        if by_kind
    ]
    return Table(tuple(kind.replace("_", " ") for kind in kinds), tuple(rows))


def _drops(results: Mapping[str, Any], split: str) -> Table:
    """What each control costs the arm that it asks again: of the answers where it had something to
    change, those right before and after it; and by stratum the difference over all items.
    """
    pairs, strata = accuracy_pairs(results, split), strata_of(results, split)
    rows = []
    for name in arm_names(results):
        without = at(results, "arms", name, "control_of")
        if without is None:
            continue
        found = at(figures_of(results, split, name), "by_stratum")
        paired = at(pairs.get((str(without), name)), "by_stratum")
        cells = (
            *(
                share_cell(at(found, metric, stratum))._replace(range=None)
                for stratum in strata
                for metric in ("right_before", "right_after")
            ),
            *(_difference_cell(at(paired, stratum)) for stratum in strata),
        )
        rows.append(Row(f"{name}, of {without}", cells))
    when = (f"right {when} it, {s}" for s in strata for when in ("before", "after"))
    return Table((*when, *(f"cost, {s}" for s in strata)), tuple(rows))


def _mixtures(results: Mapping[str, Any], split: str) -> Table:
    if not is_about_looking(results, split):
        return Table((), ())
    rows = []
    for name in arm_names(results):
        mixtures = at(figures_of(results, split, name), "mixtures")
        cells = (share_cell(at(mixtures, share)) for share in LOOK_SHARES)
        rows.append(Row(name, tuple(cell._replace(range=None) for cell in cells)))
    heads = tuple(f"{100 * float(share):g}% look" for share in LOOK_SHARES)
    return Table(heads, tuple(rows))


def _kinds(results: Mapping[str, Any], split: str) -> Table:
    """Accuracy by kind, under what needs no seeing."""
    chance = at(results, "splits", split, "chance") or {}
    arms = arm_names(results)
    kinds: dict[str, None] = dict.fromkeys(chance)
    for name in arms:
        kinds |= dict.fromkeys(at(figures_of(results, split, name), "samples_by_kind") or {})
    told = {"guess": "a guess", "constant": "the best constant answer"}
    rows = [
        Row(head, tuple(share_cell(at(chance, kind, key)) for kind in kinds))
        for key, head in told.items()
    ]
    for name in arms:
        figures = figures_of(results, split, name)
        cells = []
        for kind in kinds:
            both = at(figures, "by_kind_and_stratum", "accuracy", kind)
            parts = {s: number_of(estimate_of(at(both, s))) for s in strata_of(results, split)}
            known = [f"{s} {100 * v:.1f}" for s, v in parts.items() if v is not None]
            note = " · ".join(known) if len(known) > 1 else ""
            cells.append(share_cell(at(figures, "by_kind", "accuracy", kind), note=note))
        rows.append(Row(name, tuple(cells)))
    sizes = [size_of(results, split, "samples_by_kind", kind) for kind in kinds]
    heads = with_sizes([kind.replace("_", " ") for kind in kinds], sizes)
    return Table(tuple(heads), tuple(rows))


# --- how arms differ ------------------------------------------------------------------------------


def _differences(results: Mapping[str, Any], split: str) -> Table:
    published = published_steps(results)
    mixed = LOOK_SHARES if is_about_looking(results, split) else ()
    shares = [f"{100 * float(share):g}% look" for share in mixed]
    strata = _needing_first(results, split)
    rows = []
    for pair, found in accuracy_pairs(results, split).items():
        points = published.get(pair)
        cells = (
            *(_difference_cell(at(found, "by_stratum", s)) for s in strata),
            Cell("" if points is None else signed(points)),
            *(_difference_cell(at(found, "mixtures", share)) for share in mixed),
        )
        rows.append(Row(" − ".join(pair), cells))
    return Table((*strata, "published", *shares), tuple(rows), "difference")


def _boxes_differences(results: Mapping[str, Any], split: str) -> Table:
    """Differences of matched F1."""
    strata = _needing_first(results, split)
    rows = [
        Row(" − ".join(pair), tuple(_difference_cell(at(p, "by_stratum", s)) for s in strata))
        for pair, p in pairs_of(results, split, "f1").items()
    ]
    return Table(strata, tuple(rows), "difference")


def _needing_first(results: Mapping[str, Any], split: str) -> tuple[str, ...]:
    """Strata with what needs a look before what does not."""
    strata = strata_of(results, split)
    return (LOOK, EASY, ALL) if is_about_looking(results, split) else strata


def _tools(results: Mapping[str, Any], split: str) -> Table:
    """What each tool is worth to the tested arm: the same differences, told by tool."""
    tested = str(at(results, "tested"))
    pairs = accuracy_pairs(results, split)
    strata = [s for s in _needing_first(results, split) if s != ALL] or [ALL]
    rows = []
    for tool, without, never in tool_arms(results):
        cells = [
            _difference_cell(at(pairs.get((tested, arm or "")), "by_stratum", stratum))
            for arm in (without, never)
            for stratum in strata
        ]
        rows.append(Row(tool, tuple(cells)))
    heads = tuple(f"{what}, {s}" for what in ("dependence", "benefit") for s in strata)
    return Table(heads, tuple(rows), "tool")


def _difference_cell(value: Any) -> Cell:
    """A paired difference in points; the sentence in small letters where there is none."""
    estimate, low, high = interval_of(value)
    if estimate is None:
        return Cell("", note=value if isinstance(value, str) else "")
    if low is None or high is None:
        return Cell(signed(100 * estimate))
    mood = "good" if low > 0 else "bad" if high < 0 else ""
    interval = f"{signed(100 * low)} to {signed(100 * high)}"
    return Cell(signed(100 * estimate), interval, mood=mood)


def _gain_and_harm(results: Mapping[str, Any], split: str) -> Table:
    strata = _needing_first(results, split)
    rows = []
    for found in list_of(at(results, "splits", split, "gain_and_harm")):
        cells = tuple(
            Cell("", note=value)
            if isinstance(value := at(found, what, stratum), str)
            else share_cell(value)._replace(range=None)
            for stratum in strata
            for what in ("gain", "harm")
        )
        rows.append(Row(str(at(found, "arm")), cells))
    heads = tuple(f"{what}, {s}" for s in strata for what in ("gain", "harm"))
    return Table(heads, tuple(rows))


# --- learning rates -------------------------------------------------------------------------------


def _by_size(rate: str) -> tuple[float, str]:
    """Numbers in their order, then what is none."""
    try:
        return float(rate), rate
    except ValueError:
        return math.inf, rate


def rates_table(results: Mapping[str, Any]) -> Table:
    """Accuracy on validation by learning rate."""
    tried: dict[str, dict[str, Any]] = {}
    chosen: dict[str, str] = {}
    for name in arm_names(results):
        if not is_trained(results, name):
            continue
        tried[name] = dict(at(results, "arms", name, "validation") or {})
        rate = number_of(at(results, "arms", name, "rate"))
        if rate is not None:
            chosen[name] = f"{rate:g}"  # as the keys are written
            tried[name].setdefault(chosen[name], None)
    rates = sorted({rate for of in tried.values() for rate in of}, key=_by_size)

    def cell(name: str, rate: str) -> Cell:
        value = number_of(tried[name].get(rate))
        word = "chosen" if rate == chosen.get(name) else ""
        return Cell("" if value is None else f"{100 * value:.1f}", note=word, mood=word)

    return Table(
        tuple(rates),
        tuple(Row(name, tuple(cell(name, rate) for rate in rates)) for name in tried),
    )


# --- the ledger -----------------------------------------------------------------------------------


def ledger_table(run: Path) -> Table:
    """How often each arm read each split, in the order of the first reading of the split."""
    read: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    arms = run / "arms"
    paths = [
        *arms.glob("*/seed-*/*/ledger.jsonl"),
        *arms.glob("*/seed-*/rate-*/*/ledger.jsonl"),
    ]
    for path in sorted(paths):
        arm = path.relative_to(arms).parts[0]
        for row in stored_rows(path.parent, "ledger"):
            read[str(row.get("split")), arm].append(row)
    first = {
        split: min(_times(rows) for (s, _), rows in read.items() if s == split)
        for split in {split for split, _ in read}
    }
    table = []
    for split in sorted(first, key=lambda split: (first[split], split)):
        of = {arm: rows for (s, arm), rows in read.items() if s == split}
        every = [row for rows in of.values() for row in rows]
        table.append(_read_row(split, "all arms", every))
        for arm in sorted(of, key=lambda arm: (_times(of[arm]), arm)):
            table.append(_read_row("", arm, of[arm]))
    return Table(("arm", "readings", "items read", "first", "last"), tuple(table), "split")


def _times(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """First and last; times are all in UTC, so they sort as text."""
    found = [str(row.get("when") or "") for row in rows]
    return min(found), max(found)


def _read_row(split: str, arm: str, rows: Sequence[Mapping[str, Any]]) -> Row:
    items = sum(int(number_of(row.get("items")) or 0) for row in rows)
    times = (Cell(time.replace("T", " ").removesuffix("+00:00")) for time in _times(rows))
    return Row(split, (Cell(arm), Cell(f"{len(rows):,}"), Cell(f"{items:,}"), *times))
