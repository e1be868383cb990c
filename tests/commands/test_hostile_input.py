"""Untrusted files and overrides: nothing in them is executed, each is refused by name."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from storydiffusion.training.checkpoint_io import certify_folder
from tests.commands.test_train import metrics, train  # noqa: F401  # the fixture


class Harm:
    """Create a file when unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.touch, (self.file,))


@pytest.fixture
def harm(tmp_path) -> Path:
    """A file that must never be created."""
    return tmp_path / "harm"


@pytest.fixture
def refused(train, harm) -> Callable[..., None]:  # noqa: F811
    """`python train.py CHANGES` ends with one sentence that names what it was given, and nothing was executed."""

    def check(name: str, *changes: str) -> None:
        outcome = train("run_dir=run", *changes)
        assert outcome.code == 1, outcome
        lines = outcome.err.splitlines()
        sentences = [line for line in lines if line.startswith("train.py: ")]
        assert len(sentences) == 1, outcome.err
        assert "Traceback" not in outcome.err
        assert name in sentences[0]
        assert not harm.exists()

    return check


def test_the_harm_would_be_done(tmp_path, harm):
    """The premise of the other tests."""
    torch.save({"state_dict": Harm(harm)}, tmp_path / "evil.ckpt")
    torch.load(tmp_path / "evil.ckpt", weights_only=False)
    assert harm.exists()


def plant(folder: Path, harm: Path, step: int) -> Path:
    """Write a checkpoint with a matching manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"step-{step:08d}.ckpt"
    torch.save({"global_step": step, "state_dict": Harm(harm), "pytorch-lightning_version": "2.6.6"}, file)
    stored = {"size": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    file.with_suffix(".json").write_text(json.dumps({"step": step, "files": {file.name: stored}}))
    return file


def test_a_planted_checkpoint_of_a_run(refused, tmp_path, harm):
    plant(tmp_path / "run" / "checkpoints", harm, 9)
    refused("step-00000009.ckpt")


def test_a_planted_checkpoint_without_a_manifest_of_a_run(refused, tmp_path, harm):
    plant(tmp_path / "run" / "checkpoints", harm, 9).with_suffix(".json").unlink()
    refused("step-00000009.ckpt has no manifest")


def test_a_planted_folder_of_deepspeeds_of_a_run(refused, tmp_path, harm):
    path = tmp_path / "run" / "checkpoints" / "step-00000009.ckpt"
    (path / "checkpoint").mkdir(parents=True)
    (path / "latest").write_text("checkpoint")
    torch.save({"module": Harm(harm)}, path / "checkpoint" / "mp_rank_00_model_states.pt")
    certify_folder(path)
    refused("step-00000009.ckpt/checkpoint/mp_rank_00_model_states.pt")


def test_what_lightning_looks_for_in_a_job_of_slurm_is_passed_over(train, tmp_path, harm, monkeypatch):  # noqa: F811
    for name, value in {"JOB_ID": "17", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    (tmp_path / "run").mkdir()
    for folder in (tmp_path, tmp_path / "run"):
        plant(folder, harm, 9).rename(folder / "hpc_ckpt_9.ckpt")
    assert train("run_dir=run", "trainer.max_steps=1", "recipe.sample_every=0").code == 0
    assert not harm.exists()
    assert len(metrics(tmp_path / "run")) == 1


@pytest.mark.parametrize("suffix", ["bin", "pt", "ckpt"])
@pytest.mark.parametrize("key", ["predictor.start", "model.video.predictor", "model.video.motion_adapter"])
def test_weights_that_are_pickles(refused, tmp_path, harm, key, suffix):
    file = tmp_path / f"evil.{suffix}"
    torch.save({"image_proj": Harm(harm), "state_dict": Harm(harm)}, file)
    changes = ["recipe.trainable=[motion_module]", "recipe.semantic_weight=0"] if key == "model.video.predictor" else []
    refused(file.name, f"{key}={file}", *changes)


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_a_folder_of_weights_that_are_pickles(refused, tmp_path, tiny_video_model, harm, suffix):
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "config.json").write_bytes((tiny_video_model / "motion_adapter" / "config.json").read_bytes())
    torch.save({"weight": Harm(harm)}, folder / f"diffusion_pytorch_model.{suffix}")
    refused("evil", f"model.video.motion_adapter={folder}")


@pytest.mark.parametrize(
    "override",
    [
        "+model._target_=os.system",
        "++recipe._target_=os.system",
        "+_target_=os.system",
        "+hydra.callbacks.evil={_target_: os.system, command: 'touch harm'}",
        "+hydra.callbacks.evil._target_=os.system",
        "hydra.job_logging={version: 1, handlers: {evil: {(): os.system, command: 'touch harm'}}}",
        "hydra.launcher._target_=os.system",
        "hydra.sweeper._target_=os.system",
    ],
)
def test_classes_named_on_the_command_line(refused, override):
    refused(override.partition("=")[0].lstrip("+"), override)


@pytest.mark.parametrize("key", ["model", "recipe", "data", "trainer"])
def test_classes_named_in_yaml(refused, tmp_path, key):
    """An untrusted experiment, which Hydra reads from a folder beside conf/."""
    folder = tmp_path / "theirs" / "experiment"
    folder.mkdir(parents=True)
    (folder / "evil.yaml").write_text(
        f"# @package _global_\n{key}:\n  _target_: os.system\n  command: touch {tmp_path}/harm\n"
    )
    refused(f"{key}._target_", "experiment=evil", f"--config-dir={tmp_path}/theirs")
