"""A ladder told: the figures of its arms on one page and in the terminal, and which of the things
that it must show it shows.

Invariant: everything comes from `ladder.json` and the folders of the arms; a figure that is missing
is a dash, never 0.

Left out on purpose: computing figures (`saccade.ladder.figures` does), and the parts of the page,
each of which has a module of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saccade.atomic_files import write_atomic
from saccade.ladder.page.curves import curve_groups, item_curves, tool_curves
from saccade.ladder.page.items import chosen_items
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
    list_of,
    published_steps,
    read_results,
    size_of,
    strata_of,
)
from saccade.ladder.page.statements import interval_text, statements
from saccade.ladder.page.tables import ledger_table, rates_table, split_tables, with_sizes
from saccade.report import number_of, run_facts, signed
from saccade.run_folder import RunFolder
from saccade.view import html_templates

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table as RichTable

__all__ = ["format_ladder", "write_ladder_report"]


def write_ladder_report(run: Path, *, items: int = 6) -> Path:
    """Writes `report.html` into the folder of a ladder and returns its path.

    The same question is shown through the arms for at most `items` items. Raises DataError where
    there is no `ladder.json` or a file can't be read, and StorageError where the page can't be
    written.
    """
    run = Path(run)
    results = read_results(run)
    splits = list(at(results, "splits") or {})
    told = [split_tables(results, split, link=f"split-{i}") for i, split in enumerate(splits)]
    curves = [*item_curves(results), *tool_curves(run, results), *curve_groups(run, results)]
    chosen = chosen_items(run, results, split=splits[0], limit=items) if splits else []
    ledger = ledger_table(run)
    sections = [
        *([("statements", "What it must show")] if told else []),
        *((split.link, split.name) for split in told),
        ("rates", "Learning rates"),
        *([("curves", "Learning curves")] if curves else []),
        *([("items", "The same question")] if chosen else []),
        *([("ledger", "Ledger")] if ledger.rows else []),
        ("recipe", "Recipe and machine"),
    ]
    page = (
        html_templates()
        .get_template("ladder.html.jinja")
        .render(
            title=run.resolve().name,
            lead=_lead(results),
            reference=str(results.get("reference")),
            sections=sections,
            intervals=_about_intervals(results),
            splits=told,
            rates=rates_table(results),
            groups=curves,
            items=chosen,
            items_split=splits[0] if splits else "",
            ledger=ledger,
            run=run_facts(run.resolve().name, RunFolder(run)),
        )
    )
    path = run / "report.html"
    write_atomic(path, page.encode("utf-8", "replace"))
    return path


def _lead(results: Mapping[str, Any]) -> str:
    arms = arm_names(results)
    seeds: dict[str, None] = {}
    for name in arms:
        seeds |= dict.fromkeys(map(str, list_of(at(results, "arms", name, "seeds"))))
    splits = list(at(results, "splits") or {})
    sized = with_sizes(splits, [size_of(results, split, "samples", "all") for split in splits])
    return (
        f"{len(arms)} arms at seeds {', '.join(seeds)}, measured on {', '.join(sized)}. "
        f"Tested: {results.get('tested')}; reference: {results.get('reference')}."
    )


def _about_intervals(results: Mapping[str, Any]) -> str:
    """How the intervals were made, as the figures say it."""
    several, lone, made = 0, [], None
    for split in at(results, "splits") or {}:
        for name in arm_names(results):
            figures = figures_of(results, split, name)
            made = made or at(figures, "resampling")
            if at(figures, "seeds") == 1 and name not in lone:
                lone.append(name)
            several = max(several, at(figures, "seeds") or 0)
    parts = []
    if made:
        by = {
            "resampling": "seeds are drawn again with the charts",
            "student": "charts are drawn again, and seeds stand in by Student's t",
        }.get(str(at(made, "seeds_by")), "")
        by = by if several > 1 else "charts are drawn again"
        times = number_of(at(made, "resamples"))
        often = "" if times is None else f", {times:,.0f} times"
        parts.append(f"Intervals are of 95%: {by}{often}.")
        if several > 1 and at(made, "seeds_by") == "resampling" and several < 5:
            parts.append(f"Where {several} seeds differ much, such intervals are too narrow.")
    if lone:
        parts.append(f"One seed, and intervals over charts alone: {', '.join(lone)}.")
    return " ".join(parts)


# --- in the terminal ------------------------------------------------------------------------------


def format_ladder(results: Mapping[str, Any]) -> Group:
    """The content of `ladder.json` for a terminal: for each split a table of the arms and one of
    what must be shown.
    """
    from rich.console import Group

    parts: list[RichTable] = []
    for split in at(results, "splits") or {}:
        parts += [_rich_arms(results, split), _rich_statements(results, split)]
    return Group(*parts)


def _rich_arms(results: Mapping[str, Any], split: str) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text as RichText

    tested = str(results.get("tested"))
    pairs = accuracy_pairs(results, split)
    figures = at(results, "splits", split, "arms")
    table = RichTable(
        title=RichText(f"{split}: accuracy in per cent, 95% intervals"), title_justify="left"
    )
    table.add_column("arm")
    looking = is_about_looking(results, split)
    strata = strata_of(results, split)
    asked, on = ((EASY, LOOK), LOOK) if looking else (strata, ALL)
    boxed = any(at(of, "by_stratum", "f1", ALL) for of in (figures or {}).values())
    heads = [*asked, f"calls, {' / '.join(asked)}" if looking else "", f"{tested} − arm, on {on}"]
    heads = [h for h in heads if h] + ([f"F1, {s}" for s in strata] if boxed else [])
    for head in heads:
        table.add_column(RichText(head), justify="right")
    for name in arm_names(results):
        of = at(figures, name, "by_stratum")
        calls = [number_of(estimate_of(at(of, "calls", s))) for s in asked]
        told = " / ".join("–" if c is None else f"{c:.2f}" for c in calls)
        cells = [
            *(interval_text(at(of, "accuracy", s), is_difference=False) for s in asked),
            *([told] if looking else []),
            interval_text(at(pairs.get((tested, name)), "by_stratum", on)),
        ]
        if boxed:
            cells += [interval_text(at(of, "f1", s), is_difference=False) for s in strata]
        table.add_row(RichText(name), *(RichText(cell or "–") for cell in cells))
    lines = [
        f"{a} − {b}: published {signed(points)}, here "
        + ", ".join(
            f"{interval_text(at(pairs.get((a, b)), 'by_stratum', s)) or '–'} on {s}"
            for s in ((ALL, LOOK) if looking else (ALL,))
        )
        for (a, b), points in published_steps(results).items()
    ]
    if lines:
        about = "Published: one seed, no intervals, other charts."
        table.caption = RichText("\n".join([*lines, about]))
        table.caption_justify = "left"
    return table


def _rich_statements(results: Mapping[str, Any], split: str) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text as RichText

    table = RichTable(title=RichText(f"{split}: what must be shown"), title_justify="left")
    for head in ("", "statement", "found", "whole interval"):
        table.add_column(head)
    styles = {"met": "green", "missed": "red"}
    for found in statements(results, split):
        table.add_row(
            RichText(found.verdict, style=styles.get(found.verdict, "dim")),
            RichText(found.claim),
            RichText(found.found or "–"),
            _yes(found.whole),
        )
    return table


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "–"}[value]
