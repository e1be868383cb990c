"""Means with standard errors, and paired differences between two runs on the same items."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over `count` independent values, and its standard error: sample deviation / √count."""

    mean: float
    standard_error: float
    count: int


@dataclass(frozen=True)
class PairedDifference(Estimate):
    """The mean of differences between pairs; `p_value` is of the two-sided paired t-test against no difference."""

    p_value: float


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean and its standard error.

    Raises:
        ValueError: fewer than two values, which have no spread.
    """
    if len(values) < 2:
        raise ValueError(f"a standard error needs two values or more, not {len(values)}")
    deviation = float(np.std(values, ddof=1))
    return Estimate(float(np.mean(values)), deviation / len(values) ** 0.5, len(values))


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> PairedDifference:
    """Return the mean of `values` − `baseline`, two or more each, of the same items in the same order.

    Where all differences are equal, t is undefined: p is then 1 for differences of 0, else 0.
    """
    from scipy.stats import ttest_rel

    differences = np.subtract(np.asarray(values, float), np.asarray(baseline, float))
    found = estimate(differences.tolist())
    if np.ptp(differences) == 0:
        p_value = 1.0 if found.mean == 0 else 0.0
    else:
        p_value = float(np.asarray(ttest_rel(values, baseline).pvalue))
    return PairedDifference(found.mean, found.standard_error, found.count, p_value)
