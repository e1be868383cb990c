"""Render a truth: the image, the mask of its character and its bounding box."""

from collections.abc import Sequence

import numpy as np

from storydiffusion.storyworld.canvas import Canvas
from storydiffusion.storyworld.character import GROUND, MIDDLE, draw_character, draw_shadow
from storydiffusion.storyworld.objects import Prop, draw_object
from storydiffusion.storyworld.poses import Stance
from storydiffusion.storyworld.scenery import draw_place
from storydiffusion.storyworld.truth import Truth

SUPERSAMPLE = 2
OBJECT_DISTANCE = 48.0


def render(truth: Truth, size: int = 128) -> np.ndarray:
    """Render `truth` as RGB uint8 (size, size, 3). The same truth gives the same pixels."""
    canvas = Canvas(size * SUPERSAMPLE)
    draw_place(canvas, truth.place, truth.layout)
    draw_scene(canvas, truth, truth.stance(), [Prop(truth.object, object_spot(truth))])
    return shrink(canvas.pixels()[..., :3])


def draw_scene(canvas: Canvas, truth: Truth, stance: Stance, props: Sequence[Prop]) -> None:
    """Draw objects and the character of `truth` in `stance` over an existing place."""
    draw_shadow(canvas, stance)
    for prop in props:
        draw_object(canvas, prop, GROUND)
    draw_character(canvas, truth, stance)


def object_spot(truth: Truth) -> float:
    """Return the x of a still's object: on the side where the character leaves more space."""
    side = -1 if truth.x >= 0 else 1
    return MIDDLE + truth.x + side * OBJECT_DISTANCE


def character_mask(truth: Truth, size: int = 128, stance: Stance | None = None) -> np.ndarray:
    """Return the mask of the character with ears, tail, hat and book, without shadow and object: bool (size, size).

    The character is in `stance`, by default that of the still.
    """
    canvas = Canvas(size * SUPERSAMPLE)
    draw_character(canvas, truth, stance or truth.stance())
    return shrink(canvas.pixels()[..., 3:])[..., 0] >= 128


def character_box(truth: Truth, size: int = 128, stance: Stance | None = None) -> tuple[int, int, int, int]:
    """Return the tight box (x0, y0, x1, y1) of the character's mask; x1 and y1 are the first column and row outside."""
    return mask_box(character_mask(truth, size, stance))


def mask_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the tight box (x0, y0, x1, y1) of a mask; x1 and y1 are the first column and row outside."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def shrink(pixels: np.ndarray) -> np.ndarray:
    """Average every SUPERSAMPLE² block, rounded to the nearest value."""
    quads = [
        pixels[row::SUPERSAMPLE, column::SUPERSAMPLE] for row in range(SUPERSAMPLE) for column in range(SUPERSAMPLE)
    ]
    total = np.zeros(quads[0].shape, np.uint16)
    for quad in quads:
        total += quad
    return ((total + len(quads) // 2) // len(quads)).astype(np.uint8)
