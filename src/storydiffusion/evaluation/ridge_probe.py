"""A linear probe: what a frozen image encoder's tokens say of an image, as read by ridge regression.

Shapes: N images, M tokens of an image, C channels, D features of an image.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 4
"""Side of the grid that tokens are averaged to, so that encoders of many tokens can be compared with those of few"""
STRENGTH = 0.01
"""Of the regularization, per feature"""


def flatten_tokens(tokens: Tensor) -> Tensor:
    """Tokens (N, M, C) → features (N, D): a square grid of at most 4 × 4 cells, and the class token if there is one."""
    side = math.isqrt(tokens.shape[1])
    grid = tokens[:, -side * side :].float()
    rest = tokens[:, : -side * side].float()
    cells = F.adaptive_avg_pool2d(grid.mT.unflatten(2, (side, side)), min(side, SIDE))
    return torch.cat([rest.flatten(1), cells.flatten(1)], 1)


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
