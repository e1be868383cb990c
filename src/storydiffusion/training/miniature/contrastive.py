"""The miniature's image-text encoder: transformers' CLIPModel, trained by contrast on StoryWorld (CLIP, 2103.00020).

A batch consists of families: images of the same kind, action, place and object that differ in attire alone. Without
them, kind and place decide the contrast and the words for clothes are never learned.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from storydiffusion.config.miniature import ClipRecipe
from storydiffusion.storyworld.edition import get_edition
from storydiffusion.storyworld.images import HELD_OUT_SEED, IMAGE_SIZE, to_tensor
from storydiffusion.training.miniature.recipe_module import RecipeModule, declare_float32
from storydiffusion.training.miniature.stream import Stream
from storydiffusion.training.miniature.tokenizer import build_tokenizer

FAMILY = 8


def build_text_config(width: int, layers: int, edition: int) -> CLIPTextConfig:
    """Return the config of the text tower; the U-Net's text encoder has the same."""
    tokenizer = build_tokenizer(edition)
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def build_clip(recipe: ClipRecipe) -> CLIPModel:
    """Return the model with new weights."""
    vision = CLIPVisionConfig(
        hidden_size=recipe.width,
        intermediate_size=4 * recipe.width,
        num_hidden_layers=recipe.image_layers,
        num_attention_heads=recipe.width // 32,
        image_size=IMAGE_SIZE,
        patch_size=recipe.patch_size,
    )
    config = CLIPConfig(projection_dim=recipe.projection)
    config.text_config = build_text_config(recipe.width, recipe.text_layers, recipe.edition)
    config.vision_config = vision
    return CLIPModel(config)


@dataclass  # not frozen: Lightning moves batches to devices by setting fields
class Pairs:
    """`images` float32 (B, 3, 128, 128) in [−1, 1]; `tokens` int64 (B, N), the caption of each."""

    images: Tensor
    tokens: Tensor


class ClipModule(RecipeModule):
    """Train `self.clip` by the symmetric contrastive loss."""

    EDGES = ("patch_embedding", "projection", "class_embedding", "logit_scale")

    def __init__(self, recipe: ClipRecipe) -> None:
        super().__init__(recipe)
        self.recipe: ClipRecipe = recipe
        self.clip: Any = build_clip(recipe)
        self.edition = get_edition(recipe.edition)
        self.tokenizer = build_tokenizer(recipe.edition)

    def train_dataloader(self) -> Stream:
        return Stream(lambda step: self.pairs(self.recipe.seed, step * self.recipe.batch_size), self.recipe.steps)

    def pairs(self, seed: int, first: int) -> Pairs:
        """Render the batch whose first truth has index `first`, in families, with a caption for each image."""
        world, indices = self.edition, range(first, first + self.recipe.batch_size)
        truths = [world.sample_relative(seed, index, FAMILY) for index in indices]
        captions = [world.caption(truth, seed * 1_000_003 + first + i) for i, truth in enumerate(truths)]
        tokens = self.tokenizer(captions, padding="max_length", truncation=False, return_tensors="pt").input_ids
        return Pairs(to_tensor(np.stack([world.render(truth, IMAGE_SIZE) for truth in truths])), tokens)

    def loss(self, batch: Pairs) -> dict[str, Tensor]:
        logits = self.clip(input_ids=batch.tokens, pixel_values=batch.images).logits_per_image
        target = torch.arange(len(logits), device=logits.device)
        cross_entropy = nn.functional.cross_entropy
        loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
        accuracy = (logits.argmax(dim=1) == target).float().mean()
        return {"loss": loss, "accuracy": accuracy}

    @torch.no_grad()
    def export(self, folder: Path) -> dict[str, float]:
        """Write the transformers folder; return the retrieval accuracy within batches of held-out images."""
        self.clip.eval()
        batches = [self.pairs(HELD_OUT_SEED, i * self.recipe.batch_size) for i in range(8)]
        accuracy = torch.stack([self.loss(batch)["accuracy"] for batch in batches]).mean().item()
        self.clip.to(torch.float16).save_pretrained(folder / "image_encoder")
        declare_float32(folder / "image_encoder")
        return {f"image_to_text_accuracy_of_{self.recipe.batch_size}": accuracy}
