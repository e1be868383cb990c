"""The truth about a StoryWorld image: every attribute that the renderer draws and a caption may name."""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from storydiffusion.errors import UserError
from storydiffusion.storyworld.poses import STILL_PHASE, Stance, pose

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "kind": ("girl", "boy", "robot", "cat", "bear", "rabbit"),
    "tone": ("light", "tan", "brown", "dark"),
    "hair": ("black", "brown", "blonde", "red", "blue"),
    "shirt": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white"),
    "pattern": ("plain", "striped", "dotted"),
    "bottom": ("blue", "black", "brown", "green", "red"),
    "hat": ("none", "cap", "tophat", "beanie", "crown"),
    "hat_color": ("red", "blue", "green", "yellow", "purple", "black"),
    "accessory": ("none", "glasses", "scarf", "bowtie"),
    "action": ("standing", "waving", "sitting", "jumping", "running", "reading"),
    "place": ("park", "beach", "city", "snow", "room", "forest"),
    "object": ("none", "ball", "balloon", "flowers", "gift"),
}
"""The values of every attribute that captions can name."""

LOOKS = ("kind", "tone", "hair", "shirt", "pattern", "bottom", "hat", "hat_color", "accessory")
"""The attributes that a character keeps from image to image."""

WITH_HAIR = ("girl", "boy")
MAX_SHIFT = 12.0
"""Largest distance of the character from the middle of a still, in pixels of 128."""
EDGE_SHIFT = 24.0
"""Largest such distance at the ends of clips; farther out the character would leave the frame."""


@dataclass(frozen=True)
class Truth:
    """One image: character (kind, tone of skin, fur or metal, attire), action and phase, place, object and view.

    phase in [0, 1] is the instant of the action's motion; x the shift of the character from the middle in pixels of
    128, in [−12, 12] for stills and in [−24, 24] for the ends of clips; facing −1 or 1 the side that acts; layout
    seeds the details of the background.
    `hair` is None unless kind is girl or boy, `hat_color` is None without a hat.
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
    place: str
    object: str
    x: float
    facing: int
    layout: int

    edition: ClassVar[int] = 1
    mood: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        check_attributes(self, ATTRIBUTES)
        check_place(self, EDGE_SHIFT)

    def stance(self) -> Stance:
        """Return the character's stance in a still."""
        return Stance(pose(self.action, self.phase, self.facing), self.x, self.facing)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields by name, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Truth":
        """Invert `to_dict`; raise UserError for a missing or unknown field."""
        names = {field.name for field in fields(cls)}
        if wrong := names.symmetric_difference(record):
            raise UserError(f"a truth record has the wrong fields; correct {', '.join(sorted(wrong))}")
        return cls(**record)


def check_attributes(character: Any, attributes: Mapping[str, tuple[str, ...]]) -> None:
    """Raise UserError for an attribute of `character` whose value is none of `attributes`."""
    for name, values in attributes.items():
        value = getattr(character, name)
        absent = is_absent(name, character.kind, character.hat)
        if absent and value is not None:
            raise UserError(
                f"{name} is {value!r}, but a {character.kind} with hat {character.hat!r} has none: use None"
            )
        if not absent and value not in values:
            raise UserError(f"{name} is {value!r}: choose one of {', '.join(values)}")


def is_absent(name: str, kind: str, hat: str) -> bool:
    """Return whether a character of this kind and hat lacks the attribute `name`."""
    return (name == "hair" and kind not in WITH_HAIR) or (name == "hat_color" and hat == "none")


def check_place(character: Any, edge: float) -> None:
    """Raise UserError for a phase, a shift farther than `edge` or a facing that the world does not have."""
    if not 0 <= character.phase <= 1:
        raise UserError(f"phase is {character.phase}: give a number from 0 to 1")
    if abs(character.x) > edge:
        raise UserError(f"x is {character.x}: give a number from -{edge:g} to {edge:g}")
    if character.facing not in (-1, 1):
        raise UserError(f"facing is {character.facing}: give -1 or 1")


def sample_truth(seed: int, index: int, **fixed: Any) -> Truth:
    """Return truth number `index` of the world `seed`, the same on every machine; `fixed` sets fields by name.

    Attributes are independent and uniform; the phase is the action's own for stills. A fixed hair or hat color is
    dropped where the kind has no hair or there is no hat. Fixing one field leaves the draw of the others as it was.
    """
    rng = random.Random(f"storyworld/{seed}/{index}")
    drawn: dict[str, Any] = {name: rng.choice(values) for name, values in ATTRIBUTES.items()}
    drawn["x"] = float(rng.randint(-int(MAX_SHIFT), int(MAX_SHIFT)))
    drawn["facing"] = rng.choice((-1, 1))
    drawn["layout"] = rng.randrange(1 << 30)
    drawn.update(fixed)
    drawn.setdefault("phase", STILL_PHASE.get(drawn["action"], 0.0))
    if drawn["kind"] not in WITH_HAIR:
        drawn["hair"] = None
    if drawn["hat"] == "none":
        drawn["hat_color"] = None
    return Truth.from_dict(drawn)


def sample_pair_member(seed: int, index: int) -> Truth:
    """Return truth `index` of the paired world: 2k and 2k + 1 show one character in two independent activities."""
    return sample_story_member(seed, index, 2)


def sample_story_member(seed: int, index: int, panels: int) -> Truth:
    """Return truth `index` of the world of stories: `panels` in a row show one character in independent activities."""
    first = sample_truth(seed, index - index % panels)
    if index % panels == 0:
        return first
    return sample_truth(seed, index, **{name: getattr(first, name) for name in LOOKS})


def sample_relative(seed: int, index: int, family: int) -> Truth:
    """Return truth `index`, which differs from the others of its family of `family` truths only in attire."""
    head = sample_truth(seed, index - index % family)
    return sample_truth(seed, index, kind=head.kind, action=head.action, place=head.place, object=head.object)


def truth_labels(truth: Truth) -> dict[str, str | None]:
    """Return the value of every name in `ATTRIBUTES`; None for what the character lacks."""
    return {name: getattr(truth, name) for name in ATTRIBUTES}


def truth_positions(truth: Truth) -> tuple[float, ...]:
    """Return x of the character."""
    return (truth.x,)
