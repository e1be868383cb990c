"""One training: fits, resumes, exports, and records what it took."""

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint

from storydiffusion.errors import UserError
from storydiffusion.training.callbacks.ema import EMA
from storydiffusion.training.callbacks.stopwatch import Stopwatch
from storydiffusion.training.checkpoint_io import (
    Found,
    certify_folder,
    check_folder,
    checkpoint_path,
    newest_checkpoint,
    remove_older,
)
from storydiffusion.training.csv_log import logged_losses
from storydiffusion.training.process_group import stop_together
from storydiffusion.training.record import RECORD, machine


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
    """A module with its trainer; `fit` goes on from the newest checkpoint of its run directory, where there is one."""

    module: Any  # a LightningModule that is `Exporting`
    trainer: L.Trainer
    average: EMA
    stopwatch: Stopwatch
    checkpoints: "RunCheckpoints"
    data: L.LightningDataModule | None = None  # None: the module has its own

    @property
    def is_first_process(self) -> bool:
        """Which is the one that exports."""
        return self.trainer.is_global_zero

    def fit(self) -> None:
        self.trainer.fit(self.module, datamodule=self.data, ckpt_path=self.checkpoints.find(), weights_only=True)

    def export(self, folder: Path) -> dict[str, float]:
        """Writes the averaged weights into `folder` with a record of how they came about; returns measured figures
        and the losses of its log.
        """
        folder.mkdir(parents=True, exist_ok=True)
        module: Exporting = self.module
        with self.average.applied(self.module):
            self.module.to("cpu")
            figures = module.export(folder)
        figures |= logged_losses(self.checkpoints.folder.parent)
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


class RunCheckpoints(Checkpoint):
    """Saves every `minutes`, and when the training ends, into `folder`; see `checkpoint_io.py`.

    Only between optimizer steps: gradients that are still being accumulated are in no checkpoint.
    """

    def __init__(self, folder: str | Path, minutes: float) -> None:
        self.folder = Path(folder)
        self.seconds = 60 * minutes
        self.resumed: Found | None = None  # what this process has found to go on from
        self._step_begun = self._step_saved = -1
        self._saved = 0.0  # when

    def find(self) -> Path | None:
        """The checkpoint that the run goes on from.

        Raises:
            UserError: there are some but none that counts, or it is a folder in which more than data lies.
        """
        self.resumed = newest_checkpoint(self.folder)
        if self.resumed and self.resumed.path.is_dir():
            check_folder(self.resumed.path)
        return self.resumed.path if self.resumed else None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        found = self.resumed
        if not trainer.strategy.reduce_boolean_decision(found == trainer.strategy.broadcast(found)):
            stop_together(trainer, f"the processes find different checkpoints in {self.folder}: let all see one folder")
        if found and found.passed_over and trainer.is_global_zero:
            print(f"going on from step {found.step}, since {'; '.join(found.passed_over)}", file=sys.stderr)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step_begun = self._step_saved = trainer.global_step
        self._saved = time.monotonic()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step_begun = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        is_due = time.monotonic() - self._saved >= self.seconds
        if self.is_between_steps(trainer) and trainer.strategy.broadcast(is_due):
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.is_between_steps(trainer):
            self.save(trainer)

    def is_between_steps(self, trainer: L.Trainer) -> bool:
        """Whether the batch at hand has ended an optimizer step; with accumulation not every one does."""
        return trainer.global_step != self._step_begun

    def save(self, trainer: L.Trainer) -> None:
        """Saves the present step as the newest checkpoint and removes all older ones but one; called by all processes
        together, at the end of a batch that has ended a step.

        Raises:
            UserError: on the first process, where it cannot be written; the others end.
        """
        step = trainer.global_step
        if step == self._step_saved:
            return
        if not self.is_between_steps(trainer):
            raise RuntimeError("a checkpoint between the batches of one step would lose their gradients")
        path = checkpoint_path(self.folder, step)
        if failure := trainer.strategy.broadcast(_write(trainer, path)):
            stop_together(trainer, failure)
        self._step_saved, self._saved = step, time.monotonic()


def _write(trainer: L.Trainer, path: Path) -> str | None:
    """Called by all processes; what the first one failed with, as a sentence."""
    try:
        trainer.save_checkpoint(path, weights_only=False)
    except UserError as error:  # of the first process, which writes: the others are in the barrier that follows
        trainer.strategy.barrier()
        return str(error)
    if trainer.is_global_zero:
        try:
            if path.is_dir():
                certify_folder(path)
            remove_older(path.parent, trainer.global_step)
        except OSError as error:
            return f"cannot keep {path.parent} in order: {(error.strerror or str(error)).lower()}; mend that"
    return None
