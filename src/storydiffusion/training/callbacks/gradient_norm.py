"""Compute the norm of a step's gradient once, and clip the gradient to a largest norm."""

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


class GradientNorm(L.Callback):
    """Keeps the norm of the last step's gradient, before clipping, for the callbacks after it.

    DeepSpeed hides the gradients and clips them itself: the norm is then None.

    Args:
        largest: larger norms are scaled down to it; None: no clipping.
    """

    def __init__(self, largest: float | None = None) -> None:
        self.largest = largest
        self.norm: Tensor | None = None  # (), on the device of the weights

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
        self.norm = get_total_norm([weight.grad for weight in weights]) if weights else None
        if self.norm is not None and self.largest:
            clip_grads_with_norm_(weights, self.largest, self.norm)
