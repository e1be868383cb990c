"""The rules writer: plots over StoryWorld's words, the same story for the same idea and seed, without a network.

A plot has a beginning, a turn and an end; visits to places make it longer, and in three or four panels the sentences of
the other parts stand beside those of their neighbors. plots.yaml says what each panel shows, languages/*/captions.yaml
its wording, in two versions of each plot.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from storydiffusion.errors import UserError
from storydiffusion.story.emotions import POSITIVE
from storydiffusion.writer.brief import Brief, Draft, Writer, build_story, register_writer
from storydiffusion.writer.cast import Cast, choose_cast
from storydiffusion.writer.emotions import MOST_ELEMENTS, Plan, find_shown, read_plan
from storydiffusion.writer.idea import Mention, Reading, read_idea
from storydiffusion.writer.languages import (
    Player,
    Sentences,
    check_language,
    detect_language,
    load_lexicon,
    load_sentences,
)
from storydiffusion.writer.notes import UNREAD_IDEA, describe_loss
from storydiffusion.writer.prose import split_prose
from storydiffusion.writer.reveal import SHARED, frame, reveal
from storydiffusion.writer.targets import OUTDOORS, Actor, Shot
from storydiffusion.writer.word_files import load_words

FILE = Path(__file__).with_name("plots.yaml")
FEWEST_PANELS, MOST_PANELS = 3, 16
TREASURES = ("ball", "balloon", "flowers")
"""Objects of plots that leave theirs open."""


@dataclass(frozen=True)
class Scene:
    """One panel: who acts, hero or friend, how and where; whether both may be in the image; its sentences."""

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
    emotion: str
    cast: Mapping[str, Cast]
    object: str | None
    there: str
    elsewhere: str
    version: int

    @property
    def players(self) -> dict[str, Player]:
        """Role → character in sentences."""
        return {role: each.player for role, each in self.cast.items()}


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
        reading = Reading() if spoken is None else read_idea(brief.idea, load_lexicon(spoken), brief.target.values)
        rng = random.Random(f"writer/{brief.seed}/{brief.idea}/{brief.emotion}")
        sentences = load_sentences(language)
        stage = _set_stage(brief, reading, sentences, rng)
        scenes = _lay_out(stage, brief.panels, reading, sentences, rng)
        start = 1 if brief.emotion else [scene.beat for scene in scenes].index("turn")
        shots = _show(stage, scenes, brief, start, rng)
        story = build_story(_tell(stage, scenes, shots, brief, sentences), brief)
        plan = _plan(stage, shots, [panel.prompt for panel in story.panels], brief)
        notes = [UNREAD_IDEA] if spoken is None else _remarks(brief, reading, stage, shots)
        return Draft(story, plan, tuple(notes))


@cache
def load_plots() -> Mapping[str, Any]:
    """Return the content of plots.yaml."""
    return load_words(FILE)


def _set_stage(brief: Brief, reading: Reading, sentences: Sentences, rng: random.Random) -> Stage:
    name = choose_plot(brief.emotion, reading, rng)
    plot = load_plots()["plots"][name]
    emotion = brief.emotion or plot["emotions"][0]
    suited = [place for place in OUTDOORS if place not in plot.get("never_in", ())]
    named = [place for place in reading.places if place in suited]
    evoking = [place for place in brief.target.elements(emotion)["places"] if place in suited and place not in named]
    others = [place for place in suited if place not in (*named, *evoking)]
    places = [*named, *rng.sample(evoking, len(evoking)), *rng.sample(others, len(others))]
    thing = _choose_object(plot["object"], reading, rng)
    cast = _cast(brief, plot["friend"], reading, sentences, rng)
    return Stage(name, emotion, cast, thing, places[0], places[1], rng.randrange(2))


def choose_plot(emotion: str | None, reading: Reading, rng: random.Random) -> str:
    """Return the plot that the most words of an idea suggest among those of the emotion, or among all."""
    scores = {}
    for name, plot in load_plots()["plots"].items():
        if emotion is not None and emotion not in plot["emotions"]:
            continue
        score = 5 * len(reading.plots.get(name, ())) + 2 * bool(reading.feelings.keys() & {*plot["emotions"]})
        score += 4 * (plot["friend"] and len(reading.characters) > 1)
        score += 2 * bool({"any", *reading.objects} & {plot["object"]}) * bool(reading.objects)
        scores[name] = (score, emotion is not None or plot["emotions"][0] in POSITIVE)
    best = max(scores.values())
    return rng.choice([name for name, score in scores.items() if score == best])


def _choose_object(wanted: str | None, reading: Reading, rng: random.Random) -> str | None:
    if wanted != "any":
        return wanted
    return reading.objects[0] if reading.objects else rng.choice(TREASURES)


def _cast(
    brief: Brief, with_friend: bool, reading: Reading, sentences: Sentences, rng: random.Random
) -> dict[str, Cast]:
    """Choose the hero and, if there is one, the friend."""
    count = 1 + with_friend
    mentions = [*reading.characters[:count], *[Mention("") for _ in range(count - len(reading.characters))]]
    others = reading.characters[count:]
    cast = choose_cast(mentions, reading.gender, sentences.names, brief.target, rng, others)
    return dict(zip(("hero", "friend"), cast, strict=False))


def _lay_out(stage: Stage, panels: int, reading: Reading, sentences: Sentences, rng: random.Random) -> list[Scene]:
    """Return the scenes in order: beats of the plot, after the first a habit, and visits where the plot has them."""
    content = load_plots()
    plot = content["plots"][stage.plot]
    place_of = {"room": "room", "there": stage.there, "elsewhere": stage.elsewhere}
    scenes = []
    for name in content["order"][:panels]:
        who, action, place, has_object, together = plot["beats"][name]
        sentence = _join_sentences(name, stage, panels, sentences)
        scenes.append(Scene(who, action, place_of[place], has_object, together, sentence, name))
    scenes.sort(key=lambda scene: [*plot["beats"]].index(scene.beat))
    habit = _habit(place_of, reading, sentences)[: panels - len(scenes)]
    visits = _visits(stage, plot["visits"], panels - len(scenes) - len(habit), sentences, rng)
    before = [scene.beat for scene in scenes].index(plot["visits_before"]) if visits else 1
    return [scenes[0], *habit, *scenes[1:before], *visits, *scenes[before:]]


def _join_sentences(beat: str, stage: Stage, panels: int, sentences: Sentences) -> str:
    """Return the sentences of a panel: those of its beat, and of a beat without a panel that belongs to it."""
    content = load_plots()
    parts = [beat]
    for name in content["order"][panels:]:
        with_it, at = content["joins"][name]
        if with_it == beat:
            parts.insert(at, name)
    texts = [sentences.beat(stage.plot, part)[stage.version] for part in parts]
    if beat == "begin":
        texts = [*_opening(stage, sentences), *texts]
    return sentences.join(texts)


def _opening(stage: Stage, sentences: Sentences) -> list[str]:
    """Return the sentence that says who hero and friend are, unless the sentences of the plot do."""
    texts = [sentences.beat(stage.plot, name)[stage.version] for name in load_plots()["order"]]
    unknown = [role for role in stage.cast if not any(f"{{{role}.a}}" in text for text in texts)]
    return [sentences.opening("both" if len(unknown) > 1 else "one", stage.version)] if "hero" in unknown else []


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


def _show(stage: Stage, scenes: Sequence[Scene], brief: Brief, start: int, rng: random.Random) -> list[Shot]:
    """Return what the images show; the emotion appears from panel number `start` on."""
    shots = []
    for number, scene in enumerate(scenes):
        actors = _actors(stage, scene, brief.target.most_characters, stage.emotion if number >= start else None)
        thing = stage.object if scene.has_object and stage.object else "none"
        shots.append(Shot(actors, scene.place, thing))
    return frame(reveal(shots, stage.emotion, brief.target, start, rng))


def _actors(stage: Stage, scene: Scene, most: int, emotion: str | None) -> tuple[Actor, ...]:
    """Return who is in the image, both where the model draws two; who only looks on stands."""
    is_shared = scene.together and most > 1 and len(stage.cast) > 1
    actors = []
    for role in stage.cast if is_shared else [scene.who]:
        mood = emotion if role == "hero" or emotion in SHARED else None
        actors.append(Actor(stage.cast[role].player.name, scene.action if role == scene.who else "standing", mood))
    return tuple(actors)


def _tell(
    stage: Stage, scenes: Sequence[Scene], shots: Sequence[Shot], brief: Brief, sentences: Sentences
) -> dict[str, Any]:
    """Return the story as plain data: captions from the sentences, prompts from the target."""

    def fill(template: str) -> str:
        return sentences.fill(template, stage.players, stage.object, stage.there)

    acting = {actor.name for shot in shots for actor in shot.actors}
    described = {each.player.name: brief.target.describe(each.looks) for each in stage.cast.values()}
    return {
        "title": fill(sentences.beat(stage.plot, "title")[stage.version]),
        "characters": {name: words for name, words in described.items() if name in acting},
        "panels": [
            {"prompt": brief.target.prompt(shot), "caption": fill(scene.sentence)}
            for scene, shot in zip(scenes, shots, strict=True)
        ],
    }


def _plan(stage: Stage, shots: Sequence[Shot], prompts: Sequence[str], brief: Brief) -> Plan:
    """Return the plan that the panels follow: the elements of the emotion that they show, in their order."""
    plot = load_plots()["plots"][stage.plot]
    elements = [each for category in brief.target.elements(stage.emotion).values() for each in category]
    details = list(dict.fromkeys(detail for shot in shots for detail in shot.details))
    words = [each for each in elements if " " not in each and each not in details]
    kept = [*details, *find_shown(words, prompts)][:MOST_ELEMENTS]
    order = find_shown(kept, prompts)
    data = {"emotion": stage.emotion, "elements": [*order], "theme": plot["theme"], "event": plot["event"]}
    return read_plan(data, stage.emotion, elements)


def _remarks(brief: Brief, reading: Reading, stage: Stage, shots: Sequence[Shot]) -> Iterator[str]:
    """Yield one sentence about each thing of the idea that found no place in the story."""
    shown = {word for each in stage.cast.values() for word in (each.player.name, each.player.kind)}
    for shot in shots:
        shown |= {shot.place, shot.object, *(actor.action for actor in shot.actors)}
    yield from describe_loss(brief, reading, stage.plot, load_plots()["plots"][stage.plot], stage.object, shown)
