"""`storydiffusion words`: list the words that a model trained on StoryWorld knows."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from storydiffusion.config import ModelConfig
from storydiffusion.config.command_line import command
from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import read_edition
from storydiffusion.loaders.sources import INDEX_FILES, find_model_folder

WIDTH = 100


@dataclass
class WordsConfig:
    """conf/words.yaml."""

    model: ModelConfig
    edition: int | None  # null: that of the model


@command(WordsConfig)
def main(config: WordsConfig) -> None:
    """Run the verb."""
    from storydiffusion.storyworld.edition import get_edition
    from storydiffusion.storyworld.words import group_words

    edition = get_edition(choose_edition(config))
    print(f"StoryWorld, edition {edition.number}: {len(edition.vocabulary())} words, at most", end=" ")
    print(f"{edition.most_characters} character{'s' if edition.most_characters > 1 else ''} in an image\n")
    print("\n".join(format_groups(group_words(edition))))


def choose_edition(config: WordsConfig) -> int:
    """Return the edition to list. Raises UserError for a model that was not trained on StoryWorld."""
    if config.edition is not None:
        return config.edition
    edition = read_edition(find_model_folder(config.model.path, config.model.revision, files=INDEX_FILES))
    if edition is None:
        raise UserError(
            f"model={config.model.name} was not trained on StoryWorld and takes any words: "
            "choose model=miniature, or give edition=1 or edition=2"
        )
    return edition


def format_groups(groups: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the lines of a table: a group's name, then its words."""
    indent = max(map(len, groups)) + 2
    return [
        textwrap.fill(
            f"{name:{indent}}{' · '.join(phrases)}", WIDTH, subsequent_indent=" " * indent, break_on_hyphens=False
        )
        for name, phrases in groups.items()
    ]
