"""Sample clips with the averaged weights during training, each below its true clip."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from storydiffusion.data.loader import ClipBatch
from storydiffusion.pipelines.transition_sampling import TransitionSampling, sample_clips
from storydiffusion.training.callbacks.ema import EMA
from storydiffusion.training.callbacks.sample_sheet import SampleSheet

GAP = 4  # pixels between clips


class SampleGrid(SampleSheet):
    """Writes clips, each below its true clip.

    Args:
        every, folder, ema: see `SampleSheet`.
        example: returns the clips, the same at every call.
    """

    def __init__(
        self,
        every: int,
        folder: str | Path,
        example: Callable[[], ClipBatch],
        sampling: TransitionSampling,
        ema: EMA,
    ) -> None:
        super().__init__(every, folder, ema)
        self.example = example
        self.sampling = sampling

    def draw(self, module: Any) -> np.ndarray:
        clips = self.example()
        start, end, count = clips.frames[:, 0], clips.frames[:, -1], len(clips.frames)
        sampled = sample_clips(module.model, start, end, clips.captions, range(count), self.sampling)
        return build_grid(clips.frames, sampled)


def build_grid(true: Tensor, sampled: Tensor) -> np.ndarray:
    """Arrange uint8 (B, F, 3, H, W) each into uint8 (rows, columns, 3): frames side by side, true clips on top."""
    rows = torch.stack([true, sampled], dim=1).permute(0, 1, 4, 2, 5, 3)  # B, 2, H, F, W, 3
    pairs = rows.reshape(len(true), 2 * true.shape[3], -1, 3)
    separated = torch.nn.functional.pad(pairs, (0, 0, 0, 0, 0, GAP), value=255)
    return separated.flatten(0, 1)[:-GAP].numpy()
