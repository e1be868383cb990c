"""Scenes, the images of the second edition: an empty place, one character or two, each with a mood and a side."""

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar

from storydiffusion.errors import UserError
from storydiffusion.storyworld.poses import STILL_PHASE, Stance, pose
from storydiffusion.storyworld.postures import show_mood
from storydiffusion.storyworld.truth import ATTRIBUTES, LOOKS, Truth, check_attributes, check_place, is_absent

MOODS = ("neutral", "amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness")
"""Neutral, and the eight emotions of Mikels et al. (2005)."""
SIDES = ("far left", "left", "middle", "right", "far right")

FIGURE_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    **{name: ATTRIBUTES[name] for name in (*LOOKS, "action")},
    "kind": (*ATTRIBUTES["kind"], "fox"),
    "mood": MOODS,
    "side": SIDES,
}
"""The values of every attribute of a character."""

SCENE_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "characters": ("0", "1", "2"),
    "place": ATTRIBUTES["place"],
    "object": ATTRIBUTES["object"],
}
"""The values of every attribute of a whole image."""

MOST_CHARACTERS = 2
EDGE = 34.0
"""Largest distance of a character from the middle, in pixels of 128."""
_MIDDLE, _NEAR = 11.0, 25.0  # |x| up to which a side is the middle, or left or right without "far"

SHARE = {0: 1, 1: 6, 2: 5}
"""Relative frequency of the number of characters."""
SIDE_PAIRS = (
    ("left", "right"),
    ("far left", "right"),
    ("left", "far right"),
    ("far left", "far right"),
    ("far left", "middle"),
    ("middle", "far right"),
)
"""The sides that two characters take without hiding each other."""
_ALONE: Mapping[str, tuple[float, float]] = {"middle": (-5, 5), "right": (16, 22), "far right": (26.5, 28)}
_TOGETHER: Mapping[str, tuple[float, float]] = {"middle": (5, 7), "right": (20.5, 23.5), "far right": (30, 30.8)}


@dataclass(frozen=True)
class Figure:
    """A character of a scene: looks as in `Truth`, and action, phase, mood, x and facing.

    x is the shift from the middle of the frame in pixels of 128, in [−34, 34].
    Raises UserError for a value the world does not have.
    """

    kind: str
    tone: str
    hair: str | None
    shirt: str
    pattern: str
    bottom: str
    hat: str
    hat_color: str | None
    accessory: str
    action: str
    phase: float
    mood: str
    x: float
    facing: int

    edition: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_attributes(self, FIGURE_ATTRIBUTES)
        check_place(self, EDGE)

    @property
    def side(self) -> str:
        """Where the character is, one of SIDES."""
        if abs(self.x) <= _MIDDLE:
            return "middle"
        side = "left" if self.x < 0 else "right"
        return side if abs(self.x) <= _NEAR else f"far {side}"

    def stance(self) -> Stance:
        """Return the character's stance in a still."""
        body = pose(self.action, self.phase, self.facing)
        return Stance(show_mood(body, self.mood, float(self.action == "standing")), self.x, self.facing)


Character = Truth | Figure
"""What can be drawn: the character of a `Truth`, or one of a `Scene`."""


@dataclass(frozen=True)
class Scene:
    """One image: a place with its layout, an object, and no, one or two characters from left to right.

    Raises UserError for a value the world does not have, a third character, or characters in another order.
    """

    place: str
    object: str
    layout: int
    characters: tuple[Figure, ...]

    def __post_init__(self) -> None:
        for name in ("place", "object"):
            if getattr(self, name) not in (values := SCENE_ATTRIBUTES[name]):
                raise UserError(f"{name} is {getattr(self, name)!r}: choose one of {', '.join(values)}")
        if len(self.characters) > MOST_CHARACTERS:
            raise UserError(f"a scene has {len(self.characters)} characters: give at most {MOST_CHARACTERS}")
        if [figure.x for figure in self.characters] != sorted(figure.x for figure in self.characters):
            raise UserError("the characters of a scene are not in order: give them from left to right")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, ready for JSON."""
        return asdict(self) | {"characters": [asdict(figure) for figure in self.characters]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Scene":
        """Invert `to_dict`; raise UserError for a missing or unknown field."""
        _check_fields(cls, record)
        for figure in record["characters"]:
            _check_fields(Figure, figure)
        return cls(**{**record, "characters": tuple(Figure(**figure) for figure in record["characters"])})


def _check_fields(kind: type[Scene | Figure], record: Mapping[str, Any]) -> None:
    if wrong := {field.name for field in fields(kind)}.symmetric_difference(record):
        raise UserError(f"a {kind.__name__} record has the wrong fields; correct {', '.join(sorted(wrong))}")


def scene_labels(scene: Scene) -> dict[str, str | None]:
    """Return the value of every name in `SCENE_LABELS`; None for what the scene lacks."""
    labels: dict[str, str | None] = {
        "characters": str(len(scene.characters)),
        "place": scene.place,
        "object": scene.object,
    }
    for slot in range(MOST_CHARACTERS):
        for name in FIGURE_ATTRIBUTES:
            there = slot < len(scene.characters)
            labels[f"{name}_{slot + 1}"] = getattr(scene.characters[slot], name) if there else None
    return labels


def scene_positions(scene: Scene) -> tuple[float, ...]:
    """Return x of the characters from left to right, NaN for those that the scene lacks."""
    found = [figure.x for figure in scene.characters]
    return (*found, *[math.nan] * (MOST_CHARACTERS - len(found)))


SCENE_LABELS: Mapping[str, tuple[str, ...]] = SCENE_ATTRIBUTES | {
    f"{name}_{slot + 1}": values for slot in range(MOST_CHARACTERS) for name, values in FIGURE_ATTRIBUTES.items()
}
"""Every attribute of a scene and its values: kind_1 is the kind of the character on the left, or of the only one."""


def split_label(label: str) -> tuple[str, int]:
    """Return the attribute of a label of either edition and the number of its character, 0 for none.

    kind_1 gives kind and 1, hat_color gives hat_color and 0.
    """
    attribute, _, slot = label.rpartition("_")
    return (attribute, int(slot)) if slot.isdigit() else (label, 0)


def existing_labels(reading: Mapping[str, str]) -> dict[str, str]:
    """Return a reading of an image without what it says of characters, hair and hats that are not there."""
    kept = {}
    for name, value in reading.items():
        attribute, slot = split_label(name)
        if not slot:
            kept[name] = value
        elif slot <= int(reading["characters"]):
            kind, hat = reading[f"kind_{slot}"], reading[f"hat_{slot}"]
            if not is_absent(attribute, kind, hat):
                kept[name] = value
    return kept


def sample_scene(seed: int, index: int, **fixed: Any) -> Scene:
    """Return scene number `index` of the world `seed`, the same on every machine; `fixed` sets fields by name.

    Attributes are independent and uniform, but the number of characters follows `SHARE`. Fields of a scene are its
    place, object, layout and `count` of characters; all others set an attribute of every character, `side` included
    where there is one. Fixing one field leaves the draw of the others as it was.
    """
    rng = random.Random(f"storyworld/2/{seed}/{index}")
    count = rng.choices(list(SHARE), list(SHARE.values()))[0]
    count = fixed.pop("count", count)
    looks = [_sample_looks(rng, fixed) for _ in range(MOST_CHARACTERS)]
    return _sample_activity(rng, looks[:count], fixed)


def sample_scene_pair_member(seed: int, index: int) -> Scene:
    """Return scene `index` of the paired world: 2k and 2k + 1 show the same characters in two independent activities.

    One of them may also stand alone in the second scene.
    """
    return sample_scene_story_member(seed, index, 2)


def sample_scene_story_member(seed: int, index: int, panels: int) -> Scene:
    """Return scene `index` of the world of stories: `panels` in a row show the same characters in other activities.

    The first shows all of them; in each other, one of two may stand alone.
    """
    first = sample_scene(seed, index - index % panels)
    if index % panels == 0:
        return first
    rng = random.Random(f"storyworld/2/pairs/{seed}/{index}")
    cast = [{name: getattr(figure, name) for name in LOOKS} for figure in first.characters]
    if len(cast) == MOST_CHARACTERS:
        cast = rng.choice((cast, cast[::-1], cast[:1], cast[1:]))
    return _sample_activity(rng, cast, {})


def sample_scene_relative(seed: int, index: int, family: int) -> Scene:
    """Return scene `index`, which differs from the others of its family of `family` scenes only in attire."""
    head = sample_scene(seed, index - index % family)
    rng = random.Random(f"storyworld/2/families/{seed}/{index}")
    looks = [_sample_looks(rng, {"kind": figure.kind}) for figure in head.characters]
    return replace(head, characters=tuple(map(_redress, head.characters, looks)))


def _redress(figure: Figure, looks: Mapping[str, Any]) -> Figure:
    return replace(figure, **looks)


def _sample_looks(rng: random.Random, fixed: Mapping[str, Any]) -> dict[str, Any]:
    drawn = {name: rng.choice(FIGURE_ATTRIBUTES[name]) for name in LOOKS}
    drawn.update({name: fixed[name] for name in LOOKS if name in fixed})
    return {name: None if is_absent(name, drawn["kind"], drawn["hat"]) else value for name, value in drawn.items()}


def _sample_activity(rng: random.Random, looks: list[dict[str, Any]], fixed: Mapping[str, Any]) -> Scene:
    """Sample place, object, sides, actions and moods for characters of these looks."""
    drawn: dict[str, Any] = {name: rng.choice(SCENE_ATTRIBUTES[name]) for name in ("place", "object")}
    drawn["layout"] = rng.randrange(1 << 30)
    alone, together = rng.choice(SIDES), rng.choice(SIDE_PAIRS)
    sides = together if len(looks) == MOST_CHARACTERS else (fixed.get("side", alone),)
    figures = []
    for look, side in zip(looks, sides, strict=False):
        action, mood = rng.choice(FIGURE_ATTRIBUTES["action"]), rng.choice(MOODS)
        action, mood = fixed.get("action", action), fixed.get("mood", mood)
        x, facing = _sample_x(rng, side, sides), rng.choice((-1, 1))
        figure = Figure(**look, action=action, phase=STILL_PHASE[action], mood=mood, x=x, facing=facing)
        figures.append(replace(figure, facing=acting_side(figure, len(looks))))
    drawn.update({name: value for name, value in fixed.items() if name in drawn})
    return Scene(**drawn, characters=tuple(figures))


def _sample_x(rng: random.Random, side: str, sides: tuple[str, ...]) -> float:
    """Return where a character at `side` is, when `sides` are all that are taken."""
    low, high = (_ALONE if len(sides) == 1 else _TOGETHER)[side.replace("left", "right")]
    x = round(low + (high - low) * rng.random(), 1)
    away = side == "middle" and sides[-1] == "far right"  # of two, the middle one leaves room for the other
    return -x if "left" in side or away else x


def acting_side(figure: Figure, count: int) -> int:
    """Return the facing of a figure among `count` that keeps its hands in the frame and off the other's face."""
    alone = count < MOST_CHARACTERS
    if figure.action not in ("waving", "running") or (alone and abs(figure.x) <= _NEAR):
        return figure.facing
    outwards = 1 if figure.x > 0 else -1
    return -outwards if alone else outwards
