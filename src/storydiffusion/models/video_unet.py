"""The video model of section 3.2 of arXiv 2405.01434: Stable Diffusion's U-Net with AnimateDiff's motion modules.

    V_i = CrossAttention(V_i, concat(T, P_i), concat(T, P_i))

T are the text's tokens, the same for every frame, P_i the semantic tokens of frame i: one softmax over both, through
the U-Net's own key and value projections, so conditioning on P_i adds no weights here.

Shapes: B clips, C latent channels, F frames, H × W latent size, T text tokens, N semantic tokens a frame, D the width
of the cross-attention's context.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D, MotionAdapter, UNetMotionModel
from torch import Tensor, nn

from storydiffusion.errors import UserError
from storydiffusion.models.boundary_frame_attention import add_boundary_frame_attention
from storydiffusion.models.motion_adapters import check_fits

TRANSLATED = {"attention_head_dim"}  # becomes the motion model's num_attention_heads
WITHOUT_EXTRAS = {"addition_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim"}  # further inputs, as SDXL has


class SemanticVideoUNet(nn.Module):
    """Denoise clips, each frame conditioned on the text and on its own semantic tokens.

    All weights start frozen; `for p in video_unet.motion_parameters(): p.requires_grad_()` before `train()` makes the
    motion modules trainable. The image layers always stay frozen and in eval mode.

    `unet` is a plain UNetMotionModel, so diffusers' own methods apply: `unet.save_motion_modules(folder)`,
    `unet.enable_gradient_checkpointing()`.
    """

    def __init__(self, unet: UNetMotionModel) -> None:
        super().__init__()
        self.unet: Any = unet
        self.requires_grad_(False).eval()

    @classmethod
    def from_parts(
        cls, unet: UNet2DConditionModel, adapter: MotionAdapter, boundary_attention: bool = False
    ) -> "SemanticVideoUNet":
        """Combine an image model's U-Net with motion modules made for it; copies the weights, in the U-Net's dtype.

        Args:
            boundary_attention: let every frame also attend to the boundary frames, see boundary_frame_attention.py; the
                paper's model does not.

        Raises:
            UserError: a U-Net that diffusers' UNetMotionModel would compute differently (SDXL's, or one without a
                mid block), or an adapter made for another U-Net.
        """
        _check_image_unet(unet)
        check_fits(adapter, unet.config)
        with _without_empty_warning():
            video_unet: Any = UNetMotionModel.from_unet2d(unet, adapter)
        if boundary_attention:
            add_boundary_frame_attention(video_unet)
        return cls(video_unet)

    @property
    def max_frames(self) -> int:
        """Largest number of frames: the length of the motion modules' position encodings."""
        return self.unet.config.motion_max_seq_length

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text: Tensor,
        semantic: Tensor | None = None,
        residuals: tuple[Sequence[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return the prediction for noised latents, of the image model's type (epsilon or v), in their shape.

        Args:
            latents: (B, C, F, H, W).
            timesteps: (B,), or () for the whole batch.
            text: (B, T, D).
            semantic: (B, F, N, D); None uses only the text, which is AnimateDiff.
            residuals: a ControlNet's, for the down blocks and the mid block.

        Raises:
            UserError: more frames than the motion modules support, or semantic tokens of another width than the text.
        """
        frames = latents.shape[2]
        if frames > self.max_frames:
            raise UserError(
                f"{frames} frames requested, but the motion modules support at most {self.max_frames}: request fewer"
            )
        down, mid = residuals or (None, None)
        return self.unet(
            latents,
            timesteps,
            frame_contexts(text, semantic, frames),
            down_block_additional_residuals=down,
            mid_block_additional_residual=mid,
        ).sample

    def motion_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the weights of the motion modules."""
        return (weight for name, weight in self.named_parameters() if ".motion_modules." in name)

    def image_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the image model's weights: all but the motion modules'."""
        return (weight for name, weight in self.named_parameters() if ".motion_modules." not in name)

    def train(self, mode: bool = True) -> "SemanticVideoUNet":
        """Put motion modules whose weights all require gradients into train mode; the rest stays in eval mode."""
        super().train(False)
        self.training = mode
        for module in self.unet.modules():
            if isinstance(module, AnimateDiffTransformer3D):
                module.train(mode and all(weight.requires_grad for weight in module.parameters()))
        return self


def frame_contexts(text: Tensor, semantic: Tensor | None, frames: int) -> Tensor:
    """concat(T, P_i) of every frame, clip by clip: (B · F, T + N, D), the layout of UNetMotionModel's context."""
    if semantic is None:
        return text.repeat_interleave(frames, dim=0)
    batch, tokens, width = text.shape
    if semantic.shape[-1] != width:
        raise UserError(
            f"semantic tokens of width {semantic.shape[-1]} do not fit text of width {width}: "
            f"use a predictor with context_width={width}"
        )
    if semantic.shape[:2] != (batch, frames):
        raise ValueError(f"semantic tokens {tuple(semantic.shape)} for {batch} clips of {frames} frames")
    shared = text.unsqueeze(1).expand(batch, frames, tokens, width)
    return torch.cat([shared, semantic.to(text.dtype)], dim=2).flatten(0, 1)


@contextmanager
def _without_empty_warning() -> Iterator[None]:
    """Hide diffusers 0.42's warning at changes of dtype about modules to keep in float32, of which there are none."""
    logger = logging.getLogger("diffusers.models.modeling_utils")

    def names_modules(record: logging.LogRecord) -> bool:
        return "should be kept in float32: []" not in record.getMessage()

    logger.addFilter(names_modules)
    try:
        yield
    finally:
        logger.removeFilter(names_modules)


def _check_image_unet(unet: Any) -> None:
    """Refuse non-default settings that UNetMotionModel lacks: `from_unet2d` drops them silently."""
    settings = signature(UNet2DConditionModel.__init__).parameters
    unknown = settings.keys() - signature(UNetMotionModel.__init__).parameters.keys() - TRANSLATED
    for name in sorted(unknown | WITHOUT_EXTRAS):
        if unet.config[name] != settings[name].default:
            raise UserError(
                f"the U-Net's {name} is {unet.config[name]!r}, which a motion model does not support: "
                "use an SD1.5-like U-Net"
            )
