"""The tokenizer of each edition: a word is one token, and no other word is known."""

import pytest
from transformers import CLIPTokenizer

from storydiffusion.storyworld.captions import caption
from storydiffusion.storyworld.edition import EDITIONS
from storydiffusion.storyworld.truth import sample_truth
from storydiffusion.training.miniature.tokenizer import build_tokenizer


@pytest.mark.parametrize("edition", EDITIONS)
def test_every_vocabulary_word_is_one_token(edition):
    tokenizer = build_tokenizer(edition)
    entries = EDITIONS[edition].vocabulary()
    tokens = [tokenizer(word, add_special_tokens=False).input_ids for word in entries]
    assert all(len(token) == 1 for token in tokens)
    assert len({token[0] for token in tokens}) == len(entries)
    assert tokenizer.unk_token_id not in {token[0] for token in tokens}


@pytest.mark.parametrize("word", ["zebra", "catch", "xylophone"])  # catch begins with cat
def test_other_words_are_unknown(word):
    tokenizer = build_tokenizer(1)
    tokens = tokenizer(word, add_special_tokens=False).input_ids
    assert tokens
    assert set(tokens) == {tokenizer.unk_token_id}


def test_captions_have_no_unknown_words_and_the_tokenizer_survives_saving(tmp_path):
    tokenizer = build_tokenizer(1)
    tokenizer.save_pretrained(tmp_path)
    again = CLIPTokenizer.from_pretrained(tmp_path)
    for index in range(100):
        tokens = tokenizer(caption(sample_truth(3, index), index)).input_ids
        assert tokenizer.unk_token_id not in tokens
        assert len(tokens) <= tokenizer.model_max_length
        assert again(caption(sample_truth(3, index), index)).input_ids == tokens
