"""`python train.py` on the miniature, killed at random moments and repeated by the same command, ends bit-equal."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from storydiffusion import commands
from tests.commands.test_train import metrics
from tests.helpers.killed import kill_until_finished, run_to_end

ROUNDS = 2
SHARED = ("trainer=cpu", "trainer.log_every=1", "trainer.checkpoint_minutes=0", "trainer.max_steps=8")
TRAININGS = {
    "transitions": (
        "experiment=storyworld_transitions", "predictor.start=package://miniature/predictor", "recipe.batch_size=1",
        "model.height=64", "model.width=64", "model.video.frames=4", "data.storyworld.clips=4", "data.workers=0",
        "data.backend=pyav", "recipe.warmup_steps=2",
    ),
    "autoencoder": (
        "experiment=storyworld_autoencoder", "recipe.batch_size=2", "recipe.crop=32", "recipe.warmup_steps=2",
        "recipe.block_out_channels=[16,16]",
    ),
}  # fmt: skip


def train(folder: Path, overrides: list[str]) -> None:
    os.chdir(folder)
    commands.run_verb("train", overrides, "train.py")


def results(run: Path) -> dict[str, Any]:
    """Return what a training has learned and logged, without times."""
    export = run / "export"
    found: dict[str, Any] = {
        file.relative_to(export).as_posix(): file.read_bytes() for file in export.rglob("*") if file.is_file()
    }
    record = json.loads(found["training.json"])
    found["training.json"] = {part: {**entry, "wall_seconds": 0} for part, entry in record.items()}
    found["log"] = [(float(row["step"]), row["train/loss"]) for row in metrics(run)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_killed_training_of_the_miniature_equals_the_undisturbed_one(tmp_path, name):
    log, command = tmp_path / "log.txt", [*TRAININGS[name], *SHARED]
    run_to_end(train, log, tmp_path, [*command, "run_dir=warm"])  # renders the clips
    seconds = run_to_end(train, log, tmp_path, [*command, "run_dir=whole"])
    whole = results(tmp_path / "whole")
    assert len({step for step, _ in whole["log"]}) == len(whole["log"]) == 8
    kills = 0
    for number in range(ROUNDS):
        chance = random.Random(number)
        kills += kill_until_finished(train, log, seconds, chance, tmp_path, [*command, f"run_dir=run-{number}"])
        assert results(tmp_path / f"run-{number}") == whole
        assert list((tmp_path / f"run-{number}").rglob(".*")) == []
    assert kills  # how many depends on the machine
