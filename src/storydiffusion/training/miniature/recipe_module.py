"""Base class of the miniature's trainings: optimizer, learning-rate schedule, logging."""

from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from storydiffusion.config import TrainConfig
from storydiffusion.config.miniature import Recipe
from storydiffusion.files.atomic import write_atomically
from storydiffusion.files.json_file import json_bytes, read_object
from storydiffusion.training.callbacks.ema import EMA
from storydiffusion.training.optim.learning_rate import build_schedule
from storydiffusion.training.optim.muon import Muon, split_parameters


class RecipeModule(L.LightningModule):
    """A LightningModule trained by a `Recipe`. Subclasses define networks, `train_dataloader`, `loss` and `export`."""

    EDGES: tuple[str, ...] = ()
    """Parts of the names of first and last layers, which AdamW trains."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe

    @classmethod
    def from_config(cls, config: TrainConfig) -> Self:
        """Return the module of `config.recipe`."""
        return cls(config.recipe)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the exported parts in training.json."""
        return (self.recipe.part,)

    def build_callbacks(self, run_dir: Path, ema: EMA) -> list[L.Callback]:
        """Return callbacks of this training only."""
        return []

    def trained_networks(self) -> list[nn.Module]:
        """Return the networks that gradients pass through, for torch.compile."""
        return list(self.children())

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """Return the terms to log; the one named "loss" is minimised."""
        raise NotImplementedError

    def training_step(self, batch: object, batch_idx: int) -> Tensor:
        terms = self.loss(batch)
        self.log_dict({f"train/{name}": term.detach() for name, term in terms.items()}, prog_bar=True)
        return terms["loss"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        recipe = self.recipe
        optimizer = Muon(
            *split_parameters(self, self.EDGES),
            lr=recipe.learning_rate,
            adam_lr=recipe.adam_learning_rate,
            dtype=torch.bfloat16 if self.trainer.precision == "bf16-mixed" else torch.float32,
        )
        return {"optimizer": optimizer, "lr_scheduler": build_schedule(optimizer, recipe)}

    def export(self, folder: Path) -> dict[str, float]:
        """Write the trained part into `folder`; return measured metrics by name."""
        raise NotImplementedError

    def generator(self, step: int) -> torch.Generator:
        """Return a generator that depends only on the recipe's seed and the step, so that a resumed run repeats it."""
        return torch.Generator().manual_seed(self.recipe.seed * 1_000_000_007 + step)


def declare_float32(folder: Path) -> None:
    """Mark a transformers folder of float16 weights to be loaded in float32.

    By default transformers would load float16 while diffusers loads its own networks in float32: the mix fails.
    """
    file = folder / "config.json"
    write_atomically(file, json_bytes(read_object(file) | {"dtype": "float32"}))


def write_card(folder: Path, edition: int) -> None:
    """Mark a model folder as the miniature of an edition of StoryWorld."""
    write_atomically(folder / "storydiffusion.json", json_bytes({"kind": "miniature", "edition": edition}))
