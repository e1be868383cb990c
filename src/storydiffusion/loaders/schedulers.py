"""Schedulers by name, each on the noise schedule of the model folder: the registry behind `model.scheduler`."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from storydiffusion.errors import UserError
from storydiffusion.files.model_files import report_damage

Builder = Callable[[Any], Any]

SCHEDULERS: dict[str, Builder] = {}


def register_scheduler(name: str) -> Callable[[Builder], Builder]:
    """Return a decorator that registers a function from the model folder's scheduler to the one to sample with.

    Raises:
        UserError: for a name that is taken.
    """
    if name in SCHEDULERS:
        raise UserError(f"scheduler {name} is already registered: choose another name")

    def register(builder: Builder) -> Builder:
        SCHEDULERS[name] = builder
        return builder

    return register


def load_scheduler(folder: Path, name: str | None) -> Any:
    """Load the scheduler of a model folder, of diffusers' class `name`, and try it for a few steps.

    Raises:
        UserError: no such class, or a scheduler_config.json that is damaged or gives no schedule.
    """
    import diffusers
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    kind = getattr(diffusers, str(name), None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise UserError(f"{folder / 'model_index.json'} makes scheduler a {name}: write a scheduler of diffusers")
    with report_damage(folder / "scheduler", "scheduler"):
        scheduler: Any = kind.from_pretrained(folder / "scheduler")  # type: ignore[attr-defined]
        _try_scheduler(scheduler)
    return scheduler


def _try_scheduler(scheduler: Any) -> None:
    """Take a few steps with a copy: many values of the wrong type or size are used only there."""
    import torch

    scheduler = deepcopy(scheduler)
    sample = torch.zeros(1, 4, 2, 2)
    with torch.random.fork_rng(devices=[]):
        scheduler.set_timesteps(4, **({"mu": 1.0} if scheduler.config.get("use_dynamic_shifting") else {}))
        for timestep in scheduler.timesteps:
            scaled = scheduler.scale_model_input(sample, timestep) if not is_flow(scheduler) else sample
            sample = scheduler.step(scaled, timestep, sample).prev_sample
    if not sample.isfinite().all():
        raise ValueError("its steps are not finite")


def is_flow(scheduler: Any) -> bool:
    """Return whether a scheduler is one of flow matching."""
    return type(scheduler).__name__.startswith("FlowMatch")


def check_scheduler(name: str) -> None:
    """Raise UserError with the known names for an unknown one."""
    if name not in SCHEDULERS:
        raise UserError(f"model.scheduler={name} is not one of {', '.join(SCHEDULERS)}")


def build_scheduler(name: str, scheduler: Any) -> Any:
    """Return the scheduler `name`, given the model folder's.

    Raises:
        UserError: an unknown name, or a scheduler of diffusion for a model of flow matching.
    """
    check_scheduler(name)
    if name != "model" and is_flow(scheduler):
        raise UserError(
            f"model.scheduler={name} denoises by a diffusion's schedule, but the model was trained by flow matching: "
            "set model.scheduler=model"
        )
    return SCHEDULERS[name](scheduler)


@register_scheduler("model")
def keep_scheduler(scheduler: Any) -> Any:
    """Return the model folder's scheduler itself."""
    return scheduler


@register_scheduler("ddim")
def build_ddim(scheduler: Any) -> Any:
    """Return DDIM [Song et al. 2021] on the noise schedule of `scheduler`, as in the paper; latents are not clipped."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    return DDIMScheduler.from_config(scheduler.config, clip_sample=False)


@register_scheduler("ddpm")
def build_ddpm(scheduler: Any) -> Any:
    """Return ancestral sampling [Ho et al. 2020], DDIM with η = 1: noise in every step, by each panel's seed."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    return DDPMScheduler.from_config(scheduler.config, clip_sample=False, variance_type="fixed_small")


@register_scheduler("dpm++")
def build_dpm(scheduler: Any) -> Any:
    """Return DPM-Solver++ [Lu et al. 2022] of second order; 20 to 30 steps suffice."""
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    return DPMSolverMultistepScheduler.from_config(scheduler.config, algorithm_type="dpmsolver++")


@register_scheduler("euler")
def build_euler(scheduler: Any) -> Any:
    """Return Euler's method [Karras et al. 2022] on the probability-flow ODE."""
    from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

    return EulerDiscreteScheduler.from_config(scheduler.config)


@register_scheduler("unipc")
def build_unipc(scheduler: Any) -> Any:
    """Return UniPC [Zhao et al. 2023], a predictor-corrector of second order; 10 to 20 steps suffice."""
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    return UniPCMultistepScheduler.from_config(scheduler.config)


@register_scheduler("lcm")
def build_lcm(scheduler: Any) -> Any:
    """Return the sampler of latent consistency models [Luo et al. 2023], for 4 to 8 steps with an LCM or its LoRA."""
    from diffusers.schedulers.scheduling_lcm import LCMScheduler

    return LCMScheduler.from_config(scheduler.config, clip_sample=False)
