"""Whether an answer is right: the published rules, bit for bit with their bugs, and our own two.

Invariant: every function takes (gold, prediction) in this order, never raises on any text, and
takes time about linear in the length of the prediction. `RULES` reproduces what the named upstream
code returns and is for comparison with published numbers; `strict` is for rewards and metrics;
`lenient` shows beside it what formatting cost.
Left out on purpose: judges, and partial credit outside the upstream rules that give it.
"""

from __future__ import annotations

import ast
import re
import string
import threading
import unicodedata
import warnings
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple, Protocol

__all__ = ["RULES", "SCORER_VERSION", "Rule", "extract", "judged", "lenient", "strict"]

SCORER_VERSION = 1
"""Stored beside scores, so that runs can be scored again and told apart."""


class Rule(Protocol):
    """A published rule. `year` and `qt` (question type) are read by the ChartQAPro rules alone."""

    def __call__(
        self, gold: str, prediction: str, *, year: str | Sequence[str] = (), qt: str = ""
    ) -> bool | float: ...


# --- published rules ------------------------------------------------------------------------------
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


def _edit_distance(a: str, b: str) -> int:
    """Levenshtein distance, bit-parallel (Myers 1999; Hyyro 2003): len(b) steps on len(a) bits."""
    if not a or not b:
        return max(len(a), len(b))
    places = _places(a)
    full, last = (1 << len(a)) - 1, 1 << (len(a) - 1)
    plus, minus, distance = full, 0, len(a)
    for character in b:
        equal = places.get(character, 0)
        diagonal = (((equal & plus) + plus) ^ plus) | equal | minus
        up = (minus | ~(diagonal | plus)) & full
        down = diagonal & plus
        distance += bool(up & last) - bool(down & last)
        up = (up << 1) | 1
        plus = ((down << 1) | ~(diagonal | up)) & full
        minus = up & diagonal & full
    return distance


def _common_length(a: str, b: str) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyro 2004)."""
    places = _places(a)
    full = (1 << len(a)) - 1
    open_ = full
    for character in b:
        hit = open_ & places.get(character, 0)
        open_ = ((open_ + hit) | (open_ - hit)) & full
    return len(a) - open_.bit_count()


def _places(text: str) -> dict[str, int]:
    """For each character the bits of its places."""
    places: dict[str, int] = {}
    for i, character in enumerate(text):
        places[character] = places.get(character, 0) | 1 << i
    return places


def _anls(gold: str, prediction: str) -> float:
    """1 - edit distance over the longer length, cut to 0 where the distance reaches half."""
    g, p = " ".join(gold.lower().split()), " ".join(prediction.lower().split())
    longer, shorter = max(len(g), len(p)), min(len(g), len(p))
    if not longer:
        return 1.0
    if 2 * (longer - shorter) >= longer:  # the distance is at least the difference of the lengths
        return 0.0
    share = _edit_distance(g, p) / longer
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
    return round(100 * (1 - (total - 2 * _common_length(a, b)) / total))


def openthinkimg_manual(gold: str, prediction: str) -> float:
    """OpenThinkIMG's ChartGemma script, for comparison only: it credits wrong answers in part."""
    if math_verify(f"${gold}$", f"${prediction}$"):
        return 1.0
    if prediction.endswith("%"):
        return float(prediction[:-1].split(".")[0] == gold)
    if "." in prediction:
        return float(prediction.split(".")[0] == gold)
    return _fuzzy_ratio(gold, prediction) / 100


_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
)
_NUMBER_WORDS = {word: value for value, word in enumerate(_ONES.split())}
_TALLY = re.compile(rf"\b(?:[0-9]|1[0-9]|20|{'|'.join(_NUMBER_WORDS)})\b")


def _tally_count(text: str) -> int | None:
    found = _TALLY.search(text.lower())
    if not found:
        return None
    word = found.group()
    return _NUMBER_WORDS[word] if word in _NUMBER_WORDS else int(word)


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


# --- our strict rule ------------------------------------------------------------------------------

_NUMBER_LIMIT = 100
_NUMBER = re.compile(
    r"([+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)"
    r"(?:e[+-]?[0-9]{1,3})?)(%?)"
)


def _exact_number(text: str) -> Fraction | None:
    """The exact value of a number, perhaps with separators, decimals, exponent and percent sign."""
    if len(text) > _NUMBER_LIMIT:
        return None
    found = _NUMBER.fullmatch(text)
    if not found:
        return None
    value = Fraction(found.group(1).replace(",", ""))
    return value / 100 if found.group(2) else value


def strict(gold: str, prediction: str) -> bool:
    """Whether the two say the same: equal text or exactly equal numbers; no partial credit.

    Text is compared without white space at the ends, runs of white space, case and trailing dots.
    Numbers may have thousands separators, decimals, an exponent or a percent sign: 1,000 == 1000 ==
    1e3, 57 == 57.0, 50% == 0.5. An empty prediction is wrong. Nothing is extracted: pass the final
    answer.
    """
    g, p = " ".join(gold.casefold().split()), " ".join(prediction.casefold().split())
    if not p:
        return False
    if g == p:
        return True
    g, p = g.rstrip(" ."), p.rstrip(" .")
    if p and g == p:
        return True
    g_value, p_value = _exact_number(g), _exact_number(p)
    return g_value is not None and g_value == p_value


# --- the extractor --------------------------------------------------------------------------------

_TEXT_LIMIT = 20_000
_SHORT_WORDS = 12
_CUE = re.compile(
    r"\b(?:answer|(?:correct|best|right)\s{1,3}(?:option|choice))(?:\s{1,3}is|\s{0,3}[:=])[\s:*]{0,5}",
    re.IGNORECASE,
)
_AFTER_ANSWER = re.compile(r"\n|[.;]\s|,?\s(?:because|since)\b")
_CONCLUSION = re.compile(
    r"[,;.]\s{0,3}(?:so|therefore|thus|hence),?\s{1,3}(\S{1,40})$", re.IGNORECASE
)
_LONE_LETTER = re.compile(r"(?:\w{1,30}\s){2}\w{1,30},\s{1,3}\(?([A-Z])\)?\.?$")


def extract(text: str) -> str | None:
    """The final answer in what a model wrote; None where none can be told, which is to be counted.

    Reasoning is dropped first: everything up to the last `</think>`, and an open `<think>` to its
    end. Then the first of these that applies, each taken from its last occurrence:
    1. the inside of `<answer>`, closed or not;
    2. the inside of `\\boxed{...}`;
    3. what follows "answer is", "answer:", "best/correct/right option is", up to the end of the
    sentence;
    4. the one word after a closing "so", "therefore", "thus" or "hence", or a lone
       capital after the last comma;
    5. the whole text, or else its last line, where that has at most 12 words.
    Only the last 20,000 characters are read.
    """
    text = text[-_TEXT_LIMIT:].rpartition("</think>")[2].partition("<think>")[0]
    _, opened, inside = text.rpartition("<answer>")
    if opened:
        return _trimmed(inside.partition("</answer>")[0])
    boxed = _boxed(text)
    if boxed is not None:
        return _trimmed(boxed)
    cues = list(_CUE.finditer(text))
    if cues:
        return _trimmed(_AFTER_ANSWER.split(text[cues[-1].end() :], maxsplit=1)[0])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    ending = _CONCLUSION.search(lines[-1][-200:]) or _LONE_LETTER.search(lines[-1][-200:])
    if ending:
        return _trimmed(ending.group(1))
    for candidate in (" ".join(lines), lines[-1]):
        if len(candidate.split()) <= _SHORT_WORDS:
            return _trimmed(candidate)
    return None


def judged(gold: str, said: str | None) -> str | None:
    """The answer that rewards and evaluation judge. What equals the gold answer as it stands needs
    no extractor; None where there is none.
    """
    return said if said is None or strict(gold, said) else extract(said)


def _boxed(text: str) -> str | None:
    """The inside of the last \\boxed{...} with balanced braces."""
    _, opened, rest = text.rpartition("\\boxed{")
    if not opened:
        return None
    depth = 1
    for i, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if not depth:
            return rest[:i]
    return None


def _trimmed(text: str) -> str | None:
    """Without white space, quotes, emphasis and a trailing dot; None where nothing is left."""
    text = text.strip().strip("*`\"' \n\t")
    if text.endswith(".") and text.count(".") == 1:
        text = text[:-1].rstrip("*`\"' ")
    return text or None


# --- our lenient rule -----------------------------------------------------------------------------

_ANSWER_LIMIT = 400
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS_WORDS = {word: 10 * (i + 2) for i, word in enumerate(_TENS.split())}
_MAGNITUDES = {
    "hundred": 10**2,
    **dict.fromkeys(("k", "thousand"), 10**3),
    **dict.fromkeys(("m", "mn", "million", "millions"), 10**6),
    **dict.fromkeys(("b", "bn", "billion", "billions"), 10**9),
    **dict.fromkeys(("t", "tn", "trillion", "trillions"), 10**12),
}
_UNITS = {
    **dict.fromkeys(("%", "percent", "percentage", "pct"), "%"),
    **dict.fromkeys(("$", "usd", "dollar"), "dollar"),
    **dict.fromkeys(("€", "eur", "euro"), "euro"),
    **dict.fromkeys(("£", "gbp", "pound"), "pound"),
    **dict.fromkeys(("¥", "jpy", "yen"), "yen"),
}
_DIGITS = r"(?:[0-9]{1,3}(?:[, ][0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_WORDED = (
    rf"(?:(?:{'|'.join(_TENS_WORDS)})[- ](?:{'|'.join(_ONES.split()[1:10])})"
    rf"|{'|'.join([*reversed(_ONES.split()), *_TENS_WORDS])})\b"
)
_QUANTITY = re.compile(
    rf"(?<![\w.])(?P<sign>[+-]?) ?(?P<currency>[$€£¥]?) ?"
    rf"(?:(?P<digits>{_DIGITS})(?P<exponent>e[+-]?[0-9]{{1,3}}\b)?|(?P<words>{_WORDED}))"
    rf" ?(?:(?P<magnitude>{'|'.join(_MAGNITUDES)})\b)?"
    r" ?(?P<percent>%)?"
)


class _Quantity(NamedTuple):
    value: Fraction
    magnitude: int
    """1 where no magnitude word stands beside the number."""
    symbol: str
    """The magnitude as written, where it is one letter and might be a unit."""
    units: frozenset[str]


def _plain_text(text: str) -> str:
    """Lower case, one kind of white space and minus, no mathematics delimiters and no quotes."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("\u2212", "-")
    text = " ".join(text.split())
    if len(text) > 1 and text[0] == text[-1] == "$":
        text = text[1:-1]
    return text.replace("\\%", "%").replace("\\{", "{").replace("\\}", "}").strip("*`\"' ")


def _unit(word: str) -> str:
    word = word.strip(".")
    return _UNITS.get(word) or _UNITS.get(word.removesuffix("s")) or word.removesuffix("s")


def _read(found: re.Match[str], rest: str) -> _Quantity:
    """The quantity of a match, with its unit among the words that follow."""
    words = found.group("words")
    if words:
        value = Fraction(sum({**_NUMBER_WORDS, **_TENS_WORDS}[w] for w in re.split("[- ]", words)))
    else:
        digits = found.group("digits").replace(",", "").replace(" ", "")
        value = Fraction(digits + (found.group("exponent") or ""))
    magnitude = found.group("magnitude") or ""
    units = {_unit(w) for w in (found.group("currency"), found.group("percent")) if w}
    units |= {_unit(w) for w in re.findall(r"[^\W\d_]+", rest)}
    return _Quantity(
        -value if found.group("sign") == "-" else value,
        _MAGNITUDES.get(magnitude, 1),
        magnitude if len(magnitude) == 1 else "",
        frozenset(units),
    )


def _whole_quantity(text: str) -> _Quantity | None:
    """A text that is a number with at most three words of unit, and nothing else."""
    found = _QUANTITY.match(text)
    if not found:
        return None
    rest = text[found.end() :].strip(" .")
    if not re.fullmatch(r"(?:[^\W\d_]+\.?(?: |$)){0,3}", rest):
        return None
    return _read(found, rest)


def _only_quantity(text: str) -> _Quantity | None:
    """The quantity of a sentence that names just one; without unit, as any word may follow it."""
    found = list(_QUANTITY.finditer(text))
    if len(found) != 1 or any(
        c.isdigit() for c in text[: found[0].start()] + text[found[0].end() :]
    ):
        return None
    return _read(found[0], "")


def _values(of: _Quantity, *, beside: _Quantity) -> set[Fraction]:
    """What a number may mean: a magnitude or percent missing on the other side may be implied."""
    values = {of.value * of.magnitude}
    if of.magnitude != 1 and beside.magnitude == 1:
        values.add(of.value)
    if "%" in of.units and "%" not in beside.units:
        values |= {v / 100 for v in values}
    return values


def _quantities_agree(gold: _Quantity, answer: _Quantity, *, year: bool) -> bool:
    g_units, a_units = gold.units, answer.units
    if gold.magnitude != answer.magnitude and 1 in (gold.magnitude, answer.magnitude):
        # "5 m" may be metres: beside a unit it has to fit that unit
        g_units |= {gold.symbol} - {""} if a_units else set()
        a_units |= {answer.symbol} - {""} if g_units else set()
    if g_units and a_units and not (g_units <= a_units or a_units <= g_units):
        return False
    pairs = [(g, a) for g in _values(gold, beside=answer) for a in _values(answer, beside=gold)]
    if year:
        return any(g == a for g, a in pairs)
    return any(20 * abs(a - g) <= abs(g) for g, a in pairs)


def _items(text: str) -> list[str] | None:
    """The items of a list in brackets or braces, or with commas, semicolons or "and" between."""
    bracketed = re.fullmatch(r"[\[{](.*)[\]}]", text)
    if bracketed:
        parts = re.split(r"[,;]", bracketed.group(1))
    else:
        parts = re.split(r"[,;] (?:and )?| and ", text)
        if len(parts) < 2:
            return None
    return [part.strip("\"' ") for part in parts]


def _texts_agree(gold: str, answer: str) -> bool:
    if gold in ("yes", "no"):
        other = "no" if gold == "yes" else "yes"
        opening = re.match(r"(yes|no)(?:[,.;:!]|$)", answer)
        return bool(opening) and answer.startswith(gold) and other not in re.findall(r"\w+", answer)
    if len(gold) == 1 and gold in string.ascii_lowercase:
        option = re.match(r"\(([a-z])\)|([a-z])[).:](?= |$)|([a-z])$", answer)
        return option is not None and gold in option.groups()
    return bool(gold) and gold.replace(".", "") == answer.replace(".", "")


def _items_agree(gold: str, answer: str, *, year: bool) -> bool:
    g = _whole_quantity(gold)
    if g is None:
        return _texts_agree(gold, answer)
    a = _whole_quantity(answer) or _only_quantity(answer)
    return a is not None and _quantities_agree(g, a, year=year)


def _lists_agree(golds: Sequence[str], answers: Sequence[str], *, year: bool) -> bool:
    """Whether the items pair up in any order: augmenting paths, as one item may fit several."""
    if len(golds) != len(answers):
        return False
    fits = [[_items_agree(g, a, year=year) for a in answers] for g in golds]
    partner: dict[int, int] = {}

    def place(row: int, tried: set[int]) -> bool:
        for column, fit in enumerate(fits[row]):
            if fit and column not in tried:
                tried.add(column)
                if column not in partner or place(partner[column], tried):
                    partner[column] = row
                    return True
        return False

    return all(place(row, set()) for row in range(len(golds)))


def lenient(gold: str, prediction: str, *, year: bool = False) -> bool:
    """Whether a patient reader would accept the answer; everything `strict` accepts, and more.

    The prediction goes through `extract` first. Then it may differ from the gold answer by 5%
    (inclusive, exact arithmetic; not where `year` says that the data set asks for a year), by
    separators, a unit, a currency or a percent sign that one side leaves out, by magnitude words
    (1.4 billion, 1.4, 1,400,000,000), number words, dots, quotes, and in lists by order. Units on
    both sides must agree. Nothing is guessed from four digits.
    """
    if strict(gold, prediction):
        return True
    answer = extract(prediction)
    if answer is None or len(answer) > _ANSWER_LIMIT or len(gold) > _ANSWER_LIMIT:
        return False
    if strict(gold, answer):
        return True
    g, a = _plain_text(gold), _plain_text(answer)
    golds, answers = _items(g), _items(a)
    if golds is not None and answers is not None and _lists_agree(golds, answers, year=year):
        return True
    return _items_agree(g, a, year=year)
