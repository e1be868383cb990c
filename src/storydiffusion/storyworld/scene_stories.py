"""The frozen stories of the second edition: of one character and of two, with moods, places and sides that change.

They were drawn once (`draw_scene_stories`, a function only of its arguments) and are kept in a file for each set, with
seed and checksum; `python -m storydiffusion.storyworld.scene_stories` writes the files of sets that have none. The
held-out clips are `sample_scene_clip(HELD_OUT_SEED, 0 … CLIPS − 1)`; each file has their checksum too. Stories of
another length show the frozen characters in new scenes.
"""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from storydiffusion.files.atomic import write_atomically
from storydiffusion.storyworld.captions import ATTIRE, WORDINGS
from storydiffusion.storyworld.poses import STILL_PHASE
from storydiffusion.storyworld.scene import MOODS, Figure, Scene, acting_side, sample_scene
from storydiffusion.storyworld.scene_captions import MOOD_WORDS, Naming, describe_scene, state_scene
from storydiffusion.storyworld.scene_clips import sample_scene_clip
from storydiffusion.storyworld.stories import MOST_NAMED, FrozenStory, checksum, read_frozen
from storydiffusion.storyworld.truth import ATTRIBUTES, LOOKS

HELD_OUT_SEED = 10_000  # as in `images`, which imports torch
CLIPS = 64
CASTS: Mapping[int, tuple[tuple[int, ...], ...]] = {1: ((0,), (0,), (0,), (0,)), 2: ((0, 1), (0,), (1,), (1, 0))}
"""Characters of a story → who is in each panel, from left to right."""
PANELS = 4
SIDE_NAMING_PROBABILITY = 0.5  # where one character is alone; of two, sides are always named


@dataclass(frozen=True)
class FrozenSet:
    """A set of frozen stories.

    Attributes:
        file: its name in this folder.
        seed: of a world of its own, separate from the training and held-out worlds and those of other sets.
        stories: characters of a story → number of such stories.
        places: of a story, which take turns; None: any four panels in a row have four.
    """

    file: str
    seed: int
    stories: Mapping[int, int]
    places: int | None = None

    @property
    def path(self) -> Path:
        return Path(__file__).with_name(self.file)


SETS: Mapping[str, FrozenSet] = {
    "varied": FrozenSet("scene_stories.json", 20_001, {1: 48, 2: 32}),
    "places": FrozenSet("place_stories.json", 20_002, {1: 100, 2: 100}, places=2),
}
"""By the name that `benchmark.set` accepts"""


@dataclass(frozen=True)
class ScenePanel:
    """A prompt, the labels that it states (names of SCENE_LABELS), and who is in it, from left to right."""

    prompt: str
    prompted: Mapping[str, str]
    cast: tuple[int, ...]


@dataclass(frozen=True)
class SceneStory:
    """Panels with, for each character, different actions and moods in any four in a row; places as the set says.

    `looks[c]` are those of character c; `open[c]` its attributes that no prompt states and that must stay the same.
    """

    number: int
    looks: tuple[Mapping[str, str | None], ...]
    open: tuple[tuple[str, ...], ...]
    panels: tuple[ScenePanel, ...]

    @property
    def kind(self) -> str:
        """Return the kind of the first character."""
        return str(self.looks[0]["kind"])


BenchmarkStory = FrozenStory | SceneStory
"""A story of the first edition or of the second."""


def get_scene_stories(characters: int, panels: int, name: str = "varied") -> tuple[list[SceneStory], str]:
    """Return the stories of a set with `characters` characters, 1 or 2, and `panels` panels each; and their checksum.

    Four panels give the frozen stories; those of other lengths are drawn now, the same on every machine.
    """
    content = read_frozen(SETS[name].path)
    if panels != PANELS:
        content = draw_other_length(content["stories"], panels, SETS[name])
    stories = [_build_story(record, number) for number, record in enumerate(content["stories"])]
    return [story for story in stories if len(story.looks) == characters], checksum(content)


def load_scene_stories(file: Path = SETS["varied"].path) -> list[SceneStory]:
    """Load the stories of a file; raise UserError if it is missing or does not match its checksum."""
    return [_build_story(record, number) for number, record in enumerate(read_frozen(file)["stories"])]


def _build_story(record: Mapping[str, Any], number: int) -> SceneStory:
    left_open = []
    for looks, named in zip(record["looks"], record["named"], strict=True):
        names = [name for name in LOOKS[1:] if name not in named and looks[name] is not None]
        left_open.append(tuple(name for name in names if not (name == "hat_color" and "hat" in named)))
    panels = tuple(ScenePanel(each["prompt"], each["prompted"], tuple(each["cast"])) for each in record["panels"])
    return SceneStory(number, tuple(record["looks"]), tuple(left_open), panels)


def draw_scene_stories(frozen: FrozenSet) -> dict[str, Any]:
    """Return the content of a set's file: plain lists and dicts, the same on every machine."""
    rng = random.Random(f"stories/2/{frozen.seed}")
    stories = []
    for count, number in frozen.stories.items():
        for _ in range(number):
            stories.append(_draw_story(frozen, count, rng))
    clips = checksum({"clips": [sample_scene_clip(HELD_OUT_SEED, index).to_dict() for index in range(CLIPS)]})
    return {"seed": frozen.seed, "clips_sha256": clips, "stories": stories}


def draw_other_length(stories: Sequence[Mapping[str, Any]], panels: int, frozen: FrozenSet) -> dict[str, Any]:
    """Return `stories`, as in the file, with `panels` new panels each: 2 or more."""
    rng = random.Random(f"stories/2/{frozen.seed}/{panels}")
    drawn = []
    for story in stories:
        figures = [
            Figure(**looks, action="standing", phase=0.0, mood="neutral", x=0.0, facing=1) for looks in story["looks"]
        ]
        drawn.append({**story, "panels": _draw_panels(frozen, figures, story["named"], panels, rng)})
    return {"seed": frozen.seed, "stories": drawn}


def _draw_story(frozen: FrozenSet, count: int, rng: random.Random) -> dict[str, Any]:
    figures = _draw_cast(frozen.seed, count, rng)
    named = [_draw_named(figure, rng) for figure in figures]
    panels = _draw_panels(frozen, figures, named, PANELS, rng)
    looks = [{name: getattr(figure, name) for name in LOOKS} for figure in figures]
    return {"looks": looks, "named": named, "panels": panels}


def _draw_panels(
    frozen: FrozenSet, figures: Sequence[Figure], named: Sequence[list[str]], count: int, rng: random.Random
) -> list[dict[str, Any]]:
    """Draw `count` panels of these characters; of their figures only the looks matter."""
    places = _draw_places(frozen.places, count, rng)
    actions = [_draw_varied(ATTRIBUTES["action"], count, rng) for _ in figures]
    moods = [_draw_varied(MOODS, count, rng) for _ in figures]
    casts, panels = CASTS[len(figures)], []
    for panel, place in enumerate(places):
        cast = casts[panel % len(casts)]
        stage = sample_scene(frozen.seed, rng.randrange(1 << 30), count=len(cast), place=place)
        who = [replace(figures[c], action=actions[c][panel], mood=moods[c][panel]) for c in cast]
        scene = _put_on_stage(stage, who)
        with_side = len(cast) > 1 or rng.random() < SIDE_NAMING_PROBABILITY
        panels.append(_describe_panel(scene, cast, [named[c] for c in cast], with_side, rng))
    return panels


def _draw_places(number: int | None, count: int, rng: random.Random) -> list[str]:
    """Draw the places of `count` panels: `number` that take turns; None: any four in a row differ."""
    if number is None:
        return _draw_varied(ATTRIBUTES["place"], count, rng)
    chosen = rng.sample(ATTRIBUTES["place"], number)
    return [chosen[panel % number] for panel in range(count)]


def _draw_varied(values: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """Draw values of which any four in a row differ."""
    drawn = rng.sample(values, PANELS)
    while len(drawn) < count:
        drawn.append(rng.choice([value for value in values if value not in drawn[1 - PANELS :]]))
    return drawn[:count]


def _draw_cast(seed: int, count: int, rng: random.Random) -> tuple[Figure, ...]:
    """Draw characters of different kinds."""
    while True:
        figures = sample_scene(seed, rng.randrange(1 << 30), count=count).characters
        if len({figure.kind for figure in figures}) == count:
            return figures


def _draw_named(figure: Figure, rng: random.Random) -> list[str]:
    """Draw the 0 to 3 parts of the attire that prompts name."""
    nameable = [name for name in ATTIRE if getattr(figure, name) is not None]
    if figure.accessory == "none":  # a caption has no words for it
        nameable.remove("accessory")
    return sorted(rng.sample(nameable, rng.randint(0, MOST_NAMED)), key=ATTIRE.index)


def _put_on_stage(stage: Scene, who: list[Figure]) -> Scene:
    """Return the scene with `who` in the places of its characters."""
    figures = []
    for figure, spot in zip(who, stage.characters, strict=True):
        placed = replace(figure, phase=STILL_PHASE[figure.action], x=spot.x, facing=spot.facing)
        figures.append(replace(placed, facing=acting_side(placed, len(who))))
    return replace(stage, characters=tuple(figures))


def _describe_panel(
    scene: Scene, cast: tuple[int, ...], named: list[list[str]], with_side: bool, rng: random.Random
) -> dict[str, Any]:
    naming = [
        Naming(parts, "" if figure.mood == "neutral" else rng.choice(MOOD_WORDS[figure.mood]), with_side)
        for figure, parts in zip(scene.characters, named, strict=True)
    ]
    prompt = describe_scene(scene, naming, rng.randrange(len(WORDINGS)), first=rng.randrange(2))
    moods = {f"mood_{slot}": figure.mood for slot, figure in enumerate(scene.characters, start=1)}  # neutral: no word
    return {"prompt": prompt, "cast": list(cast), "prompted": state_scene(scene, naming) | moods}


def write_set(frozen: FrozenSet) -> None:
    """Draw a set and write its file, a story a line."""
    content = draw_scene_stories(frozen)
    lines = ",\n  ".join(json.dumps(story) for story in content.pop("stories"))
    whole = {**content, "stories": json.loads(f"[{lines}]")}
    head = json.dumps({"sha256": checksum(whole), **content})[:-1]
    write_atomically(frozen.path, f'{head},\n "stories": [\n  {lines}\n ]}}\n'.encode())


if __name__ == "__main__":
    for each in SETS.values():
        if not each.path.exists():
            write_set(each)
