"""The learning-rate schedule of every training here."""

from typing import Protocol


class Schedule(Protocol):
    """`steps` in all, `warmup_steps` steps at the start, and the share of the steps, at the end, of the `decay`."""

    steps: int
    warmup_steps: int
    decay: float


def rate_at(schedule: Schedule, step: int) -> float:
    """Learning rate at `step` as a share of the full one: linear warm-up, constant, linear decay to 0."""
    left = (schedule.steps - step) / max(1.0, schedule.decay * schedule.steps)
    return max(0.0, min(1.0, (step + 1) / max(1, schedule.warmup_steps), left))
