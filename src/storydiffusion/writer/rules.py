"""The rules writer: plots over StoryWorld's words, the same story for the same idea and seed, without a network.

A plot has a beginning, a turn and an end; visits to places make it longer. plots.yaml says what each panel shows, and
languages/*/captions.yaml its wording, in two versions of each plot.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from storydiffusion.errors import UserError
from storydiffusion.story.emotions import POSITIVE
from storydiffusion.storyworld.truth import WITH_HAIR
from storydiffusion.writer.brief import Brief, Draft, Writer, build_story, register_writer
from storydiffusion.writer.emotions import Plan, read_plan
from storydiffusion.writer.idea import Mention, Reading, read_idea
from storydiffusion.writer.languages import (
    LANGUAGES,
    Player,
    Sentences,
    check_language,
    detect_language,
    load_lexicon,
    load_sentences,
)
from storydiffusion.writer.prose import split_prose
from storydiffusion.writer.targets import Actor, Shot
from storydiffusion.writer.word_files import load_words

FILE = Path(__file__).with_name("plots.yaml")
FEWEST_PANELS, MOST_PANELS = 3, 16
OUTDOORS = ("park", "beach", "city", "snow", "forest")
TREASURES = ("ball", "balloon", "flowers")
"""Objects of plots that leave theirs open."""
SHARED = (*POSITIVE, "sadness")
"""Emotions that the friend also shows."""


@dataclass(frozen=True)
class Scene:
    """One panel: who acts, hero or friend, how and where; whether both may be in the image; its sentence."""

    who: str
    action: str
    place: str
    has_object: bool
    together: bool
    sentence: str
    beat: str


@dataclass(frozen=True)
class Stage:
    """What a story is set with; `version` is that of its plot's sentences."""

    plot: str
    plan: Plan
    players: Mapping[str, Player]
    looks: Mapping[str, Mapping[str, str]]
    object: str | None
    there: str
    elsewhere: str
    version: int


@register_writer("rules")
class RulesWriter(Writer):
    """Write stories from plots; split texts by their sentences."""

    def __init__(self, config: Any = None, kept: Any = None) -> None:
        del config, kept  # it has no settings and asks no server

    def write(self, brief: Brief) -> Draft:
        if brief.text:
            return split_prose(brief)
        if not FEWEST_PANELS <= brief.panels <= MOST_PANELS:
            raise UserError(
                f"panels={brief.panels} is outside {FEWEST_PANELS}…{MOST_PANELS}, the panels of writer=rules"
            )
        spoken = detect_language(brief.idea) if brief.idea else "en"
        language = brief.language or spoken or "en"
        check_language(language)
        reading = read_idea(brief.idea, load_lexicon(spoken or "en"), brief.target.values)
        rng = random.Random(f"writer/{brief.seed}/{brief.idea}/{brief.emotion}")
        sentences = load_sentences(language)
        stage = _set_stage(brief, reading, sentences, rng)
        scenes = _lay_out(stage, brief.panels, reading, sentences, rng)
        story = build_story(_tell(stage, scenes, brief, sentences), brief)
        return Draft(story, stage.plan, tuple(_remarks(brief, reading, spoken, stage, scenes)))


@cache
def load_plots() -> Mapping[str, Any]:
    """Return the content of plots.yaml."""
    return load_words(FILE)


def _set_stage(brief: Brief, reading: Reading, sentences: Sentences, rng: random.Random) -> Stage:
    name = choose_plot(brief.emotion, reading, rng)
    plot = load_plots()["plots"][name]
    emotion = brief.emotion or plot["emotions"][0]
    thing = _choose_object(plot["object"], reading, rng)
    plan = _plan(brief, emotion, plot, thing, rng)
    players, looks = _cast(brief, plot["friend"], reading, sentences, rng)
    named = [place for place in reading.places if place in OUTDOORS]
    planned = [element for element in plan.elements if element in OUTDOORS and element not in named]
    others = [place for place in OUTDOORS if place not in (*named, *planned)]
    places = [*named, *planned, *rng.sample(others, len(others))]
    return Stage(name, plan, players, looks, thing, places[0], places[1], rng.randrange(2))


def choose_plot(emotion: str | None, reading: Reading, rng: random.Random) -> str:
    """Return the plot that the most words of an idea suggest among those of the emotion, or among all."""
    scores = {}
    for name, plot in load_plots()["plots"].items():
        if emotion is not None and emotion not in plot["emotions"]:
            continue
        score = 3 * reading.plots.get(name, 0)
        score += 4 * (plot["friend"] and max(len(reading.characters), len(reading.names)) > 1)
        score += 2 * bool({"any", *reading.objects} & {plot["object"]}) * bool(reading.objects)
        scores[name] = (score, emotion is not None or plot["emotions"][0] in POSITIVE)
    best = max(scores.values())
    return rng.choice([name for name, score in scores.items() if score == best])


def _choose_object(wanted: str | None, reading: Reading, rng: random.Random) -> str | None:
    if wanted != "any":
        return wanted
    return reading.objects[0] if reading.objects else rng.choice(TREASURES)


def _plan(brief: Brief, emotion: str, plot: Mapping[str, Any], thing: str | None, rng: random.Random) -> Plan:
    """Choose a place and other elements that evoke the emotion, in the order in which panels show them."""
    elements = brief.target.elements(emotion)
    chosen = [rng.choice([place for place in elements["places"] if place in OUTDOORS])]
    if thing in elements["objects"]:
        chosen.append(str(thing))
    for category in ("weather", "light", "postures"):
        free = [each for each in elements[category] if each not in brief.target.values["action"]]
        chosen += rng.sample(free, min(1, len(free)))
    data = {"emotion": emotion, "elements": chosen[:4], "theme": plot["theme"], "event": plot["event"]}
    return read_plan(data, emotion, [each for category in elements.values() for each in category])


def _cast(
    brief: Brief, with_friend: bool, reading: Reading, sentences: Sentences, rng: random.Random
) -> tuple[dict[str, Player], dict[str, dict[str, str]]]:
    """Choose kind, name, gender and looks of the hero and of the friend, as far as the idea leaves them open."""
    players: dict[str, Player] = {}
    looks: dict[str, dict[str, str]] = {}
    for number, role in enumerate(("hero", "friend")[: 1 + with_friend]):
        taken = {player.kind for player in players.values()} | {each.kind for each in reading.characters}
        kinds = [kind for kind in brief.target.values["kind"] if kind not in taken]
        given = reading.characters[number : number + 1]
        mention = given[0] if given else Mention(rng.choice(kinds))
        name = mention.name or "".join(reading.names[number : number + 1])
        gender = _gender(mention.kind, name, reading.gender if number == 0 else "", sentences, rng)
        used = {*reading.names, *(player.name for player in players.values())}
        name = name or rng.choice([each for each in sentences.names[gender] if each not in used])
        players[role] = Player(name, mention.kind, gender)
        looks[role] = {"kind": mention.kind, **_dress(mention.kind, brief, rng), **mention.looks}
    return players, looks


def _gender(kind: str, name: str, spoken: str, sentences: Sentences, rng: random.Random) -> str:
    by_name = next((gender for gender, names in sentences.names.items() if name in names), "")
    by_name = by_name or ("f" if name.endswith("a") else "")  # Mia, Anna, Olga; pronouns of the idea decide before
    drawn = rng.choice("mf")
    return {"girl": "f", "boy": "m"}.get(kind) or spoken or by_name or drawn


def _dress(kind: str, brief: Brief, rng: random.Random) -> dict[str, str]:
    """Choose the looks by which readers know a character again; consistent self-attention keeps the others."""
    values = brief.target.values
    looks = {"hair": rng.choice(values["hair"])} if kind in WITH_HAIR else {"tone": rng.choice(values["tone"])}
    looks |= {name: rng.choice(values[name]) for name in ("shirt", "hat_color")}
    return {**looks, "hat": rng.choice([hat for hat in values["hat"] if hat != "none"])}


def _lay_out(stage: Stage, panels: int, reading: Reading, sentences: Sentences, rng: random.Random) -> list[Scene]:
    """Return the scenes in order: beats of the plot, after the first a habit, and visits where the plot has them."""
    content = load_plots()
    plot = content["plots"][stage.plot]
    beats = [name for name in plot["beats"] if name in content["order"][:panels]]
    place_of = {"room": "room", "there": stage.there, "elsewhere": stage.elsewhere}
    scenes = []
    for name in beats:
        who, action, place, has_object, together = plot["beats"][name]
        sentence = sentences.beat(stage.plot, name)[stage.version]
        scenes.append(Scene(who, action, place_of[place], has_object, together, sentence, name))
    habit = _habit(place_of, reading, sentences)[: panels - len(scenes)]
    visits = _visits(stage, plot["visits"], panels - len(scenes) - len(habit), sentences, rng)
    before = beats.index(plot["visits_before"]) if visits else 1
    return [scenes[0], *habit, *scenes[1:before], *visits, *scenes[before:]]


def _habit(place_of: Mapping[str, str], reading: Reading, sentences: Sentences) -> list[Scene]:
    """Return what the hero always does, if the idea names an action."""
    habits = load_plots()["habits"]
    return [
        Scene("hero", action, place_of[habits[action]], False, False, sentences.habits()[action], "habit")
        for action in reading.actions
        if action in habits
    ][:1]


def _visits(stage: Stage, tone: str, count: int, sentences: Sentences, rng: random.Random) -> list[Scene]:
    """Return scenes at other places, each place once before any of them twice."""
    actions = load_plots()["visits"][tone]
    last = (stage.there, stage.elsewhere)
    order = sorted(rng.sample(list(actions), len(actions)), key=lambda place: (place in last, place == "room"))
    versions = {place: rng.sample(range(len(actions[place])), len(actions[place])) for place in order}
    both = [(place, versions[place][turn]) for turn in range(2) for place in order]
    return [
        Scene("hero", actions[place][n], place, False, False, sentences.visits(tone, place)[n], "visit")
        for place, n in both[:count]
    ]


def _tell(stage: Stage, scenes: Sequence[Scene], brief: Brief, sentences: Sentences) -> dict[str, Any]:
    """Return the story as plain data: captions from the sentences, prompts from the target."""
    target = brief.target
    free = [element for element in stage.plan.elements if element not in (*OUTDOORS, stage.object)]
    panels = []
    shows_from = 1 if brief.emotion else [scene.beat for scene in scenes].index("turn")
    for number, scene in enumerate(scenes):
        emotion = stage.plan.emotion if number >= shows_from else None
        shown = free[number * len(free) // len(scenes) :][:1]
        actors = _actors(stage, scene, target.most_characters, emotion)
        shot = Shot(actors, scene.place, _thing(stage, scene), tuple(shown))
        caption = sentences.fill(scene.sentence, stage.players, stage.object, stage.there)
        panels.append({"prompt": target.prompt(shot), "caption": caption})
    acting = {actor for scene in scenes for actor in _roles(scene, target.most_characters, stage)}
    characters = {
        player.name: target.describe(stage.looks[role]) for role, player in stage.players.items() if role in acting
    }
    title = sentences.beat(stage.plot, "title")[stage.version]
    return {
        "title": sentences.fill(title, stage.players, stage.object, stage.there),
        "characters": characters,
        "panels": panels,
    }


def _thing(stage: Stage, scene: Scene) -> str:
    return stage.object if scene.has_object and stage.object else "none"


def _roles(scene: Scene, most: int, stage: Stage) -> list[str]:
    """Return who is in the image of a scene: the one who acts, and both where the model draws two."""
    is_shared = scene.together and most > 1 and len(stage.players) > 1
    return list(stage.players) if is_shared else [scene.who]


def _actors(stage: Stage, scene: Scene, most: int, emotion: str | None) -> tuple[Actor, ...]:
    """Return the actors of a scene; who only looks on stands."""
    actors = []
    for role in _roles(scene, most, stage):
        mood = emotion if role == "hero" or emotion in SHARED else None
        actors.append(Actor(stage.players[role].name, scene.action if role == scene.who else "standing", mood))
    return tuple(actors)


def _remarks(
    brief: Brief, reading: Reading, spoken: str | None, stage: Stage, scenes: Sequence[Scene]
) -> Iterator[str]:
    """Yield one sentence about words that were not understood, and one about what found no place in the story."""
    if brief.idea and spoken is None:
        known = ", ".join(LANGUAGES)
        yield f"the idea is in none of the languages that writer=rules reads ({known}); writer=chat reads any"
        return
    if reading.unknown:
        yield f"writer=rules has no words for these of the idea: {', '.join(reading.unknown)}; writer=chat reads any"
    used = {player.kind for player in stage.players.values()} | {scene.place for scene in scenes}
    used |= {scene.action for scene in scenes} | {_thing(stage, scene) for scene in scenes}
    asked = [each.kind for each in reading.characters], reading.places, reading.objects, reading.actions
    if left_out := [word for words in asked for word in words if word not in used]:
        yield f"the story leaves these of the idea out: {', '.join(left_out)}; try more panels or another seed"
