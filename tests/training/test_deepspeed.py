"""DeepSpeed's own engine in two processes on the CPU: ZeRO-2 in bfloat16, save, resume, release."""

import os
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch

from storydiffusion.config import TransitionTrainConfig
from storydiffusion.training.build_training import build_trainer
from storydiffusion.training.build_transition import build_transition_module
from storydiffusion.training.callbacks.ema import EMA
from storydiffusion.training.callbacks.gradient_norm import GradientNorm
from storydiffusion.training.callbacks.run_checkpoints import RunCheckpoints
from storydiffusion.training.callbacks.skip_non_finite_steps import SkipNonFiniteSteps
from storydiffusion.training.callbacks.step_agreement import StepAgreement
from storydiffusion.training.callbacks.stopwatch import Stopwatch
from storydiffusion.training.checkpoint_io import check_folder, load_plain, newest_checkpoint
from storydiffusion.training.data_module import build_clip_data
from storydiffusion.training.distributed import DEEPSPEED
from storydiffusion.training.training_run import TrainingRun
from tests.conftest import compose_config
from tests.helpers.processes import run_processes
from tests.helpers.video_model import composed, overrides

pytestmark = pytest.mark.slow
STATES = "checkpoint/mp_rank_00_model_states.pt"


class Stop(L.Callback):
    """Ends the training after a step, as a time limit does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = trainer.global_step >= self.step


def rank(number: int, config: TransitionTrainConfig, results: Path, stop: int) -> None:
    """Train one of two processes and keep its weights; Lightning's strategy has no check for CUDA here."""
    os.environ |= {"DS_ACCELERATOR": "cpu", "RANK": str(number), "WORLD_SIZE": "2"}
    from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy

    class OnCpu(DeepSpeedStrategy):
        def setup_environment(self) -> None:
            DDPStrategy.setup_environment(self)

        def setup_distributed(self) -> None:
            self.set_world_ranks()
            self._init_deepspeed_distributed()

        @property
        def root_device(self) -> torch.device:
            return torch.device("cpu", 0)  # DeepSpeed compares its index

    gradient, agreement = GradientNorm(), StepAgreement()
    guard = SkipNonFiniteSteps(3, gradient, agreement)
    ema, stopwatch = EMA(config.recipe.ema_decay, guard), Stopwatch()
    checkpoints = RunCheckpoints(f"{config.run_dir}/checkpoints", config.trainer.checkpoint_minutes, agreement)
    trainer = build_trainer(
        config, OnCpu(**DEEPSPEED), [gradient, agreement, guard, ema, stopwatch, Stop(stop), checkpoints]
    )
    module = build_transition_module(config)
    TrainingRun(module, trainer, ema, stopwatch, checkpoints, build_clip_data(config)).fit()
    torch.save({"weights": module.state_dict(), "average": ema.average}, results / f"{number}.pt")


@pytest.fixture(scope="module")
def config(tiny_video_model, tmp_path_factory) -> TransitionTrainConfig:
    pytest.importorskip("deepspeed", reason="DeepSpeed is not installed: pip install '.[deepspeed]'")
    cache = tmp_path_factory.mktemp("cache")
    two = (
        "trainer.devices=2",
        "trainer.strategy=deepspeed",
        "trainer.max_steps=4",
        "trainer.precision=bf16-mixed",
        "recipe.optimizer=adamw",
        "recipe.sample_every=0",
    )
    return composed(*overrides(tiny_video_model, cache), *two, "data.backend=pyav", "recipe.learning_rate=0.001")


def fit(config: TransitionTrainConfig, folder: Path, stop: int) -> list[dict]:
    """Train to step `stop` in `folder`/run and return the results of both processes."""
    assert run_processes(rank, 2, replace(config, run_dir=f"{folder}/run"), folder, stop) == [0, 0]
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in range(2)]


def test_zero_2_trains_in_bfloat16_resumes_and_releases_its_weights(config, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    started = fit(config, parts, 2)
    found = newest_checkpoint(parts / "run" / "checkpoints")
    assert found is not None
    assert found.step == 2
    check_folder(found.path)
    resumed, unbroken = fit(config, parts, 4), fit(config, whole, 4)
    for one, two, other in zip(resumed, unbroken, reversed(resumed), strict=True):
        assert one["weights"].keys() == started[0]["weights"].keys()
        for kind in ("weights", "average"):
            for name, tensor in one[kind].items():
                assert torch.equal(tensor, two[kind][name]), name  # resumed = unbroken
                assert torch.equal(tensor, other[kind][name]), name  # both processes
    assert all(weight.dtype == torch.bfloat16 for weight in resumed[0]["weights"].values())
    assert any(not torch.equal(weight, started[0]["weights"][name]) for name, weight in resumed[0]["weights"].items())

    from safetensors.torch import load_file

    from storydiffusion.publish.release import release

    release(compose_config("release", f"run={parts}/run", f"out={tmp_path}/out"))
    released = load_file(tmp_path / "out" / "predictor" / "model.safetensors")
    for name, weight in released.items():
        assert torch.equal(weight, resumed[0]["average"][f"predictor.{name}"]), name


def test_master_weights_are_consolidated_from_the_checkpoint(config, tmp_path):
    """DeepSpeed's own tool returns the float32 weights, of which the module's are the rounding."""
    trained = fit(config, tmp_path, 2)[0]["weights"]
    from deepspeed.utils.zero_to_fp32 import (  # pyright: ignore[reportMissingImports]
        get_fp32_state_dict_from_zero_checkpoint,
    )

    found = newest_checkpoint(tmp_path / "run" / "checkpoints")
    assert found is not None
    master = get_fp32_state_dict_from_zero_checkpoint(found.path)
    stored = load_plain(found.path / STATES)["module"]
    assert master.keys() >= trained.keys() == stored.keys()
    for name, weight in trained.items():
        assert master[name].dtype == torch.float32
        assert torch.equal(master[name].bfloat16(), weight), name
        assert torch.equal(stored[name], weight), name
