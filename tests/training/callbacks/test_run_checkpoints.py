"""When a run saves, which checkpoint it resumes from, and how it ends if saving fails."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from storydiffusion.errors import UserError
from storydiffusion.training import process_group
from storydiffusion.training.callbacks.run_checkpoints import RunCheckpoints
from storydiffusion.training.callbacks.step_agreement import StepAgreement
from storydiffusion.training.checkpoint_io import VerifiedCheckpointIO, newest_checkpoint
from storydiffusion.training.distributed import build_strategy
from tests.helpers.linear_module import Module
from tests.helpers.processes import run_processes
from tests.helpers.video_model import composed


def fit(checkpoints: RunCheckpoints, steps: int = 3, callbacks: tuple[L.Callback, ...] = (), **options: Any) -> None:
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, callbacks=[checkpoints.agreement, *callbacks, checkpoints],
        plugins=[VerifiedCheckpointIO()],
        logger=False, enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, **options,
    )  # fmt: skip
    data: Any = DataLoader(torch.randn(80, 4))
    trainer.fit(Module(), data, ckpt_path=checkpoints.find(), weights_only=True)


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.ckpt"))


class Steps(L.Callback):
    """Keeps the checkpoints' names after every batch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seen: list[list[str]] = []

    def on_train_batch_start(self, *_):
        self.seen.append(names(self.folder))


def test_checkpoints_are_saved_between_steps_only(tmp_path):
    """With two batches a step, a checkpoint due in the first batch is saved after the second."""
    watch = Steps(tmp_path)
    fit(RunCheckpoints(tmp_path, 0, StepAgreement()), callbacks=(watch,), accumulate_grad_batches=2)
    steps = [f"step-0000000{step}.ckpt" for step in range(4)]
    assert watch.seen == [[], [], steps[1:2], steps[1:2], steps[1:3], steps[1:3]]
    assert names(tmp_path) == steps[2:4]


class Preemption(L.Callback):
    """Saves as soon as allowed, as after a signal, and tries in every batch."""

    def __init__(self, checkpoints: RunCheckpoints) -> None:
        self.checkpoints = checkpoints
        self.refused = 0

    def on_train_batch_end(self, trainer, *_):
        if self.checkpoints.is_between_steps(trainer):
            if trainer.global_step == 2:
                self.checkpoints.save(trainer)
                assert newest_checkpoint(self.checkpoints.folder).step == 2  # type: ignore[union-attr]
                trainer.should_stop = True
        elif trainer.global_step == 1:
            with pytest.raises(RuntimeError, match="lose their gradients"):
                self.checkpoints.save(trainer)
            self.refused += 1


def test_unscheduled_saves_happen_between_steps_only(tmp_path):
    checkpoints = RunCheckpoints(tmp_path, 60, StepAgreement())
    preemption = Preemption(checkpoints)
    fit(checkpoints, callbacks=(preemption,), accumulate_grad_batches=2)
    assert preemption.refused == 1
    assert names(tmp_path) == ["step-00000002.ckpt"]


def test_stderr_names_a_damaged_newer_checkpoint(tmp_path, capfd):
    fit(RunCheckpoints(tmp_path, 0, StepAgreement()))
    newest = tmp_path / "step-00000003.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1])
    capfd.readouterr()
    fit(RunCheckpoints(tmp_path, 0, StepAgreement()), steps=4)
    lines = [line for line in capfd.readouterr().err.splitlines() if "resuming" in line]
    assert len(lines) == 1
    assert lines[0].startswith("resuming from step 2, because step-00000003.ckpt has ")
    assert names(tmp_path) == ["step-00000003.ckpt", "step-00000004.ckpt"]
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.passed_over) == (4, ())


def rank(number: int, folder: Path) -> None:
    try:
        fit(RunCheckpoints(folder, 0, StepAgreement()), strategy="ddp", devices=2)
    except UserError as error:
        (folder.parent / f"{number}.txt").write_text(str(error))
        sys.exit(1)
    except RuntimeError:  # the other process has exited
        sys.exit(2)


def test_all_processes_exit_if_the_first_cannot_write(tmp_path, monkeypatch):
    monkeypatch.setattr(process_group, "PATIENCE", 0.5)
    (tmp_path / "checkpoints").write_text("no folder")
    assert run_processes(rank, 2, tmp_path / "checkpoints") == [1, 1]
    assert sorted(file.name for file in tmp_path.glob("*.txt")) == ["0.txt"]
    assert "cannot write the checkpoint" in (tmp_path / "0.txt").read_text()


def test_processes_with_different_checkpoints_do_not_start(tmp_path, monkeypatch):
    monkeypatch.setattr(process_group, "PATIENCE", 0.5)
    for run in ("0", "1"):
        fit(RunCheckpoints(tmp_path / run, 0, StepAgreement()))
    (tmp_path / "1" / "step-00000003.ckpt").unlink()
    assert run_processes(rank_in_own_folder, 2, tmp_path) == [1, 1]
    assert "the processes find different checkpoints" in (tmp_path / "0.txt").read_text()


def rank_in_own_folder(number: int, folder: Path) -> None:
    rank(number, folder / str(number))


class Hang(L.Callback):
    """Stops the second process during training."""

    def on_train_batch_start(self, trainer, *_):
        if (trainer.global_rank, trainer.global_step) == (1, 1):
            os.kill(os.getpid(), signal.SIGSTOP)


def rank_beside_one_that_hangs(number: int, folder: Path) -> None:
    (folder / f"{number}.txt").write_text(str(os.getpid()))
    strategy = build_strategy(composed("trainer=cpu", "trainer.devices=2", "trainer.timeout_minutes=0.05").trainer)
    try:
        fit(
            RunCheckpoints(folder / "checkpoints", 60, StepAgreement()),
            callbacks=(Hang(),),
            strategy=strategy,
            devices=2,
        )
    except RuntimeError as error:
        (folder / "words.txt").write_text(str(error))
        os.kill(int((folder / "1.txt").read_text()), signal.SIGKILL)
        sys.exit(1)


def test_others_exit_at_the_timeout_if_one_process_hangs(tmp_path):
    assert run_processes(rank_beside_one_that_hangs, 2, tmp_path) == [1, -signal.SIGKILL]
    assert "3000ms" in (tmp_path / "words.txt").read_text()
