"""Text tokens of the video model: those of the image pipeline, at any length of the text."""

import torch
from diffusers import StableDiffusionPipeline

from storydiffusion.models.prompt_encoding import encode_prompts
from storydiffusion.models.text_encoder import TextEncoder

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
