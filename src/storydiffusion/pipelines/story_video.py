"""Pictures → one video: each picture stands for a while, and transitions lead from one to the next.

Pictures are read, transitions sampled and frames written one after the other: the memory is that of one transition,
however long the story. Transitions are kept beside the video as film strips, each with a digest of all that it was made
from; so an interrupted video goes on where it stopped, and one of other settings makes anew what they change.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
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
from storydiffusion.pipelines.transition import TransitionSampling, sample_clips
from storydiffusion.story.given_images import read_image


@dataclass(frozen=True)
class Scene:
    """One picture of the video. `prompt` and `caption` may be ''; `cut` leaves out the transition into it.

    The text of a transition is the prompt of the scene that it leads to. A clip's caption tells what happens in it, and
    where that ends is what the next panel's prompt says; both prompts together would be a text that no caption is like.
    """

    picture: Path
    prompt: str = ""
    caption: str = ""
    cut: bool = False


@dataclass(frozen=True)
class Showing:
    """How the video runs: frames a second; seconds that each picture stands; whether captions are set under it."""

    fps: float = 8.0
    hold: float = 1.5
    captions: bool = True

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
) -> None:
    """Renders `path`, an MP4, and the film strips transitions/NNN-NNN.png beside it.

    Args:
        seed: of the story; each transition's own derives from it and from its number.
        made_by: what else decides on the transitions, plain data, such as the checksums of the model's weights: strips
            that were made by something else are made again.

    Raises:
        UserError: a picture that cannot be read, pictures of different sizes, what `sample_clips` refuses, or a
            place that cannot be written. KeyboardInterrupt leaves the strips that are done, and says so.
    """
    path = Path(path)
    numbers = range(1, len(scenes))
    count = sum(not scenes[number].cut for number in numbers)
    with tqdm(desc=f"rendering {count} transitions", unit="step", total=count * sampling.steps) as bar:

        def transition(number: int, start: np.ndarray, end: np.ndarray) -> np.ndarray:
            prompt, its_seed = scenes[number + 1].prompt, transition_seed(seed, number)
            file = path.parent / "transitions" / f"{number + 1:03d}-{number + 2:03d}.png"
            key = _digest(start, end, settings=[asdict(sampling), prompt, its_seed, dict(made_by)])
            frames = read_strip(file, sampling.frames, key)
            if frames is not None:
                bar.update(sampling.steps)
                return frames

            def on_step(step: int, timestep: Any, latents: Tensor) -> Tensor:
                bar.update()
                return latents

            clip = sample_clips(model, _tensor(start), _tensor(end), [prompt], [its_seed], sampling, on_step)
            frames = clip[0].permute(0, 2, 3, 1).numpy()
            write_strip(file, frames, key)
            return frames

        frames = story_frames(_pictures(scenes), transition, [scene.cut for scene in scenes], showing.held_frames)
        captions = [scene.caption if showing.captions else "" for scene in scenes]
        try:
            write_video(path, with_captions(frames, captions), showing.fps)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; {path.parent} keeps the transitions that are done: the same command goes on from there"
            ) from None


def transition_seed(seed: int, number: int) -> int:
    """The seed of the transition behind panel `number`: a function of the story's seed and the number alone."""
    return int(np.random.SeedSequence(seed, spawn_key=(number, 1)).generate_state(1)[0])


def _pictures(scenes: Sequence[Scene]) -> Iterator[np.ndarray]:
    for scene in scenes:
        yield np.asarray(read_image(scene.picture))


def _tensor(picture: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) → (1, 3, H, W)."""
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]


def _digest(*pictures: np.ndarray, settings: list) -> str:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for picture in pictures:
        digest.update(repr(picture.shape).encode() + picture.tobytes())
    return digest.hexdigest()
