"""Pictures of StoryWorld as tensors."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from storydiffusion.storyworld.renderer import render
from storydiffusion.storyworld.truth import Truth, sample_truth

PICTURE_SIZE = 128
HELD_OUT_SEED = 10_000
"""World whose truths no training ever draws."""


@dataclass(frozen=True)
class Pictures:
    """`images` in [−1, 1], float32 (B, 3, H, W); `truths[i]` is true about `images[i]`."""

    images: Tensor
    truths: tuple[Truth, ...]


def to_tensor(pictures: np.ndarray) -> Tensor:
    """uint8 (B, H, W, 3) → float32 (B, 3, H, W) in [−1, 1]."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).to(torch.float32).div_(127.5).sub_(1)


def draw(seed: int, indices: range, size: int = PICTURE_SIZE) -> Pictures:
    """The pictures of `indices` of the world `seed`."""
    truths = tuple(sample_truth(seed, index) for index in indices)
    return Pictures(to_tensor(np.stack([render(truth, size) for truth in truths])), truths)
