"""Exponential moving average of the trainable weights, as a Lightning callback."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor

from storydiffusion.training.callbacks.skip_non_finite_steps import SkipNonFiniteSteps


class EMA(L.Callback):
    """Average the trainable parameters in float32; frozen parts are neither copied nor saved.

    After step t the average moves towards the weights by 1 − min(decay, (1 + t) / (10 + t)): short memory at the start.
    Steps skipped by `guard` do not move it. Checkpoints contain it as the callback's state.
    """

    def __init__(self, decay: float, guard: SkipNonFiniteSteps) -> None:
        self.decay = decay
        self.guard = guard
        self.average: dict[str, Tensor] = {}
        self._last_step = -1

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        current = _get_trainable(pl_module)
        self.average = {
            name: self.average.get(name, p).detach().to(p.device, torch.float32, copy=name not in self.average)
            for name, p in current.items()
        }

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step  # restored from the checkpoint only now

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:  # gradients are still accumulating
            return
        self._last_step = trainer.global_step
        if self.guard.has_skipped:
            return
        weight = 1 - min(self.decay, (1 + trainer.global_step) / (10 + trainer.global_step))
        current = _get_trainable(pl_module)
        torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
            list(self.average.values()), [current[name].detach().float() for name in self.average], weight
        )

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.average = state_dict["average"]

    @contextmanager
    def applied(self, pl_module: L.LightningModule) -> Iterator[None]:
        """Give the module the averaged weights inside the block and its own after it."""
        current = _get_trainable(pl_module)
        own = {name: p.detach().clone() for name, p in current.items()}
        try:
            _copy(self.average, current)
            yield
        finally:
            _copy(own, current)


def _get_trainable(module: L.LightningModule) -> dict[str, Tensor]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for name, p in target.items():
        p.copy_(source[name])
