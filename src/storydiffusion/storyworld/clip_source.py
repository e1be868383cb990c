"""StoryWorld's clips as a source of captioned videos for shards."""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from storydiffusion.data.sources import SourceClip
from storydiffusion.output.video_file import encode_video
from storydiffusion.storyworld.clips import FrameTruth
from storydiffusion.storyworld.edition import get_edition


@dataclass(frozen=True)
class StoryWorldVideo:
    """A clip of StoryWorld, drawn and encoded when called."""

    seed: int
    index: int
    frames: int
    size: int
    fps: int
    edition: int

    def __call__(self) -> bytes:
        world = get_edition(self.edition)
        frames = world.render_clip(world.sample_clip(self.seed, self.index), self.frames, self.size)
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
    edition: int

    @property
    def description(self) -> dict[str, Any]:
        drawn = asdict(self)
        del drawn["clips"]  # a longer source extends a shorter one
        if self.edition == 1:
            del drawn["edition"]  # shards written before there was a second
        return {"source": "storyworld", **drawn}

    def __len__(self) -> int:
        return self.clips

    def __iter__(self) -> Iterator[SourceClip]:
        world = get_edition(self.edition)
        for index in range(self.clips):
            clip = world.sample_clip(self.seed, index)
            yield SourceClip(
                name=f"storyworld-{self.seed}-{index}",
                caption=world.caption_clip(clip, index),
                record=partial(_build_record, self.edition, clip, self.frames, self.size),
                video=StoryWorldVideo(self.seed, index, self.frames, self.size, self.fps, self.edition),
            )


def _build_record(edition: int, clip: Any, frames: int, size: int) -> dict[str, Any]:
    truths = get_edition(edition).follow_clip(clip, frames, size)
    return {"clip": clip.to_dict(), "truth": [_to_dict(frame) for frame in truths]}


def _to_dict(frame: FrameTruth | tuple[FrameTruth, ...]) -> Any:
    """Return the truth of a frame, or of each of its characters, ready for JSON."""
    return [asdict(each) for each in frame] if isinstance(frame, tuple) else asdict(frame)
