"""A module of the video model at tiny size, and a batch for it."""

import copy
from dataclasses import replace

import pytest
import torch

from storydiffusion.data.loader import ClipBatch
from storydiffusion.training.build_transition import build_video_model
from storydiffusion.training.transition_module import TransitionModule
from tests.helpers.video_model import FRAMES, SIZE, composed, overrides


@pytest.fixture(scope="module")
def config(tiny_video_model, tmp_path_factory):
    return composed(
        *overrides(tiny_video_model, tmp_path_factory.mktemp("cache")),
        "recipe.boundary_frame_prob=0.5",
        "recipe.teacher_forcing=0",
        "recipe.semantic_weight=0",
    )


@pytest.fixture(scope="module")
def untouched(config):
    """Load the parts once; tests get copies."""
    torch.manual_seed(0)
    model, settings = build_video_model(config, torch.float32)
    with torch.no_grad():  # an untrained predictor's transformer is the identity, and most of its gradients are zero
        for weight in model.predictor.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    return model, settings


@pytest.fixture
def make(config, untouched):
    """Return a factory of TransitionModules that train `trainable`, with further recipe settings by name."""

    def module(*trainable: str, **recipe) -> TransitionModule:
        model, settings = copy.deepcopy(untouched)
        return TransitionModule(model, replace(config.recipe, trainable=list(trainable), **recipe), settings, {})

    return module


@pytest.fixture(scope="module")
def batch() -> ClipBatch:
    frames = torch.randint(0, 256, (2, FRAMES, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    return ClipBatch(frames.to(torch.uint8), ["a red cat", "the fox runs"], ["a", "b"])
