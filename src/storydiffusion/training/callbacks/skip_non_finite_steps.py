"""Skip steps with a non-finite loss or gradient, in all processes together."""

import sys
from typing import Any

import lightning as L
import torch
from torch import Tensor
from tqdm import tqdm

from storydiffusion.training.callbacks.gradient_norm import GradientNorm
from storydiffusion.training.callbacks.step_agreement import StepAgreement
from storydiffusion.training.process_group import stop_together

NON_FINITE = "non-finite"


class SkipNonFiniteSteps(L.Callback):
    """Keeps weights, optimizer state and average unchanged in a step where any process meets NaN or infinity.

    The step still counts: learning rate, order of the clips and their noise advance. Under float16 the gradient scaler
    itself skips steps with infinite gradients and lowers its scale, which is not a fault, so only the loss is checked.

    Args:
        limit: abort after this many consecutive non-finite steps.
        gradient: the callback that computes the gradient's norm.
        agreement: the callback that exchanges votes. Both come before this one among the trainer's callbacks.
    """

    def __init__(self, limit: int, gradient: GradientNorm, agreement: StepAgreement) -> None:
        self.limit, self.gradient, self.agreement = limit, gradient, agreement
        agreement.add(NON_FINITE, self._find_non_finite)
        self.skipped = 0  # steps so far
        self.in_a_row = 0
        self._finite: list[Tensor] = []  # for each batch of this step, on this process

    @property
    def has_skipped(self) -> bool:
        """Whether the last step was skipped."""
        return self.in_a_row > 0

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._finite.append(loss.detach().isfinite().all())

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if not self.agreement[NON_FINITE]:
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        step = trainer.global_step + 1
        keeps_gradients = trainer.strategy.handles_gradient_accumulation  # DeepSpeed: its steps cannot be skipped
        if self.in_a_row >= self.limit or keeps_gradients:
            stop_together(trainer, self._explain(step))
        optimizer.zero_grad(set_to_none=True)  # optimizers ignore weights without gradient
        if trainer.is_global_zero:
            tqdm.write(f"skipped step {step}: its loss is not finite ({self.skipped} so far)", file=sys.stderr)

    def _find_non_finite(self, trainer: L.Trainer) -> Tensor:
        """Return 1 if this process's losses or gradient are not finite, else 0; on the device of the losses."""
        flags, self._finite = self._finite, []
        if getattr(trainer.precision_plugin, "scaler", None) is None and self.gradient.norm is not None:
            flags.append(self.gradient.norm.isfinite())
        return ~torch.stack(flags).all()

    def _explain(self, step: int) -> str:
        return (
            f"the loss of step {step} is not finite, {self.in_a_row} times in a row: lower the learning rate, try "
            "trainer.precision=32-true, or raise trainer.max_bad_steps; the last checkpoint does not contain these "
            "steps"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]
