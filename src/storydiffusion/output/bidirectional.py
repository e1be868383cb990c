"""Visual order of a line in which some letters run from right to left: the Unicode Bidirectional Algorithm (UAX #9).

For one line without explicit formatting characters, which `printable` drops; bracket pairs (rule N0) are neutral.
"""

import unicodedata
from collections.abc import Sequence

RIGHT = ("R", "AL")
NUMBERS = ("EN", "AN")


def is_right_to_left(text: str) -> bool:
    """Return whether a text has a letter that runs from right to left."""
    return any(unicodedata.bidirectional(char) in RIGHT for char in text)


def compute_levels(line: str) -> list[int]:
    """Return the embedding level of each character: odd for right-to-left; the first strong letter sets the base."""
    types = [unicodedata.bidirectional(char) or "L" for char in line]
    base = next((int(each in RIGHT) for each in types if each in ("L", *RIGHT)), 0)
    types = _resolve_neutrals(_resolve_weak(types, base), base)
    levels = [_level(each, base) for each in types]
    for index in range(len(line) - 1, -1, -1):  # rule L1: trailing spaces keep the line's direction
        if not line[index].isspace():
            break
        levels[index] = base
    return levels


def order_runs(levels: Sequence[int]) -> list[int]:
    """Return the indices of runs, given their levels, from left to right (rule L2)."""
    order = list(range(len(levels)))
    for level in range(max(levels, default=0), 0, -1):
        start = 0
        while start < len(order):
            stop = start
            while stop < len(order) and levels[order[stop]] >= level:
                stop += 1
            order[start:stop] = reversed(order[start:stop])
            start = stop + 1
    return order


def _level(kind: str, base: int) -> int:
    """Rules I1 and I2."""
    if kind in NUMBERS:
        return 2
    return base + (1 if (kind == "R") != bool(base) else 0)


def _resolve_weak(types: list[str], base: int) -> list[str]:
    """Rules W1 to W7: marks, numbers and their signs."""
    types = list(types)
    strong = before = "R" if base else "L"
    for index, kind in enumerate(types):
        kind = before if kind == "NSM" else kind
        if kind in ("L", *RIGHT):
            strong = kind
        types[index] = before = "AN" if kind == "EN" and strong == "AL" else kind
    types = ["R" if kind == "AL" else kind for kind in types]
    for index in range(1, len(types) - 1):
        left, kind, right = types[index - 1 : index + 2]
        if left == right and ((kind in ("ES", "CS") and left == "EN") or (kind == "CS" and left == "AN")):
            types[index] = left
    for indices in (range(len(types)), range(len(types) - 1, -1, -1)):
        before = ""
        for index in indices:
            if types[index] == "ET" and before == "EN":
                types[index] = "EN"
            before = types[index]
    strong = "R" if base else "L"
    for index, kind in enumerate(types):
        if kind in ("L", "R"):
            strong = kind
        elif kind == "EN" and strong == "L":
            types[index] = "L"
        elif kind not in NUMBERS:
            types[index] = "ON"
    return types


def _resolve_neutrals(types: list[str], base: int) -> list[str]:
    """Rules N1 and N2: neutrals between letters of one direction take it, others take the line's."""
    types = list(types)
    outside = "R" if base else "L"
    start = 0
    while start < len(types):
        stop = start
        while stop < len(types) and types[stop] == "ON":
            stop += 1
        left = types[start - 1] if start else outside
        right = types[stop] if stop < len(types) else outside
        sides = {"R" if side in NUMBERS else side for side in (left, right)}
        types[start:stop] = [sides.pop() if len(sides) == 1 else outside] * (stop - start)
        start = stop + 1
    return types
