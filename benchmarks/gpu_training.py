"""Section of gpu.py on training: the paper's step, split into parts, with its model FLOPs utilisation."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from gpu_context import SD15_TEXT, SD15_UNET, VAE, Context
from hydra import compose, initialize_config_dir
from torch.utils.flop_counter import FlopCounterMode

from storydiffusion.config import TransitionTrainConfig, load
from storydiffusion.config.command_line import CONF
from storydiffusion.data.loader import ClipBatch
from storydiffusion.loaders.sources import package_path
from storydiffusion.models.video_model import VideoModel
from storydiffusion.training.build_transition import build_transition_module, use_channels_last
from storydiffusion.training.optim.optimizers import OPTIMIZERS
from storydiffusion.training.transition_module import TransitionModule

CLIPS = 4
UTILISATION = "model FLOPs utilisation"
PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "4090": 165e12, "L40S": 362e12}
"""name of a card → dense bf16 operations a second, from its data sheet"""
PAPER = ("experiment=paper", "data.shards=none")
TINY = (
    "data.height=64", "data.width=64", "model.video.frames=4", "predictor.frames=8", "model.device=cpu", "trainer=cpu",
)  # fmt: skip


def measure_training(context: Context) -> None:
    """Time one step of the paper's training, 4 clips of 16 frames of 256², part by part."""
    is_full = context.size.unet.get("sample_size") == SD15_UNET["sample_size"] * 2
    with context.case(clips=CLIPS) as row:
        config = compose_training(PAPER if is_full else TINY)
        module = build_full_module(config) if is_full else build_transition_module(config)
        module = module.to(context.device)
        module.trainer = L.Trainer(
            accelerator=context.device.type.replace("cuda", "gpu"), devices=1, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        data = config.data
        shape = (CLIPS, data.frames, 3, data.height, data.width)
        frames = torch.randint(0, 256, shape, dtype=torch.uint8, device=context.device)
        batch = ClipBatch(frames, ["a girl is running in the park"] * CLIPS, ["clip"] * CLIPS)
        optimizer = OPTIMIZERS[config.recipe.optimizer](module, config.recipe)
        context.reset_memory()
        run_step(context, module, batch, optimizer)  # warms up
        steps = [run_step(context, module, batch, optimizer) for _ in range(context.size.repeats)]
        parts = {name: statistics.median(step[name] for step in steps) for name in steps[0]}
        total = statistics.median(sum(step.values()) for step in steps)
        row |= {"frames": data.frames, "side": data.height, **{f"{name} ms": ms for name, ms in parts.items()}}
        row |= {"step ms": total, "peak GiB": context.peak_gib()}
        flops = count_model_flops(context, module, batch, optimizer)
        row |= {"TFLOP": flops / 1e12, UTILISATION: utilisation(context, flops, total / 1000)}


def count_model_flops(context: Context, module: TransitionModule, batch: ClipBatch, optimizer: Any) -> int:
    """Count the operations of a step without what gradient checkpointing computes a second time.

    They are counted on one clip, because activations are kept then.
    """
    module.video_unet.unet.disable_gradient_checkpointing()
    if module.predictor is not None:
        module.predictor.gradient_checkpointing = False
    with FlopCounterMode(display=False) as counter:
        run_step(context, module, ClipBatch(batch.frames[:1], batch.captions[:1], batch.keys[:1]), optimizer)
    return CLIPS * counter.get_total_flops()


def utilisation(context: Context, flops: float, seconds: float) -> float | None:
    """Return the achieved share of the card's peak; None for a card that `PEAK_FLOPS` lacks."""
    if context.device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(context.device)
    peak = next((peak for card, peak in PEAK_FLOPS.items() if card in name), None)
    return None if peak is None else flops / seconds / peak


def compose_training(overrides: tuple[str, ...]) -> TransitionTrainConfig:
    """Return the configuration of `storydiffusion train OVERRIDES`."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return load(TransitionTrainConfig, compose("train", list(overrides)))


def run_step(context: Context, module: TransitionModule, batch: ClipBatch, optimizer: Any) -> dict[str, float]:
    """Take one step of the diffusion loss; return the milliseconds of its parts."""
    times: dict[str, float] = {}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = function()
        context.synchronize()
        times[name] = 1000 * (time.perf_counter() - begin)
        return result

    with torch.autocast(context.device.type, torch.bfloat16):
        tokens = timed("image encoder", lambda: module.semantic_tokens(batch.frames))
        clips = timed("VAE and text", lambda: module.encode(batch))
        loss = timed("forward", lambda: module.diffusion_errors(clips, tokens)["errors"].mean())
    timed("backward", loss.backward)
    timed("optimizer", optimizer.step)
    optimizer.zero_grad()
    return times


def build_full_module(config: TransitionTrainConfig) -> TransitionModule:
    """Return the paper's training with random weights: SD1.5, AnimateDiff v2, ViT-H-14 and the predictor."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.models.unets.unet_motion_model import MotionAdapter
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from storydiffusion.loaders.video import build_predictor, choose_features, load_image_encoder
    from storydiffusion.models.text_encoder import TextEncoder
    from storydiffusion.models.video_unet import SemanticVideoUNet

    half = torch.bfloat16
    tokenizer = CLIPTokenizer.from_pretrained(package_path("package://miniature/tokenizer"), model_max_length=77)
    unet: Any = UNet2DConditionModel(**SD15_UNET)
    vae: Any = AutoencoderKL(**VAE)
    adapter: Any = MotionAdapter()
    text_model: Any = CLIPTextModel(CLIPTextConfig(**SD15_TEXT))
    encoder = load_image_encoder("open_clip://ViT-H-14/random", half)
    predictor, settings = build_predictor(config.predictor, encoder, SD15_UNET["cross_attention_dim"])
    model = VideoModel(
        SemanticVideoUNet.from_parts(unet.to(half), adapter.to(half), boundary_attention=False),
        vae.to(half).requires_grad_(False).eval(),
        TextEncoder(tokenizer, text_model.to(half)),
        DDIMScheduler(beta_schedule="linear"),
    )
    use_channels_last(model)  # as trainer.kernels=fast does
    torch.set_float32_matmul_precision("high")
    features = choose_features(config.predictor.tokens)
    whole = replace(model, predictor=predictor, image_encoder=encoder, features=features)
    return TransitionModule(whole, config.recipe, settings, {})
