"""A linear probe of the eight emotions on the tokens of the miniature's image encoder, by logistic regression.

The truth is StoryWorld's: every image shows one emotion, in the mood of its only character, of both characters, or of
one beside a neutral one.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor, nn

from storydiffusion.config import TrainConfig
from storydiffusion.config.miniature import EmotionProbeRecipe
from storydiffusion.loaders.sources import find_model_folder
from storydiffusion.loaders.video import load_image_encoder
from storydiffusion.models.emotion_probe import FILE, FOLDER, EmotionProbe, Features, embed_images
from storydiffusion.story.emotions import EMOTIONS
from storydiffusion.storyworld.images import HELD_OUT_SEED, IMAGE_SIZE, to_tensor
from storydiffusion.storyworld.scene import MOST_CHARACTERS, Scene, sample_scene
from storydiffusion.storyworld.scene_renderer import render_scene
from storydiffusion.training.miniature.attribute_classifier import degrade
from storydiffusion.training.miniature.recipe_module import RecipeModule
from storydiffusion.training.miniature.stream import Stream

if TYPE_CHECKING:
    from storydiffusion.models.image_encoders import ImageEncoder

FEATURES: Features = "tokens"
"""Of the image: the encoder's one embedding, made to be compared with captions, says less of faces."""
GROUPS = ("one character", "two characters")


@dataclass  # not frozen: Lightning moves batches to devices by setting fields
class EmotionalImages:
    """`features` float32 (B, D), of length 1; `emotions` int64 (B,), places in EMOTIONS."""

    features: Tensor
    emotions: Tensor


class EmotionProbeModule(RecipeModule):
    """Train a linear layer on standardized features; the image encoder in `miniature` stays as it is."""

    EDGES = ("probe",)

    def __init__(self, recipe: EmotionProbeRecipe, miniature: Path) -> None:
        super().__init__(recipe)
        self.recipe: EmotionProbeRecipe = recipe
        encoder = load_image_encoder(str(miniature / "image_encoder"), torch.float32)
        self.frozen = (encoder,)  # a tuple, so that checkpoints do not hold it
        blank = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
        width = embed_images(encoder, blank, FEATURES).shape[1]
        self.standardize = nn.BatchNorm1d(width, affine=False)
        self.probe = nn.Linear(width, len(EMOTIONS))
        nn.init.zeros_(self.probe.weight)
        nn.init.zeros_(self.probe.bias)

    @classmethod
    def from_config(cls, config: TrainConfig) -> Self:
        return cls(config.recipe, find_model_folder(config.miniature, None))

    def train_dataloader(self) -> Stream:
        return Stream(self.training_images, self.recipe.steps)

    def training_images(self, step: int) -> EmotionalImages:
        """Return the batch of a step, blurred, tinted and made noisy as generated images are."""
        size = self.recipe.batch_size
        scenes = [sample_emotional_scene(self.recipe.seed, index) for index in range(step * size, (step + 1) * size)]
        return embed_scenes(self.frozen[0], scenes, self.generator(step))

    def loss(self, batch: EmotionalImages) -> dict[str, Tensor]:
        logits = self.probe(self.standardize(batch.features))
        accuracy = (logits.argmax(dim=1) == batch.emotions).float().mean()
        return {"loss": nn.functional.cross_entropy(logits, batch.emotions), "accuracy": accuracy}

    @torch.no_grad()
    def export(self, folder: Path) -> dict[str, float]:
        """Write the probe with its accuracy on 2,000 held-out renders, which is also returned."""
        probe = self.fold()
        scenes = [sample_emotional_scene(HELD_OUT_SEED, index) for index in range(2000)]
        hits = []
        for first in range(0, len(scenes), 100):
            batch = embed_scenes(self.frozen[0], scenes[first : first + 100])
            hits += (probe.logits(batch.features.numpy()).argmax(-1) == batch.emotions.numpy()).tolist()
        accuracy = average_hits(hits, scenes)
        replace(probe, accuracy=accuracy).save(folder / FOLDER / FILE)
        return accuracy

    def fold(self) -> EmotionProbe:
        """Return the probe of features as they are: the standardization becomes part of weight and bias."""
        mean, variance = self.standardize.running_mean, self.standardize.running_var
        assert mean is not None
        assert variance is not None
        weight = self.probe.weight / (variance + self.standardize.eps).sqrt()
        return EmotionProbe(weight.numpy(), (self.probe.bias - weight @ mean).numpy(), FEATURES, True, {})


EmotionalScene = tuple[Scene, str]
"""A scene and the emotion that it shows"""


def sample_emotional_scene(seed: int, index: int) -> EmotionalScene:
    """Return scene `index` of the emotional world `seed`: an emotion, one or two characters, uniformly.

    Of two characters both show the emotion, or, in half of the scenes, either of them, beside a neutral one.
    """
    rng = random.Random(f"storyworld/2/emotions/{seed}/{index}")
    emotion, count = rng.choice(EMOTIONS), rng.randint(1, MOST_CHARACTERS)
    neutral = rng.choice((None, rng.randrange(MOST_CHARACTERS)))
    scene = sample_scene(seed, index, count=count, mood=emotion)
    if count == MOST_CHARACTERS and neutral is not None:
        figures = list(scene.characters)
        figures[neutral] = replace(figures[neutral], mood="neutral")
        scene = replace(scene, characters=tuple(figures))
    return scene, emotion


def embed_scenes(
    encoder: "ImageEncoder", scenes: Sequence[EmotionalScene], generator: torch.Generator | None = None
) -> EmotionalImages:
    """Render and embed scenes; with a generator their images are degraded first."""
    images = to_tensor(np.stack([render_scene(scene, IMAGE_SIZE) for scene, _ in scenes]))
    if generator is not None:
        images = degrade(images, generator)
    images = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    features = nn.functional.normalize(embed_images(encoder, images, FEATURES), dim=-1)
    return EmotionalImages(features, torch.tensor([EMOTIONS.index(emotion) for _, emotion in scenes]))


def average_hits(hits: Sequence[bool], scenes: Sequence[EmotionalScene]) -> dict[str, float]:
    """Return the share of hits by number of characters, then by emotion."""
    found: dict[str, list[bool]] = {name: [] for name in (*GROUPS, *EMOTIONS)}
    for hit, (scene, emotion) in zip(hits, scenes, strict=True):
        found[GROUPS[len(scene.characters) - 1]].append(hit)
        found[emotion].append(hit)
    return {name: round(sum(part) / len(part), 4) for name, part in found.items()}
