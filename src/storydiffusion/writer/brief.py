"""The interface of story writers: a brief goes in, a checked story comes out."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from storydiffusion.errors import UserError
from storydiffusion.story import Story, story_from_dict
from storydiffusion.story.emotions import EMOTIONS
from storydiffusion.writer.emotions import Plan
from storydiffusion.writer.targets import Target

MOST_PANELS = 30


@dataclass(frozen=True)
class Brief:
    """What to write: an idea or a text to split (the other is ""), an emotion to evoke or None, and for which model.

    language: of title and captions, such as "en"; None for that of the idea or the text.
    Raises UserError for an unknown emotion, a number of panels out of range, or nothing to write from.
    """

    idea: str
    text: str
    emotion: str | None
    panels: int
    language: str | None
    seed: int
    target: Target

    def __post_init__(self) -> None:
        if self.emotion is not None and self.emotion not in EMOTIONS:
            raise UserError(f"emotion={self.emotion} is not one of {', '.join(EMOTIONS)}")
        if not 1 <= self.panels <= MOST_PANELS:
            raise UserError(f"panels={self.panels} is outside 1…{MOST_PANELS}")
        if not any(char.isalnum() for char in self.idea + self.text) and self.emotion is None:
            raise UserError("there is nothing to write from: give idea='…', text=FILE or emotion=NAME")


@dataclass(frozen=True)
class Draft:
    """A story, the plan that it follows if it evokes an emotion, and remarks for the user, one sentence each."""

    story: Story
    plan: Plan | None = None
    notes: tuple[str, ...] = ()


class Writer(ABC):
    """Writes stories."""

    @abstractmethod
    def write(self, brief: Brief) -> Draft:
        """Write the story that `brief` asks for, checked by `build_story`; raise UserError if there is none."""

    def kept_replies(self) -> list[dict[str, Any]]:
        """Return what a server answered, as plain data, to write the same story again without it."""
        return []


Build = TypeVar("Build", bound=Callable[..., Writer])

WRITERS: dict[str, Callable[..., Writer]] = {}
"""Name → a function of (configuration of conf/writer/NAME.yaml, replies kept from an earlier run) to a writer."""


def register_writer(name: str) -> Callable[[Build], Build]:
    """Register a writer under `name`, to be chosen by writer=NAME."""

    def register(build: Build) -> Build:
        WRITERS[name] = build
        return build

    return register


def build_story(data: dict[str, Any], brief: Brief) -> Story:
    """Return the story of a writer's data, checked as a story file, for its number of panels and for the model.

    Raises UserError.
    """
    story = story_from_dict(data, "the story")
    if len(story.panels) != brief.panels:
        raise UserError(f"the story has {len(story.panels)} panels: give {brief.panels}")
    brief.target.check(story)
    return story
