"""Refuse to run on the CPU in silence where the NVIDIA driver is too old for torch."""

import os
import shutil
import subprocess
from collections.abc import Mapping

from storydiffusion.errors import UserError

OLDEST_DRIVERS: Mapping[str, str] = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}
"""Major version of CUDA → oldest Linux driver that runs it (release notes of the CUDA Toolkit, minor versions)."""
HIDDEN = ("", "-1", "NoDevFiles")
"""Values of CUDA_VISIBLE_DEVICES that hide all GPUs; the last one is Slurm's."""
SECONDS = 30  # nvidia-smi waits for GPUs to wake up


def check_gpu_driver(cpu: str) -> None:
    """Check that torch finds a GPU where nvidia-smi does, unless CUDA_VISIBLE_DEVICES hides all.

    Args:
        cpu: the setting that chooses the CPU, named in the error.

    Raises:
        UserError: nvidia-smi sees a card and torch does not; names the driver that is needed.
    """
    import torch

    cuda = torch.version.cuda
    if cuda is None or torch.cuda.is_available() or os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN:
        return
    card, driver = _query_card()
    if not card:
        return
    oldest = OLDEST_DRIVERS.get(cuda.partition(".")[0])
    found = f"nvidia-smi sees {card} with driver {driver}, but torch {torch.__version__} for CUDA {cuda} finds no GPU"
    if oldest is not None and _parse_version(driver) >= _parse_version(oldest):
        raise UserError(f"{found}: check CUDA_VISIBLE_DEVICES and the container's access to the GPU, or set {cpu}")
    needed = f"driver {oldest} or newer" if oldest else f"a driver for CUDA {cuda}"
    raise UserError(f"{found}: install {needed}, or a torch for an older CUDA, or set {cpu}")


def _query_card() -> tuple[str, str]:
    """Return name and driver version of the first GPU that nvidia-smi sees; empty without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "", ""
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
    except (OSError, subprocess.SubprocessError):  # without a working driver it sees no card either
        return "", ""
    name, _, driver = answer.partition("\n")[0].rpartition(",")
    return name.strip(), driver.strip()


def _parse_version(text: str) -> list[int]:
    return [int(part) for part in text.split(".") if part.isdigit()]
