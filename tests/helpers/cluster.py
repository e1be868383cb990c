"""What the tests ask of Slurm: submit, look, wait. No accounts are kept: all that is known of a job is in scontrol."""

import csv
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT

SECONDS = 400  # that a state may take to come, on a busy machine
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
SMALL = (
    "model.height=64", "model.width=64", "model.video.frames=3", "data.storyworld.clips=8", "recipe.batch_size=2",
    "recipe.sample_every=0", "trainer.log_every=1",
)  # fmt: skip
"""The miniature at its smallest: about a second a step"""


def slurm(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


def submit(folder: Path, *changes: str, options: tuple[str, ...] = ()) -> str:
    """`sbatch --nodes=2 slurm/train.sbatch CHANGES`, without GPUs; its log is `folder`/log. Returns the job's id."""
    own = ("--nodes=2", "--gpus-per-node=0", f"--output={folder}/log", *options)
    return slurm("sbatch", "--parsable", *own, "slurm/train.sbatch", *SMALL, *changes)


def job(name: str) -> dict[str, str]:
    """JobState, Restarts, ExitCode, RunTime, … of a job."""
    return dict(re.findall(r"(\S+?)=(\S*)", slurm("scontrol", "show", "job", name, "--oneliner")))


def wait_for(condition: Callable[[], bool], what: str, log: Path) -> None:
    """Fails with the end of `log` when it takes too long."""
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            pytest.fail(
                f"after {SECONDS} s not yet {what}:\n{slurm('squeue', '--long')}\n{ends_of([log, *daemon_logs()])}"
            )
        time.sleep(0.1)


def daemon_logs() -> list[Path]:
    return sorted(Path(os.environ["SLURM_CONF"]).parent.glob("slurm*.log"))


def ends_of(logs: list[Path]) -> str:
    """The last lines of each, for a test that fails."""
    texts = {log: log.read_text(errors="replace").replace("\r", "\n") if log.exists() else "missing" for log in logs}
    return "\n".join(f"== {log}\n{text[-3000:]}" for log, text in texts.items())


def has_processes() -> bool:
    """Whether a step of any job is still there on either node, as the daemon that stands above its processes."""
    return subprocess.run(["pgrep", "--exact", "slurmstepd"], capture_output=True).returncode == 0


def wait_for_state(name: str, state: str, log: Path) -> None:
    """Fails as soon as the job has ended in another."""
    wait_for(lambda: job(name)["JobState"] in (state, *ENDED), f"{state} of job {name}", log)
    found = job(name)
    assert found["JobState"] == state, f"{found}\n{log.read_text(errors='replace')[-4000:]}"


def restart_requeued_job(name: str, log: Path) -> None:
    """Wait until a job is requeued and start it at once: Slurm would delay it for two minutes."""
    wait_for_state(name, "PENDING", log)
    assert job(name)["Restarts"] == "1"
    slurm("scontrol", "update", f"jobid={name}", "StartTime=now")


def rows(run: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.csv without empty cells; an incomplete last row is dropped."""
    file = run / "metrics.csv"
    if not file.exists():
        return []
    with file.open(newline="") as stream:
        found = [{name: value for name, value in row.items() if name and value} for row in csv.DictReader(stream)]
    whole = [row for row in found if {"step", "train/memory_gib"} <= row.keys()]
    return [{name: float(value) for name, value in row.items()} for row in whole]


def steps(run: Path) -> list[int]:
    return [int(row["step"]) for row in rows(run)]
