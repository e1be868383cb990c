"""Render a scene: the image, and the mask and bounding box of every character."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from storydiffusion.storyworld.canvas import FRAME, Canvas
from storydiffusion.storyworld.character import GROUND, MIDDLE, draw_character, draw_shadow
from storydiffusion.storyworld.objects import Prop, draw_object
from storydiffusion.storyworld.poses import Stance
from storydiffusion.storyworld.renderer import SUPERSAMPLE, mask_box, shrink
from storydiffusion.storyworld.scene import Scene
from storydiffusion.storyworld.scenery import draw_place

SCALES = (0.88, 0.88, 0.7)
"""Size of things against the first edition's where there are 0, 1 or 2 characters."""
OBJECT_GROUND = GROUND + 3.0
OBJECT_DISTANCE = 44.0
HALF_WIDTH = 18.0  # of one of two characters; the object stands where it is free


def render_scene(scene: Scene, size: int = FRAME) -> np.ndarray:
    """Render `scene` as RGB uint8 (size, size, 3). The same scene gives the same pixels."""
    canvas = Canvas(size * SUPERSAMPLE)
    draw_place(canvas, scene.place, scene.layout)
    draw_figures(canvas, scene, [figure.stance() for figure in scene.characters])
    draw_scene_object(canvas, scene, Prop(scene.object, scene_object_spot(scene)))
    return shrink(canvas.pixels()[..., :3])


def draw_figures(canvas: Canvas, scene: Scene, stances: Sequence[Stance]) -> None:
    """Draw the characters in `stances` over an existing place."""
    for stance in stances:
        with scaled(canvas, scene, MIDDLE + stance.x):
            draw_shadow(canvas, stance)
    for figure, stance in zip(scene.characters, stances, strict=True):
        with scaled(canvas, scene, MIDDLE + stance.x):
            draw_character(canvas, figure, stance)


def draw_scene_object(canvas: Canvas, scene: Scene, prop: Prop) -> None:
    """Draw an object in front of the characters."""
    scale = SCALES[len(scene.characters)]
    moved = replace(prop, shift=(prop.shift[0] / scale, prop.shift[1] / scale))  # as far as in the first edition
    with canvas.moved((prop.x, OBJECT_GROUND), scale=(scale, scale)):
        draw_object(canvas, moved, OBJECT_GROUND)


def scene_object_spot(scene: Scene) -> float:
    """Return the x of the object: where the characters leave most space."""
    places = [MIDDLE + figure.x for figure in scene.characters]
    if not places:
        return (34.0, 64.0, 94.0)[scene.layout % 3]
    if len(places) == 1:
        return places[0] + (-OBJECT_DISTANCE if places[0] >= MIDDLE else OBJECT_DISTANCE)
    edges = [0.0, *(edge for x in places for edge in (x - HALF_WIDTH, x + HALF_WIDTH)), float(FRAME)]
    gaps = list(zip(edges[::2], edges[1::2], strict=True))
    left, right = max(gaps, key=lambda gap: gap[1] - gap[0])
    return (left + right) / 2


def figure_masks(scene: Scene, size: int = FRAME, stances: Sequence[Stance] | None = None) -> np.ndarray:
    """Return what is visible of each character with tail, hat, book and sign: bool (characters, size, size).

    The characters are in `stances`, by default those of the still. The object may hide a part of them.
    """
    stances = stances or [figure.stance() for figure in scene.characters]
    masks = np.zeros((len(stances), size, size), bool)
    for number, (figure, stance) in enumerate(zip(scene.characters, stances, strict=True)):
        canvas = Canvas(size * SUPERSAMPLE)
        with scaled(canvas, scene, MIDDLE + stance.x):
            draw_character(canvas, figure, stance)
        mask = shrink(canvas.pixels()[..., 3:])[..., 0] >= 128
        masks[:number] &= ~mask
        masks[number] = mask
    return masks


def figure_boxes(
    scene: Scene, size: int = FRAME, stances: Sequence[Stance] | None = None
) -> tuple[tuple[int, int, int, int], ...]:
    """Return the tight box (x0, y0, x1, y1) of each mask; x1 and y1 are the first column and row outside."""
    return tuple(mask_box(mask) for mask in figure_masks(scene, size, stances))


@contextmanager
def scaled(canvas: Canvas, scene: Scene, x: float) -> Iterator[None]:
    """Draw what stands at `x` in the size of the scene's characters."""
    scale = SCALES[len(scene.characters)]
    with canvas.moved((x, GROUND), scale=(scale, scale)):
        yield
