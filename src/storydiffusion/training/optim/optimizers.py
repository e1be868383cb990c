"""The optimizers of the video model's training: the registry behind the key `recipe.optimizer`."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from storydiffusion.config import TransitionRecipe
from storydiffusion.training.optim.muon import Muon, split_parameters


def build_adamw(module: Any, recipe: TransitionRecipe) -> torch.optim.Optimizer:
    """Return AdamW for all trained weights of `module`, in one fused kernel on a GPU.

    Under float16 it is not fused: it would unscale the gradients itself, after they are clipped.
    """
    is_fused = module.device.type == "cuda" and getattr(module.trainer.precision_plugin, "scaler", None) is None
    return torch.optim.AdamW(
        module.trained_weights(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=is_fused or None
    )


def build_muon(module: Any, recipe: TransitionRecipe) -> torch.optim.Optimizer:
    """Return Muon for the trained matrices of `module` and AdamW for its other weights and `module.EDGES`."""
    return Muon(
        *split_parameters(module, module.EDGES),
        lr=recipe.learning_rate,
        adam_lr=recipe.adam_learning_rate or 0.0,
        weight_decay=recipe.weight_decay,
    )


OPTIMIZERS: Mapping[str, Callable[[Any, TransitionRecipe], torch.optim.Optimizer]] = {
    "adamw": build_adamw,
    "muon": build_muon,
}
"""recipe.optimizer → function that builds it for a `TransitionModule`; one entry adds an optimizer."""
