"""The learning-rate schedule of every training: linear warm-up, constant, linear decay to 0."""

from typing import Protocol

from lightning.pytorch.utilities.types import LRSchedulerConfigType
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class Schedule(Protocol):
    """`steps` in all, of which the first `warmup_steps` warm up and the last share `decay` falls to 0."""

    steps: int
    warmup_steps: int
    decay: float


def compute_rate(schedule: Schedule, step: int) -> float:
    """Return the learning rate at `step` as a share of the full one."""
    left = (schedule.steps - step) / max(1.0, schedule.decay * schedule.steps)
    return max(0.0, min(1.0, (step + 1) / max(1, schedule.warmup_steps), left))


def build_schedule(optimizer: Optimizer, schedule: Schedule) -> LRSchedulerConfigType:
    """Return Lightning's entry for the schedule, which advances after every step."""
    return {"scheduler": LambdaLR(optimizer, lambda step: compute_rate(schedule, step)), "interval": "step"}
