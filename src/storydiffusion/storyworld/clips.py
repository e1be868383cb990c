"""Clips of StoryWorld: one character in one large motion between two stills; the truth of every frame is known.

A clip is a function of continuous time, so it can be drawn with any number of frames.
"""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from storydiffusion.errors import UserError
from storydiffusion.storyworld.canvas import FRAME, Canvas
from storydiffusion.storyworld.captions import caption
from storydiffusion.storyworld.character import GROUND
from storydiffusion.storyworld.clip_renderer import instants, moving_props, passed_by, render_frames
from storydiffusion.storyworld.motions import MOTIONS, stance_at
from storydiffusion.storyworld.objects import draw_object
from storydiffusion.storyworld.poses import STILL_PHASE, Stance
from storydiffusion.storyworld.renderer import character_box, draw_scene, object_spot
from storydiffusion.storyworld.truth import ATTRIBUTES, LOOKS, MAX_SHIFT, Truth, sample_truth

SHARES: Mapping[str, int] = {motion: 5 if motion in ("transition", "travelling") else 1 for motion in MOTIONS}
"""Relative frequency of each motion; the first two also occur between the panels of stories."""

CAPTION_ACTION: Mapping[str, str] = {
    "crossing": "running",
    "running": "running",
    "returning": "running",
    "jumping": "jumping",
    "waving": "waving",
}
"""The word for a motion in captions; other motions are named by the action in which they end."""


@dataclass(frozen=True)
class FrameTruth:
    """One frame: time t in [0, 1]; x, the character's middle, and lift, how far its feet are above the ground, in
    pixels of 128; facing in [−1, 1]; turn in radians (π shows the back); the place that fills most of the frame; box,
    the character's (x0, y0, x1, y1) in pixels of the frame, x1 and y1 the first column and row outside.
    """

    t: float
    x: float
    lift: float
    facing: float
    turn: float
    place: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class ClipTruth:
    """One clip: `motion` leads from the still `start` to the still `end`, which show one character.

    Both are at one place with one layout, except in "travelling", where the scenery passes by.
    cycles: how often legs or a waving arm swing back and forth.
    Raises UserError for an unknown motion, two characters, or a second place where the motion has one.
    """

    motion: str
    start: Truth
    end: Truth
    cycles: int

    def __post_init__(self) -> None:
        if self.motion not in MOTIONS:
            raise UserError(f"motion is {self.motion!r}: choose one of {', '.join(MOTIONS)}")
        same = LOOKS if self.travels else (*LOOKS, "place", "layout")
        for name in same:
            first, last = getattr(self.start, name), getattr(self.end, name)
            if first != last:
                raise UserError(f"{name} is {first!r} at the start of a clip and {last!r} at its end: give one value")
        if self.cycles < 1:
            raise UserError(f"cycles is {self.cycles}: give 1 or more")

    @property
    def travels(self) -> bool:
        return self.motion == "travelling"

    def stance(self, t: float) -> Stance:
        """Return the character's stance at time `t` in [0, 1]."""
        return stance_at(self.motion, self.start, self.end, self.cycles, t)

    @property
    def direction(self) -> int:
        """Return where the character runs while the scenery passes by, −1 or 1."""
        return self.end.facing

    @property
    def objects(self) -> tuple[tuple[str, float], tuple[str, float]]:
        """Return the object and its x at the start and at the end."""
        return (self.start.object, object_spot(self.start)), (self.end.object, object_spot(self.end))

    @property
    def arrives(self) -> bool:
        """Return whether the motion is the arrival of an object."""
        return self.motion == "arriving"

    def passed(self, t: float) -> float:
        """Return how much of the way from the first place to the second has passed by, 0 … 1; 0 for a single place."""
        return passed_by(t) if self.travels else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "ClipTruth":
        """Invert `to_dict`; raise UserError for a missing or unknown field."""
        if wrong := {"motion", "start", "end", "cycles"}.symmetric_difference(record):
            raise UserError(f"a clip's record has the wrong fields; correct {', '.join(sorted(wrong))}")
        return cls(record["motion"], Truth.from_dict(record["start"]), Truth.from_dict(record["end"]), record["cycles"])


def sample_clip(seed: int, index: int, motion: str | None = None) -> ClipTruth:
    """Return clip number `index` of the world `seed`, the same on every machine; still `index` shows its character.

    `motion` fixes the motion; otherwise it is drawn by `SHARES`.
    """
    rng = random.Random(f"storyworld/clips/{seed}/{index}")
    drawn = rng.choices(list(SHARES), list(SHARES.values()))[0]
    motion = motion or drawn
    if motion not in MOTIONS:
        raise UserError(f"motion is {motion!r}: choose one of {', '.join(MOTIONS)}")
    start = sample_truth(seed, index)
    if motion in ("transition", "travelling"):
        return _sample_passage(motion, start, rng)
    if motion in ("crossing", "running", "returning"):
        return _sample_run(motion, start, rng)
    before = "sitting" if motion == "rising" else "standing"
    after = motion if motion in ("sitting", "reading") else "standing"
    if motion == "arriving":
        before = after = rng.choice(("standing", "waving", "sitting", "reading"))
        start = replace(start, object="none")
    start = with_action(start, before)
    end = with_action(start, after)
    if motion == "arriving":
        end = replace(end, object=rng.choice(ATTRIBUTES["object"][1:]))
    elif motion == "turning":
        end = replace(end, facing=rng.choice((-1, 1)))
    elif motion == "jumping" and rng.random() < 0.5:
        start = replace(start, object="none")
        end = replace(start, x=_any_x(rng))
    return ClipTruth(motion, start, end, rng.choice((1, 2)) if motion == "waving" else 1)


def with_action(truth: Truth, action: str) -> Truth:
    """Return the still of `truth` with another action."""
    return replace(truth, action=action, phase=STILL_PHASE[action])


def _any_x(rng: random.Random) -> float:
    return float(rng.randint(-int(MAX_SHIFT), int(MAX_SHIFT)))


def _sample_run(motion: str, start: Truth, rng: random.Random) -> ClipTruth:
    """Sample a walk or run across the image, without an object in the way."""
    direction, room = start.facing, 22 if motion == "crossing" else 18
    first, last = -direction * float(rng.randint(12, room)), direction * float(rng.randint(12, room))
    start = replace(with_action(start, "standing" if motion == "crossing" else "running"), object="none", x=first)
    end = replace(start, facing=-direction) if motion == "returning" else replace(start, x=last)
    return ClipTruth(motion, start, end, 2)


def _sample_passage(motion: str, start: Truth, rng: random.Random) -> ClipTruth:
    """Sample two stills like two panels of a story: another action, and another place in "travelling"."""
    action = rng.choice([name for name in ATTRIBUTES["action"] if name != start.action])
    end = replace(with_action(start, action), facing=rng.choice((-1, 1)), object=rng.choice(ATTRIBUTES["object"]))
    if motion == "travelling":
        place = rng.choice([name for name in ATTRIBUTES["place"] if name != start.place])
        end = replace(end, place=place, layout=rng.randrange(1 << 30), x=_any_x(rng))
    elif rng.random() < 0.6:
        end = replace(end, x=_any_x(rng))
    elif rng.random() < 0.5:
        end = replace(end, object=start.object)
    return ClipTruth(motion, start, end, 2 if motion == "travelling" or abs(end.x - start.x) > 12 else 1)


def truth_at(clip: ClipTruth, t: float) -> Truth:
    """Return the truth that describes the frame at `t`: the nearer still, at the place and in the action shown then."""
    near = clip.start if t < 0.5 else clip.end
    place = clip.start if clip.passed(t) < 0.5 else clip.end
    action = _action_between(clip) if 0.2 < t < 0.8 else None
    return replace(with_action(near, action or near.action), place=place.place, layout=place.layout)


def _action_between(clip: ClipTruth) -> str | None:
    """Return the action in the middle of a motion; None where each frame resembles the nearer still."""
    if clip.travels:
        return "running"
    if clip.motion == "transition":
        return "standing" if clip.start.x == clip.end.x else "running"
    return CAPTION_ACTION.get(clip.motion)


def caption_clip(clip: ClipTruth, seed: int) -> str:
    """Return a random caption of the clip, the same for the same seed, in the words of the stills' captions.

    It names place and object of the end, and each part of the attire with the stills' probability.
    """
    action = CAPTION_ACTION.get(clip.motion, clip.end.action)
    return caption(replace(clip.end, action=action), seed)


def render_clip(clip: ClipTruth, frames: int, size: int = 128) -> np.ndarray:
    """Render the clip, RGB uint8 (frames, size, size, 3); its first and last frames are the stills."""
    return render_frames(
        clip, frames, size, lambda canvas, t: draw_scene(canvas, clip.start, clip.stance(t), moving_props(clip, t))
    )


def render_plates(clip: ClipTruth, frames: int, size: int = 128) -> np.ndarray:
    """Render the frames of `render_clip` without the character and its shadow: place and objects."""

    def draw(canvas: Canvas, t: float) -> None:
        for prop in moving_props(clip, t):
            draw_object(canvas, prop, GROUND)

    return render_frames(clip, frames, size, draw)


def follow(clip: ClipTruth, frames: int, size: int = 128) -> tuple[FrameTruth, ...]:
    """Return the truth of each frame of `render_clip(clip, frames, size)`."""
    return tuple(_frame_truth(clip, t, size) for t in instants(frames))


def _frame_truth(clip: ClipTruth, t: float, size: int) -> FrameTruth:
    stance = clip.stance(t)
    place = (clip.start if clip.passed(t) < 0.5 else clip.end).place
    return frame_truth(t, stance, place, character_box(clip.start, size, stance))


def frame_truth(t: float, stance: Stance, place: str, box: tuple[int, int, int, int]) -> FrameTruth:
    """Return the truth of one character in a frame at `place`."""
    body = stance.pose
    sole = body.hip - max(ankle[1] for _, _, ankle in body.legs) - body.foot[1]
    return FrameTruth(
        t=t,
        x=FRAME / 2 + stance.x,
        lift=max(0.0, sole + 1),
        facing=stance.facing,
        turn=stance.turn,
        place=place,
        box=box,
    )
