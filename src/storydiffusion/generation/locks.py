"""Locked panels keep their images: `lock: true` of a panel in a story."""

from collections.abc import Sequence
from pathlib import Path

from storydiffusion.errors import UserError
from storydiffusion.output.manifest import Manifest, PanelRecord
from storydiffusion.story import Story


def check_locks(folder: Path, story: Story, found: Manifest, planned: Sequence[PanelRecord], overwrite: bool) -> None:
    """Check that the images of locked panels stay, where a run folder has them: panels with the same prompt.

    Raises:
        UserError: a locked panel would be generated again.
    """
    earlier = found.earlier or found.panels
    kept = {each.key for each in earlier}
    if overwrite and found.complete and [each.key for each in earlier] == [each.key for each in planned]:
        kept = set()  # all of it is generated again
    shown = {(each.prompt, each.negative_prompt) for each in earlier}
    for number, (panel, plan) in enumerate(zip(story.panels, planned, strict=True), 1):
        if panel.lock and (plan.prompt, plan.negative_prompt) in shown and plan.key not in kept:
            raise UserError(
                f"panel {number} is locked, and its image in {folder} would be generated again: remove its lock, or "
                "keep the other panels and retake the one that changes"
            )


def check_unlocked(story: Story, panel: int) -> None:
    """Check that a panel, from 1, may be retaken. Raises UserError where it is locked."""
    if 1 <= panel <= len(story.panels) and story.panels[panel - 1].lock:
        raise UserError(f"panel {panel} is locked: remove its lock to retake it")
