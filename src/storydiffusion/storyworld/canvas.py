"""Draw flat shapes with thick ink outlines on a 128×128 frame, by Skia on the CPU."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from storydiffusion.output.skia_import import skia
from storydiffusion.storyworld.palette import INK, Color
from storydiffusion.storyworld.poses import Point

FRAME = 128
OUTLINE = 3.0


class Canvas:
    """A transparent canvas of `size`² pixels whose coordinates always span 128×128."""

    def __init__(self, size: int) -> None:
        self._pixels = np.zeros((size, size, 4), np.uint8)
        self._surface = skia.Surface(self._pixels, colorType=skia.kRGBA_8888_ColorType)
        self._canvas = self._surface.getCanvas()
        self._canvas.scale(size / FRAME, size / FRAME)

    def pixels(self) -> np.ndarray:
        """Return RGBA with premultiplied alpha, uint8 (size, size, 4)."""
        return self._pixels

    def fill(self, path: skia.Path, color: Color, alpha: int = 255) -> None:
        self._canvas.drawPath(path, skia.Paint(Color=_argb(color, alpha), AntiAlias=True))

    def line(self, path: skia.Path, color: Color, width: float) -> None:
        paint = skia.Paint(
            Color=_argb(color),
            AntiAlias=True,
            Style=skia.Paint.kStroke_Style,
            StrokeWidth=width,
            StrokeCap=skia.Paint.kRound_Cap,
            StrokeJoin=skia.Paint.kRound_Join,
        )
        self._canvas.drawPath(path, paint)

    def shape(self, path: skia.Path, color: Color, outline: float = OUTLINE) -> None:
        """Draw a filled shape with an ink outline."""
        self.fill(path, color)
        self.line(path, INK, outline)

    def limb(self, points: Sequence[Point], color: Color, width: float) -> None:
        """Draw a round, outlined tube along `points`."""
        path = _smooth(points)
        self.line(path, INK, width + 2 * OUTLINE - 1)
        self.line(path, color, width)

    def disc(self, x: float, y: float, radius: float, color: Color, alpha: int = 255) -> None:
        self._canvas.drawCircle(x, y, radius, skia.Paint(Color=_argb(color, alpha), AntiAlias=True))

    def block(self, left: float, top: float, right: float, bottom: float, color: Color) -> None:
        rect = skia.Rect.MakeLTRB(left, top, right, bottom)
        self._canvas.drawRect(rect, skia.Paint(Color=_argb(color), AntiAlias=True))

    def gradient(self, top: float, bottom: float, upper: Color, lower: Color) -> None:
        """Draw a band over the whole width that fades from `upper` to `lower`."""
        shader = skia.GradientShader.MakeLinear([(0, top), (0, bottom)], [_argb(upper), _argb(lower)])
        rect = skia.Rect.MakeLTRB(0, top, FRAME, bottom)
        self._canvas.drawRect(rect, skia.Paint(Shader=shader, AntiAlias=True))

    @contextmanager
    def moved(
        self,
        about: Point,
        by: Point = (0.0, 0.0),
        degrees: float = 0.0,
        scale: Point = (1.0, 1.0),
    ) -> Iterator[None]:
        """Draw scaled and turned clockwise about the point `about`, then shifted `by`."""
        self._canvas.save()
        self._canvas.translate(about[0] + by[0], about[1] + by[1])
        self._canvas.rotate(degrees)
        self._canvas.scale(*scale)
        self._canvas.translate(-about[0], -about[1])
        try:
            yield
        finally:
            self._canvas.restore()

    @contextmanager
    def clipped(self, path: skia.Path) -> Iterator[None]:
        """Draw only inside `path`."""
        self._canvas.save()
        self._canvas.clipPath(path, True)
        try:
            yield
        finally:
            self._canvas.restore()


def polygon(*points: Point) -> skia.Path:
    path = polyline(*points)
    path.close()
    return path


def polyline(*points: Point) -> skia.Path:
    path = skia.Path()
    path.moveTo(*points[0])
    for point in points[1:]:
        path.lineTo(*point)
    return path


def ellipse(x: float, y: float, rx: float, ry: float) -> skia.Path:
    path = skia.Path()
    path.addOval(skia.Rect.MakeLTRB(x - rx, y - ry, x + rx, y + ry))
    return path


def rounded(left: float, top: float, right: float, bottom: float, radius: float) -> skia.Path:
    path = skia.Path()
    path.addRoundRect(skia.Rect.MakeLTRB(left, top, right, bottom), radius, radius)
    return path


def curve(start: Point, *beziers: tuple[float, ...]) -> skia.Path:
    """Return an open path of lines (x, y), quadratic (4 numbers) and cubic (6 numbers) Bézier pieces."""
    path = skia.Path()
    path.moveTo(*start)
    for piece in beziers:
        {2: path.lineTo, 4: path.quadTo, 6: path.cubicTo}[len(piece)](*piece)
    return path


def outline(start: Point, *beziers: tuple[float, ...]) -> skia.Path:
    """Return a closed `curve`."""
    path = curve(start, *beziers)
    path.close()
    return path


def _smooth(points: Sequence[Point]) -> skia.Path:
    """Return a smooth path past three joints: the middle one bends it, without the kink of a polyline."""
    (ax, ay), (bx, by), (cx, cy) = points
    return curve(
        (ax, ay), ((ax + 3 * bx) / 4, (ay + 3 * by) / 4), (bx, by, (3 * bx + cx) / 4, (3 * by + cy) / 4), (cx, cy)
    )


def _argb(color: Color, alpha: int = 255) -> int:
    red, green, blue = (min(255, max(0, round(channel))) for channel in color)
    return skia.Color(red, green, blue, alpha)
