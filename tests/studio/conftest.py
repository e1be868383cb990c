"""A studio with the tiny model."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storydiffusion.studio.jobs import JobState
from storydiffusion.studio.studio import Studio
from tests.conftest import compose_config

SMALL = ("height=64", "width=64", "steps=3", "guidance_scale=3")
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
