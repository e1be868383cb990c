"""Statistics of a pairwise preference: share, Wilson interval and exact binomial test."""

from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Preference:
    """`votes` of `count` for the first of two methods.

    Attributes:
        share: votes / count.
        low, high: Wilson's score interval of the share at 95% confidence.
        p_value: of the exact two-sided binomial test that either is chosen as often as the other.
    """

    votes: int
    count: int
    share: float
    low: float
    high: float
    p_value: float


def compute_preference(votes: int, count: int) -> Preference:
    """Compute share, interval and p value. Raises ValueError unless 0 ≤ votes ≤ count and count ≥ 1."""
    from scipy.stats import binomtest

    test = binomtest(votes, count, 0.5)
    interval = test.proportion_ci(CONFIDENCE, method="wilson")
    return Preference(votes, count, votes / count, float(interval.low), float(interval.high), float(test.pvalue))
