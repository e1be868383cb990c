"""Motions: a character's stance at every instant of a clip, between the stills at its start and end.

Time t runs from 0 to 1. Pure mathematics, no drawing. Every motion passes through stances that are not a blend of its
ends: legs step, a jump leaves the ground, a turn shows the back.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from storydiffusion.storyworld.poses import STILL_PHASE, Book, Limb, Pose, Stance, blend_poses, pose
from storydiffusion.storyworld.scene import Character

TURNING_POINT = 17.0
"""Distance from the middle at which a returning character turns round."""
STANDING = pose("standing", 0.0, 1)


def stance_at(motion: str, start: Character, end: Character, cycles: int, t: float) -> Stance:
    """Return the stance at `t`: exactly that of the still `start` at 0 and of `end` at 1.

    `cycles` is how often legs or a waving arm swing back and forth.
    """
    if t <= 0:
        return start.stance()
    if t >= 1:
        return end.stance()
    return MOTIONS[motion](start, end, cycles, t)


def ease(t: float) -> float:
    """Rise smoothly from 0 to 1 with slope 0 at both; clamp outside."""
    t = min(1.0, max(0.0, t))
    return t * t * (3 - 2 * t)


def _window(t: float, rise: float, fall: float, slope: float) -> float:
    """Return 1 between `rise` and `fall` and 0 outside, with eased flanks of length `slope` inside."""
    return ease((t - rise) / slope) * ease((fall - t) / slope)


def _lerp(a: float, b: float, weight: float) -> float:
    return a + (b - a) * weight


def _gait(phase: float, direction: int, vigour: float = 1.0) -> Pose:
    """Return running at vigour 1, walking below."""
    return blend_poses(STANDING, pose("running", phase % 1, direction), vigour)


def _relaxed(truth: Character, progress: float, time: int) -> Pose:
    """Blend from the still of `truth` at progress 0 to standing at 1.

    `time` is 1 for leaving the still, −1 for entering it with falling progress.
    """
    action, facing, begin = truth.action, truth.facing, STILL_PHASE[truth.action]
    if action == "reading":
        return _reading(progress, facing)
    if action == "jumping":
        body = pose(action, begin + time * 0.5 * min(1.0, progress / 0.7), facing)
        return blend_poses(body, STANDING, ease((progress - 0.7) / 0.3))
    if action == "sitting":
        return blend_poses(pose(action, 1 - progress, facing), STANDING, ease((progress - 0.6) / 0.4))
    moving = 0.5 * progress if action == "running" else 0.0
    return blend_poses(pose(action, (begin + time * moving) % 1, facing), STANDING, ease(progress))


def _reading(progress: float, facing: int) -> Pose:
    """Put the book away: shut, to the side, behind the back."""
    reading = pose("reading", 0.0, facing)
    beside: Limb = ((13, 4), (23, 11), (28, 17))
    behind: Limb = ((13, 4), (20, 13), (7, 19))
    if progress < 0.6:
        shut = ease(progress / 0.6)
        book = Book(x=facing * 27 * shut, top=_lerp(16, 8, shut), opening=1 - ease(progress / 0.45))
        return replace(blend_poses(reading, _reaching(beside, facing), shut), book=book)
    if progress < 0.85:
        hidden = ease((progress - 0.6) / 0.25)
        book = Book(x=facing * _lerp(27, 3, hidden), top=_lerp(8, 5, hidden), opening=0, in_front=False)
        return replace(blend_poses(_reaching(beside, facing), _reaching(behind, facing), hidden), book=book)
    return blend_poses(_reaching(behind, facing), STANDING, ease((progress - 0.85) / 0.15))


def _reaching(arm: Limb, facing: int) -> Pose:
    """Return standing with one arm at `arm`, given for the right side."""
    if facing > 0:
        return replace(STANDING, arms=(STANDING.arms[0], arm))
    (ax, ay), (bx, by), (cx, cy) = arm
    return replace(STANDING, arms=(((-ax, ay), (-bx, by), (-cx, cy)), STANDING.arms[1]))


def _transition(start: Character, end: Character, cycles: int, t: float) -> Stance:
    """Leave one still and enter another, with steps between if the position differs."""
    distance = end.x - start.x
    if distance == 0:
        body = _relaxed(start, 2 * t, 1) if t < 0.5 else _relaxed(end, 2 - 2 * t, -1)
        return Stance(body, start.x, _lerp(start.facing, end.facing, ease(t)))
    body = _relaxed(start, min(1.0, t / 0.36), 1) if t < 0.5 else _relaxed(end, min(1.0, (1 - t) / 0.36), -1)
    walking = _window(t, 0.2, 0.8, 0.16)
    direction = 1 if distance > 0 else -1
    body = blend_poses(body, _gait(cycles * (t - 0.2) / 0.6, direction, 0.85), walking)
    facing = _lerp(start.facing if t < 0.5 else end.facing, direction, walking)
    return Stance(body, start.x + distance * ease((t - 0.22) / 0.56), facing)


def _travelling(start: Character, end: Character, cycles: int, t: float) -> Stance:
    """Run on the spot while the scenery passes by."""
    body = _relaxed(start, min(1.0, t / 0.3), 1) if t < 0.5 else _relaxed(end, min(1.0, (1 - t) / 0.3), -1)
    running = _window(t, 0.12, 0.88, 0.16)
    body = blend_poses(body, _gait(cycles * (t - 0.1) / 0.8, end.facing), running)
    facing = _lerp(start.facing if t < 0.5 else end.facing, end.facing, running)
    return Stance(body, _lerp(start.x, end.x, ease((t - 0.2) / 0.6)), facing)


def _crossing(start: Character, end: Character, cycles: int, t: float) -> Stance:
    """Walk from one side to the other, standing at both ends."""
    body = blend_poses(STANDING, _gait(cycles * t, end.facing, 0.85), _window(t, 0, 1, 0.16))
    return Stance(body, _lerp(start.x, end.x, _glide(t)), end.facing)


def _glide(t: float, slope: float = 0.2) -> float:
    """Rise from 0 to 1 at constant speed except for a soft start and end of length `slope`."""
    if t > 0.5:
        return 1 - _glide(1 - t, slope)
    distance = t - slope / 2 if t > slope else t * t / (2 * slope)
    return distance / (1 - slope)


def _running(start: Character, end: Character, cycles: int, t: float) -> Stance:
    """Run through the image without a stop."""
    body = _gait(STILL_PHASE["running"] + cycles * t, end.facing)
    return Stance(body, _lerp(start.x, end.x, t), end.facing)


def _returning(start: Character, end: Character, cycles: int, t: float) -> Stance:
    """Run to the other side, turn round and run back."""
    out = t < 0.5
    left = abs(2 * t - 1)
    phase = STILL_PHASE["running"] + cycles * (t if out else t - 1)
    running = _gait(phase, start.facing if out else end.facing)
    body = blend_poses(STANDING, running, ease(left / 0.4))
    x = _lerp(start.facing * TURNING_POINT, start.x, 1 - math.cos(math.pi / 2 * left))
    return Stance(body, x, _lerp(start.facing, end.facing, ease((t - 0.42) / 0.16)))


def _jumping(start: Character, end: Character, cycles: int, t: float) -> Stance:
    """Crouch, leap and land."""
    crouch = 0.14
    flight = min(1.0, max(0.0, (t - crouch) / (1 - 2 * crouch)))
    body = blend_poses(STANDING, pose("jumping", flight, start.facing), ease(min(t, 1 - t) / crouch))
    return Stance(body, _lerp(start.x, end.x, ease((t - 0.28) / 0.44)), start.facing)


def _turning(start: Character, end: Character, cycles: int, t: float) -> Stance:
    """Turn once about the vertical: show one side, the back, the other side."""
    arm: Limb = ((13, 4), (21, 10), (26, 17))
    out = _reaching(arm, 1), _reaching(arm, -1)
    spread = replace(STANDING, arms=(out[1].arms[0], out[0].arms[1]), hip=STANDING.hip + abs(math.sin(4 * math.pi * t)))
    body = blend_poses(STANDING, spread, math.sin(math.pi * t))
    facing = _lerp(start.facing, end.facing, ease(t))
    return Stance(body, start.x, facing, turn=start.facing * 2 * math.pi * ease(t))


def _starting(start: Character, end: Character, cycles: int, t: float) -> Stance:
    """Go from standing to the last still: sit down, or take out a book."""
    return Stance(_relaxed(end, 1 - t, -1), end.x, end.facing)


def _stopping(start: Character, end: Character, cycles: int, t: float) -> Stance:
    """Go from the first still to standing: get up."""
    return Stance(_relaxed(start, t, 1), start.x, start.facing)


def _waving(start: Character, end: Character, cycles: int, t: float) -> Stance:
    """Raise an arm, wave and lower it."""
    phase = (STILL_PHASE["waving"] + cycles * (t - 0.2) / 0.6) % 1
    return Stance(blend_poses(STANDING, pose("waving", phase, end.facing), _window(t, 0, 1, 0.25)), end.x, end.facing)


def _watching(start: Character, end: Character, cycles: int, t: float) -> Stance:
    """Continue the action and smile at the arriving object."""
    phase = STILL_PHASE[end.action]
    body = pose(end.action, phase if end.action == "sitting" else (phase + cycles * t) % 1, end.facing)
    return Stance(replace(body, joy=_lerp(body.joy, 0.9, _window(t, 0.1, 0.95, 0.3))), end.x, end.facing)


MOTIONS: Mapping[str, Callable[[Character, Character, int, float], Stance]] = {
    "transition": _transition,
    "travelling": _travelling,
    "crossing": _crossing,
    "running": _running,
    "returning": _returning,
    "jumping": _jumping,
    "turning": _turning,
    "sitting": _starting,
    "rising": _stopping,
    "waving": _waving,
    "reading": _starting,
    "arriving": _watching,
}
