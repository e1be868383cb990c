"""The classes of diffusers pipelines that generate stories, each with the networks that it consists of."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class PipelineFamily:
    """What loading must know of a pipeline's class.

    Attributes:
        networks: part → names of the classes of diffusers or transformers that it may have.
        defaults: file of conf/model.
        miniature: the same for a folder of the miniature; None: there is no such miniature.
    """

    networks: Mapping[str, tuple[str, ...]]
    defaults: str
    miniature: str | None = None

    @property
    def denoiser(self) -> str:
        """The part that denoises, `unet` or `transformer`."""
        return "unet" if "unet" in self.networks else "transformer"


_UNET, _KL = ("UNet2DConditionModel",), ("AutoencoderKL",)
_CLIP, _CLIP_PROJECTION, _T5 = ("CLIPTextModel",), ("CLIPTextModelWithProjection",), ("T5EncoderModel",)
_FLUX2: Mapping[str, tuple[str, ...]] = {"transformer": ("Flux2Transformer2DModel",), "vae": ("AutoencoderKLFlux2",)}

FAMILIES: dict[str, PipelineFamily] = {
    "StableDiffusionPipeline": PipelineFamily(
        {"unet": _UNET, "vae": _KL, "text_encoder": _CLIP}, "sd15_animatediff", "miniature"
    ),
    "StableDiffusionXLPipeline": PipelineFamily(
        {"unet": _UNET, "vae": _KL, "text_encoder": _CLIP, "text_encoder_2": _CLIP_PROJECTION}, "sdxl"
    ),
    "FluxPipeline": PipelineFamily(
        {
            "transformer": ("FluxTransformer2DModel",),
            "vae": _KL,
            "text_encoder": _CLIP,
            "text_encoder_2": (*_T5, *_CLIP),  # the miniature has CLIP in both places
        },
        "flux",
        "miniature_dit",
    ),
    "Flux2KleinPipeline": PipelineFamily({**_FLUX2, "text_encoder": ("Qwen3ForCausalLM",)}, "flux2"),
    "Flux2Pipeline": PipelineFamily({**_FLUX2, "text_encoder": ("Mistral3ForConditionalGeneration",)}, "flux2_dev"),
    "QwenImagePipeline": PipelineFamily(
        {
            "transformer": ("QwenImageTransformer2DModel",),
            "vae": ("AutoencoderKLQwenImage",),
            "text_encoder": ("Qwen2_5_VLForConditionalGeneration",),
        },
        "qwen",
    ),
    "StableDiffusion3Pipeline": PipelineFamily(
        {
            "transformer": ("SD3Transformer2DModel",),
            "vae": _KL,
            "text_encoder": _CLIP_PROJECTION,
            "text_encoder_2": _CLIP_PROJECTION,
            "text_encoder_3": _T5,
        },
        "sd3",
    ),
}
"""name of a pipeline's class → its family"""
