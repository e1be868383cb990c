"""Schedulers by name, each on the noise schedule of the model folder: the registry behind `model.scheduler`."""

from collections.abc import Callable
from typing import Any

from storydiffusion.errors import UserError

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


def check_scheduler(name: str) -> None:
    """Raise UserError with the known names for an unknown one."""
    if name not in SCHEDULERS:
        raise UserError(f"model.scheduler={name} is not one of {', '.join(SCHEDULERS)}")


def build_scheduler(name: str, scheduler: Any) -> Any:
    """Return the scheduler `name`, given the model folder's. Raises UserError for an unknown name."""
    check_scheduler(name)
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
