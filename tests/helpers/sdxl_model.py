"""A tiny SDXL model of random weights, with SDXL's blocks and two text encoders of different widths."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

WIDTHS = {"text_encoder": 16, "text_encoder_2": 24}
POOLED = 20  # channels of the second text encoder's projection


def build_tiny_sdxl(tiny_model: Path, folder: Path) -> Path:
    """Save the folder with the VAE, tokenizer and first text encoder of the tiny model."""
    parts = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        second = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(parts.tokenizer), hidden_size=WIDTHS["text_encoder_2"], intermediate_size=48,
                num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=16, projection_dim=POOLED,
                bos_token_id=0, eos_token_id=1, pad_token_id=1,
            )
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16, 16), norm_num_groups=4, layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 3), attention_head_dim=(1, 2, 2), use_linear_projection=True,
            cross_attention_dim=sum(WIDTHS.values()), addition_embed_type="text_time", addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + POOLED,
        )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=parts.vae, text_encoder=parts.text_encoder, text_encoder_2=second, tokenizer=parts.tokenizer,
        tokenizer_2=parts.tokenizer, unet=unet, scheduler=parts.scheduler, add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder
