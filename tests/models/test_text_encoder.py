"""The text tokens of the video model: those of the pictures' pipeline, at any length of the text."""

import torch
from diffusers import StableDiffusionPipeline

from storydiffusion.models.prompt_encoding import encode_prompts
from storydiffusion.models.text_encoder import TextEncoder

SHORT, LONG = "a cat", " ".join(["a cat sits in the park and reads a book"] * 30)


def encoder_of(folder) -> tuple[StableDiffusionPipeline, TextEncoder]:
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    return pipe, TextEncoder(pipe.tokenizer, pipe.text_encoder)


def test_a_short_text_is_read_as_the_tokenizer_alone_would(tiny_model):
    pipe, encode = encoder_of(tiny_model)
    ids = pipe.tokenizer([SHORT, ""], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        assert torch.equal(encode([SHORT, ""]), pipe.text_encoder(ids).last_hidden_state)


def test_nothing_of_a_long_text_is_lost(tiny_model):
    pipe, encode = encoder_of(tiny_model)
    told = encode([LONG, SHORT])
    assert told.shape[1] > pipe.tokenizer.model_max_length
    assert torch.equal(told, encode_prompts(pipe, [LONG, SHORT], ["", ""]).prompt_embeds)
    assert not torch.equal(told[0], encode([LONG + " at last", SHORT])[0])


def test_the_first_window_is_the_same_whatever_stands_beside_it(tiny_model):
    _, encode = encoder_of(tiny_model)
    together = encode([SHORT, LONG])[:, : encode.window]
    torch.testing.assert_close(together[:1], encode([SHORT]), rtol=0, atol=1e-6)
    torch.testing.assert_close(together[1:], encode([LONG])[:, : encode.window], rtol=0, atol=1e-6)
