"""DINOv2 (arXiv 2304.07193) from a transformers folder; base: (B, 257, 768) and (B, 1, 768), its class token."""

from storydiffusion.models.image_encoders.base import ImageEncoder
from storydiffusion.models.image_encoders.registry import register_image_encoder
from storydiffusion.models.image_encoders.transformers_folder import load_folder, read_crop_size, read_normalization
from storydiffusion.models.image_encoders.vision_transformer import VisionTransformerEncoder

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@register_image_encoder("dinov2")
def load_dinov2(folder: str) -> ImageEncoder:
    """Load a Dinov2Model, which reads squares of preprocessor_config.json's crop_size (224), else its training size."""
    from transformers import Dinov2Model

    model = load_folder(Dinov2Model, folder)
    size = read_crop_size(folder, model.config.image_size)
    return VisionTransformerEncoder(model, size, *read_normalization(folder, IMAGENET))
