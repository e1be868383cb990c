"""Draw the second edition's faces: each mood has its eyes, brows and mouth.

A face is drawn in two inks: on skin and fur with dark lines and white eyes, on a robot's screen with glowing lines.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from storydiffusion.output.skia_import import skia
from storydiffusion.storyworld.canvas import Canvas, curve, ellipse, outline, polygon
from storydiffusion.storyworld.palette import BLUSH, GLOW, INK, SCREEN, WHITE, Color, blend
from storydiffusion.storyworld.poses import Point

RED: Color = (150, 40, 56)
TONGUE: Color = (244, 118, 128)
GREEN: Color = (122, 178, 84)
TEAR: Color = (108, 190, 248)
STAR: Color = (255, 206, 64)


@dataclass(frozen=True)
class Inks:
    """line: brows, lids and mouths. iris: the dark and white: the light part of an eye. inside: of an open mouth."""

    line: Color
    iris: Color
    white: Color
    inside: Color


@dataclass(frozen=True)
class Expression:
    """eyes and mouth: names of their drawings. brows: height of the inner end above the outer one, None without.

    blush: the color of the cheeks, None without.
    """

    eyes: str
    mouth: str
    brows: float | None = None
    blush: Color | None = BLUSH


SKIN_INKS = Inks(INK, INK, WHITE, RED)
SCREEN_INKS = Inks(GLOW, SCREEN, GLOW, GLOW)

EXPRESSIONS: Mapping[str, Expression] = {
    "neutral": Expression("open", "line"),
    "amusement": Expression("laughing", "laugh"),
    "awe": Expression("wide", "ring", brows=0.0),
    "contentment": Expression("closed", "smile"),
    "excitement": Expression("starry", "grin"),
    "anger": Expression("glaring", "teeth", brows=-5.0, blush=(232, 60, 52)),
    "disgust": Expression("weary", "tongue", brows=-1.5, blush=GREEN),
    "fear": Expression("tiny", "wave", brows=4.0, blush=None),
    "sadness": Expression("tearful", "frown", brows=5.0),
}


def draw_expression(canvas: Canvas, mood: str, eyes: Point, mouth: float, gaze: float) -> None:
    """Draw eyes, cheeks and mouth of `mood`; `eyes` is the middle between the eyes, which look down by `gaze`."""
    face = EXPRESSIONS[mood]
    if face.blush is not None:
        for side in (-1, 1):
            canvas.fill(ellipse(eyes[0] + side * 18.5, eyes[1] + 9, 4.8, 3.3), face.blush, 170)
    _draw_face(canvas, face, SKIN_INKS, eyes, mouth, gaze)


def draw_brows(canvas: Canvas, mood: str, eyes: Point) -> None:
    """Draw the brows of `mood`, which show over a fringe."""
    _draw_brows(canvas, EXPRESSIONS[mood], SKIN_INKS, eyes)


def draw_screen_expression(canvas: Canvas, mood: str, eyes: Point, mouth: float) -> None:
    """Draw the face of `mood` in light on a robot's screen, a little smaller."""
    face, scale = EXPRESSIONS[mood], 0.86
    with canvas.moved(eyes, scale=(scale, scale)):
        _draw_face(canvas, face, SCREEN_INKS, eyes, eyes[1] + (mouth - eyes[1]) / scale - 1, 0)
        _draw_brows(canvas, face, SCREEN_INKS, eyes)


def _draw_face(canvas: Canvas, face: Expression, inks: Inks, eyes: Point, mouth: float, gaze: float) -> None:
    x, y = eyes
    for side in (-1, 1):
        _EYES[face.eyes](canvas, inks, x + side * 10.5, y, side, gaze)
    _MOUTHS[face.mouth](canvas, inks, x, mouth)


def _draw_brows(canvas: Canvas, face: Expression, inks: Inks, eyes: Point) -> None:
    if face.brows is None:
        return
    x, y = eyes
    inner, outer = y - 9 - max(0.0, face.brows), y - 9 + min(0.0, face.brows)
    for side in (-1, 1):
        canvas.line(curve((x + side * 5, inner), (x + side * 16.5, outer)), inks.line, 3)


def _open(canvas: Canvas, inks: Inks, x: float, y: float, side: int, gaze: float) -> None:
    canvas.fill(ellipse(x, y, 5.8, 7.2), inks.white)
    canvas.fill(ellipse(x, y + 0.6 + 0.7 * gaze, 4.7, 6.0 - 0.6 * gaze), inks.iris)
    canvas.disc(x + 1.5, y - 2 + 1.1 * gaze, 2.1, inks.white)


def _laughing(canvas: Canvas, inks: Inks, x: float, y: float, side: int, gaze: float) -> None:
    canvas.line(curve((x - 5.5, y + 3), (x, y - 8, x + 5.5, y + 3)), inks.line, 3)


def _closed(canvas: Canvas, inks: Inks, x: float, y: float, side: int, gaze: float) -> None:
    canvas.line(curve((x - 5.5, y), (x, y + 8, x + 5.5, y)), inks.line, 3)


def _wide(canvas: Canvas, inks: Inks, x: float, y: float, side: int, gaze: float) -> None:
    """Draw an eye wide open, with two large highlights."""
    canvas.fill(ellipse(x, y, 7.4, 8.6), inks.white)
    canvas.fill(ellipse(x, y + 0.4, 6.2, 7.4), inks.iris)
    canvas.disc(x + 1.8, y - 2.6, 2.9, inks.white)
    canvas.disc(x - 2.2, y + 3, 1.8, inks.white)


def _starry(canvas: Canvas, inks: Inks, x: float, y: float, side: int, gaze: float) -> None:
    path = star(x, y, 8.2, 5, 0.48)
    canvas.fill(path, STAR)
    canvas.line(path, inks.iris, 2)


def _glaring(canvas: Canvas, inks: Inks, x: float, y: float, side: int, gaze: float) -> None:
    """Draw an eye whose upper part a slanting lid hides."""
    lid = polygon((x - side * 7, y - 2.2), (x + side * 7, y - 7.5), (x + side * 8, y + 9), (x - side * 8, y + 9))
    with canvas.clipped(lid):
        canvas.fill(ellipse(x, y, 5.8, 7.2), inks.white)
        canvas.fill(ellipse(x - side * 1.2, y + 1.4, 3.6, 4.4), inks.iris)


def _weary(canvas: Canvas, inks: Inks, x: float, y: float, side: int, gaze: float) -> None:
    """Draw an eye half shut."""
    with canvas.clipped(polygon((x - 8, y), (x + 8, y), (x + 8, y + 9), (x - 8, y + 9))):
        canvas.fill(ellipse(x, y, 5.8, 6.6), inks.white)
        canvas.fill(ellipse(x + 1.6, y + 1.4, 3.2, 3.8), inks.iris)
    canvas.line(curve((x - 6.3, y), (x + 6.3, y)), inks.line, 2.8)


def _tiny(canvas: Canvas, inks: Inks, x: float, y: float, side: int, gaze: float) -> None:
    """Draw an eye of white around a very small iris."""
    canvas.fill(ellipse(x, y, 6.6, 8), inks.white)
    canvas.line(ellipse(x, y, 6.6, 8), inks.line, 1.6)
    canvas.disc(x, y + 0.5, 2.2, inks.iris)


def _tearful(canvas: Canvas, inks: Inks, x: float, y: float, side: int, gaze: float) -> None:
    """Draw an eye that looks down and sheds a tear."""
    _open(canvas, inks, x, y, side, 1.4)
    out = x + side * 3
    drop = outline((out, y + 4), (out + 6.2, y + 13, out + 4.4, y + 18, out, y + 18),
                   (out - 4.4, y + 18, out - 6.2, y + 13, out, y + 4))  # fmt: skip
    canvas.fill(drop, TEAR)
    canvas.line(drop, blend(TEAR, INK, 0.45), 1.6)


def _line(canvas: Canvas, inks: Inks, x: float, y: float) -> None:
    canvas.line(curve((x - 4.5, y + 1), (x, y + 3, x + 4.5, y + 1)), inks.line, 2.4)


def _smile(canvas: Canvas, inks: Inks, x: float, y: float) -> None:
    canvas.line(curve((x - 7, y - 0.5), (x, y + 8, x + 7, y - 0.5)), inks.line, 2.6)


def _frown(canvas: Canvas, inks: Inks, x: float, y: float) -> None:
    canvas.line(curve((x - 6, y + 5.5), (x, y - 3, x + 6, y + 5.5)), inks.line, 2.6)


def _laugh(canvas: Canvas, inks: Inks, x: float, y: float) -> None:
    path = outline((x - 9, y - 1.5), (x + 9, y - 1.5), (x + 7.5, y + 11, x - 7.5, y + 11, x - 9, y - 1.5))
    _gaping(canvas, inks, path, x, y + 8.5)


def _grin(canvas: Canvas, inks: Inks, x: float, y: float) -> None:
    path = outline(
        (x - 7.5, y - 0.5), (x, y + 2.5, x + 7.5, y - 0.5), (x + 6, y + 9.5, x - 6, y + 9.5, x - 7.5, y - 0.5)
    )
    _gaping(canvas, inks, path, x, y + 8.5)


def _gaping(canvas: Canvas, inks: Inks, path: skia.Path, x: float, y: float) -> None:
    canvas.fill(path, inks.inside)
    if inks.inside != inks.line:
        with canvas.clipped(path):
            canvas.fill(ellipse(x, y, 5, 3.4), TONGUE)
    canvas.line(path, inks.line, 2.2)


def _ring(canvas: Canvas, inks: Inks, x: float, y: float) -> None:
    canvas.shape(ellipse(x, y + 3.8, 3.4, 4.4), inks.inside, 0)
    canvas.line(ellipse(x, y + 3.8, 3.4, 4.4), inks.line, 2.2)


def _teeth(canvas: Canvas, inks: Inks, x: float, y: float) -> None:
    """Draw a downturned mouth with clenched teeth."""
    path = outline((x - 7.5, y + 7), (x - 6, y - 2, x + 6, y - 2, x + 7.5, y + 7), (x, y + 3.5, x - 7.5, y + 7))
    canvas.fill(path, WHITE if inks.line == INK else inks.iris)
    canvas.line(path, inks.line, 2.4)
    canvas.line(curve((x, y + 0.5), (x, y + 4.5)), inks.line, 1.8)


def _tongue(canvas: Canvas, inks: Inks, x: float, y: float) -> None:
    """Draw a crooked mouth with the tongue out."""
    canvas.line(curve((x - 7, y + 4), (x - 3, y - 2, x + 1, y + 2), (x + 4, y + 5, x + 7, y + 1)), inks.line, 2.4)
    tongue = outline((x - 1.5, y + 2), (x + 5.5, y + 3), (x + 6.5, y + 11, x - 2, y + 11, x - 1.5, y + 2))
    canvas.fill(tongue, TONGUE)
    canvas.line(tongue, inks.line, 1.8)


def _wave(canvas: Canvas, inks: Inks, x: float, y: float) -> None:
    """Draw a trembling mouth."""
    wave = [(x - 7.5 + 5 * k + 2.5, y + (5.5 if k % 2 else -0.5), x - 2.5 + 5 * k, y + 2.5) for k in range(3)]
    canvas.line(curve((x - 7.5, y + 2.5), *wave), inks.line, 2.6)


_EYES: Mapping[str, Callable[[Canvas, Inks, float, float, int, float], None]] = {
    "open": _open,
    "laughing": _laughing,
    "wide": _wide,
    "closed": _closed,
    "starry": _starry,
    "glaring": _glaring,
    "weary": _weary,
    "tiny": _tiny,
    "tearful": _tearful,
}
_MOUTHS: Mapping[str, Callable[[Canvas, Inks, float, float], None]] = {
    "line": _line,
    "laugh": _laugh,
    "ring": _ring,
    "smile": _smile,
    "grin": _grin,
    "teeth": _teeth,
    "tongue": _tongue,
    "wave": _wave,
    "frown": _frown,
}


def star(x: float, y: float, radius: float, points: int, depth: float) -> skia.Path:
    """Return a star of `points` points whose inner corners are at `depth` · radius."""
    corners = []
    for k in range(2 * points):
        angle, reach = math.pi * (k / points - 0.5), radius * (depth if k % 2 else 1)
        corners.append((x + reach * math.cos(angle), y + reach * math.sin(angle)))
    return polygon(*corners)
