"""The frozen stories that measure consistency and alignment: 20 characters × 100 activities, as in the paper
(arXiv 2405.01434, section 4.2), whose own prompts were never released.

They were drawn once (`draw_stories`, a function only of its arguments) and are kept in stories.json with seed and
checksum; `python -m storydiffusion.storyworld.stories` rewrites the file. Stories of another length come from the same
generator with another seed.
"""

import hashlib
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

from storydiffusion.errors import UserError
from storydiffusion.files.atomic import write_atomically
from storydiffusion.files.json_file import json_bytes
from storydiffusion.storyworld.captions import ATTIRE, WORDINGS, describe
from storydiffusion.storyworld.truth import ATTRIBUTES, WITH_HAIR, sample_truth

FILE = Path(__file__).with_name("stories.json")
SEED = 10_001  # a world of its own, separate from the training and held-out worlds
SEED_OF_OTHER_LENGTHS = 10_002  # another such world
CHARACTERS, ACTIVITIES, STORIES, PANELS = 20, 100, 128, 4
ACTIVITY: tuple[str, ...] = ("action", "place", "object")
MOST_NAMED = 3


@dataclass(frozen=True)
class Panel:
    """A prompt and the attributes that it states, attribute → value: kind, action, place, object and named attire.

    A prompt without an object states "none", as the training captions do; a hat is stated with its color.
    """

    prompt: str
    prompted: Mapping[str, str]

    cast: ClassVar[tuple[int, ...]] = (0,)


@dataclass(frozen=True)
class FrozenStory:
    """Panels of one character; any four in a row have four different actions and four different places.

    `number` counts the stories from 0. `open` lists the attributes that the character has but no prompt states: those
    that consistent self-attention must keep the same. The hat's color is open where the hat is; it exists only in
    images with a hat.
    """

    number: int
    open: tuple[str, ...]
    panels: tuple[Panel, ...]

    @property
    def kind(self) -> str:
        """Return the kind of the character."""
        return self.panels[0].prompted["kind"]


def get_stories(panels: int) -> tuple[list[FrozenStory], str]:
    """Return stories of `panels` panels each, at least 2, and the checksum of their content.

    Four panels give the frozen stories; other lengths are drawn now, the same on every machine.
    """
    if panels == PANELS:
        return load_stories(), json.loads(FILE.read_text(encoding="utf-8"))["sha256"]
    content = draw_stories(SEED_OF_OTHER_LENGTHS, panels)
    return [_build_story(content, number) for number in range(STORIES)], checksum(content)


def load_stories(file: Path = FILE) -> list[FrozenStory]:
    """Load the frozen stories; raise UserError if the file is missing or does not match its checksum."""
    content = read_frozen(file)
    return [_build_story(content, number) for number in range(len(content["stories"]))]


def read_frozen(file: Path) -> dict[str, Any]:
    """Read a file of frozen stories; raise UserError if it is missing or does not match its checksum."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        frozen = content.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{file} is not a readable file of frozen stories: restore it from the release") from error
    if checksum(content) != frozen:
        raise UserError(f"{file} was changed: its checksum is not {frozen[:12]}…; restore it from the release")
    return content


def draw_stories(seed: int, panels: int = PANELS) -> dict[str, Any]:
    """Return the content of the file: plain lists and dicts, the same for the same arguments on every machine.

    Characters take turns; every activity is used equally often, give or take one or two.
    """
    rng = random.Random(f"stories/{seed}")
    characters = _draw_characters(seed, rng)
    activities = rng.sample([list(triple) for triple in product(*(ATTRIBUTES[name] for name in ACTIVITY))], ACTIVITIES)
    used = [0] * ACTIVITIES
    stories = []
    for number in range(STORIES):
        chosen = _choose_activities(activities, used, panels, rng)
        character = characters[number % CHARACTERS]
        prompts = []
        for panel, activity in enumerate(chosen):
            activity_values = dict(zip(ACTIVITY, activities[activity], strict=True))
            truth = sample_truth(seed, number * panels + panel, **character["looks"], **activity_values)
            prompts.append(describe(truth, [*character["named"], "object"], rng.randrange(len(WORDINGS))))
        stories.append({"character": number % CHARACTERS, "activities": chosen, "prompts": prompts})
    return {"seed": seed, "characters": characters, "activities": activities, "stories": stories}


def checksum(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the content, independent of the file's layout."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _draw_characters(seed: int, rng: random.Random) -> list[dict[str, Any]]:
    """Draw characters: each kind equally often, each with 0 to 3 named parts of the attire and the others open.

    Two of every five have their shirt's color named, so that each of the eight colors is named once.
    """
    kinds = [ATTRIBUTES["kind"][i % len(ATTRIBUTES["kind"])] for i in range(CHARACTERS)]
    rng.shuffle(kinds)
    shirts = iter(ATTRIBUTES["shirt"])
    characters = []
    for index, kind in enumerate(kinds):
        named = ["shirt"] if index % 5 < 2 else []
        shirt = {"shirt": next(shirts)} if named else {}
        truth = sample_truth(seed, index, kind=kind, **shirt).to_dict()
        looks = {name: truth[name] for name in ("kind", *ATTIRE, "hat_color")}
        nameable = [name for name in ATTIRE if name != "shirt" and looks[name] is not None]
        if looks["accessory"] == "none":  # a caption has no words for it
            nameable.remove("accessory")
        named += rng.sample(nameable, rng.randint(0, MOST_NAMED - len(named)))
        characters.append({"looks": looks, "named": sorted(named, key=ATTIRE.index)})
    return characters


def _choose_activities(activities: list[list[str]], used: list[int], panels: int, rng: random.Random) -> list[int]:
    """Choose an activity's number for each panel, the least used first; count them in `used`.

    Any four in a row have different actions and places; longer stories repeat activities.
    """
    chosen: list[int] = []
    for _ in range(panels):
        taken = {word for number in chosen[-(PANELS - 1) :] for word in activities[number][:2]}
        fitting = [number for number, activity in enumerate(activities) if not taken & set(activity[:2])]
        chosen.append(min(fitting, key=lambda number: (used[number], rng.random())))
        used[chosen[-1]] += 1
    return chosen


def _build_story(content: Mapping[str, Any], number: int) -> FrozenStory:
    record = content["stories"][number]
    looks, named = (content["characters"][record["character"]][key] for key in ("looks", "named"))
    prompted = ["kind", *named, *(["hat_color"] if "hat" in named and looks["hat"] != "none" else [])]
    panels = tuple(
        Panel(
            prompt,
            {name: looks[name] for name in prompted} | dict(zip(ACTIVITY, content["activities"][k], strict=True)),
        )
        for prompt, k in zip(record["prompts"], record["activities"], strict=True)
    )
    left_open = [name for name in ATTIRE if name not in named and (name != "hair" or looks["kind"] in WITH_HAIR)]
    if "hat" in left_open:
        left_open.append("hat_color")
    return FrozenStory(number, tuple(left_open), panels)


if __name__ == "__main__":
    frozen = draw_stories(SEED)
    write_atomically(FILE, json_bytes({"sha256": checksum(frozen), **frozen}))
