"""How the processes of a training work together: Lightning's strategy and cluster environment."""

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy

from storydiffusion.config import TrainerConfig
from storydiffusion.errors import UserError, first_line
from storydiffusion.loaders.gpu_driver import check_gpu_driver

DEEPSPEED: Mapping[str, Any] = {"stage": 2, "exclude_frozen_parameters": True}
"""Arguments of Lightning's strategy: ZeRO-2 shards optimizer states and gradients; weights stay whole."""


class MeetingDDPStrategy(DDPStrategy):
    """DDP whose processes end with one sentence if they do not meet within `timeout`."""

    def setup_distributed(self) -> None:
        with _report_meeting(self):
            super().setup_distributed()


class MeetingDeepSpeedStrategy(DeepSpeedStrategy):
    """DeepSpeed whose processes end with one sentence if they do not meet within `timeout`."""

    def setup_distributed(self) -> None:
        with _report_meeting(self):
            super().setup_distributed()


@contextmanager
def _report_meeting(strategy: DDPStrategy) -> Iterator[None]:
    """Turn what torch raises where the processes do not find each other into a UserError."""
    try:
        yield
    except RuntimeError as error:
        place = strategy.cluster_environment
        assert place is not None  # setup_distributed has used it
        raise UserError(
            f"process {strategy.global_rank} of {strategy.world_size} on {socket.gethostname()} does not meet the "
            f"others at MASTER_ADDR={place.main_address} MASTER_PORT={place.main_port} ({first_line(error)}): check "
            "that all processes have started, that their nodes reach this address, and that its port is free"
        ) from error


def build_strategy(config: TrainerConfig, has_unused: bool = False) -> Strategy | str:
    """Return the trainer's strategy. DeepSpeed is imported only if it is chosen.

    Args:
        has_unused: some trained weights receive no gradient.

    Raises:
        UserError: the GPUs or DeepSpeed are not available, or the GPU's driver is too old for torch.
    """
    if config.accelerator != "cpu":
        check_gpu_driver("trainer=cpu")
    gpus = torch.cuda.device_count()
    if config.strategy == "deepspeed":
        if not gpus:
            raise UserError("trainer.strategy=deepspeed needs CUDA, which torch does not find here: use trainer=ddp")
        if find_spec("deepspeed") is None:
            raise UserError("trainer.strategy=deepspeed: pip install '.[deepspeed]' in a checkout, or use trainer=ddp")
    if config.accelerator == "gpu" and not gpus and not torch.backends.mps.is_available():
        raise UserError("trainer.accelerator=gpu, but torch finds no GPU here: use trainer=cpu")
    if gpus and config.accelerator != "cpu" and config.devices > gpus:
        raise UserError(f"trainer.devices={config.devices}, but this machine has {gpus} GPUs: use at most {gpus}")
    timeout = timedelta(minutes=config.timeout_minutes)
    if config.strategy == "deepspeed":
        return MeetingDeepSpeedStrategy(**DEEPSPEED, timeout=timeout)
    devices = max(1, gpus) if config.devices == -1 else config.devices
    if config.strategy == "auto" and devices * config.nodes == 1:
        return "auto"
    return MeetingDDPStrategy(timeout=timeout, find_unused_parameters=has_unused, gradient_as_bucket_view=True)


def build_environment(config: TrainerConfig) -> list[SLURMEnvironment]:
    """Return Slurm's environment if Slurm started this process, without Lightning's signal handling: the `Preemption`
    callback replaces it.

    Raises:
        UserError: `trainer.requeue` is set, but this run may not requeue the job.
    """
    if config.requeue and "SLURM_JOB_ID" not in os.environ:
        raise UserError("trainer.requeue=true, but this is not a Slurm job: submit slurm/train.sbatch, which sets it")
    if config.requeue and "SUBMITIT_EXECUTOR" in os.environ:
        raise UserError("trainer.requeue=true, but submitit requeues its jobs itself: set trainer.requeue=false")
    is_slurm = SLURMEnvironment.detect() and not TorchElasticEnvironment.detect()  # torchrun may run in a job
    return [SLURMEnvironment(auto_requeue=False)] if is_slurm else []
