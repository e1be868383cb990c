"""Sample clips with the averaged weights during training and write each below its true clip into one PNG."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor

from storydiffusion.data.loader import ClipBatch
from storydiffusion.files.atomic import write_image
from storydiffusion.pipelines.transition_sampling import TransitionSampling, sample_clips
from storydiffusion.training.callbacks.ema import EMA

GAP = 4  # pixels between clips


class SampleGrid(L.Callback):
    """Writes `folder`/samples/STEP.png, and logs it to the loggers that accept images.

    Args:
        every: steps between two grids.
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
        self.every = every
        self.folder = Path(folder) / "samples"
        self.example = example
        self.sampling = sampling
        self.ema = ema
        self._last_step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._last_step and trainer.global_step % self.every == 0:
            self._sample(trainer, pl_module)
        self._last_step = trainer.global_step

    @rank_zero_only
    def _sample(self, trainer: L.Trainer, module: Any) -> None:
        clips = self.example()
        start, end, count = clips.frames[:, 0], clips.frames[:, -1], len(clips.frames)
        module.eval()
        with self.ema.applied(module), trainer.precision_plugin.forward_context():
            sampled = sample_clips(module.model, start, end, clips.captions, range(count), self.sampling)
        module.train()
        file = self.folder / f"{trainer.global_step:06d}.png"
        write_image(file, Image.fromarray(build_grid(clips.frames, sampled)))
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image("samples", [str(file)], step=trainer.global_step)  # type: ignore[attr-defined]


def build_grid(true: Tensor, sampled: Tensor) -> np.ndarray:
    """Arrange uint8 (B, F, 3, H, W) each into uint8 (rows, columns, 3): frames side by side, true clips on top."""
    rows = torch.stack([true, sampled], dim=1).permute(0, 1, 4, 2, 5, 3)  # B, 2, H, F, W, 3
    pairs = rows.reshape(len(true), 2 * true.shape[3], -1, 3)
    separated = torch.nn.functional.pad(pairs, (0, 0, 0, 0, 0, GAP), value=255)
    return separated.flatten(0, 1)[:-GAP].numpy()
