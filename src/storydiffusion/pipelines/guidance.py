"""Classifier-free guidance in the later steps alone (Kynkäänniemi et al. 2024, arXiv 2404.07724).

At the highest noise levels guidance narrows what may be where before the layout is settled: the miniature then shows a
character twice. Pipelines read the scale anew in every step, which diffusers documents for callbacks.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from storydiffusion.config.loading import check_range
from storydiffusion.errors import UserError
from storydiffusion.pipelines.calls import is_unet

UNGUIDED = math.nextafter(1, 2)
"""a scale at which pipelines compute both halves of the batch, as they were prepared, and keep the conditional one"""


def delay_guidance(pipe: Any, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[Any, int], None]]:
    """Take `guidance_start` out of a call's arguments.

    Args:
        arguments: of the pipeline's call; `guidance_start` is the share of the steps, from 0 to 1, that come before the
            first with guidance.

    Returns:
        The arguments for the pipeline, and a function of the number of a step (from 0), to be called at the end of
        every step, which sets the scale of the next.

    Raises:
        UserError: for a share that is none, or a pipeline without a U-Net.
    """
    rest = {name: value for name, value in arguments.items() if name != "guidance_start"}
    start, scale = arguments.get("guidance_start", 0.0), arguments.get("guidance_scale")
    check_range("guidance_start", start, 0, 1)
    if start and not is_unet(pipe):
        raise UserError(f"{type(pipe).__name__} has no U-Net: leave out guidance_start={start}")
    if not start or scale is None or scale <= 1:
        return rest, lambda step: None

    def set_scale(step: int) -> None:
        pipe._guidance_scale = scale if step + 1 >= start * pipe.num_timesteps else UNGUIDED

    return {**rest, "guidance_scale": UNGUIDED}, set_scale
