"""Processes that do not reach each other end with one sentence before the first step."""

import sys
import time
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader

from storydiffusion.errors import UserError
from storydiffusion.training.callbacks.health_check import HealthCheck
from tests.helpers.linear_module import Module
from tests.helpers.processes import run_processes


class Sleep(L.Callback):
    """Keeps the second process from taking part for a while."""

    def setup(self, trainer, pl_module, stage):
        if trainer.global_rank == 1:
            time.sleep(4)


def rank(number: int, folder: Path, *callbacks: L.Callback) -> None:
    trainer = L.Trainer(
        accelerator="cpu", strategy="ddp", devices=2, max_steps=1, callbacks=list(callbacks), logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    try:
        trainer.fit(Module(), DataLoader(torch.randn(8, 4), batch_size=4))  # type: ignore[arg-type]
    except UserError as error:
        (folder / f"{number}.txt").write_text(str(error))
        sys.exit(1)
    except RuntimeError:  # the other process has ended
        sys.exit(2)


def test_processes_that_answer_train(tmp_path):
    assert run_processes(rank, 2, tmp_path, HealthCheck(60)) == [0, 0]


def test_a_process_that_does_not_answer_is_reported_before_the_first_step(tmp_path):
    assert run_processes(rank, 2, tmp_path, Sleep(), HealthCheck(0.5))[0] == 1
    sentence = (tmp_path / "0.txt").read_text()
    assert sentence.startswith("process 0 of 2 on ")
    assert "gets no answer" in sentence
    assert "INTERFACE=NAME" in sentence
