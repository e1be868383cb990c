"""Guidance in the later steps alone."""

from dataclasses import replace

import numpy as np
import pytest
from diffusers import FluxTransformer2DModel

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.errors import UserError
from storydiffusion.evaluation.benchmarks.stories import generate_images
from storydiffusion.loaders.text_to_image import load_story_model
from storydiffusion.pipelines.story import StoryPipeline
from storydiffusion.story import load_story
from tests.conftest import ROOT
from tests.helpers.dit_model import build_dit_model

SETTINGS = {"seed": 4, "num_inference_steps": 4, "height": 64, "width": 64, "output_type": "np"}


@pytest.fixture(params=["one call", "two calls"])
def pipe(request, tiny_model, tmp_path):
    """A U-Net that predicts with and without text in one call, and a transformer that is called twice."""
    folder = tiny_model if request.param == "one call" else build_dit_model(tmp_path / "dit")
    return StoryPipeline.from_pretrained(folder, device="cpu")


@pytest.fixture
def story(tmp_path):
    file = tmp_path / "story.yaml"
    file.write_text('characters: {Pip: a red cat}\npanels: [{prompt: "[Pip] runs"}, {prompt: "[Pip] in the park"}]')
    return load_story(file)


def test_steps_before_the_start_are_those_of_no_guidance_and_the_others_guided(pipe, story):
    kept = {}

    def keep(pipe, step, timestep, tensors):
        kept[step + 1] = tensors["latents"].clone()

    pipe(story, guidance_scale=1.0, callback_on_step_end=keep, **SETTINGS)
    apart = pipe(story, guidance_scale=6.0, start=(2, kept[2]), **SETTINGS).images
    for start in (0.5, 0.3):  # of four steps, the third is the first at 50 % or after 30 %
        together = pipe(story, guidance_scale=6.0, guidance_start=start, **SETTINGS).images
        assert np.allclose(together, apart, atol=1e-4)
    assert not np.allclose(together, pipe(story, guidance_scale=6.0, **SETTINGS).images, atol=1e-3)


def test_a_start_of_one_is_no_guidance_and_of_zero_is_the_pipelines_own(pipe, story):
    never = pipe(story, guidance_scale=6.0, guidance_start=1.0, **SETTINGS).images
    assert np.allclose(never, pipe(story, guidance_scale=1.0, **SETTINGS).images, atol=1e-4)
    always = pipe(story, guidance_scale=6.0, guidance_start=0.0, **SETTINGS).images
    assert np.array_equal(always, pipe(story, guidance_scale=6.0, **SETTINGS).images)
    unguided = pipe(story, guidance_scale=1.0, guidance_start=0.5, **SETTINGS).images
    assert np.array_equal(unguided, pipe(story, guidance_scale=1.0, **SETTINGS).images)


@pytest.mark.parametrize("stopped", [1, 2, 3])
def test_a_resumed_story_is_bit_equal(pipe, story, stopped):
    kept = {}

    def keep(pipe, step, timestep, tensors):
        kept[step + 1] = tensors["latents"].clone()

    whole = pipe(story, guidance_scale=6.0, guidance_start=0.5, callback_on_step_end=keep, **SETTINGS).images
    resumed = pipe(story, guidance_scale=6.0, guidance_start=0.5, start=(stopped, kept[stopped]), **SETTINGS).images
    assert np.array_equal(resumed, whole)


def test_the_models_default_is_used(tiny_model, story):
    delayed = StoryPipeline.from_pretrained(tiny_model, device="cpu", guidance_start=0.5)
    plain = StoryPipeline.from_pretrained(tiny_model, device="cpu", guidance_start=0.0)
    expected = plain(story, guidance_scale=6.0, guidance_start=0.5, **SETTINGS).images
    assert np.array_equal(delayed(story, guidance_scale=6.0, **SETTINGS).images, expected)


def test_benchmarks_delay_guidance_too(tiny_model):
    """Diffusers' pipelines take unknown arguments in silence, so a call of one itself would guide throughout."""
    model = StoryPipeline.from_pretrained(tiny_model, device="cpu").model
    prompts, images = ["a red cat", "a fox"], {}
    loaded, alone = load_story_model(model), ConsistentSelfAttentionConfig(variant="off")
    for scale, start in ((6.0, 0.0), (6.0, 1.0), (1.0, 0.0)):
        config = replace(model.config, steps=3, guidance_scale=scale, guidance_start=start, height=64, width=64)
        made = generate_images(loaded, config, prompts, [1, 2], alone, None)
        images[scale, start] = np.stack([np.asarray(image, np.int16) for image in made])
    assert abs(images[6.0, 1.0] - images[1.0, 0.0]).max() <= 1
    assert abs(images[6.0, 0.0] - images[1.0, 0.0]).max() > 1


def test_every_call_of_a_pipeline_with_the_models_settings_delays_guidance():
    for file in (ROOT / "src" / "storydiffusion").rglob("*.py"):
        text = file.read_text()
        if "get_sampling_defaults(" in text and "def get_sampling_defaults" not in text:
            assert "call_pipeline(" in text or "generate_panels(" in text or "StoryPipeline(" in text, file


@pytest.mark.parametrize("start", [-0.1, 1.5, float("nan")])
def test_a_share_outside_is_refused(pipe, story, start):
    with pytest.raises(UserError, match=r"guidance_start=.* is outside 0…1"):
        pipe(story, guidance_start=start, **SETTINGS)


def test_a_distilled_pipeline_is_refused(tmp_path, story):
    folder = build_dit_model(tmp_path / "dit")
    distilled = StoryPipeline.from_pretrained(folder, device="cpu")
    transformer = FluxTransformer2DModel.from_config({**distilled.pipe.transformer.config, "guidance_embeds": True})
    distilled.pipe.register_modules(transformer=transformer)
    with pytest.raises(UserError, match=r"FluxPipeline predicts nothing without text .* leave out guidance_start=0\.5"):
        distilled(story, guidance_scale=6.0, guidance_start=0.5, **SETTINGS)
