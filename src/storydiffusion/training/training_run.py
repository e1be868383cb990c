"""One training: fit, resume, export, and record what it took."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch

from storydiffusion.files.atomic import draft_folder
from storydiffusion.output.folder_lock import own_folder
from storydiffusion.training.callbacks.ema import EMA
from storydiffusion.training.callbacks.run_checkpoints import RunCheckpoints
from storydiffusion.training.callbacks.stopwatch import Stopwatch
from storydiffusion.training.csv_log import read_mean_losses
from storydiffusion.training.data_module import ClipData
from storydiffusion.training.record import machine, read_record, round_figures, write_record


class TrainableModule(Protocol):
    """What a LightningModule must offer beside Lightning's own methods."""

    recipe: Any  # a dataclass

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the exported parts in training.json."""
        ...

    def trained_networks(self) -> list[torch.nn.Module]:
        """Return the networks that gradients pass through, for torch.compile."""
        ...

    def export(self, folder: Path) -> dict[str, float]:
        """Write the trained parts into `folder`; return measured metrics by name."""
        ...


@dataclass
class TrainingRun:
    """A module with its trainer; `fit` resumes from the newest checkpoint of the run folder if there is one."""

    module: Any  # a LightningModule that is a `TrainableModule`
    trainer: L.Trainer
    ema: EMA
    stopwatch: Stopwatch
    checkpoints: RunCheckpoints
    data: ClipData | None = None  # None: the module has its own

    @property
    def is_first_process(self) -> bool:
        """Whether this process is the one that exports."""
        return self.trainer.is_global_zero

    def fit(self) -> None:
        self.trainer.fit(self.module, datamodule=self.data, ckpt_path=self.checkpoints.find(), weights_only=True)

    def export(self, folder: Path) -> dict[str, float]:
        """Write the averaged weights and their training record into `folder`; return its metrics and logged losses."""
        module: TrainableModule = self.module
        with own_folder(folder, wait=True):  # trainings of several parts may share it
            with draft_folder(folder) as draft, self.ema.applied(self.module):
                self.module.to("cpu")
                metrics = module.export(draft)
            metrics |= read_mean_losses(self.checkpoints.folder.parent)
            entry = {
                "recipe": asdict(module.recipe),
                "wall_seconds": round(self.stopwatch.seconds),
                "machine": machine(),
                "torch": str(torch.__version__),
                "figures": round_figures(metrics),
            }
            if self.data is not None:
                entry["order"] = self.data.order
            write_record(folder, read_record(folder) | dict.fromkeys(module.parts, entry))
        return metrics
