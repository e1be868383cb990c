"""Similarities of images with texts and with each other, from the embeddings of any encoder.

The paper (arXiv 2405.01434, table 1) names no encoder; values of different encoders are not comparable.

Shapes: P images, D channels. Embeddings need not have length 1.
"""

from collections.abc import Collection, Sequence
from itertools import combinations

import numpy as np

Pair = tuple[int, int]

CLIP_SCORE_SCALE = 2.5
"""w of CLIPScore (2104.08718); the paper's text-image similarities of 0.66 fit this scale, not the raw cosine's."""


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine of each row of `a` with the same row of `b`, (P, D) each → (P,), in [−1, 1]."""
    return (unit(a) * unit(b)).sum(-1)


def clip_score(cosine: np.ndarray) -> np.ndarray:
    """Return CLIPScore (2104.08718) of raw cosines: 2.5 × max(0, cosine), in [0, 2.5]."""
    return CLIP_SCORE_SCALE * np.maximum(cosine, 0)


def image_text_clip_scores(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Return CLIPScore of each image with its text, embeddings (P, D) each → (P,)."""
    return clip_score(cosines(images, texts))


def similarity_matrix(embeddings: np.ndarray) -> np.ndarray:
    """Return the cosine of each image with each, (P, D) → (P, P)."""
    return unit(embeddings) @ unit(embeddings).T


def mean_over_pairs(matrix: np.ndarray, pairs: Collection[Pair]) -> float | None:
    """Return the mean of `matrix` (P, P) over pairs of images; None without a pair."""
    return float(np.mean([matrix[pair] for pair in pairs])) if pairs else None


def pair_similarity(embeddings: np.ndarray, pairs: Collection[Pair]) -> float | None:
    """Return the mean cosine of embeddings (P, D) over pairs of images; None without a pair."""
    return mean_over_pairs(similarity_matrix(embeddings), pairs)


def pair_distance(embeddings: np.ndarray, pairs: Collection[Pair]) -> float | None:
    """Return the mean of 1 − cosine of embeddings (P, D) over pairs of images; None without a pair."""
    return mean_over_pairs(1 - similarity_matrix(embeddings), pairs)


def find_character_pairs(characters: Sequence[Collection[str]]) -> list[Pair]:
    """Return the pairs of images that show a character in common, which character similarity is averaged over.

    Args:
        characters: the characters in each image; none in a landscape.
    """
    return [(i, j) for i, j in combinations(range(len(characters)), 2) if set(characters[i]) & set(characters[j])]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scale `vectors` to length 1 along the last axis; zeros stay zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
