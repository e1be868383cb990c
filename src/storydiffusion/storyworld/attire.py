"""A character's clothes: patterned shirt, skirt or trousers, and accessories."""

import math

from storydiffusion.storyworld.canvas import Canvas, curve, ellipse, outline, polygon, rounded
from storydiffusion.storyworld.palette import INK, SHIRT, WHITE, Color, blend
from storydiffusion.storyworld.poses import Stance
from storydiffusion.storyworld.scene import Character

SCARF: Color = (36, 172, 176)
BOWTIE: Color = (70, 66, 92)
FRAMES: Color = (208, 44, 70)


def draw_shirt(canvas: Canvas, truth: Character, x: float, lean: float, shoulder: float, hip: float) -> None:
    """Draw the torso from `shoulder` to `hip`, its top shifted by `lean` from its bottom at `x`."""
    top = x + lean
    path = outline(
        (top - 11, shoulder),
        (top + 11, shoulder),
        (top + 15, shoulder + 1, x + 15, hip),
        (x - 15, hip),
        (top - 15, shoulder + 1, top - 11, shoulder),
    )
    canvas.fill(path, SHIRT[truth.shirt])
    # White would vanish on white, and another shirt's color would mislead: no shirt is slate.
    mark = (112, 132, 172) if truth.shirt == "white" else WHITE
    with canvas.clipped(path):
        if truth.pattern == "striped":
            for y in (shoulder + 5, shoulder + 12.5, shoulder + 20):
                canvas.block(x - 24, y, x + 24, y + 3.8, mark)
        elif truth.pattern == "dotted":
            for row, y in enumerate((shoulder + 6, shoulder + 13, shoulder + 20)):
                for column in (-1.5, -0.5, 0.5, 1.5) if row % 2 else (-1, 0, 1):
                    canvas.disc(x + lean / 2 + 9 * column, y, 2.6, mark)
    canvas.line(path, INK, 3)


def draw_bottom(canvas: Canvas, truth: Character, color: Color, x: float, hip: float, spread: float) -> None:
    """Draw a girl's skirt, wider by `spread`, or the seat of the trousers."""
    if truth.kind == "girl":
        width, low = (19 + spread, hip + 9) if truth.edition == 1 else (16 + spread, hip + 7)  # shows a raised foot
        skirt = outline((x - 12, hip - 6), (x + 12, hip - 6), (x + width, low), (x, low + 4, x - width, low))
        canvas.shape(skirt, color)
    else:
        canvas.shape(rounded(x - 13.5, hip - 8, x + 13.5, hip + 6, 5), color)


def draw_neckwear(canvas: Canvas, truth: Character, stance: Stance, x: float, y: float) -> None:
    """Draw a scarf or bow tie about the neck at (x, y); each has a color that no shirt has."""
    ahead = math.cos(stance.turn)
    if ahead > 0:
        with canvas.moved((x, y), (11 * math.sin(stance.turn), 0), scale=(ahead, 1)):
            _front_of_neckwear(canvas, truth, stance, x, y)
    if truth.accessory == "scarf":
        canvas.shape(rounded(x - 16, y - 4, x + 16, y + 5, 4.5), SCARF, 2.6)


def _front_of_neckwear(canvas: Canvas, truth: Character, stance: Stance, x: float, y: float) -> None:
    if truth.accessory == "scarf":
        tail = x + 8 * stance.facing
        canvas.shape(rounded(tail - 4, y + 2, tail + 4, y + 16, 2), SCARF, 2.6)
    elif truth.accessory == "bowtie":
        for side in (-1, 1):
            wing = polygon((x, y + 3), (x + side * 10, y - 2.5), (x + side * 10, y + 8.5))
            canvas.shape(wing, BOWTIE, 2.4)
        canvas.shape(ellipse(x, y + 3, 2.8, 3), blend(BOWTIE, WHITE, 0.35), 2.2)


def draw_glasses(canvas: Canvas, x: float, y: float) -> None:
    """Draw round glasses about eyes whose middle is (x, y)."""
    canvas.line(curve((x - 3, y), (x, y - 3, x + 3, y)), FRAMES, 2.6)
    for side in (-1, 1):
        lens = ellipse(x + side * 10.5, y, 8.6, 8.6)
        canvas.fill(lens, WHITE, 60)
        canvas.line(lens, FRAMES, 2.8)
