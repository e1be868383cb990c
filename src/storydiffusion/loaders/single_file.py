"""Load networks from one file in the original layout of Stable Diffusion, as fine-tuned models are shared.

The architecture comes from the config.json files of a model folder. diffusers converts the tensors; pickles are read as
tensors only, so no code in them is run.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.errors import UserError, first_line

if TYPE_CHECKING:
    import torch


def load_single_file(file: Path, folder: Path, networks: Mapping[str, Any], dtype: "torch.dtype") -> dict[str, Any]:
    """Load networks, part → class, with the tensors of `file` and the config.json files of `folder`.

    Raises:
        UserError: a file that cannot be read, has another architecture, or lacks tensors.
    """
    from diffusers.loaders.single_file_utils import load_single_file_checkpoint

    with _report(file, folder):
        tensors: Any = load_single_file_checkpoint(str(file), local_files_only=True)
    return {part: _load_part(network, file, tensors, folder, part, dtype) for part, network in networks.items()}


def load_vae_file(file: Path, network: Any, folder: Path, dtype: "torch.dtype") -> Any:
    """Load a VAE of its own file; see `load_single_file`."""
    return load_single_file(file, folder, {"vae": network}, dtype)["vae"]


def _load_part(
    network: Any, file: Path, tensors: Mapping[str, Any], folder: Path, part: str, dtype: "torch.dtype"
) -> Any:
    from diffusers.loaders.single_file_utils import create_diffusers_clip_model_from_ldm

    settings = {"subfolder": part, "config": str(folder), "local_files_only": True}
    with _report(file, folder / part):
        if hasattr(network, "from_single_file"):
            model = network.from_single_file(dict(tensors), dtype=dtype, **settings)
        else:
            model = create_diffusers_clip_model_from_ldm(network, dict(tensors), torch_dtype=dtype, **settings)
        return model.to("cpu", dtype).eval()


@contextmanager
def _report(file: Path, folder: Path) -> Iterator[None]:
    """Turn what diffusers raises on a file that it cannot read or convert into a UserError."""
    try:
        yield
    except NotImplementedError as error:  # of torch, for a tensor that is still without data
        raise UserError(
            f"{file} lacks tensors of {folder}: set model.path to a folder of its architecture, or use a complete file"
        ) from error
    except Exception as error:  # converters raise exceptions of any class
        raise UserError(
            f"cannot read {file} as {folder} ({first_line(error)}): fetch it again, or set model.path to a folder of "
            "its architecture"
        ) from error
