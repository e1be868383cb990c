"""The full caption of every frame of a clip: what training needs to align an image's tokens with text."""

from collections.abc import Mapping, Sequence
from typing import Any

from storydiffusion.storyworld.edition import get_edition


def describe_frames(record: Mapping[str, Any], indices: Sequence[int]) -> list[str]:
    """Return the full captions of the frames `indices` of a clip, whose record `StoryWorldSource` wrote.

    A frame is described by the nearer still, with the action, place and position that it shows.

    Raises:
        ValueError: the record is not of a StoryWorld clip with these frames.
    """
    try:
        world = get_edition(2 if "motions" in record["clip"] else 1)
        clip, times = world.read_clip(record["clip"]), [_get_time(record["truth"][index]) for index in indices]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError("its record does not describe a StoryWorld clip with these frames") from error
    return [world.full_caption(world.truth_at(clip, t)) for t in times]


def _get_time(truth: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> float:
    """Return the time of a frame, whose truth is one record, or in the second edition one for each character."""
    return float(truth["t"] if isinstance(truth, Mapping) else truth[0]["t"])
