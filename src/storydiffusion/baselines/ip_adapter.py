"""IP-Adapter (2308.06721), a baseline of the paper's table 1: cross-attention also reads a reference image.

The adapter's attention, its projection and its image encoder are diffusers'. A diffusers pipeline takes one image for
the whole batch; here each panel has a reference image of its own, and a panel without a character gets the embedding
that guidance uses for "no image".
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
    """Install the adapter in a pipeline for good: every call then needs the arguments of `conditions`.

    Args:
        pipe: StableDiffusionPipeline, its XL variant, or another with diffusers' `load_ip_adapter`.
        weights: `image_proj` and `ip_adapter`, each name → tensor, as in the authors' files.
        image_encoder: the CLIPVisionModelWithProjection that the adapter was trained with.
        scale: of the attention to the image; 0 gives the plain pipeline's result, bit for bit.

    Raises:
        UserError: weights made for another U-Net or another image encoder.
    """

    def __init__(
        self, pipe: Any, weights: Mapping[str, Mapping[str, Tensor]], image_encoder: Any, scale: float
    ) -> None:
        self.pipe = pipe
        layers = sum(name.endswith("attn2.processor") for name in pipe.unet.attn_processors)
        if len(weights["ip_adapter"]) != 2 * layers:
            raise UserError(
                f"it has {len(weights['ip_adapter'])} attention weights, but this U-Net needs {2 * layers}: choose an "
                "adapter made for it"
            )
        pipe.register_modules(image_encoder=image_encoder)
        try:
            pipe.load_ip_adapter({**weights}, subfolder="", weight_name="", low_cpu_mem_usage=False)
            self._check_tokens()
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"it was made for another U-Net or another image encoder ({first_line(error)}): choose a matching pair"
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
        """Return text and the first reference image of each panel; see `conditioning.Baseline`."""
        text = text_conditions(self.pipe, prompts, negative_prompts)
        embeddings = self._embeddings(references, is_guided=guidance_scale > 1)
        return Conditions({**text.arguments, "ip_adapter_image_embeds": [embeddings]})

    @torch.no_grad()
    def _embeddings(self, references: Sequence[CharacterReference | None], is_guided: bool) -> Tensor:
        """Return embeddings (B, 1, …) of the image encoder; with guidance those of no image first, (2B, 1, …)."""
        nothing = Image.new("RGB", (64, 64))  # for a panel without a character; its embedding is not used
        images = [nothing if reference is None else reference.images[0] for reference in references]
        device = self.pipe._execution_device
        shown, nothing_shown = self.pipe.encode_image(images, device, 1, self._reads_hidden)
        absent = torch.tensor([reference is None for reference in references], device=shown.device)
        shown = torch.where(absent.view(-1, *[1] * (shown.ndim - 1)), nothing_shown, shown)[:, None]
        return torch.cat([nothing_shown[:, None], shown]) if is_guided else shown

    @property
    def _projection(self) -> Any:
        return self.pipe.unet.encoder_hid_proj.image_projection_layers[0]

    @property
    def _reads_hidden(self) -> bool:
        """Whether the adapter reads the image encoder's hidden states (the plus models) or its pooled embedding."""
        return not isinstance(self._projection, ImageProjection)

    def _check_tokens(self) -> None:
        """Check both widths of the projection, which diffusers does not.

        Raises:
            ValueError: tokens of another width than the U-Net reads.
        """
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
    """Replace the pipeline's method, which repeats embeddings for every panel of the batch; here each has its own."""
    if embeddings is None:
        return original(image, embeddings, device, *others)
    return [each.to(device) for each in embeddings]
