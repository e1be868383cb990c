"""Images with one fault of drawing each: limbs that are missing or too many, hats where none belongs, no face.

No training shows them. A classifier that reads attributes cannot report such faults; measuring it on them says what its
readings of a generated image mean.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from storydiffusion.errors import UserError
from storydiffusion.storyworld.canvas import FRAME, Canvas, ellipse
from storydiffusion.storyworld.character import GROUND, MIDDLE, NECK
from storydiffusion.storyworld.hats import draw_hat
from storydiffusion.storyworld.objects import Prop
from storydiffusion.storyworld.palette import COAT
from storydiffusion.storyworld.poses import TORSO_HEIGHT, Limb, Point, Stance
from storydiffusion.storyworld.renderer import SUPERSAMPLE, shrink
from storydiffusion.storyworld.scene import Figure, Scene
from storydiffusion.storyworld.scene_renderer import (
    draw_figures,
    draw_scene_object,
    scaled,
    scene_object_spot,
)
from storydiffusion.storyworld.scenery import draw_place

HIDDEN: Limb = ((0.0, 2.0), (0.0, 3.0), (0.0, 4.0))
"""A limb so short that the body covers it."""


def render_spoilt(scene: Scene, fault: str, size: int = FRAME) -> np.ndarray:
    """Render `scene` with `fault` at its first character, RGB uint8 (size, size, 3).

    Raises UserError for an unknown fault, or a scene with nobody.
    """
    if fault not in FAULTS:
        raise UserError(f"fault is {fault!r}: choose one of {', '.join(FAULTS)}")
    if not scene.characters:
        raise UserError(f"a scene with nobody cannot have the fault {fault!r}: give one with a character")
    spoil, add = FAULTS[fault]
    stances = [figure.stance() for figure in scene.characters]
    stances[0] = spoil(stances[0])
    canvas = Canvas(size * SUPERSAMPLE)
    draw_place(canvas, scene.place, scene.layout)
    draw_figures(canvas, scene, stances)
    with scaled(canvas, scene, MIDDLE + stances[0].x):
        add(canvas, scene.characters[0], stances[0])
    draw_scene_object(canvas, scene, Prop(scene.object, scene_object_spot(scene)))
    return shrink(canvas.pixels()[..., :3])


def _head(stance: Stance) -> Point:
    """Return the middle of the head."""
    body = stance.pose
    return MIDDLE + stance.x + body.lean + body.head[0], GROUND - body.hip - TORSO_HEIGHT - NECK + body.head[1]


def _as_it_is(stance: Stance) -> Stance:
    return stance


def _without_arm(stance: Stance) -> Stance:
    return replace(stance, pose=replace(stance.pose, arms=(HIDDEN, stance.pose.arms[1])))


def _without_leg(stance: Stance) -> Stance:
    return replace(stance, pose=replace(stance.pose, legs=(HIDDEN, stance.pose.legs[1])))


def _nothing(canvas: Canvas, figure: Figure, stance: Stance) -> None:
    del canvas, figure, stance


def _third_arm(canvas: Canvas, figure: Figure, stance: Stance) -> None:
    body, coat = stance.pose, COAT[figure.kind][figure.tone]
    x, shoulder = MIDDLE + stance.x + body.lean, GROUND - body.hip - TORSO_HEIGHT
    canvas.limb([(x, shoulder + 14), (x + 16, shoulder + 17), (x + 26, shoulder + 27)], coat, 6.5)


def _second_hat(canvas: Canvas, figure: Figure, stance: Stance) -> None:
    """Draw a crown that floats above the head and its hat."""
    x, y = _head(stance)
    draw_hat(canvas, replace(figure, hat="crown", hat_color="purple"), stance, x, y - 22)


def _blank_face(canvas: Canvas, figure: Figure, stance: Stance) -> None:
    x, y = _head(stance)
    canvas.fill(ellipse(x, y + 5, 21, 14), COAT[figure.kind][figure.tone])


FAULTS: Mapping[str, tuple[Callable[[Stance], Stance], Callable[[Canvas, Figure, Stance], None]]] = {
    "missing arm": (_without_arm, _nothing),
    "missing leg": (_without_leg, _nothing),
    "third arm": (_as_it_is, _third_arm),
    "second hat": (_as_it_is, _second_hat),
    "blank face": (_as_it_is, _blank_face),
}
"""Fault → what it changes of the stance, and what it draws over the character."""
