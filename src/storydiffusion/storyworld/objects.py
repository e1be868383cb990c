"""Draw the objects beside a character, on the ground line at y = 119."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from storydiffusion.storyworld.canvas import FRAME, Canvas, curve, ellipse, outline, polygon, polyline, rounded
from storydiffusion.storyworld.palette import INK, PAPER
from storydiffusion.storyworld.poses import Point

BALL_RADIUS = 10.5


@dataclass(frozen=True)
class Prop:
    """An object on the ground about the vertical line `x`, at most 12 pixels to either side.

    shift: offset of a moving object in pixels. turned: clockwise rotation about its middle, in radians.
    size: 0 is absent, 1 full size.
    """

    name: str
    x: float
    shift: Point = (0.0, 0.0)
    turned: float = 0.0
    size: float = 1.0


def draw_object(canvas: Canvas, prop: Prop, ground: float) -> None:
    """Draw `prop` on `ground`."""
    if prop.size <= 0:
        return
    middle = (prop.x, ground - BALL_RADIUS + 1.5)
    with (
        canvas.moved((prop.x, ground), prop.shift, scale=(prop.size, prop.size)),
        canvas.moved(middle, degrees=math.degrees(prop.turned)),
    ):
        _OBJECTS[prop.name](canvas, prop.x, ground)


def entering(name: str, x: float, progress: float) -> Prop:
    """Return `name` on its way to `x`: out of sight at progress 0, in place at 1. Falling progress makes it leave.

    A ball rolls and bounces in from the nearer edge, a balloon floats down, a gift falls, flowers grow.
    """
    if progress >= 1:
        return Prop(name, x)
    progress = max(0.0, progress)
    left, swing = 1 - progress, math.sin(2 * math.pi * progress)
    if name == "ball":
        away = math.copysign(70 * left**1.5, x - FRAME / 2)
        return Prop(name, x, (away, -16 * left * abs(swing)), turned=away / BALL_RADIUS)
    if name == "balloon":
        return Prop(name, x, (6 * left * swing, -120 * left**1.5))
    if name == "gift":
        falling = progress < 0.7
        height = 130 * (1 - (progress / 0.7) ** 2) if falling else 8 * math.sin(math.pi * left / 0.3)
        return Prop(name, x, (0, -height))
    return Prop(name, x, size=progress**0.7 * (1 + 0.6 * left * progress))


def _nothing(canvas: Canvas, x: float, ground: float) -> None:
    del canvas, x, ground


def _ball(canvas: Canvas, x: float, ground: float) -> None:
    y = ground - 9
    ball = ellipse(x, y, BALL_RADIUS, BALL_RADIUS)
    canvas.fill(ball, PAPER)
    with canvas.clipped(ball):
        canvas.fill(polygon((x, y), (x - 14, y - 4), (x - 4, y - 16), (x + 3, y - 14)), (234, 64, 66))
        canvas.fill(polygon((x, y), (x + 16, y - 8), (x + 14, y + 8)), (58, 130, 226))
        canvas.fill(polygon((x, y), (x + 2, y + 16), (x - 16, y + 12)), (250, 206, 60))
    canvas.line(ball, INK, 2.8)


def _balloon(canvas: Canvas, x: float, ground: float) -> None:
    canvas.line(curve((x, 46), (x - 6, 66, x + 6, 90, x, ground - 4)), INK, 2)
    canvas.shape(polygon((x - 4, 48), (x + 4, 48), (x, 42)), (236, 70, 92), 2.4)
    canvas.shape(ellipse(x, 29, 11, 14), (240, 76, 98))
    canvas.fill(ellipse(x - 4, 23, 2.6, 4), (255, 210, 216))


def _flowers(canvas: Canvas, x: float, ground: float) -> None:
    heads = (
        (x - 7, ground - 25, (252, 120, 170)),
        (x + 7, ground - 25, (255, 214, 70)),
        (x, ground - 33, (250, 92, 84)),
    )
    for flower_x, flower_y, _ in heads:
        canvas.line(polyline((x, ground - 10), (flower_x, flower_y)), (50, 140, 66), 3)
    for flower_x, flower_y, petals in heads:
        canvas.shape(ellipse(flower_x, flower_y, 5.4, 5.4), petals, 2.4)
        canvas.disc(flower_x, flower_y, 2.2, PAPER)
    pot = polygon((x - 9, ground - 14), (x + 9, ground - 14), (x + 6.5, ground + 1), (x - 6.5, ground + 1))
    canvas.shape(pot, (208, 120, 76))


def _gift(canvas: Canvas, x: float, ground: float) -> None:
    canvas.shape(rounded(x - 10, ground - 16, x + 10, ground + 1, 2), (90, 196, 206))
    canvas.block(x - 2.5, ground - 15, x + 2.5, ground, (250, 214, 70))
    for side in (-1, 1):
        loop = outline((x, ground - 17), (x + side * 3, ground - 29, x + side * 13, ground - 24, x, ground - 17))
        canvas.shape(loop, (250, 214, 70), 2.4)


_OBJECTS: Mapping[str, Callable[[Canvas, float, float], None]] = {
    "none": _nothing,
    "ball": _ball,
    "balloon": _balloon,
    "flowers": _flowers,
    "gift": _gift,
}
