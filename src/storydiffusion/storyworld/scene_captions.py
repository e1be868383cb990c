"""Captions of scenes: who is where, in which mood, doing what; any part of the attire left open."""

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from storydiffusion.errors import UserError
from storydiffusion.storyworld.captions import (
    ATTIRE,
    PLACE_WORDS,
    THIRD_PERSON,
    WORDINGS,
    Prompt,
    Wording,
    choose_story_attire,
    describe_clothes,
    name_character,
    state_character,
    with_article,
    words,
)
from storydiffusion.storyworld.scene import (
    FIGURE_ATTRIBUTES,
    MOST_CHARACTERS,
    SCENE_ATTRIBUTES,
    Figure,
    Scene,
    sample_scene,
)
from storydiffusion.storyworld.truth import LOOKS

MOOD_WORDS: Mapping[str, tuple[str, ...]] = {
    "neutral": ("neutral",),
    "amusement": ("laughing", "amused", "giggling"),
    "awe": ("amazed", "astonished", "awestruck"),
    "contentment": ("happy", "content", "calm"),
    "excitement": ("excited", "thrilled", "overjoyed"),
    "anger": ("angry", "furious", "mad"),
    "disgust": ("disgusted", "sickened", "repelled"),
    "fear": ("scared", "frightened", "fearful"),
    "sadness": ("sad", "crying", "unhappy"),
}
SIDE_WORDS: Mapping[str, str] = {
    side: "in the middle" if side == "middle" else f"on the {side}" for side in FIGURE_ATTRIBUTES["side"]
}
EMPTY_WORDINGS = (
    "{an_empty}{having}",
    "{the_empty}{having}",
    "nobody is {place}{beside}",
    "{place}, nobody{beside}",
)
EMPTY_WORDS = ("empty", "nobody")
"""One of these is in every caption of an empty place."""
PAIR_WORDINGS = ("{first}{comma} and {second}, {place}{beside}", "{place}, {first} and {second}{beside}")

MOOD_NAMING_PROBABILITY = 0.9
NEUTRAL_NAMING_PROBABILITY = 0.25  # a prompt without a mood means a neutral one
NAMING_PROBABILITIES = (0.0, 0.55, 0.35)  # of each part of the attire, by the number of characters
SIDE_NAMING_PROBABILITIES = (0.0, 0.5, 0.75)  # of all sides of an image, in the same order
NAMING_PROBABILITY_IN_PAIRS, MOST_NAMED_IN_PAIRS = 0.25, 2


@dataclass(frozen=True)
class Naming:
    """What a caption says of one character: named parts of the attire, a word for the mood or "", and the side."""

    attire: Collection[str] = ()
    mood: str = ""
    side: bool = False


def describe_scene(
    scene: Scene, naming: Sequence[Naming], wording: int = 0, with_object: bool = True, first: int = 0
) -> str:
    """Return a caption with kinds, actions, place and exactly what `naming` says of each character, left to right.

    `wording` picks a template, modulo their number; the character `first` of two is mentioned first.
    Raises UserError for a part of the attire that there is not, or a wrong number of namings.
    """
    if len(naming) != len(scene.characters):
        raise UserError(f"{len(naming)} namings do not fit {len(scene.characters)} characters: give one for each")
    if unknown := {name for each in naming for name in each.attire} - set(ATTIRE):
        raise UserError(f"a caption cannot name {', '.join(sorted(unknown))}: choose from {', '.join(ATTIRE)}")
    style = WORDINGS[wording % len(WORDINGS)]
    thing = with_article(scene.object) if with_object and scene.object != "none" else ""
    place, beside = PLACE_WORDS[scene.place], thing and f"{style.beside} {thing}"
    if not scene.characters:
        return _describe_empty(scene.place, place, beside, thing, wording)
    if len(scene.characters) == 1:
        (figure,), (said,) = scene.characters, naming
        return style.order.format(
            who=name_character(figure, said.attire, said.mood),
            clothes=describe_clothes(figure, said.attire, style),
            action=_describe_action(figure, said, style),
            place=place,
            beside=beside,
        )
    clauses = _describe_figures(scene, naming, style)
    template = PAIR_WORDINGS[style.order.startswith("{place}")]
    comma = "," if _has_participle(style) else ""
    return template.format(first=clauses[first], second=clauses[1 - first], comma=comma, place=place, beside=beside)


def _describe_empty(name: str, place: str, beside: str, thing: str, wording: int) -> str:
    noun = "snow field" if name == "snow" else name
    return EMPTY_WORDINGS[wording % len(EMPTY_WORDINGS)].format(
        an_empty=f"an empty {noun}",
        the_empty=f"the empty {noun}",
        having=thing and f" with {thing}",
        place=place,
        beside=beside,
    )


def _describe_figures(scene: Scene, naming: Sequence[Naming], style: Wording) -> list[str]:
    return [_describe_figure(*each, style) for each in zip(scene.characters, naming, strict=True)]


def _describe_figure(figure: Figure, said: Naming, style: Wording) -> str:
    """Return the clause of one of two characters."""
    comma = "," if _has_participle(style) else ""
    style = Wording(style.order, style.clothes.removeprefix(","), style.action, style.beside)
    who, clothes = name_character(figure, said.attire, said.mood), describe_clothes(figure, said.attire, style)
    return f"{who}{clothes}{comma} {_describe_action(figure, said, style)}"


def _has_participle(style: Wording) -> bool:
    """Return whether the action follows the clothes after a comma: "a fox in a red shirt, waving"."""
    return style.order.startswith("{who}{clothes},")


def _describe_action(figure: Figure, said: Naming, style: Wording) -> str:
    action = style.action.format(doing=figure.action, does=THIRD_PERSON[figure.action])
    return f"{action} {SIDE_WORDS[figure.side]}" if said.side else action


def full_caption_of_scene(scene: Scene) -> str:
    """Return the caption that names everything, side and mood included, in one fixed wording."""
    return describe_scene(scene, [Naming(ATTIRE, MOOD_WORDS[figure.mood][0], True) for figure in scene.characters])


def caption_scene(
    scene: Scene, seed: int, naming_probability: float | None = None, most_named: int = len(ATTIRE)
) -> str:
    """Return the text of `draw_scene_prompt`."""
    return draw_scene_prompt(scene, seed, naming_probability, most_named).text


def draw_scene_prompt(
    scene: Scene,
    seed: int,
    naming_probability: float | None = None,
    most_named: int = len(ATTIRE),
    name_sides: bool = True,
) -> Prompt:
    """Return a random caption, the same for the same seed.

    Each part of the attire is named with `naming_probability`, by default that of the number of characters, but at
    most `most_named` parts of each character. Object, actions and place are always named, moods nearly always, and
    sides of all characters or of none, of none unless `name_sides`.
    """
    rng = random.Random(f"caption/2/{seed}")
    count = len(scene.characters)
    share = NAMING_PROBABILITIES[count] if naming_probability is None else naming_probability
    side = rng.random() < SIDE_NAMING_PROBABILITIES[count] and name_sides
    naming = [
        Naming(_choose_attire(share, most_named, rng), _choose_mood_word(figure.mood, rng), side)
        for figure in scene.characters
    ]
    wording, first = rng.randrange(len(WORDINGS) * len(EMPTY_WORDINGS)), rng.randrange(2)
    text = describe_scene(scene, naming, wording, first=first)
    return Prompt(text, state_scene(scene, naming), _find_clauses(text, scene, naming, wording, first))


def _find_clauses(
    text: str, scene: Scene, naming: Sequence[Naming], wording: int, first: int
) -> tuple[tuple[int, int], ...]:
    """Return start and end of each character's clause in the caption that `describe_scene` returned."""
    if len(scene.characters) < MOST_CHARACTERS:
        return ((0, len(text)),) * len(scene.characters)
    clauses = _describe_figures(scene, naming, WORDINGS[wording % len(WORDINGS)])
    found, end = {}, 0
    for slot in (first, 1 - first):
        start = text.index(clauses[slot], end)
        end = start + len(clauses[slot])
        found[slot] = (start, end)
    return found[0], found[1]


def state_scene(scene: Scene, naming: Sequence[Naming]) -> dict[str, str]:
    """Return the labels that a caption of this naming states: names of SCENE_LABELS and their values.

    A mood or side that no word names is not stated.
    """
    stated = {"characters": str(len(scene.characters)), "place": scene.place, "object": scene.object}
    for slot, (figure, said) in enumerate(zip(scene.characters, naming, strict=True), start=1):
        found = state_character(figure, said.attire)
        found |= {"mood": figure.mood} if said.mood else {}
        found |= {"side": figure.side} if said.side else {}
        stated |= {f"{name}_{slot}": value for name, value in found.items()}
    return stated


def _choose_attire(probability: float, most: int, rng: random.Random) -> list[str]:
    named = [name for name in ATTIRE if rng.random() < probability]
    return named if len(named) <= most else rng.sample(named, most)


def _choose_mood_word(mood: str, rng: random.Random) -> str:
    word, draw = rng.choice(MOOD_WORDS[mood]), rng.random()
    return word if draw < (NEUTRAL_NAMING_PROBABILITY if mood == "neutral" else MOOD_NAMING_PROBABILITY) else ""


def draw_scene_pair_prompts(first: Scene, second: Scene, seed: int) -> tuple[Prompt, Prompt]:
    """Return random prompts of two images of the same characters side by side; the second's names no attire.

    Neither names sides: what is right in the left image is left of the middle of both.
    """
    described = draw_scene_prompt(first, seed, NAMING_PROBABILITY_IN_PAIRS, MOST_NAMED_IN_PAIRS, name_sides=False)
    return described, draw_scene_prompt(second, seed, 0, name_sides=False)


def draw_scene_story_captions(scenes: Sequence[Scene], seed: int) -> list[str]:
    """Return random captions of the panels of a story, the same for the same seed; see `choose_story_attire`."""
    rng = random.Random(f"caption/2/story/{seed}")
    casts = [[tuple(getattr(figure, name) for name in LOOKS) for figure in scene.characters] for scene in scenes]
    captions = []
    for scene, attire in zip(scenes, choose_story_attire(casts, rng), strict=True):
        side = rng.random() < SIDE_NAMING_PROBABILITIES[len(scene.characters)]
        naming = [
            Naming(parts, _choose_mood_word(figure.mood, rng), side)
            for figure, parts in zip(scene.characters, attire, strict=True)
        ]
        wording = rng.randrange(len(WORDINGS) * len(EMPTY_WORDINGS))
        captions.append(describe_scene(scene, naming, wording, first=rng.randrange(2)))
    return captions


@cache
def scene_vocabulary() -> tuple[str, ...]:
    """Return every word that a caption of a scene can use and the comma, sorted.

    They are collected from captions that cover each value of each attribute for each kind in each wording.
    """
    entries = {","}
    longest = max(map(len, [*FIGURE_ATTRIBUTES.values(), *SCENE_ATTRIBUTES.values()]))
    for kind in FIGURE_ATTRIBUTES["kind"]:
        for turn in range(longest):
            values = {name: options[turn % len(options)] for name, options in FIGURE_ATTRIBUTES.items()}
            for hat in FIGURE_ATTRIBUTES["hat"]:
                _collect(entries, {**values, "kind": kind, "hat": hat}, turn)
    for side in SIDE_WORDS.values():
        entries.update(words(side))
    for synonyms in MOOD_WORDS.values():
        entries.update(synonyms)
    return tuple(sorted(entries))


def _collect(entries: set[str], values: Mapping[str, str], turn: int) -> None:
    """Add the words of scenes with no, one and two characters of these values in each wording."""
    options = {name: choices[turn % len(choices)] for name, choices in SCENE_ATTRIBUTES.items() if name != "characters"}
    for count in range(MOST_CHARACTERS + 1):
        scene = sample_scene(0, turn, **{**values, **options, "count": count})
        for wording in range(max(len(WORDINGS), len(EMPTY_WORDINGS))):
            entries.update(words(describe_scene(scene, [Naming(ATTIRE, side=True)] * count, wording)))
