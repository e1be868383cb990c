"""Saved characters in a story: their images are computed again beside its panels, which read their features.

The images of a saved character see the story that they come from and nothing of the new one: same prompts, noise, draws
and settings give the same features at every layer and step as when they were generated. The new story's panels read
those images of each of their characters, whatever the number of panels in reach, and each other as without files.
Stories are ordered by their content, so the order of the characters in a script changes nothing.

Shape letters: R images of saved characters, P panels of the story or other images of it; they lie in this order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from storydiffusion.attention.consistent_self_attention import View
from storydiffusion.errors import UserError
from storydiffusion.models.prompt_encoding import count_windows
from storydiffusion.pipelines.panels import shared_characters
from storydiffusion.story.character_file import CharacterFile, SavedImage


@dataclass(frozen=True)
class Cast:
    """The saved characters of a story beside its own images.

    Attributes:
        images: of the saved characters' stories, R.
        noise: theirs, (R, C, h, w).
        views: of all R + P images.
        may_share: (R + P, R + P) booleans, true at [i, j] where image i may attend to image j.
    """

    images: tuple[SavedImage, ...]
    noise: Tensor
    views: tuple[View, ...]
    may_share: Tensor


def place_characters(
    files: Mapping[str, CharacterFile], characters: Sequence[Sequence[str]], views: Sequence[View]
) -> Cast:
    """Return the images of saved characters, placed before those of a story.

    Args:
        files: by the name of the character in the story.
        characters: the names in each of the story's P images.
        views: of these images.
    """
    images: list[SavedImage] = []
    seen: list[View] = []
    first: dict[str, int] = {}
    ordered = sorted({file.story_key: file for file in files.values()}.items())
    for key, file in ordered:
        first[key] = begin = len(images)
        images += file.story.images
        seen += [View(each.panel, _move(each.images, begin), file.story.seed) for each in file.story.images]
    reads = {name: _move(file.character.reads, first[file.story_key]) for name, file in files.items()}
    read, count = tuple(sorted({number for numbers in reads.values() for number in numbers})), len(images)
    seen += [
        View(len(read) + view.panel, (*read, *_move(view.images, count)), view.seed, references=len(read))
        for view in views
    ]
    shares = [shared_characters([each.characters for each in file.story.images]) for _, file in ordered]
    may_share = torch.block_diag(*shares, shared_characters(characters)).bool()
    for panel, names in enumerate(characters, count):
        may_share[panel, [number for name in names for number in reads.get(name, ())]] = True
    noise = torch.cat([file.load_noise() for _, file in ordered])
    return Cast(tuple(images), noise, tuple(seen), may_share)


def _move(images: Sequence[int], begin: int) -> tuple[int, ...]:
    """Return numbers of images that begin at `begin`; -1 stays."""
    return tuple(number if number < 0 else begin + number for number in images)


def choose_windows(tokenizer: Any, files: Mapping[str, CharacterFile], texts: Sequence[str]) -> int:
    """Return the number of windows in which all prompts must be encoded, that of the saved images.

    Args:
        texts: all prompts and negative prompts of the story.

    Raises:
        UserError: for prompts that need more, which would change the features of the saved images.
    """
    least = min(files.values(), key=lambda file: file.story.windows)
    others = [file.story.windows for file in files.values()]
    if max(count_windows([tokenizer], texts), *others) > least.story.windows:
        room = least.story.windows * (tokenizer.model_max_length - 2)
        raise UserError(
            f"{least.path} was saved from prompts of at most {room} tokens, but the story has, or another character "
            "comes from, a longer one: shorten the story's prompts, or save the character from longer ones"
        )
    return least.story.windows
