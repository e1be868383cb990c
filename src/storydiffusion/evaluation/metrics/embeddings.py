"""Similarities of pictures with texts and with each other, from the embeddings of any encoder.

The paper (arXiv 2405.01434, table 1) names no encoder; figures of different encoders are not comparable.

Shapes: P pictures, D channels. Embeddings need not have length 1.
"""

from collections.abc import Collection, Sequence
from itertools import combinations

import numpy as np

Pair = tuple[int, int]

CLIP_SCORE_SCALE = 2.5
"""w of CLIPScore (2104.08718); the paper's text-image similarities of 0.66 fit this scale, not the raw cosine's."""


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The cosine of each row of `a` with the same row of `b`, (P, D) each → (P,), in [−1, 1]."""
    return (unit(a) * unit(b)).sum(-1)


def clip_score(cosine: np.ndarray) -> np.ndarray:
    """CLIPScore (2104.08718) of raw cosines: 2.5 × max(0, cosine), in [0, 2.5]."""
    return CLIP_SCORE_SCALE * np.maximum(cosine, 0)


def similarity_matrix(embeddings: np.ndarray) -> np.ndarray:
    """The cosine of each picture with each, (P, D) → (P, P)."""
    return unit(embeddings) @ unit(embeddings).T


def mean_over_pairs(matrix: np.ndarray, pairs: Collection[Pair]) -> float | None:
    """The mean of `matrix` (P, P) over pairs of pictures; None where there is no pair."""
    return float(np.mean([matrix[pair] for pair in pairs])) if pairs else None


def pairs_of_a_character(characters: Sequence[Collection[str]]) -> list[Pair]:
    """The pairs of pictures that show somebody in common; `characters[i]` are those of picture i, none in a landscape.

    Character similarity is the mean cosine over these pairs.
    """
    return [(i, j) for i, j in combinations(range(len(characters)), 2) if set(characters[i]) & set(characters[j])]


def unit(vectors: np.ndarray) -> np.ndarray:
    """`vectors` brought to length 1 along the last axis; zeros stay zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
