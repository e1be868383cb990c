"""Draw hats. The second edition's differ in their silhouettes; the first edition's are those of the frozen images."""

from collections.abc import Callable, Mapping

from storydiffusion.storyworld.canvas import Canvas, curve, ellipse, outline, polygon, rounded
from storydiffusion.storyworld.palette import HAT, INK, PAPER, WHITE, Color, blend, shade
from storydiffusion.storyworld.poses import Stance
from storydiffusion.storyworld.scene import Character


def draw_hat(canvas: Canvas, truth: Character, stance: Stance, x: float, head: float) -> None:
    """Draw the hat on a head centered at (x, head), narrow enough to show ears and hair beside and below it."""
    if truth.hat_color is None:
        return
    _HATS[truth.edition][truth.hat](canvas, HAT[truth.hat_color], x, head - 12, stance)


def _cap(canvas: Canvas, color: Color, x: float, y: float, stance: Stance) -> None:
    crown = outline((x - 18, y), (x - 19, y - 22, x + 19, y - 22, x + 18, y))
    front = stance.front
    brim = outline(
        (x - 4 * front, y - 4),
        (x + 14 * front, y - 6, x + 30 * front, y),
        (x + 30 * front, y + 4, x + 24 * front, y + 4),
        (x - 4 * front, y + 2),
    )
    parts = [(crown, color), (brim, shade(color, 0.8))]
    for path, tint in reversed(parts) if stance.front_is_hidden else parts:
        canvas.shape(path, tint)
    canvas.shape(ellipse(x, y - 16.5, 2.6, 2), shade(color, 0.8), 2)


def _tophat(canvas: Canvas, color: Color, x: float, y: float, stance: Stance) -> None:
    crown = outline((x - 13, y - 2), (x - 15, y - 24), (x, y - 27, x + 15, y - 24), (x + 13, y - 2))
    canvas.shape(crown, color)
    canvas.block(x - 12, y - 10, x + 12, y - 5, PAPER)
    canvas.shape(rounded(x - 23, y - 5, x + 23, y + 2, 3.5), color)


def _beanie(canvas: Canvas, color: Color, x: float, y: float, stance: Stance) -> None:
    canvas.shape(outline((x - 17, y), (x - 18, y - 25, x + 18, y - 25, x + 17, y)), color)
    canvas.shape(rounded(x - 20, y - 5, x + 20, y + 3.5, 4), blend(color, WHITE, 0.5), 2.8)
    canvas.shape(ellipse(x, y - 19, 5.5, 5.5), blend(color, WHITE, 0.7), 2.6)


def _crown(canvas: Canvas, color: Color, x: float, y: float, stance: Stance) -> None:
    crown = polygon(
        (x - 16, y + 1),
        (x - 19, y - 17),
        (x - 8.5, y - 8),
        (x, y - 22),
        (x + 8.5, y - 8),
        (x + 19, y - 17),
        (x + 16, y + 1),
    )
    canvas.shape(crown, color)
    for dx in (-9, 0, 9):
        canvas.disc(x + dx, y - 4.5, 2.4, PAPER)


def _peaked_cap(canvas: Canvas, color: Color, x: float, y: float, stance: Stance) -> None:
    """Draw a low, round cap whose long peak sticks out to the front."""
    front, dark = stance.front, shade(color, 0.74)
    dome = outline((x - 21, y + 3), (x - 23, y - 20, x + 23, y - 20, x + 21, y + 3))
    peak = outline(
        (x + 2 * front, y - 3),
        (x + 20 * front, y - 7, x + 34 * front, y - 3),
        (x + 39 * front, y + 2, x + 33 * front, y + 4.5),
        (x + 20 * front, y + 6, x + 2 * front, y + 4.5),
    )
    parts = [(dome, color), (peak, dark)]
    for path, tint in reversed(parts) if stance.front_is_hidden else parts:
        canvas.shape(path, tint)
    if not stance.front_is_hidden:
        canvas.line(curve((x - 6 * front, y - 13), (x - 13 * front, y - 9, x - 14 * front, y - 1)), dark, 2)
    canvas.shape(ellipse(x, y - 14.5, 3.2, 2.4), dark, 2.2)


def _tall_tophat(canvas: Canvas, color: Color, x: float, y: float, stance: Stance) -> None:
    """Draw a tall cylinder, wider at the top, with a pale ribbon and a wide brim."""
    crown = outline((x - 13.5, y - 1), (x - 14, y - 18, x - 18, y - 32), (x, y - 36, x + 18, y - 32),
                    (x + 14, y - 18, x + 13.5, y - 1))  # fmt: skip
    canvas.fill(crown, color)
    with canvas.clipped(crown):
        canvas.block(x - 20, y - 13, x + 20, y - 5, blend(color, WHITE, 0.72))
    canvas.line(crown, INK, 3)
    canvas.shape(outline((x - 27, y - 6), (x, y + 1, x + 27, y - 6), (x + 28, y + 5, x, y + 5),
                         (x - 28, y + 5, x - 27, y - 6)), color)  # fmt: skip


def _bobble_hat(canvas: Canvas, color: Color, x: float, y: float, stance: Stance) -> None:
    """Draw a knitted hat with ribs, a pale rim and a large bobble."""
    pale = blend(color, WHITE, 0.6)
    dome = outline((x - 20, y), (x - 21, y - 27, x + 21, y - 27, x + 20, y))
    canvas.shape(dome, color)
    for dx in (-8, 0, 8):
        canvas.line(curve((x + 0.6 * dx, y - 17), (x + dx, y - 10, x + 1.1 * dx, y - 4)), shade(color, 0.76), 2)
    canvas.shape(rounded(x - 23, y - 5, x + 23, y + 5, 5), pale, 2.8)
    canvas.shape(ellipse(x, y - 24, 7.5, 7.5), pale, 2.8)


_HATS: Mapping[int, Mapping[str, Callable[[Canvas, Color, float, float, Stance], None]]] = {
    1: {"cap": _cap, "tophat": _tophat, "beanie": _beanie, "crown": _crown},
    2: {"cap": _peaked_cap, "tophat": _tall_tophat, "beanie": _bobble_hat, "crown": _crown},
}
"""Edition → hat → its drawing on a head whose hatband is at (x, y)."""
