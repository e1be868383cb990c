"""The things that lie beside a character, drawn on the ground line at y = 119."""

from collections.abc import Callable, Mapping

from storydiffusion.storyworld.canvas import Canvas, curve, ellipse, outline, polygon, polyline, rounded
from storydiffusion.storyworld.palette import INK, PAPER


def draw_object(canvas: Canvas, name: str, x: float, ground: float) -> None:
    """Draw `name` about the vertical line `x`, at most 12 pixels to either side, standing on `ground`."""
    _OBJECTS[name](canvas, x, ground)


def _nothing(canvas: Canvas, x: float, ground: float) -> None:
    del canvas, x, ground


def _ball(canvas: Canvas, x: float, ground: float) -> None:
    y = ground - 9
    ball = ellipse(x, y, 10.5, 10.5)
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
