"""A tiny model folder of random weights with all that a video model is made of, and a few drawn clips in shards."""

from pathlib import Path

from hydra import compose, initialize_config_dir

from storydiffusion.config import TransitionTrainConfig, load
from tests.conftest import ROOT, build_tiny_model

SIZE, FRAMES = 64, 4
TINY = (
    "predictor.width=16", "predictor.layers=1", "predictor.heads=2", "predictor.head_width=8",
    "predictor.tokens_per_frame=2", "predictor.resampler_layers=1", "predictor.frames=8",
    "data.storyworld.clips=8", "data.workers=0", "model.video.steps=2",
    f"model.height={SIZE}", f"model.width={SIZE}", f"model.video.frames={FRAMES}",
    "recipe.batch_size=2", "recipe.warmup_steps=2", "recipe.sample_clips=2",
)  # fmt: skip


def build_tiny_video_model(folder: Path) -> Path:
    """Writes `folder`: the tiny model with its video parts."""
    build_tiny_model(folder)
    add_video_parts(folder)
    return folder


def add_video_parts(folder: Path) -> None:
    """Writes image_encoder/, a CLIPModel, and motion_adapter/ that moves things, into a tiny model's folder."""
    import torch
    from diffusers import MotionAdapter
    from transformers import CLIPConfig, CLIPModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision = {**tower, "image_size": 32, "patch_size": 16}
        CLIPModel(
            CLIPConfig(text_config={**tower, "vocab_size": 8}, vision_config=vision, projection_dim=8)
        ).save_pretrained(folder / "image_encoder")
        MotionAdapter(
            block_out_channels=(8, 16, 16), motion_layers_per_block=1, motion_norm_num_groups=4,
            motion_num_attention_heads=2, motion_max_seq_length=8,
        ).save_pretrained(folder / "motion_adapter")  # fmt: skip


def composed(*changes: str) -> TransitionTrainConfig:
    """Return the configuration of `python train.py CHANGES`."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return load(TransitionTrainConfig, compose("train", list(changes)))


def overrides(model: Path, cache: Path) -> list[str]:
    """Of `python train.py`, for a training of seconds."""
    return [
        f"cache={cache}", f"model.path={model}", f"model.video.motion_adapter={model}/motion_adapter",
        f"model.video.image_encoder={model}/image_encoder", "trainer=cpu", "trainer.log_every=1",
        "trainer.checkpoint_minutes=0", *TINY,
    ]  # fmt: skip
