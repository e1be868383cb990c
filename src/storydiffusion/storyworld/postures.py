"""Postures: how a mood shows in the body. Pure mathematics, no drawing."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from storydiffusion.storyworld.poses import Limb, Point, Pose, blend_poses, mirror


@dataclass(frozen=True)
class Posture:
    """A mood's posture: `arm` is the right arm of a standing character and `in_front` draws both over the shirt.

    head: further shift of the head in every action.
    """

    arm: Limb
    in_front: bool = False
    head: Point = (0.0, 0.0)


POSTURES: Mapping[str, Posture] = {
    "amusement": Posture(((13, 4), (21, 12), (8, 13)), in_front=True, head=(0, -1)),
    "awe": Posture(((13, 4), (22, 11), (29, 4)), head=(0, -1)),
    "contentment": Posture(((13, 4), (20, 13), (6, 17)), in_front=True),
    "excitement": Posture(((12, 4), (24, 5), (29, -6)), head=(0, -1.5)),
    "anger": Posture(((13, 4), (25, 11), (16, 18)), head=(0, 1.5)),
    "disgust": Posture(((13, 4), (20, 12), (28, 13)), head=(0, 1)),
    "fear": Posture(((13, 4), (19, 13), (5, 8)), in_front=True, head=(0, 2)),
    "sadness": Posture(((13, 4), (16, 14), (15, 23)), head=(0, 3)),
}
"""Mood → posture; a neutral character stands as the action does."""


def show_mood(body: Pose, mood: str, standing: float) -> Pose:
    """Return `body` in the posture of `mood`; `standing` in [0, 1] is how much of the arms' posture shows."""
    if mood not in POSTURES:
        return body
    posture = POSTURES[mood]
    arms = mirror(posture.arm), posture.arm
    held = replace(body, arms=arms if body.arms[0][0][0] < 0 else arms[::-1], arms_in_front=posture.in_front)
    body = blend_poses(body, held, standing)
    return replace(body, head=(body.head[0] + posture.head[0], body.head[1] + posture.head[1]))
