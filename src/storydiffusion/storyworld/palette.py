"""The colors of StoryWorld, as RGB triples."""

from collections.abc import Mapping

Color = tuple[float, float, float]

INK: Color = (46, 34, 48)
PAPER: Color = (252, 249, 240)
WHITE: Color = (255, 255, 255)
BLUSH: Color = (246, 104, 116)
SHOE: Color = (112, 72, 62)
SCREEN: Color = (52, 60, 88)
GLOW: Color = (112, 242, 236)

SKIN: Mapping[str, Color] = {
    "light": (255, 222, 194),
    "tan": (242, 188, 140),
    "brown": (190, 128, 84),
    "dark": (126, 80, 58),
}
COAT: Mapping[str, Mapping[str, Color]] = {
    "girl": SKIN,
    "boy": SKIN,
    "cat": {"light": (252, 234, 206), "tan": (246, 172, 88), "brown": (164, 112, 76), "dark": (98, 94, 108)},
    "bear": {"light": (248, 236, 214), "tan": (226, 172, 110), "brown": (158, 104, 64), "dark": (102, 76, 68)},
    "rabbit": {"light": (254, 246, 242), "tan": (232, 198, 160), "brown": (174, 132, 104), "dark": (124, 112, 118)},
    "fox": {"light": (250, 238, 222), "tan": (248, 158, 66), "brown": (206, 100, 46), "dark": (104, 98, 118)},
    "robot": {"light": (226, 234, 242), "tan": (236, 202, 122), "brown": (190, 128, 90), "dark": (112, 122, 144)},
}
HAIR: Mapping[str, Color] = {
    "black": (62, 52, 64),
    "brown": (134, 82, 48),
    "blonde": (252, 214, 100),
    "red": (224, 92, 42),
    "blue": (88, 156, 232),
}
SHIRT: Mapping[str, Color] = {
    "red": (228, 52, 54),
    "orange": (248, 144, 36),
    "yellow": (252, 214, 50),
    "green": (56, 170, 80),
    "blue": (48, 100, 218),
    "purple": (144, 72, 192),
    "pink": (248, 138, 186),
    "white": (248, 248, 248),
}
BOTTOM: Mapping[str, Color] = {
    "blue": (62, 94, 176),
    "black": (66, 62, 76),
    "brown": (144, 96, 58),
    "green": (66, 136, 88),
    "red": (186, 46, 60),
}
HAT: Mapping[str, Color] = {
    "red": (226, 50, 56),
    "blue": (54, 108, 216),
    "green": (62, 172, 94),
    "yellow": (250, 206, 48),
    "purple": (150, 78, 196),
    "black": (66, 62, 76),
}


def shade(color: Color, factor: float) -> Color:
    """Darken `color` by a factor below one."""
    return color[0] * factor, color[1] * factor, color[2] * factor


def blend(a: Color, b: Color, weight: float) -> Color:
    """Return the color `weight` of the way from `a` to `b`."""
    return tuple(x + (y - x) * weight for x, y in zip(a, b, strict=True))  # type: ignore[return-value]
