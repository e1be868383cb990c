"""Write a story from an idea, a text or an emotion: one YAML file, ready for `storydiffusion infer story=FILE`."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

from storydiffusion.config import ModelConfig
from storydiffusion.config.command_line import command
from storydiffusion.config.loading import LARGEST_SEED, check_range
from storydiffusion.config.writer import ChatWriterConfig, RulesWriterConfig, check_writing, is_to_write
from storydiffusion.errors import UserError
from storydiffusion.story import Story


@dataclasses.dataclass
class WriteConfig:
    """conf/write.yaml. Types and values of the writers are in conf/writer."""

    idea: str | None
    text: str | None
    emotion: str | None
    panels: int | None
    language: str | None
    seed: int
    out: str
    overwrite: bool
    model: ModelConfig
    writer: Annotated[Any, RulesWriterConfig, ChatWriterConfig]

    def __post_init__(self) -> None:
        check_range("seed", self.seed, 0, LARGEST_SEED)
        if not is_to_write(self):
            raise UserError("there is nothing to write from: give idea='…', text=FILE or emotion=NAME")
        check_writing(self)
        if Path(self.out).suffix not in (".yaml", ".yml"):
            raise UserError(f"out={self.out} must end in .yaml or .yml: write out=NAME.yaml")


@command(WriteConfig)
def main(config: WriteConfig) -> None:
    """Run the verb: write the story, then print it."""
    from storydiffusion.writer.request import build_brief
    from storydiffusion.writer.story_file import write_story

    file = Path(config.out)
    if file.exists() and not config.overwrite:
        raise UserError(f"{file} already exists: choose another out, or pass overwrite=true")
    draft = write_story(file, build_brief(config, config.model, config.seed), config.writer)
    print_notes(draft.notes)
    print(f"{describe(draft.story)}\nwritten: {file}; generate it with storydiffusion infer story={file}")


def print_notes(notes: tuple[str, ...]) -> None:
    """Print a writer's remarks on stderr."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def describe(story: Story) -> str:
    """Return title and captions, one a line."""
    return "\n".join([story.title, *(f"  {n}. {panel.caption}" for n, panel in enumerate(story.panels, start=1))])
