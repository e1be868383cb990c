"""Maps of where an image reads the words of its characters, from queries of the image and keys of the text.

A map is the mean over heads of the softmax over text tokens, summed over a region's tokens. What remains of the softmax
is the background's map. Each panel has its own tokens.

Shape letters: P panels, N image tokens of a panel, T text tokens, K regions of the panel with most characters (the
background first), H heads, D channels of a head.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from storydiffusion.errors import UserError

MOST_SCORES = 2**26
"""scores (H, N, T) that exist at once, where one panel has fewer"""


class TextRecorder(Protocol):
    """What sees layers that read text; batches have all guidance parts, the one with prompts last."""

    def record_chosen_text(self, factor: int, attn: Any, hidden_states: Tensor, text: Tensor) -> None:
        """Add the maps of a cross-attention layer over the characters' tokens and the start token.

        Args:
            factor: by how much the layer's grid is coarser than the denoiser's input.
            attn: the layer.
            hidden_states: (B, N, C).
            text: (B, all text tokens, C).
        """
        ...

    def record_all_text(self, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        """Add the maps of a joint layer over all its text.

        Args:
            query: (B, N, H, D) of the image.
            key: (B, T, H, D) of the text.
            mask: (B, T), false or 0 at padding, which no token reads; None: there is none.
        """
        ...


def share_tokens(panels: Sequence[Sequence[Sequence[int]]], length: int) -> Tensor:
    """Return (P, K, length), 1 at the tokens of each region of each panel, else 0.

    Args:
        panels: the token numbers of each region of each panel.
        length: T.

    Raises:
        UserError: for a token that the text does not have.
    """
    shares = torch.zeros(len(panels), max(map(len, panels)), length)
    for row, panel in enumerate(panels):
        for region, tokens in enumerate(panel):
            if tokens and max(tokens) >= length:
                raise UserError(
                    f"characters of panel {row + 1} name text token {max(tokens)}, but the embeddings of its prompt "
                    f"have the tokens 0 to {length - 1}: give numbers of these."
                )
            shares[row, region, list(tokens)] = 1.0
    return shares


def choose_tokens(shares: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers (P, t) of the tokens of any region, and the shares (P, K, t) of these tokens alone.

    t is the largest number of a panel; other panels are filled up with tokens of no region.
    """
    used = shares.sum(1) > 0
    order = (~used).int().sort(dim=1, stable=True).indices
    tokens = order[:, : int(used.sum(1).max())]
    return tokens, shares.gather(2, tokens[:, None].expand(-1, shares.shape[1], -1))


def read_maps(query: Tensor, key: Tensor, shares: Tensor) -> Tensor:
    """Return (P, K, N), the share of its attention that each image token gives to each region's text tokens.

    Args:
        query: (P, N, H, D).
        key: (P, T, H, D).
        shares: (P, K, T); tokens of no region are left out of the softmax.
    """
    at_once = max(1, MOST_SCORES // (query[0, :, :, 0].numel() * key.shape[1]))
    parts = [
        _read_some(*some) for some in zip(query.split(at_once), key.split(at_once), shares.split(at_once), strict=True)
    ]
    return torch.cat(parts)


def _read_some(query: Tensor, key: Tensor, shares: Tensor) -> Tensor:
    q, k = (x.transpose(1, 2).float() for x in (query, key))
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (P, H, N, T)
    scores = scores.masked_fill(shares.sum(1)[:, None, None] == 0, -torch.inf)
    return shares @ scores.softmax(-1).mean(1).transpose(1, 2)
