"""Text tokens T for the cross-attention: Stable Diffusion's frozen text encoder, for captions of any length."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from storydiffusion.models.prompt_encoding import padded_windows, token_windows


class TextEncoder(nn.Module):
    """A tokenizer with its CLIPTextModel, frozen and always in eval mode.

    A text longer than the encoder's window is encoded in several windows, as for images; no token is dropped.
    """

    def __init__(self, tokenizer: Any, model: Any) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.model: Any = model.requires_grad_(False).eval()

    @property
    def window(self) -> int:
        """Tokens of one window, its start and end token included."""
        return self.tokenizer.model_max_length

    def train(self, mode: bool = True) -> "TextEncoder":
        """Stay in eval mode: a trainer puts everything that it holds into train mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """B texts → (B, T, D); T is one window's length times the windows of the longest text."""
        windows = max(len(token_windows(self.tokenizer, text)) for text in texts)
        ids = torch.tensor([padded_windows(self.tokenizer, text, windows) for text in texts])  # (B, windows, length)
        hidden = self.model(ids.flatten(0, 1).to(self.model.device)).last_hidden_state
        return hidden.reshape(len(texts), -1, hidden.shape[-1])
