"""One page that tells a run: table, learning curves, and episodes with their gaze.

Invariant: the page stands alone (no script, no address outside it) and shows what the run folder
holds and nothing else: a figure that is missing is a dash, never 0, and runs with more than 1% of
their episodes unscored are not compared.
Left out on purpose: computing figures (`saccade.evaluate` does), and plotting state that is shared
with the caller.
"""

from __future__ import annotations

import heapq
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from markupsafe import Markup

from saccade.atomic_files import write_atomic
from saccade.episode_json import episode_from_json
from saccade.errors import DataError, SaccadeError
from saccade.image_store import ImageStore
from saccade.run_folder import RunFolder
from saccade.view import episode_html, html_templates

__all__ = [
    "STROKES",
    "Cell",
    "Curve",
    "Line",
    "Points",
    "Row",
    "RunFacts",
    "Table",
    "curve_svg",
    "interval_of",
    "number_of",
    "run_facts",
    "share_cell",
    "signed",
    "smoothed",
    "write_report",
]

MAX_UNSCORED = 0.01
"""Share of unscored episodes above which an arm is not compared."""

_CURVES = {
    "accuracy": ("Accuracy", "share of right answers"),
    "reward": ("Reward", "mean of an episode"),
    "calls": ("Tool calls", "per episode"),
    "tool_use": ("Use of tools", "calls per episode"),
    "tool_success": ("Success of tools", "share of calls that did not fail"),
    "tool_dependence": ("Dependence on tools", "accuracy lost without the tool"),
    "boxes": ("Boxes in thoughts", "per episode"),
    "invalid_boxes": ("Invalid boxes", "share of those written"),
    "redundant_boxes": ("Redundant boxes", "share of those written"),
    "completion_tokens": ("Completion length", "tokens of an episode"),
    "kl": ("KL to the reference", "nats per token"),
    "entropy": ("Entropy", "nats per token"),
    "informative": ("Informative groups", "share of groups whose rollouts differ"),
    "loss": ("Loss", ""),
}
STROKES = 8
"""Colours of lines that can be told apart."""
_MANY_POINTS = 40
_MOST_POINTS = 400
_ORDER = ("pretrain", "base", "sft", "rl", "rl-text", "eval")


def write_report(run: Path, *, episodes: int = 12) -> Path:
    """Writes `report.html` into a run folder and returns its path.

    Runs in subfolders, one level down, are told together with it. At most `episodes` episodes are
    shown. Raises DataError where the folder holds no run or a file of it can't be read, and
    StorageError where the page can't be written.
    """
    run = Path(run)
    folders = _folders(run)
    results = _results(folders)
    curves = _curves(folders)
    chosen = _chosen(run, folders, episodes)
    runs = [told for name, folder in folders if (told := run_facts(name, folder))]
    sections = [
        *([("results", "Results")] if results else []),
        *([("curves", "Learning curves")] if curves.drawn else []),
        *([("episodes", "Episodes")] if chosen.groups else []),
        ("recipe", "Recipe and machine"),
    ]
    page = (
        html_templates()
        .get_template("report.html.jinja")
        .render(
            title=run.resolve().name,
            lead=_lead(folders, results),
            sections=sections,
            tables=_tables(results) if results else (),
            pairs=_pairs(results) if results else [],
            curves=curves.drawn,
            legend=curves.legend,
            groups=chosen.groups,
            episodes_stored=chosen.stored,
            episodes_shown=sum(len(group) for group in chosen.groups),
            runs=runs,
        )
    )
    path = run / "report.html"
    write_atomic(path, page.encode("utf-8", "replace"))
    return path


_Folders = list[tuple[str, RunFolder]]


def _folders(run: Path) -> _Folders:
    """The run and the runs one level down, by name, in the order in which a run goes."""
    if not run.is_dir():
        raise DataError(f"There is no run folder {run.name!r}: give the folder that a run wrote.")
    inner = [p for p in run.iterdir() if p.is_dir() and _is_run(p)]
    if not inner and not _is_run(run):
        raise DataError(
            f"Folder {run.name!r} holds no run (no recipe, results, metrics or episodes): "
            "give the folder that a run wrote."
        )

    def place(path: Path) -> tuple[int, str]:
        words = path.name.split("-")
        known = [_ORDER.index(w) for w in words[-1:] if w in _ORDER]
        evaluation = words[0] == "eval"
        return (10 * evaluation + (known[0] if known else len(_ORDER)), path.name)

    named = [(p.name, RunFolder(p)) for p in sorted(inner, key=place)]
    return [(run.resolve().name, RunFolder(run)), *named]


def _is_run(path: Path) -> bool:
    names = ("recipe.yaml", "results.json", "metrics.jsonl", "episodes.jsonl")
    return any((path / name).is_file() for name in names)


def _lead(folders: _Folders, results: Mapping[str, Any] | None) -> str:
    parts = []
    if results:
        counts = {arm.get("n") for arm in results["arms"].values()}
        names = ", ".join(results["arms"])
        items = f" on {counts.pop()} items" if len(counts) == 1 and counts != {None} else ""
        parts.append(f"Evaluated{items}: {names}.")
    if len(folders) > 1:
        parts.append("Runs: " + ", ".join(name for name, _ in folders[1:]) + ".")
    return " ".join(parts)


# --- results --------------------------------------------------------------------------------------


class Cell(NamedTuple):
    text: str
    """Empty where there is no figure."""
    interval: str = ""
    range: tuple[float, float, float] | None = None
    """Estimate and ends on a rail of 96 px."""
    note: str = ""
    """What stands below in small letters."""
    mood: str = ""
    """`good` or `bad` gives the figure a colour."""


class Row(NamedTuple):
    name: str
    cells: tuple[Cell, ...]
    note: str = ""


class Table(NamedTuple):
    heads: tuple[str, ...]
    rows: tuple[Row, ...]
    first: str = "arm"
    """Head of the names."""


class _Pair(NamedTuple):
    a: str
    b: str
    stratum: str
    metric: str
    estimate: str
    """Empty where nothing is compared; `reading` then says why."""
    interval: str
    reading: str
    mood: str


def _results(folders: _Folders) -> dict[str, Any] | None:
    """All `results.json` together: those of the run itself, else those of the runs in it."""
    merged: dict[str, Any] = {"arms": {}, "pairs": []}
    for name, folder in folders:
        found = folder.read_json("results")
        if found is None:
            continue
        if not isinstance(found, dict) or not isinstance(found.get("arms"), dict):
            raise DataError(f"results.json of run {name!r} has no arms: evaluate the run again.")
        for arm, values in found["arms"].items():
            merged["arms"].setdefault(arm, values)
        merged["pairs"] += [p for p in found.get("pairs", ()) if p not in merged["pairs"]]
    return merged if merged["arms"] else None


_SHARES = {
    "accuracy": "accuracy",
    "lenient": "lenient",
    "coverage": "gaze covers evidence",
    "tightness": "gaze is evidence",
}
_CONDUCT = {
    "n": "episodes",
    "calls": "calls per episode",
    "completion_tokens": "tokens per episode",
    "extraction_failed": "no answer read",
    "truncated": "cut off",
    "unscored": "unscored",
    "seconds": "seconds",
}


def _tables(results: Mapping[str, Any]) -> tuple[Table, ...]:
    """What the arms reached, in shares with intervals, and how they went about it, in counts."""
    arms: dict[str, dict[str, Any]] = results["arms"]
    shares = [
        (key, stratum)
        for key in _SHARES
        for stratum in dict.fromkeys(s for arm in arms.values() for s in _strata(arm.get(key)))
    ]
    heads = (_SHARES[key] + (f", {s}" if s != "all" else "") for key, s in shares)
    reached = (
        Row(name, tuple(_share(arm.get(key), stratum) for key, stratum in shares))
        for name, arm in arms.items()
    )
    conduct = (
        Row(name, tuple(Cell(_plain(arm.get(key))) for key in _CONDUCT))
        for name, arm in arms.items()
    )
    return (
        Table(tuple(heads), tuple(reached)),
        Table(tuple(_CONDUCT.values()), tuple(conduct)),
    )


def _strata(value: Any) -> list[str]:
    if isinstance(value, dict):
        return list(value)
    return ["all"] if isinstance(value, list) else []


def _share(value: Any, stratum: str) -> Cell:
    """A share with its interval; without strata it is that of all items."""
    if isinstance(value, dict):
        value = value.get(stratum)
    elif stratum != "all":
        value = None
    return share_cell(value)


def share_cell(value: Any, *, note: str = "") -> Cell:
    """[estimate, low, high], shares, in per cent; empty where there is none."""
    estimate, low, high = interval_of(value)
    if estimate is None:
        return Cell("", note=note)
    if low is None or high is None:
        return Cell(f"{100 * estimate:.1f}", note=note)
    rail = tuple(round(96 * min(max(v, 0.0), 1.0), 1) for v in (estimate, low, high))
    return Cell(
        f"{100 * estimate:.1f}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        (rail[0], rail[1], rail[2]),
        note,
    )


def interval_of(value: Any) -> tuple[float | None, float | None, float | None]:
    """Estimate, low and high of a list, or of a lone number; None for each that is missing."""
    numbers = [number_of(v) for v in value] if isinstance(value, list) else [number_of(value)]
    numbers += [None] * (3 - len(numbers))
    return numbers[0], numbers[1], numbers[2]


def number_of(value: Any) -> float | None:
    """The value as a number; None for what is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _plain(value: Any) -> str:
    number = number_of(value)
    if number is None:
        return ""
    return f"{number:,.0f}" if isinstance(value, int) else f"{number:,.2f}"


def _pairs(results: Mapping[str, Any]) -> list[_Pair]:
    return [_pair(pair, results["arms"]) for pair in results["pairs"]]


def _pair(pair: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]) -> _Pair:
    metric = str(pair.get("metric", "accuracy"))
    a, b = str(pair.get("a")), str(pair.get("b"))
    head = (a, b, str(pair.get("stratum", "all")), metric.replace("_", " "))
    estimate, low, high = interval_of(pair.get("difference"))
    reasons = [r for name in (a, b) if (r := _unfit(name, arms.get(name)))]
    if reasons or estimate is None:
        reason = " ".join(reasons) or str(pair.get("reason") or "No difference was stored.")
        return _Pair(*head, "", "", reason, "none")
    scale = 1.0 if metric in ("calls", "completion_tokens") else 100.0
    ends = None if low is None or high is None else (low, high)
    interval = f"{signed(ends[0] * scale)} to {signed(ends[1] * scale)}" if ends else ""
    reading, mood = "no interval", "none"
    if ends is not None:
        reading, mood = "the interval holds 0: not told apart", "none"
        if ends[0] > 0:
            reading, mood = f"{a} is above {b}", "good"
        elif ends[1] < 0:
            reading, mood = f"{a} is below {b}", "bad"
    return _Pair(*head, signed(estimate * scale), interval, reading, mood)


def _unfit(name: str, arm: Mapping[str, Any] | None) -> str:
    """Why an arm may not be compared, empty where it may."""
    n = number_of((arm or {}).get("n"))
    unscored = number_of((arm or {}).get("unscored"))
    if not n or unscored is None:
        return f"How many episodes of {name} went unscored is not known: evaluate it again."
    if unscored > MAX_UNSCORED * n:
        return (
            f"{unscored:.0f} of {n:.0f} episodes of {name} are unscored, "
            f"above {MAX_UNSCORED:.0%}: repair what failed and evaluate it again."
        )
    return ""


def signed(value: float, *, digits: int = 1) -> str:
    """With its sign, and a minus as long as the plus."""
    return f"{value:+.{digits}f}".replace("-", "−")


# --- learning curves ------------------------------------------------------------------------------


class Curve(NamedTuple):
    title: str
    unit: str
    svg: Markup


Points = list[tuple[float, float]]
"""(step, value)."""


class Line(NamedTuple):
    points: Points
    stroke: int
    """Number of its colour, below `STROKES`."""
    is_faint: bool = False


class _Curves(NamedTuple):
    drawn: list[Curve]
    legend: list[tuple[str, str]]
    """(stage, colour)."""


def _curves(folders: _Folders) -> _Curves:
    """One picture for each figure that the runs logged."""
    lines: dict[str, dict[str, Points]] = {key: {} for key in _CURVES}
    owner: dict[str, str] = {}
    seen: dict[str, None] = {}
    for name, folder in folders:
        for row in folder.rows("metrics"):
            step = number_of(row.get("step"))
            if step is None:
                continue
            stage = str(row.get("stage") or name)
            if owner.setdefault(stage, name) != name:
                stage = f"{name}: {stage}"
            seen[stage] = None
            for key, stages in lines.items():
                value = number_of(row.get(key))
                if value is not None:
                    stages.setdefault(stage, []).append((step, value))
    known = [s for s in seen if any(s in stages for stages in lines.values())]
    strokes = {stage: i % STROKES for i, stage in enumerate(known)}
    drawn = [
        Curve(
            *_CURVES[key],
            curve_svg(
                [line for s, points in stages.items() for line in smoothed(points, strokes[s])],
                prefix=key,
            ),
        )
        for key, stages in lines.items()
        if stages
    ]
    return _Curves(drawn, [(stage, f"var(--c{i})") for stage, i in strokes.items()])


def _thinned(points: Points) -> Points:
    """At most `_MOST_POINTS` points, means of equal runs of neighbours."""
    size = -(-len(points) // _MOST_POINTS)
    runs = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in r) / len(r), sum(y for _, y in r) / len(r)) for r in runs]


def _running_mean(points: Points) -> Points:
    half = len(points) // 24
    smooth = []
    for i, (x, _) in enumerate(points):
        window = points[max(0, i - half) : i + half + 1]
        smooth.append((x, sum(y for _, y in window) / len(window)))
    return smooth


def smoothed(points: Points, stroke: int) -> list[Line]:
    """The line through the points; of many, their running mean, last, on the faint line of each."""
    points = _thinned(sorted(points))
    if len(points) <= _MANY_POINTS:
        return [Line(points, stroke)]
    return [Line(points, stroke, is_faint=True), Line(_running_mean(points), stroke)]


def curve_svg(
    lines: Sequence[Line], *, prefix: str, ticks: Mapping[float, str] | None = None
) -> Markup:
    """The lines over steps; the page's style sheet fills in the colours, light or dark.

    `prefix` keeps ids apart from those of the page's other pictures. With `ticks`, the words at
    places, these are on a logarithmic axis.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.2, 2.3), layout="constrained")
    figure.patch.set_visible(False)
    axes = figure.add_subplot()
    axes.patch.set_visible(False)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_LINE)
    axes.tick_params(colors=_INK, labelsize=8, length=0)
    if ticks is None:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    else:
        axes.set_xscale("log")
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xticks([], minor=True)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5))
    for line in lines:
        width, alpha = (0.7, 0.35) if line.is_faint else (1.8, None)
        axes.plot(
            *zip(*line.points, strict=True),
            color=_stroke(line.stroke),
            linewidth=width,
            alpha=alpha,
            marker="o" if len(line.points) <= 12 and not line.is_faint else "",
            markersize=3.5,
        )
    axes.margins(x=0.02, y=0.08)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Markup(_inline(buffer.getvalue(), prefix))


_INK, _LINE = "#010203", "#010204"
_INKS = {_INK: "currentColor", _LINE: "var(--line)"}


def _stroke(number: int) -> str:
    return f"#0102{16 + number:02x}"


def _inline(svg: str, prefix: str) -> str:
    """The `<svg>` element alone, without addresses, its ids unlike those of any other picture."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    for side in ("width", "height"):
        svg = re.sub(rf'(<svg[^>]*?) {side}="[^"]*"', r"\1", svg, count=1)
    ids = {name: f"{prefix}-{i}" for i, name in enumerate(re.findall(r'\bid="([^"]+)"', svg))}
    svg = re.sub(r'\bid="([^"]+)"', lambda m: f'id="{ids[m[1]]}"', svg)
    svg = re.sub(r'(href="#|url\(#)([^")]+)', lambda m: m[1] + ids.get(m[2], m[2]), svg)
    for color, name in (*_INKS.items(), *((_stroke(i), f"var(--c{i})") for i in range(STROKES))):
        svg = svg.replace(color, name)
    return svg


# --- episodes -------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where an episode is stored."""

    folder: int
    row: int
    arm: str


class _Chosen(NamedTuple):
    """(arm, HTML) of the episodes to show, those of one sample together."""

    groups: list[list[tuple[str, Markup]]]
    stored: int
    """How many episodes there are in all."""


def _chosen(run: Path, folders: _Folders, limit: int) -> _Chosen:
    """Samples that most arms answered come first, then those that need a look."""
    by_sample: dict[str, dict[str, _Place]] = {}
    rank: dict[str, tuple[bool, int]] = {}
    stored = 0
    for number, (name, folder) in enumerate(folders):
        for row_number, row in enumerate(folder.rows("episodes")):
            stored += 1
            sample = row.get("sample")
            if not isinstance(sample, dict):
                where = f"episodes.jsonl of run {name!r} row {row_number + 1}"
                raise DataError(f"{where} is no episode: delete that row.")
            key = json.dumps([sample.get("id"), sample.get("question")])
            arm = str(row.get("arm") or name)
            by_sample.setdefault(key, {})[arm] = _Place(number, row_number, arm)
            rank.setdefault(key, (sample.get("stratum") != "look", stored))
    order = heapq.nsmallest(max(0, limit), by_sample, key=lambda k: (-len(by_sample[k]), *rank[k]))
    chosen: list[list[_Place]] = []
    for key in order:
        room = limit - sum(len(group) for group in chosen)
        group = list(by_sample[key].values())[:room]
        if group:
            chosen.append(group)
    wanted = {(p.folder, p.row) for group in chosen for p in group}
    html = dict(_told(run, folders, wanted))
    groups = [[(p.arm, html[p.folder, p.row]) for p in group] for group in chosen]
    return _Chosen(groups, stored)


def _told(
    run: Path, folders: _Folders, wanted: set[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], Markup]]:
    for number, (name, folder) in enumerate(folders):
        rows = {row for where, row in wanted if where == number}
        if not rows:
            continue
        stores = [ImageStore(folder.path), ImageStore(run)]
        for row_number, row in enumerate(folder.rows("episodes")):
            if row_number not in rows:
                continue
            try:
                episode = episode_from_json(row)
            except DataError as error:
                raise DataError(
                    f"episodes.jsonl of run {name!r} row {row_number + 1}: {error}"
                ) from error
            store = _store_of(episode.sample.images[0].roots()[0], stores)
            html = episode_html(episode, store)
            yield (number, row_number), Markup(html)


def _store_of(root: Any, stores: Sequence[ImageStore]) -> ImageStore:
    """The first store that has the picture; a demo keeps those of its runs in one place."""
    for store in stores:
        try:
            store.view(root)
        except SaccadeError:
            continue
        return store
    return stores[0]


# --- recipe ---------------------------------------------------------------------------------------


class RunFacts(NamedTuple):
    name: str
    summary: str
    facts: list[tuple[str, str]]
    text: str
    """The recipe as it stands, where it is no mapping."""


def run_facts(name: str, folder: RunFolder) -> RunFacts | None:
    """Recipe and machine of a run; None where it stored neither."""
    text, env = folder.recipe(), folder.read_json("env")
    if text is None and env is None:
        return None
    facts: list[tuple[str, str]] = []
    try:
        recipe = yaml.safe_load(text or "")
    except yaml.YAMLError:
        recipe = None
    if isinstance(recipe, dict):
        facts += _flat(recipe)
        text = None
    if isinstance(env, dict):
        facts += _flat(env)
    short = [f"{k} {v}" for k, v in facts if k in ("task.name", "seed", "cpu", "device")]
    return RunFacts(name, ", ".join(short), facts, text or "")


def _flat(value: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested keys joined by dots, as flags name them; a dash for null."""
    found: list[tuple[str, str]] = []
    for key, inner in value.items():
        name = f"{prefix}{key}"
        if isinstance(inner, dict) and inner:
            found += _flat(inner, f"{name}.")
        elif inner is None:
            found.append((name, "–"))
        elif isinstance(inner, list):
            found.append((name, ", ".join(str(v) for v in inner) or "–"))
        else:
            found.append((name, str(inner)))
    return found
