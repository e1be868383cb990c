"""python train.py as a whole, at tiny size: from drawn shards to files, resumed, in two processes, and refused."""

import csv
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from PIL import Image

from storydiffusion.config import TransitionTrainConfig
from storydiffusion.data.shard_index import index_missing
from storydiffusion.data.shards import find_shards
from storydiffusion.errors import UserError
from storydiffusion.loaders.boundary_frames import read_boundary_frame_prob
from storydiffusion.models.motion_adapters import load_motion_adapter
from storydiffusion.models.predictor_files import load_predictor
from storydiffusion.training.build_training import build_training
from storydiffusion.training.training_run import TrainingRun
from tests.conftest import Outcome, run_verb
from tests.helpers.damage import DAMAGES
from tests.helpers.training_state import state
from tests.helpers.video_model import FRAMES, SIZE, composed, overrides
from tests.helpers.videos import video, write_shard


@pytest.fixture
def training(tiny_video_model, cache, tmp_path) -> Callable[..., TrainingRun]:
    """Return a factory of trainings as built by `python train.py run_dir=NAME …`."""

    def make(name: str, *changes: str) -> TrainingRun:
        config = composed(*overrides(tiny_video_model, cache), f"run_dir={tmp_path}/{name}", *changes)
        return build_training(config)

    return make


class PowerCut(L.Callback):
    """Interrupts the training as a killed job does."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 3:
            raise ConnectionAbortedError


BOTH = ("recipe.trainable=[predictor,motion_module]", "recipe.teacher_forcing=0.5", "recipe.boundary_frame_prob=0.5")


def test_run_writes_its_files_and_a_resumed_run_is_bit_equal(training, tmp_path):
    steps = ("trainer.max_steps=5", "recipe.sample_every=5", "trainer.log_every=2")  # 4 steps are an epoch
    whole = training("whole", *BOTH, *steps)
    whole.fit()
    whole.export(tmp_path / "export")
    cut = training("cut", *BOTH, *steps)
    cut.trainer.callbacks.append(PowerCut())  # type: ignore[attr-defined]
    with pytest.raises(ConnectionAbortedError):
        cut.fit()
    resumed = training("cut", *BOTH, *steps)
    resumed.fit()
    assert resumed.trainer.global_step == whole.trainer.global_step == 5
    assert state(resumed).keys() == state(whole).keys()
    for name, tensor in state(whole).items():
        assert torch.equal(tensor, state(resumed)[name]), name
    rows = [metrics(tmp_path / run) for run in ("whole", "cut")]
    for row in rows:
        assert [float(values["step"]) for values in row] == [2, 4]
    for name in ("train/loss", "train/diffusion_loss", "train/semantic_loss", "train/learning_rate", "train/grad_norm"):
        assert [float(values[name]) for values in rows[0]] == [float(values[name]) for values in rows[1]], name
    check_files(tmp_path / "whole")
    check_export(tmp_path / "export", whole)


def metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def check_files(run: Path) -> None:
    for row in metrics(run):
        assert float(row["train/loss"]) > 0
        buckets = [float(value) for name, value in row.items() if name.startswith("train/diffusion_loss_t") and value]
        assert min(buckets) <= float(row["train/diffusion_loss"]) <= max(buckets)
        assert float(row["train/clips_per_second"]) > 0
        assert 0 <= float(row["train/data_wait"]) <= 1
        assert float(row["train/memory_gib"]) > 0.1
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["recipe"]["trainable"] == ["predictor", "motion_module"]
    assert config["recipe"]["steps"] == 5
    with Image.open(run / "samples" / "000005.png") as image:
        assert image.size == (FRAMES * SIZE, 4 * SIZE + 4)  # two clips, each true and sampled, and a gap
    assert sorted(file.name for file in (run / "checkpoints").iterdir()) == [
        f"step-0000000{step}.{suffix}" for step in (4, 5) for suffix in ("ckpt", "json")
    ]
    stored = torch.load(run / "checkpoints" / "step-00000005.ckpt", weights_only=True)
    assert stored["global_step"] == 5
    assert stored["state_dict"]
    assert all(name.startswith("predictor.") or ".motion_modules." in name for name in stored["state_dict"])


def check_export(folder: Path, trained: TrainingRun) -> None:
    """Check that the exported weights are the averaged ones."""
    average = trained.ema.average
    for name, weight in load_predictor(folder / "predictor").named_parameters():
        assert torch.equal(weight, average[f"predictor.{name}"]), name
    adapter = load_motion_adapter(folder / "motion_adapter")
    name = "down_blocks.0.motion_modules.0.proj_out.weight"
    assert torch.equal(adapter.get_parameter(name), average[f"video_unet.unet.{name}"])
    assert set(json.loads((folder / "training.json").read_text())) == {"predictor", "motion_module"}
    assert read_boundary_frame_prob(str(folder / "motion_adapter")) == 0.5


TOKENS = (
    "experiment=storyworld_tokens", "predictor.layers=0", "data.storyworld.clips=8", f"data.storyworld.frames={FRAMES}",
    "data.frames=2", f"data.stride={FRAMES - 1}", "recipe.batch_size=2", "recipe.warmup_steps=2",
)  # fmt: skip


def test_tokens_are_trained_resumed_bit_equal_and_start_the_predictor(training, tmp_path):
    whole = training("whole", *TOKENS, "trainer.max_steps=5", "trainer.log_every=1")
    whole.fit()
    whole.export(tmp_path / "export")
    cut = training("cut", *TOKENS, "trainer.max_steps=5")
    cut.trainer.callbacks.append(PowerCut())  # type: ignore[attr-defined]
    with pytest.raises(ConnectionAbortedError):
        cut.fit()
    resumed = training("cut", *TOKENS, "trainer.max_steps=5")
    resumed.fit()
    for name, tensor in state(whole).items():
        assert torch.equal(tensor, state(resumed)[name]), name
    losses = [float(row["train/text_loss"]) for row in metrics(tmp_path / "whole")]
    assert losses == [float(row["train/loss"]) for row in metrics(tmp_path / "whole")]
    assert losses[-1] < losses[0]
    start = f"predictor.start={tmp_path}/export/predictor"
    for experiment in ("storyworld_predictor", "storyworld_free_boundary"):
        further = training(
            experiment, f"experiment={experiment}", start, "trainer.max_steps=1", "recipe.batch_size=2",
            "data.storyworld.clips=8", "recipe.joint_dropout=0.5",
        )  # fmt: skip
        tokens = load_predictor(tmp_path / "export" / "predictor").state_dict()
        started = further.module.predictor.state_dict()
        assert all(torch.equal(weight, started[name]) for name, weight in tokens.items())
        assert any(name.startswith("layers.") for name in started)
        further.fit()


def test_finished_run_continues_if_max_steps_is_raised(training):
    training("longer", "trainer.max_steps=1").fit()
    longer = training("longer", "trainer.max_steps=2")
    longer.fit()
    assert longer.trainer.global_step == 2
    assert longer.module.batches == 2


def rank(number: int, port: int, config: TransitionTrainConfig, file: Path) -> None:
    """Run one of two processes as a launcher starts them; save its weights in `file`."""
    torch.set_num_threads(1)  # the threads of the parent were not copied
    os.environ |= {"LOCAL_RANK": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    trained = build_training(config)
    assert trained.trainer.world_size == 2
    trained.fit()
    torch.save(trained.module.state_dict(), file)


@pytest.mark.parametrize(
    "learns", [BOTH, ("recipe.diffusion_weight=0",)], ids=["both parts from both errors", "the transformer alone"]
)
def test_two_processes_equal_one_with_twice_the_batch(tiny_video_model, cache, training, tmp_path, learns):
    changes = (
        *learns,
        "trainer.max_steps=3",
        "recipe.accumulate=2",
        "recipe.optimizer=adamw",
        "recipe.learning_rate=1e-4",
    )
    one = training("one", *changes)
    one.fit()
    both = composed(
        *overrides(tiny_video_model, cache), *changes, f"run_dir={tmp_path}/two", "trainer.strategy=ddp",
        "trainer.devices=2",
    )  # fmt: skip
    files = [tmp_path / f"rank{number}.pt" for number in range(2)]
    context = multiprocessing.get_context("fork")  # libraries are loaded already
    port = 20_000 + os.getpid() % 20_000
    processes = [context.Process(target=rank, args=(number, port, both, file)) for number, file in enumerate(files)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0
    first, second = (torch.load(file, weights_only=True) for file in files)
    alone = one.module.state_dict()
    assert first.keys() == alone.keys()
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name
        torch.testing.assert_close(weight, alone[name], rtol=0, atol=2e-5, msg=name)  # of steps of 1e-4
    losses = [[float(row["train/loss"]) for row in metrics(tmp_path / run)] for run in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_motion_modules_are_trained_from_scratch_without_a_predictor(training, tmp_path):
    new = training(
        "motion", "experiment=storyworld_motion", "trainer.max_steps=1", "model.video.motion_adapter=null"
    )  # fmt: skip
    assert new.module.predictor is None
    before = {name: weight.clone() for name, weight in new.module.state_dict().items()}
    assert not before["video_unet.unet.up_blocks.0.motion_modules.0.proj_out.weight"].any()
    new.fit()
    after = new.module.state_dict()
    assert after["video_unet.unet.up_blocks.0.motion_modules.0.proj_out.weight"].any()
    new.export(tmp_path / "export")
    assert {file.name for file in (tmp_path / "export").iterdir()} == {"motion_adapter", "training.json"}


def test_frozen_weights_may_be_half_precision_under_mixed_precision(training, tmp_path):
    changes = ("trainer.precision=bf16-mixed", "model.dtype=auto", "trainer.max_steps=1", "recipe.sample_every=1")
    half = training("half", *BOTH, *changes)
    half.fit()
    for name, weight in half.module.named_parameters():
        assert weight.dtype == (torch.float32 if weight.requires_grad else torch.bfloat16), name
    assert (tmp_path / "half" / "samples" / "000001.png").exists()


@pytest.fixture
def train(monkeypatch, capsys, tmp_path, tiny_video_model, cache) -> Callable[..., Outcome]:
    """Calls `python train.py OVERRIDES` in this process, in an empty working directory, on the tiny model."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)

    def call(*changes: str, tiny: bool = True) -> Outcome:
        base = overrides(tiny_video_model, cache) if tiny else []
        return run_verb("train", [*base, *changes], capsys)

    return call


@pytest.mark.skipif(torch.cuda.is_available(), reason="two of the sentences are for machines without a GPU")
@pytest.mark.parametrize(
    ("changes", "needs"),
    [
        (["trainer.max_steps=0"], ["trainer.max_steps=0"]),
        (["recipe.trainable=[]"], ["recipe.trainable"]),
        (["recipe.trainable=[unet]"], ["unet", "motion_module"]),
        (["data.storyworld=null", "data.shards=/nowhere"], ["no shards match", "/nowhere"]),
        (["data.frames=9"], ["data.frames=9", "at most 8"]),
        (["recipe.semantic_weight=0", "recipe.teacher_forcing=1"], ["recipe.teacher_forcing=1", "transformer"]),
        (["experiment=storyworld_tokens", "predictor.layers=1"], ["recipe.diffusion_weight=0", "predictor.layers=0"]),
        (["data.captions=storyworld_frames"], ["data.captions=storyworld_frames", "data.captions=clip"]),
        (["recipe.text_weight=1", "recipe.trainable=[motion_module]", "recipe.semantic_weight=0"], ["text_weight=1"]),
        (["recipe.joint_dropout=1.5"], ["recipe.joint_dropout", "1.5"]),
        (["recipe.diffusion_weight=0", *BOTH], ["recipe.diffusion_weight=0", "recipe.trainable=[predictor]"]),
        (["data.backend=ffmpeg"], ["data.", "ffmpeg", "pyav"]),
        (["data.shards='pipe:touch owned'"], ["pipe:touch owned", "not a local path"]),
        (["data.storyworld=null", "data.shards=['s3://a/{0..9}.tar']"], ["s3://a", "not a local path"]),
        (["data.decode_seconds=0"], ["data.decode_seconds=0"]),
        (["model=sd15"], ["model.video.motion_adapter"]),
        (
            ["model.video.motion_adapter=package://miniature/nothing"],
            ["model.video.motion_adapter", "miniature/nothing"],
        ),
        (["model.video.motion_adapter=null"], ["model.video.motion_adapter=null", "motion_module"]),
        (["model.video.image_encoder=open_clip://ViT-H-14"], ["open_clip://ViT-H-14", "NAME/TAG"]),
        (["model.dtype=float16"], ["model.dtype=float16", "trainer.precision"]),
        (["predictor.heads=0"], ["predictor.heads"]),
        (["predictor.start=/nowhere"], ["/nowhere"]),
        (["trainer.strategy=deepspeed", "recipe.optimizer=adamw"], ["deepspeed", "CUDA"]),
        (["trainer.strategy=deepspeed"], ["muon", "adamw"]),
        (["trainer.accelerator=gpu"], ["trainer.accelerator=gpu", "trainer=cpu"]),
        (["recipe.loss=mse"], ["recipe.loss=mse", "epsilon"]),
        (["+recipe.typo=1"], ["recipe.typo"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_invalid_settings_are_refused_in_one_sentence(train, tmp_path, changes, needs):
    outcome = train("run_dir=run", *changes)
    assert outcome.code == 1, outcome
    assert outcome.err.startswith("train.py: ")
    assert len(outcome.err.splitlines()) == 1, outcome.err
    for need in needs:
        assert need in outcome.err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_all_damaged_shards_are_named_before_the_first_step(train, tmp_path):
    """Without verification the run detects them as it reads, lists them in its folder and completes."""
    folder = tmp_path / "shards"
    blob = video(tmp_path / "a.mp4", FRAMES)
    for number in range(12):
        write_shard(folder / f"{number}.tar", [f"s{number}k{n}" for n in range(4)], blob)
    index_missing(find_shards(str(folder)))
    for number, damage in enumerate(DAMAGES.values()):
        damage(folder / f"{number}.tar")
    data = ("data.storyworld=null", f"data.shards={folder}", "data.rejected_share=0.9", "trainer.max_steps=2")
    outcome = train("run_dir=run", *data, "data.verify=true")
    assert outcome.code == 1
    assert f"train.py: {len(DAMAGES)} of 12 shards cannot be used: " in outcome.err
    assert [f"{folder}/{number}.tar" in outcome.err for number in range(12)] == [n < len(DAMAGES) for n in range(12)]
    assert not (tmp_path / "run" / "metrics.csv").exists()
    outcome = train("run_dir=run", *data, "export=export")
    assert outcome.code == 0, outcome
    lines = (tmp_path / "run" / "quarantine" / "rank0.csv").read_text().splitlines()
    assert lines[0] == "shard,key,reason,epoch,position"
    assert lines[1].startswith(str(folder))


def test_missing_shards_setting_is_named(train):
    outcome = train("data=webvid10m", "model=sd15_animatediff", tiny=False)
    assert outcome.code == 1
    assert outcome.err == "train.py: data.shards has no value: write data.shards=VALUE\n"


def test_predictor_of_other_widths_is_refused(train, training, tmp_path):
    from storydiffusion.models.predictor_files import save_predictor
    from storydiffusion.models.semantic_motion_predictor import SemanticMotionPredictor

    settings = {"width": 16, "layers": 1, "heads": 2, "head_width": 8, "context_width": 24, "image_width": 16}
    save_predictor(SemanticMotionPredictor(**settings), settings, tmp_path / "wide")
    outcome = train(
        "recipe.trainable=[motion_module]",
        "recipe.semantic_weight=0",
        f"model.video.predictor={tmp_path}/wide",
        "run_dir=run",
    )
    assert outcome.code == 1
    assert "width 24" in outcome.err
    assert "16" in outcome.err
    outcome = train(f"predictor.start={tmp_path}/wide", "run_dir=run")
    assert outcome.code == 1
    assert "context_width=24, not 16" in outcome.err


def test_checkpoint_of_another_configuration_is_refused(training, tmp_path):
    training("run", "trainer.max_steps=1").fit()
    kept = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"recipe\.boundary_frame_prob=0\.0, not 0\.25"):
        training("run", "trainer.max_steps=2", "recipe.boundary_frame_prob=0.25").fit()
    assert (tmp_path / "run" / "config.yaml").read_text() == kept
