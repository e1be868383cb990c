"""Linear probes: what a frozen image encoder's tokens say of an image, by logistic and by ridge regression.

Shapes: N images, D features of an image, K predictions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

RIDGE_STRENGTH = 0.01
"""Of the regularization of ridge regression, per feature"""
LOGISTIC_STRENGTH = 0.001
"""Of the squared weights beside the mean cross-entropy"""
ITERATIONS = 100
"""At most, of L-BFGS"""


@dataclass(frozen=True)
class LinearMap:
    """Features (N, D) → predictions (N, K): `(features − mean) / deviation · weight + offset`."""

    mean: Tensor
    deviation: Tensor
    weight: Tensor
    offset: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.deviation @ self.weight + self.offset


def fit_ridge(features: Tensor, targets: Tensor) -> LinearMap:
    """Fit targets (N, K) to features (N, D) by ridge regression on standardized features, in its smaller form."""
    mean, deviation, offset = *measure_scale(features), targets.mean(0)
    rows, centered = (features - mean) / deviation, targets - offset
    count, width = rows.shape
    gram = rows.T @ rows if width < count else rows @ rows.T
    gram.diagonal().add_(RIDGE_STRENGTH * width)
    if width < count:
        weight = torch.linalg.solve(gram, rows.T @ centered)
    else:
        weight = rows.T @ torch.linalg.solve(gram, centered)
    return LinearMap(mean, deviation, weight, offset)


def fit_classifiers(features: Tensor, labels: Mapping[str, Tensor], values: Mapping[str, int]) -> dict[str, LinearMap]:
    """Fit a multinomial logistic regression of each attribute to standardized features (N, D), all by one L-BFGS.

    Args:
        labels: of each attribute the index of each image's value, (N,); −1: the image lacks the attribute.
        values: how many values each attribute has.
    """
    mean, deviation = measure_scale(features)
    rows, sizes = (features - mean) / deviation, list(values.values())
    weight = torch.zeros(rows.shape[1], sum(sizes), requires_grad=True)
    offset = torch.zeros(sum(sizes), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, offset], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def compute_loss() -> Tensor:
        optimizer.zero_grad()
        loss = LOGISTIC_STRENGTH * weight.square().sum()
        for name, predicted in zip(values, (rows @ weight + offset).split(sizes, 1), strict=True):
            loss = loss + cross_entropy(predicted, labels[name], ignore_index=-1, reduction="sum") / len(rows)
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(compute_loss)
    parts = zip(values, weight.detach().split(sizes, 1), offset.detach().split(sizes), strict=True)
    return {name: LinearMap(mean, deviation, part, shift) for name, part, shift in parts}


def measure_scale(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of features (N, D), each (D,); constant features count as they are."""
    return features.mean(0), features.std(0).clamp(min=1e-6)
