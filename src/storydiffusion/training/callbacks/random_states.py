"""The random number generators of every process, in the checkpoint that the first one writes."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import distributed


class RandomStates(L.Callback):
    """Keeps the states of Python's, NumPy's and PyTorch's generators, of the CPU and of this process's GPU.

    They are given back before the first batch of a resumed run. In another number of processes they belong to nobody,
    and are dropped: nothing in the trainings here reads them, as all that chance decides about a clip or a picture is
    keyed by its position. They serve callbacks and losses of a user's own.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        own = states()
        if not distributed.is_initialized():
            return {"processes": [own]}
        gathered: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(gathered, own)
        return {"processes": gathered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        rank, world_size = (
            (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
        )
        processes = state_dict["processes"]
        self._restored = processes[rank] if len(processes) == world_size else None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._restored is not None:
            restore(self._restored)
            self._restored = None


def states() -> dict[str, Any]:
    """Of this process, as plain data and tensors."""
    name, words, *rest = np.random.get_state()  # the global one is what others' code draws from
    found = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(words).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    return found | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def restore(found: dict[str, Any]) -> None:
    """What `states` returned."""
    random.setstate(found["python"])
    name, words, *rest = found["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(found["torch"])
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"])
