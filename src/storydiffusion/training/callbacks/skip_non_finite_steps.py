"""Steps whose loss or gradients are not finite are left out, by all processes together."""

import sys
from typing import Any

import lightning as L
import torch
from torch import Tensor
from tqdm import tqdm

from storydiffusion.training.process_group import stop_together


class SkipNonFiniteSteps(L.Callback):
    """Leaves weights, optimizer state and average as they were where any process met NaN or infinity in a step.

    The step counts as one: the learning rate, the order of the clips and their noise go on. Under float16 the gradient
    scaler leaves out steps with infinite gradients by itself and lowers its scale, which is no fault; there the loss
    alone is judged.

    Args:
        limit: so many such steps in a row end the training.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.skipped = 0  # so far
        self.in_a_row = 0
        self._finite: list[Tensor] = []  # of each batch of this step, on this process

    @property
    def has_skipped(self) -> bool:
        """Whether the last step was left out."""
        return self.in_a_row > 0

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._finite.append(loss.detach().isfinite().all())

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        flags, self._finite = self._finite, []
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            gradients = [weight.grad for weight in pl_module.parameters() if weight.grad is not None]
            flags += [torch.nn.utils.get_total_norm(gradients).isfinite()] if gradients else []
        if trainer.strategy.reduce_boolean_decision(bool(torch.stack(flags).all())):
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        step = trainer.global_step + 1
        keeps_gradients = trainer.strategy.handles_gradient_accumulation  # DeepSpeed: its step cannot be left out
        if self.in_a_row >= self.limit or keeps_gradients:
            stop_together(trainer, self._last_words(step))
        optimizer.zero_grad(set_to_none=True)  # a weight without a gradient is not touched, nor is its state
        if trainer.is_global_zero:
            tqdm.write(f"step {step} is left out: its loss is not finite ({self.skipped} so far)", file=sys.stderr)

    def _last_words(self, step: int) -> str:
        return (
            f"the loss of step {step} is not finite, {self.in_a_row} times in a row: lower the learning rate, try "
            "trainer.precision=32-true, or raise trainer.max_bad_steps; the last checkpoint is from before or without "
            "these steps"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]
