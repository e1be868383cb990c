"""StoryWorld as an endless, resumable stream of training batches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

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


class Stream:
    """Endless batches, batch k of which is `make(k)`: a pure function of k, so that a resumed stream repeats nothing.

    Lightning saves and restores it through `state_dict`; a batch counts as taken when it is handed out.
    """

    def __init__(self, make: Callable[[int], Any], steps: int) -> None:
        self.make = make
        self.steps = steps
        self.taken = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        while self.taken < self.steps:
            self.taken += 1
            yield self.make(self.taken - 1)

    def state_dict(self) -> dict[str, int]:
        return {"taken": self.taken}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.taken = state_dict["taken"]
