"""Speech balloons: placed in the calmest part of an image, with a tail that points to its busiest.

No detector finds the character. Where an image changes most, by the variance of colors in a window, is taken for it:
in a drawing or a photograph with a calm background that is the figure; in a busy scene it may not be.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from storydiffusion.output.drawing import Element, Line, Outline
from storydiffusion.output.lettering import Lettering, balance_lines, printable

GRID = 64
"""Longest side, in cells, at which images are searched."""
WINDOW = 6
"""Fraction of the longest side over which the variance is taken: 1 / WINDOW."""
PREFER_TOP, PREFER_LARGE = 0.05, 0.4
"""Costs of a balloon at the bottom, and of type of size 0, in shares of the image's variance that a balloon covers."""
ROUNDNESS = 4
"""Exponent of the superellipse: 2 is an ellipse, infinity a rectangle."""
SIZES, WIDTHS, HIGHEST = (1, 0.85, 0.7, 0.55), (0.4, 0.6, 0.84), 0.7
"""Type sizes, of the captions', and widths and height of the text, of the panel's, to choose from."""
LEGIBLE = 8
"""The smallest type in pixels, for text that no size above fits; it may then leave its panel."""
POINTS = 180

Rectangle = tuple[int, int, int, int]
"""left, top, width, height"""


def measure_variance(image: Image.Image) -> np.ndarray:
    """Return the variance of an image's colors in a window around each cell, (h, w), max(h, w) = GRID."""
    from scipy.ndimage import uniform_filter

    scale = GRID / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    cells = np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX), dtype=np.float64)
    mean, squares = (uniform_filter(values, GRID // WINDOW, axes=(0, 1)) for values in (cells, cells**2))
    return np.maximum(squares - mean**2, 0).sum(-1)


def find_calm_place(variance: np.ndarray, width: float, height: float) -> tuple[float, float, float]:
    """Return the left and top, as shares of the image, of the calmest rectangle, and its cost.

    The cost is the share of the variance that it covers, and a little more for a lower one.

    Args:
        width, height: of the rectangle, as shares of the image, at most 1.
    """
    rows, columns = variance.shape
    h, w = max(1, math.ceil(height * rows)), max(1, math.ceil(width * columns))
    sums = np.pad(variance, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    covered = (sums[h:, w:] - sums[:-h, w:] - sums[h:, :-w] + sums[:-h, :-w]) / (sums[-1, -1] + 1e-9)
    cost = (covered + PREFER_TOP * np.linspace(0, 1, len(covered))[:, None]).round(9)
    top, left = np.unravel_index(np.argmin(cost), cost.shape)
    return min(float(left) / columns, 1 - width), min(float(top) / rows, 1 - height), float(cost.min())


def find_busiest_point(variance: np.ndarray) -> tuple[float, float]:
    """Return x and y, as shares of the image, of the center of what changes most."""
    weight = variance**2 + 1e-9
    y, x = np.indices(variance.shape) + 0.5
    rows, columns = variance.shape
    return float((weight * x).sum() / weight.sum() / columns), float((weight * y).sum() / weight.sum() / rows)


def draw_balloon(
    image: Image.Image,
    text: str,
    place: Rectangle,
    type_size: int,
    unit: int,
    fonts: Sequence[str],
    colours: Sequence[str],
) -> list[Element]:
    """Return the elements of a balloon over an image that is shown at `place`, all of it inside.

    Args:
        type_size: of captions, in pixels; long text is set smaller.
        unit: thickness of the edge, in pixels.
        fonts: files that come before the bundled fonts.
        colours: of paper and ink.
    """
    left, top, width, height = place
    variance = measure_variance(image)
    edge = 2 * unit
    best: tuple[float, Balloon, float, float] | None = None
    for balloon in set_balloons(printable(text), type_size, width - 2 * edge, height - 2 * edge, fonts):
        shares = 2 * (balloon.a + edge) / width, 2 * (balloon.b + edge) / height
        share_x, share_y, cost = find_calm_place(variance, *shares)
        cost -= PREFER_LARGE * balloon.lettering.size / type_size
        if best is None or cost < best[0]:
            best = cost, balloon, share_x, share_y
    assert best is not None
    _, balloon, share_x, share_y = best
    centre = left + share_x * width + balloon.a + edge, top + share_y * height + balloon.b + edge
    target = find_busiest_point(variance)
    size = balloon.lettering.size
    points = outline_balloon(
        centre, (balloon.a, balloon.b), (left + target[0] * width, top + target[1] * height), 0.8 * size
    )
    return [Outline(points, colours[0], colours[1], unit), *balloon.place_lines(centre, colours[1])]


@dataclass(frozen=True)
class Balloon:
    """Lines of text and the half axes of the superellipse around them, in pixels."""

    lines: list[str]
    lettering: Lettering
    a: float
    b: float

    def place_lines(self, centre: tuple[float, float], ink: str) -> Iterator[Line]:
        """Yield the lines around the center."""
        step = self.lettering.line_height
        baseline = centre[1] - len(self.lines) * step / 2 + self.lettering.size * 0.95
        for row, line in enumerate(self.lines):
            yield Line(line, self.lettering, centre[0] - self.lettering.width(line) / 2, baseline + row * step, ink)


def set_balloons(text: str, type_size: int, width: int, height: int, fonts: Sequence[str]) -> Iterator[Balloon]:
    """Yield the text in all sizes and widths that a panel of `width` × `height` pixels holds, or in smaller type."""
    stretch = 2 ** (1 / ROUNDNESS)  # a superellipse around a rectangle
    regular = [round(share * type_size) for share in SIZES]
    found = False
    for size in [*regular, *range(regular[-1] - 1, LEGIBLE, -1), LEGIBLE]:
        if found and size < regular[-1]:
            return
        lettering = Lettering(size, fonts)
        for share in WIDTHS:
            lines = balance_lines(text, lettering.width, share * width)
            text_width = max(map(lettering.width, lines)) + 0.6 * size
            a, b = stretch * text_width / 2, stretch * len(lines) * lettering.line_height / 2
            is_last = size == LEGIBLE and share == WIDTHS[-1] and not found
            if is_last or (2 * a <= width and 2 * b <= HIGHEST * height):
                found = True
                yield Balloon(lines, lettering, min(a, width / 2), min(b, height / 2))


def outline_balloon(
    centre: tuple[float, float], radii: tuple[float, float], target: tuple[float, float], size: float
) -> tuple[tuple[float, float], ...]:
    """Return a superellipse with a tail towards `target`; without one if the target is inside or near.

    Args:
        size: width of the tail at its root; the tail is at most 2.5 times as long.
    """
    angle = math.atan2(target[1] - centre[1], target[0] - centre[0])
    points = []
    for turn in range(POINTS):  # from the side opposite to the tail, so that its points lie together
        theta = angle + math.pi + 2 * math.pi * turn / POINTS
        points.append(_point(centre, radii, theta))
    root = _point(centre, radii, angle)
    distance = math.dist(centre, target) - math.dist(centre, root)
    if distance < size / 2:
        return tuple(points)
    length = min(0.45 * distance, 2.5 * size)
    tip = root[0] + length * math.cos(angle), root[1] + length * math.sin(angle)
    near = [number for number, point in enumerate(points) if math.dist(point, root) < size / 2]
    return (*points[: near[0]], tip, *points[near[-1] + 1 :]) if near else tuple(points)


def _point(centre: tuple[float, float], radii: tuple[float, float], angle: float) -> tuple[float, float]:
    """Return the point of the superellipse in a direction."""
    x, y = math.cos(angle), math.sin(angle)
    radius = (abs(x / radii[0]) ** ROUNDNESS + abs(y / radii[1]) ** ROUNDNESS) ** (-1 / ROUNDNESS)
    return centre[0] + radius * x, centre[1] + radius * y
