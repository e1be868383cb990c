"""Turn the settings of a command into a brief."""

from pathlib import Path

from storydiffusion.config import ModelConfig
from storydiffusion.config.writer import WritingSettings
from storydiffusion.files.bounded_yaml import read_text
from storydiffusion.loaders.resolve import read_edition
from storydiffusion.loaders.sources import package_path
from storydiffusion.writer.brief import Brief
from storydiffusion.writer.sentences import split_sentences
from storydiffusion.writer.targets import FreeTarget, StoryWorldTarget, Target


def build_brief(config: WritingSettings, model: ModelConfig, seed: int) -> Brief:
    """Return the brief of the settings; panels left open are the writer's, or fewer for a text of fewer sentences.

    Raises:
        UserError: a text that cannot be read, or nothing to write from.
    """
    text = read_text(Path(config.text), "text") if config.text is not None else ""
    panels = config.panels or config.writer.panels
    if config.panels is None and text.strip():
        panels = min(panels, len(split_sentences(text)))
    idea = " ".join((config.idea or "").split())
    return Brief(idea, text, config.emotion, panels, config.language, seed, find_target(model))


def find_target(model: ModelConfig) -> Target:
    """Return what the model draws: a local folder's card names StoryWorld's edition, and a hub is not asked."""
    folder = package_path(model.path)
    edition = read_edition(folder) if folder.is_dir() else None
    return FreeTarget() if edition is None else StoryWorldTarget(edition)
