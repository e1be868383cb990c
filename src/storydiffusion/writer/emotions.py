"""Plan a story that evokes an emotion: emotion → visual elements → theme and event; panels then show them one by one.

The steps are EmoStory's (one agent plans, one writes); the lists of elements, in emotions.yaml, are our own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from storydiffusion.story.emotions import EMOTIONS
from storydiffusion.writer.schema import Schema, check, choice, items, record, text
from storydiffusion.writer.word_files import load_words

FILE = Path(__file__).with_name("emotions.yaml")
CATEGORIES = ("places", "weather", "light", "objects", "postures")
MOST_ELEMENTS = 4
LONGEST_THEME, LONGEST_EVENT = 80, 400


@dataclass(frozen=True)
class Plan:
    """An emotion, the elements that evoke it, in the order in which panels show them, and what happens."""

    emotion: str
    elements: tuple[str, ...]
    theme: str
    event: str


@cache
def load_elements() -> Mapping[str, Mapping[str, list[str]]]:
    """Return the visual elements, emotion → category → elements."""
    return load_words(FILE)


def plan_schema(emotion: str, elements: list[str]) -> Schema:
    """Return the schema of a plan for `emotion` with some of `elements`."""
    return record(
        emotion=choice(emotion),
        elements=items(choice(*elements), 1, MOST_ELEMENTS),
        theme=text(LONGEST_THEME),
        event=text(LONGEST_EVENT),
    )


def read_plan(data: Any, emotion: str, elements: list[str]) -> Plan:
    """Return a writer's plan; raise UserError if it does not fit its schema."""
    assert emotion in EMOTIONS
    check(data, plan_schema(emotion, elements), "the plan")
    unique = tuple(dict.fromkeys(data["elements"]))
    return Plan(emotion, unique, " ".join(data["theme"].split()), " ".join(data["event"].split()))
