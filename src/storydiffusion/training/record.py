"""What is recorded of a training beside its weights, and the words for where it ran."""

import platform
from pathlib import Path

RECORD = "training.json"
"""in an exported folder: part → recipe, wall time, machine, figures"""


def machine() -> str:
    """The processor that this process computes on, in words: the GPU's name, or the CPU's with its threads."""
    import torch

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
