"""Poses: the joints of every action as a function of the phase of its motion.

All lengths are in pixels of the 128×128 frame, y grows downwards. Pure mathematics, no drawing.
"""

import cmath
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

Point = tuple[float, float]
Limb = tuple[Point, Point, Point]

TORSO_HEIGHT = 23.0

STILL_PHASE: Mapping[str, float] = {
    "standing": 0.0,
    "waving": 0.25,
    "sitting": 1.0,
    "jumping": 0.5,
    "running": 0.25,
    "reading": 0.0,
}
"""The most typical phase of an action, used for stills."""


@dataclass(frozen=True)
class Book:
    """A book in the hands, by its middle and top edge relative to the middle of the shoulders.

    opening: 0 is shut, 1 lies open. in_front: held before the body, otherwise beside or behind it.
    """

    x: float = 0.0
    top: float = 16.0
    opening: float = 1.0
    in_front: bool = True


@dataclass(frozen=True)
class Pose:
    """Joints of one instant.

    hip: height of the hip above the ground. lean: shift of the shoulders against the hip.
    head: shift of the head from its place above the shoulders. legs: hip, knee, ankle relative to the hip.
    arms: shoulder, elbow, hand relative to the middle of the shoulders. toes: direction of each foot, −1 to 1.
    arms_in_front: whether the arms are drawn over the shirt.
    foot: the two radii of a foot. joy: 0 is a smile, 1 a wide open mouth. gaze: how far the eyes look down.
    """

    hip: float
    legs: tuple[Limb, Limb]
    arms: tuple[Limb, Limb]
    toes: Point = (-1.0, 1.0)
    foot: Point = (7.5, 5.0)
    lean: float = 0.0
    head: Point = (0.0, 0.0)
    joy: float = 0.0
    gaze: float = 0.0
    book: Book | None = None
    arms_in_front: bool = False


@dataclass(frozen=True)
class Stance:
    """A pose at its place: x is the shift from the middle of the frame in pixels.

    facing: −1 or 1 is the acting side; values between are on the way from one to the other.
    turn: rotation of the body about the vertical in radians; 0 faces the viewer, π faces away.
    """

    pose: Pose
    x: float
    facing: float
    turn: float = 0.0

    @property
    def front(self) -> float:
        """Direction of parts at the front (a peak), −1 left to 1 right; a tail points the other way."""
        if self.turn == 0:
            return self.facing
        return min(1.0, max(-1.0, math.sqrt(2) * math.sin(self._bearing)))

    @property
    def front_is_hidden(self) -> bool:
        """Whether parts at the front are on the far side of the body, and a tail on the near side."""
        return math.cos(self._bearing) < 0

    @property
    def _bearing(self) -> float:
        return self.turn + self.facing * math.pi / 4


def pose(action: str, phase: float, facing: int) -> Pose:
    """Return the joints of `action` at `phase` in [0, 1]; `facing` (−1 or 1) is the acting side.

    Every motion but sitting down is a cycle: phase 0 and 1 are the same instant.
    """
    return _MOTIONS[action](phase, facing)


def blend_poses(a: Pose, b: Pose, weight: float) -> Pose:
    """Blend from `a` at weight 0 to `b` at weight 1; limbs swing about their joints and keep their lengths.

    Arms swing by the outside of the body and legs below it. The book, and whether arms are in
    front, are those of the nearer pose.
    """
    if weight <= 0:
        return a
    if weight >= 1:
        return b
    if a.arms[0][0][0] * b.arms[0][0][0] < 0:  # one pose lists the other side first
        a, b = (a, _swapped(b)) if weight < 0.5 else (_swapped(a), b)
    return Pose(
        hip=_lerp(a.hip, b.hip, weight),
        legs=_swing_pair(a.legs, b.legs, weight, 1j),
        arms=_swing_pair(a.arms, b.arms, weight, None),
        toes=_between(a.toes, b.toes, weight),
        foot=_between(a.foot, b.foot, weight),
        lean=_lerp(a.lean, b.lean, weight),
        head=_between(a.head, b.head, weight),
        joy=_lerp(a.joy, b.joy, weight),
        gaze=_lerp(a.gaze, b.gaze, weight),
        book=a.book if weight < 0.5 else b.book,
        arms_in_front=(a if weight < 0.5 else b).arms_in_front,
    )


def _swapped(body: Pose) -> Pose:
    """Return the same pose with its limbs listed, and so drawn, in the other order."""
    return replace(body, legs=body.legs[::-1], arms=body.arms[::-1], toes=body.toes[::-1])


def _swing_pair(a: tuple[Limb, Limb], b: tuple[Limb, Limb], weight: float, axis: complex | None) -> tuple[Limb, Limb]:
    """Blend two pairs of limbs; `axis` is the direction they swing through, None for each limb's outside."""
    first, second = (
        _swing(one, other, weight, axis or complex(math.copysign(1, one[0][0])))
        for one, other in zip(a, b, strict=True)
    )
    return first, second


def _swing(a: Limb, b: Limb, weight: float, axis: complex) -> Limb:
    joint = complex(*_between(a[0], b[0], weight))
    joints = [joint]
    for i in (1, 2):
        segments = (complex(*limb[i]) - complex(*limb[i - 1]) for limb in (a, b))
        (length, angle), (other_length, other_angle) = (cmath.polar(segment / axis) for segment in segments)
        joint += axis * cmath.rect(_lerp(length, other_length, weight), _lerp(angle, other_angle, weight))
        joints.append(joint)
    first, second, third = ((z.real, z.imag) for z in joints)
    return first, second, third


def _lerp(a: float, b: float, weight: float) -> float:
    return a + (b - a) * weight


def _mix(a: Limb, b: Limb, weight: float) -> Limb:
    (a0, a1, a2), (b0, b1, b2) = a, b
    return _between(a0, b0, weight), _between(a1, b1, weight), _between(a2, b2, weight)


def _between(a: Point, b: Point, weight: float) -> Point:
    return a[0] + (b[0] - a[0]) * weight, a[1] + (b[1] - a[1]) * weight


def mirror(limb: Limb) -> Limb:
    """Return the same limb on the other side."""
    return (-limb[0][0], limb[0][1]), (-limb[1][0], limb[1][1]), (-limb[2][0], limb[2][1])


def _pair(limb: Limb) -> tuple[Limb, Limb]:
    return mirror(limb), limb


def _sway(phase: float) -> float:
    return math.sin(2 * math.pi * phase)


_LEG: Limb = ((7, 0), (8, 10), (8, 17))
_ARM: Limb = ((13, 4), (20, 12), (22, 21))


def _standing(phase: float, facing: int) -> Pose:
    breath = _sway(phase)
    arm = _mix(_ARM, ((13, 4), (21, 12), (24, 20)), 0.5 + 0.5 * breath)
    return Pose(hip=21, legs=_pair(_LEG), arms=_pair(arm), head=(0, -0.8 * breath))


def _waving(phase: float, facing: int) -> Pose:
    angle = math.radians(22 + 20 * _sway(phase))
    raised: Limb = ((12, 4), (27, 3), (27 + 17 * math.sin(angle), 3 - 17 * math.cos(angle)))
    arms = (mirror(_ARM), raised)
    if facing < 0:
        arms = (mirror(raised), _ARM)
    return Pose(hip=21, legs=_pair(_LEG), arms=arms, head=(1.5 * facing * _sway(phase), 0), joy=0.6)


def _sitting(phase: float, facing: int) -> Pose:
    down = phase * phase * (3 - 2 * phase)
    leg = _mix(_LEG, ((8, 3), (17, 4), (25, 3)), down)
    arm = _mix(_ARM, ((13, 4), (23, 12), (21, 20)), down)
    foot = _between((7.5, 5), (6.8, 7.6), down)
    return Pose(hip=21 - 10.5 * down, legs=_pair(leg), arms=_pair(arm), foot=foot)


def _jumping(phase: float, facing: int) -> Pose:
    lift = math.sin(math.pi * phase) ** 2
    leg = _mix(((7, 0), (11, 7), (8, 13)), ((8, 1), (18, 6), (16, 15)), lift)
    arm = _mix(_ARM, ((12, 4), (26, 0), (33, -15)), lift)
    return Pose(hip=17 + 14 * lift, legs=_pair(leg), arms=_pair(arm), joy=lift)


def _running_leg(phase: float, facing: int) -> Limb:
    swing = _sway(phase)
    thigh = math.radians(8 + 46 * swing)
    bend = math.radians(36 - 22 * swing + 12 * (1 + math.cos(2 * math.pi * phase)))
    shin = thigh - bend
    start = (3.0, 0.0)
    knee = (start[0] + 11 * math.sin(thigh), 11 * math.cos(thigh))
    ankle = (knee[0] + 11 * math.sin(shin), knee[1] + 11 * math.cos(shin))
    leg: Limb = (start, knee, ankle)
    return leg if facing > 0 else mirror(leg)


def _running(phase: float, facing: int) -> Pose:
    stride = 0.5 + 0.5 * _sway(phase)
    front = _mix(((12, 4), (16, 14), (17, 22)), ((12, 4), (21, 12), (31, 4)), stride)
    back = _mix(((-12, 4), (-16, 14), (-17, 22)), ((-12, 4), (-23, 10), (-30, 18)), stride)
    arms = (back, front) if facing > 0 else (mirror(back), mirror(front))
    legs = (_running_leg(phase + 0.5, facing), _running_leg(phase, facing))
    bounce = 22 - 1.5 * math.cos(4 * math.pi * phase)
    return Pose(
        hip=bounce, legs=legs, arms=arms, toes=(facing, facing), lean=4.0 * facing, head=(2.0 * facing, 0), joy=1
    )


def _reading(phase: float, facing: int) -> Pose:
    nod = 0.5 + 0.5 * _sway(phase)
    arm: Limb = ((13, 4), (22, 14), (17, 24))
    return Pose(hip=21, legs=_pair(_LEG), arms=_pair(arm), head=(0, 1 + 1.5 * nod), gaze=2.5, book=Book())


_MOTIONS: Mapping[str, Callable[[float, int], Pose]] = {
    "standing": _standing,
    "waving": _waving,
    "sitting": _sitting,
    "jumping": _jumping,
    "running": _running,
    "reading": _reading,
}
