"""How often people chose one of two things, and what that says about the choices of all people."""

from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Preference:
    """`votes` of `count` for the first of two.

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


def preference(votes: int, count: int) -> Preference:
    """Raises ValueError unless 0 ≤ votes ≤ count and count ≥ 1."""
    from scipy.stats import binomtest

    test = binomtest(votes, count, 0.5)
    interval = test.proportion_ci(CONFIDENCE, method="wilson")
    return Preference(votes, count, votes / count, float(interval.low), float(interval.high), float(test.pvalue))
