"""Choose among the weights files of a part: the full ones, or a variant such as `fp16` in `*.fp16.safetensors`."""

import re
from pathlib import Path

from storydiffusion.config import ModelConfig
from storydiffusion.errors import UserError

NAME = re.compile(r"[\w-]+?(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?\.safetensors")
"""model.safetensors, model.fp16.safetensors, or a shard of either, model.fp16-00001-of-00002.safetensors"""


def choose_variant(folder: Path, config: ModelConfig) -> str | None:
    """Return the variant of a part's weights files to load; None: the full ones.

    Raises:
        UserError: a folder without weights files, or without those of `model.variant`.
    """
    found = {match["variant"] for file in folder.glob("*.safetensors") if (match := NAME.fullmatch(file.name))}
    if not found:
        raise UserError(f"{folder} contains no *.safetensors file: use a complete model folder in that format")
    if config.variant == "auto" and not {None, "fp16"} <= found:
        return None if None in found else min(found, key=str)
    wanted = want_variant(config)
    if wanted not in found:
        known = ", ".join(sorted(variant or "null" for variant in found))
        raise UserError(
            f"model.variant={wanted or 'null'}, but {folder} has weights of {known} only: choose one of them"
        )
    return wanted


def want_variant(config: ModelConfig) -> str | None:
    """Return `model.variant`; auto is fp16 for networks in float16. Imports torch if the dtype is auto too."""
    if config.variant != "auto":
        return config.variant
    if config.dtype != "auto":
        return "fp16" if config.dtype == "float16" else None
    import torch

    from storydiffusion.loaders.devices import choose_device, choose_dtype

    is_half = choose_dtype(config.dtype, choose_device(config.device, "model.device")) == torch.float16
    return "fp16" if is_half else None


def list_variants(config: ModelConfig) -> tuple[str | None, ...]:
    """Return the variants to fetch, best first: for auto also the full weights, of repositories without fp16 ones."""
    wanted = want_variant(config)
    return (wanted,) if config.variant != "auto" or wanted is None else (wanted, None)


def find_variant(folder: Path, variant: str | None) -> list[Path]:
    """Return the files of one variant, in order."""
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if (match := NAME.fullmatch(file.name)) and match["variant"] == variant]
