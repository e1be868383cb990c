"""Check that the processes of a training reach each other before the first step."""

import socket
from datetime import timedelta

import lightning as L
import torch
from torch import distributed

from storydiffusion.errors import UserError, first_line

SECONDS = 120.0


class HealthCheck(L.Callback):
    """Sums one number over all processes, by NCCL on GPUs, before hours are spent on loading and training.

    Args:
        seconds: the longest time that the sum may take.

    Raises:
        UserError: on every process that gets no sum or a wrong one.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        total = torch.ones((), device=trainer.strategy.root_device)
        try:
            work = distributed.all_reduce(total, async_op=True)
            assert work is not None  # async_op returns one
            work.wait(timedelta(seconds=self.seconds))
            found = int(total)
        except RuntimeError as error:
            raise UserError(f"{_name(trainer)} gets no answer ({first_line(error)}): {_advise()}") from error
        if found != trainer.world_size:
            raise UserError(f"{_name(trainer)} counts {found} processes: {_advise()}")


def _name(trainer: L.Trainer) -> str:
    return (
        f"process {trainer.global_rank} of {trainer.world_size} on {socket.gethostname()} (backend "
        f"{distributed.get_backend()})"
    )


def _advise() -> str:
    return (
        "check that all nodes reach each other; INTERFACE=NAME before sbatch chooses the network, and NCCL_DEBUG=INFO "
        "prints NCCL's own report"
    )
