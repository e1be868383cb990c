"""Draw the small signs that float beside a head and show its mood: steam, sparkles, a heart, sweat."""

import math
from collections.abc import Callable, Mapping

from storydiffusion.storyworld.canvas import Canvas, curve, ellipse, outline
from storydiffusion.storyworld.expressions import GREEN, STAR, TEAR, star
from storydiffusion.storyworld.palette import INK, WHITE, Color, blend
from storydiffusion.storyworld.poses import Stance

HEART: Color = (248, 96, 132)


def draw_sign(canvas: Canvas, mood: str, stance: Stance, x: float, y: float) -> None:
    """Draw the sign of `mood` beside a head centered at (x, y); it shrinks as the head turns away."""
    ahead = math.cos(stance.turn)
    if mood in _SIGNS and ahead > 0:
        with canvas.moved((x, y), scale=(ahead, ahead)):
            _SIGNS[mood](canvas, x, y)


def _laughter(canvas: Canvas, x: float, y: float) -> None:
    """Draw two strokes beside each cheek."""
    for side in (-1, 1):
        for low, high in ((4, 0), (13, 15)):
            stroke = curve((x + side * 29.5, y + low), (x + side * 36, y + high))
            canvas.line(stroke, INK, 5)
            canvas.line(stroke, STAR, 2.4)


def _sparkles(canvas: Canvas, x: float, y: float) -> None:
    for dx, dy, radius in ((-32, -14, 6.6), (33, -6, 5.6), (31, -25, 4.5)):
        canvas.shape(star(x + dx, y + dy, radius, 4, 0.36), (255, 250, 200), 1.8)


def _heart(canvas: Canvas, x: float, y: float) -> None:
    for dx, dy, size in ((31, -19, 1.0), (-32, -13, 0.65)):
        hx, hy = x + dx, y + dy
        heart = outline(
            (hx, hy + 7 * size),
            (hx - 11 * size, hy, hx - 8 * size, hy - 8 * size, hx, hy - 2.5 * size),
            (hx + 8 * size, hy - 8 * size, hx + 11 * size, hy, hx, hy + 7 * size),
        )
        canvas.shape(heart, HEART, 2)


def _rays(canvas: Canvas, x: float, y: float) -> None:
    """Draw rays at both sides of the head."""
    for side in (-1, 1):
        for degrees in (-14, 6, 26):
            angle = math.radians(degrees)
            dx, dy = side * math.cos(angle), -math.sin(angle)
            ray = curve((x + 30.5 * dx, y + 30.5 * dy), (x + 36 * dx, y + 36 * dy))
            canvas.line(ray, INK, 5.4)
            canvas.line(ray, STAR, 2.8)


def _steam(canvas: Canvas, x: float, y: float) -> None:
    """Draw a puff of steam at both ears."""
    for side in (-1, 1):
        puffs = [(28, -9, 4.2), (32.5, -14, 4.6), (30.5, -20, 3.6)]
        for dx, dy, radius in puffs:
            canvas.line(ellipse(x + side * dx, y + dy, radius, radius), INK, 3)
        for dx, dy, radius in puffs:
            canvas.disc(x + side * dx, y + dy, radius, WHITE)


def _stench(canvas: Canvas, x: float, y: float) -> None:
    """Draw two green waves that rise beside the head."""
    for side in (-1, 1):
        wx = x + side * 32
        wave = curve((wx, y + 14), (wx + 5, y + 9, wx, y + 5), (wx - 5, y + 1, wx, y - 4), (wx + 5, y - 8, wx, y - 13))
        canvas.line(wave, blend(GREEN, INK, 0.7), 5)
        canvas.line(wave, (160, 214, 96), 2.4)


def _sweat(canvas: Canvas, x: float, y: float) -> None:
    for dx, dy, size in ((-31, -8, 1.0), (32, -12, 1.15), (-34, 6, 0.7)):
        sx, sy = x + dx, y + dy
        drop = outline(
            (sx, sy - 8 * size),
            (sx + 6 * size, sy + 1 * size, sx + 4 * size, sy + 5 * size, sx, sy + 5 * size),
            (sx - 4 * size, sy + 5 * size, sx - 6 * size, sy + 1 * size, sx, sy - 8 * size),
        )
        canvas.shape(drop, TEAR, 2)


_SIGNS: Mapping[str, Callable[[Canvas, float, float], None]] = {
    "amusement": _laughter,
    "awe": _sparkles,
    "contentment": _heart,
    "excitement": _rays,
    "anger": _steam,
    "disgust": _stench,
    "fear": _sweat,
}
"""Mood → sign; the tears of sadness are part of the face."""
