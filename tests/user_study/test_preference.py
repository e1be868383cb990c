import pytest

from storydiffusion.user_study.preference import compute_preference

Z = 1.959964  # two-sided 95% quantile of the normal distribution


def test_all_votes_for_one():
    found = compute_preference(10, 10)
    assert (found.votes, found.count, found.share, found.high) == (10, 10, 1.0, 1.0)
    assert found.p_value == pytest.approx(2 / 2**10)
    assert found.low == pytest.approx(10 / (10 + Z**2), abs=1e-6)


def test_half_of_the_votes():
    found = compute_preference(5, 10)
    half = Z * (10 / 4 + Z**2 / 4) ** 0.5 / (10 + Z**2)
    assert (found.share, found.p_value) == (0.5, 1.0)
    assert (found.low, found.high) == (pytest.approx(0.5 - half, abs=1e-6), pytest.approx(0.5 + half, abs=1e-6))


def test_the_other_method_gets_the_complement():
    ours, theirs = compute_preference(7, 9), compute_preference(2, 9)
    assert ours.p_value == pytest.approx(2 * (36 + 9 + 1) / 2**9)
    assert ours.p_value == theirs.p_value
    assert (ours.low, ours.high) == (pytest.approx(1 - theirs.high), pytest.approx(1 - theirs.low))


@pytest.mark.parametrize(("votes", "count"), [(0, 0), (3, 2), (-1, 2)])
def test_invalid_counts_are_refused(votes, count):
    with pytest.raises(ValueError, match=r".+"):
        compute_preference(votes, count)
