"""Processes that do not reach each other end with one sentence before the first step."""

import os
import socket
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from storydiffusion.config import TransitionTrainConfig
from storydiffusion.errors import UserError
from storydiffusion.training.build_training import build_training
from storydiffusion.training.callbacks.health_check import HealthCheck
from tests.helpers.linear_module import Module
from tests.helpers.processes import run_processes
from tests.helpers.video_model import composed, overrides

LIMIT = 3.0  # seconds


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


@pytest.fixture
def two(tiny_video_model, cache, tmp_path) -> TransitionTrainConfig:
    """A training in two processes that wait `LIMIT` seconds for each other."""
    given = ("trainer.strategy=ddp", "trainer.devices=2", f"trainer.timeout_minutes={LIMIT / 60}")
    return composed(*overrides(tiny_video_model, cache), *given, f"run_dir={tmp_path}/run")


def train_alone(
    number: int, alone: int, config: TransitionTrainConfig, folder: Path, address: str = "127.0.0.1"
) -> None:
    """Train in one of the two processes; the other ends without having opened or reached the port."""
    if number != alone:
        return
    os.environ["MASTER_ADDR"] = address
    run = build_training(config)
    clock = time.monotonic()
    try:
        run.fit()
    except UserError as error:
        (folder / "sentence.txt").write_text(f"{time.monotonic() - clock}\n{error}")
        sys.exit(1)


def read_sentence(folder: Path) -> str:
    seconds, sentence = (folder / "sentence.txt").read_text().split("\n")  # of one line
    assert float(seconds) < 2 * LIMIT + 4  # torch may start a second try within the limit
    assert "check that all processes have started, that their nodes reach this address" in sentence
    return sentence


def test_a_closed_port_ends_a_training_in_one_sentence(two, tmp_path):
    assert run_processes(train_alone, 2, 1, two, tmp_path) == [0, 1]
    sentence = read_sentence(tmp_path)
    assert sentence.startswith(f"process 1 of 2 on {socket.gethostname()} does not meet the others at MASTER_ADDR=127")


def test_a_process_that_never_starts_is_missed_by_the_first(two, tmp_path):
    assert run_processes(train_alone, 2, 0, two, tmp_path) == [1, 0]
    assert "process 0 of 2" in read_sentence(tmp_path)
    assert "1/2 clients joined" in read_sentence(tmp_path)


def test_an_address_that_is_out_of_reach_is_named(two, tmp_path):
    assert run_processes(train_alone, 2, 1, two, tmp_path, "nowhere.invalid") == [0, 1]
    assert "MASTER_ADDR=nowhere.invalid MASTER_PORT=" in read_sentence(tmp_path)


def train_at_a_taken_port(number: int, config: TransitionTrainConfig, folder: Path) -> None:
    with socket.create_server(("", int(os.environ["MASTER_PORT"]))) if number == 0 else socket.socket():
        train_alone(number, 0, config, folder)


def test_a_port_that_another_program_has_is_named(two, tmp_path):
    assert run_processes(train_at_a_taken_port, 2, two, tmp_path) == [1, 0]
    assert "address already in use" in read_sentence(tmp_path)
