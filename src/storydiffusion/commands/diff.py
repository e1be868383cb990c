"""`storydiffusion diff`: name what infer would change in a run folder, and which panels it would generate."""

from pathlib import Path

from storydiffusion.commands.infer import plan_manifest, plan_video, read_story
from storydiffusion.config import InferConfig
from storydiffusion.config.command_line import command
from storydiffusion.errors import UserError
from storydiffusion.loaders.resolve import resolve_model
from storydiffusion.output.manifest import Manifest, find_damage, read_manifest


@command(InferConfig)
def main(config: InferConfig) -> None:
    """Run the verb."""
    if config.benchmark is not None:
        raise UserError("diff compares stories, not benchmarks: leave out benchmark")
    if config.is_to_write:
        raise UserError(f"idea, text and emotion write a new story: give story={config.run_dir}/story.yaml instead")
    folder = Path(str(config.run_dir))
    found = read_manifest(folder / "manifest.json")
    print("\n".join(describe_changes(config, folder, found)))


def describe_changes(config: InferConfig, folder: Path, found: Manifest) -> list[str]:
    """Return lines: the differences, and what infer would make of them."""
    from storydiffusion.output.differences import find_differences
    from storydiffusion.output.run_folder import describe_panels

    story, model = read_story(config), resolve_model(config.model)
    planned = plan_manifest(config, model, story, plan_video(config, model)[0])
    damage = find_damage(folder, found)
    differences = [str(each) for each in find_differences(found, planned)]
    differences += [f"{file} {problem}" for file, problem in damage.items()]
    if not differences:
        return [f"{folder} contains this story with these settings" + ("" if found.complete else ", unfinished")]
    from storydiffusion.pipelines.panel_keys import plan_panels

    panels = plan_panels(config, story, planned, model.folder)
    kept = {each.key for each in found.earlier or found.panels if each.file not in damage}
    made = [number for number, each in enumerate(panels, 1) if each.key not in kept]
    return [
        *differences,
        f"infer would generate {describe_panels(made, len(panels))} and set page, video and report anew",
    ]
