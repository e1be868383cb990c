"""Add a ControlNet to a loaded text-to-image pipeline."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from storydiffusion.errors import UserError
from storydiffusion.loaders.text_to_image import load_network

if TYPE_CHECKING:
    import torch

WIDTHS = ("block_out_channels", "cross_attention_dim")


def add_controlnet(pipe: Any, folder: Path, dtype: "torch.dtype") -> Any:
    """Return the ControlNet variant of a pipeline, around the same parts.

    Raises:
        UserError: weights that are missing, damaged, or made for another U-Net.
    """
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.pipelines.controlnet.pipeline_controlnet import StableDiffusionControlNetPipeline
    from diffusers.pipelines.controlnet.pipeline_controlnet_sd_xl import StableDiffusionXLControlNetPipeline

    network = load_network(ControlNetModel, folder, ".", dtype)
    for name in WIDTHS:
        found, expected = network.config[name], pipe.unet.config[name]
        if found != expected:
            raise UserError(
                f"model.controlnet={folder} has {name} {found}, but the U-Net expects {expected}: choose a ControlNet "
                "that was trained with it"
            )
    parts = {**pipe.components, "controlnet": network}
    if hasattr(pipe, "text_encoder_2"):
        is_zero = pipe.config.force_zeros_for_empty_prompt
        return StableDiffusionXLControlNetPipeline(**parts, force_zeros_for_empty_prompt=is_zero)
    return StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
