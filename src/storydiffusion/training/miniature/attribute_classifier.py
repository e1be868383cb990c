"""Training of `storyworld.attribute_classifier` on rendered images, blurred, tinted and made noisy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from storydiffusion.config.miniature import AttributeClassifierRecipe
from storydiffusion.storyworld.attribute_classifier import CLASSIFIERS, AttributeClassifier
from storydiffusion.storyworld.edition import Edition, get_edition
from storydiffusion.storyworld.images import HELD_OUT_SEED, RenderedImages, draw, to_tensor
from storydiffusion.storyworld.scene import sample_scene
from storydiffusion.storyworld.spoilt import FAULTS, render_spoilt
from storydiffusion.training.miniature.recipe_module import RecipeModule
from storydiffusion.training.miniature.stream import Stream

ABSENT = -1
"""Label of an attribute that a truth lacks (hair of a bear); ignored in training and scores."""


def build_labels(edition: Edition, truths: Sequence[Any]) -> dict[str, Tensor]:
    """Return for every attribute of `edition` the index of each truth's value, or ABSENT."""
    read = [edition.get_labels(truth) for truth in truths]

    def index(name: str, value: str | None) -> int:
        return ABSENT if value is None else edition.labels[name].index(value)

    return {name: torch.tensor([index(name, labels[name]) for labels in read]) for name in edition.labels}


def attribute_loss(logits: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    """Return the mean over attributes of the cross-entropy of logits (B, values) with labels (B,), without ABSENT."""
    losses = []
    for name, predicted in logits.items():
        target = labels[name]
        total = nn.functional.cross_entropy(predicted, target, ignore_index=ABSENT, reduction="sum")
        losses.append(total / (target != ABSENT).sum().clamp(min=1))  # a batch may contain no character with hair
    return torch.stack(losses).mean()


@dataclass  # not frozen: Lightning moves batches to devices by setting fields
class LabelledImages:
    """`images` float32 (B, 3, 128, 128) in [−1, 1]; `labels` as returned by `build_labels`."""

    images: Tensor
    labels: dict[str, Tensor]


class AttributeClassifierModule(RecipeModule):
    """Train `self.classifier`."""

    EDGES = ("features.0.", "heads", "position", "queries")

    def __init__(self, recipe: AttributeClassifierRecipe) -> None:
        super().__init__(recipe)
        self.recipe: AttributeClassifierRecipe = recipe
        self.edition = get_edition(recipe.edition)
        self.classifier = CLASSIFIERS[recipe.edition](recipe.channels)

    def train_dataloader(self) -> Stream:
        return Stream(self.labelled, self.recipe.steps)

    def labelled(self, step: int) -> LabelledImages:
        size = self.recipe.batch_size
        rendered = self.draw(self.recipe.seed, range(step * size, (step + 1) * size))
        labels = build_labels(self.edition, rendered.truths)
        return LabelledImages(degrade(rendered.images, self.generator(step)), labels)

    def draw(self, seed: int, indices: range) -> RenderedImages:
        """Render the images `indices` of the world `seed` in the recipe's edition."""
        return draw(seed, indices, edition=self.edition.number)

    def loss(self, batch: LabelledImages) -> dict[str, Tensor]:
        return {"loss": attribute_loss(self.classifier(batch.images), batch.labels)}

    @torch.no_grad()
    def export(self, folder: Path) -> dict[str, float]:
        """Write the classifier; return its accuracy for each attribute on 2,000 held-out renders.

        That of the second edition is also measured on spoilt images, over all attributes of 200 with each fault.
        """
        self.classifier.save(folder / "attribute_classifier")
        classifier = AttributeClassifier.load(folder / "attribute_classifier")  # measure the exported weights
        correct: dict[str, list[bool]] = {name: [] for name in classifier.labels}
        for first in range(0, 2000, 100):
            batch = self.draw(HELD_OUT_SEED, range(first, first + 100))
            for name, hits in find_hits(classifier, self.edition, batch).items():
                correct[name] += hits
        accuracy = {name: sum(hits) / len(hits) for name, hits in correct.items()}
        return accuracy | (measure_spoilt(classifier) if self.edition.number == 2 else {})


def find_hits(classifier: AttributeClassifier, edition: Edition, batch: RenderedImages) -> dict[str, list[bool]]:
    """Return for every attribute whether it is read right, for each image that has it."""
    truths = [edition.get_labels(truth) for truth in batch.truths]
    hits = {}
    for name, values in classifier.read(batch.images).items():
        pairs = [(value, truth[name]) for value, truth in zip(values, truths, strict=True)]
        hits[name] = [value == true for value, true in pairs if true is not None]
    return hits


def measure_spoilt(classifier: AttributeClassifier, images: int = 200) -> dict[str, float]:
    """Return the accuracy over all attributes on held-out images of one or two characters, by fault."""
    accuracy = {}
    for fault in FAULTS:
        scenes = tuple(sample_scene(HELD_OUT_SEED, index, count=1 + index % 2) for index in range(images))
        spoilt = to_tensor(np.stack([render_spoilt(scene, fault) for scene in scenes]))
        hits = find_hits(classifier, get_edition(2), RenderedImages(spoilt, scenes))
        right = [hit for each in hits.values() for hit in each]
        accuracy[f"spoilt: {fault}"] = sum(right) / len(right)
    return accuracy


def degrade(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur half of the images, and tint and add noise to all, each by its own random amount."""
    count = len(images)

    def amount(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator).to(images.device)

    blurred = nn.functional.avg_pool2d(nn.functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = images.lerp(blurred, amount(1, 1, 1) * (amount(1, 1, 1) < 0.5))
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    tint = (amount(3, 1, 1) - 0.5) * 0.16
    return images * (0.9 + 0.2 * amount(1, 1, 1)) + tint + 0.1 * amount(1, 1, 1) * noise
