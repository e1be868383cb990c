"""Story scripts: characters, panels, captions and styles."""

from storydiffusion.story.script import (
    Character,
    Panel,
    PanelPrompt,
    Story,
    character_prompts,
    character_words,
    cut_between_characters,
    load_story,
    panel_places,
    panel_prompts,
    story_from_dict,
)
from storydiffusion.story.styles import NO_STYLE, STYLES, Style, find_style

__all__ = [
    "NO_STYLE",
    "STYLES",
    "Character",
    "Panel",
    "PanelPrompt",
    "Story",
    "Style",
    "character_prompts",
    "character_words",
    "cut_between_characters",
    "find_style",
    "load_story",
    "panel_places",
    "panel_prompts",
    "story_from_dict",
]
