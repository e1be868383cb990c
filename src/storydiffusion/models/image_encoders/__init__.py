"""The frozen image encoder E of the semantic motion predictor (arXiv 2405.01434, section 3.2), a registry.

A source is `NAME://…` or the folder of a transformers model, whose config.json names its `model_type`:

    open_clip://ViT-H-14/laion2b_s32b_b79k    the image tower of an open_clip model
    folder of a CLIPModel                     `clip`, or `clip_vision_model` as IP-Adapter's image_encoder/
    folder of a ConvolutionalClip             `convolutional_clip`
    folder of a Dinov2Model                   `dinov2`
    folder of a SiglipModel                   `siglip`, or `siglip_vision_model`

Another one takes one file that registers a loader, as dinov2.py does, and an import of that file.
"""

from storydiffusion.models.image_encoders.base import ImageEncoder, Kind, centre_square, flatten_tokens
from storydiffusion.models.image_encoders.clip import ClipImageEncoder, load_clip
from storydiffusion.models.image_encoders.dinov2 import load_dinov2
from storydiffusion.models.image_encoders.open_clip import OpenClipImageEncoder, load_open_clip, split_open_clip_source
from storydiffusion.models.image_encoders.registry import IMAGE_ENCODERS, load_image_encoder, register_image_encoder
from storydiffusion.models.image_encoders.siglip import load_siglip
from storydiffusion.models.image_encoders.transformers_folder import read_normalization

__all__ = [
    "IMAGE_ENCODERS",
    "ClipImageEncoder",
    "ImageEncoder",
    "Kind",
    "OpenClipImageEncoder",
    "centre_square",
    "flatten_tokens",
    "load_clip",
    "load_dinov2",
    "load_image_encoder",
    "load_open_clip",
    "load_siglip",
    "read_normalization",
    "register_image_encoder",
    "split_open_clip_source",
]
