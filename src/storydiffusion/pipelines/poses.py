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

    def run(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        residuals = _Residuals(forward, has_pose, args, kwargs)
        if in_chunks:
            return RowsOnDemand(partial(residuals.take, "down")), RowsOnDemand(partial(residuals.take, "middle"))
        return residuals.compute(torch.arange(residuals.batch))

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
        self.batch = len(args[0])
        self._computed: dict[str, Any] = {}

    def compute(self, images: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return the down blocks' and the middle block's residuals of these images (b,)."""
        given = {name: select_images(value, images, self.batch, name) for name, value in self.kwargs.items()}
        args = (select_images(value, images, self.batch, "input") for value in self.args)
        down, middle = self.call(*args, **given)
        shown = self.has_pose[images % len(self.has_pose)].to(middle).view(-1, 1, 1, 1)
        return [residual * shown for residual in down], middle * shown

    def take(self, part: str, images: Tensor) -> Any:
        """Return `down` or `middle` of a chunk; each is taken once, and then not held any longer."""
        if part not in self._computed:
            self._computed = dict(zip(("down", "middle"), self.compute(images), strict=True))
        return self._computed.pop(part)
