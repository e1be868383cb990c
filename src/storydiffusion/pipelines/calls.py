"""What the families of diffusers pipelines take in a call: prompts, the starting noise, the scale of guidance.

FLUX.1 and Qwen-Image pack 2 × 2 latents into a token before their denoiser sees them; FLUX.2 takes them as channels.
Guidance is a doubled batch, or distilled into the denoiser, or `true_cfg_scale` of a second call.

Shapes: B panels, C channels of a latent, h × w latents (image size / the VAE's factor).
"""

import inspect
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from storydiffusion.attention.backbones import find_denoiser
from storydiffusion.errors import UserError
from storydiffusion.models.prompt_encoding import encode_prompts

PACKED = ("FluxPipeline", "FluxKontextPipeline", "QwenImagePipeline")
"""their call takes latents as tokens (B, h/2 · w/2, 4 C)"""
PATCHED = ("Flux2Pipeline", "Flux2KleinPipeline")
"""their call takes latents as (B, 4 C, h/2, w/2)"""


def is_unet(pipe: Any) -> bool:
    """Return whether the pipeline's denoiser is a U-Net."""
    return getattr(pipe, "unet", None) is not None


def draw_noise(pipe: Any, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
    """Draw standard normal noise on the CPU, one image with each generator, as the pipeline takes its latents.

    Raises:
        UserError: a size in pixels that the pipeline would round.
    """
    denoiser: Any = find_denoiser(pipe)
    name, channels = type(pipe).__name__, denoiser.config.in_channels
    sides = (height // pipe.vae_scale_factor, width // pipe.vae_scale_factor)
    if name not in (*PACKED, *PATCHED):
        return draw_latents(generators, (channels, *sides))
    for key, pixels in (("height", height), ("width", width)):
        if pixels % (2 * pipe.vae_scale_factor):
            raise UserError(f"{key}={pixels}: give a multiple of {2 * pipe.vae_scale_factor}, as {name} needs")
    noise = draw_latents(generators, (channels // 4, *sides))
    tokens = pack(noise)
    if name in PACKED:
        return tokens
    return tokens.transpose(1, 2).unflatten(2, (sides[0] // 2, sides[1] // 2))


def find_grid(pipe: Any, height: int, width: int) -> tuple[int, int]:
    """Return height and width in tokens of the finest grid of an image: a U-Net's latents, or 2 × 2 of them each."""
    side = pipe.vae_scale_factor * (1 if is_unet(pipe) else 2)
    return height // side, width // side


def draw_latents(generators: Sequence[torch.Generator], shape: tuple[int, ...]) -> Tensor:
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def pack(latents: Tensor) -> Tensor:
    """(B, C, h, w) → (B, h/2 · w/2, 4 C): 2 × 2 latents make a token, row by row, as in FLUX."""
    patches = latents.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # B, C, h/2, 2, w/2, 2
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def build_text_arguments(
    pipe: Any, prompts: Sequence[str], negative_prompts: Sequence[str], least_windows: int = 1
) -> dict[str, Any]:
    """Return the arguments that give the pipeline one prompt and one negative prompt for each panel.

    A pipeline with a U-Net gets embeddings of prompts of any length, padded to at least `least_windows` windows. Others
    encode prompts themselves, up to the length that their text encoder takes. Warns of negative prompts that the
    pipeline does not take.
    """
    if is_unet(pipe):
        return {**encode_prompts(pipe, list(prompts), list(negative_prompts), least_windows).as_arguments()}
    arguments: dict[str, Any] = {"prompt": list(prompts)}
    if _takes(pipe, "negative_prompt") and not _is_distilled(pipe):
        arguments["negative_prompt"] = list(negative_prompts)
    elif any(negative_prompts):
        warnings.warn(f"{type(pipe).__name__} uses no negative prompts: they have no effect", stacklevel=2)
    longest = inspect.signature(pipe.__call__).parameters["max_sequence_length"].default
    own = getattr(getattr(pipe, "tokenizer_2", None), "model_max_length", longest)
    if _takes(pipe, "prompt_2") and not _takes(pipe, "prompt_3") and own < longest:
        arguments["max_sequence_length"] = own  # of the miniature
    return arguments


def spell_guidance(pipe: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return a call's arguments with `guidance_scale` under the name that this pipeline guides by."""
    if "guidance_scale" not in arguments or not _takes(pipe, "true_cfg_scale") or _is_distilled(pipe):
        return arguments
    rest = {name: value for name, value in arguments.items() if name != "guidance_scale"}
    return {**rest, "true_cfg_scale": arguments["guidance_scale"]}


def _takes(pipe: Any, argument: str) -> bool:
    return argument in inspect.signature(pipe.__call__).parameters


def _is_distilled(pipe: Any) -> bool:
    """Return whether the denoiser takes the scale of guidance itself."""
    denoiser: Any = find_denoiser(pipe)
    return bool(denoiser.config.get("guidance_embeds", False))
