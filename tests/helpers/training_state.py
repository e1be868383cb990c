"""The state that equal trainings must share."""

import torch

from storydiffusion.training.training_run import TrainingRun


def state(trained: TrainingRun) -> dict[str, torch.Tensor]:
    """Return weights, their average, and the optimizer's state."""
    found = {f"weight {name}": tensor for name, tensor in trained.module.state_dict().items()}
    found |= {f"average {name}": tensor for name, tensor in trained.ema.average.items()}
    for index, entry in trained.trainer.optimizers[0].state_dict()["state"].items():
        found |= {f"optimizer {index} {name}": torch.as_tensor(value) for name, value in entry.items()}
    return found
