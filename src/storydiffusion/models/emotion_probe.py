"""A linear probe that reads Mikels' eight emotions from an image encoder's embeddings, and its file.

A .safetensors file holds `weight` (8, D) and `bias` (8), rows in the order of EMOTIONS. Its metadata say what the probe
reads (`features`), whether that is scaled to length 1 first (`normalize`), and how often the probe is right on held-out
images (`accuracy`). A file without them is a probe of pooled embeddings of unknown accuracy.

Shapes: P images, D channels.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from storydiffusion.errors import UserError, first_line
from storydiffusion.files.atomic import draft
from storydiffusion.files.json_file import build
from storydiffusion.story.emotions import EMOTIONS

if TYPE_CHECKING:
    from torch import Tensor

    from storydiffusion.models.image_encoders import ImageEncoder

FOLDER, FILE = "emotion_probe", "model.safetensors"
"""Where a model's folder holds the probe of its image encoder."""
Features = Literal["pooled", "tokens"]
"""The encoder's one embedding of an image, or all of its tokens, averaged to a grid of at most 4 × 4 and flattened"""


@dataclass(frozen=True)
class Metadata:
    """What a file says of its probe.

    features: what the probe reads. normalize: whether that is scaled to length 1 first, as in training; None: not said.
    accuracy: group of held-out images → share of right answers; empty where it is not known.
    """

    features: Features = "pooled"
    normalize: bool | None = None
    accuracy: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in self.accuracy.values()):
            raise ValueError("accuracy is not in [0, 1]")


@dataclass(frozen=True)
class EmotionProbe:
    """Logistic regression: `weight` (8, D), `bias` (8,), rows in the order of EMOTIONS; see `Metadata` for the rest."""

    weight: np.ndarray
    bias: np.ndarray
    features: Features
    normalize: bool
    accuracy: Mapping[str, float]

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Return the logits of the features of images, (P, D) → (P, 8)."""
        if self.normalize:
            images = images / np.maximum(np.linalg.norm(images, axis=-1, keepdims=True), 1e-12)
        return images @ self.weight.T + self.bias

    def save(self, file: Path) -> None:
        """Write the probe as .safetensors, arrays in float32."""
        from safetensors.numpy import save_file

        arrays = {"weight": self.weight, "bias": self.bias}
        metadata = {"features": self.features, "normalize": self.normalize, "accuracy": dict(self.accuracy)}
        with draft(file) as unfinished:
            save_file(
                {name: np.ascontiguousarray(one, dtype=np.float32) for name, one in arrays.items()},
                unfinished,
                metadata={name: json.dumps(value) for name, value in metadata.items()},
            )


def embed_images(encoder: "ImageEncoder", images: "Tensor", features: Features) -> "Tensor":
    """Embed images as a probe of these features reads them, uint8 (P, 3, H, W) → (P, D), float32."""
    from storydiffusion.models.image_encoders import flatten_tokens

    if features == "tokens":
        return flatten_tokens(encoder.features(images, "hidden"))
    return encoder.features(images, "pooled")[:, 0].float()


def load_probe(file: Path, normalize: bool | None = None) -> EmotionProbe:
    """Load a probe from a .safetensors or .npz file.

    Args:
        normalize: whether features are scaled to length 1 first; None: as the file says, or yes where it does not.

    Raises:
        UserError: the file is missing, damaged, of another format, no probe of eight emotions, or contradicts
            `normalize`.
    """
    if file.suffix not in (".npz", ".safetensors"):
        raise UserError(
            f"emotion_probe={file} is neither .npz nor .safetensors. Save weight and bias in one of these formats"
        )
    try:
        arrays, metadata = _read(file)
        weight, bias = (arrays[name].astype(np.float64) for name in ("weight", "bias"))
    except Exception as error:  # zip, pickle, safetensors and JSON raise different errors
        raise UserError(
            f"emotion_probe={file} cannot be read ({first_line(error)}). Save the arrays weight and bias in it"
        ) from error
    if weight.ndim != 2 or len(weight) != len(EMOTIONS) or bias.shape != (len(EMOTIONS),):
        raise UserError(
            f"emotion_probe={file} has weight {weight.shape} and bias {bias.shape}: a probe of {len(EMOTIONS)} "
            f"emotions has ({len(EMOTIONS)}, channels) and ({len(EMOTIONS)},)"
        )
    said = metadata.normalize
    if normalize is not None and said is not None and normalize != said:
        raise UserError(
            f"emotion_normalize={json.dumps(normalize)}, but {file} was trained with {json.dumps(said)}. "
            "Leave emotion_normalize out"
        )
    chosen = next((one for one in (normalize, said) if one is not None), True)
    return EmotionProbe(weight, bias, metadata.features, chosen, metadata.accuracy)


def _read(file: Path) -> tuple[dict[str, np.ndarray], Metadata]:
    """Return a file's arrays and its metadata, which .npz does not have."""
    if file.suffix == ".npz":
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}, Metadata()
    from safetensors import safe_open

    with safe_open(file, framework="numpy") as opened:
        texts = opened.metadata() or {}
        names = {each.name for each in fields(Metadata)} & texts.keys()
        metadata = build(Metadata, {name: json.loads(texts[name]) for name in names})
        return {name: opened.get_tensor(name) for name in opened.keys()}, metadata  # noqa: SIM118  # no mapping
