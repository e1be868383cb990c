"""Text tokens of the video model: those of the image pipeline, at any length of the text."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from transformers import CLIPTextModel

from storydiffusion.errors import UserError
from storydiffusion.models.prompt_encoding import encode_prompts
from storydiffusion.models.text_encoder import TextEncoder
from storydiffusion.training.miniature.contrastive import build_text_config
from storydiffusion.training.miniature.tokenizer import build_tokenizer

SHORT, LONG = "a cat", " ".join(["a cat sits in the park and reads a book"] * 30)


def load_encoder(folder) -> tuple[StableDiffusionPipeline, TextEncoder]:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    return pipe, TextEncoder(pipe.tokenizer, pipe.text_encoder)


def test_a_short_text_is_encoded_as_with_the_tokenizer_alone(tiny_model):
    pipe, encode = load_encoder(tiny_model)
    ids = pipe.tokenizer([SHORT, ""], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(encode([SHORT, ""]), pipe.text_encoder(ids).last_hidden_state)


def test_no_token_of_a_long_text_is_dropped(tiny_model):
    pipe, encode = load_encoder(tiny_model)
    tokens = encode([LONG, SHORT])
    assert tokens.shape[1] > pipe.tokenizer.model_max_length
    assert torch.equal(tokens, encode_prompts(pipe, [LONG, SHORT], ["", ""]).prompt_embeds)
    assert not torch.equal(tokens[0], encode([LONG + " at last", SHORT])[0])


def test_the_first_window_does_not_depend_on_other_texts(tiny_model):
    _, encode = load_encoder(tiny_model)
    together = encode([SHORT, LONG])[:, : encode.window]
    torch.testing.assert_close(together[:1], encode([SHORT]), rtol=0, atol=1e-6)
    torch.testing.assert_close(together[1:], encode([LONG])[:, : encode.window], rtol=0, atol=1e-6)


def build_world_encoder() -> TextEncoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TextEncoder(build_tokenizer(2), CLIPTextModel(build_text_config(32, 1, edition=2)))


def test_words_are_the_states_after_the_start_in_their_order():
    encode = build_world_encoder()
    texts = ["a red fox is reading on the left", "a girl"]
    states = encode(texts)
    assert torch.equal(encode.encode_words(texts, 12), states[:, 1:13])
    found = encode.encode_words(texts, 12, ["a", "the", "is", "on"])
    content, rest = [2, 3, 5, 8], [9, 10, 11, 12, 13, 14, 15, 16]  # red fox reading left, and what follows the caption
    assert torch.equal(found[0], states[0, content + rest])
    assert torch.equal(found[1], states[1, [2, *range(3, 14)]])


def test_skipped_words_come_last_where_nothing_else_is_left():
    encode = build_world_encoder()
    states = encode(["the fox"])
    found = encode.encode_words(["the fox"], encode.window - 1, ["the"])
    assert torch.equal(found[0], states[0, [*range(2, encode.window), 1]])


@pytest.mark.parametrize("word", ["unicorn", "a girl", ""])
def test_a_skipped_word_that_is_no_token_is_refused(word):
    with pytest.raises(UserError, match=rf"recipe\.text_skipped names '{word}'"):
        build_world_encoder().encode_words(["a girl"], 4, [word])
