"""Real signals to real trainings: alone, in two processes, in the midst of a step, with a loader's process."""

import csv
import multiprocessing
import os
import signal
import stat
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import lightning as L
import pytest
import torch

from storydiffusion.commands import train as train_command
from storydiffusion.config import TransitionTrainConfig
from storydiffusion.errors import UserError
from storydiffusion.training.callbacks.preemption import EXIT_CODE, SIGNALS, Preempted
from storydiffusion.training.checkpoint_io import newest_checkpoint
from storydiffusion.training.training_run import TrainingRun
from tests.helpers.training_state import state
from tests.helpers.video_model import composed, overrides
from tests.training.miniature.test_recipes import training as part_training

ENDLESS = "trainer.max_steps=100000"
SECONDS = 120  # that anything may take


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def config(tiny_video_model, cache, tmp_path) -> Callable[..., TransitionTrainConfig]:
    """Of `python train.py run_dir=run …`, saving only when it is told to stop, and at the end."""

    def make(*changes: str) -> TransitionTrainConfig:
        often = ("trainer.checkpoint_minutes=60", "data.backend=pyav", "recipe.sample_every=0")
        return composed(*overrides(tiny_video_model, cache), f"run_dir={tmp_path}/run", *often, *changes)

    return make


class Told(L.Callback):
    """Sends this process a signal while it trains a batch."""

    def __init__(self, number: int, batch: int) -> None:
        self.number, self.batch = number, batch

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.batch:
            os.kill(os.getpid(), self.number)


def add(training: TrainingRun, callback: L.Callback) -> TrainingRun:
    training.trainer.callbacks.append(callback)  # type: ignore[attr-defined]
    return training


def saved_step(run: Path) -> int:
    found = newest_checkpoint(run / "checkpoints")
    assert found is not None
    return found.step


def logged_steps(run: Path) -> list[float]:
    file = run / "metrics.csv"
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        return [float(row["step"]) for row in csv.DictReader(stream) if row.get("step")]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def train(number: int, port: int, config: TransitionTrainConfig) -> None:
    """One process of a training, as a launcher starts it."""
    os.setpgrp()
    torch.set_num_threads(1)  # the threads of the parent were not copied
    os.environ |= {"LOCAL_RANK": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    train_command.build_training(config).fit()


def start(config: TransitionTrainConfig) -> list[BaseProcess]:
    context = multiprocessing.get_context("fork")  # libraries are loaded already
    port = 20_000 + os.getpid() % 20_000
    processes = [context.Process(target=train, args=(rank, port, config)) for rank in range(config.trainer.devices)]
    for process in processes:
        process.start()
    return processes


def exit_codes(processes: list[BaseProcess]) -> list[int | None]:
    for process in processes:
        process.join(SECONDS)
    return [process.exitcode for process in processes]


def test_all_save_and_stop_when_one_of_two_processes_is_told(config, slurm, tmp_path, capfd):
    run, two = tmp_path / "run", ("trainer.strategy=ddp", "trainer.devices=2", "trainer.requeue=true")
    noted = slurm(SLURM_JOB_ID="17")
    processes = start(config(ENDLESS, *two))
    wait_for(lambda: len(logged_steps(run)) >= 2)
    assert processes[1].pid is not None
    os.kill(processes[1].pid, signal.SIGUSR1)
    assert exit_codes(processes) == [EXIT_CODE, EXIT_CODE]
    step = saved_step(run)
    assert logged_steps(run) == list(range(1, step + 1))
    told = [line for line in capfd.readouterr().err.splitlines() if "SIGUSR1" in line]
    assert len(told) == 1
    assert f"stopped after step {step}, which is saved; job 17 is queued again" in told[0]
    assert noted.read_text().splitlines() == ["requeue 17"]  # by one of them
    assert exit_codes(start(config(f"trainer.max_steps={step + 1}", *two))) == [0, 0]
    assert saved_step(run) == step + 1
    assert logged_steps(run) == list(range(1, step + 2))


def test_a_loaders_process_that_is_told_too_goes_on_until_all_is_saved(config, tmp_path):
    run = tmp_path / "run"
    (process,) = processes = start(config(ENDLESS, "data.workers=1"))
    wait_for(lambda: len(logged_steps(run)) >= 2)
    assert process.pid is not None
    os.killpg(process.pid, signal.SIGTERM)
    assert exit_codes(processes) == [EXIT_CODE]
    assert logged_steps(run) == list(range(1, saved_step(run) + 1))
    group = process.pid
    wait_for(lambda: not is_alive(group))


def is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_training_told_in_the_midst_of_a_step_ends_it_and_then_equals_an_untold_one(config, tmp_path):
    changes = ("recipe.accumulate=2", "trainer.max_steps=4")
    whole = train_command.build_training(config(*changes, f"run_dir={tmp_path}/whole"))
    whole.fit()
    with pytest.raises(Preempted):
        add(
            train_command.build_training(config(*changes)), Told(signal.SIGUSR1, batch=2)
        ).fit()  # the first of two batches
    assert saved_step(tmp_path / "run") == 2
    resumed = train_command.build_training(config(*changes))
    resumed.fit()
    assert state(resumed).keys() == state(whole).keys()
    for name, tensor in state(whole).items():
        assert torch.equal(tensor, state(resumed)[name]), name


def test_handlers_that_were_there_before_get_the_signal_once_all_is_saved_and_are_put_back(config, tmp_path):
    found = []
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def submitits(number, frame):
        found.append((number, saved_step(tmp_path / "run")))

    signal.signal(signal.SIGUSR2, submitits)
    try:
        with pytest.raises(Preempted) as end:
            add(train_command.build_training(config(ENDLESS)), Told(signal.SIGUSR2, batch=1)).fit()
        assert end.value.code == EXIT_CODE == 75
        assert found == [(signal.SIGUSR2, 2)]
        train_command.build_training(config("trainer.max_steps=3")).fit()
        assert signal.getsignal(signal.SIGUSR2) is submitits
        assert {number: signal.getsignal(number) for number in SIGNALS} == before | {signal.SIGUSR2: submitits}
    finally:
        signal.signal(signal.SIGUSR2, before[signal.SIGUSR2])


def test_a_part_of_the_miniature_that_is_told_has_every_row_of_its_log_once(tmp_path):
    with pytest.raises(Preempted):
        add(part_training("attribute_classifier", tmp_path, steps=4), Told(signal.SIGTERM, batch=1)).fit()
    run = tmp_path / "run" / "attribute_classifier"
    assert logged_steps(run) == [0, 1]
    part_training("attribute_classifier", tmp_path, steps=4).fit()
    assert logged_steps(run) == [0, 1, 2, 3]


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Puts a `scontrol` in the path that notes its arguments in the file returned, and ends with `code`."""

    def make(code: int = 0, **variables: str) -> Path:
        script, calls = tmp_path / "bin" / "scontrol", tmp_path / "calls"
        script.parent.mkdir()
        told = f"kill -TERM $$ $PPID\necho $@ >> {calls}"  # Slurm ends a job that it queues again, scontrol too
        script.write_text(f"#!/bin/sh\n{told}\necho no such job >&2\nexit {code}\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return calls

    return make


ARRAY = {"SLURM_JOB_ID": "17", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.mark.parametrize(
    ("number", "variables", "calls"),
    [
        (signal.SIGUSR1, {"SLURM_JOB_ID": "17"}, ["requeue 17"]),
        (signal.SIGUSR1, ARRAY, ["requeue 17_3"]),
        (signal.SIGTERM, {"SLURM_JOB_ID": "17"}, []),
    ],
    ids=["time limit", "of an array", "scancel"],
)
def test_a_job_is_queued_again_when_its_time_is_up_and_only_then(config, slurm, capsys, number, variables, calls):
    noted = slurm(**variables)
    with pytest.raises(Preempted):
        add(train_command.build_training(config(ENDLESS, "trainer.requeue=true")), Told(number, batch=0)).fit()
    assert (noted.read_text().splitlines() if noted.exists() else []) == calls
    assert ("is queued again" in capsys.readouterr().err) == bool(calls)


def test_a_job_that_slurm_does_not_queue_again_is_named_and_saved(config, slurm, tmp_path):
    slurm(code=1, SLURM_JOB_ID="17")
    with pytest.raises(UserError, match="job 17 is not queued again, submit it anew: no such job"):
        add(train_command.build_training(config(ENDLESS, "trainer.requeue=true")), Told(signal.SIGUSR1, batch=0)).fit()
    assert saved_step(tmp_path / "run") == 1


def test_only_one_may_own_the_queueing(config, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match=r"trainer\.requeue=true, but this is no Slurm job"):
        train_command.build_training(config("trainer.requeue=true"))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    with pytest.raises(UserError, match="submitit requeues its jobs itself"):
        train_command.build_training(config("trainer.requeue=true"))
