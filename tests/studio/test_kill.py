"""SIGKILL at any write: the project opens, its images are all there, and generating finishes it."""

import hashlib
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from storydiffusion.files import atomic
from storydiffusion.output import run_folder
from storydiffusion.output.manifest import find_damage
from storydiffusion.studio import edits
from storydiffusion.studio.look import Look
from tests.conftest import STORY
from tests.studio.conftest import build_studio, finish

W = "window"
LOOK = Look(seed=0, layout="auto", with_video=False)
SECONDS = 300
FEW, TEN = (3, 9, 18), (1, 2, 5, 7, 11, 13, 15, 20, 22, 24)
"""numbers of the write before which the process is killed; a session has some 30"""


def work(root: Path, model: Path, write: int) -> None:
    """Make a story, edit it, retake a panel and choose a take; the process is killed before write number `write`."""
    torch.set_num_threads(1)  # the threads of the parent were not copied
    replace, done = os.replace, []

    def replace_or_die(*arguments) -> None:
        done.append(1)
        if len(done) == write:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*arguments)

    atomic.os.replace = replace_or_die
    run_folder.SECONDS_BETWEEN_SAVES = 0.0
    studio = build_studio(root, model)
    name = studio.create(STORY)
    studio.generate(name, W, LOOK)
    assert finish(studio, name).state == "done"
    studio.edit(name, W, lambda story: edits.change_panel(story, 1, {"caption": "Other."}))
    studio.generate(name, W, LOOK)
    assert finish(studio, name).state == "done"
    for start in (lambda: studio.retake(name, W, 2, 2), lambda: studio.choose(name, W, 2, 1)):
        start()
        assert finish(studio, name).state == "done"
    studio.close()
    os._exit(0)


def run(root: Path, model: Path, write: int) -> int | None:
    process = multiprocessing.get_context("fork").Process(target=work, args=(root, model, write))
    process.start()
    process.join(SECONDS)
    return process.exitcode


def check_killed_at(write: int, root: Path, model: Path) -> None:
    assert run(root, model, write) == -signal.SIGKILL
    studio = build_studio(root, model)
    if not studio.list_projects():
        assert write == 1  # before the story was written
        studio.create(STORY)
    (name,) = studio.list_projects()
    project = studio.open(name, W)
    if project.manifest is not None:
        there = {hashlib.sha256(file.read_bytes()).hexdigest() for file in project.folder.rglob("*.png")}
        stated = [*project.manifest.panels, *project.manifest.earlier, *project.manifest.takes]
        assert {record.sha256 for record in stated} <= there
    studio.generate(name, W, Look.read(project.config) if project.manifest else LOOK)
    assert finish(studio, name).state == "done", studio.jobs.get(name)
    finished = studio.read(name)
    assert finished.manifest is not None
    assert finished.manifest.complete
    assert not find_damage(finished.folder, finished.manifest)
    studio.close()


@pytest.mark.parametrize("write", FEW)
def test_a_project_survives_a_kill(tmp_path, tiny_model, write):
    check_killed_at(write, tmp_path / "runs", tiny_model)


@pytest.mark.slow
@pytest.mark.parametrize("write", TEN)
def test_a_project_survives_a_kill_at_ten_more_points(tmp_path, tiny_model, write):
    check_killed_at(write, tmp_path / "runs", tiny_model)
