"""Render StoryWorld images as tensors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from storydiffusion.storyworld.edition import get_edition

IMAGE_SIZE = 128
HELD_OUT_SEED = 10_000
"""Seed of the held-out world; no training draws from it."""


@dataclass(frozen=True)
class RenderedImages:
    """`images` in [−1, 1], float32 (B, 3, H, W); `truths[i]`, of the edition's kind, describes `images[i]`."""

    images: Tensor
    truths: tuple[Any, ...]


def to_tensor(images: np.ndarray) -> Tensor:
    """Convert uint8 (B, H, W, 3) to float32 (B, 3, H, W) in [−1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1)


def draw(seed: int, indices: range, size: int = IMAGE_SIZE, edition: int = 1) -> RenderedImages:
    """Render the images `indices` of the world `seed`."""
    world = get_edition(edition)
    truths = tuple(world.sample(seed, index) for index in indices)
    return RenderedImages(to_tensor(np.stack([world.render(truth, size) for truth in truths])), truths)
