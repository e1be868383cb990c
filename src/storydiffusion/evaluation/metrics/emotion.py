"""Emo-Score and Emo-A: the emotion that images evoke, over Mikels' eight (Behavior Research Methods 37, 2005).

Emo-Score is the mean probability of the intended emotion, Emo-A the share of images for which it is the most probable;
chance is 1/8 for both. With two classes, Emo-Score is the summed probability of the four positive emotions, or of the
four negative ones, whichever include the intended; chance is 1/2. The probabilities come from an encoder's comparison
with words or from a linear probe on its embeddings. Report the values with its name only: different ones are not
comparable.

Shapes: P images, D channels.
"""

import numpy as np

from storydiffusion.evaluation.metrics.embeddings import unit
from storydiffusion.story.emotions import EMOTIONS, POSITIVE

ZERO_SHOT_PROMPTS = tuple(f"a picture that evokes {emotion}" for emotion in EMOTIONS)


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax over the emotions, (P, 8) → (P, 8)."""
    from scipy.special import softmax

    return softmax(np.asarray(logits, np.float64), axis=-1)


def zero_shot_logits(images: np.ndarray, prompts: np.ndarray, scale: float) -> np.ndarray:
    """Return scaled cosines of images (P, D) with the embeddings (8, D) of ZERO_SHOT_PROMPTS → (P, 8).

    `scale` is the one of the encoder's training: exp(logit_scale), 100 for published CLIPs.
    """
    return scale * unit(images) @ unit(prompts).T


def emotion_scores(probabilities: np.ndarray, emotion: str) -> np.ndarray:
    """Return the probability of `emotion` for each image, (P, 8) → (P,); their mean is Emo-Score."""
    return probabilities[:, EMOTIONS.index(emotion)]


def emotion_hits(probabilities: np.ndarray, emotion: str) -> np.ndarray:
    """Return 1 where `emotion` is the most probable, else 0, (P, 8) → (P,); their mean is Emo-A."""
    return (probabilities.argmax(-1) == EMOTIONS.index(emotion)).astype(float)


def emotion_scores_of_two(probabilities: np.ndarray, emotion: str) -> np.ndarray:
    """Return the probability of the emotions of the same sign as `emotion` for each image, (P, 8) → (P,)."""
    same = [(each in POSITIVE) == (emotion in POSITIVE) for each in EMOTIONS]
    return probabilities[:, same].sum(-1)
