"""Checkpoint the states of every process's random number generators."""

import random
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import distributed


class RandomStates(L.Callback):
    """Saves the states of Python's, NumPy's and PyTorch's generators, on the CPU and on this process's GPU.

    They are restored before the first batch of a resumed run, and dropped if the number of processes has changed. The
    trainings of this package do not need them, because all random numbers of a clip or image are keyed by its position;
    a user's own callbacks and losses may.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        own = get_states()
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
            restore_states(self._restored)
            self._restored = None


def get_states() -> dict[str, Any]:
    """Return the generator states of this process as plain data and tensors."""
    name, words, *rest = np.random.get_state()  # third-party code draws from the global generator
    found = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(words).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
    }
    return found | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def restore_states(found: dict[str, Any]) -> None:
    """Restore what `get_states` returned."""
    random.setstate(found["python"])
    name, words, *rest = found["numpy"]
    np.random.set_state((name, words.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(found["torch"])
    if "cuda" in found and torch.cuda.is_available():
        torch.cuda.set_rng_state(found["cuda"])
