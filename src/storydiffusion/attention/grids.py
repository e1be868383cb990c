"""Grids of tokens: how coarse those of a denoiser's layers are."""

from typing import NamedTuple

from torch import nn


class InputShape(NamedTuple):
    """Of the latents in one call of the denoiser: images in all guidance parts, height and width."""

    batch: int
    height: int
    width: int


class Grid(NamedTuple):
    """Of a layer's tokens, row by row; `factor` is by how much it is coarser than the denoiser's input."""

    factor: int
    height: int
    width: int


def find_factor(denoiser: nn.Module, layer: str) -> int | None:
    """Return by how much the grid of a U-Net's layer is coarser than its input; None where its name does not say so."""
    levels = len(getattr(getattr(denoiser, "config", None), "block_out_channels", ()))
    match layer.removeprefix("base_").split("."):
        case ["down_blocks", number, *_] if levels:
            return 2 ** int(number)
        case ["up_blocks", number, *_] if levels:
            return 2 ** (levels - 1 - int(number))
        case ["mid_block", *_] if levels:
            return 2 ** (levels - 1)
    return None
