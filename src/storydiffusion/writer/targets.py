"""What a story is written for: the words that an image model draws, and how its prompts are built from them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from storydiffusion.errors import UserError
from storydiffusion.story import Story, panel_prompts
from storydiffusion.storyworld.captions import (
    ATTIRE,
    PLACE_WORDS,
    WORDINGS,
    describe_clothes,
    name_character,
    with_article,
)
from storydiffusion.storyworld.scene import FIGURE_ATTRIBUTES, MOST_CHARACTERS, sample_scene
from storydiffusion.storyworld.scene_captions import MOOD_WORDS
from storydiffusion.storyworld.truth import ATTRIBUTES
from storydiffusion.writer.emotions import CATEGORIES, load_elements
from storydiffusion.writer.prompt_check import check_prompt
from storydiffusion.writer.schema import Schema, choice, items, record, text

LONGEST_NAME, LONGEST_TITLE, LONGEST_CAPTION, LONGEST_DESCRIPTION, LONGEST_PROMPT = 30, 100, 300, 200, 400  # characters
MOST_IN_CAST = 3
OUTDOORS = ("park", "beach", "city", "snow", "forest")
FACES: Mapping[str, str] = {
    "amusement": "laughing",
    "awe": "looking amazed",
    "contentment": "smiling happily",
    "excitement": "beaming with excitement",
    "anger": "looking angry",
    "disgust": "looking disgusted",
    "fear": "looking scared",
    "sadness": "looking sad",
}
"""How free prompts say a mood."""

Looks = Mapping[str, str]
"""kind, and named parts of the attire (`ATTIRE`, hat_color), attribute → value"""


@dataclass(frozen=True)
class Actor:
    """A character in an image, its action, and the emotion that it shows, None for a neutral face."""

    name: str
    action: str
    mood: str | None = None


@dataclass(frozen=True)
class Shot:
    """What an image shows: actors from left to right, a place, an object or "none", free details and the framing.

    Models of StoryWorld alone take neither details nor framing.
    """

    actors: tuple[Actor, ...]
    place: str
    object: str = "none"
    details: tuple[str, ...] = ()
    framing: str = "medium shot"


class Target(ABC):
    """The image model that a story is written for.

    name: for the record. values: attribute → values that it draws. most_characters: in one image. free: whether prompts
    may use other words. draws_moods: whether prompts name the characters' moods.
    """

    name: str
    values: Mapping[str, tuple[str, ...]]
    most_characters: int
    free: bool
    draws_moods: bool

    @abstractmethod
    def describe(self, looks: Looks) -> str:
        """Return the description of a character, which replaces its name in every prompt."""

    @abstractmethod
    def prompt(self, shot: Shot) -> str:
        """Return the prompt of a panel, with `[Name]` for characters."""

    @abstractmethod
    def reply_schema(self, panels: int) -> Schema:
        """Return the schema of a story of `panels` panels that a language model writes."""

    @abstractmethod
    def read_reply(self, reply: dict[str, Any]) -> dict[str, Any]:
        """Return the story that a reply of that schema means, with the keys of a story's YAML."""

    @abstractmethod
    def check(self, story: Story) -> None:
        """Raise UserError if the model cannot draw the story."""

    def elements(self, emotion: str) -> dict[str, list[str]]:
        """Return the visual elements of an emotion that the model draws, category → elements."""
        known = {word for name in ("place", "object", "action") for word in self.values[name]}
        found = load_elements()[emotion]
        return {name: [each for each in found[name] if self.free or each in known] for name in CATEGORIES}


class StoryWorldTarget(Target):
    """A model trained only on StoryWorld: prompts use the words of its captions.

    with_moods: whether prompts name the characters' moods, of an edition that has them.
    """

    free = False

    def __init__(self, edition: int, with_moods: bool = True) -> None:
        if edition not in (1, 2):
            raise UserError(
                f"edition={edition} of StoryWorld is unknown to the writer: choose a model of edition 1 or 2"
            )
        self.edition = edition
        self.draws_moods = with_moods and edition > 1
        self.name = f"StoryWorld, edition {edition}"
        self.values = ATTRIBUTES if edition == 1 else {**ATTRIBUTES, **FIGURE_ATTRIBUTES}
        self.most_characters = 1 if edition == 1 else MOST_CHARACTERS

    def describe(self, looks: Looks) -> str:
        """Return a description; without an article where moods stand between the article and the noun."""
        words = describe_looks(looks)
        return words if self.edition == 1 else words.partition(" ")[2]

    def prompt(self, shot: Shot) -> str:
        place = PLACE_WORDS[shot.place]
        beside = "" if shot.object == "none" else f" beside {with_article(shot.object)}"
        if not shot.actors:
            noun = "snow field" if shot.place == "snow" else shot.place
            return f"[NC] an empty {noun}{beside.replace('beside', 'with')}"
        clauses = [f"{self._name(actor)} is {actor.action}" for actor in shot.actors]
        if len(clauses) == 1:
            return f"{clauses[0]} {place}{beside}"
        return f"{clauses[0]} on the left and {clauses[1]} on the right, {place}{beside}"

    def _name(self, actor: Actor) -> str:
        if self.edition == 1:
            return f"[{actor.name}]"
        mood = f"{MOOD_WORDS[actor.mood][0]} " if actor.mood and self.draws_moods else ""
        return with_article(f"{mood}[{actor.name}]")

    def reply_schema(self, panels: int) -> Schema:
        values = {
            name: choice(*self.values[name]) for name in ("kind", "tone", "shirt", "hat", "hat_color", "accessory")
        }
        character = record(name=text(LONGEST_NAME), **values, hair=choice("none", *self.values["hair"]))
        actor = {"name": text(LONGEST_NAME), "action": choice(*self.values["action"])}
        if self.edition > 1:
            actor["mood"] = choice(*self.values["mood"])
        panel = record(
            place=choice(*self.values["place"]),
            object=choice(*self.values["object"]),
            characters=items(record(**actor), 1 if self.edition == 1 else 0, self.most_characters),
            caption=text(LONGEST_CAPTION),
        )
        return _story_schema(character, panel, panels)

    def read_reply(self, reply: dict[str, Any]) -> dict[str, Any]:
        characters = {}
        for each in reply["characters"]:
            looks = {name: value for name, value in each.items() if name != "name" and value != "none"}
            if "hat" not in looks:
                looks.pop("hat_color")
            characters = add_character(characters, each["name"], self.describe(looks))
        panels = []
        for number, each in enumerate(reply["panels"], start=1):
            actors = [Actor(_plain(one["name"]), one["action"], _mood(one)) for one in each["characters"]]
            _check_once([actor.name for actor in actors], number)
            shot = Shot(tuple(actors), each["place"], each["object"])
            panels.append({"prompt": self.prompt(shot), "caption": each["caption"]})
        return {"title": reply["title"], "characters": characters, "panels": panels}

    def check(self, story: Story) -> None:
        for number, panel in enumerate(story.panels, start=1):
            if len(panel.characters) > self.most_characters:
                raise UserError(f"panel {number} shows {len(panel.characters)} characters: show {self.most_characters}")


class FreeTarget(Target):
    """A model for free prompts, such as SD1.5 or SDXL: fixed descriptions, prompts within the text encoder's length."""

    free = True
    draws_moods = True
    name = "free prompts"
    values: Mapping[str, tuple[str, ...]] = {**ATTRIBUTES, **FIGURE_ATTRIBUTES}
    most_characters = 2

    def describe(self, looks: Looks) -> str:
        """Return a description of the same body and clothes in every image."""
        return f"a little {describe_looks(looks).partition(' ')[2]}"

    def prompt(self, shot: Shot) -> str:
        beside = "" if shot.object == "none" else f" beside {with_article(shot.object)}"
        where = f"{PLACE_WORDS[shot.place]}{beside}"
        return ", ".join([f"{shot.framing} of {_show_actors(shot.actors, where)}", *shot.details])

    def reply_schema(self, panels: int) -> Schema:
        character = record(name=text(LONGEST_NAME), description=text(LONGEST_DESCRIPTION))
        return _story_schema(character, record(prompt=text(LONGEST_PROMPT), caption=text(LONGEST_CAPTION)), panels)

    def read_reply(self, reply: dict[str, Any]) -> dict[str, Any]:
        characters: dict[str, str] = {}
        for each in reply["characters"]:
            characters = add_character(characters, each["name"], each["description"])
        return {"title": reply["title"], "characters": characters, "panels": reply["panels"]}

    def check(self, story: Story) -> None:
        for number, each in enumerate(panel_prompts(story), start=1):
            check_prompt(each.prompt, f"the prompt of panel {number}")


def _show_actors(actors: tuple[Actor, ...], where: str) -> str:
    """Return who does what where in which mood; a mood that two share is said once."""
    moods = {actor.mood for actor in actors}
    is_shared = len(actors) > 1 and len(moods) == 1
    shown = []
    for actor in actors:
        face = f", {FACES[actor.mood]}," if actor.mood and not is_shared else ""
        shown.append(f"[{actor.name}]{face} {'reading a book' if actor.action == 'reading' else actor.action}")
    both = "".join(f", both {FACES[mood]}" for mood in moods if mood and is_shared)
    return f"{' and '.join(shown)} {where}{both}"


def describe_looks(looks: Looks) -> str:
    """Return a description in StoryWorld's words, such as "a brown bear in a red shirt and a blue cap"."""
    figure = sample_scene(0, 0, count=1, **looks).characters[0]
    named = [name for name in ATTIRE if looks.get(name, "none") != "none"]
    return name_character(figure, named) + describe_clothes(figure, named, WORDINGS[0])


def add_character(characters: dict[str, str], name: str, description: str) -> dict[str, str]:
    """Return the characters with one more; raise UserError for a name given twice."""
    if (name := _plain(name)) in characters:
        raise UserError(f"the character {name!r} is described twice: remove one, or rename it")
    return {**characters, name: description}


def _check_once(names: list[str], number: int) -> None:
    """Raise UserError for a name that panel `number` has twice."""
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"panel {number} shows {name!r} twice: name each character of a panel once")


def _story_schema(character: Schema, panel: Schema, panels: int) -> Schema:
    return record(
        title=text(LONGEST_TITLE), characters=items(character, 1, MOST_IN_CAST), panels=items(panel, panels, panels)
    )


def _mood(actor: Mapping[str, str]) -> str | None:
    mood = actor.get("mood", "neutral")
    return None if mood == "neutral" else mood


def _plain(name: str) -> str:
    """Return a name without brackets, which models like to repeat."""
    return name.strip().removeprefix("[").removesuffix("]").strip()
