"""The metrics of the benchmark `transitions`, on true and spoiled clips and on the shipped model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from storydiffusion.evaluation.benchmarks.transitions import Readers, load_readers, measure_clip
from storydiffusion.evaluation.metrics.clips import cross_fade
from storydiffusion.evaluation.metrics.registry import FRAME_ATTRIBUTES
from storydiffusion.loaders.resolve import resolve_model
from storydiffusion.loaders.video import load_video_model
from storydiffusion.pipelines.transition import build_sampling, sample_clips
from storydiffusion.storyworld.attribute_classifier import AttributeClassifier
from storydiffusion.storyworld.clips import ClipTruth, caption_clip, render_clip, sample_clip
from storydiffusion.storyworld.images import HELD_OUT_SEED
from tests.conftest import compose_config
from tests.helpers.world_model import build_world_video_model


@pytest.fixture(scope="module")
def world_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_world_video_model(tmp_path_factory.mktemp("world") / "model")


@pytest.fixture(scope="module")
def readers(world_model: Path) -> Readers:
    from storydiffusion.models.image_encoders import ClipImageEncoder

    return Readers(
        AttributeClassifier.load(world_model / "attribute_classifier"),
        ClipImageEncoder.load(world_model / "image_encoder"),
    )


def get_clip(motion: str) -> ClipTruth:
    return sample_clip(1, 0, motion)


def test_the_true_clip_has_no_error(readers):
    for motion in ("crossing", "jumping", "travelling"):
        clip = get_clip(motion)
        metrics = measure_clip(clip, render_clip(clip, 6), readers)
        assert set(FRAME_ATTRIBUTES) < set(metrics)
        for name in ("perceptual_error", "pixel_error", "boundary_frame_error"):
            assert metrics[name] == 0
        assert metrics["pixel_change"] == 1
        assert ("place_error" in metrics) != clip.travels
        assert float(metrics.get("place_error") or 0) < 0.15  # the box is found again


def test_static_and_mixed_characters_are_in_the_wrong_place(readers):
    clip = get_clip("crossing")
    true = render_clip(clip, 6)
    still = np.stack([true[0]] * 5 + [true[5]])
    errors = {}
    for name, frames in (("true", true), ("still", still), ("fade", cross_fade(true[0], true[5], 6))):
        errors[name] = measure_clip(clip, frames, readers)
        assert errors[name]["boundary_frame_error"] == 0
    place = {name: float(found["place_error"] or 0) for name, found in errors.items()}
    assert place["true"] < place["fade"]
    assert place["true"] < place["still"]
    assert float(errors["still"]["pixel_change"] or 0) < 0.8


def test_an_empty_scene_has_the_largest_place_error(readers):
    from storydiffusion.storyworld.clips import render_plates

    clip = get_clip("waving")
    assert measure_clip(clip, render_plates(clip, 5), readers)["place_error"] == 1


def test_the_shipped_video_model_is_closer_to_the_truth_than_a_cross_fade():
    config = compose_config("model-card").model
    resolved = resolve_model(replace(config, dtype="float32", device="cpu"))
    model, readers = load_video_model(resolved), load_readers(resolved)
    sampling = replace(build_sampling(resolved.video), steps=4)
    errors = []
    for number in range(4):
        clip = sample_clip(HELD_OUT_SEED, number)
        true = render_clip(clip, sampling.frames)
        start, end = (torch.from_numpy(true[at]).permute(2, 0, 1)[None] for at in (0, -1))
        sampled = sample_clips(model, start, end, [caption_clip(clip, number)], [number], sampling)[0].permute(
            0, 2, 3, 1
        )
        compared = sampled.numpy(), cross_fade(true[0], true[-1], sampling.frames)
        errors.append([measure_clip(clip, frames, readers)["perceptual_error"] for frames in compared])
    ours, faded = np.mean(errors, axis=0)
    assert ours < faded
