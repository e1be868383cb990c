"""Checkpoints contain the generator states of every process."""

import random
from pathlib import Path

import lightning as L
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from storydiffusion.training.callbacks.random_states import RandomStates
from tests.helpers.processes import run_processes

CHANCE = ("python", "numpy", "torch")


class Module(L.LightningModule):
    """Draws from every global generator in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.learnt = nn.Linear(1, 1)
        self.drawn: list[list[float]] = []

    def training_step(self, batch, batch_idx):
        self.drawn.append([random.random(), float(np.random.rand()), float(torch.rand(()))])
        return self.learnt(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(steps: int, seed: int, save: Path | None = None, resume: Path | None = None, **options) -> list[list[float]]:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    module = Module()
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, callbacks=[RandomStates()], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, **options,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.ones(8, 1)), ckpt_path=resume, weights_only=True)  # type: ignore[arg-type]
    if save:
        trainer.save_checkpoint(save)
    return module.drawn


def test_resumed_run_draws_the_same_numbers(tmp_path):
    straight = fit(5, seed=1)
    first = fit(3, seed=1, save=tmp_path / "three.ckpt")
    rest = fit(5, seed=2, resume=tmp_path / "three.ckpt")
    assert first + rest == straight
    assert rest != fit(5, seed=2)[3:]


def in_world(rank: int, folder: Path) -> None:
    file, options = folder / "three.ckpt", {"strategy": "ddp", "devices": 2}
    drawn = [
        fit(5, seed=rank, **options),
        fit(3, seed=rank, save=file, **options) + fit(5, seed=7, resume=file, **options),
    ]
    torch.save(drawn, folder / f"{rank}.pt")


def test_states_are_per_process_and_dropped_under_another_world_size(tmp_path):
    assert run_processes(in_world, 2, tmp_path) == [0, 0]
    for rank in range(2):
        straight, resumed = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert straight == resumed
        assert straight == fit(5, seed=rank)  # so each one's are its own
    alone = fit(5, seed=7, resume=tmp_path / "three.ckpt")
    assert alone == fit(5, seed=7)[:2]
