"""Boundary-frame attention: every frame of a clip also attends to its first and last frame. Not part of the paper.

The paper's video model (section 3.2 of arXiv 2405.01434) sees the two given images through their semantic tokens, and
through motion modules that attend along time at one place only. In a small model neither preserves a character's
identity. So each spatial self-attention gets more keys and values, by its own projections: for frame i of F

    P_i = concat(I_i, I_1, I_F)                     tokens of the frame and of both boundary frames
    O_i = Attention(Q_i, K_{P_i}, V_{P_i})          one softmax; no weights are added

which is equation 2 of the paper's consistent self-attention with the boundary frames as the only source and rate 1. A
boundary frame attends to itself once and to the other one.

Shapes: B clips, F frames, N tokens of a frame, C channels.
"""

from typing import Any

import torch
from torch import Tensor, nn

from storydiffusion.attention.backbones import get_backbone
from storydiffusion.attention.consistent_self_attention import multi_head_attention


def add_boundary_frame_attention(unet: nn.Module) -> None:
    """Replace the processors of all spatial self-attentions of a UNetMotionModel, permanently."""
    length = ClipLength()
    unet.register_forward_pre_hook(length.before_unet, with_kwargs=True)
    for layer in get_backbone(unet).self_attention_layers("all").values():
        layer.set_processor(BoundaryFrameAttnProcessor(length))


class ClipLength:
    """The number of frames of the clips in a call of the U-Net, which its attention layers cannot see.

    Gradient checkpointing recomputes a layer in the backward pass: until then the U-Net must not get clips of another
    length.
    """

    def __init__(self) -> None:
        self.frames = 1

    def before_unet(self, unet: nn.Module, args: tuple, kwargs: dict) -> None:
        """Record the length; a forward pre-hook of the U-Net, whose input is (B, C, F, H, W)."""
        self.frames = (args[0] if args else kwargs["sample"]).shape[2]


class BoundaryFrameAttnProcessor:
    """A diffusers attention processor for `attn1` of a transformer block."""

    def __init__(self, length: ClipLength) -> None:
        self.length = length

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """(B · F, N, C) → (B · F, N, C)."""
        if attention_mask is not None:
            raise ValueError("boundary-frame attention takes no attention_mask: leave it out of the U-Net's call")
        query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        output = attend_to_boundary_frames(query, key, value, self.length.frames, attn.heads)
        return attn.to_out[1](attn.to_out[0](output))


def attend_to_boundary_frames(query: Tensor, key: Tensor, value: Tensor, frames: int, heads: int) -> Tensor:
    """(B · F, N, C) each, projected, not yet split into heads → (B · F, N, C); one frame attends only to itself."""
    if frames == 1:
        return multi_head_attention(query, key, value, heads)
    query, key, value = (x.unflatten(0, (-1, frames)) for x in (query, key, value))
    # Both boundary frames attend to the same tokens, so they are one sequence of 2N.
    boundary_query, boundary_key, boundary_value = (torch.cat([x[:, 0], x[:, -1]], dim=1) for x in (query, key, value))
    first, last = multi_head_attention(boundary_query, boundary_key, boundary_value, heads)[:, None].chunk(2, dim=2)
    keys, values = (
        torch.cat([own[:, 1:-1], both[:, None].expand(-1, frames - 2, -1, -1)], dim=2).flatten(0, 1)
        for own, both in ((key, boundary_key), (value, boundary_value))
    )
    middle = multi_head_attention(query[:, 1:-1].flatten(0, 1), keys, values, heads)
    return torch.cat([first, middle.unflatten(0, (len(first), frames - 2)), last], dim=1).flatten(0, 1)
