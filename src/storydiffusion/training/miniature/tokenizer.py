"""The miniature's tokenizer: transformers' CLIPTokenizer whose words are exactly StoryWorld's."""

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken
from transformers import CLIPTokenizer

from storydiffusion.storyworld.captions import vocabulary

MAX_TOKENS = 48
SPECIAL = {"<|startoftext|>": 0, "<|endoftext|>": 1, "<|unknown|>": 2}


def build_tokenizer() -> CLIPTokenizer:
    """Build it: each vocabulary word is one token, each letter of any other word is the unknown token."""
    tokenizer = CLIPTokenizer(vocab=SPECIAL, merges=[], unk_token="<|unknown|>", model_max_length=MAX_TOKENS)
    # single_word: "cat" is not in "catch"
    words: Sequence[Any] = [AddedToken(word, single_word=word.isalpha(), normalized=True) for word in vocabulary()]
    tokenizer.add_tokens(words)
    return tokenizer
