"""Vision transformers of the transformers library that embed only images, not into a space shared with text."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from storydiffusion.models.image_encoders.base import ImageEncoder


class VisionTransformerEncoder(ImageEncoder):
    """A transformers model of `pixel_values` with hidden_states and pooler_output, both of its hidden size."""

    def __init__(self, model: Any, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        width = model.config.hidden_size
        super().__init__(model, size, {"hidden": width, "pooled": width}, mean, std)

    def hidden(self, pixels: Tensor) -> Tensor:
        return self.tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]

    def pooled(self, pixels: Tensor) -> Tensor:
        return self.tower(pixel_values=pixels).pooler_output
