"""A small convolutional classifier that predicts every attribute of an image.

It is trained on rendered images and measures generated ones, so it must be robust to their small artefacts.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from storydiffusion.errors import UserError, first_line
from storydiffusion.files.json_file import build, read_object
from storydiffusion.storyworld.truth import ATTRIBUTES


@dataclass(frozen=True)
class _Config:
    """config.json; `channels` of one block each, which halves the side, 128 at first."""

    channels: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.channels) <= 7 or not all(1 <= width <= 4096 for width in self.channels):
            raise ValueError(f"channels {list(self.channels)} are not 1 to 7 numbers from 1 to 4096")


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
        """Load a saved classifier in float32 and eval mode. Raises UserError where its config.json cannot be read."""
        try:
            classifier = cls(build(_Config, read_object(folder / "config.json")).channels)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {folder / 'config.json'} ({first_line(error)}): fetch it again") from error
        classifier.load_state_dict(load_file(folder / "model.safetensors"))
        return classifier.float().eval()
