"""Agreement of a story's images with each other and with their prompts, by the attributes that a classifier reads.

A reading holds the attributes of one image, attribute → value. An attribute that does not exist in the image (the color
of a hat that the character does not wear) is absent from the reading. In StoryWorld's second edition, an attribute has
a label for each character: kind_1, kind_2.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations, product

from storydiffusion.storyworld.scene import split_label

Reading = Mapping[str, str]


def pair_agreement(readings: Sequence[Reading], attribute: str, reach: int | None = None) -> float | None:
    """Return the share of image pairs that agree in `attribute`, in [0, 1]; None without a pair that counts.

    P images make P (P − 1) / 2 pairs. A pair counts where both images have the attribute. `reach` keeps only pairs at
    most that many places apart: 1 keeps neighbors.
    """
    values = [(place, reading[attribute]) for place, reading in enumerate(readings) if attribute in reading]
    pairs = [(a, b) for (i, a), (j, b) in combinations(values, 2) if reach is None or j - i <= reach]
    return sum(a == b for a, b in pairs) / len(pairs) if pairs else None


def consistency(readings: Sequence[Reading], attributes: Collection[str], reach: int | None = None) -> float:
    """Return pair agreement averaged over those `attributes` that have a pair that counts, with equal weights.

    Raises:
        ValueError: no attribute has such a pair.
    """
    shares = [share for name in attributes if (share := pair_agreement(readings, name, reach)) is not None]
    if not shares:
        raise ValueError(f"{len(readings)} readings have no pair that counts in any of {sorted(attributes)}")
    return sum(shares) / len(shares)


def consistency_between(first: Sequence[Reading], second: Sequence[Reading], attributes: Collection[str]) -> float:
    """Return the share of agreeing pairs of an image of one story and one of another, averaged over `attributes`.

    Pairs count, and attributes are averaged, as in `consistency`.

    Raises:
        ValueError: no attribute has such a pair.
    """
    shares = []
    for name in attributes:
        values = [[reading[name] for reading in readings if name in reading] for readings in (first, second)]
        if pairs := [a == b for a, b in product(*values)]:
            shares.append(sum(pairs) / len(pairs))
    if not shares:
        raise ValueError(f"{len(first)} and {len(second)} readings have no pair that counts in {sorted(attributes)}")
    return sum(shares) / len(shares)


def alignment(
    readings: Sequence[Reading], prompted: Sequence[Mapping[str, str]], attributes: Collection[str]
) -> float | None:
    """Return the share of prompted values that are read again, in [0, 1], over all images, characters and `attributes`.

    Args:
        prompted: what the prompt of each image names, label → value.

    Returns:
        None where no prompt names any of `attributes`.
    """
    right = [
        reading.get(label) == value
        for reading, expected in zip(readings, prompted, strict=True)
        for label, value in expected.items()
        if split_label(label)[0] in attributes
    ]
    return sum(right) / len(right) if right else None


def named_alignment(
    readings: Sequence[Reading], prompted: Sequence[Mapping[str, str]], excluded: Collection[str]
) -> float | None:
    """Return the alignment of all attributes that prompts name, except `excluded`."""
    named = {split_label(label)[0] for expected in prompted for label in expected}
    return alignment(readings, prompted, named - set(excluded))


def early_end(reading: Reading, start: Mapping[str, str], end: Mapping[str, str]) -> float | None:
    """Return the share of the attributes in which two images differ that a reading has as in the second, in [0, 1].

    None where the images differ in no attribute.
    """
    different = [name for name in start.keys() & end.keys() if start[name] != end[name]]
    return sum(reading.get(name) == end[name] for name in different) / len(different) if different else None
