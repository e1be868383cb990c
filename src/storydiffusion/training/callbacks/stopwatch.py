"""Measure the training time over all resumed runs, without breaks."""

import time

import lightning as L


class Stopwatch(L.Callback):
    """Counts the seconds spent in fit; checkpoints contain the count."""

    def __init__(self) -> None:
        self.before = 0.0
        self._started = 0.0

    @property
    def seconds(self) -> float:
        return self.before + (time.monotonic() - self._started if self._started else 0.0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._started = time.monotonic()

    def state_dict(self) -> dict[str, float]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self.before = state_dict["seconds"]
