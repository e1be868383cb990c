"""Tiny diffusion transformers of the real diffusers classes at random weights: grids of 4 × 6 tokens, 5 text tokens."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers import transformer_flux, transformer_flux2, transformer_qwenimage
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.models.transformers.transformer_qwenimage import QwenImageTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux_kontext import FluxKontextPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import StableDiffusion3Pipeline
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from torch import Tensor

HEIGHT, WIDTH, TOKENS, TEXT = 4, 6, 24, 5
SIZE: dict[str, Any] = {"attention_head_dim": 16, "num_attention_heads": 2}
NO_ENCODERS: dict[str, Any] = {"vae": None, "text_encoder": None, "tokenizer": None}
NO_SECOND_ENCODERS: dict[str, Any] = {"text_encoder_2": None, "tokenizer_2": None}


@dataclass
class Family:
    """A pipeline with what tests must know of it.

    Attributes:
        arguments: (panels, seed of the prompts) → the pipeline's arguments.
        negative: arguments that add true classifier-free guidance.
        module: diffusers' module whose kernel the transformer calls; None: torch's.
        first: place of the first image token in the joint sequence.
    """

    pipe: Any
    arguments: Callable[..., dict[str, Any]]
    negative: Callable[[list[int]], dict[str, Any]] | None = None
    module: Any = None
    first: int = TEXT

    def move(self, keys: Tensor, shift: list[int] | None) -> Tensor:
        """Turn keys (N, H, D) by the family's own rotary embedding at position `shift`."""
        if shift is None:
            return keys
        embedding = self.pipe.transformer.pos_embed
        if self.module is transformer_qwenimage:
            axes = zip(shift, embedding.axes_dim, strict=True)
            table = torch.cat([embedding.rope_params(torch.tensor([s]), d) for s, d in axes], dim=1)
            return transformer_qwenimage.apply_rotary_emb_qwen(keys[None], table.expand(len(keys), -1), False)[0]
        table: Any = tuple(x.expand(len(keys), -1) for x in embedding(torch.tensor([shift])))
        turned: Any = apply_rotary_emb(keys[None], table, sequence_dim=1)
        return turned[0]


def rows(panels: list[int], *shape: int, seed: int = 0) -> Tensor:
    """Random numbers of each panel, the same at any place in a batch."""
    every = torch.randn(8, *shape, generator=torch.Generator().manual_seed(seed))
    return every[panels]


def embeddings(panels: list[int], width: int, seed: int, pooled: str = "", prefix: str = "") -> dict[str, Tensor]:
    found = {f"{prefix}prompt_embeds": rows(panels, TEXT, width, seed=seed)}
    return found | ({f"{prefix}{pooled}": rows(panels, 32, seed=seed + 1)} if pooled else {})


def common(steps: int = 2) -> dict[str, Any]:
    return {
        "height": 16 * HEIGHT,
        "width": 16 * WIDTH,
        "num_inference_steps": steps,
        "output_type": "latent",
    }


def finish(pipe: Any) -> Any:
    pipe.transformer.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flux(pipeline: Any = FluxPipeline, layers: int = 1) -> Family:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=layers,
        num_single_layers=1,
        joint_attention_dim=16,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        **SIZE,
    )
    pipe = pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), transformer=transformer, **NO_ENCODERS, **NO_SECOND_ENCODERS
    )

    def arguments(panels: list[int], seed: int = 0) -> dict[str, Any]:
        text = embeddings(panels, 16, seed, "pooled_prompt_embeds")
        return {**common(), **text, "latents": rows(panels, TOKENS, 64, seed=9)}

    def negative(panels: list[int]) -> dict[str, Any]:
        return {**embeddings(panels, 16, 20, "pooled_prompt_embeds", "negative_"), "true_cfg_scale": 3.0}

    return Family(finish(pipe), arguments, negative, transformer_flux)


def kontext() -> Family:
    family = flux(FluxKontextPipeline)
    plain = family.arguments

    def arguments(panels: list[int], seed: int = 0) -> dict[str, Any]:
        image = rows(panels, 16, 4, 4, seed=7)  # latents of the reference images
        return {**plain(panels, seed), "image": image, "max_area": 256 * HEIGHT * WIDTH, "_auto_resize": False}

    family.arguments = arguments
    return family


def flux2(pipeline: Any = Flux2Pipeline) -> Family:
    torch.manual_seed(0)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 4, 4),
        **SIZE,
    )
    pipe = pipeline(scheduler=FlowMatchEulerDiscreteScheduler(), transformer=transformer, **NO_ENCODERS)

    def arguments(panels: list[int], seed: int = 0) -> dict[str, Any]:
        return {**common(), **embeddings(panels, 16, seed), "latents": rows(panels, 16, HEIGHT, WIDTH, seed=9)}

    return Family(finish(pipe), arguments, None, transformer_flux2)


def klein() -> Family:
    """Guided FLUX.2: two calls a step, though the pipeline has `do_classifier_free_guidance`."""
    family = flux2(Flux2KleinPipeline)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8,) * 4, layers_per_block=1, latent_channels=4, norm_num_groups=4
    )  # whose statistics scale even the latents that the pipeline returns
    family.pipe.register_modules(vae=vae)
    family.negative = lambda panels: {**embeddings(panels, 16, 20, prefix="negative_"), "guidance_scale": 3.0}
    plain = family.arguments
    family.arguments = lambda panels, seed=0: {**plain(panels, seed), "guidance_scale": 1.0}
    return family


def qwen_image() -> Family:
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=2, joint_attention_dim=16, axes_dims_rope=(4, 4, 8), **SIZE
    )
    pipe = QwenImagePipeline(scheduler=FlowMatchEulerDiscreteScheduler(), transformer=transformer, **NO_ENCODERS)
    mask = torch.ones(8, TEXT, dtype=torch.long)
    mask[::2, 3:] = 0  # prompts of 3 and of 5 tokens

    def arguments(panels: list[int], seed: int = 0) -> dict[str, Any]:
        text = embeddings(panels, 16, seed)
        return {
            **common(),
            **text,
            "prompt_embeds_mask": mask[panels],
            "latents": rows(panels, TOKENS, 16, seed=9),
            "true_cfg_scale": 1.0,
        }

    def negative(panels: list[int]) -> dict[str, Any]:
        shorter = {"negative_prompt_embeds": rows(panels, 3, 16, seed=20)}
        return {**shorter, "negative_prompt_embeds_mask": mask[panels][:, :3], "true_cfg_scale": 3.0}

    return Family(finish(pipe), arguments, negative, transformer_qwenimage)


def stable_diffusion_3() -> Family:
    """With the dual layers and the normalized queries and keys of 3.5; guidance doubles the batch."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        joint_attention_dim=16,
        caption_projection_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=16,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
        **SIZE,
    )
    third: dict[str, Any] = {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=transformer,
        **NO_ENCODERS,
        **NO_SECOND_ENCODERS,
        **third,
    )

    def arguments(panels: list[int], seed: int = 0) -> dict[str, Any]:
        return {
            **common(),
            **embeddings(panels, 16, seed, "pooled_prompt_embeds"),
            **embeddings(panels, 16, 20, "pooled_prompt_embeds", "negative_"),
            "latents": rows(panels, 4, 2 * HEIGHT, 2 * WIDTH, seed=9),
            "guidance_scale": 3.0,
        }

    return Family(finish(pipe), arguments, first=0)


FAMILIES = {
    "flux": flux,
    "kontext": kontext,
    "flux2": flux2,
    "klein": klein,
    "qwen_image": qwen_image,
    "stable_diffusion_3": stable_diffusion_3,
}


@contextmanager
def dense_attention(
    family: Family, shift: list[int] | None, visible: Callable[[], Tensor] | None = None
) -> Iterator[None]:
    """Let diffusers' own processors compute consistent self-attention of two panels at rate 1, with a dense mask.

    visible: returns (2, N, 2 N), the image tokens, own ones first, that each image token of each panel may read.
    """
    image = slice(family.first, family.first + TOKENS)

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        outputs = []
        for own in range(len(query)):
            other, length = own ^ 1, query.shape[1]  # stories are pairs, in each guidance part
            keys = torch.cat([key[own], family.move(key[other, image], shift)])
            values = torch.cat([value[own], value[other, image]])
            scores = torch.einsum("shd,lhd->hsl", query[own], keys) / math.sqrt(query.shape[-1])
            allowed = torch.ones(length, len(keys), dtype=torch.bool)
            allowed[: image.start, length:] = allowed[image.stop :, length:] = False
            if visible is not None:
                may_read = visible()[own % 2]
                allowed[image, image], allowed[image, length:] = may_read[:, :TOKENS], may_read[:, TOKENS:]
            if mask is not None:
                allowed[:, :length] &= mask[own, 0, 0]
            weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
            outputs.append(torch.einsum("hsl,lhd->shd", weights, values))
        return torch.stack(outputs)

    def dispatched(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **options: Any) -> Tensor:
        return attend(query, key, value, attn_mask)

    def of_torch(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        queries, keys, values = (x.transpose(1, 2) for x in (query, key, value))
        return attend(queries, keys, values, None).transpose(1, 2)

    with pytest.MonkeyPatch.context() as patch:
        if family.module is None:
            patch.setattr(torch.nn.functional, "scaled_dot_product_attention", of_torch)
        else:
            patch.setattr(family.module, "dispatch_attention_fn", dispatched)
        yield
