"""python infer.py with the paper's baselines, of a story and of a benchmark, on tiny parts of random weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import (
    MotionAdapter,
    SparseControlNetModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from storydiffusion.evaluation.result import load_result
from storydiffusion.output.manifest import read_manifest
from tests.conftest import Outcome
from tests.helpers.baseline_weights import photomaker_weights, write_ip_adapter
from tests.helpers.world_model import build_world_video_model
from tests.models.test_sparse_control import tiny_network

CHANNELS = (32, 32, 32)  # SparseCtrl's motion modules have 32 norm groups, whatever its size
PICTURES = ("panels", "portraits", "transitions")


def pixels(run: Path) -> dict[str, bytes]:
    return {
        f"{file.parent.name}/{file.name}": file.read_bytes() for name in PICTURES for file in (run / name).glob("*")
    }


def colours(file: Path, seed: int) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    return file


@pytest.fixture(scope="module")
def ip_adapter(tiny_model, tmp_path_factory) -> Path:
    unet = UNet2DConditionModel.from_pretrained(tiny_model / "unet")
    return write_ip_adapter(tmp_path_factory.mktemp("weights") / "ip_adapter", unet)


@pytest.fixture
def adapted(generate_story: Callable[..., Outcome], ip_adapter: Path) -> Callable[..., Outcome]:
    """Generate the story of `story_file` in run/, with the tiny IP-Adapter."""
    baseline = ("baseline=ip_adapter", "baseline.file=adapter.safetensors", "baseline.image_encoder=image_encoder")
    return lambda *overrides: generate_story(
        *baseline, f"baseline.weights={ip_adapter}", "steps=2", "run_dir=run", "csa=off", *overrides
    )


def test_a_story_is_generated_with_ip_adapter(adapted, generate_story, tmp_path):
    outcome = adapted()
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    assert set(pixels(run)) == {
        "panels/001.png", "panels/002.png", "panels/003.png", "portraits/001.png", "portraits/002.png",
    }  # fmt: skip
    manifest = read_manifest(run / "manifest.json")
    assert {name for name in manifest.weights if name.startswith("baseline/")} == {
        "baseline/adapter.safetensors", "baseline/image_encoder/model.safetensors",
    }  # fmt: skip
    assert manifest.config["baseline"]["scale"] == 0.6
    assert "ip_adapter" in (run / "report.html").read_text()
    assert "already" in adapted().out
    assert "another story or configuration" in adapted("baseline.scale=0.5").err

    generated = pixels(run)
    assert adapted("baseline.scale=0", "run_dir=silent").code == 0
    assert generate_story("steps=2", "csa=off", "run_dir=plain").code == 0
    silent, plain = pixels(tmp_path / "silent"), pixels(tmp_path / "plain")
    assert {name: silent[name] for name in plain} == plain
    assert all(generated[name] != plain[name] for name in plain)
    assert all(generated[name] == silent[name] for name in generated if name.startswith("portraits"))


def test_portraits_of_the_users_own_take_the_place_of_drawn_ones(adapted, tmp_path):
    one, other, third = (colours(tmp_path / f"{seed}.png", seed) for seed in range(3))
    assert adapted(f"baseline.portraits={{Pip: {one}, Bo: {other}}}").code == 0
    before = pixels(tmp_path / "run")
    assert not (tmp_path / "run" / "portraits").exists()
    shutil.copy(third, other)
    assert "another story" in adapted(f"baseline.portraits={{Pip: {one}, Bo: {other}}}").err
    assert adapted(f"baseline.portraits={{Pip: {one}, Bo: {other}}}", "overwrite=true").code == 0
    after = pixels(tmp_path / "run")
    assert [before[name] == after[name] for name in sorted(before)] == [True, False, True]  # Bo's panel is the second


def refusal(outcome: Outcome) -> str:
    assert outcome.code == 1, outcome
    assert len(outcome.sentences) == 1, outcome.err
    return outcome.sentences[0]


def test_what_a_reference_lacks_is_named_before_anything_is_made(adapted, tmp_path, ip_adapter):
    assert "baseline.weights=/no/such/folder is not a local folder" in refusal(
        adapted("baseline.weights=/no/such/folder")
    )
    assert "has no file other.bin" in refusal(adapted("baseline.file=other.bin"))
    assert "no *.safetensors file in vision" in refusal(adapted("baseline.image_encoder=vision"))
    assert "baseline.scale=-1" in refusal(adapted("baseline.scale=-1"))
    assert "baseline.portraits has none for 'Bo'" in refusal(adapted("baseline.portraits={Pip: a.png}"))
    assert "nowhere.png is neither" in refusal(adapted("baseline.portraits={Pip: nowhere.png, Bo: b.png}"))
    assert "ip_adapter, photomaker" in refusal(adapted("baseline.kind=styles"))
    assert not (tmp_path / "run").exists()
    assert "portraits" in refusal(adapted("baseline.portraits={Pip: a.png}", "benchmark=stories"))


def test_weights_on_the_hub_want_a_connection(adapted, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    said = refusal(adapted("baseline.weights=owner/name@123abc"))
    assert said.startswith("infer.py: cannot fetch baseline.weights=owner/name@123abc from the hub")
    assert "set baseline.weights=FOLDER" in said


def test_weights_that_are_damaged_or_of_another_model_are_named(adapted, tmp_path, ip_adapter):
    spoilt = shutil.copytree(ip_adapter, tmp_path / "spoilt")
    (spoilt / "adapter.safetensors").write_bytes(b"nothing")
    assert "adapter.safetensors: it is damaged" in refusal(adapted(f"baseline.weights={spoilt}"))
    (spoilt / "adapter.safetensors").unlink()
    torch.save({"image_proj": {}, "other": {}}, spoilt / "adapter.bin")
    said = refusal(adapted(f"baseline.weights={spoilt}", "baseline.file=adapter.bin", "overwrite=true"))
    assert "adapter.bin: it has no image_proj" in said


@pytest.fixture(scope="module")
def tiny_xl(tiny_model, tmp_path_factory) -> Path:
    """The tiny model as an SDXL folder, with photomaker.bin beside its parts."""
    folder = tmp_path_factory.mktemp("models") / "xl"
    parts = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    torch.manual_seed(0)
    second = CLIPTextConfig(
        vocab_size=len(parts.tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, projection_dim=8,
        num_attention_heads=2, max_position_embeddings=16, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, attention_head_dim=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 8,
    )  # fmt: skip
    StableDiffusionXLPipeline(
        vae=parts.vae, text_encoder=parts.text_encoder, text_encoder_2=CLIPTextModelWithProjection(second),
        tokenizer=parts.tokenizer, tokenizer_2=parts.tokenizer, unet=unet, scheduler=parts.scheduler,
        add_watermarker=False,
    ).save_pretrained(folder)  # fmt: skip
    torch.save(photomaker_weights(unet), folder / "photomaker.bin")
    return folder


def test_a_story_is_generated_with_photomaker(generate_story, tiny_xl, tmp_path):
    def generated(*overrides: str) -> Outcome:
        return generate_story(
            "experiment=baseline_photomaker", f"model.path={tiny_xl}", "model.dtype=float32", "model.device=cpu",
            f"baseline.weights={tiny_xl}", "baseline.file=photomaker.bin", "steps=3", "height=64", "width=64",
            "run_dir=run", *overrides,
        )  # fmt: skip

    assert "baseline.words has none for 'Pip': write baseline.words='{Pip: girl}'" in refusal(generated())
    assert "'dog' for 'Bo', described as 'a blue fox'" in refusal(generated("baseline.words={Pip: cat, Bo: dog}"))
    words = "baseline.words={Pip: cat, Bo: fox}"
    outcome = generated(words)
    assert outcome.code == 0, outcome.err
    before = pixels(tmp_path / "run")
    assert set(before) == {
        "panels/001.png", "panels/002.png", "panels/003.png", "portraits/001.png", "portraits/002.png",
    }  # fmt: skip
    folder = tmp_path / "pip"
    folder.mkdir()
    for seed in range(2):
        colours(folder / f"{seed}.png", seed)
    fox = tmp_path / "run" / "portraits" / "002.png"
    given = f"baseline.portraits={{Pip: {folder}, Bo: {fox}}}"
    assert generated(words, given, "run_dir=given").code == 0
    after = pixels(tmp_path / "given")
    assert [before[name] == after[name] for name in sorted(after)] == [False, True, False]  # Bo's portrait is the same
    sd15 = generate_story("baseline=photomaker", f"baseline.weights={tiny_xl}", "baseline.file=photomaker.bin", words)
    assert "needs the two text encoders of SDXL" in refusal(sd15)


@pytest.fixture(scope="module")
def world_model(tmp_path_factory) -> Path:
    """With sparse_control/, and a U-Net and motion modules that are wide enough for it."""
    folder = build_world_video_model(tmp_path_factory.mktemp("world") / "model")
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8, block_out_channels=CHANNELS, norm_num_groups=4, layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16, attention_head_dim=2,
    ).save_pretrained(folder / "unet")  # fmt: skip
    MotionAdapter(
        block_out_channels=CHANNELS, motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=2,
        motion_max_seq_length=8,
    ).save_pretrained(folder / "motion_adapter")  # fmt: skip
    kinds = ("CrossAttnDownBlockMotion", "CrossAttnDownBlockMotion", "DownBlockMotion")
    network: SparseControlNetModel = tiny_network(
        block_out_channels=CHANNELS, norm_num_groups=4, down_block_types=kinds
    )
    network.save_pretrained(folder / "sparse_control")
    write_ip_adapter(folder / "ip_adapter", UNet2DConditionModel.from_pretrained(folder / "unet"))
    return folder


@pytest.fixture
def small(world_model: Path) -> tuple[str, ...]:
    """Overrides of a tiny model of StoryWorld, for clips of 4 frames."""
    parts = [f"model.video.{part}={world_model}/{part}" for part in ("motion_adapter", "image_encoder", "predictor")]
    video = ("model.video.frames=4", "model.video.steps=1", "model.device=cpu", "steps=1")
    return f"model.path={world_model}", *parts, *video


def sparse(folder: Path, scale: float = 1.0) -> str:
    return f"model.video.sparse_control={{weights: {folder}, scale: {scale}}}"


def test_a_benchmark_of_stories_takes_a_reference(infer, small, world_model):
    folder = f"baseline.weights={world_model}/ip_adapter"
    files = ("baseline.file=adapter.safetensors", "baseline.image_encoder=image_encoder")
    bench = ("benchmark=stories", "benchmark.stories=2", "benchmark.batch=1", "run_dir=run", "csa=off", *small)
    baseline = ("baseline=ip_adapter", folder, *files, *bench)
    outcome = infer(*baseline)
    assert outcome.code == 0, outcome.err
    found = load_result(Path("run/result.json"))
    assert found.settings["baseline.kind"] == "ip_adapter"
    assert found.settings["baseline.scale"] == 0.6
    assert "model.weights.baseline/adapter.safetensors" in found.settings
    assert [file.name for file in sorted(Path("run/portraits").iterdir())] == ["000.png", "001.png"]
    assert "already measured" in infer(*baseline).out
    assert "measured with" in refusal(infer(*bench))
    assert infer(*bench, "run_dir=plain").code == 0
    assert load_result(Path("plain/result.json")).settings["baseline.kind"] is None


def test_sparse_control_is_a_method_of_the_transitions_benchmark(infer, small, world_model):
    def measured(method: str, run: str, *overrides: str) -> dict:
        outcome = infer(
            "benchmark=transitions",
            f"benchmark.method={method}",
            "benchmark.clips=2",
            f"run_dir={run}",
            *small,
            *overrides,
        )
        assert outcome.code == 0, outcome.err
        return json.loads(Path(run, "records.json").read_text())

    with_it = measured("sparse_control", "with", sparse(world_model / "sparse_control"), "model.video.predictor=null")
    assert with_it["settings"]["model.video.sparse_control_scale"] == 1
    assert any("sparse_control/" in name for name in with_it["settings"])
    silent = measured("sparse_control", "silent", sparse(world_model / "sparse_control", 0))
    others = [
        measured("no_semantic_tokens", run, *more)
        for run, more in (("other", ()), ("same", (sparse(world_model / "sparse_control"),)))
    ]
    metrics = [[one["metrics"] for one in found["records"]] for found in (with_it, silent, *others)]
    assert metrics[0] != metrics[1]
    assert metrics[2] == metrics[3]  # other methods ignore it
    assert metrics[1][0]["boundary_frame_error"] > 0.01  # boundary frames are free
    assert metrics[2][0]["boundary_frame_error"] == 0


def test_a_story_gets_transitions_by_sparse_control(infer, small, world_model, tmp_path):
    images = [colours(tmp_path / f"{seed}.png", seed) for seed in range(2)]
    asked = (f"frames=[{images[0]},{images[1]}]", *small, "model.video.predictor=null", "fps=4", "hold=0.5")
    shown = ("model.video.boundary_frames=free", "height=64", "width=64")
    strips = []
    for scale in (1.0, 0.0):
        control = sparse(world_model / "sparse_control", scale)
        outcome = infer(*asked, *shown, control, f"run_dir=run{scale}")
        assert outcome.code == 0, outcome.err
        strips.append(pixels(tmp_path / f"run{scale}"))
        video = read_manifest(tmp_path / f"run{scale}" / "manifest.json").video
        assert video is not None
        assert any(name.startswith("sparse_control/") for name in video.weights)
    assert strips[0].keys() == strips[1].keys() >= {"transitions/001-002.png"}
    assert strips[0]["transitions/001-002.png"] != strips[1]["transitions/001-002.png"]


def test_sparse_control_that_is_missing_or_does_not_fit_is_named(infer, small, world_model, tmp_path):
    images = [colours(tmp_path / f"{seed}.png", seed) for seed in range(2)]
    asked = (f"frames=[{images[0]},{images[1]}]", *small, "height=64", "width=64", "run_dir=run")
    key = "model.video.sparse_control.weights"
    assert f"{key}=/no/such" in refusal(infer(*asked, sparse(Path("/no/such"))))
    other = shutil.copytree(world_model / "sparse_control", tmp_path / "other")
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "cross_attention_dim": 24}))
    assert "cross_attention_dim 24" in refusal(infer(*asked, sparse(other)))
    assert "sparse_control.scale=-1" in refusal(infer(*asked, sparse(other, -1)))
    asked = ("benchmark=transitions", "benchmark.method=sparse_control", *small)
    assert "Name the SparseCtrl" in refusal(infer(*asked, "run_dir=bench"))
