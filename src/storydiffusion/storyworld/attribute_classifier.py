"""Small convolutional classifiers that predict every attribute of an image, one class for each edition.

They are trained on rendered images and measure generated ones, so they must be robust to their small artefacts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from storydiffusion.files.atomic import draft, write_atomically
from storydiffusion.files.json_file import build, json_bytes
from storydiffusion.files.model_files import read_config, report_damage
from storydiffusion.storyworld.scene import FIGURE_ATTRIBUTES, MOST_CHARACTERS, SCENE_ATTRIBUTES, SCENE_LABELS
from storydiffusion.storyworld.truth import ATTRIBUTES


@dataclass(frozen=True)
class _Config:
    """config.json; `channels` of one block each, which halves the side, 128 at first."""

    channels: tuple[int, ...]
    edition: int = 1  # that of files without it

    def __post_init__(self) -> None:
        if not 1 <= len(self.channels) <= 7 or not all(1 <= width <= 4096 for width in self.channels):
            raise ValueError(f"channels {list(self.channels)} are not 1 to 7 numbers from 1 to 4096")
        if self.edition not in CLASSIFIERS:
            raise ValueError(f"edition {self.edition} is none of {', '.join(map(str, CLASSIFIERS))}")


class AttributeClassifier(nn.Module):
    """Map images (B, 3, 128, 128) in [−1, 1] to the logits (B, values) of every attribute in `labels`."""

    edition: ClassVar[int] = 1
    labels: ClassVar[Mapping[str, tuple[str, ...]]] = ATTRIBUTES

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(channels)
        layers: list[nn.Module] = []
        width = 3
        for out in channels:
            for stride in (2, 1) if width != 3 else (2,):  # a second layer at 64² would cost as much as all others
                layers += [nn.Conv2d(width, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
                width = out
        self.features = nn.Sequential(*layers)
        self.build_readers(width, 128 >> len(channels))

    def build_readers(self, width: int, side: int) -> None:
        """Add the layers that read attributes from features (B, width, side, side)."""
        self.dropout = nn.Dropout(0.1)
        self.heads = _build_heads(self.labels, width * side * side)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.dropout(self.features(images).flatten(1))
        return {name: head(features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, images: Tensor, batch_size: int = 64) -> dict[str, list[str]]:
        """Return for every attribute the most probable value of each image, (B, 3, 128, 128) in [−1, 1]."""
        parts = [self(part) for part in images.split(batch_size)]
        return {
            name: [values[i] for part in parts for i in part[name].argmax(dim=1).tolist()]
            for name, values in self.labels.items()
        }

    def save(self, folder: Path) -> None:
        """Write the weights, in float16, and the configuration."""
        weights = {
            name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in self.state_dict().items()
        }
        with draft(folder / "model.safetensors") as file:
            save_file(weights, file)
        write_atomically(folder / "config.json", json_bytes({"channels": self.channels, "edition": self.edition}))

    @classmethod
    def load(cls, folder: Path) -> "AttributeClassifier":
        """Load a saved classifier of either edition in float32 and eval mode.

        Raises UserError for files that cannot be read.
        """
        settings = read_config(folder / "config.json")
        with report_damage(folder, "attribute classifier"):
            config = build(_Config, settings)
            classifier = CLASSIFIERS[config.edition](config.channels)
            classifier.load_state_dict(load_file(folder / "model.safetensors"))
        return classifier.float().eval()


class _SceneReading(nn.Module):
    """One query for the scene and one for each character, from left to right.

    Queries and tokens attend to each other, so that "the character on the left" may stand anywhere. All characters
    share the layers that map a query to the logits of its attributes.
    """

    def add_scene_reader(self, width: int, tokens: int) -> None:
        """Add the layers that read attributes from tokens (B, tokens, width)."""
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.queries = nn.Parameter(0.02 * torch.randn(1 + MOST_CHARACTERS, width))
        layer = nn.TransformerEncoderLayer(
            width, max(1, width // 32), 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.attention = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.scene_heads = _build_heads(SCENE_ATTRIBUTES, width)
        self.figure_heads = _build_heads(FIGURE_ATTRIBUTES, width)

    def read_tokens(self, tokens: Tensor) -> dict[str, Tensor]:
        """Tokens (B, M, C) → the logits (B, values) of every attribute in `SCENE_LABELS`."""
        given = torch.cat([self.queries.expand(len(tokens), -1, -1), tokens + self.position], dim=1)
        scene, *figures = self.attention(given)[:, : len(self.queries)].unbind(1)
        logits = {name: head(scene) for name, head in self.scene_heads.items()}
        for slot, figure in enumerate(figures, start=1):
            logits |= {f"{name}_{slot}": head(figure) for name, head in self.figure_heads.items()}
        return logits


class SceneReader(_SceneReading):
    """Read a scene's attributes from the tokens (B, tokens, width) of any network, through `inner` channels."""

    def __init__(self, width: int, tokens: int, inner: int = 192) -> None:
        super().__init__()
        self.project_tokens = nn.Sequential(nn.LayerNorm(width, elementwise_affine=False), nn.Linear(width, inner))
        self.add_scene_reader(inner, tokens)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return self.read_tokens(self.project_tokens(tokens))


class SceneClassifier(_SceneReading, AttributeClassifier):
    """The second edition's classifier: a scene reader on the features."""

    edition: ClassVar[int] = 2
    labels: ClassVar[Mapping[str, tuple[str, ...]]] = SCENE_LABELS

    def build_readers(self, width: int, side: int) -> None:
        self.add_scene_reader(width, side * side)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.read_tokens(self.features(images).flatten(2).mT)


CLASSIFIERS: Mapping[int, type[AttributeClassifier]] = {1: AttributeClassifier, 2: SceneClassifier}
"""Edition → its classifier."""


def _build_heads(labels: Mapping[str, tuple[str, ...]], width: int) -> nn.ModuleDict:
    return nn.ModuleDict({name: nn.Linear(width, len(values)) for name, values in labels.items()})
