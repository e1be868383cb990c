"""One training step of the video model, without a trainer."""

import torch

from storydiffusion.data.loader import ClipBatch
from storydiffusion.training.transition_module import TransitionModule


class OneProcess:
    """The trainer's attributes that a step reads; tests/commands/test_train.py uses a real Trainer."""

    world_size, global_rank = 1, 0


def step(module: TransitionModule, batch: ClipBatch) -> dict[str, torch.Tensor]:
    """Compute the first training step of a run, without its optimizer."""
    module.batches = 0
    module._fabric = None
    module._trainer = OneProcess()  # type: ignore[assignment]
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    return module.training_step(batch, 0)
