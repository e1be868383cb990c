"""Render one video of a story's images: each image is held for a while, and transitions lead from one to the next.

Images are read, transitions sampled and frames written one after the other, so the memory is that of one transition for
a story of any length. Transitions are kept beside the video as film strips, each with a digest of all that it was made
from: an interrupted video resumes where it stopped, and other settings regenerate only what they change.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from storydiffusion.models.video_model import VideoModel
from storydiffusion.output.film_strip import read_strip, write_strip
from storydiffusion.output.story_frames import story_frames, with_captions
from storydiffusion.output.video_file import write_video
from storydiffusion.pipelines.transition_sampling import TransitionSampling, sample_clips
from storydiffusion.story.given_images import read_image


@dataclass(frozen=True)
class Scene:
    """One image of the video. All texts may be ''; `cut` leaves out the transition into it.

    A transition is conditioned on the prompts of the scene that it leads to: captions of training clips describe what
    happens in them, up to the end, and no caption reads like two prompts in a row.
    """

    image: Path
    prompt: str = ""
    caption: str = ""
    cut: bool = False
    negative_prompt: str = ""


@dataclass(frozen=True)
class Showing:
    """How the video is shown: frames per second, seconds that each image is held, whether captions are set below.

    `fonts` are files that captions use before the bundled fonts.
    """

    fps: float = 8.0
    hold: float = 1.5
    captions: bool = True
    fonts: tuple[str, ...] = ()

    @property
    def held_frames(self) -> int:
        return max(1, round(self.hold * self.fps))


def render_video(
    path: str | Path,
    scenes: Sequence[Scene],
    model: VideoModel,
    sampling: TransitionSampling,
    showing: Showing,
    seed: int,
    made_by: Mapping[str, Any],
    watch: Callable[[int, int], None] = lambda step, steps: None,
) -> None:
    """Render `path`, an MP4, and the film strips transitions/NNN-NNN.png beside it.

    Args:
        seed: of the story; each transition's own seed derives from it and from its number.
        made_by: what else the transitions depend on, plain data such as the checksums of the model's weights: strips
            made with anything else are regenerated.
        watch: called with the steps done and those of all transitions after each; a KeyboardInterrupt that it raises
            ends the call as Ctrl-C does.

    Raises:
        UserError: an image that cannot be read, images of different sizes, what `sample_clips` refuses, or a place that
            cannot be written.
        KeyboardInterrupt: with a message that says what is kept.
    """
    path = Path(path)
    numbers = range(1, len(scenes))
    count = sum(not scenes[number].cut for number in numbers)
    with tqdm(desc=f"rendering {count} transitions", unit="step", total=count * sampling.steps) as bar:

        def transition(number: int, start: np.ndarray, end: np.ndarray) -> np.ndarray:
            prompt, clip_seed = scenes[number + 1].prompt, transition_seed(seed, number)
            negative = scenes[number + 1].negative_prompt if sampling.guidance_scale > 1 else ""
            file = path.parent / "transitions" / f"{number + 1:03d}-{number + 2:03d}.png"
            texts = [prompt, negative] if negative else [prompt]
            key = _digest(start, end, settings=[asdict(sampling), *texts, clip_seed, dict(made_by)])
            frames = read_strip(file, sampling.frames, key)
            if frames is not None:
                bar.update(sampling.steps)
                watch(int(bar.n), int(bar.total))
                return frames

            def on_step(step: int, timestep: Any, latents: Tensor) -> Tensor:
                bar.update()
                watch(int(bar.n), int(bar.total))
                return latents

            ends = _tensor(start), _tensor(end)
            clip = sample_clips(model, *ends, [prompt], [clip_seed], sampling, on_step, [negative])
            frames = clip[0].permute(0, 2, 3, 1).numpy()
            write_strip(file, frames, key)
            return frames

        frames = story_frames(_read_images(scenes), transition, [scene.cut for scene in scenes], showing.held_frames)
        captions = [scene.caption if showing.captions else "" for scene in scenes]
        try:
            write_video(path, with_captions(frames, captions, showing.fonts), showing.fps)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; {path.parent} keeps the finished transitions: the same command resumes from there"
            ) from None


def transition_seed(seed: int, number: int) -> int:
    """Return the seed of the transition after panel `number`, a function only of the story's seed and the number."""
    return int(np.random.SeedSequence(seed, spawn_key=(number, 1)).generate_state(1)[0])


def _read_images(scenes: Sequence[Scene]) -> Iterator[np.ndarray]:
    for scene in scenes:
        yield np.asarray(read_image(scene.image))


def _tensor(image: np.ndarray) -> Tensor:
    """Convert uint8 (H, W, 3) to (1, 3, H, W)."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None]


def _digest(*images: np.ndarray, settings: list) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for image in images:
        digest.update(repr(image.shape).encode() + image.tobytes())
    return digest.hexdigest()
