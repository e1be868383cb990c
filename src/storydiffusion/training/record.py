"""The training record beside exported weights, and the description of the machine."""

import math
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from storydiffusion.errors import first_line
from storydiffusion.files.atomic import set_aside, write_atomically
from storydiffusion.files.json_file import json_bytes, read_object

RECORD = "training.json"
"""File in an exported folder: part → recipe, wall time, machine, metrics (key `figures`; null: not finite)."""


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of an exported folder, {} without one; a damaged one is set aside and named on stderr."""
    file = folder / RECORD
    try:
        return read_object(file)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        kept = set_aside(file)
        print(f"{file} is damaged ({first_line(error)}): kept as {kept}, and a new one is started", file=sys.stderr)
        return {}


def round_figures(metrics: Mapping[str, float]) -> dict[str, float | None]:
    """Return metrics to 4 decimals, None where they are not finite, which JSON cannot hold."""
    return {name: round(value, 4) if math.isfinite(value) else None for name, value in metrics.items()}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of an exported folder atomically."""
    write_atomically(folder / RECORD, json_bytes(record))


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
