"""Where a caption describes each of its characters: its kind and the looks that it names.

These are the words that a story's [Name] stands for. What a character feels and does, its side, place and object are no
part of them, though they may stand in between: "a happy rabbit is sitting in the park, wearing a cap".
"""

import re
from collections.abc import Mapping, Sequence

from storydiffusion.errors import UserError
from storydiffusion.storyworld.captions import ATTIRE, WORDINGS, Wording, describe_clothes, name_character
from storydiffusion.storyworld.scene import Figure, sample_scene, split_label
from storydiffusion.storyworld.scene_captions import MOOD_WORDS
from storydiffusion.storyworld.truth import LOOKS

Span = tuple[int, int]
"""start and end of words in a caption"""
MOODS = "|".join(word for each in MOOD_WORDS.values() for word in each)


def find_descriptions(text: str, stated: Mapping[str, str]) -> list[list[Span]]:
    """Return the spans of the words that describe each character of a caption, in the order of the labels' numbers.

    Args:
        text: a caption of either edition whose characters are of different kinds.
        stated: the labels that it states → their values, such as those of a `Prompt`.

    Raises:
        UserError: for a character that the caption does not describe so.
    """
    slots = sorted({slot for label in stated for name, slot in [split_label(label)] if name == "kind"})
    labels = {split_label(label): value for label, value in stated.items()}
    looks = [{name: value for (name, of), value in labels.items() if of == slot} for slot in slots]
    return [_find_description(text, own) for own in looks]


def _find_description(text: str, looks: Mapping[str, str]) -> list[Span]:
    """Return the spans of one character whose attributes have these values."""
    known = {name: looks[name] for name in LOOKS if name in looks}
    figure = sample_scene(0, 0, count=1, **known).characters[0]  # what no label states is not looked at
    named = [name for name in ATTIRE if name in looks]
    who = name_character(figure, named).split(" ", 1)[1]
    if (found := re.search(rf"\b(an?) (?:(?:{MOODS}) )?({re.escape(who)})\b", text)) is not None:
        return [found.span(1), found.span(2), *_find_clothes(text, found.end(), figure, named)]
    raise UserError(f"the caption '{text}' names no {looks['kind']} of these looks: give the labels that it states")


def _find_clothes(text: str, after: int, figure: Figure, named: Sequence[str]) -> list[Span]:
    """Return the span of the words for the clothes, behind those for the character at `after`, or behind the place."""
    phrases = [_describe_clothes(figure, named, style) for style in WORDINGS]
    if not any(phrases):
        return []
    for clothes in phrases:
        if text.startswith(f" {clothes}", after):
            return [(after + 1, after + 1 + len(clothes))]
    for clothes in phrases:
        if text.endswith(f", {clothes}") or text.endswith(f" {clothes}"):
            return [(len(text) - len(clothes), len(text))]
    raise UserError(f"the caption '{text}' gives its {figure.kind} no such clothes: give the labels that it states")


def _describe_clothes(figure: Figure, named: Sequence[str], style: Wording) -> str:
    """Return the words for the named parts of the attire without what joins them to the sentence, "" for none."""
    return describe_clothes(figure, named, style).lstrip(", ")
