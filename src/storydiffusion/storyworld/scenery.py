"""Draw the six places: calm, flat backgrounds that differ at a glance."""

import random
from collections.abc import Callable, Mapping

from storydiffusion.storyworld.canvas import FRAME, Canvas, ellipse, outline, polygon, polyline, rounded
from storydiffusion.storyworld.palette import PAPER, WHITE, Color


def draw_place(canvas: Canvas, place: str, layout: int) -> None:
    """Cover the frame with `place`; `layout` seeds its few details (sides, clouds, flowers)."""
    rng = random.Random(layout)
    _PLACES[place](canvas, rng, rng.choice((-1, 1)))


def _across(x: float, side: int) -> float:
    return x if side > 0 else FRAME - x


def _cloud(canvas: Canvas, x: float, y: float) -> None:
    canvas.fill(rounded(x - 14, y, x + 14, y + 9, 4.5), WHITE)
    canvas.disc(x - 4, y, 7, WHITE)
    canvas.disc(x + 6, y + 2, 5, WHITE)


def _pine(canvas: Canvas, x: float, base: float, height: float, color: Color, snow: bool) -> None:
    canvas.block(x - 3, base - height * 0.2, x + 3, base, (112, 78, 58))
    for tier in range(3):
        low, high = base - height * (0.14 + 0.24 * tier), base - height * (0.52 + 0.24 * tier)
        half = height * (0.32 - 0.06 * tier)
        canvas.fill(polygon((x - half, low), (x + half, low), (x, high)), color)
        if snow:
            middle, narrow = (low + high) / 2, half * 0.5
            canvas.fill(polygon((x - narrow, middle), (x + narrow, middle), (x, high)), WHITE)


def _park(canvas: Canvas, rng: random.Random, side: int) -> None:
    canvas.gradient(0, 90, (126, 204, 252), (214, 242, 255))
    canvas.disc(_across(108, side), 19, 11, (255, 224, 84))
    _cloud(canvas, _across(rng.randint(24, 76), side), 16)
    canvas.fill(ellipse(_across(34, side), 104, 66, 28), (146, 214, 110))
    canvas.fill(ellipse(_across(112, side), 106, 58, 26), (128, 204, 98))
    canvas.block(0, 96, FRAME, FRAME, (112, 192, 88))
    x = _across(14, side)
    canvas.block(x - 4, 62, x + 4, 99, (150, 100, 64))
    for dx, y, radius in ((-9, 58, 12), (10, 58, 12), (0, 46, 15)):
        canvas.disc(x + dx, y, radius, (64, 156, 76))
    for column in (12, 44, 86, 116):
        x, y = column + rng.randint(-5, 5), rng.randint(106, 123)
        canvas.disc(x, y, 3, rng.choice(((255, 238, 110), WHITE, (252, 150, 184))))


def _beach(canvas: Canvas, rng: random.Random, side: int) -> None:
    canvas.gradient(0, 66, (98, 200, 250), (200, 240, 254))
    canvas.disc(_across(20, side), 20, 11, (255, 222, 86))
    canvas.block(0, 64, FRAME, 92, (40, 152, 212))
    for row in range(3):
        x = rng.randint(0, 100)
        canvas.line(polyline((x, 71 + 6 * row), (x + 18, 71 + 6 * row)), (150, 218, 242), 2.2)
    canvas.block(0, 88, FRAME, FRAME, (232, 248, 252))
    canvas.block(0, 92, FRAME, FRAME, (250, 224, 160))
    x = _across(110, side)
    canvas.line(polyline((x, 46), (x, 100)), (250, 250, 250), 3)
    canvas.fill(outline((x - 20, 48), (x, 10, x + 20, 48)), (242, 92, 88))
    canvas.fill(outline((x - 8, 48), (x, 10, x + 8, 48)), (255, 246, 230))
    for column in (10, 46, 82, 118):
        canvas.disc(column + rng.randint(-6, 6), rng.randint(104, 124), 2.2, (228, 194, 126))


def _city(canvas: Canvas, rng: random.Random, side: int) -> None:
    canvas.gradient(0, 98, (246, 190, 170), (255, 232, 206))
    walls = ((136, 132, 176), (174, 128, 140), (112, 136, 170), (158, 146, 186))
    heights = [rng.choice((46, 58, 70, 82)) for _ in range(5)]
    first = rng.randrange(4)
    for i, height in enumerate(heights):
        left, top = 26 * i, 98 - height
        canvas.block(left, top, left + 25, 98, walls[(first + i) % 4])
        for y in range(top + 7, 88, 13):
            for x in (left + 4, left + 15):
                canvas.block(x, y, x + 6, y + 7, (255, 236, 150))
    canvas.block(0, 96, FRAME, FRAME, (214, 214, 222))
    canvas.block(0, 102, FRAME, FRAME, (150, 152, 164))
    shift = rng.randint(0, 30)
    for x in range(shift - 36, FRAME, 36):
        canvas.block(x, 119, x + 18, 122.5, (248, 246, 238))


def _snow(canvas: Canvas, rng: random.Random, side: int) -> None:
    canvas.gradient(0, 96, (166, 198, 234), (228, 238, 250))
    canvas.fill(ellipse(_across(26, side), 102, 70, 28), (238, 245, 253))
    canvas.fill(ellipse(_across(112, side), 104, 60, 32), (226, 236, 249))
    _pine(canvas, _across(15, side), 97, 60, (66, 132, 118), snow=True)
    _pine(canvas, _across(112, side), 95, 46, (80, 144, 128), snow=True)
    canvas.block(0, 97, FRAME, FRAME, (248, 251, 255))
    for column in range(6):
        for row in range(3):
            x, y = 11 + 21 * column + rng.randint(-6, 6), 12 + 26 * row + rng.randint(-7, 7)
            canvas.disc(x, y, 2.2, WHITE)


def _room(canvas: Canvas, rng: random.Random, side: int) -> None:
    canvas.block(0, 0, FRAME, 96, (253, 228, 190))
    for x in range(4, FRAME, 20):
        canvas.block(x, 0, x + 7, 96, (249, 217, 174))
    x = _across(24, side)
    canvas.fill(rounded(x - 19, 14, x + 19, 58, 3), (160, 106, 66))
    for left in (x - 15, x + 1.5):
        for top in (18, 37.5):
            canvas.block(left, top, left + 13.5, top + 16.5, (164, 220, 250))
    x = _across(106, side)
    canvas.fill(rounded(x - 13, 22, x + 13, 46, 3), (104, 146, 132))
    canvas.block(x - 9, 26, x + 9, 42, rng.choice((PAPER, (246, 168, 150), (170, 204, 244))))
    canvas.block(0, 92, FRAME, 97, (180, 124, 80))
    canvas.block(0, 97, FRAME, FRAME, (222, 166, 112))
    canvas.fill(ellipse(64, 117, 54, 10), (120, 132, 196))
    canvas.fill(ellipse(64, 117, 43, 6.5), (160, 172, 224))


def _forest(canvas: Canvas, rng: random.Random, side: int) -> None:
    canvas.gradient(0, 100, (60, 110, 116), (134, 186, 150))
    canvas.disc(_across(92, side), 40, 11, (250, 244, 196))
    for x in (2, 38, 76, 108):
        x = _across(x + rng.randint(-4, 4), side)
        canvas.block(x - 4, 20, x + 4, 100, (74, 126, 116))
    for x in (14, 118):
        canvas.block(_across(x, side) - 7, 10, _across(x, side) + 7, 104, (92, 76, 70))
    shift = rng.randint(0, 20)
    for x in range(-shift, FRAME + 20, 24):
        canvas.disc(x, 4, 17, (36, 88, 82))
    canvas.block(0, 98, FRAME, FRAME, (62, 118, 82))
    for column in (10, 46, 84, 118):
        x, y = column + rng.randint(-5, 5), rng.randint(108, 122)
        canvas.block(x - 1.5, y, x + 1.5, y + 5, PAPER)
        canvas.fill(outline((x - 5, y + 1), (x - 4, y - 6, x + 4, y - 6, x + 5, y + 1)), (226, 84, 74))


_PLACES: Mapping[str, Callable[[Canvas, random.Random, int], None]] = {
    "park": _park,
    "beach": _beach,
    "city": _city,
    "snow": _snow,
    "room": _room,
    "forest": _forest,
}
