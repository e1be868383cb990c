"""Build the parts of a transition training from its configuration: the module, and the callbacks of its own."""

from dataclasses import asdict, replace
from typing import Any

import lightning as L
import torch

from storydiffusion.config import TransitionTrainConfig, VideoConfig
from storydiffusion.errors import UserError
from storydiffusion.loaders.boundary_frames import choose_boundary_frames, read_boundary_frame_prob
from storydiffusion.loaders.resolve import resolve_model
from storydiffusion.loaders.video import (
    add_predictor,
    build_predictor,
    choose_features,
    encode_example_words,
    load_image_encoder,
    load_video_backbone,
)
from storydiffusion.models.video_model import VideoModel
from storydiffusion.pipelines.transition_sampling import build_sampling
from storydiffusion.training.callbacks.ema import EMA
from storydiffusion.training.callbacks.fill_feature_cache import FillFeatureCache
from storydiffusion.training.callbacks.sample_grid import SampleGrid
from storydiffusion.training.callbacks.training_log import TrainingLog
from storydiffusion.training.data_module import ClipData
from storydiffusion.training.transition_module import TransitionModule

FROZEN_DTYPES = {"32-true": "float32", "bf16-mixed": "bfloat16", "16-mixed": "float16"}
"""Precision of the trainer → dtype of the frozen weights where model.dtype is auto."""


def build_transition_module(config: TransitionTrainConfig) -> TransitionModule:
    """Return the LightningModule; its new weights depend only on the recipe's seed.

    Raises:
        UserError: a part is missing or does not fit, or the clips have more frames than the model takes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.recipe.seed)
        model, settings = build_video_model(config, _get_frozen_dtype(config))
    if config.data.frames > model.max_frames:
        raise UserError(
            f"data.frames={config.data.frames}, but this video model takes at most {model.max_frames}: use fewer"
        )
    if config.trainer.kernels == "fast":
        use_channels_last(model)
    return TransitionModule(model, config.recipe, settings, asdict(config))


def use_channels_last(model: VideoModel) -> None:
    """Lay convolutions' weights out as cuDNN's tensor cores read them."""
    for network in (model.video_unet, model.vae):
        network.to(memory_format=torch.channels_last)


def build_video_model(config: TransitionTrainConfig, dtype: torch.dtype) -> tuple[VideoModel, dict[str, Any] | None]:
    """Return all parts of the video model, and the predictor's arguments if the predictor is trained."""
    assert config.model.video is not None  # checked by TransitionTrainConfig
    frozen = replace(config.model, dtype=str(dtype).removeprefix("torch."))
    model = load_video_backbone(resolve_model(frozen), dtype)
    if "predictor" not in config.recipe.trainable:
        return add_predictor(model, config.model.video, dtype), None
    encoder = load_image_encoder(config.model.video.image_encoder, dtype)
    width = model.video_unet.unet.config.cross_attention_dim
    predictor, settings = build_predictor(config.predictor, encoder, width)
    if config.predictor.start is None:
        predictor.match_text_statistics(encode_example_words(model))
    features = choose_features(config.predictor.tokens)
    return replace(model, predictor=predictor, image_encoder=encoder, features=features), settings


def build_transition_callbacks(
    config: TransitionTrainConfig, module: TransitionModule, data: ClipData, ema: EMA
) -> list[L.Callback]:
    """Return the training log, with data.cache what fills it, and unless recipe.sample_every is 0 the samples."""
    recipe = config.recipe
    timesteps = len(module.diffusion.alphas_cumprod)
    callbacks: list[L.Callback] = [TrainingLog(config.trainer.log_every, timesteps, ema.guard)]
    if data.cache is not None:
        callbacks.insert(0, FillFeatureCache(data.cache, data.options, recipe.batch_size, data.verify))
    if recipe.sample_every:
        sampling = replace(build_sampling(choose_video(config)), frames=config.data.frames)
        example = lambda: data.example(recipe.sample_clips)  # noqa: E731
        callbacks.append(SampleGrid(recipe.sample_every, config.run_dir, example, sampling, ema))
    return callbacks


def choose_video(config: TransitionTrainConfig) -> VideoConfig:
    """Return the settings of the samples, with the boundary frames that the motion modules learn or have learnt."""
    assert config.model.video is not None  # checked by TransitionTrainConfig
    trained = config.recipe.boundary_frame_prob
    if "motion_module" not in config.recipe.trainable:
        trained = read_boundary_frame_prob(config.model.video.motion_adapter)
    chosen = choose_boundary_frames(config.model.video.boundary_frames, trained)
    return replace(config.model.video, boundary_frames=chosen)


def _get_frozen_dtype(config: TransitionTrainConfig) -> torch.dtype:
    name, precision = config.model.dtype, config.trainer.precision
    if name == "auto":
        name = FROZEN_DTYPES[precision]
    if precision == "32-true" and name != "float32":
        raise UserError(
            f"model.dtype={name} needs a mixed precision: use trainer.precision=bf16-mixed, or model.dtype=float32"
        )
    return getattr(torch, name)
