"""Captions of a truth: several wordings, any part of the attire left open."""

import random
import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from storydiffusion.errors import UserError
from storydiffusion.storyworld.scene import Character
from storydiffusion.storyworld.truth import ATTRIBUTES, WITH_HAIR, Truth, sample_truth

ATTIRE = ("tone", "hair", "shirt", "pattern", "bottom", "hat", "accessory")
"""Attributes that a caption may leave open; the hat's color is named with the hat."""

NAMING_PROBABILITY = 0.55
NAMING_PROBABILITY_IN_PAIRS = 0.25  # what words leave open, two images of one character must take from each other
NAMED_IN_ALL, NAMED_IN_ONE = 0.25, 0.25  # shares of the parts that all panels of a story name, or a single one


@dataclass(frozen=True)
class Wording:
    """A template of the sentence, built from {who}, {clothes}, {action}, {place} and {beside}."""

    order: str
    clothes: str
    action: str
    beside: str


@dataclass(frozen=True)
class Prompt:
    """A caption, and the labels that it states: names and values of the edition's labels.

    clauses: start and end in `text` of what it says of each character, in the order of the truth's characters.
    """

    text: str
    stated: Mapping[str, str]
    clauses: tuple[tuple[int, int], ...]


WORDINGS = (
    Wording("{who}{clothes} {action} {place}{beside}", " in", "is {doing}", " beside"),
    Wording("{place}, {who}{clothes} {action}{beside}", " wearing", "{does}", " next to"),
    Wording("{who} {action} {place}{beside}{clothes}", ", wearing", "is {doing}", " next to"),
    Wording("{who}{clothes}, {action} {place}{beside}", " in", "{doing}", " beside"),
    Wording("{who}{clothes} {action} {place}{beside}", " wearing", "{does}", " beside"),
    Wording("{place}, {who}{clothes} {action}{beside}", " in", "is {doing}", " beside"),
)


PLACE_WORDS: Mapping[str, str] = {
    "park": "in the park",
    "beach": "on the beach",
    "city": "in the city",
    "snow": "in the snow",
    "room": "in the room",
    "forest": "in the forest",
}
THIRD_PERSON: Mapping[str, str] = {
    "standing": "stands",
    "waving": "waves",
    "sitting": "sits",
    "jumping": "jumps",
    "running": "runs",
    "reading": "reads a book",
}
PLURAL = ("pants", "glasses", "flowers")


def describe(truth: Truth, named: Collection[str], wording: int = 0) -> str:
    """Return a caption with kind, action, place and exactly the attire in `named`, and the object if "object" is in it.

    Named parts that are absent are left out, except a missing hat: "no hat", "without a hat".
    `wording` picks a template, modulo their number. Raises UserError for a name that is neither attire nor object.
    """
    if unknown := set(named) - {*ATTIRE, "object"}:
        raise UserError(f"a caption cannot name {', '.join(sorted(unknown))}: choose from {', '.join(ATTIRE)}, object")
    style = WORDINGS[wording % len(WORDINGS)]
    return style.order.format(
        who=name_character(truth, named),
        clothes=describe_clothes(truth, named, style),
        **_activity(truth, style, "object" in named),
    )


def caption(truth: Truth, seed: int, naming_probability: float = NAMING_PROBABILITY) -> str:
    """Return the text of `draw_prompt`."""
    return draw_prompt(truth, seed, naming_probability).text


def draw_prompt(truth: Truth, seed: int, naming_probability: float = NAMING_PROBABILITY) -> Prompt:
    """Return a random caption, the same for the same seed: each part of the attire is named with that probability.

    Object, action and place are always named.
    """
    rng = random.Random(f"caption/{seed}")
    named = [name for name in ATTIRE if rng.random() < naming_probability]
    text = describe(truth, [*named, "object"], rng.randrange(len(WORDINGS)))
    stated = {"place": truth.place, "object": truth.object, **state_character(truth, named)}
    return Prompt(text, stated, ((0, len(text)),))


def state_character(character: Character, named: Collection[str]) -> dict[str, str]:
    """Return what a caption that names these parts of the attire states of a character: attribute → value.

    A hat is stated with its color; a missing accessory has no words.
    """
    names = ["kind", *(name for name in ATTIRE if name in named), *(["hat_color"] if "hat" in named else []), "action"]
    stated = {name: value for name in names if (value := getattr(character, name)) is not None}
    if stated.get("accessory") == "none":
        del stated["accessory"]
    return stated


def full_caption(truth: Truth) -> str:
    """Return the caption that names everything, in one fixed wording."""
    return describe(truth, (*ATTIRE, "object"))


def draw_pair_prompts(first: Truth, second: Truth, seed: int) -> tuple[Prompt, Prompt]:
    """Return random prompts of two images of one character side by side; the second's says what it does, and where."""
    activity = _activity(second, WORDINGS[seed % len(WORDINGS)], with_object=True)
    text = "{action} {place}{beside}".format(**activity)
    stated = {"place": second.place, "object": second.object, "action": second.action}
    return draw_prompt(first, seed, NAMING_PROBABILITY_IN_PAIRS), Prompt(text, stated, ((0, len(text)),))


def draw_story_captions(truths: Sequence[Truth], seed: int) -> list[str]:
    """Return random captions of the panels of a story, the same for the same seed; see `choose_story_attire`."""
    rng = random.Random(f"caption/story/{seed}")
    named = choose_story_attire([[0]] * len(truths), rng)
    return [
        describe(truth, [*parts, "object"], rng.randrange(len(WORDINGS)))
        for truth, (parts,) in zip(truths, named, strict=True)
    ]


def choose_story_attire(casts: Sequence[Sequence[Hashable]], rng: random.Random) -> list[list[list[str]]]:
    """Choose the parts of the attire that each panel's caption names, for each of its characters.

    Each part of a character is named in all its panels, in one of them, or in none, as in a story that leaves it open.

    Args:
        casts: what identifies the characters of each panel.
    """
    named: list[list[list[str]]] = [[[] for _ in cast] for cast in casts]
    for character in dict.fromkeys(each for cast in casts for each in cast):
        shown = [(panel, cast.index(character)) for panel, cast in enumerate(casts) if character in cast]
        for part in ATTIRE:
            draw, single = rng.random(), rng.choice(shown)
            naming = shown if draw < NAMED_IN_ALL else [single] if draw < NAMED_IN_ALL + NAMED_IN_ONE else []
            for panel, slot in naming:
                named[panel][slot].append(part)
    return named


def join_prompts(prompts: Sequence[Prompt]) -> Prompt:
    """Return the caption of images side by side, with the clauses of all; it states nothing."""
    text, clauses = "", []
    for prompt in prompts:
        text += ", and " if text else ""
        clauses += [(len(text) + start, len(text) + end) for start, end in prompt.clauses]
        text += prompt.text
    return Prompt(text, {}, tuple(clauses))


def words(text: str) -> list[str]:
    """Split a caption into vocabulary entries; a comma is an entry."""
    return re.findall(r"[a-z]+|,", text)


@cache
def vocabulary() -> tuple[str, ...]:
    """Return every word that a caption can use and the comma, sorted.

    They are collected from captions that cover each value of each attribute for each kind in each wording.
    """
    entries = {","}
    for kind in ATTRIBUTES["kind"]:
        for turn in range(max(len(values) for values in ATTRIBUTES.values())):
            values = {name: options[turn % len(options)] for name, options in ATTRIBUTES.items()}
            truth = sample_truth(0, turn, **{**values, "kind": kind})
            for wording in range(len(WORDINGS)):
                entries.update(words(describe(truth, (*ATTIRE, "object"), wording)))
    for value in ATTRIBUTES["hat_color"]:
        entries.update(words(describe(sample_truth(0, 0, hat="cap", hat_color=value), ("hat",))))
    return tuple(sorted(entries))


def _activity(truth: Truth, style: Wording, with_object: bool) -> dict[str, str]:
    """Return the words for action, place and object."""
    return {
        "action": style.action.format(doing=truth.action, does=THIRD_PERSON[truth.action]),
        "place": PLACE_WORDS[truth.place],
        "beside": f"{style.beside} {with_article(truth.object)}" if with_object and truth.object != "none" else "",
    }


def with_article(noun: str) -> str:
    """Return the noun with "a" or "an", a plural as it is."""
    if noun.split()[-1] in PLURAL:
        return noun
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def join_words(parts: list[str]) -> str:
    """Join parts by commas, the last by "and"."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def name_character(truth: Character, named: Collection[str], mood: str = "") -> str:
    """Name the character, a word for its mood first.

    A person's tone is the skin's, an animal's or a robot's that of the whole body.
    """
    looks = []
    person = truth.kind
    if "tone" in named:
        if truth.kind in WITH_HAIR:
            looks.append(f"{truth.tone} skin")
        else:
            person = f"{truth.tone} {truth.kind}"
    if mood:
        person = f"{mood} {person}"
    if "hair" in named and truth.hair:
        looks.append(f"{truth.hair} hair")
    return with_article(person) + (f" with {join_words(looks)}" if looks else "")


def describe_clothes(truth: Character, named: Collection[str], style: Wording) -> str:
    """Return the words for the named parts of the attire, "" for none."""
    items = []
    if cloth := [value for name, value in (("shirt", truth.shirt), ("pattern", truth.pattern)) if name in named]:
        items.append(with_article(" ".join([*cloth, "shirt"])))
    if "bottom" in named:
        items.append(with_article(f"{truth.bottom} {'skirt' if truth.kind == 'girl' else 'pants'}"))
    bare = "hat" in named and truth.hat == "none"
    if "hat" in named and not bare:
        items.append(with_article(f"{truth.hat_color} {truth.hat}"))
    if "accessory" in named and truth.accessory != "none":
        items.append(with_article(truth.accessory))
    if bare and style.clothes.endswith("wearing"):
        items.append("no hat")
        bare = False
    worn = f"{style.clothes} {join_words(items)}" if items else ""
    return worn + (" without a hat" if bare else "")
