"""The judge: a small convolutional classifier that reads every attribute off a picture.

It is trained on rendered truth and measures generated pictures, so it must not stumble over their small faults:
training pictures are blurred, tinted and made noisy at random.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from storydiffusion.storyworld.pictures import HELD_OUT_SEED, Stream, draw
from storydiffusion.storyworld.recipe_module import RecipeModule
from storydiffusion.storyworld.recipes import JudgeRecipe
from storydiffusion.storyworld.truth import ATTRIBUTES, Truth

ABSENT = -1
"""label of an attribute that a truth does not have (hair of a bear); ignored in training and scores"""


class Judge(nn.Module):
    """(B, 3, 128, 128) in [−1, 1] → for every attribute the logits of its values, (B, values)."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        layers: list[nn.Module] = []
        width = 3
        for out in channels:
            for stride in (2, 1) if width != 3 else (2,):  # no second layer at 64²: it would cost as much as all others
                layers += [nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
                width = out
        side = 128 >> len(channels)
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.1))
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width * side * side, len(values)) for name, values in ATTRIBUTES.items()}
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.features(images)
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, images: Tensor, batch_size: int = 64) -> dict[str, list[str]]:
        """For every attribute the most probable value of each picture, (B, 3, 128, 128) in [−1, 1]."""
        parts = [self(part) for part in images.split(batch_size)]
        return {
            name: [values[i] for part in parts for i in part[name].argmax(dim=1).tolist()]
            for name, values in ATTRIBUTES.items()
        }

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        weights = {
            name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in self.state_dict().items()
        }
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"channels": self.channels}) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Judge":
        judge = cls(json.loads((folder / "config.json").read_text())["channels"])
        judge.load_state_dict(load_file(folder / "model.safetensors"))
        return judge.float().eval()


def labels(truths: Sequence[Truth]) -> dict[str, Tensor]:
    """For every attribute the index of each truth's value, or ABSENT."""
    return {
        name: torch.tensor(
            [ABSENT if getattr(truth, name) is None else values.index(getattr(truth, name)) for truth in truths]
        )
        for name, values in ATTRIBUTES.items()
    }


@dataclass  # not frozen: Lightning moves batches to devices by setting fields
class LabelledPictures:
    """`images` float32 (B, 3, 128, 128) in [−1, 1]; `labels` as of `labels`."""

    images: Tensor
    labels: dict[str, Tensor]


class JudgeModule(RecipeModule):
    """Trains `self.judge`."""

    EDGES = ("features.0.", "heads")

    def __init__(self, recipe: JudgeRecipe) -> None:
        super().__init__(recipe)
        self.recipe: JudgeRecipe = recipe
        self.judge = Judge(recipe.channels)

    def train_dataloader(self) -> Stream:
        return Stream(self.labelled, self.recipe.steps)

    def labelled(self, step: int) -> LabelledPictures:
        size = self.recipe.batch_size
        pictures = draw(self.recipe.seed, range(step * size, (step + 1) * size))
        return LabelledPictures(worsen(pictures.images, self.generator(step)), labels(pictures.truths))

    def loss(self, batch: LabelledPictures) -> dict[str, Tensor]:
        losses = []
        for name, logits in self.judge(batch.images).items():
            wanted = batch.labels[name]
            total = nn.functional.cross_entropy(logits, wanted, ignore_index=ABSENT, reduction="sum")
            losses.append(total / (wanted != ABSENT).sum().clamp(min=1))  # a batch may hold nobody with hair
        return {"loss": torch.stack(losses).mean()}

    @torch.no_grad()
    def export(self, folder: Path) -> dict[str, float]:
        """Writes the judge and returns its accuracy of each attribute on 2,000 held-out renders."""
        self.judge.save(folder / "judge")
        judge = Judge.load(folder / "judge")  # what is measured is what is shipped
        right: dict[str, list[bool]] = {name: [] for name in ATTRIBUTES}
        for first in range(0, 2000, 100):
            batch = draw(HELD_OUT_SEED, range(first, first + 100))
            read = judge.read(batch.images)
            for name, values in read.items():
                told = [(value, getattr(truth, name)) for value, truth in zip(values, batch.truths, strict=True)]
                right[name] += [value == true for value, true in told if true is not None]
        return {name: sum(hits) / len(hits) for name, hits in right.items()}


def worsen(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the pictures blurred, all tinted and made noisy a little, each by its own random amount."""
    count = len(images)

    def amount(*shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator).to(images.device)

    blurred = nn.functional.avg_pool2d(nn.functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = images.lerp(blurred, amount(1, 1, 1) * (amount(1, 1, 1) < 0.5))
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    tint = (amount(3, 1, 1) - 0.5) * 0.16
    return images * (0.9 + 0.2 * amount(1, 1, 1)) + tint + 0.1 * amount(1, 1, 1) * noise
