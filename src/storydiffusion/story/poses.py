"""Pose maps of a story's panels, for a ControlNet."""

from pathlib import Path
from typing import TYPE_CHECKING

from storydiffusion.errors import UserError
from storydiffusion.story.script import Story

if TYPE_CHECKING:
    from PIL import Image


def has_poses(story: Story) -> bool:
    """Return whether any panel has a pose map."""
    return any(panel.pose for panel in story.panels)


def check_poses(story: Story, has_controlnet: bool) -> None:
    """Check that poses and a ControlNet come together, and that every map can be read.

    Raises:
        UserError: one without the other, or an unreadable map.
    """
    if has_controlnet and not has_poses(story):
        raise UserError("model.controlnet is set, but no panel has a pose: add 'pose: FILE' to panels of the story")
    if has_poses(story) and not has_controlnet:
        number = next(number for number, panel in enumerate(story.panels, 1) if panel.pose)
        raise UserError(f"panel {number} has a pose, but model.controlnet=null: name a ControlNet for its pose maps")
    read_poses(story, (64, 64))


def read_poses(story: Story, size: tuple[int, int]) -> "list[Image.Image]":
    """Read the pose map of each panel in `size` (width, height); black where a panel has none.

    Raises:
        UserError: a map that cannot be read.
    """
    from PIL import Image

    from storydiffusion.story.given_images import read_image

    files = [panel.pose for panel in story.panels]
    return [Image.new("RGB", size) if file is None else read_image(Path(file), size) for file in files]
