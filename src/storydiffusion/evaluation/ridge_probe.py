"""A linear probe: what a frozen image encoder's tokens say of an image, as read by ridge regression.

Shapes: N images, M tokens of an image, C channels, D features of an image.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTH = 0.01
"""Of the regularization, per feature"""


@dataclass(frozen=True)
class LinearMap:
    """Features (N, D) → predictions (N, K): `(features − mean) · weight + offset`."""

    mean: Tensor
    weight: Tensor
    offset: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) @ self.weight + self.offset


def fit_ridge(features: Tensor, targets: Tensor) -> LinearMap:
    """Fit targets (N, K) to features (N, D) by ridge regression on standardized features, in the dual, N × N form."""
    mean, deviation, offset = features.mean(0), features.std(0).clamp(min=1e-6), targets.mean(0)
    rows = (features - mean) / deviation
    kernel = rows @ rows.T
    kernel.diagonal().add_(STRENGTH * rows.shape[1])
    solved = torch.linalg.solve(kernel, targets - offset, left=True)
    return LinearMap(mean, rows.T @ solved / deviation[:, None], offset)
