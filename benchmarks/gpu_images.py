"""Sections of gpu.py on images: parity of dtypes, stories in SDXL, shares of a step, torch.compile, the VAE."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from gpu_context import Context
from torch import Tensor

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.plugin import consistent_self_attention

CSA = {
    "off": ConsistentSelfAttentionConfig(variant="off"),
    "eq2": ConsistentSelfAttentionConfig(rate=0.5),
    "anchors": ConsistentSelfAttentionConfig(rate=0.5, anchor_panels=2),
}
GUIDED = 2  # parts of the batch under guidance
ATTENTION = ("scaled_dot_product", "flash_attention", "efficient_attention", "cudnn_attention")
"""parts of the names of operators whose kernels are attention"""
GATHER = ("aten::index_select", "aten::index_add_")


def build_unet(context: Context, dtype: torch.dtype) -> Any:
    """Return the U-Net with random weights, the same for every dtype."""
    torch.manual_seed(0)
    with torch.device(context.device):
        unet: Any = UNet2DConditionModel(**context.size.unet)
    return unet.to(dtype).requires_grad_(False).eval()


def build_inputs(context: Context, panels: int, dtype: torch.dtype) -> dict[str, Any]:
    """Return the arguments of a denoising step of `panels` panels under guidance."""
    size, draw = context.size, torch.Generator().manual_seed(0)
    tokens, width, pooled = size.text

    def normal(*shape: int) -> Tensor:
        part = torch.randn(panels, *shape, generator=draw)
        return part.repeat(GUIDED, *[1] * len(shape)).to(context.device, dtype)

    side = size.side // 8
    added = {"text_embeds": normal(pooled), "time_ids": normal(6)}
    text = normal(tokens, width)
    return {"sample": normal(4, side, side), "timestep": 500, "encoder_hidden_states": text, "added_cond_kwargs": added}


def share(unet: Any, csa: str, panels: int) -> AbstractContextManager[Any]:
    """Return the context in which the panels share self-attention."""
    return consistent_self_attention(SimpleNamespace(unet=unet), CSA[csa], [panels], parts=GUIDED)


@torch.inference_mode()
def measure_parity(context: Context) -> None:
    """Compare the noise that the U-Net predicts with CSA in half precision with that in float32."""
    panels = context.size.panels[0]
    expected = predict(context, panels, torch.float32).float().cpu()
    for dtype in (torch.float16, torch.bfloat16):
        if context.is_late(dtype=str(dtype)):
            return
        with context.case(dtype=str(dtype).removeprefix("torch."), panels=panels) as row:
            found = predict(context, panels, dtype).float().cpu()
            row["relative error"] = float((found - expected).norm() / expected.norm())
            row["finite"] = bool(found.isfinite().all())


def predict(context: Context, panels: int, dtype: torch.dtype) -> Tensor:
    """Return the U-Net's prediction, its weights freed again."""
    unet = build_unet(context, dtype)
    with share(unet, "eq2", panels):
        return unet(**build_inputs(context, panels, dtype)).sample


@torch.inference_mode()
def measure_stories(context: Context) -> None:
    """Time a denoising step of whole stories, and its peak memory, weights included."""
    unet = build_unet(context, context.dtype)
    for panels in context.size.panels:
        for csa in CSA:
            if context.is_late(panels=panels, csa=csa):
                return
            with context.case(panels=panels, csa=csa) as row, share(unet, csa, panels):
                inputs = build_inputs(context, panels, context.dtype)
                context.reset_memory()
                row["ms a step"] = context.milliseconds(partial(unet, **inputs))
                row["peak GiB"] = context.peak_gib()


@torch.inference_mode()
def measure_shares(context: Context) -> None:
    """Profile one step: the shares of attention, of gathering keys and values, and of the rest."""
    unet = build_unet(context, context.dtype)
    for panels in context.size.panels[:2]:
        for csa in CSA:
            if context.is_late(panels=panels, csa=csa):
                return
            with context.case(panels=panels, csa=csa) as row, share(unet, csa, panels):
                inputs = build_inputs(context, panels, context.dtype)
                unet(**inputs)
                row |= profile(context, partial(unet, **inputs))


def profile(context: Context, step: Callable[[], object]) -> dict[str, float]:
    """Return the shares of a step's time by kind of operator, on the GPU where there is one."""
    from torch._C._autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    is_gpu = context.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]
    with torch_profile(activities=activities) as profiler:
        step()
        context.synchronize()
    spent = {"attention": 0.0, "gather": 0.0, "rest": 0.0}
    for event in profiler.key_averages():
        if event.device_type != DeviceType.CPU:  # kernels, which their operators count already
            continue
        is_attention = any(part in event.key for part in ATTENTION)
        kind = "attention" if is_attention else "gather" if event.key in GATHER else "rest"
        spent[kind] += event.self_device_time_total if is_gpu else event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: microseconds / total for kind, microseconds in spent.items()}


@torch.inference_mode()
def measure_compile(context: Context) -> None:
    """Time a step with torch.compile, and its first call, against the same step without."""
    panels = context.size.panels[0]
    unet = build_unet(context, context.dtype)
    inputs = build_inputs(context, panels, context.dtype)
    for csa in ("off", "eq2"):
        if context.is_late(csa=csa):
            return
        with context.case(panels=panels, csa=csa) as row:
            with share(unet, csa, panels):
                row["plain ms"] = context.milliseconds(partial(unet, **inputs))
            torch._dynamo.reset()
            compiled = torch.compile(unet, backend=context.size.compiler)
            with share(compiled, csa, panels):
                begin = time.perf_counter()
                compiled(**inputs)
                context.synchronize()
                row["first call s"] = time.perf_counter() - begin
                row["compiled ms"] = context.milliseconds(partial(compiled, **inputs))


@torch.inference_mode()
def measure_vae(context: Context) -> None:
    """Time the decoding of one image and of a sliced batch, and its peak memory."""
    torch.manual_seed(0)
    with torch.device(context.device):
        vae: Any = AutoencoderKL(**context.size.vae)
    vae = vae.to(context.dtype).eval()
    vae.enable_slicing()
    for images in (1, 4):
        if context.is_late(images=images):
            return
        with context.case(images=images, side=context.size.side) as row:
            side = context.size.side // 8
            latents = torch.randn(images, 4, side, side, device=context.device, dtype=context.dtype)
            context.reset_memory()
            row["ms an image"] = context.milliseconds(partial(vae.decode, latents)) / images
            row["peak GiB"] = context.peak_gib()
