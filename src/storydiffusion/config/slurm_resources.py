"""What a sweep's jobs request from Slurm, as a function of their training: the resolver `slurm` of configuration files.

${slurm:tasks,DEVICES}  ${slurm:gpus,ACCELERATOR,TASKS}  ${slurm:cpus,LEAST,WORKERS}  ${slurm:memory,GB,TASKS}
"""

from collections.abc import Callable, Mapping

from omegaconf import OmegaConf


def count_tasks(devices: int) -> int:
    """Return the tasks of a node, one for each device; -1, all devices that a job gets, requests one."""
    return max(1, devices)


def count_gpus(accelerator: str, tasks: int) -> int | None:
    """Return the GPUs of a node, one for each task; None for a training on the CPU."""
    return None if accelerator == "cpu" else tasks


def count_cpus(least: int, workers: int) -> int:
    """Return the CPUs of a task: one for the training process and each of its workers, `least` at the least."""
    return max(least, workers + 1)


def count_memory(gigabytes: int, tasks: int) -> int:
    """Return the memory of a node in GB, of which each task has `gigabytes`."""
    return gigabytes * tasks


RESOURCES: Mapping[str, Callable[..., int | None]] = {
    "tasks": count_tasks,
    "gpus": count_gpus,
    "cpus": count_cpus,
    "memory": count_memory,
}
"""First argument of the resolver → function of the others."""


def register_slurm_resolver() -> None:
    """Make `${slurm:…}` known to OmegaConf."""
    OmegaConf.register_new_resolver("slurm", lambda resource, *values: RESOURCES[resource](*values), replace=True)
