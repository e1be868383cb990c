"""Plan a story that evokes an emotion: emotion → visual elements → theme and event; panels then show them one by one.

The steps are EmoStory's (one agent plans, one writes); the lists of elements, in emotions.yaml, are our own.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from storydiffusion.errors import UserError
from storydiffusion.story.emotions import EMOTIONS
from storydiffusion.story.names import NAME
from storydiffusion.writer.schema import Schema, check, choice, items, record, text
from storydiffusion.writer.word_files import load_words

FILE = Path(__file__).with_name("emotions.yaml")
CATEGORIES = ("places", "weather", "light", "objects", "postures")
MOST_ELEMENTS = 4
WORD = re.compile(r"[^\W\d_]+")
LONG = 4  # letters of a word by which an element is found in a prompt
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
    return load_words(FILE)["elements"]


def plan_schema(emotion: str, elements: list[str]) -> Schema:
    """Return the schema of a plan for `emotion` with some of `elements`."""
    return record(
        emotion=choice(emotion),
        elements=items(choice(*elements), 1, MOST_ELEMENTS),
        theme=text(LONGEST_THEME),
        event=text(LONGEST_EVENT),
    )


def find_shown(elements: Iterable[str], prompts: Sequence[str]) -> tuple[str, ...]:
    """Return the elements that prompts show, in the order in which they do.

    A prompt shows an element if it has at least half of its words of four letters and more, or all if they are shorter.
    """
    spoken = [[word.lower() for word in WORD.findall(NAME.sub("", prompt))] for prompt in prompts]
    first = {each: number for each in elements if (number := _find_first(each, spoken)) is not None}
    return tuple(sorted(first, key=lambda element: first[element]))


def check_shown(plan: Plan, prompts: Sequence[str]) -> None:
    """Raise UserError for an element of a plan that no prompt shows, or if one panel shows all of several."""
    shown = find_shown(plan.elements, prompts)
    if missing := [element for element in plan.elements if element not in shown]:
        raise UserError(
            f"no panel shows {missing[0]!r} of the plan: show {', '.join(plan.elements)}, one after the other"
        )
    if len(prompts) > 1 and len(shown) > 1 and find_shown(plan.elements, prompts[:1]) == shown:
        raise UserError(f"panel 1 shows all of {', '.join(plan.elements)}: show them one after the other")


def _find_first(element: str, spoken: Sequence[Sequence[str]]) -> int | None:
    """Return the number of the first prompt, as words, that shows an element."""
    words = [word.lower() for word in WORD.findall(element)]
    long = [word for word in words if len(word) >= LONG]
    needed = -(-len(long) // 2) if long else len(words)
    return next(
        (number for number, prompt in enumerate(spoken) if sum(word in prompt for word in long or words) >= needed),
        None,
    )


def read_plan(data: Any, emotion: str, elements: list[str]) -> Plan:
    """Return a writer's plan; raise UserError if it does not fit its schema."""
    assert emotion in EMOTIONS
    check(data, plan_schema(emotion, elements), "the plan")
    unique = tuple(dict.fromkeys(data["elements"]))
    return Plan(emotion, unique, " ".join(data["theme"].split()), " ".join(data["event"].split()))
