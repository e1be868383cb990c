"""`storydiffusion make-shards`: write shards of captioned videos."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

from storydiffusion.config.command_line import command
from storydiffusion.errors import UserError
from storydiffusion.output.folder_lock import own_folder

COMMON = ("source", "out", "clips_per_shard", "workers", "backend")
"""Settings of the command; all others belong to the source."""
RANGES = {
    "clips_per_shard": (1, 100_000),
    "workers": (0, 1024),
    "clips": (1, 10**8),
    "seed": (0, 2**32 - 1),
    "frames": (2, 1000),
    "size": (16, 1024),
    "fps": (1, 120),
    "edition": (1, 2),
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
    video: str | None = None
    caption: str | None = None
    id: str | None = None
    clips: int | None = None
    seed: int | None = None
    frames: int | None = None
    size: int | None = None
    fps: int | None = None
    edition: int | None = None

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UserError(f"{name}={value} is outside {low}…{high}")
        if self.size is not None and self.size % 2:
            raise UserError(f"size={self.size} is odd, which video cannot be: take {self.size + 1}")


@command(MakeShardsConfig)
def main(config: MakeShardsConfig) -> None:
    from storydiffusion.data.shard_writer import REJECTS, WriterOptions, write_shards
    from storydiffusion.data.video_reader import check_backend
    from storydiffusion.training.clip_sources import build_source

    check_backend(config.backend)
    options = WriterOptions(config.clips_per_shard, config.workers or os.cpu_count() or 1, config.backend)
    source = build_source(config.source, {key: value for key, value in asdict(config).items() if key not in COMMON})
    with own_folder(config.out):
        manifest = write_shards(source, config.out, options)
    rejected = f", {manifest.rejected} rejected, see {Path(config.out) / REJECTS}" if manifest.rejected else ""
    print(f"made {len(manifest.shards)} shards of {manifest.samples:,} clips{rejected}: {config.out}")
