"""The published rules of right answers, bit for bit, with their bugs.

Invariant: every rule takes (gold, prediction) in this order and returns what the named upstream
code returns. For comparison with published numbers, never for rewards.
"""

from __future__ import annotations

import ast
import re
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from saccade.distances import common_length, edit_distance
from saccade.rewards.quantities import NUMBER_WORDS

__all__ = ["RULES", "Rule"]


class Rule(Protocol):
    """A published rule. `year` and `qt` (question type) are read by the ChartQAPro rules alone."""

    def __call__(
        self, gold: str, prediction: str, *, year: str | Sequence[str] = (), qt: str = ""
    ) -> bool | float: ...


# Sources and commits: answer_vectors.json, "rules". Written from the description in the scoring
# reference.

TOLERANCE = 0.05


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _chartqa_float(text: str) -> float | None:
    if not text.endswith("%"):
        return _float(text)
    value = _float(text.rstrip("%"))
    return None if value is None else value / 100.0


def chartqa_relaxed_nostrip(gold: str, prediction: str) -> bool:
    """ChartQA relaxed accuracy (pix2struct, lmms-eval): 5% in floats, else equal lower case."""
    p, g = _chartqa_float(prediction), _chartqa_float(gold)
    if p is not None and g:  # a gold of 0 is compared as text
        return abs(p - g) / abs(g) <= TOLERANCE
    return prediction.lower() == gold.lower()


def chartqa_relaxed(gold: str, prediction: str) -> bool:
    """ChartQA relaxed accuracy as VLMEvalKit has it: the prediction is stripped first."""
    return chartqa_relaxed_nostrip(gold, prediction.strip())


def _anls(gold: str, prediction: str) -> float:
    """1 - edit distance over the longer length, cut to 0 where the distance reaches half."""
    g, p = " ".join(gold.lower().split()), " ".join(prediction.lower().split())
    longer, shorter = max(len(g), len(p)), min(len(g), len(p))
    if not longer:
        return 1.0
    if 2 * (longer - shorter) >= longer:  # the distance is at least the difference of the lengths
        return 0.0
    share = edit_distance(g, p) / longer
    return 1.0 - share if share < 0.5 else 0.0


_warnings_lock = threading.Lock()
_LITERAL_LIMIT = 20_000


def _literal(text: str) -> object:
    """The Python literal that the text is; None where it is none."""
    if "[" not in text or len(text) > _LITERAL_LIMIT:
        return None
    # the compiler warns about odd escapes in what a model wrote; the filter is global, hence the
    # lock
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return None


def _literal_list(text: str) -> list[str]:
    """The items of a Python list literal; the text alone where it is none or an empty one."""
    value = _literal(text)
    items = [str(item).strip(" '") for item in value] if isinstance(value, list) else []
    return items or [text]


def _quoted_list(text: str) -> str:
    """A gold such as [a, b] with its items quoted, where that makes it a list literal."""
    inside = re.match(r"^\[(.*)\]$", text.strip())
    if not inside:
        return text
    quoted = re.sub(r"(?<!['\w])(\w[^,]*?)(?!['\w])", r"'\1'", inside.group(1))
    value = _literal(f"[{quoted}]")
    return text if value is None else str(value)


def _chartqapro_item(gold: str, prediction: str) -> float:
    g, p = gold.strip().strip("%").strip(), prediction.strip().strip("%").strip()
    g_value, p_value = _float(g), _float(p)
    if g_value is None or p_value is None:
        return _anls(g, p)
    if g_value == 0.0:
        return float(p_value == 0.0)
    return float(abs(p_value - g_value) / abs(g_value) <= TOLERANCE)


def _chartqapro(gold: str, prediction: str, flags: Sequence[str], *, always_exact: bool) -> float:
    golds, answers = _literal_list(_quoted_list(gold)), _literal_list(prediction)
    flags = list(flags) * len(golds) if len(flags) < len(golds) else list(flags)
    scores = []
    for i, (g, p) in enumerate(zip(golds, answers, strict=False)):
        if always_exact or (i < len(flags) and flags[i].upper() == "YES"):
            scores.append(float(g.strip().lower() == p.strip().lower()))
        else:
            scores.append(_chartqapro_item(g, p))
    return sum(scores) / max(len(golds), len(answers))


def _flags(year: str | Sequence[str], qt: str) -> Sequence[str]:
    flags = [year] if isinstance(year, str) else list(year)
    return flags[-1:] if qt == "Conversational" else flags


def chartqapro_official(
    gold: str, prediction: str, *, year: str | Sequence[str] = (), qt: str = ""
) -> float:
    """ChartQAPro's own script; its exactness of Fact Checking and Multi Choice is never used."""
    g, p = gold.strip(".").strip("\n"), prediction.strip(".").strip("\n")
    return _chartqapro(g, p, _flags(year, qt), always_exact=False)


def chartqapro_lmms(
    gold: str, prediction: str, *, year: str | Sequence[str] = (), qt: str = ""
) -> float:
    """ChartQAPro in lmms-eval: Fact Checking and Multi Choice exact, white space off first."""
    g, p = gold.strip().strip(".").strip("\n"), prediction.strip().strip(".").strip("\n")
    exact = qt in ("Fact Checking", "Multi Choice")
    return _chartqapro(g, p, _flags(year, qt), always_exact=exact)


_MATH_LIMIT = 4_000
_MATH_SECONDS = 5


def math_verify(gold: str, prediction: str) -> bool:
    """Math-Verify's verify(parse(gold), parse(prediction)), symbolic and without tolerance.

    Its deadline of 5 s works by signals, which only the main thread may set; elsewhere it runs
    without one, so keep it out of rewards. Texts above 4,000 characters are read from their end,
    where a final answer stands.
    """
    from math_verify import parse, verify

    in_main = threading.current_thread() is threading.main_thread()
    seconds = _MATH_SECONDS if in_main else None
    parsed = [parse(text[-_MATH_LIMIT:], parsing_timeout=seconds) for text in (gold, prediction)]
    return bool(verify(parsed[0], parsed[1], timeout_seconds=seconds))


_FUZZY_LIMIT = 20_000


def _fuzzy_ratio(a: str, b: str) -> int:
    """Similarity by insertions and deletions in whole percent, as `thefuzz.ratio`."""
    a, b = a[:_FUZZY_LIMIT], b[:_FUZZY_LIMIT]
    total = len(a) + len(b)
    if not total:
        return 100
    return round(100 * (1 - (total - 2 * common_length(a, b)) / total))


def openthinkimg_manual(gold: str, prediction: str) -> float:
    """OpenThinkIMG's ChartGemma script, for comparison only: it credits wrong answers in part."""
    if math_verify(f"${gold}$", f"${prediction}$"):
        return 1.0
    if prediction.endswith("%"):
        return float(prediction[:-1].split(".")[0] == gold)
    if "." in prediction:
        return float(prediction.split(".")[0] == gold)
    return _fuzzy_ratio(gold, prediction) / 100


_TALLY = re.compile(rf"\b(?:[0-9]|1[0-9]|20|{'|'.join(NUMBER_WORDS)})\b")


def _tally_count(text: str) -> int | None:
    found = _TALLY.search(text.lower())
    if not found:
        return None
    word = found.group()
    return NUMBER_WORDS[word] if word in NUMBER_WORDS else int(word)


def tallyqa(gold: str, prediction: str) -> bool:
    """TallyQA (VLMEvalKit): the first number 0 to 20, in digits or words, anywhere in the text."""
    count = _tally_count(prediction)
    return count is not None and count == _tally_count(gold)


_YESNO_MARKS = ';/[]"{}()=+\\_-><@`,?!'


def _without_punctuation(text: str) -> str:
    """VQA's punctuation step as VLMEvalKit has it; colons and apostrophes stay."""
    number_with_comma = re.search(r"\d,\d", text) is not None
    cleaned = text
    for mark in _YESNO_MARKS:
        beside_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if beside_space or number_with_comma else " ")
    # upstream passes a flag where the count belongs: only the first 32 dots go
    return re.sub(r"\.(?!\d)", "", cleaned, count=32)


def yesno(gold: str, prediction: str) -> bool:
    """Yes/No (VLMEvalKit, VSR): one of the two words occurs and the other does not."""
    words = set(_without_punctuation(prediction.lower()).split())
    said = [word for word in ("Yes", "No") if word.lower() in words]
    return said == [gold]


_VSTAR = [
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^([A-D])\s*[\.)\]]*",
        r"(?:THE\s+)?(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])",
        r"\(([A-D])\)",
        r"([A-D])\s*(?:\.|\)|])",
        r"(?:^|\s)([A-D])(?:\s|$)",
    )
]


def vstar_letter(gold: str, prediction: str) -> bool:
    """V* (lmms-eval): the letter of the first pattern that matches, else the only A to D."""
    text = prediction.strip().upper()
    for pattern in _VSTAR:
        found = pattern.search(text)
        if found:
            return found.group(1).upper() == gold.strip().upper()
    letters = re.findall(r"[A-D]", text)
    return len(letters) == 1 and letters[0] == gold.strip().upper()


_MCQ_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)


def _mcq_letter(prediction: str) -> str:
    text = prediction.strip()
    for prefix in _MCQ_PREFIXES:
        text = text.replace(prefix, "")
    found = re.search(r"[A-E]", text)
    if found:
        return found.group()
    if len(text.split()) > 10:
        return ""
    return next((c for c in "ABCDE" if text.lower() in f"({c})".lower()), "")


def mcq_regex(gold: str, prediction: str) -> bool:
    """Multiple choice (VLMEvalKit; TreeBench, MME-RealWorld): the first capital A to E anywhere."""
    return _mcq_letter(prediction) == gold


def _plain(score: Callable[[str, str], bool | float]) -> Rule:
    def rule(
        gold: str, prediction: str, *, year: str | Sequence[str] = (), qt: str = ""
    ) -> bool | float:
        return score(gold, prediction)

    return rule


RULES: Mapping[str, Rule] = {
    "chartqa_relaxed": _plain(chartqa_relaxed),
    "chartqa_relaxed_nostrip": _plain(chartqa_relaxed_nostrip),
    "chartqapro_official": chartqapro_official,
    "chartqapro_lmms": chartqapro_lmms,
    "openthinkimg_manual": _plain(openthinkimg_manual),
    "math_verify": _plain(math_verify),
    "tallyqa": _plain(tallyqa),
    "yesno": _plain(yesno),
    "vstar_letter": _plain(vstar_letter),
    "mcq_regex": _plain(mcq_regex),
}
"""Published rules by name; graded ones return a float in 0..1, the others a bool."""
