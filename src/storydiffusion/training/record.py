"""The training record beside exported weights, and the description of the machine."""

import platform
from pathlib import Path

RECORD = "training.json"
"""File in an exported folder: part → recipe, wall time, machine, metrics (key `figures`)."""


def machine() -> str:
    """Describe this process's processor: the GPU's name, or the CPU's with the number of threads."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_read_cpu_name()}, {torch.get_num_threads()} threads"


def _read_cpu_name() -> str:
    info = Path("/proc/cpuinfo")  # the only place on Linux with the model name
    names = (
        [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor() or platform.machine()
