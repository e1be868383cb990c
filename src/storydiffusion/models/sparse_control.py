"""SparseCtrl (2311.16933), the paper's video baseline: AnimateDiff's ControlNet for some frames of a clip.

Here these are the first and the last. At every step its input is their latents, zeros for the frames between, and a
mask of the given frames, never the noise; it adds residuals to the video U-Net's. The network is diffusers'
SparseControlNetModel and the result that of AnimateDiffSparseControlNetPipeline, with two differences: several clips
make one batch, and an image's latents are the mean of the VAE's posterior instead of a sample.

Shapes: B clips, C latent channels, F frames, h × w latents, T text tokens, D the width of the context.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from storydiffusion.errors import UserError

Residuals = tuple[list[Tensor], Tensor]
"""added to the video U-Net's down blocks and to its mid block"""


@dataclass(frozen=True)
class SparseControl:
    """A SparseControlNetModel for images; `scale` multiplies its residuals.

    Raises:
        UserError: a network for sketches or depth instead of images.
    """

    network: Any
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not self.network.config.use_simplified_condition_embedding:
            raise UserError(
                "this SparseCtrl is for sketches, not for images: use the one for images, animatediff-sparsectrl-rgb"
            )

    def make_residual_function(
        self, start: Tensor, end: Tensor, frames: int, text: Tensor
    ) -> Callable[[Tensor, Tensor], Residuals]:
        """Return a function from (noised latents (B, C, F, h, w), timestep) to the residuals.

        Args:
            start, end: latents (B, C, h, w) of the first and the last frame.
            text: (B, T, D), or with guidance (2B, T, D), the unconditional ones first; both parts get the frames.
        """
        given = torch.zeros(*start.shape[:2], frames, *start.shape[2:], dtype=start.dtype, device=start.device)
        given[:, :, 0], given[:, :, -1] = start, end
        mask = torch.zeros_like(given[:, :1])
        mask[:, :, [0, -1]] = 1
        parts = len(text) // len(start)
        given, mask = given.repeat(parts, 1, 1, 1, 1), mask.repeat(parts, 1, 1, 1, 1)
        context = text.repeat_interleave(frames, dim=0)

        def residuals(latents: Tensor, timestep: Tensor) -> Residuals:
            return self.network(
                latents, timestep, context, given, self.scale, conditioning_mask=mask, return_dict=False
            )  # fmt: skip

        return residuals


def check_fits(network: Any, unet: Any) -> None:
    """Raise UserError unless the SparseControlNetModel was made for such a U-Net, to which it adds residuals."""
    for name in ("block_out_channels", "layers_per_block", "cross_attention_dim", "in_channels"):
        found, wanted = (_plain(model.config[name]) for model in (network, unet))
        if found != wanted:
            raise UserError(f"SparseCtrl's {name} is {found}, but the video U-Net's is {wanted}: use one made for it")


def _plain(value: Any) -> Any:
    """Return one number where all blocks have the same."""
    if not isinstance(value, list | tuple):
        return value
    return value[0] if len(set(value)) == 1 else list(value)
