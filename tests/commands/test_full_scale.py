"""The exact architectures of the paper: parameter counts without weights; generation and training at random weights."""

import gc
from collections.abc import Iterator

import lightning as L
import numpy as np
import psutil
import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from storydiffusion.output.manifest import read_manifest
from storydiffusion.training.build_training import build_training
from tests.conftest import STORY, write_tokenizer
from tests.helpers.video_model import composed

SD15_UNET = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SD15_VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
SD15_TEXT = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 77, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
SDXL_UNET = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


@pytest.mark.parametrize(
    ("network", "shape", "parameters"),
    [
        (UNet2DConditionModel, SD15_UNET, 859_520_964),
        (AutoencoderKL, SD15_VAE, 83_653_863),
        (UNet2DConditionModel, SDXL_UNET, 2_567_463_684),
    ],
    ids=["SD1.5 U-Net", "VAE", "SDXL U-Net"],
)
def test_architectures_have_the_published_number_of_parameters(network, shape, parameters):
    with torch.device("meta"):
        model = network(**shape)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.fixture(autouse=True)
def _free_networks() -> Iterator[None]:
    """Free the reference cycle of trainer and module, which would keep gigabytes until the next test."""
    yield
    gc.collect()


@pytest.fixture
def sd15_folder(tmp_path):
    """Save SD1.5 with random weights in float16, 2 GB, and the tests' own tokenizer."""
    folder = tmp_path / "sd15"
    write_tokenizer(folder / "tokenizer")
    torch.manual_seed(0)
    StableDiffusionPipeline(
        unet=UNet2DConditionModel(**SD15_UNET).half(),
        vae=AutoencoderKL(**SD15_VAE).half(),
        text_encoder=CLIPTextModel(CLIPTextConfig(**SD15_TEXT)).half(),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=77),
        scheduler=PNDMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    (folder / "storydiffusion.json").write_text('{"kind": "random"}')
    return folder


@pytest.mark.slow
def test_sd15_generates_a_two_panel_story(infer, sd15_folder, story_file, tmp_path):
    story_file.write_text(STORY.replace('  - {prompt: "[Pip] and [Bo] in the park", caption: Three.}\n', ""))
    outcome = infer(
        f"story={story_file}", "model=sd15", f"model.path={sd15_folder}", "model.dtype=float32", "run_dir=run",
        "height=256", "width=256", "steps=2",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    manifest = read_manifest(tmp_path / "run" / "manifest.json")
    assert manifest.complete
    assert manifest.origin == "random"
    assert manifest.config["model"]["scheduler"] == "ddim"
    images = [np.asarray(Image.open(tmp_path / "run" / panel.file)) for panel in manifest.panels]
    assert [image.shape for image in images] == [(256, 256, 3)] * 2
    assert all(image.std() > 1 for image in images)


class Learning(L.Callback):
    """Records which weights have gradients before the optimizer step."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.names = {name for name, weight in pl_module.named_parameters() if weight.grad is not None}


@pytest.mark.slow
@pytest.mark.parametrize("trainable", [("predictor",), ("predictor", "motion_module")], ids="+".join)
def test_one_training_step_of_the_exact_video_model(sd15_folder, tmp_path, trainable):
    """SD1.5, AnimateDiff v2, ViT-H-14 and the paper's predictor, 4 frames of 64 × 64; up to 17 GB of memory."""
    from diffusers import MotionAdapter

    if (free := psutil.virtual_memory().available / 1e9) < 18:
        pytest.skip(f"needs 18 GB of free memory, and {free:.0f} GB are free")

    MotionAdapter().half().save_pretrained(tmp_path / "motion")
    config = composed(
        "model=sd15_animatediff", f"model.path={sd15_folder}", f"model.video.motion_adapter={tmp_path}/motion",
        "model.video.image_encoder=open_clip://ViT-H-14/random", "model.height=64", "model.width=64",
        "model.video.frames=4", "data=storyworld", "data.storyworld.clips=4", "data.workers=0", f"cache={tmp_path}",
        f"run_dir={tmp_path}/run", f"recipe.trainable=[{','.join(trainable)}]", "recipe.batch_size=1",
        "recipe.sample_every=0", "trainer=cpu", "trainer.precision=bf16-mixed", "trainer.max_steps=1",
        "trainer.log_every=1",
    )  # fmt: skip
    training = build_training(config)
    training.trainer.callbacks.remove(training.checkpoints)  # type: ignore[attr-defined]  # 9 GB that no test reads
    learning = Learning()
    training.trainer.callbacks.append(learning)  # type: ignore[attr-defined]
    module = training.module
    counts = {
        name: sum(weight.numel() for weight in weights)
        for name, weights in {
            "image layers": module.video_unet.image_parameters(),
            "motion modules": module.video_unet.motion_parameters(),
            "vae": module.vae.parameters(),
            "image encoder": module.image_encoder.parameters(),
            "transformer": module.predictor.layers.parameters(),
        }.items()
    }
    assert counts == {
        "image layers": 859_520_964,
        "motion modules": 453_209_280,
        "vae": 83_653_863,
        "image encoder": 632_076_800,
        "transformer": 92_375_040,
    }
    training.fit()
    assert training.trainer.global_step == 1
    own = {"predictor": "predictor.", "motion_module": "motion_modules."}
    expected = {
        name for name, _ in module.named_parameters()
        if name.startswith(own["predictor"]) or ("motion_module" in trainable and own["motion_module"] in name)
    }  # fmt: skip
    assert learning.names == expected
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 2
