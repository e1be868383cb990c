"""All parts of a video model at tiny size, with random weights that move things."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from transformers import CLIPConfig, CLIPModel

from storydiffusion.models.image_encoders import ClipImageEncoder
from storydiffusion.models.semantic_motion_predictor import SemanticMotionPredictor
from storydiffusion.models.video_model import VideoModel
from storydiffusion.models.video_unet import SemanticVideoUNet
from tests.models.test_video_unet import WIDTH, random, tiny_adapter, tiny_unet


def tiny_video_model() -> VideoModel:
    """For pictures of even sides, clips of 2 to 6 frames."""
    video_unet = SemanticVideoUNet.from_parts(tiny_unet(), tiny_adapter())
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    return VideoModel(video_unet, tiny_vae(), encode_text, scheduler, tiny_predictor(), tiny_image_encoder())


def encode_text(texts: Sequence[str]) -> torch.Tensor:
    """Something else for every text: what a text encoder is to a sampler."""
    return torch.stack([random(5, WIDTH, seed=sum(text.encode())) for text in texts])


def tiny_image_encoder() -> ClipImageEncoder:
    torch.manual_seed(3)
    vision = {
        "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 8,
    }  # fmt: skip
    text = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return ClipImageEncoder(CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)))


def tiny_predictor(**changes) -> SemanticMotionPredictor:
    torch.manual_seed(4)
    sizes = {"image_width": 8, "width": 12, "layers": 1, "heads": 2, "head_width": 4, "context_width": WIDTH}
    return SemanticMotionPredictor(**{**sizes, "tokens_per_frame": 2, "resampler_layers": 1, **changes}).eval()


def tiny_vae() -> AutoencoderKL:
    torch.manual_seed(5)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(
        block_out_channels=(4, 8), norm_num_groups=2, layers_per_block=1, latent_channels=4, **blocks
    ).eval()
