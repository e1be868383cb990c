"""A story with video, killed at random moments and repeated by the same command, ends bit-equal."""

import dataclasses
import os
import random
import re
from pathlib import Path

import pytest

from storydiffusion import commands
from storydiffusion.output import run_folder
from storydiffusion.output.manifest import read_manifest
from tests.commands.test_infer_video import video_model  # noqa: F401  # a fixture
from tests.helpers.killed import kill_until_finished, run_to_end

ROUNDS = 4
TIMES = re.compile(rb"<tr><th scope=\"row\">Time,.*?</tr>")


def infer(folder: Path, overrides: list[str]) -> None:
    os.chdir(folder)
    run_folder.SECONDS_BETWEEN_SAVES = 0.0  # after each step, so that there is something to resume
    commands.run_verb("infer", overrides, "infer.py")


def results(run: Path) -> dict[str, bytes]:
    """Return the files of a run, apart from the times and the place that manifest and report name."""
    found = {file.relative_to(run).as_posix(): file.read_bytes() for file in run.rglob("*") if file.is_file()}
    manifest = read_manifest(run / "manifest.json")
    config = {key: value for key, value in manifest.config.items() if key != "run_dir"}
    checksums = {name: value for name, value in manifest.results.items() if name != "report.html"}
    kept = dataclasses.replace(manifest, config=config, seconds={}, results=checksums)
    report = TIMES.sub(b"", found["report.html"]).replace(run.name.encode(), b"")
    return {**found, "manifest.json": repr(kept).encode(), "report.html": report}


@pytest.mark.slow
def test_a_killed_story_with_video_equals_the_undisturbed_one(tmp_path, story_file, video_model):  # noqa: F811
    parts = [f"model.video.{part}={video_model}/{part}" for part in ("motion_adapter", "image_encoder", "predictor")]
    small = ["height=64", "width=64", "steps=6", "model.video.frames=4", "model.video.steps=3", "fps=4", "hold=0.5"]
    command = [f"story={story_file}", f"model.path={video_model}", *parts, *small, "video=on"]
    log = tmp_path / "log.txt"
    seconds = run_to_end(infer, log, tmp_path, [*command, "run_dir=run-whole"])
    whole = results(tmp_path / "run-whole")
    kills = 0
    for number in range(ROUNDS):
        chance = random.Random(number)
        kills += kill_until_finished(infer, log, seconds, chance, tmp_path, [*command, f"run_dir=run-{number}"])
        assert results(tmp_path / f"run-{number}") == whole
    assert kills >= ROUNDS
