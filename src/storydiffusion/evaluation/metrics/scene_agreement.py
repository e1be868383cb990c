"""Agreement of single images with what their prompts name: parts of the attire, moods, sides, and two characters.

Readings and prompts are label → value, of either edition of StoryWorld; characters have the same numbers in both. Every
function takes one reading and one prompt per image, and returns a share in [0, 1], or None where no prompt names the
thing.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from storydiffusion.evaluation.metrics.attribute_agreement import Reading, alignment
from storydiffusion.storyworld.scene import split_label
from storydiffusion.storyworld.truth import LOOKS

Prompted = Mapping[str, str]
TOLERANCE = 24  # of 255


def value_alignment(readings: Sequence[Reading], named: Sequence[Prompted], attribute: str, value: str) -> float | None:
    """Return the share of those places where prompts name this value of an attribute and images show it."""
    asked = [{label: each for label, each in one.items() if each == value} for one in named]
    return alignment(readings, asked, (attribute,))


def hat_alignment(readings: Sequence[Reading], named: Sequence[Prompted]) -> float | None:
    """Return the share of named hats, without "no hat", whose shape and color are both right."""
    right = [
        all(reading.get(part) == one[part] for part in (label, label.replace("hat", "hat_color")))
        for reading, one in zip(readings, named, strict=True)
        for label, value in one.items()
        if split_label(label)[0] == "hat" and value != "none"
    ]
    return _share(right)


def pair_alignment(readings: Sequence[Reading], named: Sequence[Prompted], attributes: Sequence[str]) -> float | None:
    """Return the share of images of two characters that show both, each with its named values of all `attributes`.

    Images count whose prompts name all `attributes` of both.
    """
    right = []
    for reading, one in _pairs(readings, named):
        labels = [f"{name}_{slot}" for name in attributes for slot in (1, 2)]
        if all(label in one for label in labels):
            right.append(reading["characters"] == "2" and all(reading.get(each) == one[each] for each in labels))
    return _share(right)


def looks_kept_apart(readings: Sequence[Reading], named: Sequence[Prompted]) -> float | None:
    """Return the share of images of two characters in which no named look of one is shown by the other.

    The value v that the prompt names of one passes to the other if the other shows v, and either the prompt names
    another value for that one, or it names none and the first does not show v. Looks are all but the kind: tone, hair
    and attire. Images count whose prompts name a look that could pass.
    """
    right = []
    for reading, one in _pairs(readings, named):
        given = [(name, own, 3 - own) for name in LOOKS[1:] for own in (1, 2) if f"{name}_{own}" in one]
        could = [each for each in given if one[f"{each[0]}_{each[1]}"] != one.get(f"{each[0]}_{each[2]}")]
        if could:
            right.append(not any(_passes(reading, one, *each) for each in could))
    return _share(right)


def leak(
    readings: Sequence[Reading], casts: Sequence[Sequence[int]], open_looks: Sequence[Sequence[str]] | None = None
) -> float | None:
    """Return the share of the looks of one character that the other shows, in images of both.

    A character's looks are those of the images that show only it, the most frequent value of each; they count where
    the two characters differ. Images count that show two characters.

    Args:
        casts: the characters of each image, from left to right.
        open_looks: for each character, the looks that no prompt names; looks of others count only where they are open
            for the one that would show them, since words alone keep a named look in its place. None: all.
    """
    alone = {character: _read_alone(readings, casts, character) for cast in casts for character in cast}
    shown = []
    for reading, cast in _show_two(readings, casts):
        for slot, (own, other) in enumerate((cast, cast[::-1]), start=1):
            for name, value in alone[other].items():
                differs = alone[own].get(name, value) != value and f"{name}_{slot}" in reading
                if differs and (open_looks is None or name in open_looks[own]):
                    shown.append(reading[f"{name}_{slot}"] == value)
    return _share(shown)


def pairs_shown(readings: Sequence[Reading], casts: Sequence[Sequence[int]]) -> float | None:
    """Return the share of the images of two characters that show two: those that `leak` counts."""
    pairs = sum(len(cast) == 2 for cast in casts)
    return len(_show_two(readings, casts)) / pairs if pairs else None


def _show_two(readings: Sequence[Reading], casts: Sequence[Sequence[int]]) -> list[tuple[Reading, Sequence[int]]]:
    """Return reading and cast of the images of two characters that show two."""
    both = zip(readings, casts, strict=True)
    return [(reading, cast) for reading, cast in both if len(cast) == 2 and reading["characters"] == "2"]


def _read_alone(readings: Sequence[Reading], casts: Sequence[Sequence[int]], character: int) -> dict[str, str]:
    """Return the most frequent value of each look of a character in the images that show only it."""
    single = [reading for reading, cast in zip(readings, casts, strict=True) if tuple(cast) == (character,)]
    found = {name: [reading[f"{name}_1"] for reading in single if f"{name}_1" in reading] for name in LOOKS[1:]}
    return {name: max(values, key=values.count) for name, values in found.items() if values}


def place_agreement(images: Sequence[np.ndarray], places: Sequence[str]) -> float | None:
    """Return the share of pixels that agree in pairs of images of the same place; None without such a pair.

    A pixel agrees where no channel differs by more than TOLERANCE. Characters, who move, keep the value below 1.

    Args:
        images: uint8 (H, W, 3) each, of one size.
    """
    pairs = [(i, j) for i, j in combinations(range(len(places)), 2) if places[i] == places[j]]
    agreeing = [(np.abs(images[i].astype(int) - images[j]).max(-1) <= TOLERANCE).mean() for i, j in pairs]
    return float(np.mean(agreeing)) if agreeing else None


def region_iou(regions: np.ndarray, masks: np.ndarray) -> float:
    """Return the mean over characters of intersection over union of their regions with their masks, in [0, 1].

    Args:
        regions: the number of each cell's character, from 1; 0 for background. (h, w).
        masks: bool (characters, h, w), one of them true somewhere.
    """
    own = [regions == number for number in range(1, len(masks) + 1)]
    shares = [(each & mask).sum() / max((each | mask).sum(), 1) for each, mask in zip(own, masks, strict=True)]
    return float(np.mean(shares))


def _passes(reading: Reading, one: Prompted, name: str, own: int, other: int) -> bool:
    """Return whether the named look of character `own` is shown by the other, which the prompt does not ask for."""
    value = one[f"{name}_{own}"]
    is_asked_otherwise = f"{name}_{other}" in one
    return reading.get(f"{name}_{other}") == value and (is_asked_otherwise or reading.get(f"{name}_{own}") != value)


def _pairs(readings: Sequence[Reading], named: Sequence[Prompted]) -> list[tuple[Reading, Prompted]]:
    """Return the images whose prompts name two characters."""
    return [(reading, one) for reading, one in zip(readings, named, strict=True) if one.get("characters") == "2"]


def _share(right: Sequence[bool]) -> float | None:
    return sum(right) / len(right) if right else None
