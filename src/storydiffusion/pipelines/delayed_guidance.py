"""Classifier-free guidance in the later steps only (Kynkäänniemi et al. 2024, arXiv 2404.07724).

At the highest noise levels guidance narrows what may be where before the layout is settled: the miniature then shows a
character twice. The pipeline is left as it is; in the steps before the start, its denoiser's prediction without text is
replaced by the one with text, so that any scale gives the latter.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from storydiffusion.attention.backbones import find_denoiser
from storydiffusion.config.loading import check_range
from storydiffusion.errors import UserError
from storydiffusion.pipelines.calls import spell_guidance


def call_pipeline(pipe: Any, arguments: Mapping[str, Any], on_step_end: Callable[..., Any], images: int) -> Any:
    """Call a diffusers pipeline for `images` images; return its images.

    Args:
        arguments: of its call, with the scale of guidance as `guidance_scale` for every pipeline, and `guidance_start`
            (see `delayed_guidance`), which pipelines themselves ignore in silence.
        on_step_end: diffusers' callback.

    Raises:
        UserError: as `delayed_guidance`.
    """
    call = dict(arguments)
    start = call.pop("guidance_start", 0.0)
    with delayed_guidance(pipe, start, call.get("guidance_scale"), images) as end_step:

        def end(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> Any:
            end_step(step)
            return on_step_end(pipe, step, timestep, tensors)

        return pipe(**spell_guidance(pipe, call), callback_on_step_end=end).images


@contextmanager
def delayed_guidance(pipe: Any, start: float, scale: float | None, images: int) -> Iterator[Callable[[int], None]]:
    """Call the pipeline without guidance up to a step.

    Yields a function of a step's number (from 0), to be called at the end of each.

    Args:
        start: share of the steps, from 0 to 1, that come before the first with guidance.
        scale: of guidance; 1 or less: the pipeline has none to delay.
        images: in the pipeline's call.

    Raises:
        UserError: for a share that is none, or a pipeline without predictions for no text, such as a distilled one.
    """
    check_range("guidance_start", start, 0, 1)
    if not start or (scale is not None and scale <= 1):
        yield lambda step: None
        return
    delay = _Delay(pipe, start, images)
    hook = find_denoiser(pipe).register_forward_hook(delay.replace)
    try:
        yield delay.end_step
    finally:
        hook.remove()


class _Delay:
    def __init__(self, pipe: Any, start: float, images: int) -> None:
        self.pipe, self.start, self.images = pipe, start, images
        self.step = 0
        self.conditional: Tensor | None = None
        self.is_replaced = False

    @property
    def is_unguided(self) -> bool:
        return self.step < self.start * self.pipe.num_timesteps

    def replace(self, denoiser: Any, inputs: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        """Replace predictions without text: those before the ones with text in a batch, or a step's second call."""
        if not self.is_unguided:
            return None
        predicted, *others = output
        if self.conditional is None and len(predicted) == self.images:
            self.conditional = predicted
            return None
        conditional = predicted[self.images : 2 * self.images] if self.conditional is None else self.conditional
        self.is_replaced = True
        return conditional.repeat(len(predicted) // self.images, *[1] * (predicted.ndim - 1)), *others

    def end_step(self, step: int) -> None:
        if self.is_unguided and not self.is_replaced:
            raise UserError(
                f"{type(self.pipe).__name__} predicts nothing without text in this call: leave out "
                f"guidance_start={self.start}"
            )
        self.step, self.conditional = step + 1, None
