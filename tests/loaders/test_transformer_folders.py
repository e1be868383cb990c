"""Folders of FLUX.1 and Stable Diffusion 3 with CLIP and T5, at tiny size and random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.models.prompt_encoding import find_character_tokens
from storydiffusion.pipelines.calls import draw_noise
from storydiffusion.pipelines.story import StoryPipeline
from storydiffusion.story import load_story
from tests.conftest import VOCABULARY, write_tokenizer

STORY = """
characters: {Bo: a red cat}
panels: [{prompt: "[Bo] on the beach", caption: One.}, {prompt: "[Bo] runs in the park", caption: Two.}]
"""
SMALL: dict[str, Any] = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np"}
HEADS: dict[str, Any] = {"attention_head_dim": 16, "num_attention_heads": 2}


def clip_encoder(kind: Any, tokenizer: CLIPTokenizer) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, projection_dim=16,
            num_attention_heads=2, max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        )
    )  # fmt: skip


def t5_parts() -> tuple[T5EncoderModel, T5Tokenizer]:
    words = [(f"▁{word}", -1.0) for word in VOCABULARY]
    tokenizer = T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *words], extra_ids=0)
    tokenizer.model_max_length = 512
    config = T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    return T5EncoderModel(config), tokenizer


def shared_parts(folder: Path) -> tuple[CLIPTokenizer, dict[str, Any]]:
    torch.manual_seed(0)
    write_tokenizer(folder / "words")
    settings: dict[str, Any] = {"norm_num_groups": 2, "latent_channels": 4, "shift_factor": 0.1}
    settings |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    settings |= {"block_out_channels": (4, 4, 8, 8)}
    vae = AutoencoderKL(**settings)
    return CLIPTokenizer.from_pretrained(folder / "words"), {"vae": vae}


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux")
    tokenizer, shared = shared_parts(folder)
    encoder, t5_tokenizer = t5_parts()
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, joint_attention_dim=32, pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8), guidance_embeds=True, **HEADS,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    FluxPipeline(
        scheduler=scheduler, transformer=transformer, text_encoder=clip_encoder(CLIPTextModel, tokenizer),
        tokenizer=tokenizer, text_encoder_2=encoder, tokenizer_2=t5_tokenizer, **shared,
    ).save_pretrained(folder / "model")  # fmt: skip
    return folder / "model"


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd3")
    tokenizer, shared = shared_parts(folder)
    encoder, t5_tokenizer = t5_parts()
    transformer = SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=1, joint_attention_dim=32, pooled_projection_dim=32,
        caption_projection_dim=32, pos_embed_max_size=8, **HEADS,
    )  # fmt: skip
    first, second = (clip_encoder(CLIPTextModelWithProjection, tokenizer) for _ in range(2))
    StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), transformer=transformer, text_encoder=first,
        tokenizer=tokenizer, text_encoder_2=second, tokenizer_2=tokenizer, text_encoder_3=encoder,
        tokenizer_3=t5_tokenizer, **shared,
    ).save_pretrained(folder / "model")  # fmt: skip
    return folder / "model"


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_a_story_is_what_the_pipeline_makes_of_its_prompts(family, request, tmp_path):
    pipe = StoryPipeline.from_pretrained(request.getfixturevalue(family), device="cpu", dtype="float32")
    file = tmp_path / "story.yaml"
    file.write_text(STORY)
    story = load_story(file)
    shared = pipe(story, guidance_scale=3.0, **SMALL)
    ours = pipe(story, csa=ConsistentSelfAttentionConfig(variant="off"), guidance_scale=3.0, **SMALL)
    noise = draw_noise(pipe.pipe, [torch.Generator().manual_seed(seed) for seed in ours.seeds], 64, 64)
    plain = pipe.pipe(ours.prompts, latents=noise, guidance_scale=3.0, **SMALL).images
    assert plain.shape == (2, 64, 64, 3)
    assert np.array_equal(ours.images, plain)
    assert np.abs(shared.images - plain).max() > 1e-4


@pytest.mark.parametrize(("family", "spelled"), [("flux", ["▁red", "▁cat"]), ("sd3", ["red</w>", "cat</w>"])])
def test_a_story_shares_by_region_with_the_words_that_its_text_encoder_reads(family, spelled, request, tmp_path):
    pipe = StoryPipeline.from_pretrained(request.getfixturevalue(family), device="cpu", dtype="float32")
    file = tmp_path / "story.yaml"
    file.write_text(STORY)
    tokenizer = pipe.pipe.tokenizer if family == "sd3" else pipe.pipe.tokenizer_2
    prompt = "park runs red cat"
    (tokens,) = find_character_tokens(pipe.pipe, prompt, {"Bo": "red cat"}).values()
    found = tokenizer.convert_ids_to_tokens(tokenizer(prompt).input_ids)
    assert [found[token] for token in tokens] == spelled
    regions = ConsistentSelfAttentionConfig(regions="characters", rate=1.0)
    made = pipe(load_story(file), csa=regions, guidance_scale=3.0, **SMALL).images
    whole = pipe(load_story(file), csa=ConsistentSelfAttentionConfig(rate=1.0), guidance_scale=3.0, **SMALL).images
    assert np.abs(made - whole).max() > 1e-5


def test_distilled_flux_warns_of_negative_prompts(flux, tmp_path):
    file = tmp_path / "story.yaml"
    file.write_text(STORY + "negative: a hat")
    with pytest.warns(UserWarning, match="uses no negative prompts"):
        StoryPipeline.from_pretrained(flux, device="cpu", dtype="float32")(load_story(file), **SMALL)
