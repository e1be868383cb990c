"""Tiny videos and shards."""

import io
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from storydiffusion.output.video_file import write_video

STEP = 8  # brightness from one frame to the next


def frames_of(count: int, height: int = 32, width: int = 64, first: int = 10) -> Iterator[np.ndarray]:
    """Flat frames that encode their own number: frame i has brightness first + i·STEP, its left edge is dark."""
    for number in range(count):
        picture = np.full((height, width, 3), first + number * STEP, np.uint8)
        picture[:, :8] = 0
        yield picture


def numbers_in(frames: np.ndarray, first: int = 10) -> list[int]:
    """The numbers of decoded frames (F, 3, H, W), read from their right half."""
    values = frames[..., frames.shape[-1] // 2 :].reshape(len(frames), -1).astype(float).mean(1)
    return [round((value - first) / STEP) for value in values]


def video(path: Path, frames: int = 12, **size: int) -> bytes:
    write_video(path, frames_of(frames, **size), 8)
    return path.read_bytes()


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shard(path: Path, keys: list[str], blob: bytes) -> Path:
    """A shard of the same video under several keys, each captioned by its key."""
    members = {}
    for key in keys:
        members |= {f"{key}.mp4": blob, f"{key}.txt": f"caption {key}".encode(), f"{key}.json": b"{}"}
    return write_tar(path, members)
