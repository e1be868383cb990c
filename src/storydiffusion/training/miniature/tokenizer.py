"""The miniature's tokenizer: transformers' CLIPTokenizer whose words are exactly StoryWorld's."""

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken
from transformers import CLIPTokenizer

from storydiffusion.storyworld.edition import get_edition

SPECIAL = {"<|startoftext|>": 0, "<|endoftext|>": 1, "<|unknown|>": 2}


def build_tokenizer(edition: int) -> CLIPTokenizer:
    """Build the tokenizer of an edition: each of its words is one token, each letter of any other word is unknown."""
    world = get_edition(edition)
    tokenizer = CLIPTokenizer(vocab=SPECIAL, merges=[], unk_token="<|unknown|>", model_max_length=world.max_tokens)
    # single_word: "cat" is not in "catch"
    words: Sequence[Any] = [
        AddedToken(word, single_word=word.isalpha(), normalized=True) for word in world.vocabulary()
    ]
    tokenizer.add_tokens(words)
    return tokenizer
