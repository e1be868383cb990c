"""Count denoising steps by a pipeline's `callback_on_step_end`."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from storydiffusion.attention.finite import check_latents
from storydiffusion.errors import UserError

NEEDING = "start, end, regions and variant 'official'"
"""settings that need the schedule"""


class StepEnd:
    """A pipeline's `callback_on_step_end`, alone or among diffusers' `MultiPipelineCallbacks`.

    Args:
        end_step: called with the number of the step.
    """

    tensor_inputs = ("latents",)

    def __init__(self, end_step: Callable[[int], None]) -> None:
        self._end_step = end_step

    def __call__(self, pipe: Any, step: int, timestep: Any, callback_kwargs: dict) -> dict:
        """Enter the next step. Tensors stay unchanged.

        Raises:
            UserError: for latents that are not finite.
        """
        if isinstance(latents := callback_kwargs.get("latents"), Tensor):
            check_latents(latents, step)
        self._end_step(step)
        return callback_kwargs


def check_takes_callback(pipe: Any) -> None:
    """Check that a pipeline's call takes `callback_on_step_end`; what is no pipeline is called otherwise.

    Raises:
        UserError: for one that does not, such as some older pipelines of diffusers.
    """
    if callable(pipe) and "callback_on_step_end" not in inspect.signature(pipe).parameters:
        raise UserError(
            f"{type(pipe).__name__} has no callback_on_step_end, so {NEEDING} are not possible with it: leave them out."
        )
