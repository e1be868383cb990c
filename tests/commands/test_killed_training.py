"""A training killed repeatedly ends bit-equal to an undisturbed one, with the same clips in every step."""

import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from storydiffusion.config import TransitionTrainConfig
from storydiffusion.training.build_training import build_training
from tests.commands.test_train import metrics
from tests.helpers.processes import run_processes
from tests.helpers.training_state import state
from tests.helpers.video_model import composed, overrides

STEPS = 40
MOMENTS = ("batch begins", "gradients", "batch ends", "checkpoint")


@dataclass(frozen=True)
class Kill:
    """When a process kills itself: the step, the moment in it, and for checkpoints the seconds since writing began."""

    step: int
    moment: str
    delay: float


class Keys(L.Callback):
    """Writes the clips of each step to the disk before the step."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        with self.file.open("a") as stream:
            stream.write(json.dumps([trainer.global_step, batch.keys]) + "\n")
            stream.flush()
            os.fsync(stream.fileno())


class Killer(L.Callback):
    def __init__(self, kill: Kill) -> None:
        self.kill = kill

    def on_train_batch_start(self, trainer, *_):
        self._kill_at(trainer.global_step + 1, "batch begins")

    def on_after_backward(self, trainer, *_):
        self._kill_at(trainer.global_step + 1, "gradients")

    def on_train_batch_end(self, trainer, *_):
        self._kill_at(trainer.global_step, "batch ends")
        if (trainer.global_step, "checkpoint") == (self.kill.step, self.kill.moment):
            threading.Thread(target=self._kill_later, daemon=True).start()

    def _kill_at(self, step: int, moment: str) -> None:
        if (step, moment) == (self.kill.step, self.kill.moment):
            os.kill(os.getpid(), signal.SIGKILL)

    def _kill_later(self) -> None:
        time.sleep(self.kill.delay)
        os.kill(os.getpid(), signal.SIGKILL)


def attempt(rank: int, config: TransitionTrainConfig, kills: list[Kill | None]) -> None:
    """Run one process of the training until it is killed, or to the end, where it saves its state."""
    folder = Path(config.run_dir)
    folder.mkdir(exist_ok=True)
    log = os.open(folder / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if config.trainer.devices == 1:
        del os.environ["LOCAL_RANK"]
    trained = build_training(config)
    watchers: list[L.Callback] = [Keys(folder / f"keys-{rank}.txt")]
    if kill := kills[rank]:
        watchers.append(Killer(kill))
    trained.trainer.callbacks[:0] = watchers  # type: ignore[attr-defined]  # before the checkpoint of the same batch
    trained.fit()
    torch.save(state(trained), folder / f"state-{rank}.pt")
    sys.stdout.flush()
    os._exit(0)


def keys(folder: Path, world_size: int) -> dict[int, list[str]]:
    """Return the clips of each batch over all processes, after checking that repeated batches are equal."""
    seen: list[dict[int, list[str]]] = []
    for rank in range(world_size):
        seen.append({})
        for line in (folder / f"keys-{rank}.txt").read_text().splitlines():
            step, names = json.loads(line)
            assert seen[rank].setdefault(step, names) == names, (rank, step)
    steps = set.intersection(*(set(part) for part in seen))  # a process may die before the other starts its step
    return {step: [name for part in seen for name in part[step]] for step in sorted(steps)}


def differing_bytes(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> int:
    assert one.keys() == two.keys()
    assert all(two[name].dtype == tensor.dtype and two[name].shape == tensor.shape for name, tensor in one.items())
    pairs = [[found[name].contiguous().view(-1).view(torch.uint8) for found in (one, two)] for name in one]
    return sum(int((a != b).sum()) for a, b in pairs)


def load_state(folder: Path, rank: int) -> dict[str, torch.Tensor]:
    return torch.load(folder / f"state-{rank}.pt", weights_only=True)


Configure = Callable[..., TransitionTrainConfig]


@pytest.fixture(scope="module")
def configure(tiny_video_model, cache, tmp_path_factory) -> Configure:
    """Return a factory of configurations of runs in folder NAME; their clips are drawn."""
    folder = tmp_path_factory.mktemp("killed")
    # this process may have decoded before, and decord may deadlock in its forks
    base = composed(
        *overrides(tiny_video_model, cache), f"trainer.max_steps={STEPS}", "recipe.sample_every=0",
        "data.backend=pyav",
    )  # fmt: skip
    build_training(replace(base, run_dir=str(folder / "drawn"))).data.prepare_data()  # type: ignore[union-attr]

    def make(
        name: str, world_size: int = 1, workers: int = 0, steps: int = STEPS, **recipe: Any
    ) -> TransitionTrainConfig:
        strategy = "ddp" if world_size > 1 else "auto"
        return replace(
            base,
            run_dir=str(folder / name),
            trainer=replace(base.trainer, devices=world_size, strategy=strategy, max_steps=steps),
            data=replace(base.data, workers=workers),
            recipe=replace(base.recipe, **recipe),
        )

    return make


@pytest.fixture(scope="module")
def straight(configure) -> Callable[[int], Path]:
    """Return the folder of an undisturbed run of `world_size` processes, trained once."""
    done: dict[int, Path] = {}

    def make(world_size: int) -> Path:
        if world_size not in done:
            config = configure(f"straight-{world_size}", world_size)
            assert run_processes(attempt, world_size, config, [None] * world_size) == [0] * world_size
            done[world_size] = Path(config.run_dir)
        return done[world_size]

    return make


@pytest.mark.parametrize(
    ("world_size", "workers", "times"),
    [(1, 0, 4), *(pytest.param(*each, 10, marks=pytest.mark.slow) for each in ((1, 0), (1, 2), (2, 0), (2, 2)))],
)
def test_a_run_killed_repeatedly_equals_the_undisturbed_one(configure, straight, world_size, workers, times):
    whole = straight(world_size)
    # every third of a second, so that several steps are lost; the straight run saves after each
    config = configure(f"killed-{world_size}-{workers}-{times}", world_size, workers)
    config = replace(config, trainer=replace(config.trainer, checkpoint_minutes=0.3 / 60))
    folder = Path(config.run_dir)
    chance = random.Random(f"{world_size}, {workers}")
    for number, step in enumerate(sorted(chance.sample(range(1, STEPS - 1), times))):
        kills = [
            Kill(step, MOMENTS[(number + rank) % len(MOMENTS)], chance.uniform(0, 0.03)) for rank in range(world_size)
        ]
        codes = run_processes(attempt, world_size, config, kills)
        assert -signal.SIGKILL in codes, (folder / "log-0.txt").read_text()
        assert 0 not in codes
    assert run_processes(attempt, world_size, config, [None] * world_size) == [0] * world_size
    assert sum(differing_bytes(load_state(whole, rank), load_state(folder, rank)) for rank in range(world_size)) == 0
    assert keys(folder, world_size) == keys(whole, world_size)
    assert list(keys(folder, world_size)) == list(range(STEPS))
    rows, wanted = metrics(folder), metrics(whole)
    assert [float(row["step"]) for row in rows] == list(range(1, STEPS + 1))
    assert [row["train/loss"] for row in rows] == [row["train/loss"] for row in wanted]


@pytest.mark.slow
def test_processes_and_workers_may_change_within_an_epoch(configure):
    """One process, two, one, across epochs of four steps: the same clips and the same loss in each step.

    The learning rate is small because the order of float additions differs and AdamW may divide by values near zero.
    """
    recipe = {"optimizer": "adamw", "learning_rate": 1e-6}
    steps = 13
    config = configure("alone", steps=steps, **recipe)
    assert run_processes(attempt, 1, config, [None]) == [0]
    alone, folder = Path(config.run_dir), Path(configure("changing").run_dir)
    seen: dict[int, list[str]] = {}
    for world_size, workers, end in ((1, 0, 3), (2, 1, 6), (1, 2, 10), (2, 0, None)):
        config = configure("changing", world_size, workers, steps, **recipe)
        kill = Kill(end + 1, "batch begins", 0.0) if end else None
        codes = run_processes(attempt, world_size, config, [kill] * world_size)
        assert codes == [0] * world_size if end is None else 0 not in codes, (folder / "log-0.txt").read_text()
        for step, names in keys(folder, world_size).items():
            assert seen.setdefault(step, names) == names
        for file in folder.glob("keys-*.txt"):
            file.unlink()
    assert seen == keys(alone, 1)
    assert list(seen) == list(range(steps))
    losses = [[float(row["train/loss"]) for row in metrics(run)] for run in (alone, folder)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
