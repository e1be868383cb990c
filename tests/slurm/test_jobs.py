"""Trainings as jobs of a real Slurm of two nodes: to the end, through time limits and lost nodes, and as a sweep."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from storydiffusion.training.checkpoint_io import newest_checkpoint
from tests.conftest import ROOT
from tests.helpers.cluster import (
    SMALL,
    has_processes,
    job,
    restart_requeued_job,
    rows,
    slurm,
    steps,
    submit,
    wait_for,
    wait_for_state,
)

pytestmark = pytest.mark.slurm

STEPS = 14
RARELY = "trainer.checkpoint_minutes=600"  # so that only a signal saves


@pytest.fixture(scope="module", autouse=True)
def environment(tmp_path_factory):
    """Set the environment that the jobs inherit."""
    if not shutil.which("sbatch") or "SLURM_CONF" not in os.environ:
        pytest.fail("there is no Slurm to test with: make test-slurm starts one")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("INTERFACE", "lo")  # both nodes are on this machine
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """Return the folder into which the first job draws the clips."""
    return tmp_path_factory.mktemp("cache")


def saved_step(run: Path) -> int:
    found = newest_checkpoint(run / "checkpoints")
    assert found is not None
    return found.step


def check_finished(run: Path, name: str, restarts: int) -> None:
    found = job(name)
    assert (found["ExitCode"], found["Restarts"]) == ("0:0", str(restarts))
    assert steps(run) == list(range(1, STEPS + 1))
    assert saved_step(run) == STEPS
    assert (run / "export" / "predictor" / "model.safetensors").exists()


@pytest.mark.slow
def test_two_nodes_train_to_the_end(cache, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    name = submit(tmp_path, f"run_dir={run}", f"cache={cache}", f"trainer.max_steps={STEPS}")
    wait_for_state(name, "COMPLETED", log)
    check_finished(run, name, restarts=0)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["trainer"]["nodes"], config["trainer"]["devices"]) == (2, 1)
    assert "Starting with 2 processes" in log.read_text()


def test_job_at_its_time_limit_saves_is_requeued_and_finishes(cache, tmp_path):
    """The job array gives the seed. scancel sends the signal that Slurm sends 180 s before the limit."""
    run, log = tmp_path / "run", tmp_path / "log"
    changes = (f"run_dir={run}", f"cache={cache}", f"trainer.max_steps={STEPS}", RARELY, "data.workers=1")
    name = submit(tmp_path, *changes, options=("--array=7",)) + "_7"
    wait_for(lambda: len(steps(run)) >= 3, "three steps", log)
    slurm("scancel", "--signal=USR1", name)
    restart_requeued_job(name, log)
    step, before = saved_step(run), rows(run)
    assert 3 <= step < STEPS
    assert steps(run) == list(range(1, step + 1))
    assert log.read_text().count(f"SIGUSR1: saved step {step} and stopped; job {name} is requeued") == 1
    wait_for_state(name, "COMPLETED", log)
    check_finished(run, name, restarts=1)
    assert rows(run)[:step] == before  # including their times: not retrained
    assert yaml.safe_load((run / "config.yaml").read_text())["recipe"]["seed"] == 7


def test_job_that_loses_a_node_is_requeued_and_finishes(cache, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    often = "trainer.checkpoint_minutes=0"
    name = submit(tmp_path, f"run_dir={run}", f"cache={cache}", f"trainer.max_steps={STEPS}", often)
    wait_for(lambda: len(steps(run)) >= 3, "three steps", log)
    slurm("scontrol", "update", "nodename=n2", "state=down", "reason=test")  # it returns when it reports again
    wait_for_state(name, "PENDING", log)
    step = saved_step(run)
    before = rows(run)[:step]
    # A node that is set down is not dead: while a step is still ending there, Slurm takes a new one of its name for it.
    wait_for(lambda: not has_processes(), "free of processes", log)
    restart_requeued_job(name, log)
    wait_for_state(name, "COMPLETED", log)
    check_finished(run, name, restarts=1)
    assert 2 <= step < STEPS
    assert rows(run)[: len(before)] == before


def test_cancelled_job_saves_and_stays_cancelled(cache, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    changes = (f"run_dir={run}", f"cache={cache}", f"trainer.max_steps={STEPS}", RARELY, "data.workers=1")
    name = submit(tmp_path, *changes)
    wait_for(lambda: len(steps(run)) >= 3, "three steps", log)
    slurm("scancel", name)
    wait_for_state(name, "CANCELLED", log)
    wait_for(lambda: not slurm("squeue", "--noheader", f"--jobs={name}"), "gone", log)
    step = saved_step(run)
    assert 3 <= step < STEPS
    assert steps(run) == list(range(1, step + 1))
    assert job(name)["Restarts"] == "0"
    assert f"SIGTERM: saved step {step} and stopped; the same command resumes" in log.read_text()


@pytest.mark.slow
def test_sweep_of_three_jobs_survives_a_preemption(cache, tmp_path):
    launcher = [f"hydra.launcher.{each}" for each in ("gpus_per_node=null", "cpus_per_task=1", "mem_gb=4")]
    own = [f"cache={cache}", f"trainer.max_steps={STEPS}", RARELY, "trainer=cpu"]
    sweep = "recipe.seed=1,2,3"
    with (tmp_path / "log").open("w") as log:
        launched = subprocess.Popen(
            [sys.executable, ROOT / "train.py", "-m", "hydra/launcher=slurm", *launcher, *SMALL, *own, sweep],
            cwd=tmp_path, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    runs = [tmp_path / "runs" / "transition" / f"recipe.seed={seed}" for seed in (1, 2, 3)]
    try:
        wait_for(lambda: len(steps(runs[1])) >= 3, "three steps", tmp_path / "log")
        names = slurm("squeue", "--noheader", "--array", "--format=%i").split()
        (name,) = [name for name in names if name.endswith("_1")]
        slurm("scancel", "--signal=USR2", name)
        restart_requeued_job(name, tmp_path / "runs" / ".submitit" / name / f"{name}_0_log.err")
        step, before = saved_step(runs[1]), rows(runs[1])
        wait_for(lambda: launched.poll() is not None, "the sweep ended", tmp_path / "log")
    finally:
        launched.kill()
    assert launched.returncode == 0, (tmp_path / "log").read_text()
    for index, run in enumerate(runs):
        check_finished(run, f"{name[:-2]}_{index}", restarts=int(index == 1))
        assert yaml.safe_load((run / "config.yaml").read_text())["recipe"]["seed"] == index + 1
    assert 3 <= step < STEPS
    assert rows(runs[1])[:step] == before
