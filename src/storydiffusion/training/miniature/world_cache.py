"""Latents and masks of drawn images, computed once and kept in files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from tqdm import tqdm

from storydiffusion.files.atomic import draft
from storydiffusion.files.checksums import compute_sha256
from storydiffusion.storyworld.edition import Edition
from storydiffusion.storyworld.images import IMAGE_SIZE, to_tensor

Sample = Callable[[int], Any]
"""Number of an image → its truth"""


def name_caches(cache: Path, world: str, vae: Path) -> tuple[Path, Path]:
    """Return the files of the latents, which are those of one autoencoder, and of the masks."""
    weights = compute_sha256(vae / "diffusion_pytorch_model.safetensors")[:8]
    return cache / f"{world}_{weights}.npy", cache / f"{world}_cover.npy"


def cache_world(latents: Path, cover: Path, vae: Path, world: Edition, sample: Sample, count: int) -> None:
    """Write the files of the first `count` images that do not exist yet."""
    if not latents.exists():
        autoencoder = AutoencoderKL.from_pretrained(vae, torch_dtype=torch.float32)
        _save(latents, encode_world(autoencoder, world, sample, count))
    if not cover.exists():
        _save(cover, cover_world(world, sample, count))


def _save(target: Path, maps: np.ndarray) -> None:
    with draft(target) as file, file.open("wb") as stream:
        np.save(stream, maps)


@torch.no_grad()
def encode_world(autoencoder: Any, world: Edition, sample: Sample, count: int, chunk: int = 25) -> np.ndarray:
    """Return the scaled latents of images 0 … count − 1, float16 (count, C, 16, 16)."""
    parts = []
    for first in tqdm(range(0, count, chunk), desc="encoding StoryWorld", unit_scale=chunk):
        truths = [sample(index) for index in range(first, min(count, first + chunk))]
        images = to_tensor(np.stack([world.render(truth, IMAGE_SIZE) for truth in truths]))
        latents = autoencoder.encode(images.contiguous(memory_format=torch.channels_last)).latent_dist.mean
        parts.append((latents * autoencoder.config.scaling_factor).half().numpy())
    return np.concatenate(parts)


def cover_world(world: Edition, sample: Sample, count: int) -> np.ndarray:
    """Return the share of each latent position that each character covers, uint8 of 0 to 255, (count, C, 16, 16)."""
    cells = IMAGE_SIZE // 8
    cover = np.zeros((count, world.most_characters, cells, cells), np.uint8)
    for index in tqdm(range(count), desc="masks of StoryWorld"):
        masks = world.character_masks(sample(index), IMAGE_SIZE)
        cover[index, : len(masks)] = np.round(255 * masks.reshape(-1, cells, 8, cells, 8).mean((2, 4)))
    return cover
