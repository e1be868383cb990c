"""Reveal the elements of an emotion panel by panel, each where it fits, and choose how a panel is framed."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from storydiffusion.story.emotions import POSITIVE
from storydiffusion.writer.emotions import CATEGORIES, FILE, load_elements
from storydiffusion.writer.targets import OUTDOORS, Shot, Target
from storydiffusion.writer.word_files import load_words

MOST_DETAILS = 3
SHARED = (*POSITIVE, "sadness")
"""Emotions that every character shows, not the hero alone."""
LIVELY = ("running", "jumping", "waving")


@dataclass(frozen=True)
class Fit:
    """Where an element fits: places, actions, "" for any; and the time of day that it needs, "" for none."""

    at: str = ""
    doing: str = ""
    time: str = ""

    def allows(self, shot: Shot, is_weather: bool) -> bool:
        """Return whether an image of the shot can show the element."""
        places = OUTDOORS if self.at == "outdoors" or (is_weather and not self.at) else self.at.split()
        actions = self.doing.split()
        return (not places or shot.place in places) and (
            not actions or all(actor.action in actions for actor in shot.actors)
        )


@cache
def load_fits() -> Mapping[str, Fit]:
    """Return where elements fit, of those that do not fit everywhere."""
    return {element: Fit(**fit) for element, fit in load_words(FILE)["fits"].items()}


def reveal(shots: Sequence[Shot], emotion: str, target: Target, start: int, rng: random.Random) -> list[Shot]:
    """Return the shots of a story with one detail of the emotion each, from number `start` on.

    They come one after the other, of different kinds, and stay where they fit. StoryWorld's words are no details.
    """
    if not target.free:
        return [*shots]
    candidates = _shuffle(emotion, target, rng)
    planned: list[str] = []  # the one shown longest ago first
    shown, step = [], max(1, len(shots) - start)
    for number, shot in enumerate(shots):
        details: list[str] = []
        if number >= start:
            due = 1 + (number - start) * MOST_DETAILS // step
            fresh = [each for each in candidates if len(planned) < due and _is_new(each, planned, candidates, shot)]
            details = (fresh or [each for each in planned if _fits(each, candidates, shot)])[:1]
            planned = [each for each in planned if each not in details] + details
        shown.append(replace(shot, details=tuple(details)))
    return shown


def frame(shots: Sequence[Shot]) -> list[Shot]:
    """Return the shots with their framing: wide where a place is new, full for lively actions, otherwise medium."""
    framed, place = [], ""
    for shot in shots:
        is_lively = any(actor.action in LIVELY for actor in shot.actors)
        framing = "wide shot" if shot.place != place else "full shot" if is_lively else "medium shot"
        framed.append(replace(shot, framing=framing))
        place = shot.place
    return framed


def _shuffle(emotion: str, target: Target, rng: random.Random) -> dict[str, str]:
    """Return the details of an emotion in random order, detail → category."""
    known = {word for values in target.values.values() for word in values}
    pairs = [
        (each, category) for category in CATEGORIES for each in load_elements()[emotion][category] if each not in known
    ]
    return dict(rng.sample(pairs, len(pairs)))


def _fits(element: str, categories: Mapping[str, str], shot: Shot) -> bool:
    return load_fits().get(element, Fit()).allows(shot, categories[element] == "weather")


def _is_new(element: str, planned: Sequence[str], categories: Mapping[str, str], shot: Shot) -> bool:
    """Return whether an element fits the shot, and differs in category from those planned, but not in time of day."""
    times = {load_fits().get(each, Fit()).time for each in (*planned, element)} - {""}
    is_other = categories[element] not in [categories[each] for each in planned]
    return is_other and len(times) <= 1 and _fits(element, categories, shot)
