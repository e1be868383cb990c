"""StoryWorld's clips as a source of captioned videos for shards."""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from storydiffusion.data.sources import SourceClip
from storydiffusion.output.video_file import encode_video
from storydiffusion.storyworld.clips import ClipTruth, caption_clip, follow, render_clip, sample_clip


@dataclass(frozen=True)
class StoryWorldVideo:
    """A clip of StoryWorld, drawn and encoded when called."""

    seed: int
    index: int
    frames: int
    size: int
    fps: int

    def __call__(self) -> bytes:
        frames = render_clip(sample_clip(self.seed, self.index), self.frames, self.size)
        with tempfile.TemporaryDirectory() as folder:  # an MP4 with its index in front cannot be written to memory
            encode_video(Path(folder) / "clip.mp4", frames, self.fps)
            return (Path(folder) / "clip.mp4").read_bytes()


@dataclass(frozen=True)
class StoryWorldSource:
    """The first `clips` clips of a seed, each with the truth of every frame."""

    clips: int
    seed: int
    frames: int
    size: int
    fps: int

    @property
    def description(self) -> dict[str, Any]:
        drawn = asdict(self)
        del drawn["clips"]  # a longer source extends a shorter one
        return {"source": "storyworld", **drawn}

    def __len__(self) -> int:
        return self.clips

    def __iter__(self) -> Iterator[SourceClip]:
        for index in range(self.clips):
            clip = sample_clip(self.seed, index)
            yield SourceClip(
                name=f"storyworld-{self.seed}-{index}",
                caption=caption_clip(clip, index),
                record=partial(_build_record, clip, self.frames, self.size),
                video=StoryWorldVideo(self.seed, index, self.frames, self.size, self.fps),
            )


def _build_record(clip: ClipTruth, frames: int, size: int) -> dict[str, Any]:
    return {"clip": asdict(clip), "truth": [asdict(frame) for frame in follow(clip, frames, size)]}
