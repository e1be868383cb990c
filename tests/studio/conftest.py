"""A studio with the tiny model."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from storydiffusion.studio.jobs import JobState
from storydiffusion.studio.studio import Studio
from tests.conftest import ROOT, compose_config

SMALL = ("height=64", "width=64", "steps=3", "guidance_scale=3", "model.scheduler=ddim", "model.guidance_start=0")
SECONDS = 300  # after which a job that hangs is a failure


def build_studio(root: Path, model: Path, *overrides: str) -> Studio:
    config = compose_config("studio", f"folder={root}", f"model.path={model}", *SMALL, *overrides)
    return Studio(Path(config.folder), config.build_defaults())


def finish(studio: Studio, name: str) -> JobState:
    """Wait until the project's job is over."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        state = studio.jobs.get(name)
        if state is not None and state.is_over:
            return state
        time.sleep(0.02)
    raise AssertionError(f"{name} hangs: {studio.jobs.get(name)}")


@pytest.fixture
def make_studio(tmp_path: Path, tiny_model: Path) -> Iterator[Callable[..., Studio]]:
    """Return a function that opens a studio on the test's folder runs/."""
    opened: list[Studio] = []

    def make(*overrides: str) -> Studio:
        opened.append(build_studio(tmp_path / "runs", tiny_model, *overrides))
        return opened[-1]

    yield make
    for studio in opened:
        studio.close()


@pytest.fixture
def studio(make_studio: Callable[..., Studio]) -> Studio:
    return make_studio()


@dataclass(frozen=True)
class Server:
    """A studio in a process of its own.

    Attributes:
        address: ends with a slash.
        runs: the folder of its projects.
        temporary: where it keeps temporary files.
    """

    address: str
    runs: Path
    temporary: Path


@contextmanager
def run_server(folder: Path, model: Path, *overrides: str) -> Iterator[tuple[Server, subprocess.Popen[str]]]:
    """Start a studio in a folder, and end it."""
    (folder / "temporary").mkdir()
    settings = ["folder=runs", "port=0", f"model.path={model}", *SMALL, *overrides]
    process = subprocess.Popen(
        [sys.executable, "-m", "storydiffusion", "studio", *settings],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "TMPDIR": str(folder / "temporary")},
    )
    assert process.stdout is not None
    address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
    assert address
    yield Server(address[0], folder / "runs", folder / "temporary"), process
    process.terminate()
    process.wait(SECONDS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[Server]:
    with run_server(tmp_path_factory.mktemp("studio"), tiny_model) as (started, _):
        yield started
