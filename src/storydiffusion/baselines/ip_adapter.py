"""IP-Adapter (2308.06721), a baseline of the paper's table 1: each panel's cross-attention also reads its reference.

All of it is diffusers': the adapter's attention, its projection and the image encoder that it reads. But a pipeline
takes one image for the whole batch; here each panel has the image of its own reference, and one that shows nobody has
what guidance takes for no image.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from diffusers.models.embeddings import ImageProjection
from PIL import Image
from torch import Tensor

from storydiffusion.errors import UserError, first_line
from storydiffusion.pipelines.conditioning import CharacterReference, Conditions, text_conditions


class IPAdapter:
    """Puts the adapter into a pipeline, where it stays: every call then needs the arguments of `conditions`.

    Args:
        pipe: StableDiffusionPipeline, its XL kin, or another with diffusers' `load_ip_adapter`.
        weights: `image_proj` and `ip_adapter`, each name → tensor, as in the authors' files.
        image_encoder: the CLIPVisionModelWithProjection that the adapter was trained with.
        scale: of the attention to the image; 0 leaves the pipeline as it was, to the bit.

    Raises:
        UserError: weights that were made for another U-Net or another image encoder.
    """

    def __init__(
        self, pipe: Any, weights: Mapping[str, Mapping[str, Tensor]], image_encoder: Any, scale: float
    ) -> None:
        self.pipe = pipe
        layers = sum(name.endswith("attn2.processor") for name in pipe.unet.attn_processors)
        if len(weights["ip_adapter"]) != 2 * layers:
            raise UserError(
                f"it has {len(weights['ip_adapter'])} weights of attention, this U-Net wants {2 * layers}: take one "
                "made for it"
            )
        pipe.register_modules(image_encoder=image_encoder)
        try:
            pipe.load_ip_adapter({**weights}, subfolder="", weight_name="", low_cpu_mem_usage=False)
            self._check_tokens()
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"it was made for another U-Net or another image encoder ({first_line(error)}): take those that go "
                "together"
            ) from error
        pipe.set_ip_adapter_scale(scale)
        pipe.prepare_ip_adapter_image_embeds = partial(_one_for_each, pipe.prepare_ip_adapter_image_embeds)

    def conditions(
        self,
        prompts: Sequence[str],
        negative_prompts: Sequence[str],
        references: Sequence[CharacterReference | None],
        steps: int,
        guidance_scale: float,
    ) -> Conditions:
        """Text and, of each panel, the first image of its reference; see `conditions.Baseline`."""
        text = text_conditions(self.pipe, prompts, negative_prompts)
        embeddings = self._embeddings(references, is_guided=guidance_scale > 1)
        return Conditions({**text.arguments, "ip_adapter_image_embeds": [embeddings]})

    @torch.no_grad()
    def _embeddings(self, references: Sequence[CharacterReference | None], is_guided: bool) -> Tensor:
        """(B, 1, …) of the image encoder; with guidance those of no image before them, (2B, 1, …)."""
        nothing = Image.new("RGB", (64, 64))  # of a panel that shows nobody; its embedding is not used
        images = [nothing if reference is None else reference.images[0] for reference in references]
        device = self.pipe._execution_device
        shown, nobody = self.pipe.encode_image(images, device, 1, self._reads_hidden)
        absent = torch.tensor([reference is None for reference in references], device=shown.device)
        shown = torch.where(absent.view(-1, *[1] * (shown.ndim - 1)), nobody, shown)[:, None]
        return torch.cat([nobody[:, None], shown]) if is_guided else shown

    @property
    def _projection(self) -> Any:
        return self.pipe.unet.encoder_hid_proj.image_projection_layers[0]

    @property
    def _reads_hidden(self) -> bool:
        """Whether it reads the image encoder's hidden states (the plus models) or its one embedding."""
        return not isinstance(self._projection, ImageProjection)

    def _check_tokens(self) -> None:
        """diffusers compares neither end of the projection with what stands there."""
        encoder, unet = self.pipe.image_encoder.config, self.pipe.unet
        shape = (1, 2, encoder.hidden_size) if self._reads_hidden else (1, encoder.projection_dim)
        with torch.no_grad():
            tokens = self._projection(torch.zeros(shape, dtype=unet.dtype, device=unet.device))
        if tokens.shape[-1] != unet.config.cross_attention_dim:
            raise ValueError(
                f"its tokens are {tokens.shape[-1]} wide, the U-Net reads {unet.config.cross_attention_dim}"
            )


def _one_for_each(
    original: Callable[..., list[Tensor]], image: Any, embeddings: list[Tensor] | None, device: Any, *others: Any
) -> list[Tensor]:
    """Stands in for the pipeline's method of preparing: that repeats embeddings for every panel of the batch."""
    if embeddings is None:
        return original(image, embeddings, device, *others)
    return [each.to(device) for each in embeddings]
