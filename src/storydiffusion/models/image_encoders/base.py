"""The interface of all image encoders, and how they see an image.

Shape letters: B images, M tokens of an image, H × W pixels.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from storydiffusion.errors import UserError

Kind = Literal["hidden", "pooled"]

SIDE = 4
"""Side of the grid that tokens are averaged to, so that encoders of many tokens can be compared with those of few"""


class ImageEncoder(nn.Module):
    """A frozen vision transformer that reads uint8 images. Subclasses compute its two kinds of features.

    Attributes:
        size: side of the square that it reads, in pixels.
        widths: channels of each kind of features.
    """

    def __init__(
        self, tower: nn.Module, size: int, widths: dict[Kind, int], mean: Sequence[float], std: Sequence[float]
    ):
        super().__init__()
        self.tower: Any = tower.requires_grad_(False).eval()
        self.size = size
        self.widths = widths
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "ImageEncoder":
        """Stay in eval mode: a trainer puts everything that it holds into train mode."""
        return super().train(False)

    @torch.no_grad()  # not inference_mode, whose tensors the predictor could not be trained on
    def features(self, frames: Tensor, kind: Kind = "hidden") -> Tensor:
        """uint8 (B, 3, H, W) → (B, M, widths[kind]), in the dtype of the weights.

        `hidden` are all tokens after the last block but one, before any closing norm (transformers'
        hidden_states[-2]), the class token first where there is one. `pooled` is the model's one embedding of an
        image, M = 1; CLIP compares it with that of text.

        Raises:
            UserError: for frames of another shape or dtype, or an unknown kind.
        """
        if kind not in get_args(Kind):
            raise UserError(f"the kind of image features is {kind!r}: choose one of {', '.join(get_args(Kind))}.")
        pixels = self.preprocess(frames)
        return self.hidden(pixels) if kind == "hidden" else self.pooled(pixels)[:, None]

    def preprocess(self, frames: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) → (B, 3, size, size): shorter side resized, center cropped, normalized as in training."""
        if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
            raise UserError(
                f"the image encoder got {tuple(frames.shape)} of {frames.dtype}: give uint8 images (B, 3, H, W)."
            )
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        pixels = centre_square(frames.to(mean.device, torch.float32) / 255, self.size)
        return ((pixels - mean.float()) / std.float()).to(mean.dtype)

    def hidden(self, pixels: Tensor) -> Tensor:
        """Preprocessed (B, 3, size, size) → (B, M, widths["hidden"])."""
        raise NotImplementedError

    def pooled(self, pixels: Tensor) -> Tensor:
        """Preprocessed (B, 3, size, size) → (B, widths["pooled"]), not normalized to length 1."""
        raise NotImplementedError


def centre_square(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) in [0, 1] → (B, 3, size, size): shorter side to `size`, bicubic with antialias, then the center."""
    height, width = images.shape[2:]
    if min(height, width) != size:
        shape = [side * size // min(height, width) for side in (height, width)]  # rounded down, as torchvision does
        images = F.interpolate(images, shape, mode="bicubic", antialias=True).clamp(0, 1)  # bicubic overshoots
    top, left = (round((side - size) / 2) for side in images.shape[2:])
    return images[:, :, top : top + size, left : left + size]


def flatten_tokens(tokens: Tensor) -> Tensor:
    """Tokens (N, M, C) → features (N, D): a square grid of at most 4 × 4 cells, and the class token if there is one."""
    side = math.isqrt(tokens.shape[1])
    grid = tokens[:, -side * side :].float()
    rest = tokens[:, : -side * side].float()
    cells = F.adaptive_avg_pool2d(grid.mT.unflatten(2, (side, side)), min(side, SIDE))
    return torch.cat([rest.flatten(1), cells.flatten(1)], 1)
