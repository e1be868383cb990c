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

from storydiffusion.config import TransitionTrainConfig
from storydiffusion.errors import UserError
from storydiffusion.training.build_training import build_training
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
    """Return a factory of configurations that save only on a signal and at the end."""

    def make(*changes: str) -> TransitionTrainConfig:
        often = ("trainer.checkpoint_minutes=60", "data.backend=pyav", "recipe.sample_every=0")
        return composed(*overrides(tiny_video_model, cache), f"run_dir={tmp_path}/run", *often, *changes)

    return make


class SendSignal(L.Callback):
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
    """Run one process of a training as a launcher starts it."""
    os.setpgrp()
    torch.set_num_threads(1)  # the threads of the parent were not copied
    os.environ |= {"LOCAL_RANK": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    build_training(config).fit()


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


def test_all_processes_save_and_exit_when_one_receives_a_signal(config, slurm, tmp_path, capfd):
    run, two = tmp_path / "run", ("trainer.strategy=ddp", "trainer.devices=2", "trainer.requeue=true")
    noted = slurm(SLURM_JOB_ID="17")
    processes = start(config(ENDLESS, *two))
    wait_for(lambda: len(logged_steps(run)) >= 2)
    assert processes[1].pid is not None
    os.kill(processes[1].pid, signal.SIGUSR1)
    assert exit_codes(processes) == [EXIT_CODE, EXIT_CODE]
    step = saved_step(run)
    assert logged_steps(run) == list(range(1, step + 1))
    sentences = [line for line in capfd.readouterr().err.splitlines() if "SIGUSR1" in line]
    assert len(sentences) == 1
    assert f"saved step {step} and stopped; job 17 is requeued" in sentences[0]
    assert noted.read_text().splitlines() == ["requeue 17"]  # by one of them
    assert exit_codes(start(config(f"trainer.max_steps={step + 1}", *two))) == [0, 0]
    assert saved_step(run) == step + 1
    assert logged_steps(run) == list(range(1, step + 2))


def test_loader_process_ignores_the_signal_until_the_run_is_saved(config, tmp_path):
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


def test_signal_during_a_step_completes_it_and_the_resumed_run_is_bit_equal(config, tmp_path):
    changes = ("recipe.accumulate=2", "trainer.max_steps=4")
    whole = build_training(config(*changes, f"run_dir={tmp_path}/whole"))
    whole.fit()
    with pytest.raises(Preempted):
        # batch 2 is the first of two batches of a step
        add(build_training(config(*changes)), SendSignal(signal.SIGUSR1, batch=2)).fit()
    assert saved_step(tmp_path / "run") == 2
    resumed = build_training(config(*changes))
    resumed.fit()
    assert state(resumed).keys() == state(whole).keys()
    for name, tensor in state(whole).items():
        assert torch.equal(tensor, state(resumed)[name]), name


def test_earlier_handlers_receive_the_signal_after_saving_and_are_restored(config, tmp_path):
    found = []
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def submitit_handler(number, frame):
        found.append((number, saved_step(tmp_path / "run")))

    signal.signal(signal.SIGUSR2, submitit_handler)
    try:
        with pytest.raises(Preempted) as end:
            add(build_training(config(ENDLESS)), SendSignal(signal.SIGUSR2, batch=1)).fit()
        assert end.value.code == EXIT_CODE == 75
        assert found == [(signal.SIGUSR2, 2)]
        build_training(config("trainer.max_steps=3")).fit()
        assert signal.getsignal(signal.SIGUSR2) is submitit_handler
        assert {number: signal.getsignal(number) for number in SIGNALS} == before | {signal.SIGUSR2: submitit_handler}
    finally:
        signal.signal(signal.SIGUSR2, before[signal.SIGUSR2])


def test_preempted_miniature_training_logs_every_step_once(tmp_path):
    with pytest.raises(Preempted):
        add(part_training("attribute_classifier", tmp_path, steps=4), SendSignal(signal.SIGTERM, batch=1)).fit()
    run = tmp_path / "run" / "attribute_classifier"
    assert logged_steps(run) == [0, 1]
    part_training("attribute_classifier", tmp_path, steps=4).fit()
    assert logged_steps(run) == [0, 1, 2, 3]


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Put a `scontrol` in the path that appends its arguments to the returned file and exits with `code`."""

    def make(code: int = 0, **variables: str) -> Path:
        script, calls = tmp_path / "bin" / "scontrol", tmp_path / "calls"
        script.parent.mkdir()
        actions = f"kill -TERM $$ $PPID\necho $@ >> {calls}"  # on requeue Slurm ends the whole job, scontrol included
        script.write_text(f"#!/bin/sh\n{actions}\necho no such job >&2\nexit {code}\n")
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
def test_job_is_requeued_at_its_time_limit_only(config, slurm, capsys, number, variables, calls):
    noted = slurm(**variables)
    with pytest.raises(Preempted):
        add(build_training(config(ENDLESS, "trainer.requeue=true")), SendSignal(number, batch=0)).fit()
    assert (noted.read_text().splitlines() if noted.exists() else []) == calls
    assert ("is requeued" in capsys.readouterr().err) == bool(calls)


def test_error_names_a_job_that_slurm_refuses_to_requeue(config, slurm, tmp_path):
    slurm(code=1, SLURM_JOB_ID="17")
    with pytest.raises(UserError, match=r"Slurm did not requeue job 17 \(no such job\): submit it again"):
        add(build_training(config(ENDLESS, "trainer.requeue=true")), SendSignal(signal.SIGUSR1, batch=0)).fit()
    assert saved_step(tmp_path / "run") == 1


def test_requeue_is_refused_without_slurm_and_under_submitit(config, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(UserError, match=r"trainer\.requeue=true, but this is not a Slurm job"):
        build_training(config("trainer.requeue=true"))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    with pytest.raises(UserError, match="submitit requeues its jobs itself"):
        build_training(config("trainer.requeue=true"))
