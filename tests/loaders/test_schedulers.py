"""The registry of schedulers."""

from dataclasses import replace

import pytest
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

from storydiffusion.config.model import load_model_config
from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import resolve_model
from storydiffusion.loaders.schedulers import SCHEDULERS, build_scheduler, register_scheduler


def test_an_unknown_scheduler_is_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match=r"model\.scheduler=heun is not one of model, ddim"):
        resolve_model(replace(load_model_config("miniature"), scheduler="heun", path="nowhere"))


def test_a_registered_scheduler_keeps_the_noise_schedule(monkeypatch):
    monkeypatch.setattr("storydiffusion.loaders.schedulers.SCHEDULERS", dict(SCHEDULERS))
    register_scheduler("euler")(lambda scheduler: EulerDiscreteScheduler.from_config(scheduler.config))
    given = DDIMScheduler(beta_start=0.001, beta_end=0.01)
    assert build_scheduler("model", given) is given
    euler = build_scheduler("euler", given)
    assert isinstance(euler, EulerDiscreteScheduler)
    assert euler.alphas_cumprod.equal(given.alphas_cumprod)


def test_a_name_is_registered_once():
    with pytest.raises(UserError, match="ddim is already registered"):
        register_scheduler("ddim")
