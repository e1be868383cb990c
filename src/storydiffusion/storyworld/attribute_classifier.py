"""A small convolutional classifier that predicts every attribute of an image.

It is trained on rendered images and measures generated ones, so it must be robust to their small artefacts.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from storydiffusion.storyworld.truth import ATTRIBUTES


class AttributeClassifier(nn.Module):
    """Map images (B, 3, 128, 128) in [−1, 1] to the logits (B, values) of every attribute."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        layers: list[nn.Module] = []
        width = 3
        for out in channels:
            for stride in (2, 1) if width != 3 else (2,):  # a second layer at 64² would cost as much as all others
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
        """Return for every attribute the most probable value of each image, (B, 3, 128, 128) in [−1, 1]."""
        parts = [self(part) for part in images.split(batch_size)]
        return {
            name: [values[i] for part in parts for i in part[name].argmax(dim=1).tolist()]
            for name, values in ATTRIBUTES.items()
        }

    def save(self, folder: Path) -> None:
        """Write the weights, in float16, and the configuration."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {
            name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in self.state_dict().items()
        }
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"channels": self.channels}) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "AttributeClassifier":
        """Load a saved classifier in float32 and eval mode."""
        classifier = cls(json.loads((folder / "config.json").read_text())["channels"])
        classifier.load_state_dict(load_file(folder / "model.safetensors"))
        return classifier.float().eval()
