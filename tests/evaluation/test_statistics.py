import numpy as np
import pytest
from scipy.special import stdtr

from storydiffusion.evaluation.statistics import estimate, paired_difference


def test_estimate_by_hand():
    found = estimate([1.0, 2.0, 3.0, 6.0])
    assert (found.mean, found.count) == (3.0, 4)
    assert found.standard_error == pytest.approx((14 / 3) ** 0.5 / 2)


def test_standard_error_is_the_spread_of_the_mean():
    draws = np.random.default_rng(0).random((2000, 25))
    errors = [estimate(row.tolist()).standard_error for row in draws]
    assert np.mean(errors) == pytest.approx(draws.mean(1).std(), rel=0.05)


def test_paired_difference_is_that_of_the_differences():
    baseline = np.random.default_rng(1).random(30)
    values = baseline + 0.1 + 0.05 * np.random.default_rng(2).standard_normal(30)
    found, back = paired_difference(values.tolist(), baseline.tolist()), paired_difference(baseline, values)
    assert found.mean == pytest.approx(estimate((values - baseline).tolist()).mean)
    t = found.mean / found.standard_error
    assert found.p_value == pytest.approx(2 * stdtr(29, -abs(t)), rel=1e-6)
    assert (back.mean, back.p_value) == (pytest.approx(-found.mean), pytest.approx(found.p_value))
    assert found.p_value < 1e-6


def test_noise_alone_is_seldom_significant():
    a, b = np.random.default_rng(3).random((2, 400, 20))
    p_values = [paired_difference(x.tolist(), y.tolist()).p_value for x, y in zip(a, b, strict=True)]
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.03)


def test_differences_without_spread():
    assert paired_difference([0.5, 0.25], [0.5, 0.25]).p_value == 1
    assert paired_difference([1.5, 1.25], [0.5, 0.25]).p_value == 0


@pytest.mark.parametrize("values", [[], [1.0]])
def test_too_few_values_are_refused(values):
    with pytest.raises(ValueError, match="two values"):
        estimate(values)
