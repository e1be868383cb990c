import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from storydiffusion.models.prompt_encoding import encode_prompts, token_windows, unknown_words

SHORT = ["a cat, on the beach.", "fox"]
LONG = "a cat runs on the beach, the red fox runs in the park, a girl in the blue hat. a book in a park, a cat."


@pytest.fixture(scope="module")
def sd(tiny_model):
    return StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)


@pytest.fixture(scope="module", params=[True, False], ids=["zero negatives", "encoded negatives"])
def sdxl(sd, request):
    torch.manual_seed(1)
    shape = {
        "vocab_size": len(sd.tokenizer), "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2,
        "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    }  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8,), norm_num_groups=4, layers_per_block=1, cross_attention_dim=40,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), attention_head_dim=2,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=AutoencoderKL(block_out_channels=(4,), norm_num_groups=2),
        text_encoder=CLIPTextModel(CLIPTextConfig(hidden_size=16, **shape)),
        text_encoder_2=CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=24, projection_dim=20, **shape)),
        tokenizer=sd.tokenizer,
        tokenizer_2=sd.tokenizer,
        unet=unet,
        scheduler=DDIMScheduler(),
        force_zeros_for_empty_prompt=request.param,
    )


def test_prompts_of_one_window_are_embedded_as_by_the_pipeline(sd):
    ours = encode_prompts(sd, SHORT, ["", "a hat"])
    with torch.no_grad():
        positive, negative = sd.encode_prompt(SHORT, "cpu", 1, True, ["", "a hat"])
    assert torch.equal(ours.prompt_embeds, positive)
    assert torch.equal(ours.negative_prompt_embeds, negative)
    assert set(ours.as_arguments()) == {"prompt_embeds", "negative_prompt_embeds"}


@pytest.mark.parametrize("negatives", [["", ""], ["a hat", "the red hat"]])
def test_sdxl_embeds_with_both_encoders_as_the_pipeline_does(sdxl, negatives):
    ours = encode_prompts(sdxl, SHORT, negatives)
    with torch.no_grad():
        theirs = sdxl.encode_prompt(SHORT, device="cpu", negative_prompt=negatives if any(negatives) else None)
    assert torch.equal(ours.prompt_embeds, theirs[0])
    assert torch.equal(ours.negative_prompt_embeds, theirs[1])
    assert ours.pooled_prompt_embeds is not None
    assert ours.negative_pooled_prompt_embeds is not None
    assert torch.equal(ours.pooled_prompt_embeds, theirs[2])
    assert torch.equal(ours.negative_pooled_prompt_embeds, theirs[3])


def test_no_token_of_a_long_prompt_is_dropped(sd):
    pieces = token_windows(sd.tokenizer, LONG)
    assert len(pieces) >= 3
    assert all(len(piece) <= sd.tokenizer.model_max_length - 2 for piece in pieces)
    assert [token for piece in pieces for token in piece] == sd.tokenizer(LONG, add_special_tokens=False).input_ids


def test_windows_are_cut_between_words(sd):
    text = "zebra " * 8  # five tokens a word, so that 14 tokens end within one
    pieces = token_windows(sd.tokenizer, text)
    assert all(sd.tokenizer.convert_ids_to_tokens(piece)[-1].endswith("</w>") for piece in pieces)


def test_a_word_longer_than_a_window_is_cut_inside(sd):
    assert [len(piece) for piece in token_windows(sd.tokenizer, "z" * 30)] == [14, 14, 2]


def test_a_long_prompt_is_the_concatenation_of_its_windows_and_others_are_padded_with_empty_ones(sd):
    first, second = "a cat runs on the beach, the red fox runs in the park", "the girl in the red hat."
    ours = encode_prompts(sd, [f"{first} {second}", "fox"], ["", ""])
    with torch.no_grad():
        pieces = [sd.encode_prompt(text, "cpu", 1, False)[0] for text in (first, second, "fox", "")]
    assert torch.allclose(ours.prompt_embeds[0], torch.cat(pieces[:2], 1)[0], atol=1e-6)
    assert torch.allclose(ours.prompt_embeds[1], torch.cat(pieces[2:], 1)[0], atol=1e-6)
    assert ours.negative_prompt_embeds.shape == ours.prompt_embeds.shape


def test_a_long_negative_prompt_lengthens_all(sd):
    ours = encode_prompts(sd, ["fox"], [LONG])
    assert ours.prompt_embeds.shape == ours.negative_prompt_embeds.shape
    assert ours.prompt_embeds.shape[1] >= 3 * sd.tokenizer.model_max_length


def test_the_pooled_embedding_is_that_of_the_first_window(sdxl):
    first = "a cat runs on the beach, the red fox runs in the park"
    long, short = (encode_prompts(sdxl, [text], [""]) for text in (f"{first} the girl in the red hat.", first))
    assert long.pooled_prompt_embeds is not None
    assert short.pooled_prompt_embeds is not None
    assert torch.allclose(long.pooled_prompt_embeds, short.pooled_prompt_embeds, atol=1e-6)


def test_unknown_words_are_named_once_without_their_punctuation(sd):
    assert unknown_words(sd.tokenizer, "a zebra, the cat; “wolf”: a zebra.") == ["zebra", "wolf"]
    assert unknown_words(sd.tokenizer, "a cat, on the beach.") == []
