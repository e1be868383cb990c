"""When a run saves a checkpoint, which one it resumes from, and how all processes end where saving fails."""

import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from storydiffusion.errors import UserError
from storydiffusion.training.callbacks.step_agreement import StepAgreement
from storydiffusion.training.checkpoint_io import (
    Found,
    certify_folder,
    check_folder,
    checkpoint_path,
    newest_checkpoint,
    remove_older,
)
from storydiffusion.training.process_group import stop_together

CHECKPOINT = "checkpoint"


class RunCheckpoints(Checkpoint):
    """Saves a checkpoint every `minutes` and at the end of training into `folder`; see `checkpoint_io.py`.

    It saves only between optimizer steps, because checkpoints do not contain accumulating gradients. `agreement`, which
    exchanges votes, makes all processes save after the same step.
    """

    def __init__(self, folder: str | Path, minutes: float, agreement: StepAgreement) -> None:
        self.folder = Path(folder)
        self.seconds = 60 * minutes
        self.agreement = agreement
        agreement.add(CHECKPOINT, self._is_due)
        self.resumed: Found | None = None  # the checkpoint that this process resumes from
        self._step_begun = self._step_saved = -1
        self._saved = 0.0  # time of the last save

    def find(self) -> Path | None:
        """Return the checkpoint to resume from, or None for a new run.

        Raises:
            UserError: there are checkpoints but none is valid, or a DeepSpeed checkpoint contains more than data.
        """
        self.resumed = newest_checkpoint(self.folder)
        if self.resumed and self.resumed.path.is_dir():
            check_folder(self.resumed.path)
        return self.resumed.path if self.resumed else None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        found = self.resumed
        if not trainer.strategy.reduce_boolean_decision(found == trainer.strategy.broadcast(found)):
            stop_together(
                trainer,
                f"the processes find different checkpoints in {self.folder}: use a folder that all of them share",
            )
        if found and found.passed_over and trainer.is_global_zero:
            print(f"resuming from step {found.step}, because {'; '.join(found.passed_over)}", file=sys.stderr)

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
        if self.is_between_steps(trainer) and self.agreement[CHECKPOINT]:
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.is_between_steps(trainer):
            self.save(trainer)

    def _is_due(self, trainer: L.Trainer) -> int:
        """Return 1 on the first process if the last save is `seconds` ago, else 0."""
        return int(trainer.is_global_zero and time.monotonic() - self._saved >= self.seconds)

    def is_between_steps(self, trainer: L.Trainer) -> bool:
        """Return whether the current batch has completed an optimizer step; with accumulation not every one does."""
        return trainer.global_step != self._step_begun

    def save(self, trainer: L.Trainer) -> None:
        """Save the current step as the newest checkpoint and remove all older ones but one.

        All processes call this together, after a batch that has completed a step.

        Raises:
            UserError: on the first process, if the checkpoint cannot be written; the others exit.
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
    """Write the checkpoint, called by all processes; return the first one's error as a sentence, or None."""
    try:
        trainer.save_checkpoint(path, weights_only=False)
    except UserError as error:  # only the first process writes; the others wait in the barrier
        trainer.strategy.barrier()
        return str(error)
    if trainer.is_global_zero:
        try:
            if path.is_dir():
                certify_folder(path)
            remove_older(path.parent, trainer.global_step)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            return f"cannot update {path.parent}: {reason}; fix this and run the command again"
    return None
