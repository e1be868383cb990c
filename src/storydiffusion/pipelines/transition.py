"""Generate a transition: start and end image → the frames from one to the other.

pipe = TransitionPipeline.from_pretrained("package://miniature")
output = pipe("start.png", "end.png", prompt="a girl is running in the park")
output.save("transition.mp4", fps=8)
"""

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from storydiffusion.config.loading import check_choice
from storydiffusion.loaders.boundary_frames import find_untrained, read_boundary_frame_prob
from storydiffusion.loaders.resolve import ResolvedModel, resolve_pretrained
from storydiffusion.loaders.video import load_video_model, move_to_device
from storydiffusion.models.video_model import VideoModel
from storydiffusion.pipelines.panels import StepCallback
from storydiffusion.pipelines.story import OUTPUT_TYPES, draw_seed
from storydiffusion.pipelines.transition_sampling import (
    BoundaryFrames,
    TransitionSampling,
    build_sampling,
    sample_clips,
)
from storydiffusion.story.given_images import read_image


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
        boundary_frame_prob: share of the motion modules' training clips with clean boundary frames; with 0 a call warns
            of `clamped`.
    """

    def __init__(
        self, model: VideoModel, sampling: TransitionSampling | None = None, boundary_frame_prob: float = 1.0
    ) -> None:
        self.model = model
        self.sampling = sampling or TransitionSampling()
        self.boundary_frame_prob = boundary_frame_prob

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        offload: str | None = None,
        scheduler: str | None = None,
        config: str | None = None,
        **video: Any,
    ) -> "TransitionPipeline":
        """Load a text-to-image model with its video parts; an argument of None takes the default of conf/model.

        Args:
            path: `package://miniature`, a folder in diffusers' format, or a hub id. Folders motion_adapter/,
                predictor/ and image_encoder/ in it are its video parts.
            offload: `model` or `sequential`: whole networks are on the GPU only while in use.
            video: settings of conf/model's `video`, such as `predictor="releases/predictor"`, `motion_adapter`,
                `image_encoder` or `boundary_attention`.

            For revision, device, dtype, scheduler and config see `StoryPipeline.from_pretrained`.

        Raises:
            UserError: no such model or part, hub out of reach, unusable weights, parts that do not fit each other, or a
                device that this machine lacks.
        """
        changes = {"device": device, "dtype": dtype, "offload": offload, "scheduler": scheduler}
        return cls.from_model(resolve_pretrained(path, config, revision, video, **changes))

    @classmethod
    def from_model(cls, model: ResolvedModel) -> "TransitionPipeline":
        """Load the video model of a resolved model."""
        trained = read_boundary_frame_prob(model.video.motion_adapter)
        return cls(load_video_model(model), build_sampling(model.video), trained)

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
        negative_prompt: str = "",
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
            negative_prompt: what to avoid; it acts through guidance, so only with a guidance_scale above 1.
            seed: of the starting noise.
            generator: draws the seed instead.
            num_frames: both boundary frames included. None takes the default; the same for the next three.
            boundary_frames: `clamped`, `noised` or `free`; see `TransitionSampling`.
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
        if (untrained := find_untrained(sampling.boundary_frames, self.boundary_frame_prob)) is not None:
            warnings.warn(untrained, stacklevel=2)
        seed = seed if generator is None else draw_seed(generator)

        def on_step(step: int, timestep: Tensor, latents: Tensor) -> Tensor:
            if callback_on_step_end is None:
                return latents
            changed = callback_on_step_end(self, step, timestep, {"latents": latents}) or {}
            return changed.get("latents", latents)

        ends = _to_tensor(start), _to_tensor(end)
        clip = sample_clips(self.model, *ends, [prompt], [seed], sampling, on_step, [negative_prompt])
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
