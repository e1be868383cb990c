"""Classify the emotion that an image evokes: by a linear probe on an image encoder, or zero-shot by words for emotions.

D channels of an embedding; 8 emotions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from storydiffusion.errors import UserError
from storydiffusion.loaders.sources import OPEN_CLIP_SCHEME, find_part_folder

if TYPE_CHECKING:
    import numpy as np

    from storydiffusion.evaluation.networks import ImageTextEncoder
    from storydiffusion.models.emotion_probe import EmotionProbe

UNSCALED = ", not normalized"


@dataclass(frozen=True)
class EmotionReader:
    """Classifies the emotion that an image evokes.

    Attributes:
        read: an image, uint8 (H, W, 3), and its embedding (D,), of which readers take either → logits (8,).
        accuracy: group of held-out images → share of right answers; empty where it is not known.
        file: of the linear probe; None without one.
    """

    label: str
    read: "Callable[[np.ndarray, np.ndarray], np.ndarray]"
    accuracy: Mapping[str, float]
    file: Path | None

    @property
    def remark(self) -> str:
        """What a reader of the scores must know of the classifier."""
        if not self.accuracy:
            return f"Emotions are read by {self.label}, whose accuracy is not known."
        listed = ", ".join(f"{name} {100 * share:.1f}" for name, share in self.accuracy.items())
        return f"Emotions are read by {self.label}, whose accuracy on held-out images is, in %: {listed}."


def load_emotion_reader(
    probe_file: str | None, encoder: "ImageTextEncoder", normalize: bool | None = None
) -> EmotionReader:
    """Load a linear probe: `probe_file`, or the one beside the encoder; without one, compare with words for emotions.

    normalize: whether the probe's features are scaled to length 1 first; None: as its file says.

    Raises:
        UserError: the probe does not fit the encoder, or the encoder does not know the words for emotions.
    """
    from storydiffusion.models.emotion_probe import load_probe

    file = Path(probe_file) if probe_file is not None else find_probe(encoder.source)
    return _zero_shot(encoder) if file is None else _probe(load_probe(file, normalize), file, encoder)


def find_probe(source: str) -> Path | None:
    """Return the file of the emotion probe in the model folder of an encoder; None where there is none."""
    from storydiffusion.models.emotion_probe import FILE, FOLDER

    if source.startswith(OPEN_CLIP_SCHEME):
        return None
    file = find_part_folder(source, "encoder").parent / FOLDER / FILE
    return file if file.exists() else None


def _probe(probe: "EmotionProbe", file: Path, encoder: "ImageTextEncoder") -> EmotionReader:
    import numpy as np
    import torch

    from storydiffusion.models.emotion_probe import embed_images

    def embed(image: "np.ndarray") -> "np.ndarray":
        frames = torch.from_numpy(np.array(image[None])).permute(0, 3, 1, 2)
        return embed_images(encoder.images, frames, probe.features)[0].cpu().numpy()

    pooled = probe.features == "pooled"
    width = encoder.width if pooled else embed(np.zeros((8, 8, 3), np.uint8)).size
    if probe.weight.shape[1] != width:
        raise UserError(
            f"emotion_probe={file} reads {probe.weight.shape[1]} channels: encoder={encoder.source} has {width}. Pass "
            "the encoder that it was trained on"
        )
    label = f"probe on {'' if pooled else 'the tokens of '}{encoder.label}" + ("" if probe.normalize else UNSCALED)
    return EmotionReader(
        label,
        lambda image, embedding: probe.logits((embedding if pooled else embed(image))[None])[0],
        probe.accuracy,
        file,
    )


def _zero_shot(encoder: "ImageTextEncoder") -> EmotionReader:
    from storydiffusion.evaluation.metrics.emotion import ZERO_SHOT_PROMPTS, zero_shot_logits

    for prompt in ZERO_SHOT_PROMPTS:
        if unknown := encoder.unknown_words(prompt):
            raise UserError(
                f"emotions cannot be read by {encoder.label}, which does not know the word {unknown[-1]!r}. "
                "Pass emotion_probe=FILE or another encoder"
            )
    prompts = encoder.embed_texts(ZERO_SHOT_PROMPTS)

    def read(image: "np.ndarray", embedding: "np.ndarray") -> "np.ndarray":
        return zero_shot_logits(embedding[None], prompts, encoder.scale)[0]

    return EmotionReader(f"zero-shot {encoder.label}", read, {}, None)
