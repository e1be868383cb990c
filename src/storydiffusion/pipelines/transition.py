"""Generate a transition: start and end image → the frames from one to the other (section 3.2 of arXiv 2405.01434).

    pipe = TransitionPipeline.from_pretrained("package://miniature")
    output = pipe("start.png", "end.png", prompt="a girl is running in the park")
    output.save("transition.mp4", fps=8)

The semantic motion predictor predicts the content of every frame, the video model denoises the frames, the VAE decodes
them. The paper samples by DDIM with 50 steps and guidance 7.5. Stories, training samples and benchmarks call the same
functions.

Shapes: B clips, C latent channels, F frames, H × W pixels, h × w latents, T text tokens, N semantic tokens of a frame,
D the width of the cross-attention's context.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from storydiffusion.attention.finite import check_images, check_latents
from storydiffusion.config import VideoConfig
from storydiffusion.config.loading import check_choice
from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import ResolvedModel, resolve_pretrained
from storydiffusion.loaders.video import load_video_model, move_to_device
from storydiffusion.models.boundary_frames import with_boundary_frames
from storydiffusion.models.video_model import VideoModel
from storydiffusion.pipelines.panels import StepCallback
from storydiffusion.pipelines.story import OUTPUT_TYPES, draw_seed
from storydiffusion.story.given_images import read_image

BoundaryFrames = Literal["clamped", "free"]
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
            latents replace those of the boundary frames at every step, where all frames attend to them; `free`, the
            paper's form: nothing is imposed, the images act through their semantic tokens only, or a sparse control.

    Raises:
        UserError: for a value out of its range.
    """

    frames: int = 16
    steps: int = 50
    guidance_scale: float = 7.5
    boundary_frames: BoundaryFrames = "clamped"

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
    """Return how the configuration samples transitions."""
    boundary_frames: Any = video.boundary_frames  # one of config.model.BOUNDARY_FRAMES
    return TransitionSampling(video.frames, video.steps, video.guidance_scale, boundary_frames)


@dataclass(frozen=True)
class TransitionPipelineOutput:
    """A generated transition.

    Attributes:
        frames: a list of PIL images, or with output_type="np" floats in [0, 1], (F, H, W, 3).
        seed: of the starting noise.
    """

    frames: Any
    seed: int

    def save(self, path: str | Path, fps: float) -> None:
        """Write the frames as an MP4 file."""
        from storydiffusion.output.video_file import write_video

        def pixels(frame: Any) -> np.ndarray:
            return np.asarray(frame) if isinstance(frame, Image.Image) else (frame * 255).round().astype(np.uint8)

        write_video(path, (pixels(frame) for frame in self.frames), fps)


class TransitionPipeline:
    """Generate the frames between two images.

    Args:
        model: the video model's parts, on one device.
        sampling: the default sampling of a call.
    """

    def __init__(self, model: VideoModel, sampling: TransitionSampling | None = None) -> None:
        self.model = model
        self.sampling = sampling or TransitionSampling()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        scheduler: str | None = None,
        config: str | None = None,
        **video: Any,
    ) -> "TransitionPipeline":
        """Load a text-to-image model with its video parts; an argument of None takes the default of conf/model.

        Args:
            path: `package://miniature`, a folder in diffusers' format, or a hub id. Folders motion_adapter/,
                predictor/ and image_encoder/ in it are its video parts.
            video: settings of conf/model's `video`, such as `predictor="releases/predictor"`, `motion_adapter`,
                `image_encoder` or `boundary_attention`.

            For revision, device, dtype, scheduler and config see `StoryPipeline.from_pretrained`.

        Raises:
            UserError: no such model or part, hub out of reach, unusable weights, parts that do not fit each other, or a
                device that this machine lacks.
        """
        model = resolve_pretrained(path, config, revision, video, device=device, dtype=dtype, scheduler=scheduler)
        return cls.from_model(model)

    @classmethod
    def from_model(cls, model: ResolvedModel) -> "TransitionPipeline":
        """Load the video model of a resolved model."""
        return cls(load_video_model(model), build_sampling(model.video))

    def to(self, target: "str | torch.device | torch.dtype") -> "TransitionPipeline":
        """Move the networks to a device or a dtype."""
        move_to_device(self.model, target)
        return self

    def __call__(
        self,
        start: Image.Image | np.ndarray | str | Path,
        end: Image.Image | np.ndarray | str | Path,
        prompt: str = "",
        *,
        seed: int = 0,
        generator: torch.Generator | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        boundary_frames: BoundaryFrames | None = None,
        callback_on_step_end: StepCallback | None = None,
        output_type: str = "pil",
    ) -> TransitionPipelineOutput:
        """Generate one transition.

        Args:
            start, end: images of one size: PIL, uint8 (H, W, 3), or a file.
            prompt: what the clip shows.
            seed: of the starting noise.
            generator: draws the seed instead.
            num_frames: both boundary frames included. None takes the default, likewise for the next three.
            boundary_frames: `clamped` or `free`; see `TransitionSampling`.
            callback_on_step_end: diffusers' callback(pipe, step, timestep, tensors), where tensors has `latents`.
            output_type: `pil` or `np`.

        Raises:
            UserError: images that cannot be read or differ in size, a wrong argument, more frames than the model
                supports, or too little memory.
        """
        check_choice("output_type", output_type, OUTPUT_TYPES)
        given = {
            "frames": num_frames,
            "steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            "boundary_frames": boundary_frames,
        }
        sampling = replace(self.sampling, **{name: value for name, value in given.items() if value is not None})
        seed = seed if generator is None else draw_seed(generator)

        def on_step(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
            if callback_on_step_end is None:
                return latents
            changed = callback_on_step_end(self, step, timestep, {"latents": latents}) or {}
            return changed.get("latents", latents)

        clip = sample_clips(self.model, _to_tensor(start), _to_tensor(end), [prompt], [seed], sampling, on_step)
        frames = clip[0].permute(0, 2, 3, 1).numpy()
        if output_type == "np":
            return TransitionPipelineOutput(frames.astype(np.float32) / 255, seed)
        return TransitionPipelineOutput([Image.fromarray(frame) for frame in frames], seed)


def _to_tensor(image: Image.Image | np.ndarray | str | Path) -> Tensor:
    """Convert an image or its file to uint8 (1, 3, H, W)."""
    if isinstance(image, str | Path):
        image = read_image(Path(image))
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None]


def sample_clips(
    model: VideoModel,
    start: Tensor,
    end: Tensor,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: TransitionSampling,
    on_step: ClipCallback = lambda step, timestep, latents: latents,
    token_frames: Tensor | None = None,
) -> Tensor:
    """Sample B transitions as one batch.

    Args:
        start, end: uint8 (B, 3, H, W).
        prompts: what each clip shows; "": unknown.
        seeds: of each clip's starting noise, which depends on nothing else.
        on_step: called after each step.
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
    if not len(start) == len(prompts) == len(seeds):
        raise ValueError(f"{len(start)} clips, {len(prompts)} prompts, {len(seeds)} seeds")
    try:
        latents = sample_latents(model, start, end, prompts, seeds, sampling, on_step, token_frames)
        frames = decode_frames(model.vae, latents)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"the GPU has too little memory for {sampling.frames} frames of {start.shape[3]} × {start.shape[2]}: "
            "choose fewer frames or a smaller size"
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
    on_step: ClipCallback = lambda step, timestep, latents: latents,
    token_frames: Tensor | None = None,
) -> Tensor:
    """Sample the latents (B, C, F, h, w) that `sample_clips` decodes, on the model's device."""
    weight = next(model.video_unet.parameters())
    ends = [encode_images(model.vae, images).to(weight) for images in (start, end)]
    is_guided = sampling.guidance_scale > 1
    text = _encode_prompts(model, prompts, is_guided)
    semantic = _encode_motion(model, start, end, sampling.frames, is_guided, token_frames)
    shape = (ends[0].shape[1], sampling.frames, *ends[0].shape[2:])
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    scheduler = copy.deepcopy(model.scheduler)  # set_timesteps changes it
    scheduler.set_timesteps(sampling.steps, device=weight.device)
    control = model.sparse_control and model.sparse_control.make_residual_function(
        ends[0], ends[1], sampling.frames, text
    )
    latents = torch.stack(noise).to(weight) * scheduler.init_noise_sigma
    for step, timestep in enumerate(scheduler.timesteps):
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
        check_latents(latents, step)
        latents = on_step(step, timestep, latents)
    return with_boundary_frames(latents, *ends) if sampling.boundary_frames == "clamped" else latents


def _encode_prompts(model: VideoModel, prompts: Sequence[str], is_guided: bool) -> Tensor:
    """Return text (B, T, D); with guidance that of the empty prompt first, (2B, T, D)."""
    texts = [""] * len(prompts) + list(prompts) if is_guided else list(prompts)
    return model.encode_text(texts).to(next(model.video_unet.parameters()))


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
    semantic = semantic.to(next(model.video_unet.parameters()))
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
