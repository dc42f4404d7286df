"""A ladder told: the figures of its arms on one page and in the terminal, and which of the things
that it must show it shows.

Invariant: everything comes from `ladder.json` and the folders of the arms; a figure that is missing
is a dash, never 0, and a statement without its figure is never met. Items are chosen by a rule that
stands on the page and knows no arm by name.

Left out on purpose: computing figures (`saccade.ladder_figures` does), and corrections for the
number of comparisons.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from saccade.atomic_files import write_atomic
from saccade.episode_json import episode_from_json
from saccade.errors import DataError, SaccadeError
from saccade.image_store import ImageStore
from saccade.report import (
    STROKES,
    Cell,
    Curve,
    Line,
    Points,
    Row,
    Table,
    curve_svg,
    interval_of,
    number_of,
    run_facts,
    share_cell,
    signed,
    smoothed,
)
from saccade.run_folder import RunFolder
from saccade.types import Episode, ImageShown, Part, Text
from saccade.view import call_text, data_uri, gaze_picture, html_templates

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table as RichTable

__all__ = ["Statement", "format_ladder", "statements", "write_ladder_report"]

STRATA = ("easy", "look", "all")
LOOK_SHARES = ("0.25", "0.5", "0.75")

SWAPPED_POINTS = 30.0
BLACK_POINTS = 20.0
EASY_POINTS = -3.0
MORE_CALLS = 0.5
LOOK_PER_CENT = 80.0

PUBLISHED = {"base": 29.6, "sft": 45.7, "text": 51.6, "tested": 59.4}
"""Accuracy by role in the published ladder: one seed, no intervals."""
PUBLISHED_STEPS = {("sft", "base"): 16.1, ("text", "sft"): 6.0, ("tested", "text"): 7.8}
"""As published, so that one of them is not the difference of the rounded accuracies."""

_PICTURE_SIDE_PX = 600
_VIEW_SIDE_PX = 160
_SAID_LIMIT = 600
_NO_FIGURE = "the ladder holds no such figure"


def write_ladder_report(run: Path, *, items: int = 6) -> Path:
    """Writes `report.html` into the folder of a ladder and returns its path.

    The same question is shown through the arms for at most `items` items. Raises DataError where
    there is no `ladder.json` or a file can't be read, and StorageError where the page can't be
    written.
    """
    run = Path(run)
    results = _results(run)
    splits = list(_at(results, "splits") or {})
    told = [_split(results, split, f"split-{i}") for i, split in enumerate(splits)]
    curves = _curves(run, results)
    chosen = _chosen(run, results, splits[0], items) if splits else []
    ledger = _ledger(run)
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
            rates=_rates(results),
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


# --- ladder.json ----------------------------------------------------------------------------------


def _results(run: Path) -> dict[str, Any]:
    found = RunFolder(run).read_json("ladder") if run.is_dir() else None
    if found is None:
        raise DataError(
            f"Folder {run.name!r} holds no ladder.json: run `saccade ladder` there to its end."
        )
    if not isinstance(found, dict) or not isinstance(found.get("arms"), dict):
        raise DataError(f"ladder.json of {run.name!r} has no arms: run `saccade ladder` again.")
    return found


def _at(value: Any, *keys: str) -> Any:
    """What stands under nested keys, None where one of them is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _arms(results: Mapping[str, Any]) -> list[str]:
    return list(_at(results, "arms") or {})


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _pairs(results: Mapping[str, Any], split: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Paired differences of accuracy by (above, below)."""
    found = _listed(_at(results, "splits", split, "pairs"))
    return {
        (str(_at(p, "a")), str(_at(p, "b"))): p
        for p in found
        if _at(p, "metric") in (None, "accuracy")
    }


def _started_from(results: Mapping[str, Any], arm: str) -> list[str]:
    """The arm and those below it, itself first."""
    found: list[str] = []
    below: Any = arm
    while isinstance(below, str) and below not in found:
        found.append(below)
        below = _at(results, "arms", below, "start")
    return found


def _is_trained(results: Mapping[str, Any], arm: str) -> bool:
    return _at(results, "arms", arm, "stage") in ("sft", "rl")


def _roles(results: Mapping[str, Any]) -> dict[str, str]:
    """The arms that stand where those of the published ladder stood: the first that fits each."""
    found: dict[str, str] = {}
    for name in _arms(results):
        arm = results["arms"][name]
        stage, start = _at(arm, "stage"), _at(arm, "start")
        if name == results.get("tested"):
            role = "tested"
        elif stage == "rl" and _at(arm, "settings", _OBSERVATION) == "text":
            role = "text"
        elif stage == "sft" and start is None:
            role = "sft"
        elif stage == "eval" and start is None:
            role = "" if _at(arm, "settings", "rollout.pictures") == "hidden" else "base"
        else:
            role = ""
        if role:
            found.setdefault(role, name)
    return found


def _published_steps(results: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """The published steps, in points, by the pair of arms that stands for each."""
    roles = _roles(results)
    return {
        (roles[a], roles[b]): points
        for (a, b), points in PUBLISHED_STEPS.items()
        if a in roles and b in roles
    }


# --- what must be shown ---------------------------------------------------------------------------

_OBSERVATION = "rollout.observation"

Verdict = Literal["met", "missed", "not known", "does not apply"]


class Statement(NamedTuple):
    """One of the things that a ladder must show, and what it found."""

    claim: str
    found: str
    """The estimate with its interval, or why there is none; empty where it does not apply."""
    verdict: Verdict
    whole: bool | None = None
    """Whether all of the 95% interval is on the right side; None without an interval."""


def statements(results: Mapping[str, Any], split: str) -> tuple[Statement, ...]:
    """What the ladder of this content of `ladder.json` must show, on one split.

    The first one is met where the lower end of every paired interval is above 0, the others where
    the estimate reaches the bound.
    """
    tested, reference = str(results.get("tested")), str(results.get("reference"))
    arms = _arms(results) if tested in _arms(results) else []
    pairs = _pairs(results, split)
    figures = _figures(results, split, tested)

    def against(arm: str, stratum: str) -> Any:
        return _at(pairs.get((tested, arm)), "by_stratum", stratum)

    def observing(kind: str) -> list[str]:
        return [a for a in arms if _at(results, "arms", a, "settings", _OBSERVATION) == kind]

    swapped = [arm for arm in observing("swapped") if arm != tested]
    black = [
        arm
        for arm in observing("black")
        if _at(results, "arms", arm, "start") == tested and not _is_trained(results, arm)
    ]
    return (
        _above_all(results, split),
        *(
            _bounded(
                f"{tested} at least {SWAPPED_POINTS:g} points above {arm or 'swapped views'}, "
                "on look",
                against(arm, "look"),
                least=SWAPPED_POINTS,
                applies=bool(arm),
            )
            for arm in swapped or [""]
        ),
        _bounded(
            f"{tested} within {-EASY_POINTS:g} points of {reference} or better, on easy",
            against(reference, "easy"),
            least=EASY_POINTS,
            applies=reference in arms and reference != tested,
        ),
        _bounded(
            f"at least {MORE_CALLS:g} more calls of {tested} for a sample of look than of easy",
            _at(figures, "adaptive_calls"),
            least=MORE_CALLS,
            scale=1.0,
            digits=2,
            applies=bool(arms),
        ),
        *(
            _bounded(
                f"blacking out the views costs at least {BLACK_POINTS:g} points, on look"
                + (f" ({arm})" if arm else ""),
                against(arm, "look"),
                least=BLACK_POINTS,
                applies=bool(arm),
            )
            for arm in black or [""]
        ),
        _bounded(
            f"{tested} right in at least {LOOK_PER_CENT:g}% of look",
            _at(figures, "by_stratum", "accuracy", "look"),
            least=LOOK_PER_CENT,
            is_difference=False,
            applies=bool(arms),
        ),
    )


def _above_all(results: Mapping[str, Any], split: str) -> Statement:
    """Whether the tested arm is above every other one trained from its demonstrations, on look."""
    tested = str(results.get("tested"))
    claim = f"{tested} above every other arm that starts from the same demonstrations, on look"

    def lowest(arm: str) -> str | None:
        trained = [a for a in _started_from(results, arm) if _is_trained(results, a)]
        return trained[-1] if trained else None

    first = lowest(tested)
    others = [
        arm
        for arm in _arms(results)
        if arm != tested and _is_trained(results, arm) and lowest(arm) == first
    ]
    if not others:
        return Statement(claim, "", "does not apply")
    pairs = _pairs(results, split)
    found = {a: _at(pairs.get((tested, a)), "by_stratum", "look") for a in others}
    intervals = {a: interval_of(value) for a, value in found.items()}
    lows = {a: low for a, (_, low, _) in intervals.items() if low is not None}
    unknown = [a for a in others if a not in lows]
    missed = [a for a in lows if lows[a] <= 0]
    told = ""
    if lows:
        closest = min(lows, key=lambda a: lows[a])
        told = f"closest of {len(others)}: {closest}, {_told(found[closest])}"
    if missed:
        names = ", ".join(missed)
        return Statement(claim, f"{told}; not told apart or below: {names}", "missed", False)
    if unknown:
        reason = _reason(found[unknown[0]])
        told = f"{told}; " if told else ""
        return Statement(claim, f"{told}{', '.join(unknown)}: {reason}", "not known")
    return Statement(claim, told, "met", True)


def _bounded(
    claim: str,
    value: Any,
    *,
    least: float,
    applies: bool,
    scale: float = 100.0,
    digits: int = 1,
    is_difference: bool = True,
) -> Statement:
    """Met where the estimate, times `scale`, is at least `least`."""
    if not applies:
        return Statement(claim, "", "does not apply")
    estimate, low, _ = interval_of(value)
    if estimate is None:
        return Statement(claim, _reason(value), "not known")
    found = _told(value, scale=scale, digits=digits, is_difference=is_difference)
    # a difference of shares is a little off in its last bit: 0.8 - 0.5 is not 0.3
    reaches = scale * estimate >= least - 1e-9
    whole = None if low is None else scale * low >= least - 1e-9
    return Statement(claim, found, "met" if reaches else "missed", whole)


def _reason(value: Any) -> str:
    return value if isinstance(value, str) and value else _NO_FIGURE


def _told(value: Any, *, scale: float = 100.0, digits: int = 1, is_difference: bool = True) -> str:
    """An estimate with its interval in square brackets; empty where there is none."""
    estimate, low, high = interval_of(value)

    def number(share: float) -> str:
        if is_difference:
            return signed(scale * share, digits=digits)
        return f"{scale * share:.{digits}f}"

    if estimate is None:
        return ""
    if low is None or high is None:
        return number(estimate)
    return f"{number(estimate)} [{number(low)}, {number(high)}]"


# --- in the terminal ------------------------------------------------------------------------------


def format_ladder(results: Mapping[str, Any]) -> Group:
    """The content of `ladder.json` for a terminal: for each split a table of the arms and one of
    what must be shown.
    """
    from rich.console import Group

    parts: list[RichTable] = []
    for split in _at(results, "splits") or {}:
        parts += [_rich_arms(results, split), _rich_statements(results, split)]
    return Group(*parts)


def _rich_arms(results: Mapping[str, Any], split: str) -> RichTable:
    from rich.table import Table as RichTable
    from rich.text import Text as RichText

    tested = str(results.get("tested"))
    pairs = _pairs(results, split)
    figures = _at(results, "splits", split, "arms")
    table = RichTable(
        title=RichText(f"{split}: accuracy in per cent, 95% intervals"), title_justify="left"
    )
    table.add_column("arm")
    heads = ("easy", "look", "calls, easy / look", f"{tested} − arm, on look")
    for head in heads:
        table.add_column(RichText(head), justify="right")
    for name in _arms(results):
        of = _at(figures, name, "by_stratum")
        calls = [number_of(_first(_at(of, "calls", s))) for s in ("easy", "look")]
        cells = [
            *(_told(_at(of, "accuracy", s), is_difference=False) for s in ("easy", "look")),
            " / ".join("–" if c is None else f"{c:.2f}" for c in calls),
            _told(_at(pairs.get((tested, name)), "by_stratum", "look")),
        ]
        table.add_row(RichText(name), *(RichText(cell or "–") for cell in cells))
    lines = [
        f"{a} − {b}: published {signed(points)}, here "
        + ", ".join(
            f"{_told(_at(pairs.get((a, b)), 'by_stratum', s)) or '–'} on {s}"
            for s in ("all", "look")
        )
        for (a, b), points in _published_steps(results).items()
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


def _first(value: Any) -> Any:
    """The estimate of an interval."""
    return value[0] if isinstance(value, list) and value else None


# --- figures of a split on the page ---------------------------------------------------------------


class _Split(NamedTuple):
    link: str
    name: str
    statements: tuple[Statement, ...]
    reached: Table
    conduct: Table
    pairs: Table
    changed: Table
    mixtures: Table
    kinds: Table


def _split(results: Mapping[str, Any], split: str, link: str) -> _Split:
    return _Split(
        link,
        split,
        statements(results, split),
        _reached(results, split),
        _conduct(results, split),
        _differences(results, split),
        _gain_and_harm(results, split),
        _mixtures(results, split),
        _kinds(results, split),
    )


def _figures(results: Mapping[str, Any], split: str, arm: str) -> Any:
    return _at(results, "splits", split, "arms", arm)


def _reached(results: Mapping[str, Any], split: str) -> Table:
    """Learning rate, accuracy by stratum with the value of each seed, and the published one."""
    published = {name: PUBLISHED[role] for role, name in _roles(results).items()}
    sizes = [_size(results, split, "samples", stratum) for stratum in STRATA]
    heads = ("learning rate", "seeds", *_sized(STRATA, sizes), "published")
    rows = []
    for name in _arms(results):
        arm = results["arms"][name]
        figures = _figures(results, split, name)
        by_seed = _listed(_at(figures, "by_seed"))
        rate = number_of(_at(arm, "rate"))
        seeds = _listed(_at(arm, "seeds"))
        cells = [
            Cell("" if rate is None else f"{rate:g}"),
            Cell(", ".join(map(str, seeds))),
        ]
        for stratum in STRATA:
            values = [number_of(_at(s, "accuracy", stratum)) for s in by_seed]
            note = " · ".join("–" if v is None else f"{100 * v:.1f}" for v in values)
            cells.append(
                share_cell(
                    _at(figures, "by_stratum", "accuracy", stratum),
                    note=note if len(values) > 1 else "",
                )
            )
        cells.append(Cell(f"{published[name]:.1f}" if name in published else ""))
        rows.append(Row(name, tuple(cells), str(_at(arm, "differs") or "")))
    return Table(heads, tuple(rows))


def _size(results: Mapping[str, Any], split: str, *keys: str) -> int | None:
    """How many items the arms have there; the first arm that says it."""
    for name in _arms(results):
        found = _at(_figures(results, split, name), *keys)
        if isinstance(found, int):
            return found
    return None


def _sized(names: Sequence[str], sizes: Sequence[int | None]) -> list[str]:
    return [
        name if size is None else f"{name} ({size:,})"
        for name, size in zip(names, sizes, strict=True)
    ]


def _conduct(results: Mapping[str, Any], split: str) -> Table:
    """What an arm does for an answer, and what its training took."""
    heads = (
        "calls, easy",
        "calls, look",
        "more on look",
        "calls by tool, all",
        "tokens written",
        "image tokens",
        "trained tokens",
        "seconds of training",
        "unanswered",
    )
    rows = []
    for name in _arms(results):
        figures = _figures(results, split, name)
        calls = _at(figures, "by_stratum", "calls")
        costs = _listed(_at(results, "arms", name, "training"))
        tools = _at(figures, "calls_by_tool")
        used = [
            f"{tool} {value:.2f}"
            for tool, count in (tools.items() if isinstance(tools, Mapping) else ())
            if (value := number_of(count)) is not None
        ]
        cells = (
            _count_cell(_at(calls, "easy")),
            _count_cell(_at(calls, "look")),
            _count_cell(_at(figures, "adaptive_calls"), is_difference=True),
            Cell(", ".join(used)),
            _count_cell(_at(figures, "by_stratum", "completion_tokens", "all"), digits=1),
            _count_cell(_at(figures, "image_tokens"), digits=1),
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
    values = [v for cost in costs if (v := number_of(_at(cost, key))) is not None]
    if not values:
        return Cell("")
    each = " · ".join(f"{v:,.0f}" for v in values) if len(values) > 1 else ""
    return Cell(f"{sum(values) / len(values):,.0f}", each, note=note)


def _steps_told(costs: Sequence[Any]) -> str:
    told = []
    for key in ("steps", "episodes"):
        found = [v for cost in costs if (v := number_of(_at(cost, key))) is not None]
        if found:
            told.append(f"{sum(found) / len(found):,.0f} {key}")
    return ", ".join(told)


def _unanswered(figures: Any) -> Cell:
    heads = {"truncated": "cut off", "extraction_failed": "not read", "unscored": "unscored"}
    shares = {head: number_of(_at(figures, key)) for key, head in heads.items()}
    known = {head: share for head, share in shares.items() if share is not None}
    if not known:
        return Cell("")
    note = ", ".join(f"{head} {100 * share:.1f}" for head, share in known.items() if share)
    return Cell(f"{100 * sum(known.values()):.1f}", note=note)


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


def _differences(results: Mapping[str, Any], split: str) -> Table:
    published = _published_steps(results)
    shares = [f"{100 * float(share):g}% look" for share in LOOK_SHARES]
    rows = []
    for pair, found in _pairs(results, split).items():
        points = published.get(pair)
        cells = (
            *(_difference_cell(_at(found, "by_stratum", s)) for s in ("look", "easy", "all")),
            Cell("" if points is None else signed(points)),
            *(_difference_cell(_at(found, "mixtures", share)) for share in LOOK_SHARES),
        )
        rows.append(Row(" − ".join(pair), cells))
    return Table(("look", "easy", "all", "published", *shares), tuple(rows), "difference")


def _gain_and_harm(results: Mapping[str, Any], split: str) -> Table:
    rows = []
    for found in _listed(_at(results, "splits", split, "gain_and_harm")):
        cells = tuple(
            Cell("", note=value)
            if isinstance(value := _at(found, what, stratum), str)
            else share_cell(value)._replace(range=None)
            for stratum in ("look", "easy", "all")
            for what in ("gain", "harm")
        )
        rows.append(Row(str(_at(found, "arm")), cells))
    heads = tuple(f"{what}, {s}" for s in ("look", "easy", "all") for what in ("gain", "harm"))
    return Table(heads, tuple(rows))


def _mixtures(results: Mapping[str, Any], split: str) -> Table:
    rows = []
    for name in _arms(results):
        mixtures = _at(_figures(results, split, name), "mixtures")
        cells = (share_cell(_at(mixtures, share)) for share in LOOK_SHARES)
        rows.append(Row(name, tuple(cell._replace(range=None) for cell in cells)))
    heads = tuple(f"{100 * float(share):g}% look" for share in LOOK_SHARES)
    return Table(heads, tuple(rows))


def _kinds(results: Mapping[str, Any], split: str) -> Table:
    """Accuracy by kind, under what needs no seeing."""
    chance = _at(results, "splits", split, "chance") or {}
    arms = _arms(results)
    kinds: dict[str, None] = dict.fromkeys(chance)
    for name in arms:
        kinds |= dict.fromkeys(_at(_figures(results, split, name), "samples_by_kind") or {})
    told = {"guess": "a guess", "constant": "the best constant answer"}
    rows = [
        Row(head, tuple(share_cell(_at(chance, kind, key)) for kind in kinds))
        for key, head in told.items()
    ]
    for name in arms:
        figures = _figures(results, split, name)
        cells = []
        for kind in kinds:
            both = _at(figures, "by_kind_and_stratum", "accuracy", kind)
            parts = {s: number_of(_first(_at(both, s))) for s in ("easy", "look")}
            known = [f"{s} {100 * v:.1f}" for s, v in parts.items() if v is not None]
            note = " · ".join(known) if len(known) > 1 else ""
            cells.append(share_cell(_at(figures, "by_kind", "accuracy", kind), note=note))
        rows.append(Row(name, tuple(cells)))
    sizes = [_size(results, split, "samples_by_kind", kind) for kind in kinds]
    heads = _sized([kind.replace("_", " ") for kind in kinds], sizes)
    return Table(tuple(heads), tuple(rows))


# --- about all splits -----------------------------------------------------------------------------


def _lead(results: Mapping[str, Any]) -> str:
    arms = _arms(results)
    seeds: dict[str, None] = {}
    for name in arms:
        seeds |= dict.fromkeys(map(str, _listed(_at(results, "arms", name, "seeds"))))
    splits = list(_at(results, "splits") or {})
    sized = _sized(splits, [_size(results, split, "samples", "all") for split in splits])
    return (
        f"{len(arms)} arms at seeds {', '.join(seeds)}, measured on {', '.join(sized)}. "
        f"Tested: {results.get('tested')}; reference: {results.get('reference')}."
    )


def _about_intervals(results: Mapping[str, Any]) -> str:
    """How the intervals were made, as the figures say it."""
    several, lone, made = 0, [], None
    for split in _at(results, "splits") or {}:
        for name in _arms(results):
            figures = _figures(results, split, name)
            made = made or _at(figures, "resampling")
            if _at(figures, "seeds") == 1 and name not in lone:
                lone.append(name)
            several = max(several, _at(figures, "seeds") or 0)
    parts = []
    if made:
        by = {
            "resampling": "seeds are drawn again with the charts",
            "student": "charts are drawn again, and seeds stand in by Student's t",
        }.get(str(_at(made, "seeds_by")), "")
        by = by if several > 1 else "charts are drawn again"
        times = number_of(_at(made, "resamples"))
        often = "" if times is None else f", {times:,.0f} times"
        parts.append(f"Intervals are of 95%: {by}{often}.")
        if several > 1 and _at(made, "seeds_by") == "resampling" and several < 5:
            parts.append(f"Where {several} seeds differ much, such intervals are too narrow.")
    if lone:
        parts.append(f"One seed, and intervals over charts alone: {', '.join(lone)}.")
    return " ".join(parts)


def _rates(results: Mapping[str, Any]) -> Table:
    """Accuracy on validation by learning rate."""
    tried: dict[str, dict[str, Any]] = {}
    chosen: dict[str, str] = {}
    for name in _arms(results):
        if not _is_trained(results, name):
            continue
        tried[name] = dict(_at(results, "arms", name, "validation") or {})
        rate = number_of(_at(results, "arms", name, "rate"))
        if rate is not None:
            chosen[name] = f"{rate:g}"  # as the keys are written
            tried[name].setdefault(chosen[name], None)
    rates = sorted({rate for of in tried.values() for rate in of}, key=float)

    def cell(name: str, rate: str) -> Cell:
        value = number_of(tried[name].get(rate))
        word = "chosen" if rate == chosen.get(name) else ""
        return Cell("" if value is None else f"{100 * value:.1f}", note=word, mood=word)

    return Table(
        tuple(rates),
        tuple(Row(name, tuple(cell(name, rate) for rate in rates)) for name in tried),
    )


# --- learning curves ------------------------------------------------------------------------------


class _Group(NamedTuple):
    """Curves of arms that log the same figures."""

    title: str
    curves: list[Curve]
    legend: list[tuple[str, str]]
    """(arm, colour)."""


class _Logged(NamedTuple):
    stage: str
    key: str
    title: str
    unit: str


_LOGGED = {
    "rl": (
        _Logged("rl", "reward", "Reward", "mean of an episode"),
        _Logged("rl", "calls", "Tool calls", "per episode"),
        _Logged("validation", "accuracy", "Validation accuracy", "share of right answers"),
        _Logged("validation", "accuracy_look", "Validation accuracy on look", ""),
        _Logged("rl", "completion_tokens", "Completion length", "tokens of an episode"),
        _Logged("rl", "informative", "Informative groups", "share whose rollouts differ"),
    ),
    "sft": (
        _Logged("sft", "loss", "Loss", "nats per token"),
        _Logged("sft", "right_tokens", "Right tokens", "share"),
    ),
}
_GROUPS = {"rl": "Arms trained by rewards", "sft": "Arms that were fine-tuned"}


def _curves(run: Path, results: Mapping[str, Any]) -> list[_Group]:
    """Each seed of each trained arm at the rate that was chosen, and the mean of the seeds."""
    groups = []
    for stage, title in _GROUPS.items():
        arms = [a for a in _arms(results) if _at(results, "arms", a, "stage") == stage]
        logged = {arm: _logged(run, results, arm) for arm in arms}
        arms = [arm for arm in arms if any(logged[arm])]
        for start in range(0, len(arms), STROKES):  # more colours could not be told apart
            part = arms[start : start + STROKES]
            drawn = []
            for what in _LOGGED[stage]:
                lines: list[Line] = []
                for stroke, arm in enumerate(part):
                    lines += _lines([s[what] for s in logged[arm] if s.get(what)], stroke)
                if lines:
                    prefix = f"{stage}{start}-{what.stage}-{what.key}"
                    drawn.append(Curve(what.title, what.unit, curve_svg(lines, prefix=prefix)))
            legend = [(arm, f"var(--c{stroke})") for stroke, arm in enumerate(part)]
            if drawn:
                groups.append(_Group(title, drawn, legend))
    return groups


def _logged(run: Path, results: Mapping[str, Any], arm: str) -> list[dict[_Logged, Points]]:
    """What the training of each seed logged."""
    rate = number_of(_at(results, "arms", arm, "rate"))
    stage = str(_at(results, "arms", arm, "stage"))
    if rate is None:
        return []
    found = []
    for seed in _listed(_at(results, "arms", arm, "seeds")):
        points: dict[_Logged, Points] = defaultdict(list)
        for row in _stored(run / "arms" / arm / f"seed-{seed}" / f"rate-{rate:g}", "metrics"):
            step = number_of(row.get("step"))
            for what in _LOGGED[stage] if step is not None else ():
                value = number_of(row.get(what.key))
                if row.get("stage") == what.stage and value is not None:
                    assert step is not None
                    points[what].append((step, value))
        found.append(dict(points))
    return found


def _lines(seeds: Sequence[Points], stroke: int) -> list[Line]:
    """A faint line for each seed and a strong one for their mean, over the steps that all have."""
    if len(seeds) < 2:
        return [line for points in seeds for line in smoothed(points, stroke)]
    faint = [smoothed(points, stroke)[-1]._replace(is_faint=True) for points in seeds]
    values = [dict(points) for points in seeds]
    shared = sorted(set.intersection(*(set(of) for of in values)))
    mean = [(step, sum(of[step] for of in values) / len(values)) for step in shared]
    return [*faint, *(smoothed(mean, stroke)[-1:] if mean else ())]


def _stored(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Rows of a run, none where there is no such folder."""
    if folder.is_dir():
        yield from RunFolder(folder).rows(name)


# --- the same question through the arms -----------------------------------------------------------


class _Said(NamedTuple):
    """A turn, and what the model was shown of its results."""

    thought: str
    calls: list[str]
    words: str
    views: list[str]
    """Pictures, small."""


class _Card(NamedTuple):
    """One arm's episode."""

    arm: str
    differs: str
    verdict: str
    """`right`, `wrong`, `unscored` or empty, where no episode is stored."""
    answer: str
    picture: str
    """Empty where it is not stored."""
    width: int
    height: int
    looks: int
    said: list[_Said]


class _Item(NamedTuple):
    id: str
    kind: str
    stratum: str
    question: str
    gold: str
    cards: list[_Card]


class _Answered(NamedTuple):
    """A stored episode of an arm's first seed."""

    folder: Path
    row: Mapping[str, Any]
    """As `rows.jsonl` has it."""


def _chosen(run: Path, results: Mapping[str, Any], split: str, limit: int) -> list[_Item]:
    """Items that need a look and that arms disagree on come first, then other items that need one,
    then the rest, each in the order of the split.
    """
    stored = {
        arm: _answered(run / "arms" / arm / f"seed-{seeds[0]}" / split)
        for arm in _arms(results)
        if (seeds := _listed(_at(results, "arms", arm, "seeds")))
    }
    by_item: dict[str, list[_Answered]] = defaultdict(list)
    for of in stored.values():
        for sample, answered in of.items():
            by_item[sample].append(answered)

    def place(sample: str) -> tuple[bool, bool, float, str]:
        rows = [answered.row for answered in by_item[sample]]
        verdicts = {row["strict"] for row in rows if isinstance(row.get("strict"), bool)}
        number = number_of(rows[0].get("number"))
        needs_look = rows[0].get("stratum") == "look"
        disputed = len(verdicts) > 1
        return (not needs_look, not (needs_look and disputed), number or 0.0, sample)

    wanted = sorted(by_item, key=place)[: max(0, limit)]
    episodes = {arm: dict(_episodes(of, set(wanted))) for arm, of in stored.items()}
    return [_item(sample, results, stored, episodes) for sample in wanted]


def _answered(folder: Path) -> dict[str, _Answered]:
    """The episodes that a measurement stored, by sample."""
    kept = {str(_at(row, "sample", "id")) for row in _stored(folder, "episodes")}
    rows = _stored(folder, "rows") if kept else ()
    return {str(row["id"]): _Answered(folder, row) for row in rows if row.get("id") in kept}


def _episodes(of: Mapping[str, _Answered], wanted: set[str]) -> Iterator[tuple[str, Episode]]:
    folders = {answered.folder for sample, answered in of.items() if sample in wanted}
    for folder in folders:
        for number, row in enumerate(_stored(folder, "episodes"), start=1):
            sample = str(_at(row, "sample", "id"))
            if sample not in wanted:
                continue
            try:
                yield sample, episode_from_json(row)
            except DataError as error:
                where = "/".join(folder.parts[-3:])
                raise DataError(f"episodes.jsonl of {where} row {number}: {error}") from error


def _item(
    sample: str,
    results: Mapping[str, Any],
    stored: Mapping[str, Mapping[str, _Answered]],
    episodes: Mapping[str, Mapping[str, Episode]],
) -> _Item:
    cards = []
    for arm in _arms(results):
        differs = str(_at(results, "arms", arm, "differs") or "")
        episode = episodes.get(arm, {}).get(sample)
        if episode is None:
            cards.append(_Card(arm, differs, "", "", "", 0, 0, 0, []))
            continue
        cards.append(_card(arm, differs, episode, stored[arm][sample]))
    some = next(of[sample].sample for of in episodes.values() if sample in of)
    return _Item(sample, some.kind, some.stratum, some.question, some.answer, cards)


def _card(arm: str, differs: str, episode: Episode, answered: _Answered) -> _Card:
    strict = answered.row.get("strict")
    verdict = {True: "right", False: "wrong"}.get(strict) if isinstance(strict, bool) else None
    answer = episode.answer
    if answer is None:
        stop = episode.stop.value.replace("_", " ") if episode.stop else "still running"
        answer = f"no answer, {stop}"
    store = ImageStore(answered.folder)
    try:
        picture = gaze_picture(episode, store, max_side_px=_PICTURE_SIDE_PX)
    except SaccadeError:
        source, size = "", (0, 0)
    else:
        source, size = data_uri(picture, quality=80), picture.size
    said = [
        _Said(
            _shortened(turn.parsed.thought),
            [_shortened(call_text(result.call)[0]) for result in turn.results],
            _shortened(" ".join(part.text for part in parts if isinstance(part, Text))),
            [uri for part in parts if (uri := _small(part, store))],
        )
        for turn, parts in zip(episode.turns, _shown(episode), strict=True)
    ]
    return _Card(
        arm,
        differs,
        verdict or "unscored",
        _shortened(answer),
        source,
        *size,
        len(episode.gaze),
        [s for s in said if s.thought.strip() or s.calls or s.words],
    )


def _shown(episode: Episode) -> list[list[Part]]:
    """What stood before the model after each turn. Not the record of its calls: where views are
    swapped or black, that is of the true ones.
    """
    if not episode.messages:
        return [[part for r in turn.results for part in r.parts] for turn in episode.turns]
    after: list[list[Part]] = []
    for message in episode.messages:
        if message.role == "assistant":
            after.append([])
        elif after:
            after[-1] += message.parts
    return (after + [[] for _ in episode.turns])[: len(episode.turns)]


def _small(part: Part, store: ImageStore) -> str:
    """A picture of a result as an inline address; empty where it is none, or not stored."""
    if not isinstance(part, ImageShown):
        return ""
    try:
        pixels = store.view(part.image).pixels.copy()
    except SaccadeError:
        return ""
    pixels.thumbnail((_VIEW_SIDE_PX, _VIEW_SIDE_PX))
    return data_uri(pixels, quality=80)


def _shortened(text: str) -> str:
    return text if len(text) <= _SAID_LIMIT else f"{text[:_SAID_LIMIT]} …"


# --- the ledger -----------------------------------------------------------------------------------


def _ledger(run: Path) -> Table:
    """How often each arm read each split, in the order of the first reading of the split."""
    read: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    arms = run / "arms"
    paths = [
        *arms.glob("*/seed-*/*/ledger.jsonl"),
        *arms.glob("*/seed-*/rate-*/*/ledger.jsonl"),
    ]
    for path in sorted(paths):
        arm = path.relative_to(arms).parts[0]
        for row in _stored(path.parent, "ledger"):
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
