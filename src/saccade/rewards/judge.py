"""Another model says whether an answer is right, where rules can't tell.

Invariant: a judge that can't be reached, sends what is no reply, or says neither yes nor no, gives
None and never 0; what it said once for the same question, right answer, answer, model and wording
is not asked again. It is told the question and the two answers, never the reasoning, the form or
the picture.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saccade.errors import RecipeError
from saccade.rewards.answers import judged, strict
from saccade.rewards.rubric import Reward
from saccade.types import Episode, Sample, Score

__all__ = ["Ask", "judge_reward"]

Ask = Callable[[str], str]
"""Sends one prompt to the judge and returns what it says; raises OSError where it can't."""

LONGEST = 2_000
"""Characters of an answer that a judge is shown."""
MAX_TOKENS = 1_000
"""Of a judge's reply: one that thinks first needs them, others stop after a word."""
PROMPT = """Question: {question}
Right answer: {gold}
Given answer: {said}

Does the given answer mean the same as the right answer? Say yes or no, nothing else."""

_log = logging.getLogger(__name__)


def judge_reward(
    model: str,
    *,
    base_url: str,
    cache: Path | None = None,
    timeout_s: float = 60.0,
    retries: int = 4,
    ask: Ask | None = None,
) -> Reward:
    """A reward `judge`: 1 where the model behind the OpenAI-compatible endpoint accepts the answer,
    0 where it does not or there is none, None where the judge could not say.

    An answer that equals the right one is not asked about. `cache` is a file that keeps what was
    said; None: in memory. `ask` stands in for the endpoint. The key is read from OPENAI_API_KEY.
    """
    said_before = _Said(cache)
    send = ask or _endpoint(model, base_url, timeout_s, retries)

    def judge(episode: Episode, sample: Sample) -> Score:
        said = judged(sample.answer, episode.answer)
        if said is None or strict(sample.answer, said):
            return Score(float(said is not None), detail="by rule")
        prompt = PROMPT.format(question=sample.question, gold=sample.answer, said=said[:LONGEST])
        key = hashlib.sha256(json.dumps([model, prompt]).encode()).hexdigest()
        verdict = said_before.get(key)
        if verdict is None:
            try:
                reply = send(prompt)
            except OSError as error:
                _log.warning("The judge could not be asked: %s", error)
                return Score(None, detail=f"judge not reached: {error}"[:200])
            verdict = _verdict(reply)
            if verdict is None:
                return Score(None, detail=f"judge said {reply[:40]!r}")
            said_before.put(key, verdict)
        return Score(float(verdict), detail="by judge")

    return Reward("judge", judge_reward.__doc__ or "", judge, asks=True)


def _verdict(reply: str) -> bool | None:
    """Yes or no, as the first word and not both, behind what the judge thought about it."""
    said = reply.rpartition("</think>")[2].casefold()
    words = "".join(c if c.isalpha() else " " for c in said).split()
    if not words or words[0] not in ("yes", "no") or {"yes", "no"} <= set(words):
        return None
    return words[0] == "yes"


class _Said:
    """Verdicts by what was asked; may be used from several threads."""

    def __init__(self, file: Path | None) -> None:
        self._lock = threading.Lock()
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        self._table = sqlite3.connect(file or ":memory:", check_same_thread=False)
        try:
            with self._table:
                self._table.execute(
                    "CREATE TABLE IF NOT EXISTS said (key TEXT PRIMARY KEY, yes INT)"
                )
        except sqlite3.DatabaseError as error:
            raise RecipeError(
                f"{file} is no cache of a judge ({error}); move it away or name another file."
            ) from None

    def get(self, key: str) -> bool | None:
        with self._lock:
            row = self._table.execute("SELECT yes FROM said WHERE key = ?", (key,)).fetchone()
        return None if row is None else bool(row[0])

    def put(self, key: str, verdict: bool) -> None:
        with self._lock, self._table:
            self._table.execute("INSERT OR REPLACE INTO said VALUES (?, ?)", (key, int(verdict)))


def _endpoint(model: str, base_url: str, timeout_s: float, retries: int) -> Ask:
    client: Any = None
    lock = threading.Lock()

    def ask(prompt: str) -> str:
        nonlocal client
        from openai import OpenAI, OpenAIError

        with lock:
            if client is None:
                key = os.environ.get("OPENAI_API_KEY", "").strip() or "none"
                client = OpenAI(
                    api_key=key, base_url=base_url, timeout=timeout_s, max_retries=retries
                )
        try:
            reply = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                temperature=0.0,
                max_tokens=MAX_TOKENS,
            )
        # of a body that is no JSON the client raises what the decoder does: ValueError
        # (JSONDecodeError, UnicodeDecodeError) or, of one that is nested too deeply, RecursionError
        except (OpenAIError, ValueError, RecursionError) as error:
            raise OSError(f"{type(error).__name__} at {base_url}") from error
        said = _content(reply)
        if said is None:
            raise OSError(f"a reply without text at {base_url}")
        return said

    return ask


def _content(reply: object) -> str | None:
    """The text of a reply; None where there is none. The client checks nothing: whatever JSON the
    body was, lists and missing parts among them, comes out in its place.
    """
    choices = getattr(reply, "choices", None)
    first = choices[0] if isinstance(choices, list) and choices else None
    content = getattr(getattr(first, "message", None), "content", None)
    return content if isinstance(content, str) else None
