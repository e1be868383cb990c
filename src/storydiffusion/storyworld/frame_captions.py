"""The full caption of every frame of a clip: what training needs to align an image's tokens with text."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from storydiffusion.storyworld.captions import full_caption
from storydiffusion.storyworld.clips import CAPTION_ACTION, ClipTruth

LEAVING, ARRIVING = 0.2, 0.8
"""Until and from these times a frame is captioned by the action of the clip's start and end"""


def describe_frame(clip: ClipTruth, t: float) -> str:
    """Return the full caption of the frame at time `t` in [0, 1]; at 0 and 1 it is that of the stills."""
    near = clip.start if t < 0.5 else clip.end
    place = (clip.start if clip.passed(t) < 0.5 else clip.end).place
    moving = _action_between(clip) if LEAVING < t < ARRIVING else None
    return full_caption(replace(near, place=place, action=moving or near.action))


def describe_frames(record: Mapping[str, Any], indices: Sequence[int]) -> list[str]:
    """Return the full captions of the frames `indices` of a clip, whose record `StoryWorldSource` wrote.

    Raises:
        ValueError: the record is not of a StoryWorld clip with these frames.
    """
    try:
        clip, times = ClipTruth.from_dict(record["clip"]), [float(record["truth"][index]["t"]) for index in indices]
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError("its record does not describe a StoryWorld clip with these frames") from error
    return [describe_frame(clip, t) for t in times]


def _action_between(clip: ClipTruth) -> str | None:
    """Return the word for the middle of the motion; None where each frame resembles the nearer still."""
    if clip.travels:
        return "running"
    if clip.motion == "transition":
        return "standing" if clip.start.x == clip.end.x else "running"
    return CAPTION_ACTION.get(clip.motion)
