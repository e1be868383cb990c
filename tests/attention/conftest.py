"""Tiny pipelines of the real diffusers classes at random weights: 32 × 32 images, 16 × 16 latents, grids 16 and 8."""

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

from storydiffusion.attention.backbones import BACKBONES
from storydiffusion.attention.token_samplers import TOKEN_SAMPLERS
from storydiffusion.attention.variants import VARIANTS

TEXT_WIDTH = 16
ATTENTION_SIZES = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}


def tiny_unet(**changes) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        **{**ATTENTION_SIZES, **changes},
    ).eval()


def tiny_tokenizer() -> CLIPTokenizer:
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    return CLIPTokenizer({word: number for number, word in enumerate(words)}, [], model_max_length=16)


def tiny_text_encoder(kind=CLIPTextModel):
    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=TEXT_WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return kind(config).eval()


def common_parts() -> dict:
    torch.manual_seed(2)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
    ).eval()
    return {
        "vae": vae,
        "text_encoder": tiny_text_encoder(),
        "tokenizer": tiny_tokenizer(),
        "scheduler": DDIMScheduler(),
    }


NO_SAFETY = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def stable_diffusion():
    return StableDiffusionPipeline(unet=tiny_unet(), **common_parts(), **NO_SAFETY)


def stable_diffusion_xl():
    unet = tiny_unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 8,
        cross_attention_dim=2 * TEXT_WIDTH,
    )
    second = {"text_encoder_2": tiny_text_encoder(CLIPTextModelWithProjection), "tokenizer_2": tiny_tokenizer()}
    return StableDiffusionXLPipeline(unet=unet, **common_parts(), **second, add_watermarker=False)


def controlnet():
    torch.manual_seed(3)
    control = ControlNetModel(
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        conditioning_embedding_out_channels=(4, 4),
        **ATTENTION_SIZES,
    ).eval()
    zeroed = [*control.controlnet_down_blocks, control.controlnet_mid_block, control.controlnet_cond_embedding.conv_out]
    for layer in zeroed:
        torch.nn.init.normal_(layer.weight, std=0.5)  # with zeros, as they start, the control would do nothing
    return StableDiffusionControlNetPipeline(unet=tiny_unet(), controlnet=control, **common_parts(), **NO_SAFETY)


def ip_adapter():
    pipe = stable_diffusion()
    torch.manual_seed(4)
    projection = {
        "proj.weight": torch.randn(4 * TEXT_WIDTH, 8),
        "proj.bias": torch.zeros(4 * TEXT_WIDTH),
        "norm.weight": torch.ones(TEXT_WIDTH),
        "norm.bias": torch.zeros(TEXT_WIDTH),
    }
    layers, number = {}, 1
    for name in pipe.unet.attn_processors:
        if name.endswith("attn2.processor"):
            width = pipe.unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
            layers[f"{number}.to_k_ip.weight"] = torch.randn(width, TEXT_WIDTH)
            layers[f"{number}.to_v_ip.weight"] = torch.randn(width, TEXT_WIDTH)
            number += 2
    pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": layers}])
    return pipe


PIPELINES = {
    "stable_diffusion": stable_diffusion,
    "stable_diffusion_xl": stable_diffusion_xl,
    "controlnet": controlnet,
    "ip_adapter": ip_adapter,
}


@pytest.fixture
def registries():
    """Forget what a test registers."""
    every = (VARIANTS, TOKEN_SAMPLERS, BACKBONES)
    before = [dict(registry) for registry in every]
    yield
    for registry, entries in zip(every, before, strict=True):
        registry.clear()
        registry.update(entries)


@pytest.fixture
def unet():
    return tiny_unet()


@pytest.fixture
def sd_pipe():
    pipe = stable_diffusion()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def exact_pipe(sd_pipe):
    return sd_pipe.to(torch.float64)


@pytest.fixture(params=PIPELINES)
def any_pipe(request):
    """A pipeline, and a function (panels, guided, variant) → the arguments it needs beside the prompt."""
    pipe = PIPELINES[request.param]()
    pipe.set_progress_bar_config(disable=True)

    def extra(panels: range, guided: bool, variant: int = 0) -> dict:
        generator = torch.Generator().manual_seed(variant)
        if request.param == "controlnet":
            return {"image": torch.rand(8, 3, 32, 32, generator=generator)[list(panels)]}
        if request.param == "ip_adapter":  # one reference image for the whole batch; guidance puts a zero before it
            embedding = torch.randn(1, 1, 8, generator=generator)
            return {"ip_adapter_image_embeds": [torch.cat([embedding * 0, embedding]) if guided else embedding]}
        return {}

    return pipe, extra
