"""The words that a model trained on StoryWorld knows, and what a prompt asks for that it cannot draw."""

from collections.abc import Mapping
from difflib import get_close_matches

from storydiffusion.storyworld.captions import PLACE_WORDS, THIRD_PERSON, with_article, words
from storydiffusion.storyworld.edition import Edition
from storydiffusion.storyworld.scene_captions import EMPTY_WORDS, MOOD_WORDS, SIDE_WORDS


def group_words(edition: Edition) -> dict[str, tuple[str, ...]]:
    """Return the vocabulary in groups, words and phrases; the last group has all words of no other."""
    values = _get_attributes(edition)
    groups = {
        "characters": values["kind"],
        "skin, fur or metal": values["tone"],
        "hair": tuple(f"{color} hair" for color in values["hair"]),
        "clothes": ("shirt", "skirt", "pants"),
        "patterns": values["pattern"],
        "accessories": values["accessory"][1:],
        "hats": (*values["hat"][1:], "no hat", "without a hat"),
        "colours": tuple(dict.fromkeys((*values["shirt"], *values["bottom"], *values["hat_color"]))),
        "actions": tuple(f"{action}, {THIRD_PERSON[action]}" for action in values["action"]),
        "places": tuple(PLACE_WORDS[place] for place in values["place"]),
        "objects": tuple(f"beside {with_article(each)}" for each in values["object"][1:]),
    }
    if "mood" in values:
        groups |= {f"mood: {mood}": MOOD_WORDS[mood] for mood in values["mood"]}
        groups |= {"sides": tuple(SIDE_WORDS[side] for side in values["side"]), "an empty place": EMPTY_WORDS}
    named = {word for phrases in groups.values() for phrase in phrases for word in words(phrase)}
    return {**groups, "other words": tuple(word for word in edition.vocabulary() if word not in named)}


def _get_attributes(edition: Edition) -> Mapping[str, tuple[str, ...]]:
    """Return the values of the attributes of one character, and of the image."""
    return {name.removesuffix("_1"): values for name, values in edition.labels.items() if not name.endswith("_2")}


def find_near_words(word: str, known: tuple[str, ...]) -> list[str]:
    """Return up to two known words that are spelled like `word`, the nearest first."""
    return get_close_matches(word.lower(), [each for each in known if each.isalpha()], n=2, cutoff=0.8)


def find_limits(prompt: str, edition: Edition) -> list[str]:
    """Return what `prompt` asks for and no image of `edition` shows, as predicates: "names 3 characters, but …".

    These are too many characters, none that is known, and moods, sides or empty places of a later edition.
    """
    said, limits = words(prompt.lower()), []
    values = _get_attributes(edition)
    count, most = sum(word in values["kind"] for word in said), edition.most_characters
    if count > most:
        limits.append(f"names {count} characters, but the model draws at most {most} in an image")
    if not count and not ("mood" in values and set(said) & set(EMPTY_WORDS)):
        limits.append(f"names no character that the model draws ({', '.join(values['kind'])})")
    for name, group in _get_later_words(edition).items():
        if asked := [word for word in dict.fromkeys(said) if word in group]:
            limits.append(f"asks for {name} ({', '.join(asked)}), which the model does not draw")
    return limits


def _get_later_words(edition: Edition) -> dict[str, set[str]]:
    """Return the words for what only a later edition draws, by what that is."""
    if "mood" in _get_attributes(edition):
        return {}
    phrases = {
        "moods": [word for each in MOOD_WORDS.values() for word in each],
        "sides": list(SIDE_WORDS.values()),
        "empty places": list(EMPTY_WORDS),
    }
    known = set(edition.vocabulary())
    return {name: {word for phrase in each for word in words(phrase)} - known for name, each in phrases.items()}
