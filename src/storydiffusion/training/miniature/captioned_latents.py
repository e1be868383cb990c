"""Training batches of the miniature's image networks: cached latents of StoryWorld, captioned anew at every step.

Latents are computed once and cached; captions name each part of the attire half of the time, so that words bind to what
they name. A share of the batches shows one character twice in one image.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from storydiffusion.config.miniature import CaptionedLatentsRecipe
from storydiffusion.errors import UserError
from storydiffusion.storyworld.captions import Prompt, join_prompts
from storydiffusion.storyworld.edition import get_edition
from storydiffusion.training.miniature.world_cache import cache_world, name_caches


@dataclass(frozen=True)
class Layout:
    """The images of a batch: one list of indices, or two of images side by side along the dimension `dim`."""

    images: tuple[list[int], ...]
    dim: int = -1

    def join(self, maps: np.ndarray) -> Tensor:
        """Gather from maps of all images, (images, …, 16, 16)."""
        return torch.cat([torch.from_numpy(maps[indices]) for indices in self.images], self.dim)

    def split(self, maps: np.ndarray) -> Tensor:
        """Gather with channels of its own for each image, (B, lists · C, H, W), 0 in those of the others."""
        parts = [torch.from_numpy(maps[indices]) for indices in self.images]
        placed = [
            torch.cat([part if i == k else torch.zeros_like(part) for k in range(len(parts))], self.dim)
            for i, part in enumerate(parts)
        ]
        return torch.cat(placed, dim=1)


@dataclass(frozen=True)
class Reference:
    """The image of each collage of a batch that shows the other what to take from it.

    Attributes:
        times: of its noise, (B,).
        mask: bool (1, 1, H, W), where it is.
    """

    times: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Captions:
    """The captions of a batch.

    Attributes:
        tokens: int64 (B, T), with dropped captions and unknown words.
        kept: bool (B,), false where a caption was dropped.
        truths: of the images of each caption.
        prompts: one for each of these images.
    """

    tokens: Tensor
    kept: Tensor
    truths: Sequence[tuple[Any, ...]]
    prompts: Sequence[tuple[Prompt, ...]]


class CaptionedLatents:
    """The images of StoryWorld's paired world `recipe.seed` as latents, with new captions for every step.

    Args:
        recipe: see `CaptionedLatentsRecipe`.
        vae: folder of the autoencoder.
        cache: folder for the latents and for what characters cover of them.
        tokenizer: cuts and pads captions to its `model_max_length`.
    """

    def __init__(self, recipe: CaptionedLatentsRecipe, vae: Path, cache: Path, tokenizer: CLIPTokenizer) -> None:
        self.recipe = recipe
        self.edition = get_edition(recipe.edition)
        self.vae = vae
        self.tokenizer: Any = tokenizer
        world = f"storyworld_pairs_{recipe.edition}_{recipe.seed}_{recipe.pictures}"
        self.cache, self.cover_cache = name_caches(cache, world, vae)

    def prepare(self) -> None:
        """Write the files of the cache that do not exist."""
        cache_world(self.cache, self.cover_cache, self.vae, self.edition, self._truth, self.recipe.pictures)

    def load(self) -> tuple[np.ndarray, np.ndarray]:
        """Return `encode_world` and `cover_world` of all images, as memory maps."""
        latents, cover = (np.load(file, mmap_mode="r") for file in (self.cache, self.cover_cache))
        return latents, cover

    def draw_layout(self, images: int, generator: torch.Generator) -> Layout:
        """Choose a batch among `images`: pairs in a share `recipe.pair_probability`, else single images."""
        paired = torch.rand((), generator=generator) < self.recipe.pair_probability
        return (self.draw_pairs if paired else self.draw_singles)(images, generator)

    def draw_singles(self, images: int, generator: torch.Generator) -> Layout:
        """Choose single images."""
        return Layout((torch.randint(images, (self.recipe.batch_size,), generator=generator).tolist(),))

    def draw_pairs(self, images: int, generator: torch.Generator) -> Layout:
        """Choose collages of two images of one character, half as many, beside or below each other.

        They are meant to teach self-attention that similar characters in one image wear the same attire; consistent
        self-attention itself is not used in training. Pairs of two characters are left out.

        Raises:
            UserError: no pair shows only one character.
        """
        usable = self._pairs_of_one[: bisect_left(self._pairs_of_one, images - 1)]
        if not usable:
            raise UserError(f"none of recipe.pictures={images} has one character, for collages: give more")
        chosen = torch.randint(len(usable), (self.recipe.batch_size // 2,), generator=generator)
        firsts = [usable[number] for number in chosen.tolist()]
        below_or_beside = int(torch.randint(2, (), generator=generator)) - 2
        return Layout((firsts, [index + 1 for index in firsts]), below_or_beside)

    def draw_reference(
        self, layout: Layout, clean: Tensor, times: Tensor, generator: torch.Generator
    ) -> Reference | None:
        """Choose in collages an image with less noise than `times` (B,) say; None: both have as much, or single images.

        The clearer image is not predicted. Between images of equal noise hardly anything was learned about what one can
        take from the other (docs/training_miniature.md).

        Args:
            clean: latents of the batch, (B, C, H, W).
        """
        if len(layout.images) == 1 or torch.rand((), generator=generator) >= self.recipe.reference_probability:
            return None
        chosen = int(torch.randint(2, (), generator=generator))
        halves = torch.zeros(1, 1, *clean.shape[-2:], dtype=torch.bool).chunk(2, layout.dim)
        mask = torch.cat([half | (i == chosen) for i, half in enumerate(halves)], layout.dim)
        return Reference(times * torch.rand(len(times), generator=generator), mask)

    def weigh(self, covered: Tensor) -> Tensor:
        """Return the weights of squared errors, (B, 1, H, W), by how much characters cover, (B, C, H, W)."""
        return 1 + (self.recipe.character_weight - 1) * covered.sum(1, keepdim=True)

    def draw_captions(self, layout: Layout, step: int, generator: torch.Generator) -> Captions:
        """Draw new captions of the images of batch `step`."""
        truths = list(zip(*([self._truth(index) for index in indices] for indices in layout.images), strict=True))
        prompts = [self._prompts(each, step * len(truths) + number) for number, each in enumerate(truths)]
        tokens, kept = self._tokenize([join_prompts(each).text for each in prompts], generator)
        return Captions(tokens, kept, truths, prompts)

    @cached_property
    def _pairs_of_one(self) -> list[int]:
        """The first images, in order, of the pairs that show only one character."""
        firsts = range(0, self.recipe.pictures, 2)
        return [index for index in firsts if len(self.edition.get_looks(self._truth(index))) == 1]

    def _truth(self, index: int) -> Any:
        return self.edition.sample_pair_member(self.recipe.seed, index)

    def _prompts(self, truths: Sequence[Any], seed: int) -> tuple[Prompt, ...]:
        """Return new prompts of one image or of a pair side by side."""
        if len(truths) == 1:
            return (self.edition.draw_prompt(truths[0], seed),)
        return self.edition.draw_pair_prompts(truths[0], truths[1], seed)

    def _tokenize(self, captions: list[str], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokenize captions, int64 (B, T); drop some for classifier-free guidance and make some words unknown.

        Also returns which captions were kept, bool (B,).
        """
        recipe = self.recipe
        dropped = torch.rand(len(captions), generator=generator) < recipe.caption_dropout
        kept = ["" if drop else text for drop, text in zip(dropped.tolist(), captions, strict=True)]
        tokens = self.tokenizer(kept, padding="max_length", truncation=True, return_tensors="pt").input_ids
        unknown = torch.rand(tokens.shape, generator=generator) < recipe.unknown_word_probability
        return tokens.masked_fill(unknown & (tokens > 1), self.tokenizer.unk_token_id), ~dropped


def shift_times(times: Tensor, shift: float) -> Tensor:
    """Move times in [0, 1], 1 being noise, towards noise by a factor of t / (1 − t) [Esser et al. 2024, 2403.03206]."""
    return shift * times / (1 + (shift - 1) * times)


def spread_evenly(count: int, generator: torch.Generator) -> Tensor:
    """Return `count` uniform numbers in [0, 1), one in each of as many equal parts, in order."""
    return (torch.arange(count) + torch.rand(count, generator=generator)) / count
