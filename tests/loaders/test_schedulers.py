"""The registry of schedulers."""

from dataclasses import replace

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteScheduler

from storydiffusion.config.model import load_model_config
from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import resolve_model
from storydiffusion.loaders.schedulers import SCHEDULERS, build_scheduler, register_scheduler


def test_an_unknown_scheduler_is_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match=r"model\.scheduler=heun is not one of model, ddim"):
        resolve_model(replace(load_model_config("miniature"), scheduler="heun", path="nowhere"))


def test_a_registered_scheduler_keeps_the_noise_schedule(monkeypatch):
    monkeypatch.setattr("storydiffusion.loaders.schedulers.SCHEDULERS", dict(SCHEDULERS))
    register_scheduler("euler_a")(lambda scheduler: EulerAncestralDiscreteScheduler.from_config(scheduler.config))
    given = DDIMScheduler(beta_start=0.001, beta_end=0.01)
    assert build_scheduler("model", given) is given
    ancestral = build_scheduler("euler_a", given)
    assert isinstance(ancestral, EulerAncestralDiscreteScheduler)
    assert ancestral.alphas_cumprod.equal(given.alphas_cumprod)


def test_a_name_is_registered_once():
    with pytest.raises(UserError, match="ddim is already registered"):
        register_scheduler("ddim")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name != "model"])
def test_every_scheduler_reaches_the_image_of_an_ideal_denoiser(name, prediction_type):
    """A denoiser that knows the clean image: whatever the noise and the steps, sampling ends there."""
    given = DDIMScheduler(
        prediction_type=prediction_type, beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing"
    )
    scheduler = build_scheduler(name, given)
    assert scheduler.config.prediction_type == prediction_type
    draw = torch.Generator().manual_seed(0)
    clean = torch.randn(1, 4, 8, 8, generator=draw)
    scheduler.set_timesteps(12)
    latents = torch.randn(clean.shape, generator=draw) * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        share = given.alphas_cumprod[int(timestep)].clamp(min=1e-9)
        noise = (scaled - share.sqrt() * clean) / (1 - share).sqrt()
        velocity = share.sqrt() * noise - (1 - share).sqrt() * clean
        predicted = noise if prediction_type == "epsilon" else velocity
        latents = scheduler.step(predicted, timestep, latents).prev_sample
    torch.testing.assert_close(latents, clean, atol=0.03, rtol=0)
