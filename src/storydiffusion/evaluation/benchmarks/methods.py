"""How the frames between two boundary frames are generated: the semantic motion predictor and its baselines.

Every method gets the boundary frames and the caption of a clip, with the same seeds. To add one, write a function that
takes the configuration and the model and returns a Generator, register it in METHODS, and add its name to
`config.infer.METHODS`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from storydiffusion.config import InferConfig, VideoConfig
from storydiffusion.errors import UserError
from storydiffusion.evaluation.benchmarks.held_out import HeldOutClip
from storydiffusion.loaders.resolve import ResolvedModel
from storydiffusion.loaders.video import load_video_model

if TYPE_CHECKING:
    import numpy as np

    from storydiffusion.models.video_model import VideoModel

Generator = Callable[[Sequence[HeldOutClip]], Iterator["np.ndarray"]]
"""Held-out clips → the frames of each, uint8 (F, H, W, 3)"""


def use_predictor(config: InferConfig, model: ResolvedModel) -> Generator:
    """Generate with the model as it is, conditioned on predicted semantic tokens."""
    video = replace(_get_video_with_predictor(config, model), sparse_control=None)
    return _sample_with(_load(model, video), video, config.seed)


def use_true_tokens(config: InferConfig, model: ResolvedModel) -> Generator:
    """Generate with the true frames' own tokens: what a perfect predictor would reach."""
    video = replace(_get_video_with_predictor(config, model), sparse_control=None)
    return _sample_with(_load(model, video), video, config.seed, with_true_tokens=True)


def use_interpolation(config: InferConfig, model: ResolvedModel) -> Generator:
    """Generate with tokens that are interpolated and projected only: the predictor without its transformer.

    `benchmark.interpolation` names a released folder whose predictor was trained with predictor.layers=0. Under
    recipe.teacher_forcing=1 both are equal, as the transformer has no part in what the rest learns.
    """
    video = replace(_get_video_with_predictor(config, model), sparse_control=None)
    release = config.benchmark.interpolation
    if release is None:
        ours = _load(model, video)
        assert ours.predictor is not None
        return _sample_with(replace(ours, predictor=ours.predictor.without_transformer()), video, config.seed)
    adapter = Path(release) / "motion_adapter"
    video = replace(
        video,
        predictor=str(Path(release) / "predictor"),
        motion_adapter=str(adapter) if adapter.is_dir() else video.motion_adapter,
    )
    trained = _load(model, video)
    if trained.predictor is None or len(trained.predictor.layers):
        raise UserError(f"benchmark.interpolation={release} has layers. Train a predictor with predictor.layers=0")
    return _sample_with(trained, video, config.seed)


def use_no_semantic_tokens(config: InferConfig, model: ResolvedModel) -> Generator:
    """Generate with the same model without a predictor, conditioned on the boundary frames and the caption."""
    video = replace(model.video, predictor=None, sparse_control=None)
    return _sample_with(_load(model, video), video, config.seed)


def use_sparse_control(config: InferConfig, model: ResolvedModel) -> Generator:
    """Generate with SparseCtrl, the paper's baseline, the only one that conditions on the (free) boundary frames."""
    if model.video.sparse_control is None:
        raise UserError(
            "benchmark.method=sparse_control needs weights. Name the SparseCtrl in model.video.sparse_control"
        )
    video = replace(model.video, predictor=None, boundary_frames="free")
    return _sample_with(_load(model, video), video, config.seed)


def use_cross_fade(config: InferConfig, model: ResolvedModel) -> Generator:
    """Mix the two boundary frames."""
    from storydiffusion.evaluation.metrics.clips import cross_fade

    frames = model.video.frames
    return lambda part: (cross_fade(clip[0], clip[-1], frames) for clip in (item.render(frames) for item in part))


def use_truth(config: InferConfig, model: ResolvedModel) -> Generator:
    """Return the reference clips themselves."""
    frames = model.video.frames
    return lambda part: (item.render(frames) for item in part)


METHODS: dict[str, Callable[[InferConfig, ResolvedModel], Generator]] = {
    "predictor": use_predictor,
    "true_tokens": use_true_tokens,
    "interpolation": use_interpolation,
    "no_semantic_tokens": use_no_semantic_tokens,
    "sparse_control": use_sparse_control,
    "cross-fade": use_cross_fade,
    "truth": use_truth,
}

NEED_TRUTH = ("true_tokens", "truth")
"""Methods that read the true frames"""


def _get_video_with_predictor(config: InferConfig, model: ResolvedModel) -> VideoConfig:
    video = model.video
    if video.predictor is None:
        raise UserError(
            f"benchmark.method={config.benchmark.method} needs a predictor. Name one in model.video.predictor"
        )
    return video


def _load(model: ResolvedModel, video: VideoConfig) -> "VideoModel":
    """Load the model with the video parts that `video` names."""
    return load_video_model(replace(model, config=replace(model.config, video=video)))


def _sample_with(model: "VideoModel", video: VideoConfig, seed: int, with_true_tokens: bool = False) -> Generator:
    """Return a generator that samples every clip with a seed of its own."""
    import torch

    from storydiffusion.pipelines.story_video import transition_seed
    from storydiffusion.pipelines.transition_sampling import build_sampling, sample_clips

    def generate(part: "Sequence[HeldOutClip]") -> "Iterator[np.ndarray]":
        true = [torch.from_numpy(item.render(video.frames)).permute(0, 3, 1, 2) for item in part]
        start, end = (torch.stack([frames[at] for frames in true]) for at in (0, -1))
        prompts = [item.prompt for item in part]
        seeds = [transition_seed(seed, item.index) for item in part]
        shown = torch.stack(true) if with_true_tokens else None
        sampled = sample_clips(model, start, end, prompts, seeds, build_sampling(video), token_frames=shown)
        yield from sampled.permute(0, 1, 3, 4, 2).numpy()

    return generate
