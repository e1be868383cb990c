"""Draw one dressed character, from the shadow at its feet to the hat."""

import math

from storydiffusion.storyworld.attire import draw_bottom, draw_glasses, draw_neckwear, draw_shirt
from storydiffusion.storyworld.canvas import OUTLINE, Canvas, curve, ellipse, outline, polygon, polyline, rounded
from storydiffusion.storyworld.expressions import draw_brows
from storydiffusion.storyworld.hats import draw_hat
from storydiffusion.storyworld.head import draw_behind_head, draw_head, eye_line, turned_face
from storydiffusion.storyworld.palette import BOTTOM, COAT, INK, PAPER, SHIRT, SHOE, Color, blend, shade
from storydiffusion.storyworld.poses import TORSO_HEIGHT, Book, Limb, Point, Pose, Stance
from storydiffusion.storyworld.scene import Character
from storydiffusion.storyworld.signs import draw_sign
from storydiffusion.storyworld.truth import WITH_HAIR

MIDDLE = 64.0
GROUND = 119.0
NECK = 19.5
SLIMMER_FROM_THE_SIDE = 0.28


def draw_shadow(canvas: Canvas, stance: Stance) -> None:
    """Draw a soft shadow on the ground, smaller under a jump."""
    width = 28 - 0.5 * max(0.0, stance.pose.hip - 21)
    canvas.fill(ellipse(MIDDLE + stance.x, GROUND + 2, width, 4.5), (24, 22, 48), 70)


def draw_character(canvas: Canvas, truth: Character, stance: Stance) -> None:
    """Draw the character of `truth` in `stance`, without shadow."""
    body = stance.pose
    x, hip = MIDDLE + stance.x, GROUND - body.hip
    shoulder = hip - TORSO_HEIGHT
    chest = x + body.lean
    head_x, head_y = chest + body.head[0], shoulder - NECK + body.head[1]

    if body.book and not body.book.in_front:
        _draw_book(canvas, body.book, chest, shoulder)
    draw_behind_head(canvas, truth, head_x, head_y)
    if not stance.front_is_hidden:
        _draw_tail(canvas, truth, x, hip, -stance.front)
    with canvas.moved((x, hip), scale=(1 - SLIMMER_FROM_THE_SIDE * math.sin(stance.turn) ** 2, 1)):
        _draw_body(canvas, truth, stance, x, hip)
    if stance.front_is_hidden:
        _draw_tail(canvas, truth, x, hip, -stance.front)
    draw_neckwear(canvas, truth, stance, chest, shoulder + 3.5)
    draw_head(canvas, truth, stance, head_x, head_y)
    if truth.accessory == "glasses":
        with turned_face(canvas, stance, head_x, head_y) as visible:
            if visible:
                draw_glasses(canvas, head_x, eye_line(truth, body, head_y))
    draw_hat(canvas, truth, stance, head_x, head_y)
    if truth.mood:
        _draw_brows(canvas, truth, stance, head_x, head_y)
        draw_sign(canvas, truth.mood, stance, head_x, head_y)


def _draw_brows(canvas: Canvas, truth: Character, stance: Stance, x: float, y: float) -> None:
    """Draw the brows of a mood over fringe and hat; a robot's are on its screen."""
    with turned_face(canvas, stance, x, y) as visible:
        if visible and truth.mood and truth.kind != "robot":
            draw_brows(canvas, truth.mood, (x, eye_line(truth, stance.pose, y)))


def _draw_body(canvas: Canvas, truth: Character, stance: Stance, x: float, hip: float) -> None:
    """Draw limbs, clothes and a book that is read."""
    body = stance.pose
    chest, shoulder = x + body.lean, hip - TORSO_HEIGHT
    reads = body.book is not None and body.book.in_front
    arms_in_front = reads or body.arms_in_front
    _draw_legs(canvas, truth, stance, x, hip)
    if not arms_in_front:
        _draw_arms(canvas, truth, body, chest, shoulder)
    draw_bottom(canvas, truth, BOTTOM[truth.bottom], x, hip, _skirt_spread(body))
    draw_shirt(canvas, truth, x, body.lean, shoulder, hip)
    if arms_in_front:
        _draw_arms(canvas, truth, body, chest, shoulder)
    if body.book is not None and reads:
        _draw_book(canvas, body.book, chest, shoulder)
        _draw_hands(canvas, truth, body, chest, shoulder)


def _skirt_spread(body: Pose) -> float:
    """Return the extra width of a skirt, which follows the knees when they spread."""
    return 0.3 * max(0.0, max(abs(leg[1][0]) for leg in body.legs) - 10)


def _at(limb: Limb, x: float, y: float) -> tuple[Point, Point, Point]:
    (ax, ay), (bx, by), (cx, cy) = limb
    return (x + ax, y + ay), (x + bx, y + by), (x + cx, y + cy)


def _draw_tail(canvas: Canvas, truth: Character, x: float, hip: float, back: float) -> None:
    coat = COAT[truth.kind][truth.tone]
    if truth.kind == "cat":
        tail = curve(
            (x + 9 * back, hip - 1), (x + 30 * back, hip + 8, x + 22 * back, hip - 18, x + 33 * back, hip - 20)
        )
        canvas.line(tail, INK, 11.5)
        canvas.line(tail, coat, 6)
    elif truth.kind == "fox":
        _draw_brush(canvas, coat, x, hip, back)
    elif truth.kind == "rabbit":
        canvas.shape(ellipse(x + 16 * back, hip - 1, 6.5, 6.5), blend(coat, PAPER, 0.6))


def _draw_brush(canvas: Canvas, coat: Color, x: float, hip: float, back: float) -> None:
    """Draw a fox's bushy tail with its pale tip."""
    brush = outline(
        (x + 8 * back, hip - 1),
        (x + 18 * back, hip + 10, x + 38 * back, hip + 2, x + 34 * back, hip - 24),
        (x + 22 * back, hip - 20, x + 16 * back, hip - 8, x + 8 * back, hip - 6),
    )
    canvas.fill(brush, coat)
    with canvas.clipped(brush):
        canvas.disc(x + 35 * back, hip - 22, 12, PAPER)
    canvas.line(brush, INK, OUTLINE)


def _draw_legs(canvas: Canvas, truth: Character, stance: Stance, x: float, hip: float) -> None:
    coat, body = COAT[truth.kind][truth.tone], stance.pose
    ahead, aside = math.cos(stance.turn), math.sin(stance.turn)
    for leg, toe in zip(body.legs, body.toes, strict=True):
        joints = _at(leg, x, hip)
        canvas.limb(joints, coat if truth.kind == "girl" else BOTTOM[truth.bottom], 8.5)
        foot_x, foot_y = joints[2]
        foot = ellipse(foot_x + 2 * (toe * ahead + aside), foot_y + 0.5, *body.foot)
        canvas.shape(foot, SHOE if truth.kind in WITH_HAIR else shade(coat, 0.86))


def _draw_arms(canvas: Canvas, truth: Character, body: Pose, chest: float, shoulder: float) -> None:
    coat, sleeve = COAT[truth.kind][truth.tone], shade(SHIRT[truth.shirt], 0.9)
    for arm in body.arms:
        joints = _at(arm, chest, shoulder)
        canvas.shape(ellipse(*joints[2], 4.4, 4.4), coat, 5)
        canvas.limb(joints, coat, 6.5)
        canvas.limb(_sleeve(joints), sleeve, 7.5)
        canvas.fill(ellipse(*joints[2], 4.4, 4.4), coat)


def _sleeve(arm: tuple[Point, Point, Point]) -> tuple[Point, Point, Point]:
    (ax, ay), (bx, by), _ = arm
    return (ax, ay), ((ax + bx) / 2, (ay + by) / 2), (bx - (bx - ax) * 0.1, by - (by - ay) * 0.1)


def _draw_book(canvas: Canvas, book: Book, chest: float, shoulder: float) -> None:
    x, top = chest + book.x, shoulder + book.top
    if book.opening < 0.2:
        canvas.shape(rounded(x - 7, top, x + 7, top + 16, 2), PAPER)
        return
    width, slope = 5 + 12 * book.opening, 4 * book.opening
    for side in (-1, 1):
        page = polygon(
            (x, top + 3), (x + side * width, top + 3 - slope), (x + side * width, top + 17 - slope), (x, top + 17)
        )
        canvas.shape(page, PAPER)
        if book.opening > 0.5:
            canvas.line(polyline((x + side * 5, top + 7), (x + side * (width - 5), top + 5.5)), (168, 172, 190), 2)


def _draw_hands(canvas: Canvas, truth: Character, body: Pose, chest: float, shoulder: float) -> None:
    """Draw the hands again, over the book."""
    for arm in body.arms:
        hand = _at(arm, chest, shoulder)[2]
        canvas.shape(ellipse(*hand, 4, 4), COAT[truth.kind][truth.tone], 2.6)
