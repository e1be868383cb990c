"""CLIP's image tower, a vision transformer or a ModifiedResNet, from a transformers folder such as the miniature's."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from storydiffusion.errors import UserError
from storydiffusion.models.image_encoders.base import ImageEncoder, Kind
from storydiffusion.models.image_encoders.registry import register_image_encoder
from storydiffusion.models.image_encoders.transformers_folder import (
    HALF,
    load_folder,
    read_model_type,
    read_normalization,
)

CONVOLUTIONAL = "convolutional_clip"


class ClipImageEncoder(ImageEncoder):
    """The image tower of a transformers CLIPModel, such as the miniature's: (B, 65, 192) and (B, 1, 128).

    That of a ConvolutionalClip has no class token: (B, 16, 512) and (B, 1, 128) for the miniature's.
    """

    def __init__(self, clip: Any, mean: Sequence[float] = HALF, std: Sequence[float] = HALF) -> None:
        """Take the tower of a CLIPModel or CLIPVisionModelWithProjection.

        The default mean and std map pixels to [−1, 1], as the miniature's encoder was trained.
        """
        config = getattr(clip.config, "vision_config", clip.config)
        widths: dict[Kind, int] = {"hidden": config.hidden_size, "pooled": clip.config.projection_dim}
        tower = nn.ModuleDict({"vision_model": clip.vision_model, "projection": clip.visual_projection})
        super().__init__(tower, config.image_size, widths, mean, std)

    @classmethod
    def load(cls, folder: str | Path) -> "ClipImageEncoder":
        """Load the image tower of a folder that `save_pretrained` of a CLIP wrote; see `load_clip`."""
        return cls(load_clip(folder), *read_normalization(folder))

    def hidden(self, pixels: Tensor) -> Tensor:
        return self.tower["vision_model"](pixel_values=pixels, output_hidden_states=True).hidden_states[-2]

    def pooled(self, pixels: Tensor) -> Tensor:
        return self.tower["projection"](self.tower["vision_model"](pixel_values=pixels).pooler_output)


def load_clip(folder: str | Path) -> Any:
    """Load the whole CLIPModel or ConvolutionalClip of a folder, with its text tower, in float32.

    Raises:
        UserError: for a folder that holds another model or no complete one.
    """
    from transformers import CLIPModel

    kind = read_model_type(folder)
    if kind == CONVOLUTIONAL:
        from storydiffusion.models.convolutional_clip import ConvolutionalClip

        return load_folder(ConvolutionalClip, folder)
    if kind != "clip":
        raise UserError(f"{folder} holds a model of type {kind}: give the folder of a CLIPModel.")
    return load_folder(CLIPModel, folder)


@register_image_encoder("clip", CONVOLUTIONAL)
def load_clip_image_encoder(folder: str) -> ImageEncoder:
    return ClipImageEncoder.load(folder)


@register_image_encoder("clip_vision_model")
def load_clip_vision_model(folder: str) -> ImageEncoder:
    """Load a CLIPVisionModelWithProjection, as IP-Adapter's image_encoder/."""
    from transformers import CLIPVisionModelWithProjection

    return ClipImageEncoder(load_folder(CLIPVisionModelWithProjection, folder), *read_normalization(folder))
