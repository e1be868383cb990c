"""The parts that generate a transition, checked against each other.

Shapes: B clips, T text tokens, D the width of the cross-attention's context.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from storydiffusion.errors import UserError
from storydiffusion.models.image_encoders import ImageEncoder, Kind
from storydiffusion.models.semantic_motion_predictor import SemanticMotionPredictor
from storydiffusion.models.sparse_control import SparseControl, check_fits
from storydiffusion.models.video_unet import SemanticVideoUNet


@dataclass(frozen=True)
class VideoModel:
    """The parts that generate a transition, all on one device.

    Attributes:
        encode_text: texts → (B, T, D), all of one length.
        scheduler: a diffusers scheduler with the schedule that the motion modules were trained on; never modified.
        predictor: None conditions the video model only on the text and the boundary frames.
        features: the kind of image features that the predictor takes.
        sparse_control: the ControlNet of the paper's baseline, conditioned on the boundary frames; None for none.
        offload_onto: the device onto which networks are moved from the CPU only while they are in use; None: all stay
            where they are.

    Raises:
        UserError: parts whose widths do not fit each other.
    """

    video_unet: SemanticVideoUNet
    vae: Any
    encode_text: Callable[[Sequence[str]], Tensor]
    scheduler: Any
    predictor: SemanticMotionPredictor | None = None
    image_encoder: ImageEncoder | None = None
    features: Kind = "hidden"
    sparse_control: SparseControl | None = None
    offload_onto: torch.device | None = None

    def __post_init__(self) -> None:
        if self.sparse_control is not None:
            check_fits(self.sparse_control.network, self.video_unet.unet)
        if self.predictor is None:
            return
        if self.image_encoder is None:
            raise UserError("the semantic motion predictor has no image encoder: give the one that it was trained with")
        wanted, found = self.video_unet.unet.config.cross_attention_dim, self.predictor.context_norm.weight.shape[0]
        if wanted != found:
            raise UserError(
                f"the predictor makes context of width {found}, the video model takes {wanted}: "
                f"use a predictor with context_width={wanted}"
            )
        wanted, found = self.predictor.image_width, self.image_encoder.widths[self.features]
        if wanted != found:
            raise UserError(
                f"the predictor takes image features of width {wanted}, the image encoder gives {found}: "
                "use the image encoder that it was trained with"
            )

    @property
    def device(self) -> torch.device:
        """Where latents are and networks compute."""
        return self.offload_onto or next(self.video_unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the latents and the U-Net's weights."""
        return next(self.video_unet.parameters()).dtype

    @contextmanager
    def using(self, *networks: Any) -> Iterator[None]:
        """Have these networks on the device inside the context; None among them is skipped."""
        offloaded = [each for each in networks if each is not None] if self.offload_onto is not None else []
        try:
            for network in offloaded:
                network.to(self.offload_onto)
            yield
        finally:
            for network in offloaded:
                network.to("cpu")

    @property
    def max_frames(self) -> int:
        """Largest number of frames of a transition, both boundary frames included."""
        unet = self.video_unet.max_frames
        return unet if self.predictor is None else min(unet, self.predictor.frames)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent, in height and in width."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)
