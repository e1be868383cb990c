"""What the processes of a training agree on in each step, exchanged in one all-reduce."""

from collections.abc import Callable

import lightning as L
import torch
from torch import Tensor, distributed

Vote = Callable[[L.Trainer], Tensor | int]
"""Trainer → this process's vote, an integer ≥ 0 or a tensor () of one."""


class StepAgreement(L.Callback):
    """Exchanges the votes of all processes before each optimizer step; `agreement[name]` is the largest one, ≥ 0.

    Callbacks that decide together, such as whether to skip the step or to save after it, add a vote each: one
    collective operation a step serves all of them.
    """

    def __init__(self) -> None:
        self._votes: dict[str, Vote] = {}
        self._largest: dict[str, int] = {}

    def add(self, name: str, vote: Vote) -> None:
        """Add the vote `name`, called before each optimizer step on each process."""
        self._votes[name] = vote

    def __getitem__(self, name: str) -> int:
        """Return the largest vote of the last step; 0 before the first one."""
        return self._largest.get(name, 0)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        votes = [torch.as_tensor(vote(trainer), dtype=torch.int64) for vote in self._votes.values()]
        stacked = torch.stack([vote.to(pl_module.device, non_blocking=True) for vote in votes])
        if distributed.is_initialized():
            distributed.all_reduce(stacked, distributed.ReduceOp.MAX)  # Lightning's `reduce` adds a barrier
        self._largest = dict(zip(self._votes, stacked.tolist(), strict=True))
