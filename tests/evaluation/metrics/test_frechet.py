"""The Fréchet distance on Gaussians whose distance is known, and against scipy's and torchmetrics' implementations."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from storydiffusion.evaluation.metrics.frechet import frechet_distance

RNG = np.random.default_rng(0)


def test_the_same_features_have_no_distance_and_a_shift_counts_squared():
    features = RNG.normal(size=(50, 4))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(features, features[::-1] + np.array([3, 0, 4, 0])) == pytest.approx(25)


def test_spread_counts_by_its_deviation():
    features = RNG.normal(size=(50, 1))
    centred = features - features.mean(0)
    deviation = centred.std(ddof=1)
    assert frechet_distance(3 * centred, centred) == pytest.approx((3 - 1) ** 2 * deviation**2)


@pytest.mark.parametrize(("count", "width"), [(200, 6), (5, 20)], ids=["full rank", "fewer samples than channels"])
def test_it_agrees_with_references(count, width):
    from torchmetrics.image.fid import _compute_fid

    mix = RNG.normal(size=(width, width))
    one, other = RNG.normal(size=(count, width)), RNG.normal(size=(count + 3, width)) @ mix + 1
    means = one.mean(0), other.mean(0)
    spreads = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    theirs = _compute_fid(*(torch.from_numpy(x) for pair in zip(means, spreads, strict=True) for x in pair)).item()
    ours = frechet_distance(one, other)
    assert ours == pytest.approx(theirs, rel=1e-4)
    if count > width:  # scipy's root of a singular matrix is inexact
        root = np.trace(np.real(sqrtm(spreads[0] @ spreads[1])))
        shift = np.square(means[0] - means[1]).sum()
        assert ours == pytest.approx(shift + np.trace(spreads[0]) + np.trace(spreads[1]) - 2 * root, rel=1e-6)


def test_one_sample_has_no_spread():
    with pytest.raises(ValueError, match="2 samples"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
