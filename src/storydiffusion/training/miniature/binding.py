"""Words bound to the character that they describe, by what cross-attention reads where.

Two characters of one image exchange clothes as long as the cells of either read the words of both. FastComposer
(2305.10431, section 4.2) trains cross-attention maps against masks of the subjects; here the loss is a cross-entropy:
of the attention that a character's cells give to words about characters, the share that its own words get.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from transformers import CLIPTokenizer

from storydiffusion.storyworld.captions import join_prompts
from storydiffusion.storyworld.edition import Edition


class AttentionRecorder:
    """Attention processor of explicit products that keeps its latest probabilities, the mean of its heads."""

    def __init__(self) -> None:
        self._latest: Tensor | None = None

    def take(self) -> Tensor:
        """Return the probabilities of the latest call, (B, cells, T), and forget them."""
        if self._latest is None:
            raise RuntimeError("cross-attention was not called")
        latest, self._latest = self._latest, None
        return latest

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        layer: Any = attn  # to_k, to_v and to_out may be None, which they are not in cross-attention
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(layer.to_k(encoder_hidden_states))
        value = attn.head_to_batch_dim(layer.to_v(encoder_hidden_states))
        probabilities = attn.get_attention_scores(query, key, attention_mask)
        self._latest = probabilities.unflatten(0, (-1, attn.heads)).mean(1)
        return layer.to_out[1](layer.to_out[0](attn.batch_to_head_dim(torch.bmm(probabilities, value))))


def record_cross_attention(unet: Any) -> list[AttentionRecorder]:
    """Install a recorder in each cross-attention layer of diffusers' U-Net, and return all of them."""
    processors, recorders = dict(unet.attn_processors), []
    for name in processors:
        if name.endswith("attn2.processor"):
            processors[name] = AttentionRecorder()
            recorders.append(processors[name])
    unet.set_attn_processor(processors)
    return recorders


def find_own_words(
    edition: Edition, tokenizer: CLIPTokenizer, truths: Sequence[Any], prompts: Sequence[Any], length: int
) -> Tensor:
    """Mark the tokens about each character in the caption of images side by side.

    A clause about the same looks in another image counts as its own.

    Returns:
        bool (images · most_characters, length); False for characters that an image lacks.
    """
    joined = join_prompts(prompts)
    clauses = [mark_tokens(tokenizer, joined.text, clause, length) for clause in joined.clauses]
    cast = [looks for truth in truths for looks in edition.get_looks(truth)]
    own = torch.zeros(len(truths), edition.most_characters, length, dtype=torch.bool)
    for image, truth in enumerate(truths):
        for slot, looks in enumerate(edition.get_looks(truth)):
            for clause, described in zip(clauses, cast, strict=True):
                if described == looks:
                    own[image, slot] |= clause
    return own.flatten(0, 1)


def mark_tokens(tokenizer: CLIPTokenizer, text: str, span: tuple[int, int], length: int) -> Tensor:
    """Return which of `length` tokens, the start token first, are those of text[start:end], bool (length,)."""
    start, end = span
    first = 1 + len(tokenizer.tokenize(text[:start]))
    count = len(tokenizer.tokenize(text[start:end]))
    places = torch.arange(length)
    return (places >= first) & (places < first + count)


def binding_loss(probabilities: Tensor, own_words: Tensor, cover: Tensor) -> Tensor:
    """Return the cross-entropy of whose words a character's cells read, 0 where all words are its own.

    Args:
        probabilities: of cross-attention, (B, cells, T), cells row by row at the size of `cover` or a part of it.
        own_words: bool (B, C, T) for each character.
        cover: share of each cell that the character covers, (B, C, H, W).
    """
    any_words = own_words.any(1, keepdim=True)
    contested = (own_words.any(-1) & (own_words != any_words).any(-1)).to(cover.dtype)
    scale = round((cover[0, 0].numel() / probabilities.shape[1]) ** 0.5)
    weights = nn.functional.avg_pool2d(cover, scale).flatten(2) * contested[..., None]
    mass = probabilities.float() @ own_words.float().transpose(1, 2)  # (B, cells, C)
    total = probabilities.float() @ any_words.float().transpose(1, 2)
    surprise = total.clamp_min(1e-6).log() - mass.clamp_min(1e-6).log()
    return (weights * surprise.transpose(1, 2)).sum() / weights.sum().clamp_min(1)
