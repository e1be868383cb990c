"""Choose the device and the dtype of a model's networks."""

from typing import TYPE_CHECKING

from storydiffusion.errors import UserError
from storydiffusion.loaders.gpu_driver import check_gpu_driver

if TYPE_CHECKING:
    import torch


def choose_device(name: str, key: str) -> "torch.device":
    """Return the device of that name; `auto` is CUDA if available, else the CPU. `key` is the setting that names it.

    Raises:
        UserError: a device that this machine lacks, or a GPU whose driver is too old for torch.
    """
    import torch

    if name == "auto" or name.startswith("cuda"):
        check_gpu_driver(f"{key}=cpu")

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    kind = torch.device(name).type
    if not available.get(kind, True):
        raise UserError(f"{key}={name}, but torch finds no {kind.upper()} device on this machine: set {key}=cpu")
    return torch.device(name)


def choose_dtype(name: str, device: "torch.device") -> "torch.dtype":
    """Return the dtype of that name; `auto` is float16 on CUDA, else float32."""
    import torch

    if name == "auto":
        name = "float16" if device.type == "cuda" else "float32"
    return getattr(torch, name)
