"""`storydiffusion make-shards`: write shards of captioned videos."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from storydiffusion.config.command_line import command
from storydiffusion.errors import UserError

if TYPE_CHECKING:
    from storydiffusion.data.sources import ClipSource

RANGES = {
    "clips_per_shard": (1, 100_000),
    "workers": (0, 1024),
    "clips": (1, 10**8),
    "seed": (0, 2**32 - 1),
    "frames": (2, 1000),
    "size": (16, 1024),
    "fps": (1, 120),
}


@dataclass
class MakeShardsConfig:
    """conf/make_shards.yaml and one of conf/source/*.yaml, which sets the keys of its own kind."""

    source: str
    out: str
    clips_per_shard: int
    workers: int
    backend: str
    csv: str | None = None
    videos: str | None = None
    clips: int | None = None
    seed: int | None = None
    frames: int | None = None
    size: int | None = None
    fps: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UserError(f"{name}={value} is outside {low}…{high}")
        if self.size is not None and self.size % 2:
            raise UserError(f"size={self.size} is odd, which video cannot be: take {self.size + 1}")


def build_source(config: MakeShardsConfig) -> "ClipSource":
    """Return the source that config.source names."""
    from storydiffusion.data.sources import OPENVID, WEBVID, CsvSource

    if config.source == "storyworld":
        from storydiffusion.storyworld.clip_source import StoryWorldSource

        values = (config.clips, config.seed, config.frames, config.size, config.fps)
        return StoryWorldSource(*(value for value in values if value is not None))
    layout = {layout.name: layout for layout in (WEBVID, OPENVID)}[config.source]
    return CsvSource(layout, str(config.csv), str(config.videos))


@command(MakeShardsConfig)
def main(config: MakeShardsConfig) -> None:
    from storydiffusion.data.shard_writer import REJECTS, WriterOptions, write_shards
    from storydiffusion.data.video_reader import check_backend

    check_backend(config.backend)
    options = WriterOptions(config.clips_per_shard, config.workers or os.cpu_count() or 1, config.backend)
    manifest = write_shards(build_source(config), config.out, options)
    rejected = f", {manifest.rejected} rejected, see {Path(config.out) / REJECTS}" if manifest.rejected else ""
    print(f"made {len(manifest.shards)} shards of {manifest.samples:,} clips{rejected}: {config.out}")
