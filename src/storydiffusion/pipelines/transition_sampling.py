"""Sample transitions: noise → latents → frames, between two images (section 3.2 of arXiv 2405.01434).

The semantic motion predictor predicts the content of every frame, the video model denoises the frames, the VAE decodes
them. The paper samples by DDIM with 50 steps and guidance 7.5. Stories, training samples and benchmarks call the same
functions.

Shapes: B clips, C latent channels, F frames, H × W pixels, h × w latents, T text tokens, N semantic tokens of a frame,
D the width of the cross-attention's context.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from storydiffusion.attention.finite import check_images, check_latents
from storydiffusion.config import VideoConfig
from storydiffusion.errors import UserError
from storydiffusion.models.boundary_frames import with_boundary_frames
from storydiffusion.models.video_model import VideoModel

BoundaryFrames = Literal["clamped", "noised", "free"]
ClipCallback = Callable[[int, Tensor, Tensor], Tensor]
"""(step, timestep, latents (B, C, F, h, w)) after a step → the latents to continue with"""

IMAGES_AT_ONCE = 4  # for the VAE: its memory must not grow with the number of frames


@dataclass(frozen=True)
class TransitionSampling:
    """How transitions are sampled; steps and guidance default to the paper's.

    Attributes:
        frames: F, both boundary frames included.
        steps: of denoising.
        guidance_scale: of classifier-free guidance, away from no text and no semantic tokens; 1 or less: no guidance.
        boundary_frames: `clamped`, the given images are the first and the last frame, pixel for pixel: their clean
            latents replace those of the boundary frames at every step, where all frames attend to them; `noised`, the
            same with latents noised to the step's level, for models trained without clean boundary frames; `free`, the
            paper's form: nothing is imposed, the images act through their semantic tokens only, or a sparse control.

    Raises:
        UserError: for a value out of its range.
    """

    frames: int = 16
    steps: int = 50
    guidance_scale: float = 7.5
    boundary_frames: BoundaryFrames = "clamped"

    @property
    def imposes_images(self) -> bool:
        """Whether the clip's first and last frame are the given images."""
        return self.boundary_frames != "free"

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise UserError(f"frames is {self.frames}: a transition has 2 or more, its two boundary frames")
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}: choose 1 or more")
        if not 0 <= self.guidance_scale < float("inf"):
            raise UserError(f"guidance_scale is {self.guidance_scale}: choose a number, 0 or more")
        if self.boundary_frames not in get_args(BoundaryFrames):
            raise UserError(
                f"boundary_frames is {self.boundary_frames!r}: choose one of {', '.join(get_args(BoundaryFrames))}"
            )


def build_sampling(video: VideoConfig) -> TransitionSampling:
    """Return how a resolved configuration samples transitions; `get_video_config` has replaced `auto`."""
    boundary_frames: Any = video.boundary_frames  # one of config.model.BOUNDARY_FRAMES
    return TransitionSampling(video.frames, video.steps, video.guidance_scale, boundary_frames)


def keep_latents(step: int, timestep: Any, latents: Tensor) -> Tensor:
    """Change nothing; a `ClipCallback`."""
    return latents


def sample_clips(
    model: VideoModel,
    start: Tensor,
    end: Tensor,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: TransitionSampling,
    on_step: ClipCallback = keep_latents,
    negative_prompts: Sequence[str] | None = None,
    token_frames: Tensor | None = None,
) -> Tensor:
    """Sample B transitions as one batch.

    Args:
        start, end: uint8 (B, 3, H, W).
        prompts: what each clip shows; "": unknown.
        seeds: of each clip's starting noise, which depends on nothing else.
        on_step: called after each step.
        negative_prompts: one for each clip, in place of no text in guidance; None: none.
        token_frames: uint8 (B, F, 3, H, W), frames whose own semantic tokens replace the predicted ones.

    Returns:
        uint8 (B, F, 3, H, W) on the CPU.

    Raises:
        UserError: images of different sizes, or with sides that the VAE's factor does not divide; more frames than
            the model supports; latents or frames that are not finite; too little memory.
    """
    _check_images(model, start, end)
    if sampling.frames > model.max_frames:
        raise UserError(f"frames is {sampling.frames}: this video model supports at most {model.max_frames}")
    negatives = [""] * len(prompts) if negative_prompts is None else negative_prompts
    if not len(start) == len(prompts) == len(seeds) == len(negatives):
        raise ValueError(
            f"{len(start)} clips, {len(prompts)} prompts, {len(negatives)} negative prompts, {len(seeds)} seeds"
        )
    try:
        latents = sample_latents(model, start, end, prompts, seeds, sampling, on_step, negatives, token_frames)
        with model.using(model.vae):
            frames = decode_frames(model.vae, latents)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU has too little memory for {sampling.frames} frames of {start.shape[3]} × {start.shape[2]}: "
            "choose fewer frames, a smaller size or model.offload=model"
        ) from error
    if sampling.imposes_images:
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
    on_step: ClipCallback,
    negative_prompts: Sequence[str],
    token_frames: Tensor | None,
) -> Tensor:
    """Sample the latents (B, C, F, h, w) that `sample_clips` decodes, on the model's device, from its arguments."""
    with model.using(model.vae):
        ends = [encode_images(model.vae, images).to(model.device, model.dtype) for images in (start, end)]
    is_guided = sampling.guidance_scale > 1
    negatives = negative_prompts if is_guided else []
    with model.using(model.encode_text, model.predictor, model.image_encoder):
        text = model.encode_text([*negatives, *prompts]).to(model.device, model.dtype)
        semantic = _encode_motion(model, start, end, sampling.frames, is_guided, token_frames)
    shape = (ends[0].shape[1], sampling.frames, *ends[0].shape[2:])
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = [torch.randn(shape, generator=generator) for generator in generators]
    scheduler = copy.deepcopy(model.scheduler)  # set_timesteps changes it
    scheduler.set_timesteps(sampling.steps, device=model.device)
    drawn = torch.stack(noise).to(model.device, model.dtype)
    with model.using(model.video_unet, model.sparse_control and model.sparse_control.network):
        latents = _denoise(model, scheduler, ends, drawn, generators, text, semantic, sampling, on_step)
    return with_boundary_frames(latents, *ends) if sampling.imposes_images else latents


def _denoise(
    model: VideoModel,
    scheduler: Any,
    ends: Sequence[Tensor],
    noise: Tensor,
    generators: list[torch.Generator],
    text: Tensor,
    semantic: Tensor | None,
    sampling: TransitionSampling,
    on_step: ClipCallback,
) -> Tensor:
    """Return the latents after the last step, from noise (B, C, F, h, w).

    Args:
        ends: clean latents of both boundary frames, (B, C, h, w) each.
        generators: of each clip, for schedulers that add noise in every step.
        text: (B, T, D); with guidance (2B, T, D), the negative or empty prompts first.
        semantic: of `_encode_motion`.
    """
    control = model.sparse_control and model.sparse_control.make_residual_function(
        ends[0], ends[1], sampling.frames, text
    )
    is_guided, latents = len(text) > len(noise), noise * scheduler.init_noise_sigma
    draws = {"generator": generators} if "generator" in signature(scheduler.step).parameters else {}
    for step, timestep in enumerate(scheduler.timesteps):
        if sampling.boundary_frames == "clamped":
            latents = with_boundary_frames(latents, *ends)
        elif sampling.boundary_frames == "noised":
            latents = with_boundary_frames(latents, *_noise_to_step(scheduler, ends, noise, timestep))
        given = torch.cat([latents, latents]) if is_guided else latents
        given = scheduler.scale_model_input(given, timestep)
        extra = {"residuals": control(given, timestep)} if control else {}
        predicted = model.video_unet(given, timestep, text, semantic, **extra)
        if is_guided:
            without, predicted = predicted.chunk(2)
            predicted = without + sampling.guidance_scale * (predicted - without)
        latents = scheduler.step(predicted, timestep, latents, **draws).prev_sample
        check_latents(latents, step)
        latents = on_step(step, timestep, latents)
    return latents


def _noise_to_step(scheduler: Any, ends: Sequence[Tensor], noise: Tensor, timestep: Tensor) -> list[Tensor]:
    """Return the latents of both boundary frames, (B, C, h, w) each, at the noise level of the step at `timestep`.

    `noise` (B, C, F, h, w) is the clip's starting noise, whose first and last frames serve in every step.
    """
    timesteps = timestep.expand(len(noise))
    return [scheduler.add_noise(end, noise[:, :, at], timesteps) for end, at in zip(ends, (0, -1), strict=True)]


def _encode_motion(
    model: VideoModel, start: Tensor, end: Tensor, frames: int, is_guided: bool, token_frames: Tensor | None
) -> Tensor | None:
    """Return semantic tokens (B, F, N, D), predicted or those of `token_frames`; None without a predictor.

    With guidance tokens of zero, as dropped in training, come first: (2B, F, N, D).
    """
    if model.predictor is None or model.image_encoder is None:
        return None
    predictor, encoder = model.predictor, model.image_encoder
    dtype = predictor.context_norm.weight.dtype
    if token_frames is None:
        features = [encoder.features(images, model.features).to(dtype) for images in (start, end)]
        semantic = predictor(*features, frames).context
    else:
        tokens = predictor.encode(encoder.features(token_frames.flatten(0, 1), model.features).to(dtype))
        semantic = predictor.context(tokens.unflatten(0, token_frames.shape[:2]))
    semantic = semantic.to(model.device, model.dtype)
    return torch.cat([torch.zeros_like(semantic), semantic]) if is_guided else semantic


@torch.no_grad()
def encode_images(vae: Any, images: Tensor) -> Tensor:
    """Encode uint8 (B, 3, H, W) to the mode of their latents in the U-Net's scale, (B, C, h, w)."""
    pixels = images.to(vae.device, torch.float32) / 127.5 - 1
    return vae.encode(pixels.to(vae.dtype)).latent_dist.mode() * vae.config.scaling_factor


@torch.no_grad()
def decode_frames(vae: Any, latents: Tensor) -> Tensor:
    """Decode latents (B, C, F, h, w) to uint8 (B, F, 3, H, W) on the CPU."""
    images = latents.transpose(1, 2).flatten(0, 1) / vae.config.scaling_factor
    parts = []
    for part in images.split(IMAGES_AT_ONCE):
        pixels = vae.decode(part.to(vae.device, vae.dtype)).sample
        check_images(pixels)
        parts.append(((pixels.float() + 1) * 127.5).round().clamp(0, 255).to("cpu", torch.uint8))
    return torch.cat(parts).unflatten(0, (len(latents), -1))


def _check_images(model: VideoModel, start: Tensor, end: Tensor) -> None:
    for name, images in (("start", start), ("end", end)):
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"{name} images are {images.dtype} {tuple(images.shape)}, not uint8 (B, 3, H, W)")
    if start.shape != end.shape:
        raise UserError(
            f"the start image is {start.shape[3]} × {start.shape[2]} pixels, the end image {end.shape[3]} × "
            f"{end.shape[2]}: give images of one size"
        )
    height, width = start.shape[2:]
    if height % model.vae_factor or width % model.vae_factor:
        raise UserError(f"images of {width} × {height} pixels: their sides must be divisible by {model.vae_factor}")
