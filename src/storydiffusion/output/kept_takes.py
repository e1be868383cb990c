"""The takes of a run folder that outlive an edit: those of panels that stay in their places."""

from collections.abc import Collection
from dataclasses import replace

from storydiffusion.output.manifest import Manifest, TakeRecord


def find_lost_takes(found: Manifest, staying: Collection[int]) -> list[int]:
    """Return the numbers of the panels that have takes and are not among those that stay in their places, from 0."""
    return sorted({take.panel + 1 for take in found.takes if take.number > 0 and take.panel not in staying})


def find_staying_takes(found: Manifest, staying: Collection[int], panels: int) -> tuple[TakeRecord, ...]:
    """Return the takes of the panels that stay, as takes of a story with this number of panels.

    What they read stays too, because a panel's key covers it; of the others they are said to read the first image.
    """
    return tuple(
        replace(take, reads=tuple(take.reads[place] if place in staying else 0 for place in range(panels)))
        for take in found.takes
        if take.panel in staying
    )
