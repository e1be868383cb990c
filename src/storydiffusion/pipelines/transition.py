"""Transitions by sampling: a start and an end image → the frames from one to the other (section 3.2 of 2405.01434).

The semantic motion predictor tells of every frame what it shows, the video model draws it, the VAE decodes it. The
paper samples by DDIM with 50 steps and guidance 7.5. The same function serves stories, training's samples and tests.

Shapes: B clips, C latent channels, F frames, H × W pixels, h × w latents, T text tokens, N semantic tokens a frame, D
the width of the cross-attention's context.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from storydiffusion.config import VideoConfig
from storydiffusion.errors import UserError
from storydiffusion.models.boundary_frames import with_boundary_frames
from storydiffusion.models.video_model import VideoModel

BoundaryFrames = Literal["clamped", "free"]

PICTURES_AT_ONCE = 4  # that the VAE decodes, so that its memory does not grow with the number of frames


@dataclass(frozen=True)
class TransitionSampling:
    """How transitions are sampled; steps and guidance are the paper's by default.

    Attributes:
        frames: F, the two ends included.
        steps: of denoising.
        guidance_scale: of classifier-free guidance, away from no text and no semantic tokens; 1 or less is none.
        boundary_frames: `clamped`, the given images are the first and the last frame, pixel for pixel: their clean
            latents stand there at every step, where all frames read them; `free`, the paper's form: nothing is
            imposed, the images are known by their semantic tokens only, or to a model's sparse control.

    Raises:
        UserError: for a value out of its range.
    """

    frames: int = 16
    steps: int = 50
    guidance_scale: float = 7.5
    boundary_frames: BoundaryFrames = "clamped"

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise UserError(f"frames is {self.frames}: a transition has 2 or more, its two ends")
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}: take 1 or more")
        if not 0 <= self.guidance_scale < float("inf"):
            raise UserError(f"guidance_scale is {self.guidance_scale}: take a number, 0 or more")
        if self.boundary_frames not in get_args(BoundaryFrames):
            raise UserError(
                f"boundary_frames is {self.boundary_frames!r}: choose one of {', '.join(get_args(BoundaryFrames))}"
            )


def sample_clips(
    model: VideoModel,
    start: Tensor,
    end: Tensor,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: TransitionSampling,
    on_step: Callable[[], object] = lambda: None,
) -> Tensor:
    """Samples B transitions as one batch.

    Args:
        start, end: uint8 (B, 3, H, W).
        prompts: what each clip shows, "" where nobody says.
        seeds: of each clip's starting noise, which depends on nothing else.
        on_step: called after each step, for a progress bar.

    Returns:
        uint8 (B, F, 3, H, W) on the CPU.

    Raises:
        UserError: images of different sizes, or of one that the VAE cannot halve often enough; more frames than the
            model can place; too little memory.
    """
    _check_images(model, start, end)
    if sampling.frames > model.max_frames:
        raise UserError(f"{sampling.frames} frames asked for, but this video model places {model.max_frames} at most")
    if not len(start) == len(prompts) == len(seeds):
        raise ValueError(f"{len(start)} clips, {len(prompts)} prompts, {len(seeds)} seeds")
    try:
        latents = sample_latents(model, start, end, prompts, seeds, sampling, on_step)
        frames = decode_frames(model.vae, latents)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU has too little memory for {sampling.frames} frames of {start.shape[3]} × {start.shape[2]}: "
            "take fewer frames or a smaller size"
        ) from error
    if sampling.boundary_frames == "clamped":
        frames[:, 0], frames[:, -1] = start, end
    return frames


@torch.no_grad()
def sample_latents(
    model: VideoModel,
    start: Tensor,
    end: Tensor,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: TransitionSampling,
    on_step: Callable[[], object] = lambda: None,
) -> Tensor:
    """As `sample_clips`, but the latents (B, C, F, h, w) that it decodes, on the model's device."""
    weight = next(model.video_unet.parameters())
    ends = [encode_pictures(model.vae, pictures).to(weight) for pictures in (start, end)]
    is_guided = sampling.guidance_scale > 1
    text, semantic = _conditions(model, start, end, prompts, sampling.frames, is_guided)
    shape = (ends[0].shape[1], sampling.frames, *ends[0].shape[2:])
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    scheduler = copy.deepcopy(model.scheduler)  # set_timesteps changes it
    scheduler.set_timesteps(sampling.steps, device=weight.device)
    control = model.sparse_control and model.sparse_control.reading(ends[0], ends[1], sampling.frames, text)
    latents = torch.stack(noise).to(weight) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        if sampling.boundary_frames == "clamped":
            latents = with_boundary_frames(latents, *ends)
        given = torch.cat([latents, latents]) if is_guided else latents
        given = scheduler.scale_model_input(given, timestep)
        extra = {"residuals": control(given, timestep)} if control else {}
        predicted = model.video_unet(given, timestep, text, semantic, **extra)
        if is_guided:
            without, predicted = predicted.chunk(2)
            predicted = without + sampling.guidance_scale * (predicted - without)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
        on_step()
    return with_boundary_frames(latents, *ends) if sampling.boundary_frames == "clamped" else latents


def _conditions(
    model: VideoModel, start: Tensor, end: Tensor, prompts: Sequence[str], frames: int, is_guided: bool
) -> tuple[Tensor, Tensor | None]:
    """Text (B, T, D) and semantic tokens (B, F, N, D); with guidance the unconditional ones before them, (2B, …).

    Unconditional are no text and semantic tokens of zero, as training drops them.
    """
    weight = next(model.video_unet.parameters())
    texts = [""] * len(prompts) + list(prompts) if is_guided else list(prompts)
    text = model.encode_text(texts).to(weight)
    if model.predictor is None or model.image_encoder is None:
        return text, None
    dtype = model.predictor.context_norm.weight.dtype
    features = [model.image_encoder.features(pictures, model.features).to(dtype) for pictures in (start, end)]
    semantic = model.predictor(*features, frames).context.to(weight)
    return text, torch.cat([torch.zeros_like(semantic), semantic]) if is_guided else semantic


@torch.no_grad()
def encode_pictures(vae: Any, pictures: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) → the mode of their latents, scaled as the U-Net knows them, (B, C, h, w)."""
    pixels = pictures.to(vae.device, torch.float32) / 127.5 - 1
    return vae.encode(pixels.to(vae.dtype)).latent_dist.mode() * vae.config.scaling_factor


@torch.no_grad()
def decode_frames(vae: Any, latents: Tensor) -> Tensor:
    """Latents (B, C, F, h, w) → uint8 (B, F, 3, H, W) on the CPU."""
    pictures = latents.transpose(1, 2).flatten(0, 1) / vae.config.scaling_factor
    parts = []
    for part in pictures.split(PICTURES_AT_ONCE):
        pixels = vae.decode(part.to(vae.device, vae.dtype)).sample.float()
        parts.append(((pixels + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8))
    return torch.cat(parts).unflatten(0, (len(latents), -1))


def _check_images(model: VideoModel, start: Tensor, end: Tensor) -> None:
    for name, pictures in (("start", start), ("end", end)):
        if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] != 3:
            raise ValueError(f"{name} images are {pictures.dtype} {tuple(pictures.shape)}, not uint8 (B, 3, H, W)")
    if start.shape != end.shape:
        raise UserError(
            f"the start image is {start.shape[3]} × {start.shape[2]} pixels, the end image {end.shape[3]} × "
            f"{end.shape[2]}: give images of one size"
        )
    height, width = start.shape[2:]
    if height % model.vae_factor or width % model.vae_factor:
        raise UserError(f"images of {width} × {height} pixels: their sides must be divisible by {model.vae_factor}")


def sampling_of(video: VideoConfig) -> TransitionSampling:
    """How the configuration samples transitions."""
    boundary_frames: Any = video.boundary_frames  # one of config.model.BOUNDARY_FRAMES
    return TransitionSampling(video.frames, video.steps, video.guidance_scale, boundary_frames)
