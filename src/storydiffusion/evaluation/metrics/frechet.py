"""The Fréchet distance of two sets of features: FID (1706.08500) of images, FVD (1812.01717) of videos.

Values of different networks are not comparable. With fewer samples than channels the distance is strongly biased
upwards: compare only sets of the same size.

Shapes: N samples, D channels.
"""

import numpy as np


def frechet_distance(features: np.ndarray, reference: np.ndarray) -> float:
    """Return the squared Wasserstein distance between Gaussians fitted to `features` (N, D) and `reference` (M, D).

    |m₁ − m₂|² + tr(C₁ + C₂ − 2 (C₁ C₂)^½), 0 or more.

    Raises:
        ValueError: fewer than two samples.
    """
    if min(len(features), len(reference)) < 2:
        raise ValueError(f"a covariance needs 2 samples or more, not {len(features)} and {len(reference)}")
    features, reference = (np.asarray(part, np.float64) for part in (features, reference))
    shift = features.mean(0) - reference.mean(0)
    one, other = (np.atleast_2d(np.cov(part, rowvar=False)) for part in (features, reference))
    return float(max(0.0, shift @ shift + np.trace(one) + np.trace(other) - 2 * _trace_of_root(one, other)))


def _trace_of_root(a: np.ndarray, b: np.ndarray) -> float:
    """Return tr (a b)^½ from the eigenvalues of the symmetric a^½ b a^½, which are the same and all real."""
    values, vectors = np.linalg.eigh(a)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0)).sum())
