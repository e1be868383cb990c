"""Trainings cut short and resumed, and the state that equal ones must share."""

import lightning as L
import torch

from storydiffusion.training.training_run import TrainingRun


def state(trained: TrainingRun) -> dict[str, torch.Tensor]:
    """Return weights, their average, and the optimizer's state."""
    found = {f"weight {name}": tensor for name, tensor in trained.module.state_dict().items()}
    found |= {f"average {name}": tensor for name, tensor in trained.ema.average.items()}
    for index, entry in trained.trainer.optimizers[0].state_dict()["state"].items():
        found |= {f"optimizer {index} {name}": torch.as_tensor(value) for name, value in entry.items()}
    return found


class PowerCut(L.Callback):
    """Interrupts the training as a killed job does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            raise ConnectionAbortedError


class Steps(L.Callback):
    """Records the numbers of the steps."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_batch_start(self, trainer, *_):
        self.seen.append(trainer.global_step)


def add(trained: TrainingRun, callback):
    """Add a callback to the trainer of `trained` and return it."""
    trained.trainer.callbacks.append(callback)  # type: ignore[attr-defined]
    return callback
