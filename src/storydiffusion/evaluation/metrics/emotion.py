"""Which emotion pictures evoke, over Mikels' eight (Behavior Research Methods 37, 2005): Emo-Score and Emo-A.

Emo-Score is the mean probability of the emotion meant, Emo-A the share of pictures for which it is the most probable;
chance is 1/8 for both. What gives the probabilities, an encoder that compares with words or a linear probe on its
embeddings, decides on the figures: they are worth nothing without its name.

Shapes: P pictures, D channels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from storydiffusion.errors import UserError, first_line
from storydiffusion.evaluation.metrics.embeddings import unit

EMOTIONS = ("amusement", "awe", "contentment", "excitement", "anger", "disgust", "fear", "sadness")
"""in the order of EmoSet's classes, which a probe's rows follow"""

ZERO_SHOT_PROMPTS = tuple(f"a picture that evokes {emotion}" for emotion in EMOTIONS)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax over the emotions, (P, 8) → (P, 8)."""
    from scipy.special import softmax

    return softmax(np.asarray(logits, np.float64), axis=-1)


def zero_shot_logits(pictures: np.ndarray, prompts: np.ndarray, scale: float) -> np.ndarray:
    """Scaled cosines of pictures (P, D) with the embeddings (8, D) of ZERO_SHOT_PROMPTS → (P, 8).

    `scale` is the one that the encoder was trained with: exp(logit_scale), 100 for published CLIPs.
    """
    return scale * unit(pictures) @ unit(prompts).T


def emotion_scores(probabilities: np.ndarray, emotion: str) -> np.ndarray:
    """The probability of `emotion` for each picture, (P, 8) → (P,); their mean is Emo-Score."""
    return probabilities[:, EMOTIONS.index(emotion)]


def emotion_hits(probabilities: np.ndarray, emotion: str) -> np.ndarray:
    """1 where `emotion` is the most probable, else 0, (P, 8) → (P,); their mean is Emo-A."""
    return (probabilities.argmax(-1) == EMOTIONS.index(emotion)).astype(float)


@dataclass(frozen=True)
class LinearProbe:
    """Logistic regression on embeddings of length 1: `weight` (8, D), `bias` (8,), rows in the order of EMOTIONS."""

    weight: np.ndarray
    bias: np.ndarray

    def logits(self, pictures: np.ndarray) -> np.ndarray:
        """(P, D) → (P, 8)."""
        return unit(pictures) @ self.weight.T + self.bias


def load_probe(file: Path, width: int) -> LinearProbe:
    """The arrays `weight` and `bias` of a .safetensors or .npz file, for embeddings of `width` channels.

    Raises:
        UserError: a file that is missing, damaged, of another format, or of other shapes.
    """
    if file.suffix not in (".npz", ".safetensors"):
        raise UserError(f"emotion_probe={file} is neither .npz nor .safetensors: save weight and bias as one of them")
    try:
        arrays = _read(file)
        probe = LinearProbe(arrays["weight"].astype(np.float64), arrays["bias"].astype(np.float64))
    except Exception as error:  # zip, pickled objects, safetensors: each has errors of its own
        raise UserError(
            f"emotion_probe={file} cannot be read ({first_line(error)}): save the arrays weight and bias in it"
        ) from error
    if probe.weight.shape != (len(EMOTIONS), width) or probe.bias.shape != (len(EMOTIONS),):
        raise UserError(
            f"emotion_probe={file} has weight {probe.weight.shape} and bias {probe.bias.shape}: this encoder needs "
            f"({len(EMOTIONS)}, {width}) and ({len(EMOTIONS)},)"
        )
    return probe


def _read(file: Path) -> dict[str, np.ndarray]:
    if file.suffix == ".safetensors":
        from safetensors.numpy import load_file

        return load_file(file)
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
