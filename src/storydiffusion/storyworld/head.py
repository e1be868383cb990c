"""Draw heads: the ears, hair and faces that distinguish the kinds."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from storydiffusion.output.skia_import import skia
from storydiffusion.storyworld.canvas import OUTLINE, Canvas, curve, ellipse, outline, polygon, polyline, rounded
from storydiffusion.storyworld.expressions import draw_expression, draw_screen_expression
from storydiffusion.storyworld.palette import BLUSH, COAT, GLOW, HAIR, INK, PAPER, SCREEN, WHITE, Color, blend, shade
from storydiffusion.storyworld.poses import Pose, Stance
from storydiffusion.storyworld.scene import Character

PINK: Color = (252, 172, 180)
MOUTH: Color = (150, 40, 56)


def draw_behind_head(canvas: Canvas, truth: Character, x: float, y: float) -> None:
    """Draw the parts behind the body: the long hair of a girl."""
    if truth.kind == "girl" and truth.hair:
        canvas.shape(_long_hair(x, y), shade(HAIR[truth.hair], 0.9))


def draw_head(canvas: Canvas, truth: Character, stance: Stance, x: float, y: float) -> None:
    """Draw the head centered at (x, y), 26 pixels wide to either side, without hat and accessory."""
    coat = COAT[truth.kind][truth.tone]
    robot = truth.kind == "robot"
    if robot:
        _antenna_and_bolts(canvas, truth, coat, x, y)
    else:
        _ears(canvas, truth, coat, x, y, from_behind=math.cos(stance.turn) < 0)
    skull = rounded(x - 25, y - 21, x + 25, y + 21, 9) if robot else _skull(x, y)
    canvas.shape(skull, coat)
    if truth.kind == "boy" and truth.hat == "none":
        _tuft(canvas, truth, x, y)
    with turned_face(canvas, stance, x, y) as visible:
        if visible:
            with canvas.clipped(skull) if stance.turn else nullcontext():
                if robot:
                    _screen(canvas, truth.mood, stance.pose, x, y)
                else:
                    _face(canvas, truth, stance.pose, coat, x, y)
            if math.cos(stance.turn) > 0.4:
                _whiskers(canvas, truth, x, y)
    if truth.hair:
        _hair(canvas, truth.kind, HAIR[truth.hair], stance.turn, x, y)


@contextmanager
def turned_face(canvas: Canvas, stance: Stance, x: float, y: float) -> Iterator[bool]:
    """Draw on the front of a turned head centered at (x, y); yield whether the face is visible."""
    ahead = math.cos(stance.turn)
    with canvas.moved((x, y), (25 * math.sin(stance.turn), 0), scale=(max(ahead, 0.01), 1)):
        yield ahead > 0


def _skull(x: float, y: float) -> skia.Path:
    return outline(
        (x, y - 22.5),
        (x + 17, y - 22.5, x + 25, y - 11, x + 25.5, y + 3),
        (x + 26, y + 16, x + 14, y + 22, x, y + 22),
        (x - 14, y + 22, x - 26, y + 16, x - 25.5, y + 3),
        (x - 25, y - 11, x - 17, y - 22.5, x, y - 22.5),
    )


def eye_line(truth: Character, pose: Pose, y: float) -> float:
    """Return the height of the eyes in a head centered at `y`."""
    return y - 1 if truth.kind == "robot" else y + 2 + 0.5 * pose.gaze


def _ears(canvas: Canvas, truth: Character, coat: Color, x: float, y: float, from_behind: bool) -> None:
    hatted = truth.hat != "none"
    inside = coat if from_behind else PINK
    for side in (-1, 1):
        if truth.kind == "cat":
            tip = (x + side * 24, y - 31)
            canvas.shape(outline((x + side * 25, y - 2), tip, (x + side * 5, y - 20)), coat)
            canvas.fill(outline((x + side * 21, y - 9), (x + side * 21, y - 25), (x + side * 11, y - 17)), inside)
        elif truth.kind == "fox":
            _fox_ear(canvas, coat, coat if from_behind else PAPER, x, y, side)
        elif truth.kind == "bear":
            out = 22 if hatted else 19
            canvas.shape(ellipse(x + side * out, y - 17, 8.5, 8.5), coat)
            canvas.disc(x + side * out, y - 17, 4.4, blend(coat, inside, 0.7))
        elif truth.kind == "rabbit":
            root = (x + side * (17 if hatted else 11), y - 15)
            _rabbit_ear(canvas, coat, inside, root, side * (26 if hatted else 8))


def _fox_ear(canvas: Canvas, coat: Color, inside: Color, x: float, y: float, side: int) -> None:
    """Draw a large ear with a dark tip."""
    ear = outline((x + side * 26, y + 1), (x + side * 34, y - 22, x + side * 27, y - 36), (x + side * 3, y - 19))
    canvas.fill(ear, coat)
    with canvas.clipped(ear):
        canvas.disc(x + side * 28, y - 36, 11, (84, 62, 66))
    canvas.line(ear, INK, OUTLINE)
    canvas.fill(outline((x + side * 22, y - 7), (x + side * 24, y - 22), (x + side * 11, y - 16)), inside)


def _rabbit_ear(canvas: Canvas, coat: Color, inside: Color, root: tuple[float, float], tilt: float) -> None:
    sine, cosine = math.sin(math.radians(tilt)), math.cos(math.radians(tilt))

    def at(across: float, up: float) -> tuple[float, float]:
        return root[0] + across * cosine + up * sine, root[1] + across * sine - up * cosine

    for width, low, high, whole in ((7.5, 0, 26, True), (3.4, 4, 21, False)):
        path = outline(
            at(-width * 0.7, low),
            (*at(-width * 1.4, high * 0.6), *at(-width, high), *at(0, high)),
            (*at(width, high), *at(width * 1.4, high * 0.6), *at(width * 0.7, low)),
        )
        if whole:
            canvas.shape(path, coat)
        else:
            canvas.fill(path, inside)


def _face(canvas: Canvas, truth: Character, pose: Pose, coat: Color, x: float, y: float) -> None:
    furry = truth.kind in ("cat", "bear", "rabbit", "fox")
    if truth.kind == "fox":
        _cheeks(canvas, coat, x, y)
    elif furry:
        canvas.fill(ellipse(x, y + 12, 11, 8), blend(coat, WHITE, 0.62))
    mouth = y + (12.5 if furry else 11)
    if truth.mood:
        draw_expression(canvas, truth.mood, (x, eye_line(truth, pose, y)), mouth, pose.gaze)
        _nose(canvas, truth, x, y)
        return
    for side in (-1, 1):
        canvas.fill(ellipse(x + side * 18.5, y + 11, 4.6, 3.2), BLUSH, 150)
        _eye(canvas, x + side * 10.5, eye_line(truth, pose, y), pose.gaze)
    _nose(canvas, truth, x, y)
    _mouth(canvas, x, mouth, pose.joy)


def _nose(canvas: Canvas, truth: Character, x: float, y: float) -> None:
    if truth.kind in ("cat", "bear", "rabbit", "fox"):
        canvas.fill(ellipse(x, y + 9, 3.6, 2.6), INK if truth.kind in ("bear", "fox") else (236, 104, 124))


def _cheeks(canvas: Canvas, coat: Color, x: float, y: float) -> None:
    """Draw a fox's pale cheeks, which meet at the nose."""
    for side in (-1, 1):
        cheek = outline(
            (x, y + 5), (x + side * 9, y + 12, x + side * 27, y + 4), (x + side * 24, y + 20, x, y + 24), (x, y + 5)
        )
        canvas.fill(cheek, blend(coat, WHITE, 0.78))


def _whiskers(canvas: Canvas, truth: Character, x: float, y: float) -> None:
    if truth.kind == "cat":
        for side in (-1, 1):
            canvas.line(polyline((x + side * 19, y + 7), (x + side * 31, y + 5)), INK, 2)
            canvas.line(polyline((x + side * 19, y + 13), (x + side * 30, y + 15)), INK, 2)


def _eye(canvas: Canvas, x: float, y: float, gaze: float) -> None:
    canvas.fill(ellipse(x, y, 5.8, 7.2), WHITE)
    canvas.fill(ellipse(x, y + 0.6 + 0.7 * gaze, 4.7, 6.0 - 0.6 * gaze), INK)
    canvas.disc(x + 1.5, y - 2 + 1.1 * gaze, 2.1, WHITE)


def _mouth(canvas: Canvas, x: float, y: float, joy: float) -> None:
    if joy < 0.3:
        canvas.line(curve((x - 4.5, y), (x, y + 5, x + 4.5, y)), INK, 2.4)
        return
    deep = 6 + 6 * joy
    canvas.shape(outline((x - 5.5, y), (x + 5.5, y), (x + 4, y + deep, x - 4, y + deep, x - 5.5, y)), MOUTH, 2.2)


def _long_hair(x: float, y: float) -> skia.Path:
    return outline(
        (x, y - 22),
        (x + 30, y - 22, x + 28, y + 6, x + 29, y + 30),
        (x + 20, y + 38, x + 14, y + 28),
        (x - 14, y + 28),
        (x - 20, y + 38, x - 29, y + 30),
        (x - 28, y + 6, x - 30, y - 22, x, y - 22),
    )


def _tuft(canvas: Canvas, truth: Character, x: float, y: float) -> None:
    if truth.hair:
        tuft = outline((x - 6, y - 24), (x - 4, y - 34, x + 9, y - 34), (x + 5, y - 29, x + 10, y - 24))
        canvas.shape(tuft, HAIR[truth.hair])


def _hair(canvas: Canvas, kind: str, color: Color, turn: float, x: float, y: float) -> None:
    """Draw the fringe, narrower as the head turns, and the hair at the back, which comes to the front."""
    ahead = math.cos(turn)
    if ahead > 0.4:
        aside = math.copysign(31 * (1 - ahead), math.sin(turn))
        with canvas.moved((x, y), (aside, 0), scale=(ahead, 1)):
            _fringe(canvas, kind, color, x, y)
    if turn:
        _back_of_hair(canvas, kind, color, turn, x, y)


def _fringe(canvas: Canvas, kind: str, color: Color, x: float, y: float) -> None:
    if kind == "girl":
        fringe = outline(
            (x - 26, y + 12),
            (x - 34, y - 35, x + 34, y - 35, x + 26, y + 12),
            (x + 20, y + 4, x + 19, y - 7),
            (x + 10, y - 4, x + 3, y - 10),
            (x - 6, y - 4, x - 19, y - 7),
            (x - 20, y + 4, x - 26, y + 12),
        )
    else:
        fringe = outline(
            (x - 27, y + 2),
            (x - 31, y - 18, x - 18, y - 28, x, y - 28),
            (x + 18, y - 28, x + 31, y - 18, x + 27, y + 2),
            (x + 22, y - 2, x + 20, y - 9),
            (x + 14, y - 5, x + 10, y - 11),
            (x + 3, y - 4, x - 4, y - 10),
            (x - 12, y - 4, x - 19, y - 9),
            (x - 21, y - 2, x - 27, y + 2),
        )
    canvas.shape(fringe, color)
    canvas.line(curve((x - 19, y - 12), (x - 15, y - 18, x - 7, y - 19)), blend(color, WHITE, 0.4), 2.8)


def _back_of_hair(canvas: Canvas, kind: str, color: Color, turn: float, x: float, y: float) -> None:
    """Draw the hair that a turn brings to the front: all above the brow, and from the far edge to the hairline."""
    side = 1 if math.sin(turn) > 0 else -1
    hairline = x + 30 * math.sin(turn - side * math.pi / 4)
    far = x - side * 40
    if kind == "girl":
        hair = _long_hair(x, y - 5)
    else:
        hair = outline(
            (x, y - 28),
            (x + 18, y - 28, x + 31, y - 18, x + 27, y + 2),
            (x + 26, y + 18, x + 12, y + 21),
            (x - 12, y + 21),
            (x - 26, y + 18, x - 27, y + 2),
            (x - 31, y - 18, x - 18, y - 28, x, y - 28),
        )
    near, brow = x + side * 40, y - 9
    shown = polygon((far, y - 40), (near, y - 40), (near, brow), (hairline, brow), (hairline, y + 40), (far, y + 40))
    with canvas.clipped(shown):
        canvas.shape(hair, color)


def _antenna_and_bolts(canvas: Canvas, truth: Character, coat: Color, x: float, y: float) -> None:
    if truth.hat == "none":
        canvas.line(polyline((x, y - 20), (x, y - 28)), INK, 3.4)
        canvas.shape(ellipse(x, y - 30, 4.2, 4.2), (246, 84, 84), 2.6)
    for side in (-1, 1):
        canvas.shape(rounded(x + side * 26 - 4.5, y - 6, x + side * 26 + 4.5, y + 9, 3), shade(coat, 0.8))


def _screen(canvas: Canvas, mood: str | None, pose: Pose, x: float, y: float) -> None:
    canvas.fill(rounded(x - 20, y - 12, x + 20, y + 15, 7), SCREEN)
    gaze = 0.6 * pose.gaze
    if mood:
        draw_screen_expression(canvas, mood, (x, y - 1 + gaze), y + 8.5)
        return
    for side in (-1, 1):
        canvas.fill(ellipse(x + side * 9.5, y - 1 + gaze, 4.6, 5.4), GLOW)
        canvas.disc(x + side * 9.5 + 1.4, y - 3 + gaze, 1.7, WHITE)
    if pose.joy < 0.3:
        canvas.line(curve((x - 5, y + 7), (x, y + 12.5, x + 5, y + 7)), GLOW, 2.6)
    else:
        deep = 4 + 4 * pose.joy
        canvas.fill(
            outline((x - 6, y + 6.5), (x + 6, y + 6.5), (x + 4, y + 6 + deep, x - 4, y + 6 + deep, x - 6, y + 6.5)),
            GLOW,
        )
