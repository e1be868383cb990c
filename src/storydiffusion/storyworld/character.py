"""One dressed character, from the shadow at its feet to the hat."""

from storydiffusion.storyworld.attire import draw_bottom, draw_glasses, draw_hat, draw_neckwear, draw_shirt
from storydiffusion.storyworld.canvas import Canvas, curve, ellipse, polygon, polyline
from storydiffusion.storyworld.head import draw_behind_head, draw_head, eye_line
from storydiffusion.storyworld.palette import BOTTOM, COAT, INK, PAPER, SHIRT, SHOE, blend, shade
from storydiffusion.storyworld.poses import TORSO_HEIGHT, Limb, Point, Pose, pose
from storydiffusion.storyworld.truth import WITH_HAIR, Truth

GROUND = 119.0
NECK = 19.5


def center(truth: Truth) -> float:
    """The horizontal middle of the character."""
    return 64 + truth.x


def draw_shadow(canvas: Canvas, truth: Truth) -> None:
    """A soft pool of shade on the ground, smaller under a jump."""
    height = pose(truth.action, truth.phase, truth.facing).hip
    width = 28 - 0.5 * max(0.0, height - 21)
    canvas.fill(ellipse(center(truth), GROUND + 2, width, 4.5), (24, 22, 48), 70)


def draw_character(canvas: Canvas, truth: Truth) -> None:
    """The character alone, without shadow."""
    body = pose(truth.action, truth.phase, truth.facing)
    x, hip = center(truth), GROUND - body.hip
    shoulder = hip - TORSO_HEIGHT
    chest = x + body.lean
    head_x, head_y = chest + body.head[0], shoulder - NECK + body.head[1]

    draw_behind_head(canvas, truth, head_x, head_y)
    _draw_tail(canvas, truth, x, hip)
    _draw_legs(canvas, truth, body, x, hip)
    if not body.holds_book:
        _draw_arms(canvas, truth, body, chest, shoulder)
    draw_bottom(canvas, truth, BOTTOM[truth.bottom], x, hip, _skirt_spread(body))
    draw_shirt(canvas, truth, x, body.lean, shoulder, hip)
    if body.holds_book:
        _draw_arms(canvas, truth, body, chest, shoulder)
        _draw_book(canvas, truth, body, chest, shoulder)
    draw_neckwear(canvas, truth, chest, shoulder + 3.5)
    draw_head(canvas, truth, body, head_x, head_y)
    if truth.accessory == "glasses":
        draw_glasses(canvas, head_x, eye_line(truth, body, head_y))
    draw_hat(canvas, truth, head_x, head_y)


def _skirt_spread(body: Pose) -> float:
    """A skirt follows the knees when they spread."""
    return 0.3 * max(0.0, max(abs(leg[1][0]) for leg in body.legs) - 10)


def _at(limb: Limb, x: float, y: float) -> tuple[Point, Point, Point]:
    (ax, ay), (bx, by), (cx, cy) = limb
    return (x + ax, y + ay), (x + bx, y + by), (x + cx, y + cy)


def _draw_tail(canvas: Canvas, truth: Truth, x: float, hip: float) -> None:
    coat, back = COAT[truth.kind][truth.tone], -truth.facing
    if truth.kind == "cat":
        tail = curve(
            (x + 9 * back, hip - 1), (x + 30 * back, hip + 8, x + 22 * back, hip - 18, x + 33 * back, hip - 20)
        )
        canvas.line(tail, INK, 11.5)
        canvas.line(tail, coat, 6)
    elif truth.kind == "rabbit":
        canvas.shape(ellipse(x + 16 * back, hip - 1, 6.5, 6.5), blend(coat, PAPER, 0.6))


def _draw_legs(canvas: Canvas, truth: Truth, body: Pose, x: float, hip: float) -> None:
    coat = COAT[truth.kind][truth.tone]
    for leg, toe in zip(body.legs, body.toes, strict=True):
        joints = _at(leg, x, hip)
        canvas.limb(joints, coat if truth.kind == "girl" else BOTTOM[truth.bottom], 8.5)
        foot_x, foot_y = joints[2]
        foot = ellipse(foot_x + 2 * toe, foot_y + 0.5, *body.foot)
        canvas.shape(foot, SHOE if truth.kind in WITH_HAIR else shade(coat, 0.86))


def _draw_arms(canvas: Canvas, truth: Truth, body: Pose, chest: float, shoulder: float) -> None:
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


def _draw_book(canvas: Canvas, truth: Truth, body: Pose, chest: float, shoulder: float) -> None:
    top = shoulder + 16
    for side in (-1, 1):
        page = polygon((chest, top + 3), (chest + side * 17, top - 1), (chest + side * 17, top + 13), (chest, top + 17))
        canvas.shape(page, PAPER)
        canvas.line(polyline((chest + side * 5, top + 7), (chest + side * 12, top + 5.5)), (168, 172, 190), 2)
    for arm in body.arms:
        hand = _at(arm, chest, shoulder)[2]
        canvas.shape(ellipse(*hand, 4, 4), COAT[truth.kind][truth.tone], 2.6)
