"""The log of the video model's training: one row every few steps, in metrics.csv and every other logger."""

import resource
import time
from typing import Any

import lightning as L
import torch
from torch import Tensor

from storydiffusion.training.callbacks.gradient_norm import GradientNorm
from storydiffusion.training.callbacks.skip_non_finite_steps import SkipNonFiniteSteps

BUCKETS = 4
LOSS, SEMANTIC, TEXT, CLIPS, ERROR, NOISED = range(6)  # rows of the sums; the last two count by bucket


class TrainingLog(L.Callback):
    """Logs losses, speed and memory every `every` steps.

    Losses are means over all clips of all processes since the last row, without non-finite ones: `loss` is minimised;
    `diffusion_loss`, `semantic_loss` and `text_loss` are its unweighted terms, logged if there are others than the
    first. Buckets of
    timesteps without clips are omitted. `clips_per_second` counts all processes, `data_wait` is the share of time spent
    waiting for batches, `memory_gib` the peak of this process, on the GPU if there is one, `skipped_steps` the steps
    that `guard` has skipped so far. Checkpoints contain the sums.

    Args:
        every: steps between two rows.
        timesteps: number of timesteps of the noise schedule, split into `BUCKETS` equal parts.
        guard: the callback that skips non-finite steps.
    """

    def __init__(self, every: int, timesteps: int, guard: SkipNonFiniteSteps) -> None:
        self.every = every
        self.timesteps = timesteps
        self.guard = guard
        self.sums = torch.zeros(6, BUCKETS, dtype=torch.float64)
        self.waited = self.clips = 0.0
        self.step_metrics: dict[str, float] = {}  # learning rates and gradient norm of the last step
        self._row_began = self._batch_ended = 0.0
        self._last_step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.sums = self.sums.to(pl_module.device)
        self._row_began = self._batch_ended = time.monotonic()
        self._last_step = trainer.global_step

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.waited += time.monotonic() - self._batch_ended

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if (trainer.global_step + 1) % self.every == 0:
            self.step_metrics = read_learning_rates(optimizer) | read_gradient_norm(self.guard.gradient)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._add(outputs)
        stepped = trainer.global_step != self._last_step  # false while gradients accumulate
        self._last_step = trainer.global_step
        if stepped and trainer.global_step % self.every == 0:
            self._write(trainer)
        self._batch_ended = time.monotonic()

    def _add(self, outputs: dict[str, Tensor]) -> None:
        is_finite = outputs["losses"].isfinite()
        names = {"losses", "semantic", "text", "errors"} & outputs.keys()
        kept = {name: outputs[name].double().where(is_finite, 0) for name in names}
        self.sums[LOSS, 0] += kept["losses"].sum()
        self.sums[CLIPS, 0] += is_finite.sum()
        for name, row in (("semantic", SEMANTIC), ("text", TEXT)):
            if name in kept:
                self.sums[row, 0] += kept[name].sum()
        if "errors" in kept:
            buckets = outputs["timesteps"] * BUCKETS // self.timesteps
            self.sums[ERROR].index_add_(0, buckets, kept["errors"])
            self.sums[NOISED].index_add_(0, buckets, is_finite.double())
        self.clips += len(is_finite)

    def _write(self, trainer: L.Trainer) -> None:
        sums = torch.as_tensor(trainer.strategy.reduce(self.sums.clone(), reduce_op="sum")).cpu()
        seconds = time.monotonic() - self._row_began
        row = compute_losses(sums, self.timesteps) | {
            f"train/{name}": value for name, value in self.step_metrics.items()
        }
        row["train/clips_per_second"] = self.clips * trainer.world_size / seconds
        row["train/data_wait"] = self.waited / seconds
        row["train/memory_gib"] = read_peak_memory()
        row["train/skipped_steps"] = float(self.guard.skipped)
        for logger in trainer.loggers:
            logger.log_metrics(row, trainer.global_step)
        self.sums.zero_()
        self.waited = self.clips = 0.0
        self._row_began = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"sums": self.sums.tolist()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sums = torch.tensor(state_dict["sums"], dtype=torch.float64)


def compute_losses(sums: Tensor, timesteps: int) -> dict[str, float]:
    """Return the loss columns of a row; none if no clip had a finite loss."""
    clips, noised = sums[CLIPS].sum(), sums[NOISED].sum()
    if not clips:
        return {}
    row = {"train/loss": (sums[LOSS].sum() / clips).item()}
    for bucket in range(BUCKETS):
        if sums[NOISED, bucket]:
            first, end = (timesteps * edge // BUCKETS for edge in (bucket, bucket + 1))
            row[f"train/diffusion_loss_t{first}-{end - 1}"] = (sums[ERROR, bucket] / sums[NOISED, bucket]).item()
    others = {name: sums[term].sum() / clips for name, term in (("semantic", SEMANTIC), ("text", TEXT))}
    row |= {f"train/{name}_loss": loss.item() for name, loss in others.items() if loss}
    if noised and any(others.values()):
        row["train/diffusion_loss"] = (sums[ERROR].sum() / noised).item()
    return row


def read_learning_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return `learning_rate`, and one entry for each further parameter group by its kind."""
    first, *others = optimizer.param_groups
    return {"learning_rate": first["lr"]} | {f"learning_rate_{group['kind']}": group["lr"] for group in others}


def read_gradient_norm(gradient: GradientNorm) -> dict[str, float]:
    """Return `grad_norm` before clipping; empty if the strategy hides gradients, as DeepSpeed does."""
    return {} if gradient.norm is None else {"grad_norm": gradient.norm.item()}


def read_peak_memory() -> float:
    """Return the peak memory so far in GiB, on the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts KiB
