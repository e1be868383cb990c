"""The order of clips: every one once an epoch, and nothing but seed, epoch and position decides."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storydiffusion.data.order import ClipOrder, Place


def list_epoch(order: ClipOrder, epoch: int) -> list[Place]:
    return [order[epoch, position] for position in range(order.total)]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_every_sample_occurs_once(counts, seed, window):
    places = list_epoch(ClipOrder(counts, seed, window), 3)
    assert sorted(places) == [(shard, sample) for shard, count in enumerate(counts) for sample in range(count)]


def test_positions_can_be_read_in_any_order():
    straight = {(epoch, p): ClipOrder([5, 0, 7, 3, 9], 1, 2)[epoch, p] for epoch in range(2) for p in range(24)}
    order, keys = ClipOrder([5, 0, 7, 3, 9], 1, 2), list(straight)
    for number in np.random.default_rng(0).permutation(len(keys)):
        assert order[keys[number]] == straight[keys[number]]


def test_epochs_and_seeds_differ():
    orders = [list_epoch(ClipOrder([20, 20], seed), epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({tuple(order) for order in orders}) == 4


def test_reading_stays_inside_a_window_of_shards():
    order = list_epoch(ClipOrder([10] * 12, 0, window=3), 0)
    windows = [{shard for shard, _ in order[begin : begin + 30]} for begin in range(0, 120, 30)]
    assert [len(window) for window in windows] == [3] * 4
    assert set.union(*windows) == set(range(12))


def test_order_is_frozen():
    """A change of this order breaks resumed runs: it needs a new version of the loader's state."""
    assert list_epoch(ClipOrder([3, 2], 7), 0) == [(1, 1), (1, 0), (0, 0), (0, 2), (0, 1)]


@pytest.mark.parametrize("position", [-1, 5])
def test_positions_outside_the_epoch_are_refused(position):
    with pytest.raises(IndexError):
        ClipOrder([5], 0)[0, position]
