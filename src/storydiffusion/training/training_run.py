"""One training: fits, resumes, exports, and records what it took."""

import json
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from storydiffusion.training.csv_log import logged_losses
from storydiffusion.training.stopwatch import Stopwatch, machine
from storydiffusion.training.weight_averaging import WeightAveraging

RECORD = "training.json"
LAST = "last.ckpt"


class Exporting(Protocol):
    """What a LightningModule needs to be trained here."""

    recipe: Any  # a dataclass

    @property
    def parts(self) -> tuple[str, ...]:
        """What is exported, by the names in the record of trainings."""
        ...

    def export(self, folder: Path) -> dict[str, float]:
        """Writes the trained parts into `folder`; returns measured figures."""
        ...


@dataclass
class Training:
    """A module with its trainer; `fit` goes on from run_dir/checkpoints/last.ckpt where there is one."""

    module: Any  # a LightningModule that is `Exporting`
    trainer: L.Trainer
    average: WeightAveraging
    stopwatch: Stopwatch
    checkpoints: ModelCheckpoint
    data: L.LightningDataModule | None = None  # None: the module has its own

    @property
    def is_first_process(self) -> bool:
        """Which is the one that exports."""
        return self.trainer.is_global_zero

    def fit(self) -> None:
        last = Path(str(self.checkpoints.dirpath)) / LAST
        path = str(last) if last.exists() else None
        self.trainer.fit(self.module, datamodule=self.data, ckpt_path=path, weights_only=True)

    def export(self, folder: Path) -> dict[str, float]:
        """Writes the averaged weights into `folder` with a record of how they came about; returns measured figures
        and the losses of its log.
        """
        folder.mkdir(parents=True, exist_ok=True)
        module: Exporting = self.module
        with self.average.applied(self.module):
            self.module.to("cpu")
            figures = module.export(folder)
        figures |= logged_losses(Path(str(self.checkpoints.dirpath)).parent)
        file = folder / RECORD
        record = json.loads(file.read_text()) if file.exists() else {}
        for part in module.parts:
            record[part] = {
                "recipe": asdict(module.recipe),
                "wall_seconds": round(self.stopwatch.seconds),
                "machine": machine(),
                "torch": str(torch.__version__),
                "figures": {name: round(value, 4) for name, value in figures.items()},
            }
        file.write_text(json.dumps(record, indent=2) + "\n")
        return figures


class RunCheckpoints(ModelCheckpoint):
    """Keeps the newest checkpoint, one every `minutes`, and leaves that of the last step when the training ends.

    Lightning's own leaves the last one that was due.
    """

    def __init__(self, folder: str | Path, minutes: float) -> None:
        super().__init__(folder, save_last=True, train_time_interval=timedelta(minutes=minutes))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Saves the step just taken; called by all processes."""
        trainer.save_checkpoint(Path(str(self.dirpath)) / LAST)
