"""What a ladder must show, and how its page and its table tell it."""

from __future__ import annotations

import copy
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from saccade.episode_json import episode_to_json
from saccade.errors import DataError
from saccade.geometry import Box
from saccade.image_store import ImageStore
from saccade.images import root_view
from saccade.ladder.figures import statistics
from saccade.ladder.page import curves, tables
from saccade.ladder.page.curves import item_curves
from saccade.ladder.page.report import format_ladder, write_ladder_report
from saccade.ladder.page.results import ToolArms, tool_arms
from saccade.ladder.page.statements import statements
from saccade.run_folder import RunFolder
from saccade.types import (
    Answer,
    BoxNamed,
    Episode,
    ImageShown,
    Message,
    Parsed,
    Sample,
    StopReason,
    Text,
    ToolCall,
    ToolResult,
    TurnRecord,
)

HOSTILE = "[red]x[/red]</td><script>alert(1)</script>{{ 7*7 }}"
ARMS: dict[str, dict[str, Any]] = {
    "base": {"stage": "eval", "start": None, "settings": {"tools": []}, "differs": "tools: []"},
    "sft": {"stage": "sft", "start": None, "rate": 0.001},
    "v-toolrl": {"stage": "rl", "start": "sft", "rate": 0.0002},
    "rl-text": {
        "stage": "rl",
        "start": "sft",
        "rate": 0.0004,
        "settings": {"rollout.observation": "text"},
        "differs": "v-toolrl, observation in words",
    },
    "rl-swapped": {
        "stage": "rl",
        "start": "sft",
        "rate": 0.0004,
        "settings": {"rollout.observation": "swapped"},
    },
    "rl-no-tools": {"stage": "rl", "start": "sft", "rate": 0.0004, "settings": {"tools": []}},
    "dark": {
        "stage": "eval",
        "start": "v-toolrl",
        "settings": {"rollout.observation": "black"},
    },
    "elsewhere": {"stage": "score", "start": None},
}
LOOK = {
    "base": 0.1,
    "sft": 0.4,
    "v-toolrl": 0.85,
    "rl-text": 0.3,
    "rl-swapped": 0.35,
    "rl-no-tools": 0.45,
    "dark": 0.55,
}


def _around(value: float, half: float = 0.05) -> list[float]:
    return [value, value - half, value + half]


def _figures(arm: str) -> dict[str, Any]:
    look = LOOK[arm]
    seeds = [0] if arm == "base" else [0, 1]
    return {
        "seeds": len(seeds),
        "resampling": {"resamples": 10_000, "seed": 0, "seeds_by": "resampling"},
        "samples": {"all": 8, "easy": 4, "look": 4},
        "samples_by_kind": {"value": 6, "count": 2},
        "by_stratum": {
            "accuracy": {"easy": _around(0.9), "look": _around(look), "all": _around(0.6)},
            "calls": {"easy": _around(0.1), "look": _around(1.0)},
            "completion_tokens": {"all": [12.5, 10.0, 15.0]},
        },
        "by_kind": {"accuracy": {"value": _around(0.7), "count": [0.5, None, None]}},
        "by_kind_and_stratum": {
            "accuracy": {"value": {"easy": _around(0.81), "look": _around(0.61)}}
        },
        "mixtures": {"0.25": _around(0.77), "0.5": _around(0.66), "0.75": _around(0.55)},
        "adaptive_calls": [0.9, 0.8, 1.0],
        "calls_by_tool": {"look": 0.55},
        "truncated": 0.02,
        "extraction_failed": 0.01,
        "unscored": 0.0,
        "image_tokens": 21.5,
        "by_seed": [
            {"seed": s, "accuracy": {"easy": 0.9, "look": look + (s - 0.5) / 10, "all": 0.6}}
            for s in seeds
        ],
    }


def _results() -> dict[str, Any]:
    """A small `ladder.json` in which everything is as it must be."""
    arms = {}
    for name, given in ARMS.items():
        trained = given["stage"] in ("sft", "rl")
        arms[name] = {
            "differs": f"differs of {name}",
            "settings": {},
            "seeds": [0] if name == "base" else [0, 1],
            "rate": None,
            "validation": {},
            "training": [{"steps": 3.0, "tokens": 100.0, "seconds": 7.0}] * 2 if trained else [],
            **given,
        }
    arms["v-toolrl"]["validation"] = {"0.0002": 0.715, "0.0004": 0.615}
    gain = {"look": [0.31, 0.25, 0.35], "easy": [0.02, 0.0, 0.04], "all": [0.2, 0.1, 0.3]}
    pairs = [("v-toolrl", name) for name in LOOK if name != "v-toolrl"]
    pairs += [("sft", "base"), ("rl-text", "sft")]
    return {
        "tested": "v-toolrl",
        "reference": "rl-no-tools",
        "arms": arms,
        "splits": {
            "test": {
                "chance": {
                    "count": {"guess": None, "constant": 0.25},
                    "value": {"guess": 0.0123, "constant": 0.0456},
                },
                "arms": {name: _figures(name) for name in LOOK},
                "pairs": [
                    {
                        "a": a,
                        "b": b,
                        "metric": "accuracy",
                        "by_stratum": {
                            "easy": [-0.01, -0.05, 0.03],
                            "look": _around(LOOK[a] - LOOK[b]),
                            "all": _around((LOOK[a] - LOOK[b]) / 2),
                        },
                        "mixtures": {"0.25": [0.111, 0.101, 0.121]},
                    }
                    for a, b in pairs
                ],
                "gain_and_harm": [
                    {"arm": "sft", "reference": "rl-no-tools", "gain": gain, "harm": gain}
                ],
            }
        },
    }


def _picture(number: int = 0) -> Image.Image:
    return Image.new("RGB", (200, 150), (200, 200, 100 + number))


def _episode(store: ImageStore, number: int, answer: str | None, *, swapped: bool) -> Episode:
    view = root_view(_picture(number))
    sample = Sample(
        f"s{number}",
        f"Question {number}?",
        (store.add(view),),
        "7",
        kind="value",
        stratum="easy" if number == 0 else "look",
    )
    call = ToolCall("1", "look", {"box": [20, 20, 90, 60]})
    box = Box(20, 20, 90, 60)
    seen = ImageShown(store.add(view.crop(box)), "img_1")
    dark = ImageShown(store.add(view.crop(box).black()), "img_1")
    result = ToolResult(call, (seen,), named=(BoxNamed(view.ref, box),))
    turns = (
        TurnRecord(Parsed("I look closer.", (call,)), (result,)),
        TurnRecord(Parsed("", (), None if answer is None else Answer(answer))),
    )
    messages = (
        Message("user", (Text(sample.question),)),
        Message("assistant", (Text("I look closer."),)),
        Message("tool", (dark if swapped else seen, Text("That is what it shows."))),
        Message("assistant", (Text(answer or ""),)),
    )
    stop = StopReason.MAX_TURNS if answer is None else StopReason.ANSWERED
    return Episode(sample, messages=messages, turns=turns, stop=stop)


def _measured(run: Path, arm: str, answers: dict[int, str | None], seed: int = 0) -> None:
    store = ImageStore()
    with RunFolder(run / "arms" / arm / f"seed-{seed}" / "test") as folder:
        for number, answer in answers.items():
            episode = _episode(store, number, answer, swapped=arm == "rl-swapped")
            store.save(episode.images.values(), folder.path)
            folder.append("episodes", {"arm": arm, **episode_to_json(episode)})
            sample = episode.sample
            row = {"number": number, "id": sample.id, "stratum": sample.stratum}
            folder.append("rows", {**row, "strict": answer == "7"})
        when = f"2026-01-0{seed + 1}T10:00:00+00:00"
        folder.append("ledger", {"when": when, "split": "test", "items": 4, "arm": arm})


def _run(tmp_path: Path, results: dict[str, Any] | None = None) -> Path:
    run = tmp_path / "ladder"
    with RunFolder(run) as folder:
        folder.write_json("ladder.json", results or _results())
        folder.write_recipe("seed: 0\ntask:\n  name: charts\n")
    return run


class Page(HTMLParser):
    """Tags, and the text of every cell and of the whole page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []
        self._in_cell = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text.append(" ")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._in_cell:
            self.rows[-1][-1] += f" {data}"

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())

    def table(self, first: str) -> list[list[str]]:
        """Rows of the first table whose head starts so; white space is narrow."""
        found = [[" ".join(cell.split()) for cell in row] for row in self.rows]
        start = next(i for i, row in enumerate(found) if " ".join(row).startswith(first))
        width = len(found[start])
        end = start + 1
        while end < len(found) and len(found[end]) == width:
            end += 1
        return found[start:end]


def _page(run: Path, **options: int) -> Page:
    return Page(write_ladder_report(run, **options).read_text("utf-8"))


def _printed(results: dict[str, Any]) -> str:
    console = Console(width=240, file=io.StringIO(), color_system=None)
    console.print(format_ladder(results))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _pair(results: dict[str, Any], b: str) -> dict[str, Any]:
    return next(
        p["by_stratum"]
        for p in results["splits"]["test"]["pairs"]
        if (p["a"], p["b"]) == ("v-toolrl", b)
    )


# --- what must be shown ---------------------------------------------------------------------------


def test_a_ladder_that_shows_everything_meets_every_statement() -> None:
    found = statements(_results(), "test")
    assert [s.verdict for s in found] == ["met", "met", _ALONE, "met", "met", "met"]
    assert [s.found for s in found] == [
        "closest of 4: rl-no-tools, +40.0 [+35.0, +45.0]",
        "+50.0 [+45.0, +55.0]",
        "−1.0 [−5.0, +3.0]",
        "+0.90 [+0.80, +1.00]",
        "+30.0 [+25.0, +35.0]",
        "85.0 [80.0, 90.0]",
    ]
    assert [s.whole for s in found] == [True, True, False, True, True, True]


def test_above_every_arm_means_the_lower_end_and_names_those_not_told_apart() -> None:
    results = _results()
    _pair(results, "rl-text")["look"] = [0.2, 0.0, 0.4]
    first = statements(results, "test")[0]
    assert first.verdict == "missed"
    assert first.found == (
        "closest of 4: rl-text, +20.0 [+0.0, +40.0]; not told apart or below: rl-text"
    )


def test_arms_of_other_demonstrations_and_the_tested_model_asked_again_are_not_compared() -> None:
    results = _results()
    _pair(results, "dark")["look"] = [-0.5, -0.6, -0.4]
    _pair(results, "base")["look"] = [-0.5, -0.6, -0.4]
    results["arms"]["other"] = {"stage": "sft", "start": None}
    assert statements(results, "test")[0].verdict == "met"
    results["arms"]["other"]["start"] = "sft"
    first = statements(results, "test")[0]
    assert first.verdict == "not known"
    assert first.found.endswith("; other: the ladder holds no such figure")


@pytest.mark.parametrize(
    ("number", "path", "at_bound", "below"),
    [
        (1, ("rl-swapped", "look"), [0.3, 0.2, 0.4], [0.299, 0.29, 0.31]),
        (2, ("rl-no-tools", "easy"), [-0.03, -0.1, 0.0], [-0.031, -0.04, -0.01]),
        (4, ("dark", "look"), [0.2, 0.1, 0.3], [0.19, 0.1, 0.3]),
    ],
)
def test_a_difference_whose_estimate_alone_reaches_the_bound_says_so(
    number: int, path: tuple[str, str], at_bound: list[float], below: list[float]
) -> None:
    results = _results()
    _pair(results, path[0])[path[1]] = at_bound
    assert statements(results, "test")[number][2:] == (_ALONE, False)
    _pair(results, path[0])[path[1]] = [at_bound[0] + 0.2, at_bound[0], at_bound[2] + 0.3]
    assert statements(results, "test")[number][2:] == ("met", True)
    _pair(results, path[0])[path[1]] = below
    assert statements(results, "test")[number][2:] == ("missed", False)


def test_calls_and_accuracy_are_met_at_their_bounds_and_missed_below() -> None:
    results = _results()
    figures = results["splits"]["test"]["arms"]["v-toolrl"]
    figures["adaptive_calls"] = [0.5, 0.5, 0.6]
    figures["by_stratum"]["accuracy"]["look"] = [0.8, 0.8, 0.9]
    found = statements(results, "test")
    assert (found[3][2:], found[5][2:]) == (("met", True), ("met", True))
    figures["adaptive_calls"] = [0.49, 0.4, 0.6]
    figures["by_stratum"]["accuracy"]["look"] = [0.79, 0.75, 0.83]
    found = statements(results, "test")
    assert (found[3][2:], found[5][2:]) == (("missed", False), ("missed", False))


def test_a_difference_of_shares_is_not_missed_by_its_last_bit() -> None:
    results = _results()
    assert 100 * (0.85 - 0.55) < 30
    _pair(results, "rl-swapped")["look"] = [0.85 - 0.55, 0.1, 0.5]
    assert statements(results, "test")[1].verdict == _ALONE


def test_a_statement_about_an_absent_arm_does_not_apply() -> None:
    results = _results()
    for name in ("rl-swapped", "rl-no-tools", "dark"):
        del results["arms"][name]
    found = statements(results, "test")
    assert [s.verdict for s in found] == ["met", *["does not apply"] * 2, "met", _NO, "met"]
    del results["arms"]["v-toolrl"]
    assert {s.verdict for s in statements(results, "test")} == {_NO}


_NO = "does not apply"
_ALONE = "met by the estimate alone"


def test_a_statement_without_its_figure_is_not_known_and_says_why() -> None:
    results = _results()
    reason = "12 of 100 episodes of rl-swapped are unscored, above 1%: repair them."
    _pair(results, "rl-swapped")["look"] = reason
    results["splits"]["test"]["arms"]["v-toolrl"]["adaptive_calls"] = None
    found = statements(results, "test")
    assert found[0].verdict == "not known"
    assert found[1][1:3] == (reason, "not known")
    assert found[3].verdict == "not known"


# --- in the terminal ------------------------------------------------------------------------------


def test_the_terminal_shows_arms_published_steps_and_statements_of_each_split() -> None:
    results = _results()
    results["splits"]["test_style"] = copy.deepcopy(results["splits"]["test"])
    text = _printed(results)
    assert text.count("what must be shown") == 2
    row = next(line for line in text.splitlines() if line.startswith("│ rl-text "))
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    assert cells == [
        "rl-text",
        "90.0 [85.0, 95.0]",
        "30.0 [25.0, 35.0]",
        "0.10 / 1.00",
        "+55.0 [+50.0, +60.0]",
    ]
    assert (
        "v-toolrl − rl-text: published +7.8, here +27.5 [+22.5, +32.5] on all, "
        "+55.0 [+50.0, +60.0] on look"
    ) in text
    assert "sft − base: published +16.1" in text
    assert "rl-text − sft: published +6.0" in text
    assert text.count("│ met ") == 12


def test_markup_in_names_is_printed_and_not_obeyed() -> None:
    text = json.dumps(_results()).replace("rl-swapped", "[red]x[/red]").replace('"test"', '"[b]t"')
    printed = _printed(json.loads(text))
    assert "│ [red]x[/red] " in printed
    assert "above [red]x[/red]" in printed
    assert "[b]t: what must be shown" in printed


@pytest.mark.parametrize("results", [{}, {"arms": {}}, {"splits": {"test": {}}, "arms": {"a": {}}}])
def test_an_empty_ladder_prints_without_a_crash(results: dict[str, Any]) -> None:
    _printed(results)


# --- the page -------------------------------------------------------------------------------------


def test_the_page_tells_each_arm_with_intervals_seeds_and_costs(tmp_path: Path) -> None:
    page = _page(_run(tmp_path))
    reached = {row[0].split()[0]: row for row in page.table("arm learning rate")}
    assert reached["arm"][1:] == [
        *("learning rate", "seeds", "easy (4)", "look (4)", "all (8)", "published"),
    ]
    assert reached["v-toolrl"][1:] == [
        *("0.0002", "0, 1", "90.0 85.0 to 95.0 90.0 · 90.0", "85.0 80.0 to 90.0 80.0 · 90.0"),
        *("60.0 55.0 to 65.0 60.0 · 60.0", "59.4"),
    ]
    assert reached["rl-text"][0] == "rl-text v-toolrl, observation in words"
    assert reached["base"][6] == "29.6"
    assert reached["sft"][6] == "45.7"
    assert reached["rl-text"][6] == "51.6"
    assert reached["rl-no-tools"][6] == "–"
    conduct = {row[0].split()[0]: row for row in page.table("arm calls, easy")}
    assert conduct["sft"][1:] == [
        *("0.10 0.05 to 0.15", "1.00 0.95 to 1.05", "+0.90 +0.80 to +1.00", "look 0.55"),
        *("12.5 10.0 to 15.0", "21.5", "–", "100 100 · 100 3 steps", "7 7 · 7"),
        "3.0 cut off 2.0, not read 1.0",
    ]
    assert conduct["dark"][7:9] == ["–", "–"]


def test_the_page_tells_differences_gain_mixtures_and_chance(tmp_path: Path) -> None:
    page = _page(_run(tmp_path))
    pairs = {row[0]: row for row in page.table("difference look")}
    assert pairs["v-toolrl − rl-text"][1:6] == [
        *("+55.0 +50.0 to +60.0", "−1.0 −5.0 to +3.0", "+27.5 +22.5 to +32.5", "+7.8"),
        "+11.1 +10.1 to +12.1",
    ]
    assert pairs["v-toolrl − sft"][4] == "–"
    assert page.table("arm gain, look")[1][:3] == [
        *("sft", "31.0 25.0 to 35.0", "31.0 25.0 to 35.0"),
    ]
    assert page.table("arm 25% look")[1] == [
        *("base", "77.0 72.0 to 82.0", "66.0 61.0 to 71.0", "55.0 50.0 to 60.0"),
    ]
    kinds = page.table("arm count (2) value (6)")
    assert kinds[1:4] == [
        ["a guess", "–", "1.2"],
        ["the best constant answer", "25.0", "4.6"],
        ["base", "50.0", "70.0 65.0 to 75.0 easy 81.0 · look 61.0"],
    ]
    rates = {row[0]: row for row in page.table("arm 0.0002")}
    assert rates["v-toolrl"] == ["v-toolrl", "71.5 chosen", "61.5", "–"]


def test_the_page_tells_the_statements_with_verdicts(tmp_path: Path) -> None:
    results = _results()
    _pair(results, "dark")["look"] = [0.1, 0.05, 0.15]
    rows = _page(_run(tmp_path, results)).table("statement found")
    assert [row[3] for row in rows[1:]] == ["met", "met", _ALONE, "met", "missed", "met"]
    assert rows[5][1:] == ["+10.0 [+5.0, +15.0]", "no", "missed"]


def test_arms_without_figures_are_dashes(tmp_path: Path) -> None:
    results = _results()
    results["arms"]["unfinished"] = {"stage": "rl", "start": "sft"}
    page = _page(_run(tmp_path, results))
    for head in ("arm learning rate", "arm calls, easy", "arm 25% look", "arm count"):
        rows = {row[0].split()[0]: row for row in page.table(head)}
        for arm in ("elsewhere", "unfinished"):
            assert set(rows[arm][1:]) <= {"–", "0, 1"}, (head, arm)
    assert "nan" not in page.words.lower().replace("unanswered", "")
    bare = {"arms": {"a": {}}, "splits": {"test": {}}}
    assert "a –" in _page(_run(tmp_path / "bare", bare)).words
    assert "No arm was trained." in _page(_run(tmp_path / "none", {"arms": {}})).words


def test_why_a_difference_is_missing_stands_beside_its_dash(tmp_path: Path) -> None:
    results = _results()
    _pair(results, "sft")["look"] = "Too many are unscored."
    pairs = {row[0]: row for row in _page(_run(tmp_path, results)).table("difference look")}
    assert pairs["v-toolrl − sft"][1] == "– Too many are unscored."


def _trained(run: Path, arm: str, seed: int, rate: str, reward: float) -> None:
    with RunFolder(run / "arms" / arm / f"seed-{seed}" / f"rate-{rate}") as folder:
        for step in (1, 2, 3):
            stage = {"stage": "rl", "step": step}
            folder.append("metrics", {**stage, "reward": reward * step, "calls": 1.0})
        folder.append("metrics", {"stage": "validation", "step": 3, "accuracy": 0.5})


def test_curves_show_each_seed_faintly_and_their_mean_at_the_chosen_rate(tmp_path: Path) -> None:
    run = _run(tmp_path)
    _trained(run, "v-toolrl", 0, "0.0002", 1.0)
    _trained(run, "v-toolrl", 0, "0.0004", 50.0)
    _trained(run, "v-toolrl", 1, "0.0002", 3.0)
    _trained(run, "rl-text", 0, "0.0004", 2.0)
    html = write_ladder_report(run).read_text("utf-8")
    titles = re.findall(r"<figure><figcaption>([\w ]+?) <", html)
    assert titles == ["Reward", "Tool calls", "Validation accuracy"]
    legend = re.findall(r'--stroke:(var\(--c\d\))"><bdi>([\w-]+)', html)
    assert legend == [("var(--c0)", "v-toolrl"), ("var(--c1)", "rl-text")]
    reward = re.findall(r"<svg viewBox.*?</svg>", html[html.index('id="curves"') :], re.DOTALL)[0]
    lines = re.findall(r'<path d="(M[^"]*L[^"]*)"[^>]*?style="([^"]*var\(--c\d\)[^"]*)"', reward)
    own = [(d, style) for d, style in lines if "var(--c0)" in style]
    heights = [[float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", d)] for d, _ in own]
    assert ["opacity" in style for _, style in own] == [True, True, False]
    low, high, mean = heights
    assert mean == pytest.approx([(a + b) / 2 for a, b in zip(low, high, strict=True)], abs=0.01)
    assert sum("var(--c1)" in style for _, style in lines) == 1
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_the_worth_of_a_tool_is_told_from_the_arms_that_go_without_it(tmp_path: Path) -> None:
    run = _run(tmp_path)
    results = json.loads((run / "ladder.json").read_text("utf-8"))
    assert tool_arms(results) == []
    arms = results["arms"]
    arms["asked-without"] = {
        "stage": "eval", "start": "v-toolrl", "settings": {"rollout.withheld": ["look"]}
    }  # fmt: skip
    arms["never"] = {**arms["v-toolrl"], "settings": {"rollout.withheld": ["look"]}}
    arms["neither"] = {**arms["v-toolrl"], "settings": {"rollout.withheld": ["look", "ocr"]}}
    arms["other"] = {"stage": "eval", "start": "sft", "settings": {"rollout.withheld": ["ocr"]}}
    for split in results["splits"].values():
        for arm, points in (("asked-without", 0.25), ("never", 0.125)):
            split["pairs"].append(
                {"a": "v-toolrl", "b": arm, "by_stratum": {"look": [points, 0.01, 0.5]}}
            )
    assert tool_arms(results) == [ToolArms("look", "asked-without", "never")]
    (run / "ladder.json").write_text(json.dumps(results), "utf-8")
    for seed in (0, 1):
        _trained(run, "v-toolrl", seed, "0.0002", 1.0)
        folder = run / "arms" / "v-toolrl" / f"seed-{seed}" / "rate-0.0002"
        with RunFolder(folder) as rows:
            row = {"stage": "tool: look", "step": 1, "tool_use": 0.5 + seed}
            rows.append("metrics", {**row, "tool_success": 1.0})
            rows.append("metrics", {"stage": "tool: look", "step": 3, "tool_dependence": 0.2})
        with RunFolder(run / "arms" / "never" / f"seed-{seed}" / "rate-0.0002") as rows:
            rows.append("metrics", {"stage": "validation", "step": 3, "accuracy": 0.1})
    html = write_ladder_report(run).read_text("utf-8")
    worth = html[html.index("What each tool is worth") :]
    assert "+25.0" in worth[: worth.index("</table>")]
    assert "+12.5" in worth[: worth.index("</table>")]
    assert "Tools of v-toolrl" in html
    titles = re.findall(r"<figure><figcaption>([\w ]+?) <", html)
    assert titles[:4] == ["Use", "Success", "Dependence", "Benefit"]


def test_items_that_need_a_look_and_divide_the_arms_come_first(tmp_path: Path) -> None:
    run = _run(tmp_path)
    _measured(run, "sft", {0: "7", 1: "5", 2: "5", 3: "5"})
    _measured(run, "v-toolrl", {0: "5", 1: "5", 2: "7", 3: "7"})
    _measured(run, "v-toolrl", {0: "7", 1: "7", 2: "7", 3: "7"}, seed=1)
    html = write_ladder_report(run).read_text("utf-8")
    assert re.findall(r'class="question"[^>]*>Question (\d)', html) == ["2", "3", "1", "0"]
    html = write_ladder_report(run, items=1).read_text("utf-8")
    assert re.findall(r'class="question"[^>]*>Question (\d)', html) == ["2"]
    html = write_ladder_report(run, items=0).read_text("utf-8")
    assert "through the arms" not in html


def _cards(html: str) -> dict[str, str]:
    cards = re.split(r'<div class="card ', html)[1:]
    return {re.findall(r'class="name"><bdi>([^<]*)', card)[0]: card for card in cards}


def test_each_arm_has_a_card_with_its_gaze_and_a_verdict(tmp_path: Path) -> None:
    run = _run(tmp_path)
    _measured(run, "sft", {1: "5"})
    _measured(run, "v-toolrl", {1: "7"})
    _measured(run, "rl-swapped", {1: None})
    cards = _cards(write_ladder_report(run).read_text("utf-8"))
    assert list(cards) == list(ARMS)
    assert "✗ wrong: <bdi>5</bdi>" in cards["sft"]
    assert "✓ right: <bdi>7</bdi>" in cards["v-toolrl"]
    assert "no answer, max turns" in cards["rl-swapped"]
    assert "no episode stored" in cards["base"]
    assert "no episode stored" in cards["elsewhere"]
    assert "with 2 numbered regions of the gaze" in cards["v-toolrl"]
    assert "look(box=[20, 20, 90, 60])" in cards["v-toolrl"]
    assert "That is what it shows." in cards["v-toolrl"]


def test_a_card_shows_what_the_model_was_shown_and_not_the_record_of_its_call(
    tmp_path: Path,
) -> None:
    run = _run(tmp_path)
    _measured(run, "v-toolrl", {1: "7"})
    _measured(run, "rl-swapped", {1: "7"})
    cards = _cards(write_ladder_report(run).read_text("utf-8"))
    views = {
        arm: re.findall(r'<img class="view" src="([^"]+)"', cards[arm])
        for arm in ("v-toolrl", "rl-swapped")
    }
    assert [len(v) for v in views.values()] == [1, 1]
    assert _brightest(views["v-toolrl"][0]) > 150
    assert _brightest(views["rl-swapped"][0]) < 30


def _brightest(address: str) -> int:
    import base64

    image = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    return max(high for _, high in image.convert("RGB").getextrema())


def test_an_episode_whose_pictures_are_gone_is_told_in_words(tmp_path: Path) -> None:
    run = _run(tmp_path)
    _measured(run, "v-toolrl", {1: "7"})
    for path in run.glob("arms/*/*/test/images/*.png"):
        path.unlink()
    card = _cards(write_ladder_report(run).read_text("utf-8"))["v-toolrl"]
    assert "no picture stored" in card
    assert "<img" not in card
    assert "✓ right" in card


def test_an_episode_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    run = _run(tmp_path)
    _measured(run, "sft", {1: "7"})
    path = run / "arms/sft/seed-0/test/episodes.jsonl"
    path.write_text('{"schema": 1, "sample": {"id": "s1"}}\n')
    with pytest.raises(DataError, match=r"episodes\.jsonl of sft/seed-0/test row 1"):
        write_ladder_report(run)


def test_the_ledger_counts_readings_by_split_and_arm_in_their_order(tmp_path: Path) -> None:
    run = _run(tmp_path)
    _measured(run, "sft", {1: "7"})
    _measured(run, "sft", {1: "7"}, seed=1)
    _measured(run, "v-toolrl", {1: "7"}, seed=1)
    with RunFolder(run / "arms/sft/seed-0/rate-0.001/validation") as folder:
        when = "2025-12-31T23:59:59+00:00"
        folder.append("ledger", {"when": when, "split": "validation", "items": 3, "arm": "sft"})
    assert _page(run).table("split arm")[1:] == [
        ["validation", "all arms", "1", "3", "2025-12-31 23:59:59", "2025-12-31 23:59:59"],
        ["", "sft", "1", "3", "2025-12-31 23:59:59", "2025-12-31 23:59:59"],
        ["test", "all arms", "3", "12", "2026-01-01 10:00:00", "2026-01-02 10:00:00"],
        ["", "sft", "2", "8", "2026-01-01 10:00:00", "2026-01-02 10:00:00"],
        ["", "v-toolrl", "1", "4", "2026-01-02 10:00:00", "2026-01-02 10:00:00"],
    ]


def test_the_page_stands_alone_and_hostile_names_stay_text(tmp_path: Path) -> None:
    named = json.dumps(_results()).replace("rl-text", HOSTILE)
    run = _run(tmp_path, json.loads(named))
    _measured(run, "v-toolrl", {1: HOSTILE})
    html = write_ladder_report(run).read_text("utf-8")
    page = Page(html)
    assert "script" not in {tag for tag, _ in page.tags}
    assert HOSTILE in page.words
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert re.match(r"data:image/|#", attributes.get(name) or "#")
    assert not re.search(r"https?:|//[a-z]", re.sub(r'"data:[^"]*"', "", html))
    assert "default-src 'none'" in html


def test_reporting_writes_the_page_and_nothing_else(tmp_path: Path) -> None:
    run = _run(tmp_path)
    _measured(run, "v-toolrl", {1: "7"})
    before = set(run.rglob("*"))
    first = write_ladder_report(run)
    assert first == run / "report.html"
    assert set(run.rglob("*")) - before == {first}
    text = first.read_bytes()
    assert write_ladder_report(run).read_bytes() == text


def test_a_folder_without_a_ladder_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'absent' holds no ladder\.json"):
        write_ladder_report(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    (tmp_path / "ladder.json").write_text("[]")
    with pytest.raises(DataError, match="has no arms"):
        write_ladder_report(tmp_path)


def test_the_page_shows_the_mixtures_that_are_computed() -> None:
    assert tuple(f"{share:g}" for share in statistics.LOOK_SHARES) == tables.LOOK_SHARES


# --- ladders of other strata, with claims of their own --------------------------------------------


def _grounded() -> dict[str, Any]:
    """A small `ladder.json` of boxes in thoughts, with claims."""

    def figures(accuracy: float, f1: float, invalid: float) -> dict[str, Any]:
        return {
            "seeds": 1,
            "samples": {"all": 8, "relations": 4, "counts": 4},
            "by_stratum": {
                "accuracy": {s: _around(accuracy) for s in ("relations", "counts", "all")},
                "f1": {s: _around(f1) for s in ("relations", "counts", "all")},
                "calls": {"all": _around(0.0)},
                "boxes": {"all": [2.5, 2.4, 2.6]},
                "invalid": {"all": _around(invalid, 0.001)},
            },
        }

    def pair(b: str, metric: str, counts: list[float]) -> dict[str, Any]:
        of = {"relations": _around(0.2), "counts": counts, "all": _around(0.15)}
        return {"a": "ours", "b": b, "metric": metric, "by_stratum": of}

    claims = [
        {"arm": None, "above": ["direct"], "metric": "accuracy", "strata": ["relations", "counts"]},
        {"arm": None, "above": ["direct"], "metric": "f1", "strata": ["counts"]},
        {"arm": "ours", "above": [], "metric": "invalid", "strata": ["all"]},
    ]
    bounds = ({"more_than": 0.0}, {"at_least": 0.04}, {"less_than": 0.01})
    arms = {
        name: {"stage": "eval", "settings": {}, "seeds": [0], "training": []}
        for name in ("direct", "ours")
    }
    return {
        "tested": "ours",
        "reference": "direct",
        "claims": [c | b for c, b in zip(claims, bounds, strict=True)],
        "arms": arms,
        "splits": {
            "test": {
                "arms": {"direct": figures(0.5, 0.0, 0.0), "ours": figures(0.8, 0.7, 0.005)},
                "pairs": [
                    pair("direct", "accuracy", [0.01, -0.02, 0.04]),
                    pair("direct", "f1", [0.06, 0.04, 0.08]),
                ],
            }
        },
    }


def test_the_claims_of_a_recipe_are_told_for_each_arm_and_stratum() -> None:
    found = [(s.claim, s.verdict) for s in statements(_grounded(), "test")]
    assert found == [
        ("accuracy of ours above direct, on relations: more than 0 points", "met"),
        (
            "accuracy of ours above direct, on counts: more than 0 points",
            "met by the estimate alone",
        ),
        ("f1 of ours above direct, on counts: at least 4 points", "met"),
        ("invalid of ours, on all: less than 1 %", "met"),
    ]


def test_claims_on_kinds_and_on_checkpoints_are_decided_by_their_own_figures() -> None:
    results = _grounded()
    changed = {"left of": [0.7, 0.6, 0.8], "inside": [0.1, 0.0, 0.2]}
    results["splits"]["test"]["arms"]["ours"]["by_kind"] = {"changed": changed}
    results["arms"]["ours"]["checkpoints"] = [
        {"seed": 0, "step": 50, "items": 200, "accuracy": 0.5, "invalid": 0.002},
        {"seed": 0, "step": 100, "items": 200, "accuracy": 0.5, "invalid": 0.02},
        {"seed": 1, "step": 50, "items": 200, "accuracy": 0.5},  # wrote no boxes
    ]
    of = {"arm": "ours", "above": [], "strata": ["all"]}
    results["claims"] = [
        of | {"metric": "changed", "kinds": ["left of", "inside"], "at_least": 0.5},
        of | {"metric": "invalid", "at_checkpoints": True, "less_than": 0.01},
        of | {"metric": "invalid", "at_checkpoints": True, "less_than": 0.05},
        of | {"arm": "direct", "metric": "invalid", "at_checkpoints": True, "less_than": 0.01},
    ]
    told = statements(results, "test")
    assert [s.verdict for s in told] == ["met", "missed", "missed", "not known", "not known"]
    assert told[0].claim.startswith("changed of ours, of left of")
    assert told[2].claim == (
        "invalid of ours, the largest of 3 validations while it was trained (600 answers to 200 "
        "items), 1 of which have no box: less than 1 %"
    )
    del results["arms"]["ours"]["checkpoints"][2]
    assert [s.verdict for s in statements(results, "test")][2:4] == ["missed", "met"]
    assert [s.found for s in told[2:4]] == ["2.0", "2.0"]
    table = tables.split_tables(results, "test", link="x").controls
    assert table.heads == ("left of", "inside")
    assert [row.name for row in table.rows] == ["ours"]


def test_what_a_control_costs_stands_beside_the_arm_that_it_asks_again() -> None:
    results = _grounded()
    assert tables.split_tables(results, "test", link="x").drops.rows == ()
    results["arms"]["masked"] = results["arms"]["ours"] | {"control_of": "ours"}
    split = results["splits"]["test"]
    right = {
        "right_before": {"counts": [0.8, 0.7, 0.9]},
        "right_after": {"counts": [0.3, 0.2, 0.4]},
    }
    split["arms"]["masked"] = {"by_stratum": right}
    split["pairs"].append(split["pairs"][0] | {"b": "masked"})
    table = tables.split_tables(results, "test", link="x").drops
    [row] = table.rows
    assert row.name == "masked, of ours"
    told = dict(zip(table.heads, (cell.text for cell in row.cells), strict=True))
    assert told["right before it, counts"] == "80.0"
    assert told["right after it, counts"] == "30.0"
    assert told["cost, counts"] == "+1.0"


@pytest.mark.parametrize(
    ("where", "value", "verdict"),
    [
        (("arms", "ours", "by_stratum", "invalid", "all"), [0.02, 0.015, 0.03], "missed"),
        (("arms", "ours", "by_stratum", "invalid", "all"), [0.009, 0.001, 0.01], "estimate"),
        (("arms", "ours", "by_stratum", "invalid", "all"), None, "not known"),
        (("pairs", 1, "by_stratum", "counts"), [0.039, 0.03, 0.05], "missed"),
        (("pairs", 1, "by_stratum", "counts"), "Only one chart has this figure.", "not known"),
        (("pairs", 1, "metric"), "mean_iou", "not known"),
    ],
)
def test_a_claim_without_its_figure_is_not_known_and_one_beyond_its_bound_is_missed(
    where: tuple[Any, ...], value: Any, verdict: str
) -> None:
    results = _grounded()
    *above, last = where
    place: Any = results["splits"]["test"]
    for key in above:
        place = place[key]
    place[last] = value
    told = statements(results, "test")[3 if where[0] == "arms" else 2]
    assert verdict in told.verdict


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ([0.01, -0.02, 0.04], "met"),
        ([-0.01, -0.02, -0.005], "met"),  # a loss for sure, and surely a small one
        ([0.0, -0.03, 0.03], "not decided"),
        ([-0.02, -0.3, 0.25], "not decided"),  # wide intervals show nothing
        ([-0.1, -0.2, -0.02], "not decided"),
        ([-0.1, -0.15, -0.04], "missed"),
        ([0.05, None, None], "not decided"),
    ],
)
def test_nothing_is_lost_only_where_a_loss_of_the_margin_is_ruled_out(
    interval: list[float | None], verdict: str
) -> None:
    """Where width alone met the claim, a true loss of ten points was "met" in 28 of 40 draws."""
    results = _grounded()
    results["claims"] = [
        {"above": ["direct"], "metric": "accuracy", "strata": ["counts"], "not_below": -0.03}
    ]
    results["splits"]["test"]["pairs"][0]["by_stratum"]["counts"] = interval
    [told] = statements(results, "test")
    assert told.claim.endswith(", on counts: surely above -3 points")
    assert told.verdict == verdict


def test_a_ladder_without_claims_and_without_looks_claims_nothing() -> None:
    assert statements(_grounded() | {"claims": []}, "test") == ()


def test_other_strata_are_told_as_they_are_named_and_boxes_beside_them(tmp_path: Path) -> None:
    results = _grounded()
    told = tables.split_tables(results, "test", link="a")
    assert told.reached.heads[2:5] == ("counts (4)", "relations (4)", "all (8)")
    assert told.conduct.heads[0] == "calls"
    assert told.mixtures.rows == ()
    assert [row.name for row in told.boxes.rows] == ["direct", "ours"]
    assert told.boxes.heads[:3] == ("F1, counts", "F1, relations", "F1, all")
    ours = dict(zip(told.boxes.heads, told.boxes.rows[1].cells, strict=True))
    assert (ours["F1, counts"].text, ours["invalid"].text, ours["boxes"].text) == (
        "70.0",
        "0.5",
        "2.50",
    )
    assert ours["mean IoU"].text == ""
    [pair] = told.boxes_pairs.rows
    assert (pair.name, pair.cells[0].text) == ("ours − direct", "+6.0")
    printed = _printed(results)
    assert "relations" in printed
    assert "F1, counts" in printed
    assert "look" not in printed


def test_arms_that_differ_in_their_number_of_items_alone_make_a_curve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks: list[Any] = []

    def drawn(lines: object, **options: Any) -> str:
        ticks.append(options["ticks"])
        return ""

    monkeypatch.setattr(curves, "curve_svg", drawn)
    results = _grounded()
    some = results["splits"]["test"]["arms"]["ours"]
    for items in (20, 500):
        name = f"ours-{items}"
        results["arms"][name] = copy.deepcopy(results["arms"]["ours"])
        results["arms"][name]["settings"] = {"task.train_items": items, "sft.epochs": items}
        results["splits"]["test"]["arms"][name] = copy.deepcopy(some)
    results["arms"]["ours"]["stage"] = results["arms"]["ours-20"]["stage"] = "rl"
    results["arms"]["ours-500"]["stage"] = "rl"
    [group] = item_curves(results)
    assert group.legend == [("ours", "var(--c0)")]
    assert ticks[-1] == {20: "20", 500: "500", 1500: "stream"}
    titles = {(curve.title, curve.unit) for curve in group.curves}
    assert titles == {
        (title, stratum)
        for title in ("Accuracy", "F1 of boxes")
        for stratum in ("counts", "relations", "all")
    }
    assert item_curves(_grounded()) == []
    # what was read counts, not what there was to read; steps and training items are told beside it
    for name, read, steps in (("ours", 320, 100), ("ours-20", 20, 100), ("ours-500", 320, 90)):
        results["arms"][name] |= {"items_read": read, "training": [{"steps": steps}]}
    results["arms"]["ours-20"]["training_items"] = {"accuracy": {"all": [0.9, 0.8, 1.0]}}
    [group] = item_curves(results)
    assert group.legend == [("ours, 90 to 100 steps", "var(--c0)")]
    assert ticks[-1] == {20: "20", 320: "320", 960: "stream: 320"}
    assert {(c.title, c.unit) for c in group.curves} - titles == {
        ("Accuracy on training items", "all")
    }
    results["arms"]["ours-500"]["settings"]["rl.gate"] = "answer"
    results["arms"]["ours-20"]["settings"]["rl.kl_beta"] = 0.5
    assert item_curves(results) == []


def test_the_page_says_on_how_many_labelled_items_weights_were_picked() -> None:
    results = _grounded()
    results["arms"]["ours"] |= {"differs": 'rl.keep: "best"', "picked_on": 200}
    rows = tables.split_tables(results, "test", link="a").reached.rows
    assert rows[1].note == ('rl.keep: "best"; weights picked on 200 labelled items of validation')
    assert rows[0].note == ""
