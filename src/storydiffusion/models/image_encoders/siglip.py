"""SigLIP (arXiv 2303.15343) from a transformers folder; base: (B, 196, 768) without a class token, and (B, 1, 768)."""

from storydiffusion.errors import UserError
from storydiffusion.models.image_encoders.base import ImageEncoder
from storydiffusion.models.image_encoders.registry import register_image_encoder
from storydiffusion.models.image_encoders.transformers_folder import load_folder, read_normalization
from storydiffusion.models.image_encoders.vision_transformer import VisionTransformerEncoder


@register_image_encoder("siglip", "siglip_vision_model")
def load_siglip(folder: str) -> ImageEncoder:
    """Load the image tower of a SiglipModel or SiglipVisionModel.

    Raises:
        UserError: for a model without its pooling head.
    """
    from transformers import SiglipVisionModel

    model = load_folder(SiglipVisionModel, folder)
    if not model.use_head:
        raise UserError(f"the SigLIP model in {folder} has no pooling head: take one with vision_use_head true.")
    return VisionTransformerEncoder(model, model.config.image_size, *read_normalization(folder))
