"""Folders that a transformers model's save_pretrained wrote: nothing of them is loaded in part."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

import torch

from storydiffusion.errors import UserError, first_line
from storydiffusion.files.json_file import read_object
from storydiffusion.files.model_files import read_config, report_damage

HALF = (0.5, 0.5, 0.5)
"""mean and standard deviation that map pixels to [−1, 1]"""

LARGEST_SIDE = 4096

Normalization = tuple[Sequence[float], Sequence[float]]
"""mean and standard deviation of the pixels"""


def load_folder(model: Any, folder: str | Path) -> Any:
    """Load a transformers model of class `model` from a folder, in float32.

    Raises:
        UserError: for a folder that does not hold all its weights.
    """
    read_config(Path(folder) / "config.json")
    with report_damage(Path(folder), "image encoder"):
        loaded, info = model.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
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
            f"cannot load an image encoder from {folder}: {file} has no model_type ({first_line(error)}). Fetch it "
            "again, or give the folder of a transformers model."
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
    mean, std = settings.get("image_mean"), settings.get("image_std")
    if not (_is_color(mean) and _is_color(std) and min(std) > 0):
        raise UserError(f"{file} has no image_mean and image_std of three numbers: fetch it again.")
    return mean, std


def read_crop_size(folder: str | Path, default: int) -> int:
    """Return the height of crop_size in preprocessor_config.json; the default without it.

    Raises:
        UserError: for another value than a number of pixels.
    """
    size = read_preprocessor(folder).get("crop_size", default)
    size = size.get("height") if isinstance(size, dict) else size
    if type(size) is not int or not 1 <= size <= LARGEST_SIDE:
        raise UserError(f"{Path(folder) / 'preprocessor_config.json'} has no crop_size in pixels: fetch it again.")
    return size


def _is_color(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, list) and len(value) == 3 and all(type(one) in (int, float) for one in value)
