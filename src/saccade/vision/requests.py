"""What a request for things in charts means: a small grammar.

    request    := thing { ("," | "." | ";" | "and" | "or") thing }
    thing      := quoted | { article | adjective } noun [ name ]
    adjective  := [ "light" | "dark" ] colour | superlative | ordinal | Capitalised
    name       := [ "of" | "for" | "called" ... ] ( quoted | number | word { word } )

Invariant: a word that the grammar does not know is refused with what it knows.

Left out on purpose: relations ("the bar left of the red one"; counting "from the left" or "from the
right" is none), plots by their place (`zoom_subplot` has them), and synonyms beyond the plain ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from saccade.errors import ToolError
from saccade.vision.colors import COLOR_NAMES, Shade
from saccade.vision.print_roles import TextRole

__all__ = ["ROLES", "NounName", "Wanted", "known_words", "parse"]

LONGEST_QUERY = 400
MOST_THINGS = 12
"""In one request."""

NounName = Literal[
    "bar", "line", "wedge", "dot", "circle", "square", "rectangle", "triangle", "legend", "plot",
    "text", "title", "tick label", "axis label", "legend entry", "label",
]  # fmt: skip
# fmt: off
_NOUNS: Mapping[NounName, tuple[str, ...]] = {
    "bar": ("bar", "column"),
    "line": ("line", "curve", "line plot"),
    "wedge": ("wedge", "slice", "sector", "pie slice", "pie wedge", "pie sector"),
    "dot": ("dot", "point", "marker", "data point", "scatter point"),
    "circle": ("circle", "disc", "disk"),
    "square": ("square",),
    "rectangle": ("rectangle",),
    "triangle": ("triangle",),
    "legend": ("legend",),
    "plot": ("plot", "subplot", "panel", "axes", "frame", "chart", "graph", "pie", "subfigure"),
    "text": ("text", "word", "print", "number"),
    "title": ("title", "plot title", "chart title", "heading"),
    "tick label": ("tick label", "tick", "axis tick", "axis tick label"),
    "axis label": ("axis label", "axis title", "axis name", "x axis label", "y axis label"),
    "legend entry": ("legend entry", "legend label", "legend item", "legend text"),
    "label": ("label",),
}
ROLES: Mapping[NounName, frozenset[TextRole] | None] = {
    "text": None, "label": None, "title": frozenset({"title"}), "tick label": frozenset({"tick"}),
    "axis label": frozenset({"axis"}), "legend entry": frozenset({"legend"}),
}
"""Nouns that are print, and what it must be for; None: anything."""
_COLORS = {name: name for name in COLOR_NAMES} | {
    "grey": "gray", "violet": "purple", "turquoise": "cyan", "teal": "cyan", "magenta": "pink",
}
_SHADES: Mapping[str, Shade] = {"light": "light", "pale": "light", "dark": "dark", "deep": "dark"}
_SUPERLATIVES: Mapping[str, tuple[str, ...]] = {
    "tallest": ("tallest",),
    "largest": ("largest", "biggest", "longest", "widest", "greatest", "maximum"),
    "smallest": ("shortest", "smallest", "narrowest", "minimum"),
    "highest": ("highest",),
    "lowest": ("lowest",),
    "leftmost": ("leftmost", "left"),
    "rightmost": ("rightmost", "right"),
    "topmost": ("topmost", "top", "upper", "uppermost"),
    "bottommost": ("bottommost", "bottom", "lower", "lowermost"),
}
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth",
             "tenth")
_SKIPPED = frozenset({"the", "a", "an", "all", "every", "each", "any", "this", "that", "colored",
                      "coloured", "printed", "single", "one", "find", "show", "locate", "detect",
                      "mark", "me", "please"})
_LINKS = frozenset({"of", "for", "named", "called", "labelled", "labeled", "titled", "number", "no",
                    "saying", "reading", "says"})
_RELATIONS = frozenset({
    "above", "over", "below", "under", "beside", "next", "near", "between", "by", "behind", "which",
    "whose", "who", "not", "except", "but", "without", "with", "than", "from", "in", "on", "at",
    "to", "middle", "is", "are", "has", "have", "more", "less", "most", "least", "other", "both",
})
"""What would tell things by others, by their place or by what they are not: that is not known, and
must not be read as print.
"""
_LINKED = frozenset({"the", "label", "name", "title", "text", "word"})
"""Words that may stand between a link and a name."""
# fmt: on


class Wanted(NamedTuple):
    """One thing that is asked for."""

    noun: NounName
    color: str | None = None
    shade: Shade | None = None
    superlative: str | None = None
    number: int | None = None
    """Its place in reading order, or among those of a superlative, from 1; -1 is the last."""
    name: str | None = None
    """Print beside it, or its own."""
    words: str = ""
    """As it was asked for."""


class _Token(NamedTuple):
    text: str
    is_quoted: bool

    @property
    def word(self) -> str:
        return "" if self.is_quoted else self.text.lower()


_TOKENS = re.compile(
    r"\"([^\"]*)\"|“([^”]*)”|(?<!\w)'([^']*)'(?!\w)|([\w%$€+\-]+(?:[.,]\d+)*)|([,;.&])"
)
_BREAKS = frozenset({",", ";", ".", "&", "and", "or"})


def parse(request: str) -> list[Wanted]:
    """The things that a request names. Raises ToolError, saying what is known, for others."""
    if len(request) > LONGEST_QUERY:
        raise ToolError(
            f"The request has {len(request)} characters; use at most {LONGEST_QUERY}, "
            "such as 'red bar' or 'tallest bar'."
        )
    clauses = [c for c in _clauses(request) if c]
    if not clauses:
        raise ToolError(f"The request names no thing. {known_words()}")
    if len(clauses) > MOST_THINGS:
        raise ToolError(f"The request names {len(clauses)} things; ask for at most {MOST_THINGS}.")
    found: list[Wanted] = []
    for clause in reversed(clauses):
        # "red and blue bars": the first takes the noun of the one after it
        found.insert(0, _Clause(clause).thing(borrowed=found[0].noun if found else None))
    return found


def _clauses(request: str) -> list[list[_Token]]:
    clauses: list[list[_Token]] = [[]]
    for match in _TOKENS.finditer(request):
        quoted = next((g for g in match.groups()[:3] if g is not None), None)
        token = _Token(match[0] if quoted is None else quoted.strip(), quoted is not None)
        if token.word in _BREAKS:
            clauses.append([])
        else:
            clauses[-1].append(token)
    return clauses


def known_words() -> str:
    """A sentence that says what may be asked for."""
    nouns = ", ".join(words[0] for words in _NOUNS.values())
    return (
        f"Known are the things {nouns}; the colours {', '.join(COLOR_NAMES)}, light or dark; "
        "first, second, last, tallest, shortest, largest, smallest, highest, lowest, leftmost, "
        "rightmost; and print in quotes, as in 'bar of \"Jan\"'."
    )


class _Clause:
    """The grammar of one thing, read from left to right."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        words = [t.word for t in tokens]
        counted = words[-3:-1] == ["from", "the"] and words[-1] in ("left", "right")
        self.tokens = tokens[:-3] if counted else tokens
        self.backwards = counted and words[-1] == "right"
        self.at = 0
        self.wanted = Wanted("text", words=" ".join(t.text for t in tokens))

    def thing(self, *, borrowed: NounName | None) -> Wanted:
        if relation := next((t for t in self.tokens if t.word in _RELATIONS), None):
            raise ToolError(
                f"I can't tell things by {relation.text!r}; print goes into quotes. {known_words()}"
            )
        found = self._thing(borrowed)
        if self.backwards and found.number is not None and found.number > 0:
            return found._replace(number=-found.number)
        return found

    def _thing(self, borrowed: NounName | None) -> Wanted:
        while self.at < len(self.tokens):
            if self._skip(_SKIPPED) or self._adjective():
                continue
            break
        if (noun := self._noun()) is not None:
            self.wanted = self.wanted._replace(noun=noun)
            self._name()
        elif self.wanted.name is None and borrowed is not None and not self._rest():
            self.wanted = self.wanted._replace(noun=borrowed)
        elif not self._only_quoted():
            raise self._unknown()
        if self._rest():
            raise self._unknown()
        return self.wanted

    def _rest(self) -> Sequence[_Token]:
        return self.tokens[self.at :]

    def _unknown(self) -> ToolError:
        what = " ".join(t.text for t in self._rest()) or self.wanted.words
        return ToolError(f"I can't look for {what[:60]!r}. {known_words()}")

    def _skip(self, words: frozenset[str]) -> bool:
        is_one = self.at < len(self.tokens) and self.tokens[self.at].word in words
        # "no" and "one" alone are articles; "number 3" is a name
        self.at += is_one
        return is_one

    def _adjective(self) -> bool:
        """Takes one word that describes; a noun is left for later."""
        token = self.tokens[self.at]
        word = token.word
        if self._is_noun_next():
            return False
        w = self.wanted
        if word in _SHADES and w.shade is None:
            self.wanted = w._replace(shade=_SHADES[word])
        elif (color := _COLORS.get(word)) is not None and w.color is None:
            self.wanted = w._replace(color=color)
        elif (which := _superlative(word)) is not None and w.superlative is None:
            self.wanted = w._replace(superlative=which)
        elif (number := _ordinal(word)) is not None and w.number is None:
            self.wanted = w._replace(number=number)
        elif w.name is None and (token.is_quoted or token.text[:1].isupper()):
            # "Jan bar": capitalised words are names, if a thing follows
            self.wanted = w._replace(name=token.text)
        else:
            return False
        self.at += 1
        return True

    def _is_noun_next(self) -> bool:
        return _noun_at(self.tokens, self.at) is not None

    def _noun(self) -> NounName | None:
        found = _noun_at(self.tokens, self.at)
        if found is None:
            return None
        noun, length = found
        self.at += length
        return noun

    def _name(self) -> None:
        """What follows a noun: its number, or print that belongs to it."""
        rest = self._rest()
        if not rest:
            return
        is_linked = self._skip(_LINKS)
        while is_linked and len(self._rest()) > 1 and self._skip(_LINKED | _LINKS):
            pass
        rest = self._rest()
        if not rest or self.wanted.name is not None:
            return
        bare = [t.word for t in rest]
        if any(_noun_at(rest, n) is not None or w in _COLORS for n, w in enumerate(bare) if w):
            return  # "the highest point of the red line" is a relation, which is not known
        name = " ".join(t.text for t in rest)
        is_place = re.fullmatch(r"#?\d{1,2}", name) and not rest[0].is_quoted
        if is_place and self.wanted.number is None and self.wanted.noun not in ROLES:
            self.wanted = self.wanted._replace(number=int(name.lstrip("#")))
        else:
            self.wanted = self.wanted._replace(name=name)
        self.at = len(self.tokens)

    def _only_quoted(self) -> bool:
        """Whether the clause is nothing but print in quotes."""
        return (
            len(self.tokens) == 1
            and self.tokens[0].is_quoted
            and bool(self.tokens[0].text)
            and self.wanted.name is not None
        )


def _noun_at(tokens: Sequence[_Token], at: int) -> tuple[NounName, int] | None:
    """The noun that begins there and how many words it has, the longest there is."""
    for length in (4, 3, 2, 1):
        words = [t.word for t in tokens[at : at + length]]
        if len(words) == length and all(words):
            phrase = re.sub(r"[-\s]+", " ", " ".join(words))
            for noun, known in _NOUNS.items():
                if phrase in known or _singular(phrase) in known:
                    return noun, length
    return None


def _singular(phrase: str) -> str:
    return phrase[:-1] if phrase.endswith("s") else phrase


def _superlative(word: str) -> str | None:
    return next((key for key, words in _SUPERLATIVES.items() if word in words), None)


def _ordinal(word: str) -> int | None:
    if word == "last":
        return -1
    if word in _ORDINALS:
        return _ORDINALS.index(word) + 1
    match = re.fullmatch(r"(\d{1,2})(?:st|nd|rd|th)", word)
    return int(match[1]) if match else None
