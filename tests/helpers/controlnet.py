"""A ControlNet of random weights for a tiny model."""

from pathlib import Path

import torch
from diffusers import ControlNetModel, UNet2DConditionModel


def build_tiny_controlnet(model: Path, folder: Path) -> Path:
    """Save a ControlNet for the U-Net of a tiny model, whose residuals are not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
        network = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 8, 8))
        for parameter in network.parameters():
            if parameter.abs().max() == 0:
                torch.nn.init.normal_(parameter, std=0.1)
        network.save_pretrained(folder)
    return folder
