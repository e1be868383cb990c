"""What generating would change in a run folder, found without a model."""

from dataclasses import dataclass
from pathlib import Path

from storydiffusion.config import InferConfig
from storydiffusion.generation.plan import plan_manifest, plan_video
from storydiffusion.loaders.resolve import resolve_model
from storydiffusion.output.differences import find_differences
from storydiffusion.output.manifest import Manifest, find_damage
from storydiffusion.story import Story


@dataclass(frozen=True)
class Changes:
    """What generating would change.

    Attributes:
        differences: from the story and settings that the folder contains, and results that are damaged.
        made: numbers from 1 of the panels that would be generated.
        panels: their number.
        is_longer: whether nothing but panels at the end, and their characters, is new.
    """

    differences: tuple[str, ...]
    made: tuple[int, ...]
    panels: int
    is_longer: bool


def find_changes(config: InferConfig, story: Story, folder: Path, found: Manifest) -> Changes:
    """Compare a story and the settings of `config` with what a run folder contains. Raises UserError."""
    model = resolve_model(config.model)
    planned = plan_manifest(config, model, story, plan_video(config, model)[0])
    damage = find_damage(folder, found)
    names = [str(each) for each in find_differences(found, planned)]
    names += [f"{file} {problem}" for file, problem in damage.items()]
    if not names and found.panels:
        return Changes((), (), len(story.panels), False)
    from storydiffusion.generation.takes import find_new_panels, is_of_panels
    from storydiffusion.pipelines.panel_keys import plan_panels

    panels = plan_panels(config, story, planned, model.folder)
    kept = {each.key for each in found.earlier or found.panels if each.file not in damage}
    made = tuple(number for number, each in enumerate(panels, 1) if each.key not in kept)
    of_panels = {each.what for each in find_differences(found, planned) if is_of_panels(each.what, found, planned)}
    is_longer = (
        found.complete
        and not damage
        and len(found.panels) < len(panels)
        and of_panels <= find_new_panels(story, len(found.panels))
    )
    return Changes(tuple(names), made, len(panels), is_longer)
