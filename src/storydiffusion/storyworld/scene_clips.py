"""Clips of the second edition: each character of a scene in a motion of its own, moods kept.

One character moves as in the first edition, whose clips give actions, positions and places; two move where they stand.
"""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from storydiffusion.errors import UserError
from storydiffusion.storyworld.canvas import Canvas
from storydiffusion.storyworld.clip_renderer import instants, moving_props, passed_by, render_frames
from storydiffusion.storyworld.clips import CAPTION_ACTION, ClipTruth, FrameTruth, frame_truth, sample_clip
from storydiffusion.storyworld.motions import MOTIONS, ease, stance_at
from storydiffusion.storyworld.poses import STILL_PHASE, Stance
from storydiffusion.storyworld.postures import show_mood
from storydiffusion.storyworld.scene import Figure, Scene, acting_side, sample_scene
from storydiffusion.storyworld.scene_captions import caption_scene
from storydiffusion.storyworld.scene_renderer import (
    draw_figures,
    draw_scene_object,
    figure_boxes,
    scene_object_spot,
)
from storydiffusion.storyworld.truth import LOOKS, Truth

IN_PLACE = ("transition", "jumping", "turning", "sitting", "rising", "waving", "reading")
"""The motions of two characters; each stays where it is."""
SWEEPING = ("crossing", "running", "returning")
"""The motions whose positions are their own."""
CHARACTERS = (1, 1, 2)  # a clip has one of these numbers
RELAXING = 0.12  # of a clip's time, in which arms leave or take the posture of a mood
STAGE = 1.2  # positions in sweeping motions, against the first edition's larger characters


@dataclass(frozen=True)
class SceneClip:
    """One clip: every character leads from its still in `start` to that in `end` by its motion.

    cycles: how often the legs or a waving arm of each swing back and forth. Place and layout are the same at both
    ends, except in "travelling", where the scenery passes by a single character.
    Raises UserError for an unknown motion, other characters at the end, or a second place where there is one.
    """

    start: Scene
    end: Scene
    motions: tuple[str, ...]
    cycles: tuple[int, ...]

    def __post_init__(self) -> None:
        for motion in self.motions:
            if motion not in MOTIONS:
                raise UserError(f"motion is {motion!r}: choose one of {', '.join(MOTIONS)}")
        counts = {len(each) for each in (self.start.characters, self.end.characters, self.motions, self.cycles)}
        if len(counts) > 1 or not self.motions:
            raise UserError("a clip has characters without a motion: give each a start, an end, a motion and cycles")
        pairs = zip(self.start.characters, self.end.characters, strict=True)
        if any(getattr(first, name) != getattr(last, name) for first, last in pairs for name in (*LOOKS, "mood")):
            raise UserError("the characters at the end of a clip are others: give the looks and moods of its start")
        same_place = (self.start.place, self.start.layout) == (self.end.place, self.end.layout)
        if not self.travels and not same_place:
            raise UserError("a clip has two places: give one, or the motion travelling")

    @property
    def motion(self) -> str:
        """Return the motion of a single character, or that there are two."""
        return self.motions[0] if len(self.motions) == 1 else "two characters"

    @property
    def travels(self) -> bool:
        return self.motions == ("travelling",)

    @property
    def arrives(self) -> bool:
        """Return whether the motion is the arrival of an object."""
        return "arriving" in self.motions

    @property
    def direction(self) -> int:
        """Return where a character runs while the scenery passes by, −1 or 1."""
        return self.end.characters[0].facing

    @property
    def objects(self) -> tuple[tuple[str, float], tuple[str, float]]:
        """Return the object and its x at the start and at the end."""
        first, last = ((scene.object, scene_object_spot(scene)) for scene in (self.start, self.end))
        return first, last

    def passed(self, t: float) -> float:
        """Return how much of the way from the first place to the second has passed by, 0 … 1; 0 for a single place."""
        return passed_by(t) if self.travels else 0.0

    def stances(self, t: float) -> list[Stance]:
        """Return the characters' stances at time `t` in [0, 1]: those of the stills at 0 and 1."""
        rows = zip(self.motions, self.start.characters, self.end.characters, self.cycles, strict=True)
        return [_moody_stance(*row, t) for row in rows]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, ready for JSON."""
        return asdict(self) | {"start": self.start.to_dict(), "end": self.end.to_dict()}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "SceneClip":
        """Invert `to_dict`; raise UserError for a missing or unknown field."""
        if wrong := {"start", "end", "motions", "cycles"}.symmetric_difference(record):
            raise UserError(f"a clip's record has the wrong fields; correct {', '.join(sorted(wrong))}")
        start, end = Scene.from_dict(record["start"]), Scene.from_dict(record["end"])
        return cls(start, end, tuple(record["motions"]), tuple(record["cycles"]))


def _moody_stance(motion: str, start: Figure, end: Figure, cycles: int, t: float) -> Stance:
    """Return the stance of a motion in the posture of the character's mood."""
    stance = stance_at(motion, start, end, cycles, t)
    if t <= 0 or t >= 1:
        return stance  # a still shows its mood already
    leaving, entering = 1 - ease(t / RELAXING), ease((t - 1 + RELAXING) / RELAXING)
    standing = leaving * (start.action == "standing") + entering * (end.action == "standing")
    return replace(stance, pose=show_mood(stance.pose, start.mood, standing))


def sample_scene_clip(seed: int, index: int, motion: str | None = None) -> SceneClip:
    """Return clip number `index` of the world `seed`, the same on every machine.

    `motion` fixes the motion of a single character; otherwise it is drawn as in the first edition.
    """
    rng = random.Random(f"storyworld/2/clips/{seed}/{index}")
    count = rng.choice(CHARACTERS)
    if motion is not None or count == 1:
        return _sample_solo(seed, index, motion, rng)
    scene = sample_scene(seed, index, count=count)
    skeletons = [sample_clip(seed, count * index + slot, rng.choice(IN_PLACE)) for slot in range(count)]
    start, end = (
        _arrange(scene, [skeleton.start for skeleton in skeletons]),
        _arrange(scene, [skeleton.end for skeleton in skeletons]),
    )
    return SceneClip(start, end, tuple(each.motion for each in skeletons), tuple(each.cycles for each in skeletons))


def _arrange(scene: Scene, stills: list[Truth]) -> Scene:
    """Return the scene whose characters do, where they are, what the stills show."""
    figures = [_pose(figure, still, figure.x) for figure, still in zip(scene.characters, stills, strict=True)]
    return replace(scene, characters=tuple(replace(each, facing=acting_side(each, len(stills))) for each in figures))


def _sample_solo(seed: int, index: int, motion: str | None, rng: random.Random) -> SceneClip:
    """Dress a clip of the first edition in the looks and the mood of scene `index`."""
    skeleton = sample_clip(seed, index, motion)
    figure = sample_scene(seed, index, count=1).characters[0]
    other = sample_scene(seed, rng.randrange(1 << 30), count=1).characters[0].x
    first, last = _positions(skeleton, figure.x, other)
    inward = skeleton.motion not in (*SWEEPING, "travelling")
    start, end = (_dress(figure, still, x, inward) for still, x in ((skeleton.start, first), (skeleton.end, last)))
    return SceneClip(start, end, (skeleton.motion,), (skeleton.cycles,))


def _dress(figure: Figure, still: Truth, x: float, inward: bool) -> Scene:
    """Return the still with `figure` in the place of its character; `inward` keeps its hands in the frame."""
    posed = _pose(figure, still, x)
    if inward:
        posed = replace(posed, facing=acting_side(posed, 1))
    return Scene(still.place, still.object, still.layout, (posed,))


def _positions(skeleton: ClipTruth, x: float, other: float) -> tuple[float, float]:
    """Return where a motion starts and ends: at x, and elsewhere if it moves the character."""
    if skeleton.motion in SWEEPING:
        return STAGE * skeleton.start.x, STAGE * skeleton.end.x
    return x, x if skeleton.start.x == skeleton.end.x else other


def _pose(figure: Figure, still: Truth, x: float) -> Figure:
    return replace(figure, action=still.action, phase=STILL_PHASE[still.action], facing=still.facing, x=x)


def render_scene_clip(clip: SceneClip, frames: int, size: int = 128) -> np.ndarray:
    """Render the clip, RGB uint8 (frames, size, size, 3); its first and last frames are the stills."""

    def draw(canvas: Canvas, t: float) -> None:
        draw_figures(canvas, clip.start, clip.stances(t))
        for prop in moving_props(clip, t):
            draw_scene_object(canvas, clip.start, prop)

    return render_frames(clip, frames, size, draw)


def render_scene_plates(clip: SceneClip, frames: int, size: int = 128) -> np.ndarray:
    """Render the frames of `render_scene_clip` without the characters and their shadows: place and objects."""

    def draw(canvas: Canvas, t: float) -> None:
        for prop in moving_props(clip, t):
            draw_scene_object(canvas, clip.start, prop)

    return render_frames(clip, frames, size, draw)


def follow_scene_clip(clip: SceneClip, frames: int, size: int = 128) -> tuple[tuple[FrameTruth, ...], ...]:
    """Return the truth of every character, from left to right, in each frame of `render_scene_clip`."""
    truths = []
    for t in instants(frames):
        stances = clip.stances(t)
        place = (clip.start if clip.passed(t) < 0.5 else clip.end).place
        boxes = figure_boxes(clip.start, size, stances)
        truths.append(tuple(frame_truth(t, stance, place, box) for stance, box in zip(stances, boxes, strict=True)))
    return tuple(truths)


def scene_at(clip: SceneClip, t: float) -> Scene:
    """Return the scene that describes the frame at `t`: the nearer still, each character where it is now.

    In the middle of a motion that has a word of its own, that is the action.
    """
    near = clip.start if t < 0.5 else clip.end
    place = clip.start if clip.passed(t) < 0.5 else clip.end
    figures = []
    for figure, motion, stance in zip(near.characters, clip.motions, clip.stances(t), strict=True):
        middle = "running" if clip.travels else CAPTION_ACTION.get(motion)
        action = middle if middle and 0.2 < t < 0.8 else figure.action
        figures.append(replace(figure, action=action, phase=STILL_PHASE[action], x=stance.x))
    return Scene(place.place, near.object, place.layout, tuple(figures))


def caption_scene_clip(clip: SceneClip, seed: int) -> str:
    """Return a random caption of the clip, the same for the same seed, in the words of the stills' captions.

    It names place and object of the end.
    """
    figures = []
    for figure, motion in zip(clip.end.characters, clip.motions, strict=True):
        action = CAPTION_ACTION.get(motion, figure.action)
        figures.append(replace(figure, action=action, phase=STILL_PHASE[action]))
    return caption_scene(replace(clip.end, characters=tuple(figures)), seed)
