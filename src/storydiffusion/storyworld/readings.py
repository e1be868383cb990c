"""Fit what the attribute classifier reads in an image to what the image's prompt states, in either edition.

Attributes that the image lacks, such as the color of a missing hat, are left out. Where two characters are
prompted, nothing but words says which of those in the image is which.
"""

from collections.abc import Mapping

from storydiffusion.storyworld.scene import MOST_CHARACTERS, existing_labels, split_label


def fit_reading(reading: Mapping[str, str], stated: Mapping[str, str]) -> dict[str, str]:
    """Return the attributes of an image of the first edition, without the color of a hat that it does not show."""
    del stated  # there is one character
    return {name: value for name, value in reading.items() if name != "hat_color" or reading["hat"] != "none"}


def fit_scene_reading(reading: Mapping[str, str], stated: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of an image with its characters numbered as in `stated`.

    Of both orders that one is taken which has more of the stated kinds right, then more of all that is stated of the
    characters but their sides, then that from left to right.
    """
    found = existing_labels(reading)
    return max((found, _swap(found)), key=lambda order: _count_right(order, stated))  # max takes the first of equals


def _swap(reading: Mapping[str, str]) -> dict[str, str]:
    """Return the labels with the characters in the other order."""
    swapped = {}
    for label, value in reading.items():
        attribute, slot = split_label(label)
        swapped[f"{attribute}_{MOST_CHARACTERS + 1 - slot}" if slot else label] = value
    return swapped


def _count_right(reading: Mapping[str, str], stated: Mapping[str, str]) -> tuple[int, int]:
    """Return how many stated kinds are right, and how many attributes of characters without sides."""
    right = [split_label(label)[0] for label, value in stated.items() if reading.get(label) == value]
    return right.count("kind"), len(right) - right.count("side")
