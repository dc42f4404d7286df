"""The same question side by side through the arms of a ladder.

Invariant: items are chosen by a rule that stands on the page and knows no arm by name. What is
shown of a tool's result is what stood before the model, swapped or black as it may have been.

Left out on purpose: scoring (verdicts are those of `rows.jsonl`), and seeds after an arm's first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from saccade.episode_json import episode_from_json
from saccade.errors import DataError, SaccadeError
from saccade.image_store import ImageStore
from saccade.ladder.page.results import LOOK, arm_names, at, is_about_looking, list_of, stored_rows
from saccade.report import number_of
from saccade.types import Episode, ImageShown, Part, Text
from saccade.view import call_text, data_uri, gaze_picture

__all__ = ["Item", "chosen_items"]

_PICTURE_SIDE_PX = 600
_VIEW_SIDE_PX = 160
_SAID_LIMIT = 600


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


class Item(NamedTuple):
    """One question, with a card for every arm."""

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


def chosen_items(run: Path, results: Mapping[str, Any], *, split: str, limit: int) -> list[Item]:
    """Items that need a look and that arms disagree on come first, then other items that need one,
    then the rest, each in the order of the split.
    """
    stored = {
        arm: _answered(run / "arms" / arm / f"seed-{seeds[0]}" / split)
        for arm in arm_names(results)
        if (seeds := list_of(at(results, "arms", arm, "seeds")))
    }
    by_item: dict[str, list[_Answered]] = defaultdict(list)
    for of in stored.values():
        for sample, answered in of.items():
            by_item[sample].append(answered)

    looking = is_about_looking(results, split)

    def place(sample: str) -> tuple[bool, bool, float, str]:
        rows = [answered.row for answered in by_item[sample]]
        verdicts = {row["strict"] for row in rows if isinstance(row.get("strict"), bool)}
        number = number_of(rows[0].get("number"))
        needs_look = not looking or rows[0].get("stratum") == LOOK
        disputed = len(verdicts) > 1
        return (not needs_look, not (needs_look and disputed), number or 0.0, sample)

    wanted = sorted(by_item, key=place)[: max(0, limit)]
    episodes = {arm: dict(_episodes(of, set(wanted))) for arm, of in stored.items()}
    return [_item(sample, results, stored, episodes) for sample in wanted]


def _answered(folder: Path) -> dict[str, _Answered]:
    """The episodes that a measurement stored, by sample."""
    kept = {str(at(row, "sample", "id")) for row in stored_rows(folder, "episodes")}
    rows = stored_rows(folder, "rows") if kept else ()
    return {str(row["id"]): _Answered(folder, row) for row in rows if row.get("id") in kept}


def _episodes(of: Mapping[str, _Answered], wanted: set[str]) -> Iterator[tuple[str, Episode]]:
    folders = {answered.folder for sample, answered in of.items() if sample in wanted}
    for folder in folders:
        for number, row in enumerate(stored_rows(folder, "episodes"), start=1):
            sample = str(at(row, "sample", "id"))
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
) -> Item:
    cards = []
    for arm in arm_names(results):
        differs = str(at(results, "arms", arm, "differs") or "")
        episode = episodes.get(arm, {}).get(sample)
        if episode is None:
            cards.append(_Card(arm, differs, "", "", "", 0, 0, 0, []))
            continue
        cards.append(_card(arm, differs, episode, stored[arm][sample]))
    some = next(of[sample].sample for of in episodes.values() if sample in of)
    return Item(sample, some.kind, some.stratum, some.question, some.answer, cards)


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
