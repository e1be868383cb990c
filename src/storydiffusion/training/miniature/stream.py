"""A resumable stream of training batches."""

from collections.abc import Callable, Iterator
from typing import Any


class Stream:
    """`steps` batches, batch k being `make(k)`: a pure function of k, so that a resumed stream repeats nothing.

    Lightning saves and restores it through `state_dict`; a batch counts as taken when it is yielded.
    """

    def __init__(self, make: Callable[[int], Any], steps: int) -> None:
        self.make = make
        self.steps = steps
        self.taken = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        while self.taken < self.steps:
            self.taken += 1
            yield self.make(self.taken - 1)

    def state_dict(self) -> dict[str, int]:
        return {"taken": self.taken}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.taken = state_dict["taken"]
