"""Changes of a story, each a function from one story to the next, checked as a story file is."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from storydiffusion.errors import UserError
from storydiffusion.story import Panel, Story, story_from_dict
from storydiffusion.writer.story_file import describe_story

WHERE = "the story"
CHANGED = ("prompt", "caption", "says", "negative", "place", "cut", "seed", "lock")
"""what may be changed in a panel; its characters are those that the prompt names"""


def check_story(story: Story) -> Story:
    """Return the story as its file would be read, with the characters that its prompts name. Raises UserError."""
    return story_from_dict(describe_story(story), WHERE)


def change_panel(story: Story, number: int, changes: Mapping[str, Any]) -> Story:
    """Return the story with other values of panel `number`, from 1: prompt, caption, says, negative, seed, lock, ….

    Raises:
        UserError: no such panel, a wrong value, or another prompt for a locked panel.
    """
    panel = get_panel(story, number)
    if panel.lock and changes.get("lock", True) and changes.get("prompt", panel.prompt) != panel.prompt:
        raise UserError(f"panel {number} is locked: remove its lock to change its prompt")
    panels = list(story.panels)
    panels[number - 1] = replace(panel, **changes)
    return check_story(replace(story, panels=tuple(panels)))


def move_panel(story: Story, number: int, by: int) -> Story:
    """Return the story with panel `number`, from 1, moved by some places; at an end it stays there."""
    panels = list(story.panels)
    panel = get_panel(story, number)
    del panels[number - 1]
    panels.insert(min(max(0, number - 1 + by), len(panels)), panel)
    return replace(story, panels=tuple(panels))


def delete_panel(story: Story, number: int) -> Story:
    """Return the story without panel `number`, from 1, and without characters that no other panel shows.

    Raises:
        UserError: no such panel, or the only one.
    """
    if get_panel(story, number).lock:
        raise UserError(f"panel {number} is locked: remove its lock to delete it")
    panels = tuple(panel for place, panel in enumerate(story.panels, 1) if place != number)
    if not panels:
        raise UserError("a story needs a panel: change this one instead")
    shown = {name for panel in panels for name in panel.characters}
    characters = tuple(each for each in story.characters if each.name in shown)
    return replace(story, panels=panels, characters=characters)


def add_panel(story: Story) -> Story:
    """Return the story with one more panel at its end, a copy of the last one without its caption and seed."""
    last = story.panels[-1]
    new = Panel(last.prompt, "", last.characters, negative=last.negative, place=last.place)
    return replace(story, panels=(*story.panels, new))


def describe_character(story: Story, name: str, description: str) -> Story:
    """Return the story with another description of a character.

    Raises:
        UserError: no such character, or one whose description is that of its file.
    """
    found = next((each for each in story.characters if each.name == name), None)
    if found is None:
        raise UserError(f"the story has no character {name}: write [{name}] in a prompt of the script")
    if found.file is not None and description != found.description:
        raise UserError(f"{name} is a saved character, described by its file: describe {name} in the script instead")
    characters = tuple(
        replace(each, description=description) if each.name == name else each for each in story.characters
    )
    return check_story(replace(story, characters=characters))


def change_title(story: Story, title: str) -> Story:
    """Return the story with another title. Raises UserError for an empty one."""
    return check_story(replace(story, title=title))


def change_style(story: Story, style: str) -> Story:
    """Return the story in another style. Raises UserError for an unknown one."""
    return check_story(replace(story, style=style))


def get_panel(story: Story, number: int) -> Panel:
    """Return panel `number`, from 1. Raises UserError."""
    if not 1 <= number <= len(story.panels):
        raise UserError(f"the story has no panel {number}: it has {len(story.panels)}")
    return story.panels[number - 1]
