"""Condition panels on pose maps by a ControlNet [Zhang et al. 2023]; panels without one are generated as without it.

Shapes: P panels, B = guidance parts · P images in a batch, part by part, b of them in a chunk.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from storydiffusion.attention.chunks import RowsOnDemand, select_images
from storydiffusion.story import Story


@contextmanager
def posed_panels_only(controlnet: Any, story: Story, in_chunks: bool) -> Iterator[None]:
    """Set the ControlNet's residuals to zero for panels without a pose, inside the context.

    Args:
        in_chunks: compute them when the U-Net asks for those of a chunk; see `attention.chunks`.
    """
    has_pose = torch.tensor([panel.pose is not None for panel in story.panels])
    forward, own = controlnet.forward, vars(controlnet).get("forward")  # a hook of offloading, if any

    def run(*args: Any, guess_mode: bool = False, **kwargs: Any) -> tuple[Any, Any]:
        residuals = _Residuals(partial(forward, guess_mode=guess_mode), has_pose, args, kwargs)
        if not in_chunks or guess_mode:  # in which the pipeline itself computes with the residuals
            return residuals.compute_all()
        return RowsOnDemand(partial(residuals.take, "down")), RowsOnDemand(partial(residuals.take, "middle"))

    controlnet.forward = run
    try:
        yield
    finally:
        if own is None:
            del controlnet.forward
        else:
            controlnet.forward = own


class _Residuals:
    """The residuals of one call of a ControlNet, which is computed for some of the B images at a time."""

    def __init__(self, call: Callable[..., Any], has_pose: Tensor, args: tuple, kwargs: Mapping[str, Any]) -> None:
        self.call, self.has_pose, self.args, self.kwargs = call, has_pose, args, kwargs
        self._computed: dict[str, Any] = {}

    def compute_all(self) -> tuple[list[Tensor], Tensor]:
        """Return the down blocks' and the middle block's residuals of all images."""
        return self._mask(self.call(*self.args, **self.kwargs), torch.arange(len(self.args[0])))

    def compute(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return those of these images (b,)."""
        batch = len(self.args[0])
        given = {name: select_images(value, images, batch, name) for name, value in self.kwargs.items()}
        args = (select_images(value, images, batch, "input") for value in self.args)
        return self._mask(self.call(*args, **given), images)

    def _mask(self, residuals: tuple[list[Tensor], Tensor], images: Tensor) -> tuple[list[Tensor], Tensor]:
        down, middle = residuals
        shown = self.has_pose[images % len(self.has_pose)].to(middle).view(-1, 1, 1, 1)
        return [residual * shown for residual in down], middle * shown

    def take(self, part: str, images: Tensor) -> Any:
        """Return `down` or `middle` of a chunk; each is taken once, and then not held any longer."""
        if part not in self._computed:
            self._computed = dict(zip(("down", "middle"), self.compute(images), strict=True))
        return self._computed.pop(part)
