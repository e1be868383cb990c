"""The order of the training clips: a pure function of (seed, epoch, position).

Shards are permuted, then the samples inside windows of a few neighboring shards, so reading stays local and the order
is independent of restarts and of the number of processes. Permutations sort raw words of Philox, which NumPy keeps
stable between versions, unlike its shuffles.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SHARDS, WINDOW, CLIP, SUBSTITUTE, CROP = range(5)  # purpose of a random stream


def keyed(purpose: int, seed: int, epoch: int, number: int) -> np.random.Philox:
    """Return an independent stream of random bits for each purpose, seed, epoch and number, all ≥ 0."""
    return np.random.Philox(np.random.SeedSequence([purpose, seed, epoch, number]))


def permutation(bits: np.random.Philox, count: int) -> np.ndarray:
    """Return 0 … count − 1, shuffled."""
    return np.argsort(bits.random_raw(count), kind="stable")


class Place(NamedTuple):
    """A sample's place: the shard's number, and the sample's number in the shard."""

    shard: int
    sample: int


class ClipOrder:
    """Epochs over shards of `counts` samples, shuffled in windows of `window` shards; keeps one window in memory."""

    def __init__(self, counts: Sequence[int] | np.ndarray, seed: int, window: int = 8) -> None:
        self.counts = np.asarray(counts, dtype=np.int64)
        self.total = int(self.counts.sum())
        self.seed = seed
        self.window = window
        self._epoch = -1
        self._shards = self._ends = self._places = np.empty(0, dtype=np.int64)
        self._opened = -1

    def __getitem__(self, key: tuple[int, int]) -> Place:
        """Return the sample at (epoch, position), 0 ≤ position < total."""
        epoch, position = key
        if not 0 <= position < self.total:
            raise IndexError(f"position {position} is outside an epoch of {self.total}")
        if epoch != self._epoch:
            self._begin(epoch)
        window = int(np.searchsorted(self._ends, position, side="right"))
        if window != self._opened:
            self._open(window)
        begin = int(self._ends[window - 1]) if window else 0
        shard, sample = self._places[position - begin]
        return Place(int(shard), int(sample))

    def _begin(self, epoch: int) -> None:
        self._shards = permutation(keyed(SHARDS, self.seed, epoch, 0), len(self.counts))
        in_shards = np.cumsum(self.counts[self._shards])
        last = np.append(np.arange(self.window, len(in_shards), self.window), len(in_shards)) - 1
        self._ends = in_shards[last]
        self._epoch, self._opened = epoch, -1

    def _open(self, window: int) -> None:
        shards = self._shards[window * self.window : (window + 1) * self.window]
        places = np.concatenate(
            [np.stack([np.full(n, s), np.arange(n)], 1) for s, n in zip(shards, self.counts[shards], strict=True)]
        )
        self._places = places[permutation(keyed(WINDOW, self.seed, self._epoch, window), len(places))]
        self._opened = window
