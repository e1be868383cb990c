"""Text embeddings of prompts of any length: windows of the text encoder's length, encoded one by one, concatenated.

A CLIP text encoder takes 77 tokens. Longer prompts are cut after the last whole word that fits, each piece gets its own
start and end token, and the U-Net's cross-attention attends to the embeddings of all windows: no token is dropped.

Shapes: B prompts, N tokens of all windows, C channels (of both encoders together in SDXL), D pooled channels.
"""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from storydiffusion.attention.backbones import find_denoiser, get_backbone
from storydiffusion.attention.character_words import Span, find_tokens, find_words
from storydiffusion.errors import UserError

WINDOWS_AT_ONCE = 32
"""windows in a call of a text encoder, so that its memory does not grow with the story"""


@dataclass(frozen=True)
class PromptEmbeddings:
    """Embeddings that a Stable Diffusion (XL) pipeline takes instead of prompts; SDXL needs the pooled ones too."""

    prompt_embeds: Tensor  # (B, N, C)
    negative_prompt_embeds: Tensor  # (B, N, C)
    pooled_prompt_embeds: Tensor | None = None  # (B, D)
    negative_pooled_prompt_embeds: Tensor | None = None  # (B, D)

    def as_arguments(self) -> dict[str, Tensor]:
        """Return them as keyword arguments of the pipeline's call."""
        return {name: value for name, value in vars(self).items() if value is not None}


@torch.no_grad()
def encode_prompts(
    pipe: Any, prompts: list[str], negative_prompts: list[str], least_windows: int = 1
) -> PromptEmbeddings:
    """Encode `prompts` and their negative ones (one each, "" for none) with every text encoder of the pipeline.

    Empty windows pad all prompts to the number of windows of the longest, `least_windows` at least. A prompt that fits
    in one window is encoded exactly as by the pipeline itself; the pooled embedding is that of the first window.
    """
    negatives_are_zero = getattr(pipe.config, "force_zeros_for_empty_prompt", False)  # SDXL's own convention
    windows = max(least_windows, count_windows(get_tokenizers(pipe), [*prompts, *negative_prompts]))
    positive, pooled = _encode(pipe, prompts, windows)
    negative, negative_pooled = _encode(pipe, negative_prompts, windows)
    if negatives_are_zero:
        empty = torch.tensor([not text for text in negative_prompts], device=negative.device)
        negative = negative.masked_fill(empty[:, None, None], 0)
        negative_pooled = None if negative_pooled is None else negative_pooled.masked_fill(empty[:, None], 0)
    return PromptEmbeddings(positive, negative, pooled, negative_pooled)


def unknown_words(tokenizer: Any, text: str) -> list[str]:
    """Return the words of `text` that the tokenizer does not know, each once, in order.

    A word is unknown when its encoding contains the unknown token; an open vocabulary has no such words.
    """
    words = [word.strip(string.punctuation + "“”‘’…—–") for word in text.split()]
    return [word for word in dict.fromkeys(words) if word and tokenizer.unk_token_id in _tokens(tokenizer, word)]


def get_tokenizers(pipe: Any) -> list[Any]:
    """Return the tokenizers of a pipeline with a U-Net: one, or two of the XL variant."""
    return _parts(pipe, "tokenizer")


def _parts(pipe: Any, name: str) -> list[Any]:
    return [part for part in (getattr(pipe, name, None), getattr(pipe, f"{name}_2", None)) if part is not None]


def _tokens(tokenizer: Any, text: str) -> list[int]:
    text = _spell_vectors(tokenizer, text)
    return tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids


def _spell_vectors(tokenizer: Any, text: str) -> str:
    """Write a word of several learnt vectors as all its tokens, "toy" → "toy toy_1", as diffusers does."""
    if not any(token.endswith("_1") for token in tokenizer.added_tokens_encoder):
        return text
    from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin

    converted = TextualInversionLoaderMixin().maybe_convert_prompt(text, tokenizer)
    assert isinstance(converted, str)
    return converted


def token_windows(tokenizer: Any, text: str) -> list[list[int]]:
    """Split the tokens of `text` into pieces that fit between start and end token, cut between words if possible."""
    rest, room, pieces = _tokens(tokenizer, text), tokenizer.model_max_length - 2, []
    while len(rest) > room:
        ends_word = [token.endswith("</w>") for token in tokenizer.convert_ids_to_tokens(rest[:room])]
        cut = room - ends_word[::-1].index(True) if any(ends_word) else room
        pieces.append(rest[:cut])
        rest = rest[cut:]
    return [*pieces, rest]


def find_character_tokens(pipe: Any, prompt: str, characters: Mapping[str, str]) -> dict[str, list[int]]:
    """Return the numbers of each character's tokens in the embeddings of a prompt that `encode_prompts` returns.

    Args:
        characters: name → words of the prompt.

    Raises:
        UserError: for words that the prompt does not have.
    """
    spans = find_words(prompt, characters)
    if missing := [name for name in characters if name not in spans]:
        raise UserError(f"the prompt '{prompt}' does not have the words '{characters[missing[0]]}' of {missing[0]}.")
    return find_span_tokens(pipe, prompt, {name: spans[name] for name in characters})


def find_span_tokens(pipe: Any, prompt: str, spans: Mapping[str, Sequence[Span]]) -> dict[str, list[int]]:
    """Return the numbers of the tokens of each character's spans in the embeddings that `encode_prompts` returns.

    A diffusion transformer's are those in the embeddings that its pipeline makes of the prompt.

    Args:
        spans: name → start and end of words of the prompt.

    Raises:
        UserError: for words that the text encoder of a transformer does not read, or whose tokens are not found.
    """
    if getattr(pipe, "unet", None) is None:
        return get_backbone(find_denoiser(pipe)).prompt_tokens(pipe).find(pipe, prompt, spans)
    tokenizer = get_tokenizers(pipe)[0]
    numbers = [
        window * tokenizer.model_max_length + 1 + place  # after the window's start token
        for window, piece in enumerate(token_windows(tokenizer, prompt))
        for place in range(len(piece))
    ]

    def count(text: str) -> int:
        return len(_tokens(tokenizer, text))

    return {name: [numbers[token] for token in find_tokens(prompt, own, count)] for name, own in spans.items()}


def count_windows(tokenizers: Sequence[Any], texts: Sequence[str]) -> int:
    """Return the number of windows of the longest text."""
    return max(len(token_windows(tokenizer, text)) for tokenizer in tokenizers for text in texts)


def _encode(pipe: Any, texts: list[str], windows: int) -> tuple[Tensor, Tensor | None]:
    tokenizers = get_tokenizers(pipe)
    return encode_windows(pipe, [[padded_windows(tok, text, windows) for text in texts] for tok in tokenizers])


def encode_windows(pipe: Any, ids: list[list[list[list[int]]]]) -> tuple[Tensor, Tensor | None]:
    """Return embeddings (B, windows · length, C) and, from an encoder with a projection, pooled ones (B, D).

    Args:
        ids: the tokens of each tokenizer of the pipeline, (B, windows, length), all of one shape.
    """
    is_xl = hasattr(pipe, "text_encoder_2")
    embeddings, pooled = [], None
    for own_ids, encoder in zip(ids, _parts(pipe, "text_encoder"), strict=True):
        tokens = torch.tensor(own_ids, device=pipe._execution_device)
        hidden, firsts = [], []
        for some in tokens.flatten(0, 1).split(WINDOWS_AT_ONCE):
            output = encoder(some, output_hidden_states=is_xl)
            hidden.append(output.hidden_states[-2] if is_xl else output.last_hidden_state)
            firsts.append(output[0])
        embeddings.append(torch.cat(hidden).reshape(len(tokens), -1, hidden[0].shape[-1]))
        if is_xl and firsts[0].ndim == 2:  # CLIPTextModelWithProjection's text_embeds
            pooled = torch.cat(firsts).reshape(*tokens.shape[:2], -1)[:, 0]
    return torch.cat(embeddings, dim=-1), pooled


def padded_windows(tokenizer: Any, text: str, windows: int) -> list[list[int]]:
    """Return the tokens of `text` in `windows` windows of the encoder's length; the last ones may be empty."""
    pieces = token_windows(tokenizer, text)
    pieces += [[] for _ in range(windows - len(pieces))]
    start, end, pad, length = (
        tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.model_max_length,
    )  # fmt: skip
    return [[start, *piece, end, *[pad] * (length - 2 - len(piece))] for piece in pieces]
