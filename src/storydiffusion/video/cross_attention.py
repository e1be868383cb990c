"""The cross-attention of a video model's image layers, where it was trained to read semantic tokens.

The paper trains its predictor around the image model's own cross-attention, which has learnt to read words. It may do
for semantic tokens as it is; where it does not, its weights can be trained too. They are a part of their own then, for
the video alone: pictures are told by words, through the weights of the image model.

A folder holds config.json, the widths that the weights are made for, and model.safetensors, named as in the U-Net.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from storydiffusion.errors import UserError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
WIDTHS = ("block_out_channels", "cross_attention_dim")


def cross_attention_weights(unet: nn.Module) -> dict[str, nn.Parameter]:
    """Queries, keys, values and output projections, by their names; motion modules have none that reads a context."""
    named = unet.named_parameters()
    return {name: weight for name, weight in named if ".attn2." in name and ".motion_modules." not in name}


def cross_attention_settings(unet: Any) -> dict[str, Any]:
    """What config.json says of a U-Net's."""
    return {name: _plain(unet.config[name]) for name in WIDTHS}


def save_cross_attention(weights: Mapping[str, torch.Tensor], settings: Mapping[str, Any], folder: str | Path) -> None:
    """Writes both files."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(dict(settings), indent=2) + "\n")


def read_cross_attention(folder: str | Path) -> dict[str, torch.Tensor]:
    """The weights in a folder, by their names in the U-Net. Raises UserError for a file that is missing or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = Path(folder) / WEIGHTS
    try:
        return load_file(file)
    except FileNotFoundError as error:
        raise UserError(f"{folder} holds no cross-attention, it has no {WEIGHTS}: name a folder that has") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot read {file} ({' '.join(str(error).split())[:200]}): fetch it again") from error


@torch.no_grad()
def load_cross_attention(unet: nn.Module, folder: str | Path) -> None:
    """Puts the weights in a folder into a U-Net, in its dtype.

    Raises:
        UserError: a file that is missing or damaged, or weights that are not exactly this U-Net's; it keeps its own.
    """
    weights, targets = read_cross_attention(folder), cross_attention_weights(unet)
    for name in sorted(targets.keys() | weights.keys()):
        found, wanted = (tuple(part[name].shape) if name in part else "missing" for part in (weights, targets))
        if found != wanted:
            raise UserError(f"{name} is {found} in {folder}, {wanted} in the U-Net: take one that was trained with it")
    for name, weight in targets.items():
        weight.copy_(weights[name])


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
