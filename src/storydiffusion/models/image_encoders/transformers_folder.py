"""Folders that a transformers model's save_pretrained wrote: nothing of them is loaded in part."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from storydiffusion.errors import UserError, first_line
from storydiffusion.files.json_file import read_object

HALF = (0.5, 0.5, 0.5)
"""mean and standard deviation that map pixels to [−1, 1]"""

Normalization = tuple[Sequence[float], Sequence[float]]
"""mean and standard deviation of the pixels"""


def load_folder(model: Any, folder: str | Path) -> Any:
    """Load a transformers model of class `model` from a folder, in float32.

    Raises:
        UserError: for a folder that does not hold all its weights.
    """
    try:
        loaded, info = model.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(f"cannot load an image encoder from {folder} ({first_line(error)}): fetch it again.") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(f"the image encoder in {folder} lacks the tensor {missing[0]}: fetch it again.")
    return loaded


def read_model_type(folder: str | Path) -> str:
    """Return the `model_type` in a folder's config.json.

    Raises:
        UserError: for a folder without it.
    """
    file = Path(folder) / "config.json"
    try:
        return str(read_object(file)["model_type"])
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"cannot load an image encoder from {folder}: {file.name} has no model_type ({first_line(error)}). Give "
            "the folder of a transformers model."
        ) from error


def read_preprocessor(folder: str | Path) -> dict[str, Any]:
    """Return the settings in a folder's preprocessor_config.json; {} without that file.

    Raises:
        UserError: for a file that cannot be read.
    """
    file = Path(folder) / "preprocessor_config.json"
    if not file.exists():
        return {}
    try:
        return read_object(file)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file} ({first_line(error)}): fetch it again.") from error


def read_normalization(folder: str | Path, default: Normalization = (HALF, HALF)) -> Normalization:
    """Return mean and standard deviation in preprocessor_config.json; the default without that file.

    Raises:
        UserError: for a file without them.
    """
    file = Path(folder) / "preprocessor_config.json"
    if not file.exists():
        return default
    settings = read_preprocessor(folder)
    if not all(isinstance(settings.get(name), list) for name in ("image_mean", "image_std")):
        raise UserError(f"{file} has no image_mean and image_std: fetch it again.")
    return settings["image_mean"], settings["image_std"]
