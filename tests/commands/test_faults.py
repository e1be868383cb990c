"""Faults around a training: a killed process, a full disk, a non-finite loss. Runs train.py as a whole."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from storydiffusion.errors import UserError
from storydiffusion.training.checkpoint_io import newest_checkpoint
from tests.commands.test_train import metrics, train, training  # noqa: F401  # fixtures
from tests.conftest import ROOT
from tests.helpers.video_model import overrides

PATIENCE = 60.0  # seconds until all processes must be gone
BEGUN = 300.0  # seconds within which a training must have begun, libraries loaded


@dataclass(frozen=True)
class Run:
    """A training in several processes, as Lightning's launcher starts them, in a process group of its own."""

    first: subprocess.Popen[str]
    folder: Path

    def processes(self) -> dict[int, str]:
        """Return the live processes of the group with their LOCAL_RANK, if any."""
        found = {}
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and os.getpgid(int(entry.name)) == self.first.pid:
                    state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                    variables = (entry / "environ").read_bytes().split(b"\0")
                    ranks = [value[11:].decode() for value in variables if value.startswith(b"LOCAL_RANK=")]
                    if state not in "ZX":
                        found[int(entry.name)] = "".join(ranks)
            except (ProcessLookupError, FileNotFoundError):  # it has ended meanwhile
                continue
        return found

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if condition():
                return True
            time.sleep(0.1)
        return False


@pytest.fixture
def two_processes(tiny_video_model, cache, tmp_path) -> Iterator[Run]:
    """In the midst of its steps."""
    folder = tmp_path / "run"
    command = [
        sys.executable, str(ROOT / "train.py"), *overrides(tiny_video_model, cache), f"run_dir={folder}",
        "trainer.strategy=ddp", "trainer.devices=2", "trainer.max_steps=100000", "recipe.sample_every=0",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log.txt").open("w") as log:
        first = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, text=True, start_new_session=True
        )
    run = Run(first, folder)
    try:
        begun = run.wait_until(
            lambda: len(list((folder / "checkpoints").glob("*.json"))) >= 2 or first.poll() is not None, BEGUN
        )
        assert begun, "the training has not begun"
        assert first.poll() is None, (tmp_path / "log.txt").read_text()
        yield run
    finally:
        for process in run.processes():
            os.kill(process, signal.SIGKILL)
        first.wait()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("victim", ["the first", "the other"])
def test_where_one_process_is_killed_all_are_gone(two_processes, victim):
    others = [process for process, rank in two_processes.processes().items() if rank == "1"]
    other = min(others)  # before the process that decodes for it
    os.kill(two_processes.first.pid if victim == "the first" else other, signal.SIGKILL)
    code = two_processes.first.wait(PATIENCE)
    assert code != 0
    assert two_processes.wait_until(lambda: not two_processes.processes(), PATIENCE), two_processes.processes()
    found = newest_checkpoint(two_processes.folder / "checkpoints")
    assert found is not None
    assert found.step >= 1


def test_a_full_disk_ends_train_py_with_one_sentence_and_the_checkpoint_before_stays(train, tmp_path):  # noqa: F811
    resource = pytest.importorskip("resource")
    both = ("run_dir=run", "recipe.trainable=[predictor,motion_module]", "recipe.sample_every=0")
    assert train(*both, "trainer.max_steps=2").code == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # less than a checkpoint, more than a video
    try:
        outcome = train(*both, "trainer.max_steps=3")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert outcome.code == 1
    sentences = [line for line in outcome.err.splitlines() if line.startswith("train.py: ")]
    assert len(sentences) == 1
    assert "step-00000003.ckpt: file too large" in sentences[0]
    assert "Traceback" not in outcome.err
    found = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert found is not None
    assert (found.step, found.passed_over) == (2, ())
    assert train(*both, "trainer.max_steps=3").code == 0  # there is room again


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(train, tmp_path):  # noqa: F811
    assert train("run_dir=run", "trainer.max_steps=1", "recipe.sample_every=0").code == 0
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("*.ckpt")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    kept = (tmp_path / "run" / "metrics.csv").read_bytes()
    outcome = train("run_dir=run", "trainer.max_steps=1", "recipe.sample_every=0")
    assert outcome.code == 1
    assert "step-00000001.ckpt has" in outcome.err
    assert "choose another run_dir" in outcome.err
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == kept


def poison(trained, steps: set[int]) -> None:
    """Make the errors of the clips of these steps, from 0, non-finite."""
    errors = trained.module.errors
    trained.module.errors = lambda *given: errors(*given) * (torch.nan if trained.trainer.global_step in steps else 1.0)


def test_steps_left_out_are_counted_in_the_log(training, tmp_path):  # noqa: F811
    steps = ("trainer.max_steps=5", "recipe.sample_every=0")
    run = training("run", *steps)
    poison(run, {1, 3})
    run.fit()
    rows = metrics(tmp_path / "run")
    assert [float(row["train/skipped_steps"]) for row in rows] == [0, 1, 1, 2, 2]
    assert [bool(row["train/loss"]) for row in rows] == [True, False, True, False, True]
    stopped = training("stopped", *steps, "trainer.max_bad_steps=2")
    poison(stopped, {1, 2})
    with pytest.raises(UserError, match=r"step 3 is not finite, 2 times in a row"):
        stopped.fit()
    found = newest_checkpoint(tmp_path / "stopped" / "checkpoints")
    assert found is not None
    assert found.step == 2
