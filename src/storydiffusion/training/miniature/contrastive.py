"""The miniature's image-text encoder: transformers' CLIPModel, trained by contrast on StoryWorld (CLIP, 2103.00020).

A batch contains families: images of the same kind, action, place and object that differ only in attire. Without
them, kind and place decide the contrast and the words for clothes are never learned.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from storydiffusion.config.miniature import ClipRecipe
from storydiffusion.models.convolutional_clip import ConvolutionalClip, ConvolutionalClipConfig
from storydiffusion.storyworld.attribute_classifier import SceneReader
from storydiffusion.storyworld.edition import Edition, get_edition
from storydiffusion.storyworld.images import HELD_OUT_SEED, IMAGE_SIZE, to_tensor
from storydiffusion.training.miniature.attribute_classifier import attribute_loss, build_labels, degrade
from storydiffusion.training.miniature.recipe_module import RecipeModule, declare_float32
from storydiffusion.training.miniature.stream import Stream
from storydiffusion.training.miniature.tokenizer import build_tokenizer

FAMILY = 8
HEAD_WIDTH = {"vit": 32, "resnet": 64, "plain": 64}
"""Channels of an attention head, by `recipe.tower`"""


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
    tower: dict[str, Any] = {} if recipe.tower == "vit" else {"tower": recipe.tower}
    vision = CLIPVisionConfig(
        hidden_size=recipe.image_width,
        intermediate_size=4 * recipe.image_width,
        num_hidden_layers=recipe.image_layers,
        num_attention_heads=recipe.image_width // HEAD_WIDTH[recipe.tower],
        image_size=IMAGE_SIZE,
        patch_size=recipe.patch_size,
        **tower,
    )
    config_type = CLIPConfig if recipe.tower == "vit" else ConvolutionalClipConfig
    config = config_type(projection_dim=recipe.projection)
    config.text_config = build_text_config(recipe.width, recipe.text_layers, recipe.edition)
    config.vision_config = vision
    return ConvolutionalClip(config) if isinstance(config, ConvolutionalClipConfig) else CLIPModel(config)


class AttributeHeads(nn.Module):
    """Read attributes from the image tower's tokens: each has a query that attends to them and a linear classifier."""

    def __init__(self, width: int, values: Mapping[str, int]) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(len(values), width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.heads = nn.ModuleList(nn.Linear(width, count) for count in values.values())
        self.names = tuple(values)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Tokens (B, M, C) → the logits (B, values) of every attribute."""
        attention = (self.queries @ self.norm(tokens).mT).softmax(-1)  # (B, attributes, M)
        read = (attention @ tokens).unbind(1)
        return {name: head(part) for name, head, part in zip(self.names, self.heads, read, strict=True)}


def build_attribute_heads(recipe: ClipRecipe, edition: Edition) -> nn.Module:
    """Return what maps the image tower's tokens to the logits of every attribute.

    Where images show several characters, one query for each attribute learns slowly which character it is of.
    """
    if edition.most_characters == 1:
        return AttributeHeads(recipe.image_width, {name: len(values) for name, values in edition.labels.items()})
    grid = (IMAGE_SIZE // recipe.patch_size) ** 2
    return SceneReader(recipe.image_width, grid + (recipe.tower == "vit"))  # whose first token is of no patch


@dataclass  # not frozen: Lightning moves batches to devices by setting fields
class Pairs:
    """`images` float32 (B, 3, 128, 128) in [−1, 1]; `tokens` int64 (B, N), the caption of each; `labels` as returned
    by `build_labels`.
    """

    images: Tensor
    tokens: Tensor
    labels: dict[str, Tensor]


class ClipModule(RecipeModule):
    """Train `self.clip` by the symmetric contrastive loss, and by its attributes where they have a weight."""

    EDGES = (
        "patch_embedding", "projection", "class_embedding", "logit_scale", "tower.conv1", "tower.stages.0", "attnpool",
        "attribute_heads.queries", "attribute_heads.position", "attribute_heads.heads", "scene_heads", "figure_heads",
    )  # fmt: skip

    def __init__(self, recipe: ClipRecipe) -> None:
        super().__init__(recipe)
        self.recipe: ClipRecipe = recipe
        self.clip: Any = build_clip(recipe)
        self.edition = get_edition(recipe.edition)
        self.tokenizer = build_tokenizer(recipe.edition)
        self.attribute_heads = build_attribute_heads(recipe, self.edition) if recipe.attribute_weight else None

    def train_dataloader(self) -> Stream:
        return Stream(self.training_pairs, self.recipe.steps)

    def training_pairs(self, step: int) -> Pairs:
        """Return the batch of a step, its images degraded if the recipe says so."""
        batch = self.pairs(self.recipe.seed, step * self.recipe.batch_size)
        if self.recipe.degrade:
            batch.images = degrade(batch.images, self.generator(step))
        return batch

    def pairs(self, seed: int, first: int) -> Pairs:
        """Render the batch whose first truth has index `first`, families before others, with a caption for each."""
        world, size = self.edition, self.recipe.batch_size
        alike = round(self.recipe.family_share * size)
        truths = [world.sample_relative(seed, first + i, FAMILY) for i in range(alike)]
        truths += [world.sample(seed, first + i) for i in range(alike, size)]
        named = () if self.recipe.naming_probability is None else (self.recipe.naming_probability,)
        captions = [world.caption(truth, seed * 1_000_003 + first + i, *named) for i, truth in enumerate(truths)]
        tokens = self.tokenizer(captions, padding="max_length", truncation=False, return_tensors="pt").input_ids
        images = to_tensor(np.stack([world.render(truth, IMAGE_SIZE) for truth in truths]))
        return Pairs(images, tokens, build_labels(world, truths))

    def loss(self, batch: Pairs) -> dict[str, Tensor]:
        output = self.clip(input_ids=batch.tokens, pixel_values=batch.images)
        logits = output.logits_per_image
        target = torch.arange(len(logits), device=logits.device)
        cross_entropy = nn.functional.cross_entropy
        loss = (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2
        terms = {"accuracy": (logits.argmax(dim=1) == target).float().mean()}
        if self.attribute_heads is not None:
            read = self.attribute_heads(output.vision_model_output.last_hidden_state)
            terms |= {"contrast": loss, "attributes": attribute_loss(read, batch.labels)}
            loss = loss + self.recipe.attribute_weight * terms["attributes"]
        return {"loss": loss, **terms}

    @torch.no_grad()
    def export(self, folder: Path) -> dict[str, float]:
        """Write the transformers folder with its tokenizer.

        Returns:
            The retrieval accuracy in held-out batches, and the attribute heads' accuracy, if there are any.
        """
        self.eval()
        batches = [self.pairs(HELD_OUT_SEED, i * self.recipe.batch_size) for i in range(8)]
        accuracy = torch.stack([self.loss(batch)["accuracy"] for batch in batches]).mean().item()
        attributes = self.measure_attributes(batches)
        self.clip.to(torch.float16).save_pretrained(folder / "image_encoder")
        declare_float32(folder / "image_encoder")
        build_tokenizer(self.recipe.edition).save_pretrained(folder / "image_encoder")
        return {f"image_to_text_accuracy_of_{self.recipe.batch_size}": accuracy, **attributes}

    def measure_attributes(self, batches: Sequence[Pairs]) -> dict[str, float]:
        """Return the share of images whose attribute the heads read right, where an image has it."""
        if self.attribute_heads is None:
            return {}
        hits: dict[str, list[Tensor]] = {}
        for batch in batches:
            tokens = self.clip.vision_model(batch.images).last_hidden_state
            for name, logits in self.attribute_heads(tokens).items():
                there = batch.labels[name] >= 0
                hits.setdefault(name, []).append((logits.argmax(1) == batch.labels[name])[there].float())
        means = {name: torch.cat(found).mean().item() for name, found in hits.items()}
        return {f"attribute heads: {name}": mean for name, mean in means.items() if not math.isnan(mean)}
