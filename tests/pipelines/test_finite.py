"""Weights and latents that are not finite: a story or a transition stops with a sentence that names step and cause."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from storydiffusion.attention.config import ConsistentSelfAttentionConfig
from storydiffusion.attention.finite import check_latents
from storydiffusion.errors import UserError
from storydiffusion.pipelines.panels import generate_panels
from storydiffusion.pipelines.transition_sampling import TransitionSampling, sample_clips
from tests.helpers.tiny_video_model import tiny_video_model

BAD = [float("nan"), float("inf")]


def spoil(module: torch.nn.Module, value: float) -> None:
    with torch.no_grad():
        next(module.parameters()).fill_(value)


@pytest.fixture
def pipe(tiny_model):
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe, variant="eq2", callback=None):
    arguments = {"prompt": ["a cat", "a fox"], "height": 64, "width": 64, "num_inference_steps": 3}
    csa = ConsistentSelfAttentionConfig(variant=variant)
    return generate_panels(pipe, arguments, [1, 2], csa, callback_on_step_end=callback)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("variant", ["eq2", "off"])
@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_story_stops_at_the_first_step(pipe, part, variant, value):
    spoil(getattr(pipe, part), value)
    with pytest.raises(UserError, match=r"latents after step 1 are not finite.*float32.*weights are probably damaged"):
        generate(pipe, variant)


def test_a_story_stops_at_the_step_in_which_latents_overflow(pipe):
    def overflow(pipe, step, timestep, tensors):
        return {"latents": tensors["latents"] * float("inf")} if step == 0 else {}

    with pytest.raises(UserError, match="latents after step 2 are not finite"):
        generate(pipe, callback=overflow)


@pytest.mark.parametrize("value", BAD)
def test_a_story_of_a_damaged_decoder_is_refused(pipe, value):
    spoil(pipe.vae.decoder, value)
    with pytest.raises(UserError, match="images that the VAE decoded are not finite"):
        generate(pipe)
    assert not pipe.vae.decoder._forward_hooks


def test_the_cause_named_in_float16_is_the_dtype():
    latents = torch.zeros(2, 4, 8, 8, dtype=torch.float16)
    check_latents(latents, 0)
    latents[1, 0, 3, 3] = torch.inf
    with pytest.raises(UserError, match=r"after step 5 .* in float16: choose model.dtype=bfloat16 or float32"):
        check_latents(latents, 4)


@pytest.mark.parametrize("boundary_frames", ["clamped", "free"])
@pytest.mark.parametrize(
    ("part", "message"), [("video_unet", "latents after step 1 are"), ("vae", "images that the VAE decoded are")]
)
def test_a_transition_stops(part, message, boundary_frames):
    model = tiny_video_model()
    spoil(model.vae.decoder if part == "vae" else model.video_unet, float("nan"))
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    sampling = TransitionSampling(frames=4, steps=2, boundary_frames=boundary_frames)
    with pytest.raises(UserError, match=message):
        sample_clips(model, images, images, ["a cat"], [1], sampling)
