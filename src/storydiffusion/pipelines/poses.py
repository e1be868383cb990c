"""Condition panels on pose maps by a ControlNet [Zhang et al. 2023]; panels without one are generated as without it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from storydiffusion.story import Story


@contextmanager
def posed_panels_only(controlnet: Any, story: Story) -> Iterator[None]:
    """Set the ControlNet's residuals to zero for panels without a pose, inside the context."""
    has_pose = torch.tensor([panel.pose is not None for panel in story.panels])

    def mask(network: Any, args: Any, output: tuple[list[Tensor], Tensor]) -> tuple[list[Tensor], Tensor]:
        down, middle = output
        shown = has_pose.repeat(len(middle) // len(has_pose)).to(middle).view(-1, 1, 1, 1)  # of each guidance part
        return [residual * shown for residual in down], middle * shown

    hook = controlnet.register_forward_hook(mask)
    try:
        yield
    finally:
        hook.remove()
