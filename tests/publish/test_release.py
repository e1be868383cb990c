"""Releases of a tiny training run: loading, verification, refusal."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from storydiffusion.errors import UserError
from storydiffusion.loaders.boundary_frames import read_boundary_frame_prob
from storydiffusion.publish.release import DEEPSPEED_STATES, from_pretrained, release
from storydiffusion.training.build_training import build_training
from storydiffusion.training.checkpoint_io import VerifiedCheckpointIO, certify_folder, checkpoint_path
from storydiffusion.training.training_run import TrainingRun
from tests.conftest import Outcome, compose_config, run_verb
from tests.helpers.video_model import composed, overrides


@pytest.fixture(scope="module")
def run(tiny_video_model, tmp_path_factory) -> tuple[Path, TrainingRun]:
    """A run folder and its training, of both parts."""
    folder = tmp_path_factory.mktemp("training")
    both = (
        "recipe.trainable=[predictor,motion_module]", "recipe.boundary_frame_prob=0.25", "trainer.max_steps=2",
        f"run_dir={folder}/run",
    )  # fmt: skip
    trained = build_training(composed(*overrides(tiny_video_model, folder / "cache"), *both))
    trained.fit()
    return folder / "run", trained


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., Outcome]:
    """Runs `storydiffusion release OVERRIDES` in this process."""

    return lambda *overrides: run_verb("release", overrides, capsys)


@pytest.fixture
def released(run, tmp_path) -> Path:
    release(compose_config("release", f"run={run[0]}", f"out={tmp_path}/out"))
    return tmp_path / "out"


def test_the_release_holds_the_ema_weights_bit_for_bit(run, released):
    average = run[1].ema.average
    parts = from_pretrained(released)
    assert parts.predictor is not None
    assert parts.motion_adapter is not None
    for prefix, network in (("predictor", parts.predictor), ("video_unet.unet", parts.motion_adapter)):
        assert not network.training
        for name, weight in network.named_parameters():
            assert torch.equal(weight, average[f"{prefix}.{name}"]), name
    with run[1].ema.applied(run[1].module):
        own = run[1].module.predictor.eval()
        features = torch.randn(2, 1, 5, own.image_width)
        assert torch.equal(own(*features, 4).context, parts.predictor(*features, 4).context)


def test_the_folder_holds_the_documented_files_and_no_code(run, released):
    files = {path.relative_to(released).as_posix() for path in released.rglob("*") if path.is_file()}
    assert files == {
        "README.md", "SHA256SUMS", "config.json", "predictor/config.json", "predictor/model.safetensors",
        "motion_adapter/config.json", "motion_adapter/diffusion_pytorch_model.safetensors",
        "motion_adapter/boundary_frames.json",
    }  # fmt: skip
    assert read_boundary_frame_prob(str(released / "motion_adapter")) == 0.25
    for line in (released / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((released / name).read_bytes()).hexdigest() == digest
        files.remove(name)
    assert files == {"SHA256SUMS"}
    settings = json.loads((released / "config.json").read_text())
    assert settings["steps"] == 2
    assert settings["training"]["recipe"]["trainable"] == ["predictor", "motion_module"]
    card = (released / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert "| steps | 2 of 2, 2 clips per step |" in card
    assert "No metrics were measured" in card
    assert "Apache-2.0" in card
    assert "WebVid" not in card


def test_half_precision_halves_the_bytes_and_rounds_the_ema(run, released, tmp_path):
    release(compose_config("release", f"run={run[0]}", f"out={tmp_path}/half", "dtype=float16"))
    file = "predictor/model.safetensors"
    assert (tmp_path / "half" / file).stat().st_size < 0.7 * (released / file).stat().st_size
    parts = from_pretrained(tmp_path / "half")
    assert parts.predictor is not None
    for name, weight in parts.predictor.named_parameters():
        assert torch.equal(weight, run[1].ema.average[f"predictor.{name}"].half()), name
    wide = from_pretrained(tmp_path / "half", torch.float32)
    assert wide.predictor is not None
    assert {weight.dtype for weight in wide.predictor.parameters()} == {torch.float32}


@pytest.mark.parametrize("part", ["predictor", "motion_adapter", "README.md"])
@pytest.mark.parametrize("change", ["changed", "missing", "added"])
def test_a_changed_missing_or_added_file_is_refused(released, part, change):
    file = released / part if part.endswith(".md") else next((released / part).glob("*.safetensors"))
    if change == "missing":
        file.unlink()
    elif change == "added":
        file = file.with_name("more.bin")
        file.write_bytes(b"")
    else:
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{file.name} .*{change}"):
        from_pretrained(released)


def test_inference_refuses_a_changed_release_too(released, tiny_video_model, tmp_path):
    from storydiffusion.loaders.resolve import get_video_config, resolve_model
    from storydiffusion.loaders.video import add_predictor, load_video_backbone

    config = composed(
        *overrides(tiny_video_model, tmp_path), f"model.video.predictor={released}/predictor",
        f"model.video.motion_adapter={released}/motion_adapter",
    ).model  # fmt: skip
    model = load_video_backbone(resolve_model(config), torch.float32)
    assert add_predictor(model, get_video_config(config), torch.float32).predictor is not None
    for folder in ("predictor", "motion_adapter"):
        with next((released / folder).glob("*.safetensors")).open("ab") as file:
            file.write(b"\0")
    with pytest.raises(UserError, match=r"predictor/model\.safetensors has changed"):
        add_predictor(model, get_video_config(config), torch.float32)
    with pytest.raises(UserError, match=r"diffusion_pytorch_model\.safetensors has changed"):
        load_video_backbone(resolve_model(config), torch.float32)


def test_a_deepspeed_checkpoint_gives_the_same_release(run, released, tmp_path):
    """ZeRO-2 keeps weights whole, so DeepSpeed's folder with the content of Lightning's file stands in for one."""
    folder = tmp_path / "deepspeed"
    states = checkpoint_path(folder / "checkpoints", 2) / DEEPSPEED_STATES
    states.parent.mkdir(parents=True)
    shutil.copy(checkpoint_path(run[0] / "checkpoints", 2), states)
    certify_folder(checkpoint_path(folder / "checkpoints", 2))
    release(compose_config("release", f"run={folder}", f"out={tmp_path}/again"))
    for name in ("predictor/model.safetensors", "motion_adapter/diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (released / name).read_bytes()


def test_the_card_of_a_run_on_filmed_clips_names_unclear_rights(run, tmp_path):
    stored = torch.load(checkpoint_path(run[0] / "checkpoints", 2), weights_only=True)
    stored["config"]["data"]["storyworld"] = None
    VerifiedCheckpointIO().save_checkpoint(stored, checkpoint_path(tmp_path / "run" / "checkpoints", 2))
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "table.md").write_text("| the table |\n")
    release(compose_config("release", f"run={tmp_path}/run", f"out={tmp_path}/out", f"measured={tmp_path}/measured"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlicense: other\n")
    for word in ("WebVid-10M", "CreativeML Open RAIL-M", "| the table |"):
        assert word in card


def test_bad_input_gives_one_sentence_and_writes_nothing(command, run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    broken = checkpoint_path(tmp_path / "broken" / "checkpoints", 2)
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no checkpoint")
    other = checkpoint_path(tmp_path / "other" / "checkpoints", 2)
    VerifiedCheckpointIO().save_checkpoint({"state_dict": {}, "global_step": 2}, other)
    for arguments, said in (
        ((f"run={tmp_path}/nowhere", "out=out"), "run_dir"),
        ((f"run={tmp_path}/broken", "out=out"), "no manifest"),
        ((f"run={tmp_path}/other", "out=out"), "trains them"),
        ((f"run={run[0]}", f"out={tmp_path}/full"), "not empty"),
        ((f"run={run[0]}", f"out={tmp_path}/out", "dtype=int8"), "dtype=int8"),
        ((f"run={run[0]}", f"out={tmp_path}/out", f"measured={tmp_path}"), "table.md"),
        ((f"run={run[0]}",), "out"),
        ((f"run={run[0]}", "outt=x"), "outt"),
    ):
        outcome = command(*arguments)
        assert outcome.code == 1, arguments
        assert said in outcome.err
        assert outcome.err.count("\n") == 1
    assert not list(tmp_path.glob("out*"))
    assert not list(tmp_path.glob(".out*"))
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_a_pickle_with_code_is_refused(tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path(tmp_path / "harm").touch, ())

    path = checkpoint_path(tmp_path / "run" / "checkpoints", 2)
    path.mkdir(parents=True)
    (path / DEEPSPEED_STATES).parent.mkdir()
    torch.save({"parts": Harm()}, path / DEEPSPEED_STATES)
    certify_folder(path)
    with pytest.raises(UserError, match="could run code"):
        release(compose_config("release", f"run={tmp_path}/run", f"out={tmp_path}/out"))
    assert not (tmp_path / "harm").exists()


def test_an_unreachable_hub_gives_one_sentence_and_keeps_the_release(monkeypatch, command, run, tmp_path):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    outcome = command(f"run={run[0]}", f"out={tmp_path}/out", "upload=nobody/nothing")
    assert outcome.code == 1
    assert "nobody/nothing" in outcome.err
    assert "hf upload" in outcome.err
    assert outcome.err.count("\n") == 1
    from_pretrained(tmp_path / "out")
