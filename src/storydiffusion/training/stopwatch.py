"""How long a training took over all its parts, breaks left out, and on which machine."""

import platform
import time
from pathlib import Path

import lightning as L
import torch


class Stopwatch(L.Callback):
    """Counts the seconds spent in fit; the count travels in the checkpoints."""

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


def machine() -> str:
    """The processor that this process computes on, in words: the GPU's name, or the CPU's with its threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_cpu_name()}, {torch.get_num_threads()} threads"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")  # on Linux the only place that names the model
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()
