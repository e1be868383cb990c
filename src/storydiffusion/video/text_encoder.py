"""Captions → the text tokens T of the cross-attention, by Stable Diffusion's frozen text encoder."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class TextEncoder(nn.Module):
    """A tokenizer with its CLIPTextModel, frozen and always in eval mode.

    Texts are padded or cut to the encoder's one window, as where Stable Diffusion and AnimateDiff were trained.
    """

    def __init__(self, tokenizer: Any, model: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model: Any = model.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "TextEncoder":
        """Stays in eval mode: a trainer puts everything it holds into train mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """B texts → (B, T, D)."""
        tokens = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        return self.model(tokens.to(self.model.device)).last_hidden_state
