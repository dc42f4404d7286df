"""How far two texts are apart, character by character."""

from __future__ import annotations

__all__ = ["common_length", "edit_distance", "look_alike"]

_ALIKE = (("rn", "m"), ("cl", "d"), ("vv", "w"))
_ALIKE_LETTERS = str.maketrans("01lq9582z", "oiiggsbzz")
"""Readers of print take one for the other; no digit stands for another digit."""


def edit_distance(a: str, b: str) -> int:
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


def common_length(a: str, b: str) -> int:
    """Length of the longest common subsequence, bit-parallel (Hyyro 2004)."""
    places = _places(a)
    full = (1 << len(a)) - 1
    open_ = full
    for character in b:
        hit = open_ & places.get(character, 0)
        open_ = ((open_ + hit) | (open_ - hit)) & full
    return len(a) - open_.bit_count()


def look_alike(a: str, b: str) -> bool:
    """Whether two texts in small letters are the same but for letters and digits that readers of
    print take for each other: `0ld` and `old`, and not `jane` and `june`.
    """
    return _as_seen(a) == _as_seen(b)


def _as_seen(text: str) -> str:
    for several, one in _ALIKE:
        text = text.replace(several, one)
    return text.translate(_ALIKE_LETTERS)


def _places(text: str) -> dict[str, int]:
    """For each character the bits of its places."""
    places: dict[str, int] = {}
    for i, character in enumerate(text):
        places[character] = places.get(character, 0) | 1 << i
    return places
