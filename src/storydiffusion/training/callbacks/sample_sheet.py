"""Sample with the averaged weights during training and write what they generate into one PNG."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from storydiffusion.files.atomic import write_image
from storydiffusion.training.callbacks.ema import EMA


class SampleSheet(L.Callback, ABC):
    """Writes `folder`/samples/STEP.png, and logs it to the loggers that accept images.

    Args:
        every: steps between two sheets.
    """

    def __init__(self, every: int, folder: str | Path, ema: EMA) -> None:
        self.every = every
        self.folder = Path(folder) / "samples"
        self.ema = ema
        self._last_step = -1

    @abstractmethod
    def draw(self, module: Any) -> np.ndarray:
        """Return the sheet, uint8 (rows, columns, 3), the same at every call of the same weights."""

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
        module.eval()
        with self.ema.applied(module), trainer.precision_plugin.forward_context():
            sheet = self.draw(module)
        module.train()
        file = self.folder / f"{trainer.global_step:06d}.png"
        write_image(file, Image.fromarray(sheet))
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):
                logger.log_image("samples", [str(file)], step=trainer.global_step)  # type: ignore[attr-defined]
