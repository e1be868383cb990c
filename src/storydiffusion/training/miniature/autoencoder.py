"""The miniature's AutoencoderKL: 8 × 8 pixels become one latent position, as in Stable Diffusion.

The network is fully convolutional (no attention), so it learns from crops and serves any size divisible by 8.
Loss: L1 on pixels + L1 on differences of neighboring pixels (flat drawings depend on their outlines) + KL.
Characters are small and have most of what captions name: `recipe.character_weight` is the weight of their pixels.

With `recipe.freeze_encoder` only the decoder is trained, so that a U-Net trained on the latents stays valid.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from storydiffusion.config import TrainConfig
from storydiffusion.config.miniature import AutoencoderRecipe
from storydiffusion.loaders.sources import find_model_folder
from storydiffusion.storyworld.edition import get_edition
from storydiffusion.storyworld.images import HELD_OUT_SEED, IMAGE_SIZE, draw
from storydiffusion.training.miniature.recipe_module import RecipeModule
from storydiffusion.training.miniature.stream import Stream


def build_autoencoder(recipe: AutoencoderRecipe) -> AutoencoderKL:
    """Return the network with new weights."""
    levels = len(recipe.block_out_channels)
    return AutoencoderKL(
        sample_size=IMAGE_SIZE,
        latent_channels=recipe.latent_channels,
        block_out_channels=recipe.block_out_channels,  # type: ignore[arg-type]  # annotated as a tuple of one
        layers_per_block=recipe.layers_per_block,
        down_block_types=("DownEncoderBlock2D",) * levels,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * levels,  # type: ignore[arg-type]
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


@dataclass  # not frozen: Lightning moves batches to devices by setting fields
class Crops:
    """`images` float32 (B, 3, crop, crop) in [−1, 1]; `weights` of their pixels, (B, 1, crop, crop)."""

    images: Tensor
    weights: Tensor


class AutoencoderModule(RecipeModule):
    """Train `self.autoencoder` on random crops of freshly rendered images.

    Args:
        recipe: see `AutoencoderRecipe`.
        start: folder of an autoencoder to train further; None starts from scratch.
    """

    EDGES = ("conv_in", "conv_out", "quant_conv")

    def __init__(self, recipe: AutoencoderRecipe, start: Path | None = None) -> None:
        super().__init__(recipe)
        self.recipe: AutoencoderRecipe = recipe
        network: Any = (
            build_autoencoder(recipe)
            if start is None
            else AutoencoderKL.from_pretrained(start, torch_dtype=torch.float32)
        )
        self.autoencoder = network.train().to(memory_format=torch.channels_last)
        if recipe.freeze_encoder:
            for part in (self.autoencoder.encoder, self.autoencoder.quant_conv):
                part.requires_grad_(False)

    @classmethod
    def from_config(cls, config: TrainConfig) -> Self:
        recipe = config.recipe
        return cls(recipe, find_model_folder(config.miniature, None) / "vae" if recipe.warm_start else None)

    def train_dataloader(self) -> Stream:
        return Stream(self.crops, self.recipe.steps)

    def crops(self, step: int) -> Crops:
        """Return batch `step`: four crops of each image, so that fewer images are rendered."""
        recipe = self.recipe
        count = -(-recipe.batch_size // 4)
        drawn = draw(recipe.seed, range(step * count, (step + 1) * count), edition=recipe.edition)
        whole = torch.cat([drawn.images, self.weigh(drawn.truths)], 1)
        corners = torch.randint(
            IMAGE_SIZE - recipe.crop + 1, (recipe.batch_size, 2), generator=self.generator(step)
        ).tolist()
        cut = torch.stack(
            [whole[i // 4, :, y : y + recipe.crop, x : x + recipe.crop] for i, (y, x) in enumerate(corners)]
        )
        return Crops(cut[:, :3].contiguous(memory_format=torch.channels_last), cut[:, 3:])

    def weigh(self, truths: Sequence[Any]) -> Tensor:
        """Return the weights of the pixels of whole images, (B, 1, H, W)."""
        weight, world = self.recipe.character_weight, get_edition(self.recipe.edition)
        if weight == 1:  # masks take as long to draw as images
            return torch.ones(len(truths), 1, IMAGE_SIZE, IMAGE_SIZE)
        masks = np.stack([world.character_masks(truth, IMAGE_SIZE).any(0, keepdims=True) for truth in truths])
        return 1 + (weight - 1) * torch.from_numpy(masks).float()

    def loss(self, batch: Crops) -> dict[str, Tensor]:
        posterior = self.autoencoder.encode(batch.images).latent_dist
        decoded = self.autoencoder.decode(posterior.sample()).sample
        pixel, edge = weighted_distances(decoded, batch.images, batch.weights)
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = pixel + self.recipe.edge_weight * edge + self.recipe.kl_weight * kl
        return {"loss": loss, "pixel": pixel, "edge": edge, "kl": kl, "noise": posterior.std.mean()}

    @torch.no_grad()
    def export(self, folder: Path) -> dict[str, float]:
        """Write the diffusers folder; return the PSNR on held-out images."""
        self.autoencoder.eval()
        held_out = draw(HELD_OUT_SEED, range(128), edition=self.recipe.edition).images
        latents, errors = [], []
        for images in held_out.split(16):
            latent = self.autoencoder.encode(images).latent_dist.mean
            decoded = self.autoencoder.decode(latent).sample.clamp(-1, 1)
            latents.append(latent)
            errors.append(((decoded - images) / 2).square().mean(dim=(1, 2, 3)))
        if not self.recipe.freeze_encoder:
            self.autoencoder.register_to_config(scaling_factor=1 / torch.cat(latents).std().item())
        self.autoencoder.register_to_config(_name_or_path="")
        self.autoencoder.to(torch.float16).save_pretrained(folder / "vae")
        return {"psnr_db": (-10 * torch.cat(errors).log10()).mean().item()}


def weighted_distances(a: Tensor, b: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weighted mean L1 distances of the pixels, and of the differences of neighboring pixels.

    Images (B, C, H, W), weights (B, 1, H, W). A difference has the mean weight of its two pixels.
    """
    weights, difference = weights / weights.mean(), a - b
    across = (weights[..., 1:] + weights[..., :-1]) / 2 * difference.diff(dim=-1).abs()
    down = (weights[..., 1:, :] + weights[..., :-1, :]) / 2 * difference.diff(dim=-2).abs()
    return (weights * difference.abs()).mean(), (across.mean() + down.mean()) / 2
