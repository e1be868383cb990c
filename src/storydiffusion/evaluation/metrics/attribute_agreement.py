"""How far the pictures of a story agree with each other, and with what their prompts told.

A reading holds what a classifier read off one picture, attribute → value; an attribute that does not exist in a picture
(the colour of a hat that nobody wears) is not in it.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations

Reading = Mapping[str, str]


def pair_agreement(readings: Sequence[Reading], attribute: str, reach: int | None = None) -> float | None:
    """Share of the pairs of pictures that agree in `attribute`, in [0, 1].

    P pictures make P (P − 1) / 2 pairs; `reach` leaves those at most so many places apart, 1 being neighbours. A pair
    counts where both pictures have the attribute; None where there is no such pair.
    """
    values = [(place, reading[attribute]) for place, reading in enumerate(readings) if attribute in reading]
    pairs = [(a, b) for (i, a), (j, b) in combinations(values, 2) if reach is None or j - i <= reach]
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else None


def consistency(readings: Sequence[Reading], attributes: Collection[str], reach: int | None = None) -> float:
    """Pair agreement averaged over `attributes`, each of the same weight; one without a pair that counts is left out.

    Raises ValueError where none is left.
    """
    shares = [share for name in attributes if (share := pair_agreement(readings, name, reach)) is not None]
    if not shares:
        raise ValueError(f"{len(readings)} readings have no pair that counts in any of {sorted(attributes)}")
    return sum(shares) / len(shares)


def alignment(
    readings: Sequence[Reading], told: Sequence[Mapping[str, str]], attributes: Collection[str]
) -> float | None:
    """Share of what was told that is read again, in [0, 1]: over all pictures and those of `attributes` told of them.

    `told[i]` is what the prompt of picture i tells, attribute → value. None where none of `attributes` is told.
    """
    right = [
        reading.get(name) == wanted[name]
        for reading, wanted in zip(readings, told, strict=True)
        for name in attributes
        if name in wanted
    ]
    return sum(right) / len(right) if right else None
