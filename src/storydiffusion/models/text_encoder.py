"""Text tokens T for the cross-attention: Stable Diffusion's frozen text encoder, for captions of any length."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from storydiffusion.errors import UserError
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
        return self._encode(self._tokenize(texts))

    @torch.no_grad()
    def encode_words(self, texts: Sequence[str], count: int, skipped: Collection[str] = ()) -> Tensor:
        """B texts → the first `count` states after the start token, without those of the words `skipped`.

        A state sums up all words before it, so the states of articles and conjunctions say little of their own.
        Where a text has fewer states, the skipped ones follow.

        Returns:
            (B, count, D).

        Raises:
            UserError: a skipped word is not a token of this tokenizer.
        """
        ids = self._tokenize(texts)
        unwanted = torch.tensor([self._find_token(word) for word in skipped], dtype=ids.dtype)
        is_skipped = torch.isin(ids.flatten(1)[:, 1:], unwanted)
        order = is_skipped.long().argsort(dim=1, stable=True)[:, :count].to(self.model.device)
        states = self._encode(ids)[:, 1:]
        return states.gather(1, order[..., None].expand(-1, -1, states.shape[-1]))

    def _tokenize(self, texts: Sequence[str]) -> Tensor:
        """B texts → the tokens of their windows, (B, windows, length)."""
        windows = max(len(token_windows(self.tokenizer, text)) for text in texts)
        return torch.tensor([padded_windows(self.tokenizer, text, windows) for text in texts])

    def _encode(self, ids: Tensor) -> Tensor:
        hidden = self.model(ids.flatten(0, 1).to(self.model.device)).last_hidden_state
        return hidden.reshape(len(ids), -1, hidden.shape[-1])

    def _find_token(self, word: str) -> int:
        pieces = token_windows(self.tokenizer, word)[0]
        if len(pieces) != 1 or pieces[0] == self.tokenizer.unk_token_id:
            raise UserError(
                f"recipe.text_skipped names {word!r}, which is not a token of this text encoder: leave it out"
            )
        return pieces[0]
